"""The commands that train: train, crossval, compare, demo."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from consilium.cli.options import ConfigPath, Overrides, load_experiment, on_disk, refuse_unread


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

    experiment = load_experiment(config, overrides)
    with Console() as console:
        result = run(experiment, limit=limit, dry_run=dry_run, resume=resume, reporter=console)
        if int(os.environ.get("RANK", "0")):  # one of several processes; the first one tells
            return
        if result is None:
            console.line("dry run: everything is ready; nothing was written but the store.")
            return
        console.line(f"finished: {result.folder}")
    refuse_unread(result.unread)


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

    experiment = load_experiment(config, overrides)
    columns = [column.strip() for column in (leave_out or "").split(",") if column.strip()]
    with Console() as console:
        result = cross_validate(experiment, folds=folds, leave_out=columns, limit=limit, reporter=console)
        console.line(f"finished: {result.folder}")
    refuse_unread(result.unread)


def compare(
    configs: Annotated[
        list[str],
        typer.Argument(
            help="Two YAML experiments or more, of which the first is compared with (with --vary one is enough); and "
            "dotted overrides for all.",
            show_default=False,
        ),
    ],
    runs: Annotated[int, typer.Option(min=1, help="Train each with so many seeds, the same for all.")] = 5,
    vary: Annotated[
        str | None,
        typer.Option(help="Take each config with each of these values of a key.", metavar="KEY=VALUE,VALUE"),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Use at most so many cases of each split.")] = None,
) -> None:
    """Train experiments with the same seeds, and compare them on one test; the same command goes on after a stop."""
    from consilium.comparison import compare as run
    from consilium.comparison import load_experiments
    from consilium.console import Console

    with Console() as console:
        result = run(load_experiments(configs, vary=vary), runs=runs, limit=limit, reporter=console)
        console.line(f"finished: {result.folder}")
    refuse_unread(result.unread)


def demo(
    out: Annotated[
        Path, typer.Option(help="Where the demo's stores, runs and council go.", parser=on_disk, metavar="PATH")
    ] = Path("runs"),
) -> None:
    """Train a router and two experts on the embedded demo data, ask the council of them, and judge it."""
    from consilium.console import Console
    from consilium.demo.run import run_demo

    with Console() as console:
        run_demo(out, reporter=console)
