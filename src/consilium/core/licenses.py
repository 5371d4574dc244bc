"""The licences of the weights that a training starts from: what is trained from them inherits them.

Names are those of model cards (``apache-2.0``, ``cc-by-nc-4.0``). What they mean for a model is said as a warning to
look at the terms; it is no legal advice.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from pydantic import Field

from consilium.core.config import Config

_NO_COMMERCE = {"nc", "noncommercial", "research"}
_NO_CHANGES = {"nd", "noderivatives", "noderivs"}
_EMPTY_WORDS = {"the", "license", "licence", "version"}
# Neither forbids commercial use nor passing on what was changed.
_FREE = (
    "afl-3.0", "agpl-3.0", "apache-2.0", "artistic-2.0", "bsd", "bsd-2-clause", "bsd-3-clause",
    "bsd-3-clause-clear", "bsl-1.0", "cc-by-2.0", "cc-by-2.5", "cc-by-3.0", "cc-by-4.0", "cc-by-sa-3.0",
    "cc-by-sa-4.0", "cc0-1.0", "cdla-permissive-1.0", "cdla-permissive-2.0", "cdla-sharing-1.0", "ecl-2.0",
    "epl-2.0", "eupl-1.2", "gpl", "gpl-2.0", "gpl-3.0", "isc", "lgpl", "lgpl-2.1", "lgpl-3.0", "mit", "mit-0",
    "mpl-2.0", "ms-pl", "ncsa", "odc-by", "openmdw-1.0", "osl-3.0", "pddl", "postgresql", "unlicense",
    "wtfpl", "zlib",
)  # fmt: skip


class License(Config):
    """The licence of some starting weights; several that hold for the same weights are several of these."""

    source: str = Field(description="The weights: the name of a model, or the place where they were.")
    name: str | None = Field(description="As a model card names it; null: unknown.")
    read_from: str = Field(description="Where the name was read, or why there is none.")

    def warning(self) -> str | None:
        """What somebody who trains from these weights must look at first; None where nothing is forbidden."""
        weights = f"the starting weights '{self.source}'"
        if self.name is None:
            return (
                f"the licence of {weights} is unknown ({self.read_from}). Find out whether they may be used, changed "
                "and passed on, before you do that with what is trained from them. A card beside their file "
                "(README.md) states the licence, or the key `license` of their tower or model."
            )
        words = _words(self.name)
        terms = []
        if _NO_COMMERCE & set(words) or "non commercial" in " ".join(words):
            terms.append("commercial use, also of what is trained from them")
        if _NO_CHANGES & set(words):
            terms.append("passing on changed versions, which is what training makes of them")
        if terms:
            return f"{weights} have the licence {self.name}, which forbids {', and '.join(terms)}."
        if words in _FREE_WORDS:
            return None
        return (
            f"{weights} have a licence with terms of its own ({self.name}), which hold for what is trained from them, "
            "too. Read them before you use it or pass it on."
        )


def license_warnings(licenses: Iterable[License]) -> list[str]:
    """What must be looked at first, each once."""
    return list(dict.fromkeys(filter(None, (license.warning() for license in licenses))))


def license_lines(licenses: Iterable[License]) -> list[str]:
    """Each licence in a line, and then what must be looked at first."""
    own = list(licenses)
    named = [f"licence of {license.source}: {license.name or 'unknown'}" for license in own]
    return [*named, *(f"warning: {warning}" for warning in license_warnings(own))]


def recorded(licenses: Sequence[License] | None, *, source: str) -> list[License]:
    """The licences that a bundle inherited; None, of a version that kept none, makes one that is unknown."""
    if licenses is not None:
        return list(licenses)
    return [License(source=source, name=None, read_from="its bundle is of a version that did not record licences")]


def with_stated(found: Sequence[License] | None, name: str | None, *, source: str, key: str) -> tuple[License, ...]:
    """The licences found, and that which the config states under ``key``: it replaces unknown ones, no others.

    None of them is for weights that are random, whatever is stated.
    """
    if found is None or name is None:
        return tuple(found or ())
    stated = License(source=source, name=name, read_from=key)
    filled = [stated.model_copy(update={"source": one.source}) if one.name is None else one for one in found]
    return tuple(filled if any(one.name == name for one in filled) else [*filled, stated])


def _words(name: str) -> list[str]:
    """A name without what its spellings differ in: ``The Apache License 2.0`` is ``apache-2.0``."""
    return [word for word in re.findall(r"[a-z0-9]+", name.lower()) if word not in _EMPTY_WORDS]


_FREE_WORDS = [_words(name) for name in _FREE]
