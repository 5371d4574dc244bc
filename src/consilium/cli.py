"""The command line: one short function per command, heavy imports inside."""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import typer

from consilium.core.errors import ConfigError, ConsiliumError
from consilium.core.surroundings import end_without_reader, say, signals_as_ctrl_c, use_utf8

INTERRUPTED = 130  # the exit code that a shell gives for Ctrl-C

app = typer.Typer(
    help="Train, judge and serve a council of medical image and text models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
data_app = typer.Typer(help="Prepare data and look at it.", no_args_is_help=True)
config_app = typer.Typer(help="Look at configs.", no_args_is_help=True)
app.add_typer(data_app, name="data")
app.add_typer(config_app, name="config")

ConfigPath = Annotated[str, typer.Argument(help="A YAML experiment, here or in a bucket.", show_default=False)]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="Dotted overrides: trainer.max_epochs=3", show_default=False)
]
BundlePath = Annotated[
    str, typer.Argument(help="The folder that a finished run left, here or in a bucket, or a zip.", show_default=False)
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")]


def _on_disk(path: str | Path) -> Path:
    if "://" in str(path):
        raise ConfigError(f"--out is {path}, an address; give a path of this machine and copy the result from there.")
    return Path(path)


def _refuse_unread(cases: int) -> None:
    """The exit code of a command that did its work, but for cases whose image could not be read."""
    if cases:
        typer.echo(f"not judged, since an image cannot be read: {cases} of the cases; the report names them.", err=True)
        raise typer.Exit(1)


def _experiment(path: str, overrides: list[str] | None) -> Any:
    from consilium.experiment import Experiment

    return Experiment.load(path, overrides=overrides or [])


@app.command()
def train(
    config: ConfigPath,
    overrides: Overrides = None,
    dry_run: Annotated[bool, typer.Option(help="Check everything up to step one, then stop.")] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="Use at most so many cases of each split.")] = None,
    resume: Annotated[bool, typer.Option(help="Go on with the latest unfinished run.")] = False,
) -> None:
    """Train, judge and report one experiment."""
    from consilium.console import Console
    from consilium.session import train as run

    experiment = _experiment(config, overrides)
    with Console() as console:
        result = run(experiment, limit=limit, dry_run=dry_run, resume=resume, reporter=console)
        if int(os.environ.get("RANK", "0")):  # one of several processes; the first one tells
            return
        if result is None:
            console.line("dry run: everything is ready; nothing was written but the store.")
            return
        console.line(f"finished: {result.folder}")
    _refuse_unread(result.unread)


@app.command()
def crossval(
    config: ConfigPath,
    overrides: Overrides = None,
    folds: Annotated[int | None, typer.Option(min=2, help="Divide the groups into so many folds.")] = None,
    leave_out: Annotated[
        str | None,
        typer.Option(help="Leave out each value of these columns in turn: source, or source,label, or metadata."),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Use at most so many cases of each split.")] = None,
) -> None:
    """Train and test over folds, or over each source left out; the same command goes on after a stop."""
    from consilium.console import Console
    from consilium.crossval import cross_validate

    experiment = _experiment(config, overrides)
    columns = [column.strip() for column in (leave_out or "").split(",") if column.strip()]
    with Console() as console:
        result = cross_validate(experiment, folds=folds, leave_out=columns, limit=limit, reporter=console)
        console.line(f"finished: {result.folder}")
    _refuse_unread(result.unread)


@app.command()
def compare(
    configs: Annotated[
        list[str],
        typer.Argument(
            help="Two YAML experiments or more, of which the first is compared with; and dotted overrides for all.",
            show_default=False,
        ),
    ],
    runs: Annotated[int, typer.Option(min=1, help="Train each with so many seeds, the same for all.")] = 5,
    limit: Annotated[int | None, typer.Option(min=1, help="Use at most so many cases of each split.")] = None,
) -> None:
    """Train experiments with the same seeds, and compare them on one test; the same command goes on after a stop."""
    from consilium.comparison import compare as run
    from consilium.comparison import load_experiments
    from consilium.console import Console

    with Console() as console:
        result = run(load_experiments(configs), runs=runs, limit=limit, reporter=console)
        console.line(f"finished: {result.folder}")
    _refuse_unread(result.unread)


@app.command()
def evaluate(
    bundle: BundlePath,
    data: Annotated[
        str | None,
        typer.Option(help="Other data: a folder, csv, parquet or jsonl, or a YAML file with a data section."),
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="train, val, test or all; default: test, or all of a folder or table.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Where the report goes.", parser=_on_disk, metavar="PATH")] = None,
    on_bad_row: Annotated[
        Literal["stop", "quarantine"] | None,
        typer.Option(help="Stop at rows and images that cannot be used, or leave them out; default: as in training."),
    ] = None,
    device: Device = "auto",
) -> None:
    """Judge a bundle and write a report; cases whose image cannot be read are left out, and the exit code is 1."""
    from consilium.console import Console
    from consilium.judge import evaluate as run

    with Console() as console:
        done = run(bundle, data=data, split=split, out=out, on_bad_row=on_bad_row, device=device, reporter=console)
    _refuse_unread(done.unread)


