"""Building a council: a folder with the bundles of a router and of experts in it, which is a bundle itself."""

from __future__ import annotations

import contextlib
import datetime
import os
import shutil
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path

from consilium.bundle import copy_bundle
from consilium.console import reporting
from consilium.core.answers import DEFAULT, GENERALIST, UNKNOWN
from consilium.core.errors import BundleError, ConfigError, SearchError
from consilium.core.explain import nearest
from consilium.core.files import atomic_folder, folder_name, sha256_of, write_json
from consilium.core.labels import LabelTree
from consilium.core.licenses import License, license_lines, recorded
from consilium.core.places import is_remote
from consilium.core.reporter import Reporter, counted, format_table, some
from consilium.council.combining import common_tree
from consilium.council.routing import Routing
from consilium.council.seats import ROUTER, Seat, read_seat, titled
from consilium.manifest import MANIFEST, CouncilManifest, CouncilSection, local_bundle, read_header
from consilium.search.building import check_bundle
from consilium.search.folder import MANIFEST as INDEX
from consilium.search.folder import read_content
from consilium.search.folder import read_manifest as read_index
from consilium.tasks.family import Labelled

RESERVED = (ROUTER, DEFAULT, GENERALIST, UNKNOWN)
READS = ("image", "text", "metadata")


def build_council(
    *,
    router: str | Path,
    experts: Mapping[str, str | Path],
    out: str | Path,
    default: str | Path | None = None,
    generalist: str | Path | None = None,
    indexes: Mapping[str, str | Path] | None = None,
    top_k: int = 1,
    quiet: bool = False,
    reporter: Reporter | None = None,
) -> Path:
    """Build a council in the new folder ``out``: ``build_council(router=R, experts={"xray": E}, out="council")``.

    ``experts`` are bundles by the node of the router's tree where they sit. ``default`` answers where the router is not
    sure enough, and where no expert sits. ``generalist`` is always asked, too. ``indexes`` are folders of indexes by
    the expert they are of (``default`` and ``generalist`` are names here). ``top_k``: how many experts are asked about
    a case, weighted by the router. All bundles are copied into ``out``, which needs none of the originals. What does
    not fit is a ConfigError, a bundle that cannot be used a BundleError.
    """
    folder = _new_folder(out)
    given = {ROUTER: router, **experts, DEFAULT: default, GENERALIST: generalist}
    if taken := [name for name in experts if name in RESERVED]:
        raise ConfigError(f"an expert is to sit at '{taken[0]}', a name that is taken in a council; rename this label.")
    places = {name: _bundle(name, place) for name, place in given.items() if place is not None}
    seats = {name: _seat(name, place) for name, place in places.items()}
    tree = _tree(seats[ROUTER], experts)
    routing = Routing(tree, tuple(experts), default is not None, top_k)
    _check_default(seats, tree)
    if not 1 <= top_k <= max(1, len(experts)):
        raise ConfigError(f"top_k is {top_k}, but there {_are(len(experts))}; expected 1 to {max(1, len(experts))}.")
    found = {name: _index(name, index, seats) for name, index in (indexes or {}).items()}
    with reporting(reporter, quiet=quiet) as shown:
        manifest = _write(folder, places, seats, indexes=found, top_k=top_k)
        for line in _lines(manifest, seats, routing):
            shown.line(line)
        shown.line(f"council: {folder}")
    return folder


def _new_folder(out: str | Path) -> Path:
    """Where the council goes; a folder that holds something is a ConfigError."""
    if is_remote(str(out)):
        raise ConfigError(f"out is {out}, an address; build the council on this machine and copy the folder there.")
    folder = Path(out).expanduser()
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise ConfigError(f"{folder} is there already; give a folder that does not exist yet, or remove it first.")
    return folder


@contextlib.contextmanager
def _naming(name: str) -> Iterator[None]:
    """A BundleError within it names the seat that the bundle is for."""
    try:
        yield
    except BundleError as error:
        raise BundleError(f"{titled(name)}: {error}") from error


