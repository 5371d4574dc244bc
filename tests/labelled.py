"""Cases studied as a task with labels studies them, for tests of data and of judging."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from consilium.core.contracts import Needs
from consilium.core.reporter import Silent
from consilium.data.cases.cases import Cases, Studied
from consilium.data.cases.filters import Filtered
from consilium.data.cases.load import LoadedData, Study, load_data, studied_cases
from consilium.data.config import DataConfig
from consilium.data.store.store import CaseTable
from consilium.tasks.answers.targets import LabelKnowledge, study_labels


def label_needs(*, multi_label: bool = False, nested: bool = False) -> Needs:
    """What a classification needs."""
    return Needs(label="many" if multi_label else "one", nested=nested)


def study(**options: Any) -> Study[LabelKnowledge]:
    """The study of labels with these options."""

    def run(cases: Cases, *, known: LabelKnowledge | None) -> Studied[LabelKnowledge]:
        return study_labels(cases, known=known, **{"multi_label": False, **options})

    return run


def labelled(found: Filtered, **options: Any) -> Studied[LabelKnowledge]:
    """Filtered cases, studied."""
    return study(**options)(Cases.of(found), known=None)


def load_labelled(
    config: DataConfig,
    *,
    multi_label: bool = False,
    nested: bool = False,
    reads_text: bool = False,
    options: Any = None,
    **rest: Any,
) -> LoadedData[LabelKnowledge]:
    """``load_data`` for labels; ``options`` go to their study."""
    own = {"multi_label": multi_label, "nested": nested, **(options or {})}
    needs = label_needs(multi_label=multi_label, nested=nested)
    if reads_text:
        needs = replace(needs, text="may")
    return load_data(config, needs=needs, study=study(**own), **{"splits": (), "reporter": Silent(), **rest})


def take_labelled(
    table: CaseTable, *, config: DataConfig, multi_label: bool = False, nested: bool = False
) -> Studied[LabelKnowledge]:
    """The cases of a store that a classification uses, studied."""
    needs = label_needs(multi_label=multi_label, nested=nested)
    return studied_cases(table, config=config, needs=needs, study=study(multi_label=multi_label, nested=nested))
