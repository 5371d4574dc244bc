"""From a data section to the studied cases of a task: prepare, filter, study, check."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, Protocol

import numpy as np

from consilium.core.contracts import Needs
from consilium.core.errors import DataError
from consilium.core.reporter import Reporter, counted
from consilium.data.batches import workers
from consilium.data.case import MISSING_LABEL
from consilium.data.cases.cases import Cases, KnowledgeT, Studied
from consilium.data.cases.filters import Filtered, filtered, usable, with_text
from consilium.data.cases.folds import resplit, seen_in_training
from consilium.data.cases.groups import one_group
from consilium.data.cases.mentions import without_mentions
from consilium.data.config import DataConfig, FilterConfig, ImageConfig
from consilium.data.guards.check import WHERE, Findings, check, look_up
from consilium.data.guards.leaks import drop_leaks, find_leaks
from consilium.data.sources.config import Source
from consilium.data.store.prepare import prepare
from consilium.data.store.store import CaseTable, Store

SHOWN_LEAKS = 10


class Study(Protocol[KnowledgeT]):
    """What a family sees in cases, before any model is built; a pure function."""

    def __call__(self, cases: Cases, *, known: KnowledgeT | None) -> Studied[KnowledgeT]:
        """``known`` comes before what the cases teach."""
        ...


@dataclass(frozen=True)
class LoadedData(Generic[KnowledgeT]):
    """A prepared store, its studied cases, and the image config, for a training with its statistics filled in."""

    store: Store
    studied: Studied[KnowledgeT]
    image: ImageConfig

    def __repr__(self) -> str:
        return f"<LoadedData: {self.cases!r} of {self.store!r}>"

    @property
    def cases(self) -> Cases:
        """The cases that are used."""
        return self.studied.cases


def load_data(
    config: DataConfig,
    *,
    needs: Needs,
    study: Study[KnowledgeT],
    splits: Sequence[str],
    known: KnowledgeT | None = None,
    limit: int | None = None,
    training: bool = False,
    reporter: Reporter,
) -> LoadedData[KnowledgeT]:
    """Prepare the store and study the cases that a task can use; none of ``splits`` may be empty.

    Before a ``training`` all guards look at the cases, else leaks are only looked up, and no image is opened. A task
    that needs texts reads a label that is named in its own text: that is a leak then. ``limit`` keeps so many cases of
    each split.
    """
    if training and workers.worker_count(config.loader):
        workers.warm_up()
        if (crowded := workers.more_than_cores(config.loader)) is not None:
            reporter.line(f"note: {crowded}")
    prepared = prepare(config, reporter=reporter)
    store = prepared.store
    uses_text = needs.text != "no" and needs.label in ("one", "many")  # a label in its text is then no secret
    reporter.line(f"store {store.path}: {store.manifest.cases} cases" + ("" if prepared.created else " (unchanged)"))
    chosen = Cases.of(used_cases(store.table, config=config, needs=needs))
    _refuse_none(chosen, of=len(store.table))
    studied = study(chosen, known=known)
    fewer = _limited(chosen, studied, filters=config.filters, limit=limit)
    if fewer is not chosen:
        studied = study(fewer, known=studied.knowledge)
    used = studied.cases.used()
    _refuse_large(used, config.image.max_pixels)
    if training:
        read, whole = _with_own_texts(used, store, needs=needs), limit is None
        findings = check(store, read, config, uses_text=uses_text, columns=needs.meta, images=whole, reporter=reporter)
    else:
        findings = look_up(store, used, config)
    _refuse_leaks(findings, config=config, uses_text=uses_text)
    dropped = drop_leaks(used, findings.leaks if config.on_leak == "drop" else [])
    if not dropped.keep.all():
        left = used.select(np.flatnonzero(dropped.keep))
        # Of a part of the cases, not every class needs to be in train.
        before = known if fewer is chosen else studied.knowledge
        kept = Filtered(left, [*fewer.notes, *dropped.notes], mentions=fewer.mentions)
        studied = study(Cases.of(kept), known=before)
        findings = replace(findings, leaks=find_leaks(left))
    cases = studied.cases
    # What rows say of such a label, a training says of the classes that are left, and an evaluation does not.
    said = [note for note in prepared.notes() if not (training and MISSING_LABEL in note)]
    cases.notes.extend([*said, *findings.short()])
    if training:
        cases.notes.extend([*_unchecked(config), *_unjudged(cases)])
    for note in cases.notes:
        reporter.line(f"note: {note}")
    _refuse_empty(cases, splits, config.sources)
    if not training:
        return LoadedData(store, studied, config.image)
    return LoadedData(store, _with_mentions(studied), measured(config.image, store, cases, reporter))


def studied_cases(
    table: CaseTable,
    *,
    config: DataConfig,
    needs: Needs,
    study: Study[KnowledgeT],
    known: KnowledgeT | None = None,
    limit: int | None = None,
) -> Studied[KnowledgeT]:
    """The cases of a store that a task can use, studied; at most ``limit`` of each split."""
    chosen = Cases.of(used_cases(table, config=config, needs=needs))
    studied = study(chosen, known=known)
    fewer = _limited(chosen, studied, filters=config.filters, limit=limit)
    return studied if fewer is chosen else study(fewer, known=studied.knowledge)


def _with_mentions(studied: Studied[KnowledgeT]) -> Studied[KnowledgeT]:
    """With what was taken out of texts among what is known, for the texts that a bundle is asked about."""
    if not (mentions := studied.cases.mentions):
        return studied
    knowledge: Any = studied.knowledge
    return replace(studied, knowledge=knowledge.model_copy(update={"mentions": mentions}))


def _with_own_texts(used: CaseTable, store: Store, *, needs: Needs) -> CaseTable:
    """The cases with their texts, which somebody made vectors of, where the task reads vectors by their ids."""
    if needs.vectors is None:
        return used
    texts = store.table.named_texts
    return used.with_texts([texts[row] for row in used.store_rows.tolist()])


def _limited(chosen: Cases, studied: Studied[KnowledgeT], *, filters: FilterConfig, limit: int | None) -> Cases:
    """At most so many cases of each split as the filters and one run ask for; ``chosen`` itself where that is all."""
    most = {"train": filters.max_train_samples, "val": filters.max_eval_samples, "test": filters.max_eval_samples}
    limits = {split: min((n for n in (own, limit) if n is not None), default=None) for split, own in most.items()}
    return chosen.limited(limits, strata_N=studied.strata_N)


def _unchecked(config: DataConfig) -> list[str]:
    """What is not promised where images were not decoded."""
    if config.store.check_images == "decode":
        return []
    return [
        "images were not decoded before the training (data.store.check_images: header): one with damaged pixels in "
        "train will end it, one in val or test will be left out of the figures."
    ]


def _unjudged(cases: Cases) -> list[str]:
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


def _refuse_none(cases: Cases, *, of: int) -> None:
    if not len(cases.table):
        raise DataError(
            f"none of {counted(of, 'case')} can be used: {' '.join(cases.notes)} Say in the sources of a YAML file "
            "where labels and texts are (columns.label, columns.text), and check data.filters; `consilium predict` "
            "needs no labels."
        )


def _refuse_empty(cases: Cases, needs: Sequence[str], sources: Sequence[Source]) -> None:
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


def measured(image: ImageConfig, store: Store, cases: Cases, reporter: Reporter) -> ImageConfig:
    """The image config with the statistics of the training cases, where they are asked for."""
    if image.statistics != "data":
        return image
    from consilium.data.look.pixel_statistics import pixel_statistics

    pixels = pixel_statistics(
        store,
        cases=cases.table,
        window=image.window,
        progress=lambda done, total: reporter.progress("pixel statistics", done, total),
    )
    return image.model_copy(update={"mean": pixels.mean, "std": pixels.std, "statistics": "given"})


def used_cases(table: CaseTable, *, config: DataConfig, needs: Needs) -> Filtered:
    """The cases of a store that a task can use, in the splits that the config asks for."""
    again = resplit(table, config=config.split)
    found = usable(again.table, needs=needs, pseudo_labels=config.pseudo_labels)
    found = filtered(found, config=config.filters, seed=config.split.seed)
    if config.split.anew and needs.label in ("one", "many"):
        found = seen_in_training(found, nested=needs.nested)
    if config.strip_label_mentions and needs.text != "no":
        found = without_mentions(found, synonyms=config.guards.synonyms)
        wanted = replace(needs, text="must") if config.filters.has_text else needs
        found = with_text(found, needs=wanted)
    return replace(found, notes=[*again.notes, *found.notes])


def _refuse_leaks(findings: Findings, *, config: DataConfig, uses_text: bool) -> None:
    found = [leak.message for leak in findings.leaks]
    if uses_text:
        found += [named.message for named in findings.label_in_text]
    if found and config.on_leak == "error":
        more = [f"and {len(found) - SHOWN_LEAKS} more; {WHERE}"] if len(found) > SHOWN_LEAKS else []
        shown = "".join(f"\n  - {line}" for line in [*found[:SHOWN_LEAKS], *more])
        raise DataError(f"{len(found)} leak(s) between splits (data.on_leak is error):{shown}")
