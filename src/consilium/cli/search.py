"""The commands that search: index, search."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from consilium.cli.options import BundlePath, Device, on_disk
from consilium.core.errors import ConfigError
from consilium.core.surroundings import say

if TYPE_CHECKING:
    from consilium.search.building import Built

INDEXES = Path("indexes")  # where ``search`` keeps the indexes that it makes itself


def index(
    bundle: BundlePath,
    places: Annotated[
        list[str] | None,
        typer.Argument(
            help="Image files, folders, globs, prepared stores or tables; none: what the index is of.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path, typer.Option(help="The folder of the index.", parser=on_disk, metavar="PATH", show_default=False)
    ] = ...,  # type: ignore[assignment]
    faiss: Annotated[
        str | None,
        typer.Option(help="Search images by faiss: Flat, HNSW32 ...; exact: no more. Default: exact, or as it was."),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1)] = 32,
    device: Device = "auto",
) -> None:
    """Make an index of a collection, or bring it up to date; an unreadable image is named, and the exit code is 1."""
    from consilium.console import Console
    from consilium.predictor import Predictor
    from consilium.search.building import build_index

    with Console() as console:
        predictor = Predictor.load(bundle, device=device, batch_size=batch_size)
        built = build_index(predictor, places or [], out=out.expanduser(), faiss=faiss, reporter=console)
        console.line(str(built))
    if _say_what_is_missing(built):
        raise typer.Exit(1)


def search(
    bundle: BundlePath,
    query: Annotated[str, typer.Argument(help="A text, or an image file.", show_default=False)],
    index: Annotated[
        str,
        typer.Option(
            help="An index; or a store, a table, a folder of images, whose index is then made and kept in indexes/.",
            show_default=False,
        ),
    ],
    k: Annotated[int, typer.Option("-k", min=1, help="How many results.")] = 10,
    among: Annotated[
        Literal["images", "texts", "terms"],
        typer.Option(help="What is searched; terms: the texts, by the terms that they share with the query."),
    ] = "images",
    source: Annotated[str | None, typer.Option(help="Only cases of this source.")] = None,
    label: Annotated[str | None, typer.Option(help="Only cases of this label, or of one below it.")] = None,
    image: Annotated[
        bool | None, typer.Option("--image/--text", help="What the query is; default: an image if it is a file.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    out: Annotated[
        Path | None,
        typer.Option(help="Write a page with pictures (.html), or .json.", parser=on_disk, metavar="PATH"),
    ] = None,
    images: Annotated[bool, typer.Option(help="Pictures on the page.")] = True,
    device: Device = "auto",
) -> None:
    """Find the nearest cases of a collection to a text or an image."""
    from json import dumps

    from consilium.console import Console
    from consilium.core.files import write_json, write_text
    from consilium.core.reporter import Silent, format_table
    from consilium.predictor import Predictor
    from consilium.search.finding import find, opened
    from consilium.search.query import query_of

    if out is not None and out.suffix not in (".html", ".json"):
        raise ConfigError(f"--out is {out}; expected a name that ends in .html or .json.")
    asked = query_of(query, kind=None if image is None else "image" if image else "text")
    predictor = Predictor.load(bundle, device=device)
    with Console() as console:
        found, built = opened(predictor, index, root=INDEXES, reporter=Silent() if json else console)
    results = find(found, asked, k=k, among=among, source=source, label=label)
    if asked.text is not None and found.cuts(asked.text):
        say("note: the text is longer than the expert reads; its end is cut.")
    if built is not None:
        _say_what_is_missing(built)
    if out is not None and out.suffix == ".html":
        write_text(out, results.page(images=images))
    elif out is not None:
        write_json(out, results.tree())
    typer.echo(
        dumps(results.tree(), ensure_ascii=False) if json else format_table(results.rows(), title=results.title())
    )


def _say_what_is_missing(built: Built) -> bool:
    """Say what is not in the index, beside the output; whether there is anything that could not be read."""
    from consilium.core.reporter import counted
    from consilium.data.sources.files import counted_reasons

    if built.skipped:
        say(f"skipped: {counted_reasons(built.skipped)}")
    for what, lines in (
        ("image", [f"{name}: {why}" for name, why in built.unread.items()]),
        ("row", list(built.bad_rows)),
    ):
        if lines:
            say("\n  ".join([f"{counted(len(lines), what)} could not be read, and cannot be found:", *lines[:5]]))
    return bool(built.unread or built.bad_rows)
