"""What a council says of cases whose route and answer are known, beside the same with the true route."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from consilium.core.answers import DEFAULT, GENERALIST, UNKNOWN
from consilium.core.errors import DataError
from consilium.council.answering import WINDOW, Council
from consilium.council.cases import SEPARATOR, Truth, seat_of
from consilium.council.routing import Chosen
from consilium.council.seats import ROUTER, Seat
from consilium.data.batches.rows import FoundItems
from consilium.data.store.store import CaseTable
from consilium.evaluation.council.figures import CouncilCase


@dataclass
class Stages:
    """How long the bundles of a council took: seconds to load, seconds to answer, and cases answered, by their seat."""

    loading: dict[str, float] = field(default_factory=dict)
    answering: dict[str, float] = field(default_factory=dict)
    cases: Counter[str] = field(default_factory=Counter)

    def add(self, name: str, cases: int, *, answering: float, loading: float | None = None) -> None:
        """Note that a bundle has answered so many cases."""
        self.cases[name] += cases
        self.answering[name] = self.answering.get(name, 0.0) + answering
        if loading is not None:
            self.loading[name] = self.loading.get(name, 0.0) + loading

    def rows(self) -> list[dict[str, Any]]:
        """The same as a table; the router first."""
        return [
            {
                "stage": name,
                "cases": self.cases[name],
                "seconds": self.answering[name],
                "ms_a_case": 1000 * self.answering[name] / self.cases[name],
                "seconds_to_load": self.loading.get(name),
            }
            for name in self.cases
        ]


@dataclass(frozen=True)
class Heard:
    """The cases of a council that could be read, the others and why, and how long it took."""

    cases: list[CouncilCase]
    unread: dict[str, str]
    stages: Stages


def hear(
    council: Council,
    table: CaseTable,
    truths: Sequence[Truth],
    *,
    columns: Mapping[str, Sequence[str]],
    progress: Callable[[int, int], None],
) -> Heard:
    """Ask the council about cases, and the expert of the true route where it was not asked.

    ``columns`` hold a value for each row of the table, which go with the cases. That none can be read is a DataError.
    """
    items = FoundItems()
    items.columns = council.meta_columns
    items.add((table, truth.row) for truth in truths)
    heard = Heard([], {}, Stages())
    for start in range(0, len(truths), WINDOW):
        numbers = list(range(start, min(start + WINDOW, len(truths))))
        _hear_some(council, table, items, truths, numbers, heard=heard, columns=columns)
        progress(numbers[-1] + 1, len(truths))
    if not heard.cases:
        raise DataError(f"none of the {len(truths)} cases could be read: {next(iter(heard.unread.values()))}")
    return heard


def _hear_some(
    council: Council,
    table: CaseTable,
    items: FoundItems,
    truths: Sequence[Truth],
    numbers: list[int],
    *,
    heard: Heard,
    columns: Mapping[str, Sequence[str]],
) -> None:
    stages = heard.stages
    begun = time.perf_counter()
    routes = dict(zip(numbers, council.routes(items, numbers), strict=True))
    stages.add(ROUTER, len(numbers), answering=time.perf_counter() - begun)
    chosen = {number: council.chosen(route) for number, route in routes.items() if "error" not in route}
    oracle = {number: _by_oracle(council, truths[number].route) for number in chosen}
    answers: dict[int, dict[str, dict[str, Any]]] = {number: {} for number in chosen}
    for seat in council.loaded_first():
        asked = [number for number in chosen if any(one.expert == seat.name for one in chosen[number])]
        known = set(asked)
        told = [number for number in chosen if oracle[number] == seat.name and number not in known]
        if not (asked or told):
            continue
        begun = time.perf_counter()
        council.member(seat.name)
        loaded = time.perf_counter()
        records = council.ask(seat, items, asked)
        if asked:
            stages.add(seat.name, len(asked), answering=time.perf_counter() - loaded, loading=loaded - begun)
        for number, record in zip([*asked, *told], [*records, *council.ask(seat, items, told)], strict=True):
            answers[number][seat.name] = record
    for number in numbers:
        name = table.ids[truths[number].row]
        if number not in chosen:
            heard.unread[name] = routes[number]["error"]
            continue
        heard.cases.append(
            _case(council, table, truths[number], routes[number], chosen[number], answers[number], columns=columns)
        )


def _by_oracle(council: Council, route: str) -> str | None:
    """Who answers when the true route is known: its expert; elsewhere the default, else the generalist, else nobody."""
    others = (name for name in (DEFAULT, GENERALIST) if name in council.seats)
    return seat_of(council, route) or next(others, None)


def _case(
    council: Council,
    table: CaseTable,
    truth: Truth,
    route: Mapping[str, Any],
    chosen: Sequence[Chosen],
    answers: Mapping[str, dict[str, Any]],
    *,
    columns: Mapping[str, Sequence[str]],
) -> CouncilCase:
    said = council.answer(route, chosen, answers)
    sent = chosen[0].expert if chosen else UNKNOWN
    expected, by_oracle = seat_of(council, truth.route), _by_oracle(council, truth.route)
    record = said["answer"] or {}
    answered, right, answer = _compared(record, truth, council.seats.get(said["expert"]))
    oracle_right = _compared(answers[by_oracle], truth, council.seats[by_oracle])[1] if by_oracle else None
    if expected is None:
        right, oracle_right = right is not False, oracle_right is not False  # nothing but a known answer can be missed
        route_right = sent not in council.routing.experts
    else:
        route_right = sent == expected and _agree(route["label"], truth.route)
    return CouncilCase(
        id=table.ids[truth.row],
        group=table.groups[truth.row],
        true_route=truth.route,
        route=route["label"],
        expected=expected,
        asked=sent,
        route_right=route_right,
        truth=SEPARATOR.join(truth.answer),
        answer=answer,
        right=right,
        oracle_right=oracle_right,
        answered=answered,
        sure=(route["probability"] or 0.0) * _sure(record),
        columns={name: values[truth.row] for name, values in columns.items()},
        error=said.get("error", ""),
    )


def _agree(one: str, other: str) -> bool:
    """Whether one path is the beginning of the other."""
    return one == other or one.startswith(f"{other}.") or other.startswith(f"{one}.")


def _compared(record: Mapping[str, Any], truth: Truth, seat: Seat | None) -> tuple[bool, bool | None, str]:
    """Whether a whole answer was given, whether it is the true one (None: nothing says so), and the answer in words.

    An expert without labels answers with those of the nearest case of its index.
    """
    if seat is None:
        return False, None, ""
    if seat.labelled is not None and seat.labelled.multi_label:
        labels = record.get("labels")
        return labels is not None, _same(labels, truth, several=True), SEPARATOR.join(labels or [])
    if seat.labelled is not None:
        label = record.get("label", UNKNOWN)
        true = truth.answer[0] if len(truth.answer) == 1 else ""
        whole = label != UNKNOWN and (
            label == true or not any(name.startswith(f"{label}.") for name in seat.labelled.labels.names)
        )
        return whole, _same([label], truth, several=False), label
    if (nearest := record.get("nearest")) is not None:
        labels = list(nearest[0]["labels"]) if nearest else []
        return bool(labels), _same(labels, truth, several=True), SEPARATOR.join(labels)
    return "error" not in record and bool(record), None, ""


def _same(labels: Sequence[str] | None, truth: Truth, *, several: bool) -> bool | None:
    if not truth.answer:
        return None
    if labels is None:
        return False
    if several:
        return set(labels) == set(truth.answer)
    return len(truth.answer) == 1 and (labels[0] == truth.answer[0] or labels[0].startswith(f"{truth.answer[0]}."))


def _sure(record: Mapping[str, Any]) -> float:
    """The confidence of an answer: of one label its probability, of several that of the least sure decision."""
    if "labels" in record and record.get("probabilities"):
        return min(max(float(value), 1 - float(value)) for value in record["probabilities"].values())
    return float(record["probability"]) if record.get("probability") is not None else 1.0
