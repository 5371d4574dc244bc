"""The command that takes a bundle to other libraries: export."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from consilium.cli.options import BundlePath, on_disk


def export(
    bundle: BundlePath,
    to: Annotated[Literal["hf", "open_clip", "timm", "onnx", "safetensors"], typer.Option(help="The form to write.")],
    out: Annotated[Path, typer.Option(help="A new or empty folder.", parser=on_disk, metavar="PATH")],
    image_tower: Annotated[bool, typer.Option("--image-tower", help="hf only: the image tower alone.")] = False,
    push: Annotated[str | None, typer.Option(help="OWNER/NAME on the hub, private.")] = None,
    public: Annotated[bool, typer.Option("--public", help="Let everybody read what is pushed.")] = False,
    names: Annotated[
        Path | None, typer.Option(help="Names of patients, one a line, to look for in what leaves.", metavar="FILE")
    ] = None,
    allow_identifying: Annotated[
        bool, typer.Option("--allow-identifying", help="Push what may identify a patient, too.")
    ] = False,
) -> None:
    """Write a bundle in the form of another library, loaded there and compared before it is done."""
    from consilium.console import Console
    from consilium.data.guards.identifying import read_names
    from consilium.export.run import Push
    from consilium.export.run import export as run

    push_to = None if push is None else Push(push, public=public, allow_identifying=allow_identifying)
    known = [] if names is None else read_names(names)
    with Console() as console:
        run(bundle, to=to, out=out, image_tower=image_tower, push_to=push_to, names=known, reporter=console)
