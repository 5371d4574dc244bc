"""The members of a council as their manifests describe them, and the part of a question that each reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from consilium.bundle import read_known
from consilium.core.answers import DEFAULT, GENERALIST
from consilium.data.batches.rows import Item, Query
from consilium.manifest import CouncilManifest, Manifest, read_manifest
from consilium.tasks.family import Labelled, family_of

ROUTER = "router"


@dataclass(frozen=True)
class Seat:
    """A bundle of a council: ``name`` is the node where an expert sits, or ``router``, ``default``, ``generalist``.

    ``views`` and ``columns`` are those of the views and of the metadata that it tells apart.
    """

    name: str
    folder: str
    manifest: Manifest
    labelled: Labelled | None

    @property
    def reads_text(self) -> bool:
        """Whether it reads the text of a question."""
        return "text" in self.manifest.reads

    @property
    def views(self) -> tuple[str, ...]:
        """The names of the views that it reads; (): it takes them as they come."""
        return self.manifest.task.needs.views

    @property
    def columns(self) -> tuple[str, ...]:
        """The metadata columns that it reads."""
        return self.manifest.task.needs.meta


def read_seat(name: str, bundle: Path, *, folder: str) -> Seat:
    """The seat of a bundle that lies at ``bundle``; a damaged one is a BundleError. No weights are loaded."""
    manifest = read_manifest(bundle)
    known = read_known(bundle, manifest)
    return Seat(name, folder, manifest, family_of(known.section).labelled(known.section, known.knowledge))


def titled(seat: str) -> str:
    """What messages call the member at a seat."""
    return f"the {seat}" if seat in (ROUTER, DEFAULT, GENERALIST) else f"the expert of '{seat}'"


def seat_folders(manifest: CouncilManifest) -> dict[str, str]:
    """The folders of all members by the names of their seats, the router first."""
    section = manifest.council
    others = {DEFAULT: section.default, GENERALIST: section.generalist}
    return {
        ROUTER: section.router,
        **section.experts,
        **{name: folder for name, folder in others.items() if folder is not None},
    }


@dataclass(frozen=True)
class Questions(Sequence[Item]):
    """Some of the items that a council is asked about, with what one of its bundles reads of them.

    ``columns`` None: all that is given.
    """

    items: Sequence[Item]
    rows: Sequence[int]
    views: tuple[str, ...] = ()
    columns: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: Any) -> Any:
        item = self.items[self.rows[number]]
        query = Query(item) if isinstance(item, Mapping) else item
        if not isinstance(query, Query):
            return query
        if isinstance(query.image, Mapping):
            names = self.views or query.image
            there = {name: query.image[name] for name in names if query.image.get(name) is not None}
            query = replace(query, image=there or None)
        if self.columns is not None and isinstance(query.metadata, Mapping):
            own = {name: value for name, value in query.metadata.items() if name in self.columns}
            query = replace(query, metadata=own)
        return query


def questions(
    items: Sequence[Item], rows: Sequence[int], *, views: tuple[str, ...] = (), columns: tuple[str, ...] | None = None
) -> Sequence[Item]:
    """The questions of some rows: a list of a list, which may hold pixels; else they are read when asked for."""
    found = Questions(items, rows, views, columns)
    return list(found) if isinstance(items, list | tuple) else found
