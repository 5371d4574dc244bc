"""What commands share: their arguments, and how these are read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from consilium.core.errors import ConfigError

ConfigPath = Annotated[str, typer.Argument(help="A YAML experiment, here or in a bucket.", show_default=False)]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="Dotted overrides: trainer.max_epochs=3", show_default=False)
]
BundlePath = Annotated[
    str, typer.Argument(help="The folder that a finished run left, here or in a bucket, or a zip.", show_default=False)
]
JudgedPath = Annotated[
    str,
    typer.Argument(
        help="The folder that a finished run left, here or in a bucket, or a zip; or a YAML experiment with zero_shot: "
        "true, whose pretrained model is judged as it came.",
        show_default=False,
    ),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")]


def on_disk(path: str | Path) -> Path:
    """A path of this machine; an address is a ConfigError."""
    if "://" in str(path):
        raise ConfigError(f"--out is {path}, an address; give a path of this machine and copy the result from there.")
    return Path(path)


def refuse_unread(cases: int) -> None:
    """The exit code of a command that did its work, but for cases whose image could not be read."""
    if cases:
        typer.echo(f"not judged, since an image cannot be read: {cases} of the cases; the report names them.", err=True)
        raise typer.Exit(1)


def load_experiment(path: str, overrides: list[str] | None) -> Any:
    """The experiment of a YAML file, with overrides."""
    from consilium.experiment import Experiment

    return Experiment.load(path, overrides=overrides or [])
