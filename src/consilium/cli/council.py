"""The commands of ``consilium council``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from consilium.cli.options import Device, by_name, metadata_of, on_disk

council_app = typer.Typer(help="A router and its experts as one bundle.", no_args_is_help=True)


@council_app.callback()
def council() -> None:
    """Build a council, and explain what it answers; `consilium predict` asks it as any bundle."""


@council_app.command("build")
def build(
    router: Annotated[str, typer.Option(help="The bundle of a classifier with one label a case.", show_default=False)],
    out: Annotated[
        Path, typer.Option(help="The new folder of the council.", parser=on_disk, metavar="PATH", show_default=False)
    ],
    expert: Annotated[
        list[str] | None,
        typer.Option(help="A bundle at a node of the router's tree; repeatable.", metavar="NODE=BUNDLE"),
    ] = None,
    default: Annotated[
        str | None, typer.Option(help="The bundle for what the router is not sure of; default: answer unknown.")
    ] = None,
    generalist: Annotated[str | None, typer.Option(help="A bundle that is always asked, too.")] = None,
    index: Annotated[
        list[str] | None,
        typer.Option(help="The index of the expert at a node, whose nearest cases it shows.", metavar="NODE=FOLDER"),
    ] = None,
    top_k: Annotated[int, typer.Option(min=1, help="How many experts are asked about a case.")] = 1,
) -> None:
    """Put a router and experts together; everything is copied into one folder."""
    from consilium.council import build_council

    build_council(
        router=router,
        experts=_by_node(expert or [], option="--expert", what="BUNDLE"),
        out=out,
        default=default,
        generalist=generalist,
        indexes=_by_node(index or [], option="--index", what="FOLDER"),
        top_k=top_k,
    )


@council_app.command("explain")
def explain(
    council: Annotated[str, typer.Argument(help="The folder of a council, here or in a bucket, or a zip.")],
    image: Annotated[str, typer.Argument(help="The image of the case.")],
    text: Annotated[str | None, typer.Option(help="The text of the case.")] = None,
    meta: Annotated[
        list[str] | None, typer.Option(help="Metadata of the case, as age=70; repeatable.", metavar="COLUMN=VALUE")
    ] = None,
    out: Annotated[
        Path,
        typer.Option(help="The folder of the page; an earlier page in it is replaced.", parser=on_disk, metavar="PATH"),
    ] = Path("explanation"),
    device: Device = "auto",
) -> None:
    """Say why a case is answered as it is, on a page: the route, who was asked, what the answers depend on."""
    from consilium.console import Console
    from consilium.data.batches.rows import Query
    from consilium.explaining import explain as run

    with Console() as console:
        run(council, Query(image, text, metadata_of(meta or []) or None), out=out, device=device, reporter=console)


def _by_node(given: list[str], *, option: str, what: str) -> dict[str, str]:
    """NODE=PLACE as a mapping; each node once."""
    form = f"NODE={what}, such as xray.chest=runs/chest/default-1"
    return by_name(given, option=option, form=form, once="a node has one expert")
