"""The commands of ``consilium council``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from consilium.cli.options import on_disk
from consilium.core.errors import ConfigError

council_app = typer.Typer(help="A router and its experts as one bundle.", no_args_is_help=True)


@council_app.callback()
def council() -> None:
    """Build a council; `consilium predict` asks it as any bundle."""


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


def _by_node(given: list[str], *, option: str, what: str) -> dict[str, str]:
    """NODE=PLACE as a mapping; each node once."""
    found: dict[str, str] = {}
    for item in given:
        node, _, place = item.partition("=")
        if not (node and place):
            raise ConfigError(f"{option} is '{item}'; expected NODE={what}, such as xray.chest=runs/chest/default-1.")
        if node in found:
            raise ConfigError(f"{option} gives '{node}' twice: {found[node]} and {place}; a node has one expert.")
        found[node] = place
    return found
