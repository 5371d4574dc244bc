"""From what a command is given to results: the index is opened, or made where there is none yet."""

from __future__ import annotations

import os
from pathlib import Path

from consilium.core.errors import SearchError
from consilium.core.places import absolute, facts, is_remote, local_path
from consilium.core.reporter import Reporter
from consilium.data.batches.rows import Query
from consilium.predictor import Predictor
from consilium.search.building import Built, build_index, default_folder
from consilium.search.folder import is_index
from consilium.search.index import Among, Index
from consilium.search.results import Results

_GLOB = "*?["


def opened(predictor: Predictor, place: str, *, root: Path, reporter: Reporter) -> tuple[Index, Built | None]:
    """The index in a folder as it is; of a collection its index under ``root``, brought up to date."""
    folder = Path(os.path.expanduser(local_path(place)))
    if not is_remote(place) and is_index(folder):
        return Index.load(folder, predictor), None
    if not any(sign in place for sign in _GLOB) and not is_remote(place) and facts(absolute(place)) is None:
        raise SearchError(
            f"--index is {place}, which does not exist (looked from {os.getcwd()}); give the folder of an index, or a "
            "store, a table or a folder of images to make one of."
        )
    built = build_index(predictor, [place], out=default_folder(predictor, place, root=root), reporter=reporter)
    reporter.line(str(built))
    return Index.load(built.folder, predictor), built


def find(
    index: Index, query: Query, *, k: int, among: Among, source: str | None = None, label: str | None = None
) -> Results:
    """Search an index and keep with the results what was asked."""
    hits = index.search(text=query.text, image=query.image, k=k, among=among, source=source, label=label)
    filters = {name: value for name, value in (("source", source), ("label", label)) if value is not None}
    return Results(index, query, among, hits, filters)
