"""Which sources each label comes from: a label of a single source is learned as that source's look.

Axes in names: N case.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from consilium.core.config import nearest
from consilium.core.errors import ConfigError
from consilium.core.labels import reading_order
from consilium.core.reporter import counted, some
from consilium.data.case import SOURCE_COLUMNS
from consilium.data.config import DataConfig
from consilium.data.store.store import CaseTable

SHOWN = 8
Counts = Mapping[str, Counter[str]]  # cases of each split, by source


def sources_of(table: CaseTable, column: str) -> np.ndarray:
    """What the column says of each case [N]; cases where it says nothing ('') are one source."""
    columns = {"source": table.sources} if column == "source" else table.columns()
    if column not in columns:
        raise ConfigError(f"data.mixture.source_column is '{column}'{nearest(column, sorted(columns))}")
    names: np.ndarray = np.array(columns[column], dtype=object)
    return names


@dataclass(frozen=True)
class Origins:
    """The cases of each label by source and split, in the order in which labels are read."""

    column: str
    found: Mapping[str, Counts] = field(default_factory=dict)

    @classmethod
    def of(cls, table: CaseTable, column: str) -> Origins:
        """Those of the labelled cases of a table; ``column`` tells the sources apart.

        Where the usual column has a single value, another that people write sources in stands for it.
        """
        if column == SOURCE_COLUMNS[0] and len(set(table.sources)) == 1:
            known = table.columns()
            several = [name for name in SOURCE_COLUMNS if len(set(known.get(name, ()))) > 1]
            column = several[0] if several else column
        found: dict[str, dict[str, Counter[str]]] = defaultdict(lambda: defaultdict(Counter))
        for source, split, labels in zip(sources_of(table, column), table.splits, table.labels, strict=True):
            for label in labels if split != "unlabelled" else ():
                found[label][source][split] += 1
        return cls(column, {label: found[label] for label in reading_order(sorted(found))})

    @property
    def several(self) -> bool:
        """Whether there is more than one source in all."""
        return len({source for own in self.found.values() for source in own}) > 1

    def rows(self) -> list[dict[str, str | int]]:
        """A row for each label: how many sources train it, which, and those that train has none of; [] as below."""
        return (
            []
            if not self.several
            else [
                {
                    "label": label,
                    "sources in train": sum(counts["train"] > 0 for counts in own.values()),
                    "train": _told(own, "train"),
                    "not in train": some(
                        _named({name: counts for name, counts in own.items() if not counts["train"]}), 4
                    ),
                }
                for label, own in self.found.items()
            ]
        )

    def warnings(self, config: DataConfig) -> list[str]:
        """What cannot be expected on other sources, and what nothing tests; [] where there is one source in all."""
        if not self.several:
            return []
        return [*self._of_one_source(), *self._never_trained(config), *self._untested(config)]

    def _of_one_source(self) -> list[str]:
        single = {
            label: trained[0]
            for label, own in self.found.items()
            if len(trained := [source for source, counts in own.items() if counts["train"]]) == 1
        }
        if not single:
            return []
        named = some([f"{label} ({_name(source)})" for label, source in single.items()], SHOWN)
        one = len(single) == 1
        return [
            f"{counted(len(single), 'label')} {'has' if one else 'have'} one source in train: {named}. What tells that "
            f"source apart is learned with {'it' if one else 'them'}: expect images of other sources to be taken for "
            "something else. Add cases of another source."
        ]

    def _never_trained(self, config: DataConfig) -> list[str]:
        split = config.split
        if split.leave_out is not None or split.folds is not None:  # which is what was asked for
            return []
        out = [
            f"{label} of {_name(source)} ({counts['val']} in val, {counts['test']} in test)"
            for label, own in self.found.items()
            for source, counts in own.items()
            if not counts["train"] and counts["val"] + counts["test"]
        ]
        if not out:
            return []
        if split.keep_sources_in is None:
            mend = "With data.split.keep_sources_in: train some of each train, where the rows name no split."
        else:
            mend = "data.split.keep_sources_in does not touch them: the splits that their rows name keep them out."
        return [f"train has no case of {some(out, SHOWN)}. {mend}"]

    def _untested(self, config: DataConfig) -> list[str]:
        if config.split.keep_sources_in is None:
            return []
        only = [
            f"{label} of {_name(source)}"
            for label, own in self.found.items()
            for source, counts in own.items()
            if counts["train"] and not counts["val"] + counts["test"]
        ]
        return [f"wholly in train, so that nothing tests it: {some(only, SHOWN)}."] if only else []


def _told(own: Counts, split: str) -> str:
    counts = {source: of_split[split] for source, of_split in own.items() if of_split[split]}
    most = sorted(counts, key=lambda source: (-counts[source], source))
    return some([f"{_name(source)} {counts[source]}" for source in most], 4)


def _named(own: Counts) -> list[str]:
    return [f"{_name(source)} {sum(counts.values())}" for source, counts in sorted(own.items())]


def _name(source: str) -> str:
    return source or "(no source)"
