"""``explain``: why a council answered a case as it did, as a page with pictures."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from consilium.console import reporting
from consilium.core.answers import DEFAULT, GENERALIST, UNKNOWN
from consilium.core.errors import BundleError, ConfigError, ImageError
from consilium.core.reporter import Reporter
from consilium.council import Council
from consilium.council.residents import Resident
from consilium.council.seats import ROUTER, questions
from consilium.data.batches.rows import Item, Items, Query
from consilium.data.images.covered import LOOKS, Covered
from consilium.data.look.thumbnails import thumbnail
from consilium.evaluation.labels.saliency import OcclusionMap, drops
from consilium.evaluation.report.explanation import (
    PAGE,
    ExplanationContent,
    MemberAnswer,
    NearCase,
    Question,
    levels_of,
    write_explanation,
)
from consilium.evaluation.report.page import jpeg_url
from consilium.manifest import CouncilManifest, local_bundle, read_header
from consilium.predictions import Asked
from consilium.predictor import Predictor
from consilium.search.results import picture

PICTURE = 512  # pixels of the side of a view


def explain(
    council: Council | str | Path,
    item: Item,
    *,
    out: str | Path = "explanation",
    device: str = "auto",
    quiet: bool = False,
    reporter: Reporter | None = None,
) -> Path:
    """Write a page that says why a council answers a case as it does; the path of explanation.html in ``out``.

    ``council`` is a loaded one, or where it lies (then it is loaded on ``device``). ``item`` is one case, as
    ``Council.predict`` takes it. The page has the route with what the router saw as second, who was asked and why,
    what each answer depends on (occlusion maps, modalities), and the nearest cases of an index. An expert without an
    answer says so, and the others go on. A case that the council cannot be asked about is an ImageError, a text or
    metadata that no member reads a ConfigError, and so is an ``out`` that holds something else than an explanation.
    """
    folder = Path(out).expanduser()
    _refuse_other(folder)
    query = item if isinstance(item, Query) else Query(item)
    with reporting(reporter, quiet=quiet) as shown:
        place = None if isinstance(council, Council) else council
        loaded = council if isinstance(council, Council) else _load(council, device=device)
        if isinstance(query.metadata, Mapping | None):
            Asked(query.text, query.metadata or {}).check(loaded)
        (record,) = loaded.predict(query)
        if "route" not in record:
            raise ImageError(str(record["error"]))
        content = _content(loaded, query, record, command=_command(place, query, out=folder), reporter=shown)
        path = write_explanation(folder, content)
        for line in [*content.sentences(), *content.why, f"explanation: {path}"]:
            shown.line(line)
    return path


def _refuse_other(folder: Path) -> None:
    """A place that holds something, and no earlier explanation, is a ConfigError."""
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir()) and not (folder / PAGE).is_file()):
        raise ConfigError(
            f"--out is {folder}, which is there already and holds no earlier explanation; name a new folder."
        )


def _load(place: str | Path, *, device: str) -> Council:
    """The council at a place; a bundle that is none is a BundleError."""
    folder = local_bundle(place)
    if not isinstance(read_header(folder), CouncilManifest):
        raise BundleError(
            f"{place} is one bundle and no council, so there is no route to explain. `consilium evaluate` shows in its "
            "report what the answers of a bundle depend on."
        )
    return Council.load(folder, device=device)


def _command(place: str | Path | None, query: Query, *, out: Path) -> str:
    """The command that writes the page again; '' of a council or an image that is in memory."""
    if place is None or not isinstance(query.image, str | Path):
        return ""
    text = [] if not query.text else ["--text", query.text]
    meta = [word for name, value in (query.metadata or {}).items() for word in ("--meta", f"{name}={value}")]
    words = ["consilium", "council", "explain", place, query.image, *text, *meta, "--out", out]
    return shlex.join(map(str, words))


def _content(
    council: Council, query: Query, record: Mapping[str, Any], *, command: str, reporter: Reporter
) -> ExplanationContent:
    """All that the page says of a record of the council."""
    asked = record.get("asked") or [{"expert": record["expert"], "weight": None, "answer": record["answer"]}]
    experts = [
        _answer(council, one["expert"], query, one["answer"], weight=one["weight"], reporter=reporter)
        for one in asked
        if one["answer"] is not None
    ]
    manifest = council.manifest
    names = {"Council": manifest.name, "Built": manifest.created, "Consilium": manifest.consilium_version}
    bundles = [council.seats[seat].manifest for seat in (ROUTER, *(member.seat for member in experts))]
    trained = {own.name: own.created for own in bundles}
    return ExplanationContent(
        council=manifest.name,
        question=_question(council, query),
        router=_answer(council, ROUTER, query, record["route"], weight=None, reporter=reporter),
        experts=experts,
        expert=record["expert"],
        why=list(_why(council, record)),
        mixture=record["answer"] if record.get("combined") else None,
        licenses=manifest.licenses or (),
        facts={**names, **{f"Bundle {name}": created for name, created in trained.items()}},
        command=command,
    )


def _question(council: Council, query: Query) -> Question:
    source = Items([query], columns=council.meta_columns)
    files, window = source.images(0), council.router.image.window
    names = list(query.image) if isinstance(query.image, Mapping) else [""] * len(files)
    drawn = [
        (name, thumbnail(file, size=PICTURE, window=window))
        for name, file in zip(names, files, strict=True)
        if file is not None
    ]
    key = source.key(0).get("image", "none")
    return Question(
        name=key if isinstance(key, str) else ", ".join(key),
        pictures=[(name, jpeg_url(jpeg)) for name, jpeg in drawn if jpeg is not None],
        text=query.text,
        metadata=source.metadata(0),
    )


def _answer(
    council: Council,
    name: str,
    query: Query,
    record: Mapping[str, Any],
    *,
    weight: float | None,
    reporter: Reporter,
) -> MemberAnswer:
    """What a member said, with the map of its answer and the nearest cases of its index."""
    seat, resident = council.seats[name], council.member(name)
    answer = MemberAnswer(
        seat=name,
        bundle=seat.manifest.name,
        reads=seat.manifest.reads,
        record=record,
        weight=weight,
        nearest=_nearest(resident, name, record),
        notes=_notes(record, resident.predictor),
    )
    labelled = seat.labelled
    if "error" in record or labelled is None:
        return answer
    levels = [] if labelled.multi_label else levels_of(record, labelled.labels, labelled.calibration)
    names = labelled.labels.names if labelled.multi_label else labelled.labels.leaves
    shares = sorted(((leaf, record["probabilities"][leaf]) for leaf in names), key=lambda pair: -pair[1])
    given = [level.label for level in levels if level.answered]
    watched = given[-1] if given else levels[0].label if levels else shares[0][0]
    (own,) = questions([query], range(1), views=seat.views, columns=seat.columns)
    assert isinstance(own, Query)
    return replace(
        answer,
        levels=levels,
        shares=shares,
        threshold=labelled.threshold if labelled.multi_label else None,
        map=_map(resident.predictor, own, label=watched, name=name, reporter=reporter),
    )


def _map(predictor: Predictor, query: Query, *, label: str, name: str, reporter: Reporter) -> OcclusionMap | None:
    """Which places of the first view the probability of a label depends on; None where the question has no image."""
    files = Items([query], names=predictor.views, columns=predictor.meta_columns).images(0)
    views = dict(zip(predictor.views or map(str, range(len(files))), files, strict=True))
    there = {view: file for view, file in views.items() if file is not None}
    if not there:
        return None
    first = next(iter(there))
    covered = Covered.read(there[first], image=predictor.image)

    def looks() -> Iterator[Query]:
        for look in range(LOOKS):
            seen = {**there, first: covered.file(look)}
            yield Query(seen if predictor.views else list(seen.values()), query.text, query.metadata)

    probabilities = []
    for done, record in enumerate(predictor.once.stream(looks()), start=1):
        probabilities.append(record["probabilities"][label])
        reporter.progress(f"cover places ({name})", done, LOOKS)
    return OcclusionMap(label, probabilities[0], drops(np.array(probabilities)), covered.image_HWC)


def _nearest(resident: Resident, name: str, record: Mapping[str, Any]) -> Sequence[NearCase]:
    """The nearest cases of a record with their pictures, as far as these are still where they were."""
    index = resident.indexes.get(name)
    if index is None or not record.get("nearest"):
        return []
    hits = index.nearest(record, k=len(record["nearest"]))
    return [NearCase(hit.tree(), picture(index, hit)) for hit in hits]


def _notes(record: Mapping[str, Any], predictor: Predictor) -> list[str]:
    """What else there is to know of an answer before it is believed."""
    notes = [
        f"No training case had the {name} '{value}': it counts as 'another value'."
        for name, value in record.get("unseen", {}).items()
    ]
    if "disagreement" in record:
        notes.append(f"Its members or looks disagree by {record['disagreement']:.3f} nats (0: all say the same).")
    if predictor.looks.looks > 1 and "probabilities" in record:
        notes.append(f"The answer is the mean over {predictor.looks.looks} looks at the image, the map is of one look.")
    return notes


def _why(council: Council, record: Mapping[str, Any]) -> Iterator[str]:
    """Who was asked, and why, in sentences."""
    route, asked = record["route"], record.get("asked", [])
    first = asked[0]["expert"] if asked else record["expert"]
    yield _reason(council, route, first)
    if GENERALIST in council.seats and first != GENERALIST and first != UNKNOWN:
        yield "The generalist is asked about every case."
    failed = [one for one in asked if "error" in one["answer"]]
    for one in failed:
        yield f"The {_of(one['expert'])} has no answer: {one['answer']['error']}"
    if len(asked) - len(failed) > 1:
        if record["combined"]:
            yield "Their answers are combined, each counting with its weight."
        else:
            yield f"Their answers cannot be combined, so that of the {_of(record['expert'])} is given; all are below."


def _reason(council: Council, route: Mapping[str, Any], first: str) -> str:
    """Why the first of the experts was asked, or nobody."""
    tree, label = council.routing.tree, route.get("label")
    if first not in (DEFAULT, GENERALIST, UNKNOWN):
        where = "which is what the router says"
        if first != label:
            where = f"the nearest node above {label} that has an expert"
        most = council.routing.top_k
        others = f" Up to {most} experts are asked, the likeliest ones." if most > 1 else ""
        return f"The bundle {council.seats[first].manifest.name} was asked: it sits at {first}, {where}.{others}"
    if "error" in route:
        why = f"The router has no answer ({route['error']})"
    elif label in tree.names:
        above = " or above it" if len(tree.path(tree.index(label))) > 1 else ""
        why = f"No expert sits at {label}{above}"
    else:
        why = "The router is not sure enough of any label to choose an expert"
    if first == DEFAULT:
        return f"{why}, so the default is asked: the bundle {council.seats[DEFAULT].manifest.name}."
    if first == GENERALIST:
        return f"{why}, and there is no default; the generalist, which is asked about every case, answers alone."
    return f"{why}, and the council has no default, so nobody is asked and the answer is unknown."


def _of(name: str) -> str:
    return name if name in (DEFAULT, GENERALIST) else f"expert at {name}"
