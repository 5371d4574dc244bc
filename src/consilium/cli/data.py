"""The commands of ``consilium data``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from consilium.cli.options import ConfigPath, Overrides, load_experiment, on_disk
from consilium.core.errors import ConfigError

if TYPE_CHECKING:
    from consilium.console import Console
    from consilium.data.store.export import Exported

data_app = typer.Typer(help="Prepare data and look at it.", no_args_is_help=True)


@data_app.command("prepare")
def data_prepare(config: ConfigPath, overrides: Overrides = None) -> None:
    """Read, check and split the data of an experiment into its store."""
    from consilium.console import Console
    from consilium.core.reporter import format_table
    from consilium.data.guards.folders import folder_warnings
    from consilium.data.store.prepare import prepare

    experiment = load_experiment(config, overrides)
    with Console() as console:
        prepared = prepare(experiment.data, reporter=console)
        console.line(format_table(prepared.summary))
        for line in prepared.notes():
            console.line(line)
        found = folder_warnings(prepared.store, prepared.store.table, experiment.data, reporter=console)
        for what, messages in found.items():
            for message in messages:
                console.line(f"{what}: {message}")
        console.line(f"{'prepared' if prepared.created else 'unchanged'}: {prepared.store.path}")


@data_app.command("inspect")
def data_inspect(
    config: ConfigPath,
    overrides: Overrides = None,
    out: Annotated[Path, typer.Option(help="Folder for pictures and JSON.", parser=on_disk, metavar="PATH")] = Path(
        "inspection"
    ),
) -> None:
    """Count, draw and check what is in the data: sizes, duplicates, leaks, labels, shortcuts."""
    from consilium.console import Console
    from consilium.data.look.inspect import inspect
    from consilium.data.store.prepare import prepare

    experiment = load_experiment(config, overrides)
    with Console() as console:
        prepared = prepare(experiment.data, reporter=console)
        found = inspect(
            prepared.store,
            config=experiment.data,
            needs=experiment.task.needs,
            out=out,
            reporter=console,
        )
        for text in [*found.lines(), *prepared.remarks]:
            console.line(text)


@data_app.command("stats")
def data_stats(
    config: ConfigPath,
    overrides: Overrides = None,
    per_node: Annotated[
        bool, typer.Option("--per-node", help="For every inner node of the label tree, as task.tree.statistics.")
    ] = False,
) -> None:
    """The true mean and deviation of all pixels that a training uses, as data.image.statistics: data takes them."""
    from consilium.console import Console
    from consilium.data.cases.load import used_cases
    from consilium.data.look.pixel_statistics import node_lines, node_statistics, pixel_statistics
    from consilium.data.store.prepare import prepare

    experiment = load_experiment(config, overrides)
    task, window = experiment.task, experiment.data.image.window
    with Console() as console:
        store = prepare(experiment.data, reporter=console).store
        used = used_cases(store.table, config=experiment.data, needs=task.needs)

        def progress(done: int, total: int | None) -> None:
            console.progress("pixels", done, total)

        if per_node:
            lines = node_lines(node_statistics(store, cases=used.table, window=window, progress=progress))
        else:
            lines = pixel_statistics(store, cases=used.table, window=window, progress=progress).lines()
        for line in [*(f"note: {note}" for note in used.notes), *lines]:
            console.line(line)


@data_app.command("embed")
def data_embed(config: ConfigPath, overrides: Overrides = None) -> None:
    """Compute what frozen towers make of texts and images, ahead of the training that reads it."""
    from consilium.console import Console
    from consilium.session.embed import embed

    experiment = load_experiment(config, overrides)
    with Console() as console:
        for filled in embed(experiment, reporter=console):
            console.line(str(filled))


@data_app.command("export")
def data_export(
    config: Annotated[
        str, typer.Argument(help="A YAML experiment; or a TSV of RET-CLIP, for an LMDB of it.", show_default=False)
    ],
    out: Annotated[
        str, typer.Option(help="The file: .jsonl, .parquet, or of RET-CLIP .tsv or .lmdb.", show_default=False)
    ],
    overrides: Overrides = None,
    split: Annotated[list[str] | None, typer.Option(help="Only this split; may be given again.")] = None,
    format: Annotated[
        str | None, typer.Option(help="jsonl, parquet, ret_clip_tsv or ret_clip_lmdb; default: by the ending.")
    ] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace what an earlier export wrote.")] = False,
) -> None:
    """Write the prepared cases as one file that other programs read."""
    from consilium.console import Console
    from consilium.data.case import SPLITS
    from consilium.data.cases.filters import filtered
    from consilium.data.cases.folds import resplit
    from consilium.data.store.export import export, form_of
    from consilium.data.store.export_from_tsv import export_tsv
    from consilium.data.store.prepare import prepare

    form = form_of(out, format)
    with Console() as console:

        def progress(done: int, total: int | None) -> None:
            console.progress("export", done, total)

        if config.lower().endswith(".tsv"):
            if form != "ret_clip_lmdb" or overrides or split:
                raise ConfigError("a TSV is written as it stands, as .lmdb alone; for all else give a YAML experiment.")
            done = export_tsv(config, Path(out), overwrite=overwrite, progress=progress)
            _told(done, form, console)
            return
        experiment = load_experiment(config, overrides)
        prepared = prepare(experiment.data, reporter=console)
        data = experiment.data
        chosen = filtered(resplit(prepared.store.table, config=data.split), config=data.filters, seed=data.split.seed)
        done = export(
            prepared.store,
            Path(out),
            form=form,
            cases=chosen.table,
            splits=split or SPLITS,
            overwrite=overwrite,
            progress=progress,
        )
        done.notes[:0] = chosen.notes
        _told(done, form, console)


def _told(done: Exported, form: str, console: Console) -> None:
    """Say what was exported."""
    for note in done.notes:
        console.line(f"note: {note}")
    console.line(f"{done.cases} cases, to be read with kind: {form}: {', '.join(map(str, done.paths))}")
