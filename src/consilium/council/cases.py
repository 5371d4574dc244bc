"""Cases whose route and answer are known: what a council is judged on, and calibrated."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from consilium.bundle import bundle_config
from consilium.core.config import build
from consilium.core.contracts import Needs
from consilium.core.errors import ConfigError, DataError
from consilium.core.places import absolute
from consilium.core.reporter import Reporter, counted, some
from consilium.core.section import Knowledge
from consilium.council.answering import Council
from consilium.data.cases.cases import Cases, Studied
from consilium.data.cases.load import load_data
from consilium.data.config import DataConfig
from consilium.data.sources.config import RowSource, Source
from consilium.data.store.store import CaseTable

SEPARATOR = ";"  # of several labels in a cell, where the source names no other


@dataclass(frozen=True)
class Truth:
    """What is true of a row of the table: its route, and the labels of its answer; (): these are not known."""

    row: int
    route: str
    answer: tuple[str, ...]


@dataclass(frozen=True)
class Truths:
    """The cases that a council can be judged on, and what to say of the others."""

    cases: list[Truth]
    notes: list[str]


@dataclass(frozen=True)
class CouncilCases:
    """The cases of some data, and what is true of those that can be judged."""

    cases: Cases
    truths: Truths


def own_data(council: Council, seat: str, folder: Path) -> DataConfig:
    """The data section that a member of the council in ``folder`` was trained with."""
    place = folder / council.seats[seat].folder
    return build(DataConfig, bundle_config(place)["data"], origin=str(place / "config.yaml"))


def load_cases(council: Council, folder: Path, data: DataConfig, *, split: str, reporter: Reporter) -> CouncilCases:
    """The cases of a split (``all``: of every one) with their routes and answers.

    Cases that a member of the council in ``folder`` has learned from are a ConfigError.
    """
    _refuse_taught(council, folder, data, split=split)

    def study(cases: Cases, *, known: Knowledge | None) -> Studied[Knowledge]:
        return Studied(cases, Knowledge(training_cases=0))

    needs = Needs(image="may", text="may", label="may")
    splits = () if split == "all" else (split,)
    cases = load_data(data, needs=needs, study=study, splits=splits, reporter=reporter).cases
    if split == "all":
        cases = replace(cases, rows={"all": np.arange(len(cases.table))})
    return CouncilCases(cases, read_truths(cases.table, cases.rows[split], data.sources, council))


def _refuse_taught(council: Council, folder: Path, data: DataConfig, *, split: str) -> None:
    for name in council.seats if split in ("train", "all") else ():
        known = {absolute(source.path) for source in own_data(council, name, folder).sources}
        if taught := [source.name for source in data.sources if absolute(source.path) in known]:
            raise ConfigError(
                f"the split {split} of the source '{taught[0]}' has cases that taught the council's {name} its "
                "weights: figures of these say little. Take cases that none of its bundles has learned from "
                "(--split test, or other data)."
            )


def read_truths(table: CaseTable, rows: np.ndarray, sources: Sequence[Source], council: Council) -> Truths:
    """The route and the answer of each row.

    The route is that of the source (``route``), else the label. The answer is in the metadata column that the source
    names (``columns.answer``); where its source names a route, the labels are the answer. Cases that nothing could be
    right for are left out, with a note; none that is left is a DataError.
    """
    known, routing = {source.name: source for source in sources}, council.routing
    found, strange, missing, above = [], Counter[str](), 0, Counter[str]()
    for row in rows.tolist():
        source, labels = known[table.sources[row]], table.labels[row]
        truth = Truth(row, source.route or next(iter(labels), ""), _answer_of(table, row, source))
        if not truth.route or (source.route is None and len(labels) > 1):
            missing += 1
            continue
        if truth.route not in routing.tree.names:
            strange[truth.route] += 1
        elif routing.seat_of(truth.route) is None and _sits_below(council, truth.route):
            above[truth.route] += 1
            continue
        found.append(truth)
    notes = []
    if missing:
        notes.append(f"{counted(missing, 'case')} left out: no route, or several; one label names it (columns.label).")
    if above:
        notes.append(
            f"{counted(above.total(), 'case')} left out: the route ({some(list(above), 5)}) ends above the expert, so "
            "that nothing says which one should answer."
        )
    _refuse_strange(found, strange, council)
    if strange:
        notes.append(
            f"{counted(strange.total(), 'case')} with a route that the router does not know "
            f"({some(list(strange), 5)}): only 'unknown' or the default is right for these."
        )
    return Truths(found, [*notes, *_check_answers(found, council)])


def _answer_of(table: CaseTable, row: int, source: Source) -> tuple[str, ...]:
    if not isinstance(source, RowSource) or source.columns.answer is None:
        return table.labels[row] if source.route is not None else ()
    cell = table.metas[row].get(source.columns.answer, "")
    parts = cell.split(source.columns.label_separator or SEPARATOR)
    return tuple(part.strip() for part in parts if part.strip())


def _sits_below(council: Council, route: str) -> bool:
    return council.routing.tree.nested and any(name.startswith(f"{route}.") for name in council.routing.experts)


def _refuse_strange(found: Sequence[Truth], strange: Counter[str], council: Council) -> None:
    if not found or strange.total() == len(found):
        given = f": the labels are {some(list(strange), 5)}" if strange else ""
        raise DataError(
            f"no case has a route that the router knows{given}; expected labels such as "
            f"{some(council.routing.tree.leaves, 5)}. Name the column of the route in columns.label and that of the "
            "expert's truth in columns.answer, or give each source one route (route: "
            f"{next(iter(council.routing.experts))}), so that its labels are the answers."
        )


def _check_answers(found: Sequence[Truth], council: Council) -> list[str]:
    """Answers that the expert does not know, which it can only miss; an expert that knows none is a DataError."""
    notes = []
    for name in council.routing.experts:
        labels = council.seats[name].labelled
        own = [case.answer for case in found if case.answer and seat_of(council, case.route) == name]
        if labels is None or not own:
            continue
        names = set(labels.labels.names)
        foreign = Counter(label for answer in own for label in answer if label not in names)
        if all(not names & set(answer) for answer in own):
            raise DataError(
                f"the expert of '{name}' knows none of the answers of its cases ({some(list(foreign), 5)}); its labels "
                f"are {some(labels.labels.names, 10)}. Name the column of its truth in columns.answer, or give the "
                "labels these names."
            )
        if foreign:
            notes.append(
                f"{counted(foreign.total(), 'answer')} that the expert of '{name}' has never learned "
                f"({some(list(foreign), 5)}): whatever it says there is wrong."
            )
    return notes


def seat_of(council: Council, route: str) -> str | None:
    """The seat of the expert on a route; None: none sits there, or the router does not know the route."""
    return council.routing.seat_of(route) if route in council.routing.tree.names else None
