"""Other names for labels and branches of labels, so that data with names of its own fits a label tree."""

from __future__ import annotations

from collections.abc import Mapping

from consilium.core.config import nearest
from consilium.core.errors import ConfigError
from consilium.core.labels import with_ancestors
from consilium.data.store.store import CaseTable


def renamed(table: CaseTable, names: Mapping[str, str]) -> CaseTable:
    """The cases with their labels renamed; ``names`` maps labels, or branches with all below them, to new names.

    Of several keys the longest that fits a label counts, and all labels are renamed at once: nothing is renamed twice.
    Two labels of a case that become one stand once. A key that no case has is a ConfigError.
    """
    present = {label for own in table.labels for label in own}
    known = with_ancestors(present)
    for old in names:
        if old not in known:
            hint = nearest(old, sorted(known), there="there are")
            raise ConfigError(f"data.rename_labels names the label '{old}', which no case has{hint}")
    new_of = {label: new_name(label, names) for label in present}
    return table.with_labels([tuple(dict.fromkeys(new_of[label] for label in own)) for own in table.labels])


def new_name(label: str, names: Mapping[str, str]) -> str:
    """A label by its new name, or as it is."""
    fits = [old for old in with_ancestors([label]) if old in names]
    if not fits:
        return label
    old = max(fits, key=len)
    return names[old] + label[len(old) :]
