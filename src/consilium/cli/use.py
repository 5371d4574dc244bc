"""The commands that use a bundle: evaluate, calibrate, ensemble, forgetting, predict."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from consilium.cli.options import BundlePath, Device, JudgedPath, metadata_of, on_disk, refuse_unread
from consilium.core.errors import ConfigError
from consilium.core.surroundings import say


def evaluate(
    bundle: JudgedPath,
    data: Annotated[
        str | None,
        typer.Option(help="Other data: a folder, csv, parquet or jsonl, or a YAML file with a data section."),
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="train, val, test or all; default: test, or all of a folder or table.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Where the report goes.", parser=on_disk, metavar="PATH")] = None,
    on_bad_row: Annotated[
        Literal["stop", "quarantine"] | None,
        typer.Option(help="Stop at rows and images that cannot be used, or leave them out; default: as in training."),
    ] = None,
    embeddings: Annotated[
        Path | None,
        typer.Option(
            help="Also write the embeddings of the judged cases: a .parquet, .pt or .npz file.",
            parser=on_disk,
            metavar="PATH",
        ),
    ] = None,
    device: Device = "auto",
) -> None:
    """Judge a bundle and write a report; cases whose image cannot be read are left out, and the exit code is 1."""
    from consilium.console import Console
    from consilium.evaluating import evaluate as run

    with Console() as console:
        done = run(
            bundle,
            data=data,
            split=split,
            out=out,
            on_bad_row=on_bad_row,
            embeddings=embeddings,
            device=device,
            reporter=console,
        )
    refuse_unread(done.unread)


def calibrate(
    bundle: BundlePath,
    out: Annotated[Path, typer.Option(help="A new folder for the calibrated bundle.", parser=on_disk, metavar="PATH")],
    data: Annotated[
        str | None,
        typer.Option(help="Labelled cases of the site: as `consilium evaluate` takes data."),
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="val, test or all; default: test, or all of a folder or table.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="What the calibration is called; default: as the data is.")] = None,
    wanted_accuracy: Annotated[
        float | None,
        typer.Option(min=0.01, max=0.999, help="Of answers; below it, unknown. Default: that of the bundle."),
    ] = None,
    restore: Annotated[
        str | None,
        typer.Option(help="In the place of --data: go back to this calibration of the bundle (training: the first)."),
    ] = None,
    on_bad_row: Annotated[
        Literal["stop", "quarantine"] | None,
        typer.Option(help="Stop at rows and images that cannot be used, or leave them out; default: as in training."),
    ] = None,
    device: Device = "auto",
) -> None:
    """Choose temperatures and thresholds anew on a site's own labelled cases, into a new bundle with a report."""
    from consilium import calibrating
    from consilium.console import Console

    if (data is None) == (restore is None):
        raise ConfigError(
            "calibrate needs the labelled cases of a site (--data) or a calibration to go back to (--restore NAME); "
            "give one of them."
        )
    if restore is not None:
        typer.echo(f"bundle: {calibrating.restore(bundle, name=restore, out=out)}")
        return
    with Console() as console:
        done = calibrating.calibrate(
            bundle,
            data=str(data),
            out=out,
            name=name,
            split=split,
            wanted_accuracy=wanted_accuracy,
            on_bad_row=on_bad_row,
            device=device,
            reporter=console,
        )
    refuse_unread(done.unread)


def ensemble(
    runs: Annotated[
        list[str], typer.Argument(help="The folders of two trained bundles or more: seeds, folds.", show_default=False)
    ],
    out: Annotated[Path, typer.Option(help="A new folder for the ensemble.", parser=on_disk, metavar="PATH")],
    name: Annotated[str | None, typer.Option(help="What the ensemble is called; default: NAME-ensemble.")] = None,
) -> None:
    """Make one bundle of several with the same labels: the mean of their probabilities, and how far they disagree."""
    from consilium.console import Console
    from consilium.ensembling import ensemble as run

    with Console() as console:
        run(runs, out=out, name=name, reporter=console)


def forgetting(
    bundle: BundlePath,
    data: Annotated[
        list[str],
        typer.Option(help="Other labelled data, as evaluate takes it: a YAML file with data and probes; repeatable."),
    ],
    alpha: Annotated[
        list[float] | None,
        typer.Option(help="A share of what was learned, between both ends; repeatable; default: 0.25, 0.5 and 0.75."),
    ] = None,
    start: Annotated[
        str | None,
        typer.Option(help="A bundle or weights file that the training began with; default: what its config names."),
    ] = None,
    split: Annotated[str | None, typer.Option(help="train, val, test or all; default: test.")] = None,
    out: Annotated[Path | None, typer.Option(help="Where the report goes.", parser=on_disk, metavar="PATH")] = None,
    device: Device = "auto",
) -> None:
    """Judge what a training forgot: its start against its end on other data, and the weights between them."""
    from consilium.console import Console
    from consilium.session.forgetting import ALPHAS
    from consilium.session.forgetting import forgetting as run

    alphas = alpha or ALPHAS
    with Console() as console:
        run(bundle, data=data, alphas=alphas, start=start, split=split, out=out, device=device, reporter=console)


def predict(
    bundle: BundlePath,
    paths: Annotated[
        list[str] | None,
        typer.Argument(
            help="Image files, folders, globs, a table of images, texts and metadata, or a store.", show_default=False
        ),
    ] = None,
    text: Annotated[
        str | None, typer.Option(help="Ask about one case with this text, and an image if one is given.")
    ] = None,
    meta: Annotated[
        list[str] | None, typer.Option(help="Metadata of that one case, as age=70; repeatable.", metavar="COLUMN=VALUE")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="A .jsonl or .csv file, of embeddings also .npz, .parquet or .pt; default: print JSON lines.",
            parser=on_disk,
            metavar="PATH",
        ),
    ] = None,
    vectors: Annotated[
        str | None,
        typer.Option(help="Vectors in the place of texts, by the ids of rows: a .npz, .pt, .parquet or .csv file."),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1)] = 32,
    resident: Annotated[
        int | None, typer.Option(min=1, help="Of a council: how many experts stay in memory; default: all.")
    ] = None,
    device: Device = "auto",
) -> None:
    """Predict images, or cases with texts and metadata; an unreadable image gets an error entry and the exit code 1."""
    from consilium.console import Console
    from consilium.data.sources.files import counted_reasons
    from consilium.predictions import Asked, predict_files

    if not (paths or text or meta):
        raise ConfigError(
            "there is nothing to predict; give images, a table, a store, or one case by --text or --meta."
        )
    asked = Asked(text, metadata_of(meta or [])) if text or meta else None
    with Console(beside_answers=out is None) as console:
        summary = predict_files(
            bundle,
            paths or [],
            asked=asked,
            vectors=vectors,
            out=out,
            batch_size=batch_size,
            device=device,
            resident=resident,
            reporter=console,
        )
    if summary.skipped:  # not where the answers may go
        typer.echo(f"skipped: {counted_reasons(summary.skipped)}", err=True)
    if summary.errors:
        say(f"{summary.errors} of {summary.cases} cases have no answer; see their `error`.")
        raise typer.Exit(1)
