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


def by_name(given: list[str], *, option: str, form: str, once: str, empty: bool = False) -> dict[str, str]:
    """NAME=VALUE as a mapping, each name once; ``form`` says what is expected, ``once`` why a name comes once."""
    found: dict[str, str] = {}
    for item in given:
        name, mark, value = item.partition("=")
        if not (name and mark and (value or empty)):
            raise ConfigError(f"{option} is '{item}'; expected {form}.")
        if name in found:
            raise ConfigError(f"{option} gives '{name}' twice: {found[name]} and {value}; {once}.")
        found[name] = value
    return found


def metadata_of(given: list[str]) -> dict[str, str]:
    """COLUMN=VALUE as a mapping; a value may be empty."""
    return by_name(given, option="--meta", form="COLUMN=VALUE, such as age=70", once="give it once", empty=True)


def load_experiment(path: str, overrides: list[str] | None) -> Any:
    """The experiment of a YAML file, with overrides."""
    from consilium.experiment import Experiment

    return Experiment.load(path, overrides=overrides or [])
