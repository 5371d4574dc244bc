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
) -> None:
    """Write a bundle in the form of another library, loaded there and compared before it is done."""
    from consilium.console import Console
    from consilium.export.run import export as run

    with Console() as console:
        run(bundle, to=to, out=out, reporter=console)
