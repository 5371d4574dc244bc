"""From a data section to the labelled cases of a task: prepare, filter, check."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from consilium.core.errors import DataError
from consilium.core.labels import LabelTree
from consilium.core.reporter import Reporter
from consilium.data.config import DataConfig, FilterConfig, ImageConfig
from consilium.data.dataset import LabelledCases, labelled_cases, rare_class_warnings
from consilium.data.filters import Filtered, filtered, usable
from consilium.data.folds import resplit, seen_in_training
from consilium.data.guards.leaks import find_leaks
from consilium.data.prepare import prepare
from consilium.data.store import CaseTable, Store

SHOWN_LEAKS = 10


@dataclass(frozen=True)
class LoadedData:
    """A prepared store, its labelled cases, and the image config with its statistics filled in."""

    store: Store
    cases: LabelledCases
    image: ImageConfig


def load_data(
    config: DataConfig,
    *,
    multi_label: bool,
    needs: Sequence[str],
    labels: LabelTree | None = None,
    limit: int | None = None,
    reporter: Reporter,
) -> LoadedData:
    """Prepare the store and take the cases of a classification task; splits in ``needs`` must not be empty."""
    prepared = prepare(config, progress=lambda done, total: reporter.progress("prepare", done, total))
    store = prepared.store
    reporter.line(f"store {store.path}: {store.manifest.cases} cases" + ("" if prepared.created else " (unchanged)"))
    if prepared.bad_rows:
        reporter.line(
            f"note: {len(prepared.bad_rows)} bad rows were left out; {store.path / 'quarantine.csv'} lists them."
        )
    cases = take_cases(store.table, config=config, multi_label=multi_label, labels=labels, limit=limit)
    _check_leaks(store, cases, config=config)
    cases.notes.extend(rare_class_warnings(cases))
    if "train" in needs and not len(cases.rows["test"]):
        cases.notes.append("no case is in the test split: validation will choose the weights, and nothing judges them.")
    for note in cases.notes:
        reporter.line(f"note: {note}")
    for split in needs:
        if not len(cases.rows[split]):
            counts = ", ".join(f"{name} {len(rows)}" for name, rows in cases.rows.items())
            raise DataError(
                f"the {split} split is empty (cases: {counts}). Raise data.split.{split}, or give rows the split "
                f"'{split}'; `consilium data inspect` shows what is where."
            )
    image = config.image
    if image.statistics == "data":
        from consilium.data.pixel_statistics import pixel_statistics

        pixels = pixel_statistics(
            store, progress=lambda done, total: reporter.progress("pixel statistics", done, total)
        )
        image = image.model_copy(update={"mean": pixels.mean, "std": pixels.std, "statistics": "given"})
    return LoadedData(store, cases, image)


def take_cases(
    table: CaseTable,
    *,
    config: DataConfig,
    multi_label: bool,
    labels: LabelTree | None = None,
    limit: int | None = None,
) -> LabelledCases:
    """The cases of a store that a classification uses, in the splits that the config asks for."""
    again = resplit(table, config=config.split)
    found = usable(again.table, multi_label=multi_label, pseudo_labels=config.pseudo_labels)
    found = filtered(found, config=config.filters, seed=config.split.seed)
    if config.split.folds is not None or config.split.cells:
        found = seen_in_training(found)
    found = Filtered(found.table, [*again.notes, *found.notes])
    return labelled_cases(found, multi_label=multi_label, labels=labels, limits=_limits(config.filters, limit))


def _limits(filters: FilterConfig, limit: int | None) -> dict[str, int | None]:
    """The most cases of each split: of the filters, and of one run."""
    most = {"train": filters.max_train_samples, "val": filters.max_eval_samples, "test": filters.max_eval_samples}
    return {split: min((n for n in (own, limit) if n is not None), default=None) for split, own in most.items()}


def _check_leaks(store: Store, cases: LabelledCases, *, config: DataConfig) -> None:
    leaks = find_leaks(store.table)
    shown = [leak.message for leak in leaks[:SHOWN_LEAKS]]
    if leaks and config.on_leak == "error":
        raise DataError(f"{len(leaks)} leak(s) between splits (data.on_leak is error):\n  - " + "\n  - ".join(shown))
    cases.notes.extend(f"leak: {message}" for message in shown)
    if len(leaks) > SHOWN_LEAKS:
        cases.notes.append(f"{len(leaks) - SHOWN_LEAKS} more leaks; `consilium data inspect` lists all of them.")
