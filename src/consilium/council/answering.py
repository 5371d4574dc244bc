"""The Council: a router and experts, asked as one bundle is."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from consilium.bundle import check_files, check_there, manifests
from consilium.core.answers import GENERALIST, UNKNOWN
from consilium.core.devices import choose_device
from consilium.core.errors import BundleError, ConfigError, ImageError
from consilium.core.labels import LabelTree
from consilium.core.reporter import counted, some
from consilium.council.combining import Weighted, combined, common_tree
from consilium.council.residents import Resident, Residents
from consilium.council.routing import Chosen, Routing
from consilium.council.seats import ROUTER, Seat, questions, read_seat, seat_folders
from consilium.data.batches.rows import Item, Items, is_one_item
from consilium.manifest import CouncilManifest, local_bundle, read_header
from consilium.predictor import Predictor
from consilium.search import Index
from consilium.search.folder import MANIFEST as INDEX

WINDOW = 4096  # questions that are routed before the experts are asked about them
NEAREST = 5  # cases of an index in an answer
_ASKED = ("image", "text", "metadata")  # what a record says of its question


@dataclass(frozen=True)
class Answered:
    """What an expert said of a case, and what that counts; None: nothing says how much."""

    seat: Seat
    weight: float | None
    record: dict[str, Any]

    @property
    def failed(self) -> bool:
        """Whether the expert has no answer."""
        return "error" in self.record


class Council:
    """A router that says which expert each case is for, and the experts, each loaded when it is first asked."""

    def __init__(
        self,
        manifest: CouncilManifest,
        seats: Sequence[Seat],
        *,
        router: Predictor,
        routing: Routing,
        residents: Residents,
    ) -> None:
        self.manifest = manifest
        self.router = router
        self.routing = routing
        self.seats = {seat.name: seat for seat in seats}
        self._residents = residents
        self._trees: dict[tuple[str, ...], LabelTree | None] = {}

    def __repr__(self) -> str:
        experts = [name for name in self.seats if name != ROUTER]
        return f"<Council '{self.manifest.name}': {counted(len(experts), 'expert')}, {some(experts, 5)}>"

    @classmethod
    def load(
        cls,
        folder: str | Path,
        *,
        device: str | torch.device = "auto",
        batch_size: int = 32,
        workers: int | None = None,
        resident: int | None = None,
    ) -> Council:
        """The council in a folder, here or in a bucket, or in an archive; a damaged one is a BundleError.

        The router is loaded at once, an expert when it is first asked. ``resident``: how many experts stay in memory
        at most; the one that was asked longest ago makes room. None: all.
        """
        if resident is not None and resident < 1:
            raise ConfigError(f"resident is {resident}; expected 1 or more experts.")
        folder = local_bundle(folder)
        manifest = read_header(folder)
        if not isinstance(manifest, CouncilManifest):
            raise BundleError(f"{folder} is one bundle and no council; load it with consilium.load.")
        section = manifest.council
        seats = _checked_seats(folder, manifest)
        labelled = seats[0].labelled
        if labelled is None or labelled.multi_label:
            raise BundleError(f"{folder} is damaged: its router does not answer with one label. Build it again.")
        open_one = partial(Predictor.load, device=choose_device(device), batch_size=batch_size, workers=workers)

        def load(place: str) -> Resident:
            predictor, own = open_one(folder / place), [seat.name for seat in seats if seat.folder == place]
            places = {name: folder / index for name, index in section.indexes.items() if name in own}
            return Resident(predictor, {name: Index.load(index, predictor) for name, index in places.items()})

        return cls(
            manifest,
            seats,
            router=open_one(folder / section.router),
            routing=Routing(labelled.labels, tuple(section.experts), section.default is not None, section.top_k),
            residents=Residents(load, limit=resident),
        )

    @property
    def views(self) -> tuple[str, ...]:
        """(): each expert takes the views that it knows."""
        return ()

    @property
    def meta_columns(self) -> tuple[str, ...]:
        """The metadata columns that at least one member reads."""
        return tuple(dict.fromkeys(name for seat in self.seats.values() for name in seat.columns))

    @property
    def reads_text(self) -> bool:
        """Whether at least one member reads texts."""
        return any(seat.reads_text for seat in self.seats.values())

    def check_metadata(self, metadata: Mapping[str, str]) -> None:
        """Nothing is refused: the answer of each expert names the values that it cannot read."""

    def take_vectors(self, place: str, ids: Sequence[str]) -> Container[str]:
        """A council takes no vectors in the place of texts: a ConfigError."""
        raise ConfigError(f"--vectors is {place}, but a council reads texts themselves; ask the expert's own bundle.")

    def columns(self) -> list[str]:
        """The route, the expert, and its label; what else an answer holds fits no table."""
        return ["route", "route_probability", "expert", "label", "probability"]

    def row(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """A record as a row of that table; several labels are joined by semicolons."""
        route, answer = record.get("route") or {}, record.get("answer") or {}
        return {
            "route": route.get("label", ""),
            "route_probability": route.get("probability", ""),
            "expert": record.get("expert", ""),
            "label": answer.get("label", ";".join(answer.get("labels", []))),
            "probability": answer.get("probability", ""),
        }

    def vectors(self) -> dict[str, int]:
        """{}: the experts' embeddings lie in spaces of their own, and are in the records alone."""
        return {}

    def predict(self, images: Iterable[Item] | Item) -> list[dict[str, Any]]:
        """A record for every item, in order; items are those of ``Predictor.predict``.

        ``route`` is the record of the router. ``expert`` is the node whose expert answers, or ``default``,
        ``generalist`` or ``unknown``, and ``answer`` its record, None for ``unknown``; ``nearest`` in it are cases of
        the index of the expert. Where several were asked, ``asked`` lists the answer and the weight of each, and
        ``combined`` says whether ``answer`` is their mixture. Where none of them could answer, ``error`` says why.
        """
        whole = is_one_item(images) or isinstance(images, Sequence)
        return list(self.stream(images if whole else list(images)))  # type: ignore[arg-type]

    def stream(self, items: Iterable[Item] | Item) -> Iterator[dict[str, Any]]:
        """As ``predict``, one record at a time, so that any number of images fits; a generator is read as it goes."""
        if is_one_item(items):
            yield from self._records([items], range(1))  # type: ignore[list-item]
        elif isinstance(items, Sequence):
            for start in range(0, len(items), WINDOW):
                yield from self._records(items, range(start, min(start + WINDOW, len(items))))  # type: ignore[arg-type]
        else:
            following = iter(items)  # type: ignore[arg-type]
            while part := list(islice(following, self.router.loader.batch_size * len(self.seats))):
                yield from self._records(part, range(len(part)))

    def _records(self, items: Sequence[Item], rows: range) -> Iterator[dict[str, Any]]:
        """The records of some rows: all are routed, then each expert is asked about those that are its own."""
        given = Items(questions(items, rows), columns=self.meta_columns)
        keys = [given.key(number) for number in range(len(rows))]
        errors = {row: error for number, row in enumerate(rows) if (error := _unknown_metadata(given, number))}
        sound = [row for row in rows if row not in errors]
        routes = dict(zip(sound, self.routes(items, sound), strict=True))
        chosen = {row: self.chosen(route) for row, route in routes.items()}
        answers: dict[int, dict[str, dict[str, Any]]] = {row: {} for row in sound}
        needed = {choice.expert for choices in chosen.values() for choice in choices}
        for seat in self.loaded_first():
            if seat.name in needed:
                own = [row for row in sound if any(choice.expert == seat.name for choice in chosen[row])]
                for row, record in zip(own, self.ask(seat, items, own), strict=True):
                    answers[row][seat.name] = record
        for key, row in zip(keys, rows, strict=True):
            if row in errors:
                yield {**key, "error": errors[row]}
                continue
            yield {**key, **self.answer(routes[row], chosen[row], answers[row])}

    def loaded_first(self) -> list[Seat]:
        """The seats, those first whose bundle is in memory."""
        return sorted(self.seats.values(), key=lambda seat: seat.folder not in self._residents)

    def routes(self, items: Sequence[Item], rows: Sequence[int]) -> list[dict[str, Any]]:
        """What the router says of some rows."""
        return self._ask(self.router, self.seats[ROUTER], items, rows)

    def chosen(self, route: Mapping[str, Any]) -> list[Chosen]:
        """The experts for a case, and the generalist with the probability that is left."""
        chosen = self.routing.choose(route)
        if GENERALIST not in self.seats:
            return chosen
        weights = [choice.weight for choice in chosen if choice.weight is not None]
        return [*chosen, Chosen(GENERALIST, max(0.0, 1 - sum(weights)) if weights else None)]

    def member(self, seat: str) -> Resident:
        """The bundle of a seat with its weights, and its indexes; it is loaded where it is not there yet."""
        return Resident(self.router, {}) if seat == ROUTER else self._residents.get(self.seats[seat].folder)

    def ask(self, seat: Seat, items: Sequence[Item], rows: Sequence[int]) -> list[dict[str, Any]]:
        """The records of an expert, with the nearest cases of its index."""
        resident = self.member(seat.name)
        records = self._ask(resident.predictor, seat, items, rows)
        if (index := resident.indexes.get(seat.name)) is not None:
            for record in records:
                if "error" not in record:
                    record["nearest"] = [hit.tree() for hit in index.nearest(record, k=NEAREST)]
        return records

    def _ask(
        self, predictor: Predictor, seat: Seat, items: Sequence[Item], rows: Sequence[int]
    ) -> list[dict[str, Any]]:
        """What a bundle says of some rows, as its own ``predict`` does."""
        if not rows:
            return []
        asked = questions(items, rows, views=seat.views, columns=seat.columns)
        return [
            {name: value for name, value in record.items() if name not in _ASKED} for record in predictor.stream(asked)
        ]

    def answer(
        self, route: Mapping[str, Any], chosen: Sequence[Chosen], answers: Mapping[str, dict[str, Any]]
    ) -> dict[str, Any]:
        """What the council says of a case: the route, and the ``answers`` of the ``chosen`` experts as one."""
        asked = [Answered(self.seats[one.expert], one.weight, answers[one.expert]) for one in chosen]
        if not asked:
            return dict(route) if "error" in route else {"route": route, "expert": UNKNOWN, "answer": None}
        able = [own for own in asked if not own.failed]
        first = (able or asked)[0]
        mixture = self._mixture(able)
        answer = first.record if mixture is None else mixture
        found: dict[str, Any] = {"route": route, "expert": first.seat.name, "answer": answer}
        if len(asked) > 1:
            found["combined"] = mixture is not None
            found["asked"] = [{"expert": own.seat.name, "weight": own.weight, "answer": own.record} for own in asked]
        return found if able else {**found, "error": f"expert {first.seat.name}: {first.record['error']}"}

    def _mixture(self, answers: Sequence[Answered]) -> dict[str, Any] | None:
        """The answers as one; None where they cannot be, or nothing says what each counts."""
        names = tuple(own.seat.name for own in answers)
        if len(answers) < 2:
            return None
        if names not in self._trees:
            self._trees[names] = common_tree([own.seat.labelled for own in answers], self.routing.tree)
        tree = self._trees[names]
        weighted = [
            Weighted(own.weight, own.record, own.seat.labelled)
            for own in answers
            if own.weight is not None and own.seat.labelled is not None
        ]
        return None if tree is None or len(weighted) < len(answers) else combined(weighted, tree)


def _checked_seats(folder: Path, manifest: CouncilManifest) -> list[Seat]:
    """The router and the other members; a file that is missing, and a manifest that changed, are BundleErrors.

    Weights are compared with their checksums when they are loaded.
    """
    indexes = {f"{place}/{INDEX}" for place in manifest.council.indexes.values()}
    own = {name: digest for name, digest in manifest.files.items() if name in indexes}
    check_files(folder, {**manifests(manifest), **own})
    seats = [read_seat(name, folder / place, folder=place) for name, place in seat_folders(manifest).items()]
    for file in (folder / seat.folder / name for seat in seats for name in seat.manifest.files):
        check_there(file)
    return seats


def _unknown_metadata(items: Items, number: int) -> str | None:
    """What is wrong with the metadata of an item; None: nothing."""
    try:
        items.metadata(number)
    except ImageError as error:
        return str(error)
    return None
