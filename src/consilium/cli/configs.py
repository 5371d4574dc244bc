"""The commands of ``consilium config``."""

from __future__ import annotations

import typer

from consilium.cli.options import ConfigPath, Overrides, load_experiment

config_app = typer.Typer(help="Look at configs.", no_args_is_help=True)


@config_app.command("show")
def config_show(config: ConfigPath, overrides: Overrides = None) -> None:
    """Print the resolved config."""
    from consilium.core.config import to_yaml

    typer.echo(to_yaml(load_experiment(config, overrides)), nl=False)


@config_app.command("schema")
def config_schema() -> None:
    """Print the JSON Schema that editors use."""
    import json

    from consilium.experiment import Experiment

    schema = Experiment.model_json_schema()
    # A file may leave what an experiment needs to the files that it extends.
    schema["anyOf"] = [{"required": schema.pop("required")}, {"required": ["extends"]}]
    schema["properties"]["extends"] = {
        "description": "Path of a YAML file that this one changes, or a list of them; the later wins, key by key.",
        "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}],
    }
    typer.echo(json.dumps(schema, indent=2))