def _bundle(name: str, place: str | Path) -> Path:
    """The folder of a bundle of one model; a council, or what is no bundle, is a BundleError."""
    with _naming(name):
        folder = local_bundle(place)
        if isinstance(read_header(folder), CouncilManifest):
            raise BundleError(
                f"{folder} is a council, and a council is made of single models. Give the bundles in its folder "
                "members/ one by one."
            )
    return folder


def _seat(name: str, folder: Path) -> Seat:
    """What the manifest of a bundle says; a cascade that is no router, or one that reads no texts, is a BundleError."""
    with _naming(name):
        seat = read_seat(name, folder, folder=f"members/{folder_name(name)}")
        if name != ROUTER and seat.manifest.task.staged:
            raise BundleError(
                f"{folder} is a cascade of {counted(len(seat.manifest.members), 'network')}, which only routes; an "
                "expert is one network. Train it with task.tree.head: joint, or give one of the networks: "
                f"{folder / next(iter(seat.manifest.members))}."
            )
        if (vectors := seat.manifest.task.needs.vectors) is not None:
            raise BundleError(
                f"{folder} reads vectors in the place of texts ({vectors}), which a question to a council does not "
                "bring. Train it with a text tower (task.text: {kind: hf, name: ...})."
            )
    return seat


def _tree(router: Seat, experts: Mapping[str, str | Path]) -> LabelTree:
    """The tree of the router; one that has no single label, and an expert that is at no node, are ConfigErrors."""
    labelled, name = router.labelled, router.manifest.name
    if labelled is None or labelled.multi_label:
        what = "any number of labels" if labelled else ", ".join(router.manifest.gives)
        raise ConfigError(f"the router '{name}' answers with {what}; expected a classifier with one label a case.")
    if not experts:
        raise ConfigError(f"there is no expert; give one for a node of the router: {some(labelled.labels.names, 30)}.")
    for node in experts:
        if node not in labelled.labels.names:
            near = nearest(node, labelled.labels.names, there="its nodes are")
            if below := [label for label in labelled.labels.names if label.startswith(f"{node}.")]:
                near = (
                    f": it is flat, so nothing is above its labels. Give an expert of {some(below, 5)}, or train the "
                    "router with task.tree.head: joint."
                )
            raise ConfigError(f"an expert is to sit at '{node}', which is no node of the router '{name}'{near}")
    return labelled.labels


def _check_default(seats: Mapping[str, Seat], tree: LabelTree) -> None:
    """A default beside a router that is always sure is a ConfigError."""
    if DEFAULT not in seats or _abstains(seats[ROUTER].labelled):
        return
    free = [leaf for leaf in tree.leaves if leaf not in seats]
    instead = f", or let that bundle sit at a node, as expert of {some(free, 3)} for instance" if free else ""
    raise ConfigError(
        f"there is a default, but the router '{seats[ROUTER].manifest.name}' has no thresholds below which it would be "
        "asked: it never answers 'unknown'. Train the router with task.answers.wanted_accuracy or "
        f"task.answers.distance{instead}."
    )


def _abstains(router: Labelled | None) -> bool:
    """Whether a router may answer less than a whole path."""
    assert router is not None
    calibration = router.calibration
    return bool(calibration.distances) or any(least is None or least > 0 for least in calibration.thresholds)


def _are(experts: int) -> str:
    return f"is {counted(experts, 'expert')}" if experts == 1 else f"are {counted(experts, 'expert')}"


