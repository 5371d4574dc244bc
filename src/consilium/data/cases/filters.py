"""Which of the prepared cases are used: what a task can use at all, then the filters of the config, in one order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from consilium.core.config import nearest
from consilium.core.contracts import Needs
from consilium.core.errors import ConfigError, DataError
from consilium.core.labels import ROOT, with_ancestors
from consilium.core.reporter import counted, some
from consilium.core.vectors import read_vectors
from consilium.data.batches.laterality import places_of
from consilium.data.case import Text
from consilium.data.config import FilterConfig
from consilium.data.store.splits import position
from consilium.data.store.store import CaseTable

JUDGED = ("train", "val", "test")


@dataclass(frozen=True)
class Filtered:
    """The cases that are left, and what each filter took away.

    ``mentions`` are the phrases of which no text has a sentence any more; (): texts are as they were.
    """

    table: CaseTable
    notes: list[str] = field(default_factory=list)
    mentions: tuple[str, ...] = ()

    def keep(self, allowed: np.ndarray, why: str) -> Filtered:
        """The cases where ``allowed`` [N] is true; a note says how many are left out, and ``why``."""
        left_out = int((~allowed).sum())
        if not left_out:
            return self
        notes = [*self.notes, f"{counted(left_out, 'case')} {why}."]
        return replace(self, table=self.table.select(np.flatnonzero(allowed)), notes=notes)


def usable(table: CaseTable, *, needs: Needs, pseudo_labels: bool) -> Filtered:
    """The cases that a task can use.

    Left out: the unlabelled split, cases without what the task must have (image, text, mask, label; of image and text
    at least one), pseudo-labels (``is_gt: false``) outside train, and inside it unless ``pseudo_labels``. Where the
    task reads vectors, the text of a case that has one is its id, and another has none.
    """
    splits = _splits(table)
    found = Filtered(table.select(np.flatnonzero(np.isin(splits, JUDGED))))
    if needs.vectors is not None:
        found = _with_vectors(found, needs.vectors)
    if needs.image == "must":
        found = found.keep(_has_image(found.table), "left out: no image")
    if needs.views:
        found = _with_views(found, needs.views)
    found = with_text(found, needs=needs)
    if needs.mask == "must":
        found = found.keep(_filled(found.table.masks), "left out: no mask")
    if needs.label == "one":
        found = found.keep(_filled(found.table.labels), "left out: no label")
    trusted = found.table.is_gt | (pseudo_labels & (_splits(found.table) == "train"))
    return found.keep(trusted, "left out: a pseudo-label")


def with_text(found: Filtered, *, needs: Needs) -> Filtered:
    """The cases with a text, where a task must have one; with an image at least where it must have one of the two."""
    if needs.text == "must":
        return found.keep(_filled(found.table.texts), "left out: no text")
    if needs.text == needs.image == "may":
        filled = _has_image(found.table) | _filled(found.table.texts)
        return found.keep(filled, "left out: neither an image nor a text")
    return found


def _has_image(table: CaseTable) -> np.ndarray:
    there_N = np.zeros(len(table), dtype=bool)
    there_N[table.view_column("name")[0]] = True
    return there_N


def _with_vectors(found: Filtered, place: str) -> Filtered:
    """The cases with their ids in the place of texts, where the file has vectors; of none of them is a DataError."""
    vectors, ids = read_vectors(place), found.table.ids
    vectors.refuse_strangers(ids)
    texts = [(Text(name),) if name in vectors.rows else () for name in ids]
    missing = len(texts) - sum(map(bool, texts))
    notes = [f"{counted(missing, 'case')} of {len(texts):,} without a vector in {place}: their text is missing."]
    return Filtered(found.table.with_texts(texts), [*found.notes, *(notes if missing else [])])


def _with_views(found: Filtered, names: tuple[str, ...]) -> Filtered:
    """The cases with a view of one of these names; a name that no case has, or one has twice, is a DataError."""
    table = found.table
    _, counts_NV = places_of(table, names)
    own = sorted(set(table.view_column("name")[1]))
    for name, count in zip(names, counts_NV.sum(axis=0).tolist(), strict=True):
        if not count and len(table):
            there = f"the views are called {some(own, 8)}" if any(own) else "none has a name"
            raise DataError(
                f"task.views names the view '{name}', which no case has: {there}. Views are named by the columns of a "
                "source (columns.image: [left, right])."
            )
    if len(twice := np.argwhere(counts_NV > 1)):
        row, view = twice[0].tolist()
        raise DataError(
            f"the case {table.ids[row]} has the view '{names[view]}' {counts_NV[row, view]} times"
            f"{f', and {len(twice) - 1} more have one twice' if len(twice) > 1 else ''}; give each case one of it."
        )
    return found.keep(np.asarray((counts_NV > 0).any(axis=1)), f"left out: no view called {' or '.join(names)}")


def _filled(values: Iterable[object]) -> np.ndarray:
    return np.array([bool(value) for value in values], dtype=bool)


def filtered(found: Filtered, *, config: FilterConfig, seed: int) -> Filtered:
    """The cases that every filter of the config keeps.

    They act in the order of the keys of ``FilterConfig``, each on what those before it leave. ``labels``,
    ``sources``, ``sub_sources``, ``origins``, ``has_text`` and ``node`` act on every split. A case keeps those of its
    labels that are wanted, and goes when it loses all; a case that never had one stays. ``node`` keeps the cases with
    a label below a node of the tree, and their labels become that node's children. ``fraction`` and
    ``max_samples_per_label`` thin out train alone: within a label the cases are ordered by a hash of (seed, id) and
    the first are kept, so that a smaller share is a part of a larger one, and new data moves little. A case of
    several labels counts for its rarest. ``min_samples_per_label`` then counts train and takes rare labels out of
    every split. A source, column, value, label or node that does not occur is a ConfigError.
    """
    if config.labels is not None:
        found = _keep_labels(found, _wanted_labels(found.table, config.labels), "data.filters.labels")
    if config.sources is not None:
        allowed = _one_of(found.table.sources, config.sources, "sources", "source")
        found = found.keep(allowed, "left out by data.filters.sources")
    for column, values in (config.sub_sources or {}).items():
        own = your_column(column, found.table.columns())
        allowed = _one_of(_column(found.table, column), values, f"sub_sources.{column}", column, hint=own)
        found = found.keep(allowed, f"left out by data.filters.sub_sources.{column}")
    for dataset, parts in (config.origins or {}).items():
        allowed = _of_origins(found.table, dataset, parts)
        found = found.keep(allowed, f"left out by data.filters.origins.{dataset}")
    if config.has_text is not None:
        has_text = _filled(found.table.texts)
        found = found.keep(has_text == config.has_text, f"left out by data.filters.has_text: {config.has_text}")
    if config.node is not None:
        found = _at_node(found, config.node)
    if config.fraction < 1:
        found = _thin(found, lambda count: _share(count, config.fraction), seed=seed, name="fraction")
    if (most := config.max_samples_per_label) is not None:
        found = _thin(found, lambda count: min(count, most), seed=seed, name="max_samples_per_label")
    if config.min_samples_per_label is not None:
        counts = _training_counts(found.table)
        common = {label for label, count in counts.items() if count >= config.min_samples_per_label}
        found = _keep_labels(found, common, f"data.filters.min_samples_per_label: {config.min_samples_per_label}")
    return found


def _splits(table: CaseTable) -> np.ndarray:
    return np.array(table.splits, dtype=object)


def is_branch(label: str, branch: str) -> bool:
    """Whether a label is ``branch`` or lies under it in the tree."""
    return label == branch or label.startswith(f"{branch}.")


def child_towards(label: str, node: str) -> str | None:
    """The child of ``node`` on the way to a label below it, as a full path; None where the label is not below it."""
    if node == ROOT:
        return label.partition(".")[0]
    if label == node or not is_branch(label, node):
        return None
    return f"{node}.{label[len(node) + 1 :].partition('.')[0]}"


def _at_node(found: Filtered, node: str) -> Filtered:
    """The cases with a label below a node, each labelled with that node's children, every one once.

    A case that never had a label, as multi-label cases may, stays at the root alone.
    """
    before = found.table.labels
    now = [tuple(dict.fromkeys(c for label in own if (c := child_towards(label, node)))) for own in before]
    if not any(now):
        inner = with_ancestors(above for own in before for label in own if (above := label.rpartition(".")[0]))
        known = nearest(node, [ROOT, *sorted(inner)], there="nodes with labels below them are")
        raise ConfigError(f"data.filters.node is '{node}', and no case has a label below it{known}")
    stops = np.array([node in own and not new for own, new in zip(before, now, strict=True)], dtype=bool)
    below = np.array(
        [bool(new) or (not own and node == ROOT) for own, new in zip(before, now, strict=True)], dtype=bool
    )
    found = Filtered(found.table.with_labels(now), found.notes)
    allowed = below | stops
    found = found.keep(allowed, f"left out by data.filters.node: no label below '{node}'")
    return found.keep(below[allowed], f"left out by data.filters.node: the label stops at '{node}'")


def _wanted_labels(table: CaseTable, wanted: Sequence[str]) -> set[str]:
    present = {label for labels in table.labels for label in labels}
    kept: set[str] = set()
    for branch in wanted:
        of_branch = {label for label in present if is_branch(label, branch)}
        if not of_branch:
            raise _unknown("labels", "label", branch, present)
        kept |= of_branch
    return kept


def _keep_labels(found: Filtered, kept: set[str], why: str) -> Filtered:
    """Take all other labels off the cases; those that lose every one are left out."""
    table = found.table
    labels = [tuple(label for label in own if label in kept) for own in table.labels]
    gone = Counter(label for own in table.labels for label in own if label not in kept)
    if not gone:
        return found
    named = some([f"'{label}' ({count})" for label, count in sorted(gone.items())], 8)
    allowed = np.array([bool(now) or not before for now, before in zip(labels, table.labels, strict=True)], dtype=bool)
    left = Filtered(table.with_labels(labels), [*found.notes, f"{why} leaves out the labels {named}."])
    return left.keep(allowed, f"left out by {why}")


def _of_origins(table: CaseTable, dataset: str, parts: Sequence[str]) -> np.ndarray:
    """Which cases are of other datasets, or of one of these first parts of ``orig_filename``."""
    datasets, names = (_column(table, column, key="origins") for column in ("dataset", "orig_filename"))
    outside = ~_one_of(datasets, [dataset], "origins", "dataset")
    firsts = ["" if other else name.partition("/")[0] for name, other in zip(names, outside, strict=True)]
    allowed: np.ndarray = outside | _one_of(firsts, parts, f"origins.{dataset}", "first part of orig_filename")
    return allowed


def _column(table: CaseTable, name: str, *, key: str = "sub_sources") -> list[str]:
    columns = table.columns()
    if name not in columns:
        raise _unknown(key, "metadata column", name, columns)
    return columns[name]


def your_column(name: str, columns: Iterable[str]) -> str:
    """The end of a message about the column ``source`` or ``label``, where the data has one of that name too."""
    return f" Your column '{name}' is called `meta.{name}`." if f"meta.{name}" in columns else ""


def _one_of(values: Sequence[str], wanted: Sequence[str], key: str, what: str, *, hint: str = "") -> np.ndarray:
    present = set(values)
    for value in wanted:
        if value not in present:
            raise _unknown(key, what, value, present, hint=hint)
    return np.isin(np.array(values, dtype=object), list(wanted))


def _unknown(key: str, what: str, value: str, present: Iterable[str], *, hint: str = "") -> ConfigError:
    known = nearest(value, sorted(present), there="there are")
    return ConfigError(f"data.filters.{key} names the {what} '{value}', which no case has{known}{hint}")


def _training_counts(table: CaseTable) -> Counter[str]:
    return Counter(label for row in table.rows("train").tolist() for label in table.labels[row])


def _share(count: int, fraction: float) -> int:
    return max(1, round(count * fraction))


def _thin(found: Filtered, size: Callable[[int], int], *, seed: int, name: str) -> Filtered:
    """Keep ``size(n)`` of the n training cases of every label."""
    table = found.table
    counts = _training_counts(table)
    strata: dict[str, list[int]] = {}
    for row in table.rows("train").tolist():
        strata.setdefault(min(table.labels[row], key=lambda label: (counts[label], label), default=""), []).append(row)
    allowed = np.ones(len(table), dtype=bool)
    for rows in strata.values():
        ordered = sorted(rows, key=lambda row: position(table.ids[row], seed=seed))
        allowed[ordered[size(len(rows)) :]] = False
    return found.keep(allowed, f"of train left out by data.filters.{name}")
