"""One training from its first batch to its bundle: interrupted, of two seeds, with a frozen epoch."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import consilium
from consilium.core.contracts import Batch, StepOutput
from consilium.core.evaluation import Outputs
from consilium.data.cases.mixture import Mixture
from consilium.experiment import Experiment
from consilium.predictor import Predictor, case_outputs
from consilium.session import train
from consilium.session.train import Session
from consilium.tasks.answers.settle import recalibrated
from consilium.tasks.classify.task import Classify
from consilium.training.dryrun import Trial
from tests.labelled import load_labelled
from tests.tiny import SESSION, Recorder, same, tiny_experiment, train_tiny

# 24 cases in batches of 5, two batches a step: three steps an epoch, of which the first epoch has a frozen tower.
RECIPE = [
    "task.vision.freeze.warmup_epochs=1",
    "task.head.dropout=0.3",
    "data.augmentation={crop_scale: [0.5, 1.0], horizontal_flip_prob: 0.5}",
    "data.loader.batch_size=5",
    "optimizer.learning_rate=0.01",
    "trainer={accumulate: 2, max_epochs: 3, max_steps: 8, validate_every: 0.34, num_runs: 2}",
]


@dataclass
class Seen:
    """What happened inside the trainings of all seeds."""

    rows: dict[int, list[list[int]]] = field(default_factory=dict)  # of every batch that learned, by seed
    towers: dict[int, list[dict[str, Tensor]]] = field(default_factory=dict)  # at every validation, by seed
    mixtures: dict[int, Mixture] = field(default_factory=dict)
    judged: list[dict[str, Outputs]] = field(default_factory=list)  # by split, seed after seed
    seed: int = 0


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    seen = Seen()
    init, fit, step, validate = Session.__init__, Session._fit, Classify.step, Session._validate

    def note_session(session: Session, *arguments: Any, **options: Any) -> None:
        init(session, *arguments, **options)
        seen.mixtures[session.seed] = session.mixture

    def note_fit(session: Session, *arguments: Any, **options: Any) -> Any:
        seen.seed = session.seed
        seen.rows.setdefault(session.seed, [])
        return fit(session, *arguments, **options)

    def note_step(task: Classify, batch: Batch) -> StepOutput:
        seen.rows[seen.seed].append(batch.rows_B.tolist())
        return step(task, batch)

    def note_validation(session: Session, *arguments: Any) -> Any:
        before = {name: tensor.clone() for name, tensor in session.task.state_dict().items()}
        generator = torch.get_rng_state()
        answer = validate(session, *arguments)
        assert same(before, dict(session.task.state_dict()))  # judging changes nothing
        assert torch.equal(generator, torch.get_rng_state())
        tower = {name: before[name] for name in before if name.startswith("tower.")}
        seen.towers.setdefault(session.seed, []).append(tower)
        return answer

    def note_judged(predictor: Predictor, cases: Any, split: str, **options: Any) -> Outputs:
        outputs = case_outputs(predictor, cases, split, **options)
        if split == "val":
            seen.judged.append({})
        seen.judged[-1][split] = outputs
        return outputs

    monkeypatch.setattr(Session, "__init__", note_session)
    monkeypatch.setattr(Session, "_fit", note_fit)
    monkeypatch.setattr(Session, "_validate", note_validation)
    monkeypatch.setattr(Classify, "step", note_step)
    monkeypatch.setattr("consilium.judge.case_outputs", note_judged)
    monkeypatch.setattr(SESSION, "dry_run", lambda *_, precision, **__: Trial(precision, 0.1, None, 1))
    return seen


@pytest.mark.parametrize("kind", ["one label", "many labels"])
def test_from_the_first_batch_to_the_bundle(tiny_images: Path, tmp_path: Path, seen: Seen, kind: str) -> None:
    recipe = [*RECIPE, f"task.multi_label={str(kind == 'many labels').lower()}"]

    @dataclass
    class StopInSecond(Recorder):
        """Stops the second seed after its fifth step, in the middle of an epoch."""

        starts: int = 0

        def progress(self, name: str, done: int, total: int | None, text: str = "") -> None:
            self.starts += name == "train" and done == 1
            if self.starts == 2 and name == "train" and done == 5:
                raise KeyboardInterrupt

    overrides = [*recipe, "trainer.save_every=0.34"]
    with pytest.raises(KeyboardInterrupt):
        train(tiny_experiment(tiny_images, tmp_path / "runs", *overrides), reporter=StopInSecond())
    before_stop = seen.rows.pop(1)
    seen.towers.pop(1)
    run = train_tiny(tiny_images, tmp_path / "runs", *overrides, resume=True)

    # Every row that was drawn reached the optimizer, in order: five batches an epoch, until the eighth step.
    for seed, rows in {0: seen.rows[0], 1: before_stop[:7] + seen.rows[1]}.items():
        drawn = [seen.mixtures[seed].epoch(epoch).tolist() for epoch in range(3)]
        batches = [epoch[first : first + 5] for epoch in drawn for first in range(0, 24, 5)]
        assert rows == batches[:14]
    assert len(before_stop) == 9  # its fifth step was taken and lost

    # Frozen stays frozen, parameters and statistics, for as long as it shall.
    first, *others = seen.towers[0]
    moved = [not same(first, tower) for tower in others]
    assert moved == [False, False, *[True] * 5]
    assert all(not same(tower, first) for tower in seen.towers[1])  # it went on after its frozen epoch

    # The bundles of both seeds, loaded anew, say what the training was judged by.
    in_training = [dict(judged) for judged in seen.judged]
    assert len(in_training) == len(run.result.runs) == 2
    for judged, result in zip(in_training, run.result.runs, strict=True):
        predictor = consilium.load(result.folder)
        experiment = Experiment.load(result.folder / "config.yaml")
        assert experiment.seed == int(result.folder.name.removeprefix("seed-"))
        studied = load_labelled(experiment.data, multi_label=experiment.task.multi_label, splits=("test",)).studied
        cases = studied.cases
        for split in ("val", "test"):
            told = recalibrated(predictor.task, judged[split]).arrays["probabilities"]
            again = case_outputs(predictor, studied, split)
            assert again.ids == judged[split].ids
            np.testing.assert_allclose(again.arrays["probabilities"], told, atol=1e-6)
            files = [cases.table.images(row)[0] for row in cases.rows[split].tolist()]
            records = predictor.predict(files)
            np.testing.assert_allclose([[*one["probabilities"].values()] for one in records], told, atol=2e-6)
        assert consilium.evaluate(result.folder).metrics == pytest.approx(result.metrics["test"], abs=1e-6)
