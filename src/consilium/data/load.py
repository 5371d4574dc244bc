"""From a data section to the labelled cases of a task: prepare, filter, check."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from consilium.core.errors import DataError
from consilium.core.labels import LabelTree
from consilium.core.reporter import Reporter, counted
from consilium.data import workers
from consilium.data.case import MISSING_LABEL
from consilium.data.config import DataConfig, FilterConfig, ImageConfig
from consilium.data.dataset import LabelledCases, labelled_cases, rare_class_warnings
from consilium.data.filters import Filtered, filtered, usable
from consilium.data.folds import resplit, seen_in_training
from consilium.data.groups import one_group
from consilium.data.guards.check import WHERE, Findings, check, look_up
from consilium.data.guards.leaks import drop_leaks, find_leaks
from consilium.data.prepare import prepare
from consilium.data.sources.config import Source
from consilium.data.splits import missing_values
from consilium.data.store import CaseTable, Store

SHOWN_LEAKS = 10


@dataclass(frozen=True)
class LoadedData:
    """A prepared store, its labelled cases, and the image config, for a training with its statistics filled in."""

    store: Store
    cases: LabelledCases
    image: ImageConfig


def load_data(
    config: DataConfig,
    *,
    multi_label: bool,
    needs: Sequence[str],
    labels: LabelTree | None = None,
    nested: bool = False,
    known: LabelTree | None = None,
    limit: int | None = None,
    training: bool = False,
    uses_text: bool = False,
    reporter: Reporter,
) -> LoadedData:
    """Prepare the store and take the cases of a classification task; splits in ``needs`` must not be empty.

    Before a ``training`` all guards look at the cases, else leaks are only looked up, and no image is opened.
    ``labels`` None takes those of train, ``nested`` with the nodes above them; ``known`` labels come before
    them, in their order. ``uses_text`` says that the model reads the texts, so that a label named in its own text is a
    leak.
    """
    if training and workers.worker_count(config.loader):
        workers.warm_up()
        if (crowded := workers.more_than_cores(config.loader)) is not None:
            reporter.line(f"note: {crowded}")
    prepared = prepare(config, reporter=reporter)
    store = prepared.store
    reporter.line(f"store {store.path}: {store.manifest.cases} cases" + ("" if prepared.created else " (unchanged)"))
    cases = take_cases(
        store.table, config=config, multi_label=multi_label, labels=labels, nested=nested, known=known, limit=limit
    )
    used = cases.table.select(np.sort(np.concatenate(list(cases.rows.values()))))
    _refuse_large(used, config.image.max_pixels)
    findings = (
        check(store, used, config, uses_text=uses_text, images=limit is None, reporter=reporter)
        if training
        else look_up(store, used, config)
    )
    _refuse_leaks(findings, config=config, uses_text=uses_text)
    dropped = drop_leaks(used, findings.leaks if config.on_leak == "drop" else [])
    if not dropped.keep.all():
        left = Filtered(used.select(np.flatnonzero(dropped.keep)), [*cases.notes, *dropped.notes])
        # Of a part of the cases, not every label needs to be in train.
        fixed = labels if len(used) == len(cases.table) else cases.labels
        cases = labelled_cases(left, multi_label=multi_label, labels=fixed, nested=nested, known=known)
        findings = replace(findings, leaks=find_leaks(left.table))
    # What rows say of such a label, a training says below of the classes that are left, and an evaluation does not.
    said = [note for note in prepared.notes() if not (training and MISSING_LABEL in note)]
    cases.notes.extend([*said, *findings.short()])
    if training:
        cases.notes.extend(
            [*_unchecked(config), *missing_values(cases.labels.names), *rare_class_warnings(cases), *_unjudged(cases)]
        )
    for note in cases.notes:
        reporter.line(f"note: {note}")
    _refuse_empty(cases, needs, config.sources)
    return LoadedData(store, cases, measured(config.image, store, cases, reporter) if training else config.image)


def _unchecked(config: DataConfig) -> list[str]:
    """What is not promised where images were not decoded."""
    if config.store.check_images == "decode":
        return []
    return [
        "images were not decoded before the training (data.store.check_images: header): one with damaged pixels in "
        "train will end it, one in val or test will be left out of the figures."
    ]


def _unjudged(cases: LabelledCases) -> list[str]:
    if len(cases.rows["test"]):
        return []
    return ["no case is in the test split: validation will choose the weights, and nothing judges them."]


def _refuse_large(table: CaseTable, max_pixels: int) -> None:
    """Images that the store took and the loader will not are a DataError, before any of them is needed."""
    rows, widths = table.view_column("width")
    pixels = np.array(widths, dtype=np.int64) * np.array(table.view_column("height")[1], dtype=np.int64)
    large = np.flatnonzero(pixels > max_pixels)
    if len(large):
        raise DataError(
            f"{counted(len(large), 'image')} with more pixels than data.image.max_pixels ({max_pixels:,}): the first, "
            f"of case {table.ids[int(rows[large[0]])]}, has {pixels[large[0]]:,}. Raise it, or give "
            "data.store.max_pixels the same value: such images are then bad rows."
        )


def _refuse_empty(cases: LabelledCases, needs: Sequence[str], sources: Sequence[Source]) -> None:
    """A split that is needed and has no case is a DataError."""
    for split in needs:
        if not len(cases.rows[split]):
            counts = ", ".join(f"{name} {len(rows)}" for name, rows in cases.rows.items())
            found = f"the {split} split is empty (cases: {counts})"
            if (reason := one_group(cases.table.groups, sources)) is not None:
                raise DataError(
                    f"{found}: {reason} Name the column of the patient in columns.group (null: each image is a group "
                    "of its own), or give rows a split."
                )
            raise DataError(
                f"{found}. Raise data.split.{split}, or give rows the split '{split}'; `consilium data inspect` shows "
                "what is where."
            )


def measured(image: ImageConfig, store: Store, cases: LabelledCases, reporter: Reporter) -> ImageConfig:
    """The image config with the statistics of the training cases, where they are asked for."""
    if image.statistics != "data":
        return image
    from consilium.data.pixel_statistics import pixel_statistics

    pixels = pixel_statistics(
        store,
        cases=cases.table,
        window=image.window,
        progress=lambda done, total: reporter.progress("pixel statistics", done, total),
    )
    return image.model_copy(update={"mean": pixels.mean, "std": pixels.std, "statistics": "given"})


def take_cases(
    table: CaseTable,
    *,
    config: DataConfig,
    multi_label: bool,
    labels: LabelTree | None = None,
    nested: bool = False,
    known: LabelTree | None = None,
    limit: int | None = None,
) -> LabelledCases:
    """The cases of a store that a classification uses, with classes and targets; ``limit`` of each split."""
    tree = nested if labels is None else labels.nested
    found = used_cases(table, config=config, multi_label=multi_label, nested=tree)
    limits = _limits(config.filters, limit)
    return labelled_cases(found, multi_label=multi_label, labels=labels, nested=nested, known=known, limits=limits)


def used_cases(table: CaseTable, *, config: DataConfig, multi_label: bool, nested: bool = False) -> Filtered:
    """The cases of a store that a classification uses, in the splits that the config asks for.

    ``nested``: its labels are a tree, where a case also has the labels above its own.
    """
    again = resplit(table, config=config.split)
    found = usable(again.table, multi_label=multi_label, pseudo_labels=config.pseudo_labels)
    found = filtered(found, config=config.filters, seed=config.split.seed)
    if config.split.anew:
        found = seen_in_training(found, nested=nested)
    return Filtered(found.table, [*again.notes, *found.notes])


def _limits(filters: FilterConfig, limit: int | None) -> dict[str, int | None]:
    """The most cases of each split: of the filters, and of one run."""
    most = {"train": filters.max_train_samples, "val": filters.max_eval_samples, "test": filters.max_eval_samples}
    return {split: min((n for n in (own, limit) if n is not None), default=None) for split, own in most.items()}


def _refuse_leaks(findings: Findings, *, config: DataConfig, uses_text: bool) -> None:
    found = [leak.message for leak in findings.leaks]
    if uses_text:
        found += [named.message for named in findings.label_in_text]
    if found and config.on_leak == "error":
        more = [f"and {len(found) - SHOWN_LEAKS} more; {WHERE}"] if len(found) > SHOWN_LEAKS else []
        shown = "".join(f"\n  - {line}" for line in [*found[:SHOWN_LEAKS], *more])
        raise DataError(f"{len(found)} leak(s) between splits (data.on_leak is error):{shown}")
