"""The commands of ``consilium config``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from consilium.cli.options import ConfigPath, Overrides, load_experiment, on_disk
from consilium.core.errors import ConfigError
from consilium.core.surroundings import say

config_app = typer.Typer(help="Look at configs, and convert those of other scripts.", no_args_is_help=True)


@config_app.command("show")
def config_show(config: ConfigPath, overrides: Overrides = None) -> None:
    """Print the resolved config."""
    from consilium.core.config import to_yaml

    typer.echo(to_yaml(load_experiment(config, overrides)), nl=False)


@config_app.command("convert")
def config_convert(
    given: Annotated[
        list[str],
        typer.Argument(
            help="A YAML or JSON file of another script; or -- and its call: -- old_script.py --flag=value ...",
            metavar="FILE",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="The new file; without it the config is printed.", parser=on_disk, metavar="PATH"),
    ] = None,
) -> None:
    """Turn a config or call of another script into an experiment, and list what became of each parameter."""
    from consilium.console import Console
    from consilium.converting import convert, report, yaml_of
    from consilium.core.files import write_text

    if out is not None and out.exists():
        raise ConfigError(f"{out} exists; give another name, or remove it first.")
    with Console() as console:
        found = convert(given, reporter=console)
    text = yaml_of(found)
    if out is None:
        typer.echo(text, nl=False)
        say(report(found, config="ours.yaml"))
    else:
        write_text(out, text)
        typer.echo(f"{out} is written.\n{report(found, config=str(out))}")


@config_app.command("schema")
def config_schema() -> None:
    """Print the JSON Schema that editors use."""
    import json

    from consilium.experiment import Experiment

    schema = Experiment.model_json_schema()
    # A file may leave what an experiment needs to the files that it extends.
    schema["anyOf"] = [{"required": schema.pop("required")}, {"required": ["extends"]}]
    data = schema["$defs"]["DataConfig"]
    data["anyOf"] = [{"required": data.pop("required")}, {"required": ["dataset"]}]  # which stands for a source
    schema["properties"]["extends"] = {
        "description": "Path of a YAML file that this one changes, or a list of them; the later wins, key by key.",
        "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}],
    }
    typer.echo(json.dumps(schema, indent=2))
