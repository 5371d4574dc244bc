"""Calibrating a council: its router on the routes of a site's cases, each expert on the answers of its own."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np

from consilium.bundle import bundle_config
from consilium.calibrating.bundles import Calibrated, CalibrateResult, calibrated_on, command_of, restore_bundle
from consilium.core.answers import DEFAULT, GENERALIST
from consilium.core.config import build
from consilium.core.errors import ConfigError, DataError
from consilium.core.files import folder_name
from consilium.core.reporter import Reporter, counted
from consilium.council import Council, build_council
from consilium.council.cases import CouncilCases, load_cases, own_data, seat_of
from consilium.council.seats import ROUTER, Seat, seat_folders, titled
from consilium.data.cases.cases import SPLITS, Cases
from consilium.data.cases.filters import usable
from consilium.evaluation.config import EvaluationConfig
from consilium.evaluation.report.calibration import PAGE, write_calibration
from consilium.judge import given_to_judge
from consilium.manifest import CouncilManifest, read_header, read_manifest
from consilium.tasks.family import Site, family_of

PAGES = "calibration"  # the folder of the pages in a calibrated council
_SPLIT = "test"  # where the chosen cases of a member lie; nothing is learned of the others


def calibrate_council(
    folder: Path,
    *,
    data: str,
    target: Path,
    name: str | None,
    split: str | None,
    wanted_accuracy: float | None,
    on_bad_row: Literal["stop", "quarantine"] | None,
    device: str,
    reporter: Reporter,
) -> CalibrateResult:
    """``calibrate`` for the folder of a council."""
    council = Council.load(folder, device=device)
    own = own_data(council, ROUTER, folder)
    given = given_to_judge(data, split=split, own=own, probes=None, on_bad_row=on_bad_row)
    found = load_cases(council, folder, given.data, split=given.split, reporter=reporter)
    site = Site(name or Path(data).stem, data, wanted_accuracy)
    done = _calibrated(
        council,
        folder,
        found,
        site=site,
        command=command_of(folder, site, split=given.split, target=target),
        reporter=reporter,
    )
    with tempfile.TemporaryDirectory() as temporary:
        places = {seat: Path(temporary) / str(number) for number, seat in enumerate(done)}
        for seat_name, place in places.items():
            member = folder / council.seats[seat_name].folder
            done[seat_name].write(place, member, read_manifest(member))
        _rebuild(folder, council.manifest, target, places, reporter=reporter)
    for seat_name, calibrated in done.items():
        place = target / PAGES / folder_name(seat_name)
        place.mkdir(parents=True)
        write_calibration(place, calibrated.content)
        for line in [f"{titled(seat_name)}:", *calibrated.content.lines(), f"report: {place / PAGE}"]:
            reporter.line(line)
    reporter.line(f"council: {target}")
    return CalibrateResult(
        target,
        [{"member": name, **row} for name, own in done.items() for row in own.content.found.judged.rows],
        [{"member": name, **row} for name, own in done.items() for row in own.content.drift],
        sum(own.unread for own in done.values()),
    )


def _calibrated(
    council: Council, folder: Path, found: CouncilCases, *, site: Site, command: str, reporter: Reporter
) -> dict[str, Calibrated]:
    """What each bundle learns of its own cases, by its seat; that none of them can is a DataError."""
    done: dict[str, Calibrated] = {}
    kept: list[str] = []
    for seat in (seat for seat in council.seats.values() if seat.labelled is not None):
        if (own_cases := _own_cases(council, seat, found)) is None:
            continue
        predictor = council.member(seat.name).predictor
        place = folder / seat.folder
        reporter.line(f"{titled(seat.name)}: {counted(len(own_cases.table), 'case')}")
        try:
            done[seat.name] = calibrated_on(
                predictor,
                family_of(seat.manifest.task).study(
                    seat.manifest.task, own_cases, known=predictor.knowledge, learns=False
                ),
                split=_SPLIT,
                site=_site_of(site, seat),
                evaluation=build(EvaluationConfig, bundle_config(place).get("evaluation", {}), origin=str(place)),
                command=command,
                reporter=reporter,
            )
        except DataError as error:
            kept.append(f"{titled(seat.name)} stays as it was: {error}")
            reporter.line(f"warning: {kept[-1]}")
    if not done:
        why = kept or ["no case has a route that the router knows, or an answer of an expert with labels."]
        raise DataError(f"no bundle of the council can be calibrated on {site.data}: {' '.join(why)}")
    return done


def restore_council(folder: Path, target: Path, *, name: str) -> None:
    """``restore`` for the folder of a council."""
    header = read_header(folder)
    assert isinstance(header, CouncilManifest)
    known: list[str] = []
    with tempfile.TemporaryDirectory() as temporary:
        places: dict[str, Path] = {}
        for number, (seat, place) in enumerate(seat_folders(header).items()):
            manifest = read_manifest(folder / place)
            kept = [own["name"] for own in manifest.knowledge.get("calibrations", [])]
            known += kept
            if name in kept:
                places[seat] = Path(temporary) / str(number)
                restore_bundle(folder / place, places[seat], name=name)
        if not places:
            has = ", ".join(dict.fromkeys(known)) or "no calibration but those of their trainings"
            raise ConfigError(f"the bundles of the council have {has}, and none called '{name}'.")
        _rebuild(folder, header, target, places, reporter=None)


def _own_cases(council: Council, seat: Seat, found: CouncilCases) -> Cases | None:
    """What a bundle with labels is to be calibrated on, with its labels in the place of the routes; None: no case."""
    table, tree = found.cases.table, council.routing.tree
    labels: dict[int, tuple[str, ...]] = {}
    for truth in found.truths.cases:
        own = truth.answer if _is_asked(council, seat.name, truth.route) else ()
        if seat.name == ROUTER:
            own = tuple(name for name in (truth.route,) if name in tree.names)
        if own:
            labels[truth.row] = own
    if not labels:
        return None
    chosen = table.select(np.array(sorted(labels))).with_labels([labels[row] for row in sorted(labels)])
    left = usable(chosen, needs=seat.manifest.task.needs, pseudo_labels=False)
    none = dict.fromkeys(SPLITS, np.arange(0))
    return Cases(left.table, {**none, _SPLIT: np.arange(len(left.table))}, list(left.notes))


def _is_asked(council: Council, seat: str, route: str) -> bool:
    """Whether a seat answers the cases of a route: its expert; the default where none sits; always the generalist."""
    if seat == GENERALIST:
        return True
    return seat_of(council, route) == (None if seat == DEFAULT else seat)


def _site_of(site: Site, seat: Seat) -> Site:
    """The site for a bundle; answers with any number of labels have no wanted accuracy."""
    several = seat.labelled is not None and seat.labelled.multi_label
    return replace(site, wanted_accuracy=None) if several else site


def _rebuild(
    folder: Path, manifest: CouncilManifest, target: Path, changed: Mapping[str, Path], *, reporter: Reporter | None
) -> None:
    """The council in ``folder`` again, some of its bundles in the place of others, into ``target``."""
    places = {seat: changed.get(seat, folder / place) for seat, place in seat_folders(manifest).items()}
    build_council(
        router=places[ROUTER],
        experts={node: places[node] for node in manifest.council.experts},
        default=places.get(DEFAULT),
        generalist=places.get(GENERALIST),
        indexes={name: folder / place for name, place in manifest.council.indexes.items()},
        top_k=manifest.council.top_k,
        out=target,
        quiet=True,
        reporter=reporter,
    )
