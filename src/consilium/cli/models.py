"""The commands of ``consilium models``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from consilium.cli.options import on_disk

models_app = typer.Typer(help="Pretrained models: what recipes use, and how they come into a closed network.")


@models_app.callback(invoke_without_command=True)
def models(context: typer.Context) -> None:
    """List the pretrained models of recipes and short names; fetch them into a folder that can be carried."""
    if context.invoked_subcommand is not None:
        return
    from consilium.core.reporter import format_table
    from consilium.models.catalogue import CATALOGUE
    from consilium.models.hub import carried, models_folder

    rows = [
        {
            "name": one.name,
            "is": one.kind,
            "MB": one.megabytes,
            "licence": one.license,
            "recipes": ", ".join(f"{recipe}.yaml" for recipe in one.recipes),
            **({"here": "yes" if carried(one.repository) else "no"} if models_folder() is not None else {}),
        }
        for one in CATALOGUE
    ]
    typer.echo(format_table(rows))
    typer.echo(
        "\nconsilium models fetch NAME --to FOLDER fetches one; consilium --from FOLDER train ... takes it there."
    )


@models_app.command("fetch")
def fetch(
    names: Annotated[
        list[str],
        typer.Argument(
            help="Names as in a config: resnet50, sapbert, ORG/NAME, open_clip's NAME/TAG.", show_default=False
        ),
    ],
    to: Annotated[Path, typer.Option(help="The folder to carry.", parser=on_disk, metavar="PATH", show_default=False)],
) -> None:
    """Fetch models with all that it takes to use them; one that is there already stays."""
    from consilium.models.carrying import fetch_model

    for name in names:
        typer.echo(str(fetch_model(name, to=to.expanduser())))


@models_app.command("convert")
def convert(
    file: Annotated[Path, typer.Argument(help="A checkpoint of another program.", show_default=False)],
    out: Annotated[Path, typer.Option(help="The folder to write.", parser=on_disk, metavar="PATH", show_default=False)],
    tokenizer: Annotated[
        str | None, typer.Option(help="A folder or a name on the hub with the tokenizer, or a vocab.txt; it is copied.")
    ] = None,
    ignore: Annotated[
        list[str] | None,
        typer.Option(help="A class in the file whose objects are left out; may be given again.", metavar="NAME"),
    ] = None,
) -> None:
    """Take the weights of Chinese-CLIP, RET-CLIP, FLAIR or others out of a checkpoint; no code in it ever runs."""
    from consilium.core.reporter import format_table
    from consilium.models.checkpoints.convert import convert as convert_file

    done = convert_file(file.expanduser(), out=out.expanduser(), tokenizer=tokenizer, ignored=ignore or ())
    typer.echo(f"{file.name}: {done.form}")
    typer.echo(format_table(done.rows))
    for note in done.notes:
        typer.echo(f"note: {note}")
    typer.echo(str(done.folder))
