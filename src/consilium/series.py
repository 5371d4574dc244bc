"""Several trainings by one command: each is a run of its own, and those that are finished are not trained again."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from consilium.core.config import build, merge
from consilium.core.errors import ConfigError, ConsiliumError
from consilium.core.evaluation import Outputs
from consilium.core.reporter import Reporter
from consilium.data.cases.cases import Studied
from consilium.data.cases.load import studied_cases
from consilium.data.config import GuardConfig
from consilium.data.store.store import Store
from consilium.evaluation.report.page import METRICS, read_unread, read_warnings
from consilium.experiment import Experiment
from consilium.predictor import Predictor, case_outputs
from consilium.session import train
from consilium.tasks.family import studying
from consilium.training.runs import finished_run

GUARDS_OFF = {name: False for name, field in GuardConfig.model_fields.items() if field.annotation is bool}


@dataclass(frozen=True)
class Tested:
    """What the bundle of one training says of its test cases.

    ``studied`` are all its cases, judged by what the bundle knows; ``judged`` is its metrics.json, ``warnings`` are
    those of its report, and ``unread`` the cases that were not judged, since an image cannot be read.
    """

    folder: Path
    studied: Studied[Any]
    outputs: Outputs
    judged: Mapping[str, Any]
    warnings: list[str]
    unread: frozenset[str]


@dataclass(frozen=True)
class Part:
    """One training of a series: its name in tables, and its experiment, whose name is that of the series."""

    name: str
    experiment: Experiment
    command: str

    @property
    def folder(self) -> Path:
        """Where the runs of the series are."""
        return Path(self.experiment.output.root) / self.experiment.name

    @contextlib.contextmanager
    def named(self) -> Iterator[None]:
        """Let an error say which training it stopped."""
        try:
            yield
        except ConsiliumError as error:
            kept = f"What is finished is kept in {self.folder}; the same {self.command} command goes on from there."
            error.args = (f"{self.name}: {error} {kept}",)
            raise

    def finished(self, fingerprints: Collection[str], *, limit: int | None) -> Path | None:
        """The run, where it is finished already."""
        own = self.experiment
        return finished_run(own.output, name=own.name, config=own, limit=limit, data_fingerprints=fingerprints)

    def try_out(self, *, limit: int | None) -> None:
        """One step, without what reads all images: the training itself does that."""
        change: dict[str, Any] = {"data": {"guards": GUARDS_OFF}, "output": {"if_exists": "new"}}
        if self.experiment.data.image.statistics == "data":
            change["data"]["image"] = {"statistics": "given"}
        train(changed(self.experiment, change), limit=limit, dry_run=True, quiet=True)

    def test(self, store: Store, *, limit: int | None, reporter: Reporter) -> Tested:
        """Train, unless that is done, and let the bundle answer the test cases."""
        folder = self._trained(store.fingerprints, limit=limit, reporter=reporter)
        own = self.experiment
        predictor = Predictor.load(folder, device=own.trainer.device, batch_size=own.data.loader.eval_batch_size or 32)
        studied = studied_cases(
            store.table,
            config=own.data,
            needs=own.task.needs,
            study=studying(own.task, learns=False),
            known=predictor.knowledge,
            limit=limit,
        )
        outputs = case_outputs(predictor, studied, "test")
        return Tested(
            folder=folder,
            studied=studied,
            outputs=outputs,
            judged=json.loads((folder / METRICS).read_text(encoding="utf-8")),
            warnings=read_warnings(folder),
            unread=frozenset({*outputs.unread, *read_unread(folder)}),
        )

    def _trained(self, fingerprints: Collection[str], *, limit: int | None, reporter: Reporter) -> Path:
        """The bundle of the finished run, or of one that is trained now."""
        folder = self.finished(fingerprints, limit=limit)
        if folder is not None:
            reporter.line(f"{self.name} is finished: {folder}")
            return folder
        reporter.line(f"-- {self.name} --")
        result = train(self.experiment, limit=limit, reporter=reporter)
        assert result is not None, "no dry run"
        return result.bundle


def one_process(command: str, instead: str) -> None:
    """A series of trainings is not started by several processes together; that is a ConfigError with advice."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError(f"{command} runs in one process. {instead}")


def changed(experiment: Experiment, change: Mapping[str, Any]) -> Experiment:
    """The experiment with other values."""
    return build(Experiment, merge(experiment.model_dump(mode="json"), change), origin="series")


@dataclass(frozen=True)
class Once:
    """Passes on to ``reporter``, but each note once: what is said of the data comes again with every training."""

    reporter: Reporter
    told: set[str] = field(default_factory=set)

    def line(self, text: str) -> None:
        """Show a line that is no note, or a new one."""
        if not text.startswith("note: ") or text not in self.told:
            self.reporter.line(text)
        self.told.add(text)

    def progress(self, name: str, done: int, total: int | None, text: str = "") -> None:
        """Move the bar."""
        self.reporter.progress(name, done, total, text)
