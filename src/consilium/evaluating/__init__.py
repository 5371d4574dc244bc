"""``evaluate``: a trained bundle, a council, or by name a pretrained model as it came."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from consilium.console import reporting
from consilium.core.evaluation import Evaluation
from consilium.core.reporter import Reporter
from consilium.data.cases.given import YAML
from consilium.evaluating.bundles import evaluate_bundle
from consilium.evaluating.councils import evaluate_council
from consilium.manifest import CouncilManifest, local_bundle, read_header


def evaluate(
    bundle: str | Path,
    *,
    data: str | Path | None = None,
    split: str | None = None,
    out: str | Path | None = None,
    on_bad_row: Literal["stop", "quarantine"] | None = None,
    embeddings: str | Path | None = None,
    device: str = "auto",
    quiet: bool = False,
    reporter: Reporter | None = None,
) -> Evaluation:
    """Judge a bundle on its own data, or on ``data``: a YAML file with a data section, a folder, csv, parquet or jsonl.

    ``bundle`` may also be the YAML file of an experiment that says ``zero_shot: true``: then its pretrained model is
    judged as it came. A ``probes`` section beside the data section is asked, too. A council is judged end to end: the
    label of a case is its route (see ``columns.answer`` and ``route`` of a source).

    ``split`` is train, val, test or all; None means test, or all where ``data`` is not a YAML file. Writes
    report.html, metrics.json and tables into ``out`` (default: a folder ``evaluation-...`` in the bundle).
    ``on_bad_row`` takes the place of that of the data config. ``embeddings`` is a .parquet, .pt or .npz file that the
    embeddings of the judged cases go to, of an expert that answers with some. A case whose image cannot be read any
    more is left out; ``unread`` of the result counts these. How far it is shows on the screen, unless ``quiet``, or
    goes to ``reporter``.
    """
    target, vectors = (None if place is None else Path(place) for place in (out, embeddings))
    path = None if data is None else str(data)
    with reporting(reporter, quiet=quiet) as shown:
        if not str(bundle).endswith(YAML):
            folder = local_bundle(bundle)
            judge = evaluate_council if isinstance(read_header(folder), CouncilManifest) else evaluate_bundle
            return judge(
                folder,
                beside=folder if folder == Path(bundle).expanduser() else Path(),  # a cache may be deleted
                data=path,
                split=split,
                out=target,
                on_bad_row=on_bad_row,
                embeddings=vectors,
                device=device,
                reporter=shown,
            )
        from consilium.experiment import Experiment
        from consilium.session.untouched import evaluate_untouched  # which loads what trains

        return evaluate_untouched(
            Experiment.load(bundle),
            data=path,
            split=split,
            out=target,
            on_bad_row=on_bad_row,
            embeddings=vectors,
            device=device,
            reporter=shown,
        )


__all__ = ["evaluate"]
