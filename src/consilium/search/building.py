"""Building an index and bringing it up to date: only what is new or changed is embedded, and a killed build goes on."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from consilium.core.errors import ConfigError, DataError, SearchError
from consilium.core.files import fingerprint, locked
from consilium.core.licenses import License, license_lines, recorded
from consilium.core.places import absolute
from consilium.core.reporter import Reporter, counted, some
from consilium.data.batches.rows import Query
from consilium.data.sources.single import name_of
from consilium.manifest import Manifest as BundleManifest
from consilium.predictor import Predictor
from consilium.search.collection import Entry, Views, collect
from consilium.search.faiss_index import check_factory
from consilium.search.folder import (
    MANIFEST,
    PARTS,
    Content,
    Embedded,
    Manifest,
    is_index,
    read_content,
    read_manifest,
    read_parts,
    write_index,
    write_part,
)
from consilium.search.terms import NO_TERMS, TermVectors, sparse

PART = 1024  # embeddings that are lost at most where a build is killed at once, without a Ctrl-C
EXACT = "exact"
MISSING_VIEW = "a view is missing, and the embedding of a case is that of all its views together"


@dataclass(frozen=True)
class Built:
    """What a build did; ``unread`` are the cases whose image could not be read, and why: they are tried every time."""

    folder: Path
    manifest: Manifest
    embedded_images: int
    embedded_texts: int
    removed: int
    unread: Mapping[str, str] = field(default_factory=dict)
    skipped: Counter[str] = field(default_factory=Counter)
    bad_rows: Sequence[str] = ()

    def __str__(self) -> str:
        holds = f"{counted(self.manifest.cases, 'case')}, {counted(self.manifest.images, 'image')}, "
        holds += counted(self.manifest.texts, "text")
        holds += "" if self.manifest.faiss is None else f", searched by faiss ({self.manifest.faiss})"
        if not (self.embedded_images or self.embedded_texts or self.removed):
            return f"index {self.folder}: {holds}; it is up to date"
        new = f"embedded {counted(self.embedded_images, 'image')} and {counted(self.embedded_texts, 'text')}"
        return f"index {self.folder}: {holds}; {new}" + (f", removed {self.removed:,}" if self.removed else "")


def checksum(bundle: BundleManifest | None) -> dict[str, str]:
    """The name of a bundle and the checksum of its weights, by its manifest."""
    if bundle is None:
        raise SearchError("an index is of a trained bundle; load one with consilium.load.")
    return {"name": bundle.name, "checksum": fingerprint([bundle.files, bundle.members])}


def licenses_of(bundle: BundleManifest | None) -> list[License]:
    """The licences of the weights that a bundle was trained from, which an index of it inherits."""
    return [] if bundle is None else recorded(bundle.licenses, source=bundle.name)


def width_of(predictor: Predictor) -> int:
    """The length of the embeddings; a bundle whose task gives none is a SearchError."""
    width = predictor.task.vectors().get("image_embedding")
    if width is None:
        raise SearchError(
            f"{predictor!r} has no embeddings of images, so it cannot search. Give the bundle of an expert that was "
            "trained with task.kind: align."
        )
    return width


def check_bundle(folder: Path, manifest: Manifest, bundle: BundleManifest | None) -> None:
    """An index of another bundle is a SearchError: its embeddings lie in another space."""
    own = checksum(bundle)
    if manifest.bundle["checksum"] != own["checksum"]:
        theirs = manifest.bundle["name"]
        other = f"bundle '{theirs}'" if theirs != own["name"] else f"another training of '{theirs}'"
        raise SearchError(
            f"the index {folder} is of {other}, not of the bundle '{own['name']}' that was given: their embeddings do "
            "not compare. Give that bundle, or make an index of this one in another folder (`consilium index`)."
        )


def build_index(
    predictor: Predictor, places: Sequence[str], *, out: Path, faiss: str | None = None, reporter: Reporter
) -> Built:
    """Make the folder ``out`` the index of all cases in ``places``, or of those that it was of where none are given.

    ``faiss`` is a name of its factory, or ``exact``; None: as the index was.
    """
    width = width_of(predictor)
    if faiss not in (None, EXACT):
        check_factory(str(faiss), width=width)
    _refuse_other_folder(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    with locked(out.parent / f".{out.name}.lock"):
        return _build(predictor, places, out=out, faiss=faiss, width=width, reporter=reporter)


def default_folder(predictor: Predictor, place: str, *, root: Path) -> Path:
    """Where the index of a place lies if nobody says: one for each place and bundle."""
    key = fingerprint([absolute(place), checksum(predictor.manifest)["checksum"]])
    return root / f"{name_of(place)}-{key[:8]}"


def _build(
    predictor: Predictor, places: Sequence[str], *, out: Path, faiss: str | None, width: int, reporter: Reporter
) -> Built:
    bundle, licenses = checksum(predictor.manifest), licenses_of(predictor.manifest)
    earlier, content = None, None
    if (out / MANIFEST).is_file():
        earlier = read_manifest(out)
        check_bundle(out, earlier, predictor.manifest)
        content = read_content(out, earlier)
        faiss = faiss or earlier.faiss
        places = places or earlier.places
    if not places:
        raise ConfigError(f"there is no index in {out} yet; say of what it is to be: a store, a table or images.")
    faiss = None if faiss == EXACT else faiss
    collection = collect(places, reporter=reporter)
    names = {name: term for term, name in enumerate(predictor.task.terms())}
    known = _known(content, sparse=bool(names))
    before = len(known)
    parts = out / PARTS / bundle["checksum"]
    kept, damaged = read_parts(parts, width=width)
    known |= kept
    if kept:
        reporter.line(f"the index goes on with {counted(len(kept), 'embedding')} of a build that was interrupted")
    if damaged:
        reporter.line(f"note: {some(damaged, 3)} in {parts} cannot be read; what was in there is embedded again.")
    errors = _embed(predictor, collection.entries, known, names=names, parts=parts, reporter=reporter)
    found = _content(collection.entries, known, errors, width=width, sparse=bool(names))
    embedded = Counter(key.partition(":")[0] for key in list(known)[before:])
    if (
        content is None
        or earlier is None
        or not _same(content, found)
        or (earlier.faiss, earlier.licenses) != (faiss, licenses)
    ):
        where = [absolute(place) for place in places]
        earlier = write_index(out, found, bundle=bundle, licenses=licenses, places=where, faiss=faiss)
    shutil.rmtree(out / PARTS, ignore_errors=True)
    for line in license_lines(licenses):
        reporter.line(line)
    return Built(
        out,
        earlier,
        embedded["image"],
        embedded["text"],
        len({entry.id for entry in content.entries} - {entry.id for entry in found.entries}) if content else 0,
        {collection.entries[row].id: error for row, error in found.errors.items()},
        collection.skipped,
        collection.bad_rows,
    )


def _refuse_other_folder(out: Path) -> None:
    """What is there and no index is not written over."""
    if out.is_file() or (out.is_dir() and any(out.iterdir()) and not is_index(out)):
        raise ConfigError(f"{out} is there already and is no index; give --out a folder that does not exist yet.")


def _image_key(entry: Entry) -> str:
    return f"image:{entry.digest}"


def _text_key(text: str) -> str:
    return f"text:{fingerprint(text)}"


def _known(content: Content | None, *, sparse: bool) -> dict[str, Embedded]:
    """The embeddings of an index by what they are of; where texts are to be ``sparse``, those that are."""
    if content is None:
        return {}
    rows = np.flatnonzero(content.images_ND.any(axis=1)).tolist()
    known = {_image_key(content.entries[row]): Embedded(content.images_ND[row]) for row in rows}
    if content.terms is None and sparse:
        return known
    terms = [NO_TERMS] * len(content.texts) if content.terms is None else content.terms.each()
    return known | dict(zip(map(_text_key, content.texts), map(Embedded, content.texts_TD, terms), strict=True))


class _Missing(Sequence[Query]):
    """Images and texts to be embedded, as queries that are read when they are asked for."""

    def __init__(self, entries: Sequence[Entry], known: Mapping[str, Embedded], names: tuple[str, ...]) -> None:
        images = {key: entry for entry in entries if entry.digest and (key := _image_key(entry)) not in known}
        texts = {key: text for entry in entries for text in entry.texts if (key := _text_key(text)) not in known}
        self.keys, self.texts = [*images, *texts], list(texts.values())
        self._items: list[Entry | str] = [*images.values(), *texts.values()]
        self._views = Views(names)

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, number: Any) -> Any:
        item = self._items[number]
        return Query(text=item) if isinstance(item, str) else Query(self._views.of(item))


def _embed(
    predictor: Predictor,
    entries: Sequence[Entry],
    known: dict[str, Embedded],
    *,
    names: Mapping[str, int],
    parts: Path,
    reporter: Reporter,
) -> dict[str, str]:
    """Add to ``known`` what is not yet there, in parts that stay when the build is killed; errors by key.

    ``names`` has the number of each term that the expert weighs.
    """
    missing = _Missing(entries, known, predictor.task.views)
    if cut := predictor.task.count_cut(missing.texts):
        reporter.line(
            f"note: {counted(cut, 'text')} of {len(missing.texts):,} longer than the expert reads; the end is cut."
        )
    errors: dict[str, str] = {}
    waiting: dict[str, Embedded] = {}

    def keep() -> None:
        if waiting:
            write_part(parts, waiting)
            known.update(waiting)
            waiting.clear()

    try:
        for done, (key, record) in enumerate(zip(missing.keys, _records(predictor, missing), strict=True), start=1):
            own = f"{key.partition(':')[0]}_embedding"
            if own in record:
                vector = np.array(record[own], dtype=np.float32)
                waiting[key] = Embedded(vector, sparse(record.get("text_terms", {}), names))
            else:
                errors[key] = record.get("error", MISSING_VIEW)
            if len(waiting) >= PART:
                keep()
            reporter.progress("index", done, len(missing))
    finally:
        keep()
    return errors


def _records(predictor: Predictor, missing: _Missing) -> Iterator[dict[str, Any]]:
    return predictor.stream(missing) if len(missing) else iter(())


def _content(
    entries: Sequence[Entry],
    known: Mapping[str, Embedded],
    errors: Mapping[str, str],
    *,
    width: int,
    sparse: bool,
) -> Content:
    """What the index of these cases holds; where nothing of them could be embedded it is a DataError."""
    images_ND = np.zeros((len(entries), width), dtype=np.float32)
    unread: dict[int, str] = {}
    for row, entry in enumerate(entries):
        if entry.digest and (key := _image_key(entry)) in known:
            images_ND[row] = known[key].vector
        elif entry.digest:
            unread[row] = errors[key]
    texts = list(dict.fromkeys(text for entry in entries for text in entry.texts))
    own = [known[_text_key(text)] for text in texts]
    texts_TD = np.array([one.vector for one in own], dtype=np.float32).reshape(len(texts), width)
    if not texts and not images_ND.any():
        raise DataError(f"no image of the collection can be read, the first since: {next(iter(unread.values()))}")
    return Content(
        entries, images_ND, texts, texts_TD, unread, TermVectors.of([one.terms for one in own]) if sparse else None
    )


def _same(left: Content, right: Content) -> bool:
    """Whether an index holds this already."""
    alike = (left.terms is None) == (right.terms is None)
    return alike and list(left.entries) == list(right.entries) and left.errors == right.errors
