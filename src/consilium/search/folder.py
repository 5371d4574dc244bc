"""The files of an index, format 1, and what a build that was interrupted left there.

================  ====================================================================================================
``index.json``    format, version of Consilium, bundle (name, checksum), licences of the weights that the bundle was
                  trained from, places, counts, checksums of the other files
``cases.jsonl``   a case a line, as ``Entry``; ``texts`` are lines of ``texts.jsonl``, from 0; ``error``: why its image
                  has no embedding
``images.npy``    float32 [N, D]: for each case the embedding of its image, of length 1; zeros where it has none
``texts.jsonl``   a text a line, as JSON, each once
``texts.npy``     float32 [T, D]: the embedding of each text
``terms.npz``     of an expert that weighs terms: the sparse vector of each text, as ``TermVectors``
``images.faiss``  where it was asked for: the faiss index of the rows of ``images.npy`` that are not zeros
``parts/``        embeddings of a build that is not finished
================  ====================================================================================================

Nothing of it is ever unpickled. Axes in names: N case, T text, D number of an embedding.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pydantic import TypeAdapter

from consilium.core.errors import SearchError
from consilium.core.files import atomic_file, atomic_folder, sha256_of, write_json
from consilium.core.licenses import License
from consilium.search.collection import Entry
from consilium.search.terms import NO_TERMS, TermVectors

FORMAT_VERSION = 1
MANIFEST, CASES, IMAGES, TEXTS, TEXT_VECTORS = "index.json", "cases.jsonl", "images.npy", "texts.jsonl", "texts.npy"
TERMS, FAISS, PARTS = "terms.npz", "images.faiss", "parts"


@dataclass(frozen=True)
class Manifest:
    """What an index says about itself; ``bundle`` has the ``name`` and the ``checksum`` of the bundle it is of.

    ``licenses`` are those that the bundle inherited; None in an index of a version that did not keep them.
    """

    format_version: int
    consilium_version: str
    created: str
    bundle: dict[str, str]
    places: list[str]
    cases: int
    images: int
    texts: int
    width: int
    faiss: str | None = None
    files: dict[str, str] = field(default_factory=dict)
    licenses: list[License] | None = None


@dataclass(frozen=True)
class Content:
    """All that an index holds. ``errors`` has why the image of a case has no embedding, by row.

    ``terms`` are the sparse vectors of the texts, None where the expert gives none.
    """

    entries: Sequence[Entry]
    images_ND: np.ndarray
    texts: Sequence[str]
    texts_TD: np.ndarray
    errors: dict[int, str]
    terms: TermVectors | None = None


class Embedded(NamedTuple):
    """The embedding [D] of an image or a text, and the sparse vector of a text; of others it is empty."""

    vector: np.ndarray
    terms: np.ndarray = NO_TERMS


def is_index(folder: Path) -> bool:
    """Whether there is an index in a folder, or what an interrupted build left of one."""
    return (folder / MANIFEST).is_file() or (folder / PARTS).is_dir()


def read_manifest(folder: Path) -> Manifest:
    """What the index in a folder says about itself; without one it is a SearchError."""
    path = folder / MANIFEST
    if not path.is_file():
        if (folder / PARTS).is_dir():
            raise SearchError(
                f"the index {folder} is not finished; run `consilium index` again, which goes on with it."
            )
        raise SearchError(f"there is no index in {folder} ({MANIFEST} is missing); `consilium index` makes one.")
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
        found = tree["format_version"]
        if isinstance(found, int) and found > FORMAT_VERSION:
            raise SearchError(
                f"the index {folder} has format {found}, written by Consilium {tree.get('consilium_version')}; this "
                f"version reads up to {FORMAT_VERSION}. Update Consilium."
            )
        licenses = TypeAdapter(list[License] | None).validate_python(tree.get("licenses"))
        named = [item.name for item in fields(Manifest) if item.name != "licenses"]
        manifest = Manifest(**{name: tree[name] for name in named}, licenses=licenses)
        if not {"name", "checksum"} <= set(manifest.bundle):
            raise KeyError("bundle")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(folder, f"{MANIFEST}: {type(error).__name__} {error}") from error
    return manifest


def read_content(folder: Path, manifest: Manifest) -> Content:
    """The files of an index; one that is not as its manifest says is a SearchError."""
    for name, digest in manifest.files.items():
        if name not in (CASES, IMAGES, TEXTS, TEXT_VECTORS, TERMS, FAISS):
            raise _damaged(folder, f"{MANIFEST} names {name}, which is no file of an index")
        if not (folder / name).is_file():
            raise _damaged(folder, f"{name} is missing")
        if sha256_of(folder / name) != digest:
            raise _damaged(folder, f"the checksum of {name} differs")
    try:
        texts, lines = (_read_lines(folder / name) for name in (TEXTS, CASES))
        errors = {row: error for row, line in enumerate(lines) if (error := line.pop("error"))}
        entries = [_entry(line, texts) for line in lines]
        images_ND, texts_TD = (np.load(folder / name, allow_pickle=False) for name in (IMAGES, TEXT_VECTORS))
        terms = _read_terms(folder / TERMS) if TERMS in manifest.files else None
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise _damaged(folder, f"{type(error).__name__} {error}") from error
    if images_ND.shape != (len(entries), manifest.width) or texts_TD.shape != (len(texts), manifest.width):
        raise _damaged(folder, "its files are not of one length")
    if terms is not None and len(terms) != len(texts):
        raise _damaged(folder, f"{TERMS} is not of its texts")
    return Content(entries, images_ND, texts, texts_TD, errors, terms)


def write_index(
    folder: Path,
    content: Content,
    *,
    bundle: dict[str, str],
    licenses: list[License],
    places: list[str],
    faiss: str | None,
) -> Manifest:
    """Write an index into a folder, in the place of what was there; a reader never sees half of one."""
    number = {text: row for row, text in enumerate(content.texts)}
    lines = (
        {**asdict(entry), "texts": [number[text] for text in entry.texts], "error": content.errors.get(row, "")}
        for row, entry in enumerate(content.entries)
    )
    with atomic_folder(folder) as temporary:
        _write_lines(temporary / CASES, lines)
        _write_lines(temporary / TEXTS, content.texts)
        np.save(temporary / IMAGES, content.images_ND, allow_pickle=False)
        np.save(temporary / TEXT_VECTORS, content.texts_TD, allow_pickle=False)
        if content.terms is not None:
            np.savez(temporary / TERMS, allow_pickle=False, **vars(content.terms))
        if faiss is not None:
            from consilium.search.faiss_index import write_faiss

            write_faiss(temporary / FAISS, content.images_ND, factory=faiss)
        manifest = Manifest(
            format_version=FORMAT_VERSION,
            consilium_version=version("consilium"),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            bundle=bundle,
            places=places,
            cases=len(content.entries),
            images=int(content.images_ND.any(axis=1).sum()),
            texts=len(content.texts),
            width=content.images_ND.shape[1],
            faiss=faiss,
            files={path.name: sha256_of(path) for path in sorted(temporary.iterdir())},
            licenses=licenses,
        )
        tree = {**asdict(manifest), "licenses": [own.model_dump(mode="json") for own in licenses]}
        write_json(temporary / MANIFEST, tree)
    return manifest


# -- Parts of a build that is not finished ------------------------------------------------------------------------


def write_part(folder: Path, embedded: Mapping[str, Embedded]) -> None:
    """Keep embeddings by their keys until the index is whole."""
    number = max((int(path.stem) for path in folder.glob("[0-9]*.npz")), default=-1) + 1
    with atomic_file(folder / f"{number:06d}.npz") as temporary, temporary.open("wb") as file:
        vectors = np.stack([own.vector for own in embedded.values()]).astype(np.float32)
        terms = TermVectors.of([own.terms for own in embedded.values()])
        arrays: dict[str, Any] = {"keys": np.array(list(embedded)), "vectors": vectors, **vars(terms)}
        np.savez(file, allow_pickle=False, **arrays)


def read_parts(folder: Path, *, width: int) -> tuple[dict[str, Embedded], list[str]]:
    """Embeddings by their keys, and the names of parts that are damaged, which are removed."""
    found: dict[str, Embedded] = {}
    damaged = []
    for path in sorted(folder.glob("[0-9]*.npz")):
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as part:
                keys, vectors = part["keys"].tolist(), part["vectors"]
                terms = TermVectors(part["lengths_T"], part["weights_P"]).each()
            if vectors.shape != (len(keys), width) or vectors.dtype != np.float32:
                raise ValueError("its shape is another")
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            damaged.append(path.name)
            path.unlink()
            continue
        found.update(zip(keys, map(Embedded, vectors, terms), strict=True))
    return found, damaged


def _entry(line: dict[str, Any], texts: Sequence[str]) -> Entry:
    own: dict[str, Any] = {**line, "texts": [texts[number] for number in line["texts"]]}
    lists = {name: tuple(own[name]) for name in ("labels", "images", "texts")}
    return Entry(**{**own, **lists})


def _read_terms(path: Path) -> TermVectors:
    with path.open("rb") as file, np.load(file, allow_pickle=False) as found:
        return TermVectors(found["lengths_T"], found["weights_P"])


def _read_lines(path: Path) -> list[Any]:
    """The JSON of each line, read as one list, which is several times as fast."""
    with path.open(encoding="utf-8", newline="\n") as file:
        found: list[Any] = json.loads(f"[{','.join(file)}]")
    return found


def _write_lines(path: Path, values: Any) -> None:
    with path.open("w", encoding="utf-8", errors="backslashreplace", newline="\n") as file:
        file.writelines(json.dumps(value, ensure_ascii=False) + "\n" for value in values)


def _damaged(folder: Path, why: str) -> SearchError:
    return SearchError(f"the index {folder} is damaged ({why}). Remove the folder and run `consilium index` again.")
