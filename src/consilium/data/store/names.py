"""What a store is called: a fingerprint of all that decides what is in it; and what earlier versions called it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, TypeGuard

from consilium.core.files import fingerprint
from consilium.core.places import absolute
from consilium.data.config import DataConfig
from consilium.data.sources.config import ATTACHMENT_TOKENS, FORMER_ATTACHMENT_TOKEN, HubSource, JsonlSource, Source
from consilium.data.sources.files import Inputs
from consilium.data.store.files import FORMAT_VERSION
from consilium.data.store.store import Store

QUARANTINE = "quarantine.csv"


def files_digest(inputs: Sequence[Inputs]) -> str:
    """SHA-256 of the names, sizes and versions of all files that the sources are read from."""
    files = hashlib.sha256()
    for source_inputs in inputs:
        for file in source_inputs.files:
            files.update(f"{file.name}\0{file.size}\0{file.version}\n".encode(errors="surrogateescape"))
        files.update(b"\0")
    return files.hexdigest()


def store_key(config: DataConfig, files: str) -> str:
    """What a store depends on: its format, sources, splits and images, and the ``files`` the sources are read from."""
    return fingerprint([FORMAT_VERSION, relevant(config), files])


def earlier_keys(config: DataConfig, files: str) -> list[str]:
    """What versions that wrote format 1 called the store of a config, the latest of them first.

    What the earliest divided by the hash alone stays as it is, for the runs that began with it.
    """
    former = config.model_copy(update={"sources": [_formerly(source) for source in config.sources]})
    by_hash = former.model_copy(update={"split": config.split.model_copy(update={"every_class": False})})
    return [fingerprint([1, relevant(one), files]) for one in (former, by_hash)]


def _formerly(source: Source) -> Source:
    """A source with the defaults of earlier versions."""
    if not _has_newer_tokens(source):
        return source
    return source.model_copy(update={"attachment_token": FORMER_ATTACHMENT_TOKEN})


def _has_newer_tokens(source: Source) -> TypeGuard[JsonlSource]:
    return isinstance(source, JsonlSource) and source.attachment_token == [*ATTACHMENT_TOKENS]


def reads_as_before(store: Store, config: DataConfig) -> bool:
    """Whether the sources of a store that an earlier version prepared would be read as they were then.

    Of the attachment tokens that are removed by default earlier versions knew one; so a text with the other, and a row
    that was bad because of the number of its tokens, would now be read in another way.
    """
    newer = {source.name for source in config.sources if _has_newer_tokens(source)}
    if not newer:
        return True
    if store.manifest.bad_rows and "attachment tokens" in (store.path / QUARANTINE).read_text(encoding="utf-8"):
        return False
    table, others = store.table, [token for token in ATTACHMENT_TOKENS if token != FORMER_ATTACHMENT_TOKEN]
    return not any(
        token in (text or "")
        for source, text in zip(table.sources, table.texts, strict=True)
        if source in newer
        for token in others
    )


def relevant(config: DataConfig) -> dict[str, Any]:
    """The part of the config that decides what is in a store; paths are absolute."""
    sources = []
    for source in config.sources:
        gently = {"delay": True, "retries": True}  # how rows come says nothing about them
        fields = type(source).model_fields
        new = {key: True for key in source.later if getattr(source, key) == fields[key].default}
        used = {"weight": True, "captions": True, "route": True}  # when cases are used, not when they are prepared
        tree = source.model_dump(mode="json", exclude={**used, **gently, "images": gently, **new})
        keys = ("image_root",) if isinstance(source, HubSource) else ("path", "image_root", "texts")
        paths = {key: absolute(tree[key]) for key in keys if tree.get(key)}
        sources.append({**tree, **paths})
    asked = {key for key in ("every_class", "keep_sources_in") if getattr(config.split, key)}  # as before these keys
    split = config.split.model_dump(mode="json", include={"val", "test", "seed", *asked})
    if config.split.keep_sources_in is not None:
        split["source_column"] = config.mixture.source_column
    return {
        "sources": sources,
        "split": split,
        "store": config.store.model_dump(mode="json", exclude={"root", "workers", "check_images"}),
    }