def _index(name: str, place: str | Path, seats: Mapping[str, Seat]) -> list[Path]:
    """The files of an index; one for no expert of the council is a ConfigError, one of another bundle a SearchError."""
    known = [seat for seat in seats if seat != ROUTER]
    if name not in known:
        raise ConfigError(f"an index is given for '{name}', which is no expert of the council{nearest(name, known)}")
    folder, manifest = Path(place).expanduser(), seats[name].manifest
    if "image_embedding" not in manifest.gives:
        raise ConfigError(
            f"an index is given for {titled(name)}, but the bundle '{manifest.name}' has no embeddings to search "
            "by. Give one of an expert that was trained with task.kind: align."
        )
    try:
        index = read_index(folder)
        check_bundle(folder, index, manifest)
        read_content(folder, index)
    except SearchError as error:
        raise SearchError(f"the index of {titled(name)}: {error}") from error
    return [folder / file for file in (INDEX, *index.files)]


def _write(
    folder: Path,
    places: Mapping[str, Path],
    seats: Mapping[str, Seat],
    *,
    indexes: Mapping[str, list[Path]],
    top_k: int,
) -> CouncilManifest:
    """Copy bundles and indexes into a new folder, and write the manifest that makes it a bundle."""
    own: dict[str, str] = {}  # the folder of each; a bundle that sits twice is copied once
    members: dict[str, str] = {}
    with atomic_folder(folder) as temporary:
        for name, bundle in places.items():
            digest = sha256_of(bundle / MANIFEST)
            twin = next((member for member, known in members.items() if known == digest), None)
            own[name] = twin or seats[name].folder
            if twin is None:
                with _naming(name):
                    copy_bundle(bundle, temporary / own[name])
                members[own[name]] = digest
        searched = {name: f"indexes/{folder_name(name)}" for name in indexes}
        files: dict[str, str] = {}
        for name, given in indexes.items():
            (temporary / searched[name]).mkdir(parents=True)
            for file in given:
                place = f"{searched[name]}/{file.name}"
                shutil.copyfile(file, temporary / place)
                files[place] = sha256_of(temporary / place)
        manifest = CouncilManifest(
            consilium_version=version("consilium"),
            created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            name=Path(os.path.abspath(folder)).name,
            reads=[field for field in READS if any(field in seat.manifest.reads for seat in seats.values())],
            gives=["route", "expert", "answer"],
            licenses=_licenses(seats),
            files=files,
            members=members,
            council=CouncilSection(
                router=own[ROUTER],
                experts={name: own[name] for name in own if name not in RESERVED},
                default=own.get(DEFAULT),
                generalist=own.get(GENERALIST),
                indexes=searched,
                top_k=top_k,
            ),
        )
        write_json(temporary / MANIFEST, manifest.model_dump(mode="json"))
    return manifest


def _licenses(seats: Mapping[str, Seat]) -> list[License]:
    """The licences of all starting weights, each once."""
    found = [recorded(seat.manifest.licenses, source=seat.manifest.name) for seat in seats.values()]
    return list(dict.fromkeys(license for own in found for license in own))


def _lines(manifest: CouncilManifest, seats: Mapping[str, Seat], routing: Routing) -> Iterator[str]:
    """What a person should know of a new council."""
    rows = [
        {
            "seat": name,
            "bundle": seat.manifest.name,
            "reads": ", ".join(seat.manifest.reads),
            "answers": some(seat.labelled.labels.leaves, 5) if seat.labelled else ", ".join(seat.manifest.gives),
        }
        for name, seat in seats.items()
    ]
    yield format_table(rows, title=f"council '{manifest.name}'")
    if free := routing.uncovered():
        others = [f"the {name} answers" for name in (DEFAULT, GENERALIST) if name in seats]
        yield f"no expert sits at {some(free, 10)}: {(*others, f'the answer is {UNKNOWN}')[0]}"
    for name in (name for name in seats if name not in RESERVED and GENERALIST in seats):
        mixed = common_tree([seats[name].labelled, seats[GENERALIST].labelled], routing.tree) is not None
        how = "mixed" if mixed else "listed side by side, since their labels are not in one tree"
        yield f"the answers of {name} and the {GENERALIST} are {how}"
    yield from license_lines(manifest.licenses or ())
