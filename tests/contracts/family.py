"""What every family must keep; a family's own tests subclass ``FamilyContract``.

class TestClassify(FamilyContract):
    def experiment(self, folder, *overrides): ...
    def pictures(self): ...
"""

from __future__ import annotations

import copy
import csv
import json
import shutil
from abc import ABC, abstractmethod
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import consilium
from consilium.core.reporter import Silent
from consilium.data.cases.cases import Cases
from consilium.data.cases.load import LoadedData, load_data, used_cases
from consilium.data.store.prepare import prepare
from consilium.evaluating import evaluate
from consilium.experiment import Experiment
from consilium.manifest import read_manifest
from consilium.predictor import Predictor, case_outputs
from consilium.session import train
from consilium.tasks.family import family_of, studying
from consilium.training.processes import build_accelerator
from tests.tiny import SESSION, Recorder, Run, same


class FamilyContract(ABC):
    """Abstract tests of ``consilium.tasks.family.Family`` on one small run that they share."""

    @classmethod
    @abstractmethod
    def experiment(cls, folder: Path, *overrides: str) -> Experiment:
        """A small experiment of two epochs with runs and store in ``folder``; its data always the same."""

    @classmethod
    @abstractmethod
    def queries(cls, experiment: Experiment) -> list[Any]:
        """A few things that the trained bundle can be asked about."""

    @pytest.fixture(scope="class")
    @classmethod
    def home(cls, tmp_path_factory: pytest.TempPathFactory) -> Path:
        return tmp_path_factory.mktemp("family")

    @pytest.fixture(scope="class")
    @classmethod
    def run(cls, home: Path) -> Run:
        """A finished run; no test changes it."""
        reporter = Recorder()
        result = train(cls.experiment(home), reporter=reporter)
        assert result is not None
        return Run(result, reporter)

    def loaded(self, experiment: Experiment) -> LoadedData[Any]:
        return load_data(
            experiment.data,
            needs=experiment.task.needs,
            study=studying(experiment.task, learns=True),
            splits=("train", "val"),
            reporter=Silent(),
        )

    def studied(self, experiment: Experiment) -> Any:
        return self.loaded(experiment).studied

    def test_a_trial_puts_everything_back(self, home: Path) -> None:
        experiment = self.experiment(home)
        session = SESSION.Session(
            experiment, self.loaded(experiment), accelerator=build_accelerator("cpu"), seed=0, reporter=Silent()
        )
        before = copy.deepcopy(session.task.state_dict())
        session.try_out(precision=None)
        session.close()
        assert same(session.task.state_dict(), before)

    def test_study_is_pure_and_what_it_knows_comes_back_from_json(self, run: Run, home: Path) -> None:
        experiment = self.experiment(home)
        table = prepare(experiment.data).store.table
        study = studying(experiment.task, learns=True)
        found = [
            study(Cases.of(used_cases(table, config=experiment.data, needs=experiment.task.needs)), known=None)
            for _ in range(2)
        ]
        assert found[0].knowledge == found[1].knowledge
        if found[0].targets is not None:
            np.testing.assert_array_equal(found[0].targets, found[1].targets)
        model = family_of(experiment.task).knowledge
        assert model.model_validate(json.loads(found[0].knowledge.model_dump_json())) == found[0].knowledge
        assert found[0].knowledge.training_cases == len(found[0].cases.rows["train"])

    def test_groups_are_those_that_the_section_names_and_hold_every_parameter_once(self, run: Run) -> None:
        predictor = consilium.load(run.folder, device="cpu")
        assert predictor.manifest is not None
        groups = predictor.task.parameter_groups()
        assert tuple(group.name for group in groups) == predictor.manifest.task.groups
        held = [id(parameter) for group in groups for parameter in group.parameters]
        assert sorted(held) == sorted(id(parameter) for parameter in predictor.task.parameters())

    def test_a_run_that_is_stopped_and_resumed_ends_as_one_that_was_not(self, run: Run, tmp_path: Path) -> None:
        experiment = self.experiment(tmp_path, "trainer.save_every=0.5")
        with pytest.raises(KeyboardInterrupt):
            train(experiment, reporter=Recorder(stop_at=2))
        result = train(experiment, resume=True, reporter=Recorder())
        assert result is not None
        assert same(Run(result, Recorder()).weights, run.weights)

    def test_a_bundle_answers_as_it_was_judged(self, run: Run, home: Path) -> None:
        experiment, predictor = self.experiment(home), Predictor.load(run.folder, device="cpu")
        studied = self.studied(experiment)
        evaluator = family_of(experiment.task).evaluator(
            experiment.task, predictor.knowledge, evaluation=experiment.evaluation
        )
        for split in ("val", "test"):
            found = evaluator.quick(case_outputs(predictor, studied, split))
            assert found == {
                name: None if value is None else pytest.approx(value, abs=1e-5)
                for name, value in run.metrics[split].items()
            }

    def test_evidence_is_small(self, run: Run, home: Path) -> None:
        """A split is kept as a few numbers a case, not as images."""
        outputs = case_outputs(Predictor.load(run.folder, device="cpu"), self.studied(self.experiment(home)), "test")
        values = sum(array[0].size for array in outputs.arrays.values())
        assert values <= 4096
        assert all(len(array) == len(outputs.ids) for array in outputs.arrays.values())

    def test_a_bundle_works_wherever_it_lies_and_says_what_it_reads_and_gives(self, run: Run, tmp_path: Path) -> None:
        moved = Path(shutil.copytree(run.folder, tmp_path / "moved"))
        manifest = read_manifest(moved)
        queries = self.queries(Experiment.load(run.folder / "config.yaml"))
        records = consilium.load(moved, device="cpu").predict(queries)
        assert records == consilium.load(run.folder, device="cpu").predict(queries)
        for record in records:
            assert json.loads(json.dumps(record, allow_nan=False)) == record
            assert set(manifest.gives) <= set(record)
        assert set(manifest.reads) <= {"image", "text"}

    def test_rows_of_a_table_have_its_columns(self, run: Run) -> None:
        predictor = consilium.load(run.folder, device="cpu")
        for record in predictor.predict(self.queries(Experiment.load(run.folder / "config.yaml"))):
            assert set(predictor.task.row(record)) <= set(predictor.task.columns())

    def test_the_report_is_a_whole_page_that_loads_nothing(self, run: Run) -> None:
        text = (run.folder / "report.html").read_text(encoding="utf-8")
        opened: list[str] = []

        class Page(HTMLParser):
            def handle_starttag(self, tag: str, attrs: Any) -> None:
                if tag not in {"meta", "img", "br", "link", "input", "wbr", "col", "hr"}:
                    opened.append(tag)
                assert not any(value and value.startswith(("http:", "https:", "//")) for _, value in attrs)

            def handle_endtag(self, tag: str) -> None:
                assert opened.pop() == tag

        Page().feed(text)
        assert not opened
        assert "None" not in text.split("</style>")[1]
        metrics = json.loads((run.folder / "metrics.json").read_text(encoding="utf-8"))
        assert set(metrics) == {"val", "test"}
        assert "Traceback" not in (run.folder / "MODEL_CARD.md").read_text(encoding="utf-8")

    def test_history_has_the_figures_of_every_validation(self, run: Run) -> None:
        with (run.folder / "history.csv").open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        assert {f"val_{name}" for name in run.metrics["val"]} <= set(rows[0])
        assert any(row[f"val_{next(iter(run.metrics['val']))}"] for row in rows)

    def test_a_bundle_is_judged_again_on_its_own_data(self, run: Run, tmp_path: Path) -> None:
        found = evaluate(run.folder, split="test", out=tmp_path / "out", quiet=True)
        for name, value in run.metrics["test"].items():
            assert found.metrics[name] == (None if value is None else pytest.approx(value, abs=1e-5))

    def test_a_step_reduces_the_loss_of_a_batch(self, run: Run, home: Path) -> None:
        """The last loss of a training is lower than its first."""
        losses = run.steps("train_loss")
        assert losses[-1] < losses[0]
        assert all(torch.isfinite(torch.tensor(losses)))
