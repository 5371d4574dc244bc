"""Splits for cross-validation: folds of whole groups, and sources or other values left out.

Axes in names: N case, U unit (cases that must stay together), C class, P part.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from consilium.core.config import nearest
from consilium.core.errors import ConfigError, DataError
from consilium.core.labels import with_ancestors
from consilium.core.reporter import some
from consilium.data.cases.filters import Filtered, is_branch, your_column
from consilium.data.config import LeaveOut, SplitConfig
from consilium.data.guards.leaks import clusters
from consilium.data.store.splits import position
from consilium.data.store.store import CaseTable

PASSES = 3  # over all units, each time taking one out and putting it where it fits best now


def resplit(table: CaseTable, *, config: SplitConfig) -> Filtered:
    """The cases in the splits of the fold, or of what is left out, that the config names; else as they were.

    Cases that share a group, or a file by its sha256, are one unit, also by way of others, and no unit is divided.
    The split ``unlabelled`` stays. Pseudo-labels (``is_gt: false``) count for nothing: beside tested cases of their
    unit they go to test, where they are left out later; alone they train.

    ``folds``: the units are divided into folds that are even in every class, and fold number ``fold`` is tested.
    ``leave_out``: what matches is tested; the rest keeps its val cases and trains on the others. A case of the rest
    that shares a unit with a tested one is left out, with a note. Where no val is left, and always with ``folds``,
    the share ``val`` of the units that are not tested is taken for it, even in every class.
    """
    if config.leave_out is not None:
        return _leave_out(table, config=config)
    if config.folds is None:
        return Filtered(table)
    units = units_of(table)
    fold_of = _divide(table, units, np.flatnonzero(_trusted(table)), [1 / config.folds] * config.folds, config.seed)
    if len(fold_of) < config.folds:
        raise DataError(
            f"data.split.folds is {config.folds}, but there are only {len(fold_of)} groups of cases (a group, and all "
            "that shares a file with it, stays together). Ask for fewer folds, or look at the group column."
        )
    tested = np.array([fold_of.get(unit) == config.fold for unit in units], dtype=bool)
    return Filtered(table.with_splits(_splits(table, units, tested, np.zeros(len(table), dtype=bool), config=config)))


def _leave_out(table: CaseTable, *, config: SplitConfig) -> Filtered:
    judged = _judged(table)
    tested = np.zeros(len(table), dtype=bool)
    for cell in config.cells:
        tested |= _matching(table, cell, judged=judged)
    if not (judged & ~tested).any():
        raise DataError("data.split.leave_out matches every case, so none is left to train on; name fewer values.")
    units = units_of(table)
    tested_units = {units[row] for row in np.flatnonzero(tested).tolist()}
    kept = np.array([unit not in tested_units for unit in units], dtype=bool) | tested | ~judged
    val = np.array([split == "val" for split in table.splits], dtype=bool) & kept & ~tested
    splits = _splits(table, units, tested, val, config=config)
    what = "of the rest left out: they share a group or a file with cases that data.split.leave_out tests"
    return Filtered(table.with_splits(splits)).keep(kept, what + _such_as(table, ~kept))


def seen_in_training(found: Filtered, *, nested: bool) -> Filtered:
    """Without the cases of val and test that have a label which training never shows: no answer could be right.

    In a ``nested`` label tree a training case shows its label and all nodes above it.
    """
    shown = {label for row in found.table.rows("train").tolist() for label in found.table.labels[row]}
    if nested:
        shown = with_ancestors(shown)
    for split in ("val", "test"):
        table = found.table
        strange = [row for row in table.rows(split).tolist() if not shown.issuperset(table.labels[row])]
        labels = sorted({label for row in strange for label in table.labels[row]} - shown)
        allowed = np.ones(len(table), dtype=bool)
        allowed[strange] = False
        found = found.keep(allowed, f"of {split} left out: training never sees their labels ({some(labels, 8)})")
    return found


def units_of(table: CaseTable) -> list[str]:
    """The unit of each case: the first, by name, of all groups that share cases or files, also by way of others."""
    groups = sorted(set(table.groups))
    number = {group: n for n, group in enumerate(groups)}
    judged = _judged(table)
    of_file: dict[str, list[int]] = defaultdict(list)
    for row, digest in table.file_hashes():
        if judged[row]:
            of_file[digest].append(number[table.groups[row]])
    joined = clusters([*([n] for n in number.values()), *of_file.values()])
    unit = {groups[n]: groups[together[0]] for together in joined for n in together}
    return [unit[group] for group in table.groups]


def _judged(table: CaseTable) -> np.ndarray:
    return np.array([split != "unlabelled" for split in table.splits], dtype=bool)


def _trusted(table: CaseTable) -> np.ndarray:
    return np.asarray(_judged(table) & table.is_gt)


def _splits(
    table: CaseTable, units: Sequence[str], tested: np.ndarray, val: np.ndarray, *, config: SplitConfig
) -> list[str]:
    """The split of each case; where none is ``val`` yet, a share of the units without a tested case is."""
    if config.val > 0 and not (val & _trusted(table)).any():
        tested_units = {units[row] for row in np.flatnonzero(tested).tolist()}
        rest = np.array([unit not in tested_units for unit in units], dtype=bool) & _trusted(table)
        part_of = _divide(table, units, np.flatnonzero(rest), [1 - config.val, config.val], config.seed)
        val = np.array([part_of.get(unit) == 1 for unit in units], dtype=bool)
    new = np.where(tested, "test", np.where(val, "val", "train"))
    return np.where(_judged(table), new, "unlabelled").tolist()  # type: ignore[no-any-return]


def _divide(
    table: CaseTable, units: Sequence[str], rows: np.ndarray, shares: Sequence[float], seed: int
) -> dict[str, int]:
    """The part that each unit of these rows falls into; every part gets its share of every class."""
    names = sorted({units[row] for row in rows.tolist()})
    labels = [table.labels[row] or ("",) for row in rows.tolist()]
    classes = {label: c for c, label in enumerate(sorted({label for own in labels for label in own}))}
    number = {name: u for u, name in enumerate(names)}
    counts_UC = np.zeros((len(names), len(classes)), dtype=np.int32)
    for row, own in zip(rows.tolist(), labels, strict=True):
        for label in own:
            counts_UC[number[units[row]], classes[label]] += 1
    place_U = [position(name, seed=seed) for name in names]
    return dict(zip(names, divide(counts_UC, shares=shares, place_U=place_U).tolist(), strict=True))


def divide(counts_UC: np.ndarray, *, shares: Sequence[float], place_U: Sequence[float]) -> np.ndarray:
    """Divide units into parts of given shares, so that each part has its share of every class: part numbers [U].

    ``counts_UC`` are each unit's cases of every class, ``shares`` sum to 1, ``place_U`` orders units that are alike.
    With n_pc the cases of class c in part p and N_c those in all, what is made small is the sum over p and c of
    (n_pc / N_c)^2 / share_p, smallest at exact shares. Units go one by one, the largest in their classes first, to
    where they raise it least; then each is taken out and placed again, while that helps.
    """
    # A million units of hundreds of classes: nothing else is made of that size.
    weight_C = 1 / np.maximum(counts_UC.sum(axis=0), 1) ** 2
    size_U = np.round(np.einsum("uc,uc,c->u", counts_UC, counts_UC, weight_C), 12)
    order = sorted(range(len(counts_UC)), key=lambda u: (-size_U[u], place_U[u]))
    # Plain numbers from here on: a unit has few classes, for which numpy is slow.
    own: list[list[tuple[int, int, float]]] = [[] for _ in order]
    for u, c in np.argwhere(counts_UC).tolist():
        n = int(counts_UC[u, c])
        own[u].append((c, n, n * float(weight_C[c])))
    filled = [[0] * counts_UC.shape[1] for _ in shares]
    cases = [0] * len(shares)
    parts = [-1] * len(order)

    def rise(part: int, u: int) -> tuple[float, float]:
        """What the sum would rise by; of equal parts the emptier is taken."""
        there = filled[part]
        share = shares[part]
        return round(sum((2 * there[c] + n) * weight for c, n, weight in own[u]) / share, 12), cases[part] / share

    def move(u: int, part: int, sign: int) -> None:
        for c, n, _ in own[u]:
            filled[part][c] += sign * n
            cases[part] += sign * n

    for _ in range(PASSES):
        before = parts.copy()
        for u in order:
            if parts[u] >= 0:
                move(u, parts[u], -1)
            parts[u] = min(range(len(shares)), key=lambda part, u=u: rise(part, u))  # type: ignore[misc]
            move(u, parts[u], 1)
        if parts == before:
            break
    return np.array(parts, dtype=np.int64)


def columns_of(table: CaseTable) -> dict[str, list[tuple[str, ...]]]:
    """The values of each case by column: ``source``, ``label``, and every metadata key; () where it has none."""
    metadata = {f"meta.{name}" if name == "label" else name: column for name, column in table.columns().items()}
    return {
        **{name: [(value,) if value else () for value in column] for name, column in metadata.items()},
        "label": table.labels,
    }


def _matching(table: CaseTable, cell: LeaveOut, *, judged: np.ndarray) -> np.ndarray:
    """The judged cases that have one of the values in every column of the cell."""
    columns = columns_of(table)
    matches = judged.copy()
    for column, wanted in cell.items():
        if column not in columns:
            hint = nearest(column, sorted(columns), there="there are")
            raise ConfigError(f"data.split.leave_out names the column '{column}'{hint}")
        for value in wanted:
            if not any(_is(column, own, value) for values in columns[column] for own in values):
                names = {own for values in columns[column] for own in values}
                hint = nearest(value, sorted(names), there="there are") + your_column(column, columns)
                raise ConfigError(f"data.split.leave_out names the {column} '{value}', which no case has{hint}")
        matches &= np.array(
            [any(_is(column, own, value) for own in values for value in wanted) for values in columns[column]],
            dtype=bool,
        )
    if not (matches & table.is_gt).any():
        told = " and ".join(f"the {column} {' or '.join(values)}" for column, values in cell.items())
        raise DataError(
            f"data.split.leave_out: no case with a true label has {told}, so there is nothing to test; `consilium "
            "data inspect` shows what is where."
        )
    return matches


def _is(column: str, own: str, value: str) -> bool:
    """Whether a value is the one that is wanted; a label is, too, where it lies under it in the tree."""
    return is_branch(own, value) if column == "label" else own == value


def _such_as(table: CaseTable, rows_N: np.ndarray) -> str:
    found = [table.ids[row] for row in np.flatnonzero(rows_N).tolist()]
    return f" (cases {some(found, 3)})"
