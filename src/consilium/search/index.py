"""Searching an index by a text or an image. Axes in names: N case, T text, D number of an embedding, K result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from consilium.console import reporting
from consilium.core.errors import ConfigError, ImageError, SearchError
from consilium.core.licenses import License
from consilium.core.reporter import Reporter, counted, some
from consilium.data.batches.rows import Query
from consilium.data.images.in_memory import View
from consilium.evaluation.retrieval.ranks import nearest
from consilium.predictor import Predictor
from consilium.search.building import MISSING_VIEW, build_index, check_bundle, licenses_of, width_of
from consilium.search.collection import Views
from consilium.search.faiss_index import FaissImages
from consilium.search.folder import FAISS, Content, Manifest, read_content, read_manifest
from consilium.search.terms import sparse

Among = Literal["images", "texts", "terms"]


@dataclass(frozen=True)
class Hit:
    """A result: the case that was found, and how similar it is (the product of embeddings of length 1).

    Where texts are searched, ``text`` is the one that was found and ``cases`` how many cases have it, of which ``id``
    is the first; else ``texts`` are all that the case has. ``row`` is the row of the case in the index. In a search by
    terms the similarity is the product of their weights, and ``terms`` are those that both texts have, with what each
    adds to it.
    """

    rank: int
    row: int
    similarity: float
    id: str
    source: str
    labels: tuple[str, ...]
    images: tuple[str, ...]
    texts: tuple[str, ...]
    text: str | None = None
    cases: int = 1
    terms: Mapping[str, float] = field(default_factory=dict)

    def tree(self) -> dict[str, Any]:
        """The result as JSON has it: its rank and the facts of the case, without what there is none of."""
        found = asdict(self)
        none = ["row", *(["text", "cases"] if self.text is None else []), *([] if self.terms else ["terms"])]
        return {name: value for name, value in found.items() if name not in none}


class Index:
    """The embeddings of a collection, and the model that embeds what is looked for in it.

    ``Index.build(model, ["images"], out="indexes/mine")`` makes one or brings it up to date, ``Index.load`` takes one
    as it is. ``model`` is what ``consilium.load`` gives.
    """

    def __init__(self, folder: Path, manifest: Manifest, content: Content, model: Predictor) -> None:
        self.folder, self.manifest = folder, manifest
        self._content, self._model, self._views = content, model, Views()

    def __repr__(self) -> str:
        held = f"{counted(self.manifest.images, 'image')} and {counted(self.manifest.texts, 'text')}"
        return f"<Index {self.folder}: {held} of {counted(len(self), 'case')}, by '{self.manifest.bundle['name']}'>"

    def __len__(self) -> int:
        return len(self._content.entries)

    @classmethod
    def build(
        cls,
        model: Predictor,
        places: Sequence[str | Path] = (),
        *,
        out: str | Path,
        faiss: str | None = None,
        quiet: bool = False,
        reporter: Reporter | None = None,
    ) -> Index:
        """The index in the folder ``out``, made or brought up to date.

        ``places`` are image files, folders, globs, prepared stores and tables; none: those that the index is of. Only
        what is new or changed is embedded; what is gone is removed. A build that was killed goes on.
        ``faiss`` names an index of faiss's factory that takes the place of the exact search among images; ``exact``
        takes it away again.
        """
        out = Path(out).expanduser()
        with reporting(reporter, quiet=quiet) as shown:
            shown.line(str(build_index(model, [str(place) for place in places], out=out, faiss=faiss, reporter=shown)))
        return cls.load(out, model)

    @classmethod
    def load(cls, folder: str | Path, model: Predictor) -> Index:
        """The index in a folder; one that is missing, damaged or of another bundle is a SearchError."""
        width_of(model)
        folder = Path(folder).expanduser()
        manifest = read_manifest(folder)
        check_bundle(folder, manifest, model.manifest)
        return cls(folder, manifest, read_content(folder, manifest), model)

    def search(
        self,
        *,
        text: str | None = None,
        image: View | Sequence[View] | Mapping[str, View] | None = None,
        k: int = 10,
        among: Among = "images",
        source: str | None = None,
        label: str | None = None,
    ) -> list[Hit]:
        """The ``k`` nearest cases to a text or to an image (a path, bytes, pixels, views in a list or by name).

        The best comes first, and fewer where the collection has fewer. ``among`` images, or texts, each of which is
        found once; among ``terms`` texts are compared by the weights of their terms, and found where they share one.
        ``source`` and ``label`` (with all below it) take the cases to search. What cannot be asked is a ConfigError, an
        image that cannot be read an ImageError, terms of an expert that has none a SearchError.
        """
        answer = self._answer(text, image)
        if k < 1:
            raise ConfigError(f"k is {k}; expected 1 or more results.")
        chosen_N = self._chosen(source, label)
        rows = np.flatnonzero(chosen_N & self._has_image_N) if among == "images" else self._texts_of(chosen_N)
        if not chosen_N.any():
            raise ConfigError(f"no case of the index is of the source '{source}' and has the label '{label}'.")
        if not len(rows):
            what = "images" if among == "images" else "texts"
            raise ConfigError(f"none of {counted(int(chosen_N.sum()), 'case')} has {what} to search among.")
        if among == "terms":
            return self._by_terms(answer, rows, chosen_N, k=k)
        vector = answer[f"{'image' if text is None else 'text'}_embedding"]
        return self._nearest(vector, rows, chosen_N, k=k, among=among, all_images=source is None and label is None)

    def nearest(self, answer: Mapping[str, Any], *, k: int) -> list[Hit]:
        """The ``k`` nearest cases to what the model answered of an image, or where it had none of a text.

        Images are searched; where the index has none, texts. An answer without an embedding has no near cases.
        """
        vector = answer.get("image_embedding", answer.get("text_embedding"))
        if vector is None:
            return []
        among: Among = "images" if self.manifest.images else "texts"
        rows = np.flatnonzero(self._has_image_N) if among == "images" else np.arange(len(self._content.texts))
        return self._nearest(vector, rows, np.ones(len(self), dtype=bool), k=k, among=among, all_images=True)

    def _nearest(
        self, vector: Sequence[float], rows: np.ndarray, chosen_N: np.ndarray, *, k: int, among: Among, all_images: bool
    ) -> list[Hit]:
        """The rows, of images or of texts, whose embeddings are nearest; ``all_images``: where faiss may search."""
        query_D = np.array(vector, dtype=np.float32)
        if among == "images" and self.manifest.faiss is not None and all_images:
            places_K, similarity_K = self._faiss.nearest(query_D, count=k)
        else:
            vectors = self._content.images_ND if among == "images" else self._content.texts_TD
            gallery = vectors if len(rows) == len(vectors) else vectors[rows]
            (places_K,), (similarity_K,) = nearest(query_D[None], gallery, count=k)
        found = zip(rows[places_K].tolist(), similarity_K.tolist(), strict=True)
        make = self._text_hit if among == "texts" else self._image_hit
        return [make(rank, row, similarity, chosen_N) for rank, (row, similarity) in enumerate(found, start=1)]

    def _by_terms(self, answer: Mapping[str, Any], rows: np.ndarray, chosen_N: np.ndarray, *, k: int) -> list[Hit]:
        """The texts of some rows that share terms with what was asked."""
        names, vectors = self._model.task.terms(), self._content.terms
        if not names:
            raise SearchError(
                f"{self._model!r} weighs no terms, so it cannot search by them. Search among texts, or train an expert "
                "with task.text.pooling: splade."
            )
        if vectors is None:
            raise SearchError(f"the index {self.folder} holds no terms; run `consilium index` again.")
        if "text_terms" not in answer:
            raise ConfigError("a search by terms is for a text, and an image has none; give a text.")
        query = sparse(answer["text_terms"], {name: term for term, name in enumerate(names)})
        products = vectors.products(query)[rows]
        order = np.argsort(-products, kind="stable")[:k]
        return [
            replace(
                self._text_hit(rank, int(rows[place]), float(products[place]), chosen_N),
                terms={names[term]: added for term, added in vectors.matched(query, int(rows[place]))},
            )
            for rank, place in enumerate(order[products[order] > 0], start=1)
        ]

    @property
    def licenses(self) -> list[License]:
        """The licences of the weights that its expert was trained from, which it inherits."""
        kept = self.manifest.licenses
        return licenses_of(self._model.manifest) if kept is None else kept

    def cuts(self, text: str) -> bool:
        """Whether a text is longer than the model reads, so that a search for it leaves the end out."""
        return self._model.task.count_cut([text]) > 0

    @property
    def window(self) -> tuple[float, float] | None:
        """How images of more than 8 bits are shown (``data.image.window`` of the bundle)."""
        return self._model.image.window

    def views(self, hit: Hit) -> list[str | bytes]:
        """The paths of the views of a result, or their bytes where they are embedded in a store."""
        found = self._views.of(self._content.entries[hit.row])
        return list(found.values()) if isinstance(found, dict) else found

    @cached_property
    def _has_image_N(self) -> np.ndarray:
        return np.asarray(self._content.images_ND.any(axis=1))

    @cached_property
    def _faiss(self) -> FaissImages:
        return FaissImages(self.folder / FAISS, images=self.manifest.images)

    @cached_property
    def _cases_of(self) -> list[list[int]]:
        """The rows of the cases that have each text."""
        number = {text: row for row, text in enumerate(self._content.texts)}
        found: list[list[int]] = [[] for _ in number]
        for row, entry in enumerate(self._content.entries):
            for text in entry.texts:
                found[number[text]].append(row)
        return found

    def _answer(self, text: str | None, image: Any) -> dict[str, Any]:
        """What the model says of what is looked for: its embedding, and the terms of a text if it has some."""
        if (text is None) == (image is None):
            raise ConfigError("a search is for a text or for an image; give one of the two.")
        side = "text" if image is None else "image"
        if text is not None and not text.strip():
            raise ConfigError("the text to search for is empty.")
        if f"{side}_embedding" not in self._model.task.vectors():
            raise SearchError(f"{self._model!r} does not embed {side}s; search by the other.")
        (answer,) = self._model.predict([Query(image, text)])
        if "error" in answer:
            raise ImageError(f"the image to search for cannot be read: {answer['error']}")
        if f"{side}_embedding" not in answer:
            raise ImageError(f"the image to search for has no place in the space of the index: {MISSING_VIEW}.")
        return answer

    def _chosen(self, source: str | None, label: str | None) -> np.ndarray:
        """Which cases are searched, bool [N]; a source or label that none has is a ConfigError."""
        entries = self._content.entries
        chosen_N = np.ones(len(entries), dtype=bool)
        if source is not None:
            chosen_N &= np.array([entry.source == source for entry in entries])
            _require(chosen_N, "source", source, {entry.source for entry in entries})
        if label is not None:
            below = f"{label}."
            own_N = [any(own == label or own.startswith(below) for own in entry.labels) for entry in entries]
            _require(np.array(own_N), "label", label, {own for entry in entries for own in entry.labels})
            chosen_N &= np.array(own_N)
        return chosen_N

    def _texts_of(self, chosen_N: np.ndarray) -> np.ndarray:
        """The rows of the texts that one of these cases has."""
        return np.array([row for row, cases in enumerate(self._cases_of) if chosen_N[cases].any()], dtype=np.int64)

    def _image_hit(self, rank: int, row: int, similarity: float, chosen_N: np.ndarray) -> Hit:
        own = self._content.entries[row]
        return Hit(rank, row, similarity, own.id, own.source, own.labels, own.images, own.texts)

    def _text_hit(self, rank: int, row: int, similarity: float, chosen_N: np.ndarray) -> Hit:
        cases = [case for case in self._cases_of[row] if chosen_N[case]]
        first, text = self._image_hit(rank, cases[0], similarity, chosen_N), self._content.texts[row]
        return replace(first, text=text, cases=len(cases))


def _require(chosen_N: np.ndarray, what: str, value: str, known: set[str]) -> None:
    if not chosen_N.any():
        names = some(sorted(filter(None, known)), 10) or "none"
        raise ConfigError(f"no case of the index has the {what} '{value}'; there is {names}.")