@app.command()
def predict(
    bundle: BundlePath,
    paths: Annotated[list[str], typer.Argument(help="Image files, folders, globs or a store.", show_default=False)],
    out: Annotated[
        Path | None,
        typer.Option(
            help="A .jsonl or .csv file, of embeddings also .npz or .parquet; default: print JSON lines.",
            parser=_on_disk,
            metavar="PATH",
        ),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1)] = 32,
    device: Device = "auto",
) -> None:
    """Predict images; an unreadable one gets an error entry and the exit code 1."""
    from consilium.console import Console
    from consilium.data.sources.files import counted_reasons
    from consilium.predictions import predict_files

    with Console() as console:
        summary = predict_files(bundle, paths, out=out, batch_size=batch_size, device=device, reporter=console)
    if summary.skipped:  # not where the answers may go
        typer.echo(f"skipped: {counted_reasons(summary.skipped)}", err=True)
    if summary.errors:
        say(f"{summary.errors} of {summary.cases} images could not be read; see their `error`.")
        raise typer.Exit(1)


@app.command()
def demo(
    out: Annotated[
        Path, typer.Option(help="Where the demo's store and run go.", parser=_on_disk, metavar="PATH")
    ] = Path("runs"),
) -> None:
    """Train, judge and use the modality router on the embedded demo data."""
    from consilium.console import Console
    from consilium.demo.run import run_demo

    with Console() as console:
        run_demo(out, reporter=console)


@data_app.command("prepare")
def data_prepare(config: ConfigPath, overrides: Overrides = None) -> None:
    """Read, check and split the data of an experiment into its store."""
    from consilium.console import Console
    from consilium.core.reporter import format_table
    from consilium.data.guards.folders import folder_warnings
    from consilium.data.store.prepare import prepare

    experiment = _experiment(config, overrides)
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
    out: Annotated[Path, typer.Option(help="Folder for pictures and JSON.", parser=_on_disk, metavar="PATH")] = Path(
        "inspection"
    ),
) -> None:
    """Count, draw and check what is in the data: sizes, duplicates, leaks, labels, shortcuts."""
    from consilium.console import Console
    from consilium.data.look.inspect import inspect
    from consilium.data.store.prepare import prepare

    experiment = _experiment(config, overrides)
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

    experiment = _experiment(config, overrides)
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


@data_app.command("export")
def data_export(
    config: ConfigPath,
    out: Annotated[str, typer.Option(help="The file: .jsonl, .parquet or (RET-CLIP) .tsv.", show_default=False)],
    overrides: Overrides = None,
    split: Annotated[list[str] | None, typer.Option(help="Only this split; may be given again.")] = None,
    format: Annotated[
        str | None, typer.Option(help="jsonl, parquet or ret_clip_tsv; default: by the file's ending.")
    ] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace what an earlier export wrote.")] = False,
) -> None:
    """Write the prepared cases as one file that other programs read."""
    from consilium.console import Console
    from consilium.data.case import SPLITS
    from consilium.data.cases.filters import filtered
    from consilium.data.cases.folds import resplit
    from consilium.data.store.export import export, form_of
    from consilium.data.store.prepare import prepare

    experiment = _experiment(config, overrides)
    form = form_of(out, format)
    with Console() as console:
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
            progress=lambda done, total: console.progress("export", done, total),
        )
        for note in [*chosen.notes, *done.notes]:
            console.line(f"note: {note}")
        console.line(f"{done.cases} cases, to be read with kind: {form}: {', '.join(map(str, done.paths))}")


@config_app.command("show")
def config_show(config: ConfigPath, overrides: Overrides = None) -> None:
    """Print the resolved config."""
    from consilium.core.config import to_yaml

    typer.echo(to_yaml(_experiment(config, overrides)), nl=False)


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


def _version(show: bool) -> None:
    if show:
        from importlib.metadata import version

        typer.echo(version("consilium"))
        raise typer.Exit


@app.callback()
def _options(
    _version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
    _traceback: Annotated[bool, typer.Option("--traceback", help="Show the traceback of an error.")] = False,
) -> None:
    """Options of every command."""


def main() -> None:
    """Run a command; errors of ours become a message and their exit code."""
    use_utf8()
    # Before torch is loaded. Threads that spin while they wait take the cores from the processes that decode, and
    # beside a busy neighbour a batch takes many times as long.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    show = "--traceback" in sys.argv
    arguments = [argument for argument in sys.argv[1:] if argument != "--traceback"]
    with signals_as_ctrl_c():
        try:
            try:
                app(arguments)
            finally:
                if sys.stdout is not None:
                    sys.stdout.flush()
        except ConsiliumError as error:
            _end(f"error: {error}", code=error.exit_code, show=show)
        except BrokenPipeError:
            end_without_reader()
        except OSError as error:
            text = f"error: {error}. Look at this path, its permissions and its disk's free space."
            _end(text, code=2, show=show)
        except SystemExit as end:
            if isinstance(end.__context__, BrokenPipeError):  # Typer makes it the code of an error
                end_without_reader()
            if end.code == INTERRUPTED:  # Typer turns Ctrl-C into this without a word
                _end(_interruption(end), code=INTERRUPTED, show=show)
            raise


def _interruption(end: BaseException) -> str:
    """What the KeyboardInterrupt behind an exit says: of a training where its checkpoint is."""
    found: BaseException | None = end
    while found is not None and not isinstance(found, KeyboardInterrupt):
        found = found.__cause__ or found.__context__
    return f"error: {found}" if isinstance(found, ConsiliumError) else "interrupted."


def _end(text: str, *, code: int, show: bool = False) -> NoReturn:
    if show:
        say(traceback.format_exc())
    say(text)
    sys.exit(code)
