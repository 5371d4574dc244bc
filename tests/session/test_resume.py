"""A run that was stopped and resumed, at whatever step and how often, is the unbroken run bit for bit."""

from __future__ import annotations

import json
import random
import shutil
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from consilium.core.config import to_yaml
from consilium.core.errors import InterruptedRunError, RunFolderError
from consilium.manifest import read_manifest
from consilium.session import RunResult, TrainResult, train
from consilium.training.dryrun import Trial
from consilium.training.hooks import read_history
from consilium.training.state import remove_weights
from tests.conftest import write_images
from tests.session.processes import start
from tests.tiny import SESSION, Recorder, Run, same, tiny_experiment, train_tiny

TIMES = {"data_seconds", "step_seconds"}
STEPS = 9

# 24 cases in batches of 5, two batches a step: windows of 5 + 5, 5 + 5 and 4 cases, three steps an epoch.
RANDOM = [
    "task.head={kind: mlp, hidden_sizes: [16], dropout: 0.3}",
    "task.vision.freeze.warmup_epochs=1",
    "data.augmentation={crop_scale: [0.5, 1.0], horizontal_flip_prob: 0.5, rotation_degrees: 20"
    ", brightness_jitter: 0.3, hue_jitter: 0.1}",
    "data.loader.batch_size=5",
    "trainer.accumulate=2",
    "trainer.max_epochs=3",
    f"trainer.max_steps={STEPS}",
    "trainer.log_every=4",  # a stop lies between two lines of the log
    "trainer.deterministic=true",
    "trainer.threads=1",
]
RECIPES = {
    "adamw-cosine": [
        *RANDOM,
        "optimizer={kind: adamw, learning_rate: 0.003, groups: {head: {learning_rate: 0.01}}}",
        "schedule={kind: cosine, warmup: 2, floor: 0.1}",
        "trainer.clip_norm=1.0",
    ],
    "momentum-plateau": [
        *RANDOM,
        "optimizer={kind: sgd, learning_rate: 0.3, momentum: 0.9, nesterov: true}",  # too much at times
        "schedule={kind: plateau, patience: 0, factor: 0.5}",
        "trainer.validate_every=0.34",
        "data.mixture.sampling=class_balanced",
    ],
    "two-kinds": [
        *RANDOM,
        "task.vision.freeze.unfreeze_every=1",
        "optimizer={kind: adamw, learning_rate: 0.003, groups: {tower: {kind: sgd, learning_rate: 0.1, momentum: 0.9"
        ", layer_decay: 0.7, floor: 0.5}}}",
        "schedule={kind: cosine, warmup: 2}",
        "trainer.ema={decay: 0.6}",
    ],
}


@dataclass
class Interrupter(Recorder):
    """Sends this process a real signal in the step after which the run shall stop."""

    signal_at: int | None = None
    number: signal.Signals = signal.SIGINT

    def progress(self, name: str, done: int, total: int | None, text: str = "") -> None:
        super().progress(name, done, total, text)
        if name == "train" and done == self.signal_at:
            signal.raise_signal(self.number)


@dataclass
class Broken:
    """One recipe: its unbroken run, and runs that are stopped in between."""

    images: Path
    root: Path
    recipe: Sequence[str]
    overrides: list[str] = field(default_factory=list)

    def unbroken(self) -> Run:
        return train_tiny(self.images, self.root / "whole", *self.recipe, *self.overrides)

    def stopped(self, *at: int, kill: bool = False, resume: bool = False) -> None:
        """Start or resume and stop after each of these steps; ``kill`` stops without a word or a checkpoint."""
        experiment = tiny_experiment(self.images, self.root / "broken", *self.recipe, *self.overrides)
        for number, step in enumerate(at):
            reporter = Recorder(stop_at=step) if kill else Interrupter(signal_at=step)
            expected: type[BaseException] = KeyboardInterrupt if kill else InterruptedRunError
            with pytest.raises(expected):
                train(experiment, resume=resume or number > 0, reporter=reporter)

    def resumed(self, *overrides: str) -> Run:
        given = [*self.recipe, *self.overrides, *overrides]
        return train_tiny(self.images, self.root / "broken", *given, resume=True)


@pytest.fixture(params=RECIPES)
def trial(request: pytest.FixtureRequest, tiny_images: Path, tmp_path: Path) -> Broken:
    return Broken(tiny_images, tmp_path, RECIPES[request.param])


@pytest.fixture(scope="module")
def unbroken(tiny_images: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """The unbroken run of every recipe."""
    root = tmp_path_factory.mktemp("unbroken")
    return {name: Broken(tiny_images, root / name, recipe).unbroken() for name, recipe in RECIPES.items()}


@pytest.fixture
def whole(request: pytest.FixtureRequest, unbroken: dict[str, Run]) -> Run:
    return unbroken[request.node.callspec.params["trial"]]


def history(run: Run) -> list[dict[str, str]]:
    """The rows of history.csv without what a clock says."""
    return [{k: v for k, v in row.items() if k not in TIMES} for row in read_history(run.folder / "history.csv")]


def last_state(run: Run) -> dict[str, Any]:
    """Optimizer, schedule, random generators and progress of the last checkpoint, without what a clock says."""
    (folder,) = (run.folder / "checkpoints").glob("step-*")
    state: dict[str, Any] = torch.load(folder / "trainer.pt", weights_only=True)
    del state["progress"]["seconds"]
    return state


def leaves(value: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """Every value in nested dictionaries and lists, with its place."""
    if isinstance(value, dict | list | tuple):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, inner in items:
            yield from leaves(inner, f"{place}/{key}")
    else:
        yield place, value


def assert_same_state(left: dict[str, Any], right: dict[str, Any]) -> None:
    left_leaves, right_leaves = dict(leaves(left)), dict(leaves(right))
    assert left_leaves.keys() == right_leaves.keys()
    differing = [
        place
        for place, value in left_leaves.items()
        if not (torch.equal(value, right_leaves[place]) if isinstance(value, Tensor) else value == right_leaves[place])
    ]
    assert not differing


def assert_unbroken(run: Run, whole: Run) -> None:
    assert same(run.weights, whole.weights)
    assert run.metrics == whole.metrics
    assert history(run) == history(whole)
    assert run.checkpoints("step") == whole.checkpoints("step") == [STEPS]
    assert run.checkpoints("best") == whole.checkpoints("best")
    assert_same_state(last_state(run), last_state(whole))
    assert {**run.manifest, "created": ""} == {**whole.manifest, "created": ""}
    written = json.loads((run.folder / "run.json").read_text(encoding="utf-8"))
    assert written["status"] == "finished"


def test_the_recipes_use_what_they_are_meant_to(unbroken: dict[str, Run]) -> None:
    for name, run in unbroken.items():
        assert run.steps("step") == [1, 4, 8, 9]
        assert len(set(run.steps("learning_rate_tower"))) > 1, name
        state = last_state(run)
        moments = [v for v in leaves(state["optimizer"]) if isinstance(v[1], Tensor)]
        assert any(bool((tensor != 0).any()) for _, tensor in moments), name


def test_stopped_after_every_single_step(trial: Broken, whole: Run) -> None:
    trial.stopped(*range(1, STEPS))
    run = trial.resumed()
    assert_unbroken(run, whole)
    resumed = [line.split("  ", 1)[1] for line in run.log.splitlines() if "resumed from" in line]
    assert resumed[0] == "resumed from step-00000001: epoch 0, batch 2"
    assert resumed[2] == "resumed from step-00000003: epoch 1, batch 0"
    assert len(resumed) == STEPS - 1


@pytest.mark.parametrize("steps", [(1,), (4, 5), (8,)], ids=str)
def test_killed_between_checkpoints(trial: Broken, whole: Run, steps: tuple[int, ...]) -> None:
    trial.stopped(*steps, kill=True)
    assert_unbroken(trial.resumed(), whole)


def test_stopped_by_a_signal_and_killed_in_turn(trial: Broken, whole: Run) -> None:
    trial.stopped(2)
    trial.stopped(4, 5, kill=True, resume=True)
    trial.stopped(7, resume=True)
    assert_unbroken(trial.resumed(), whole)


@pytest.mark.parametrize("trial", ["adamw-cosine"], indirect=True)
def test_with_other_workers_and_another_log_than_before(trial: Broken, whole: Run) -> None:
    trial.stopped(4)
    run = trial.resumed("data.loader.workers=2", "data.loader.prefetch_factor=1", "trainer.keep_last=3")
    assert same(run.weights, whole.weights)
    assert run.metrics == whole.metrics
    assert history(run) == history(whole)
    assert run.checkpoints("step") == [4, 6, 9]
    assert run.checkpoints("best")[-1:] == whole.checkpoints("best")


@pytest.mark.parametrize("trial", ["adamw-cosine"], indirect=True)
def test_sigterm_leaves_a_checkpoint_too(trial: Broken, whole: Run) -> None:
    experiment = tiny_experiment(trial.images, trial.root / "broken", *trial.recipe)
    with pytest.raises(InterruptedRunError, match="stopped by SIGTERM after step 5 of 9"):
        train(experiment, reporter=Interrupter(signal_at=5, number=signal.SIGTERM))
    assert_unbroken(trial.resumed(), whole)


@pytest.mark.parametrize("trial", ["momentum-plateau"], indirect=True)
def test_an_older_checkpoint_still_has_the_best_weights_it_needs(trial: Broken, whole: Run) -> None:
    trial.overrides = ["trainer.keep_last=9", "trainer.save_every=0.34"]
    trial.stopped(8)
    (folder,) = (trial.root / "broken" / "tiny").iterdir()
    checkpoints = folder / "checkpoints"
    steps = sorted(int(path.name[5:]) for path in checkpoints.glob("step-*"))
    assert steps == list(range(1, 9))
    newest = checkpoints / "step-00000008" / "trainer.pt"
    newest.write_bytes(newest.read_bytes()[:-100])
    with pytest.raises(RunFolderError, match=r"step-00000008 cannot be resumed.*Remove this folder to resume from the"):
        trial.resumed()
    for step in range(4, 9):  # back to the first epoch, from before what may be the best
        shutil.rmtree(checkpoints / f"step-{step:08d}")
    run = trial.resumed()
    assert same(run.weights, whole.weights)
    assert history(run) == history(whole)
    assert run.metrics == whole.metrics


def test_a_restart_repeats_neither_training_nor_judging_of_a_finished_seed(tiny_images: Path, tmp_path: Path) -> None:
    long = ["trainer.num_runs=2", "trainer.max_epochs=2", "trainer.max_steps=4"]
    whole = train_tiny(tiny_images, tmp_path / "whole", *long)

    @dataclass
    class InSecond(Recorder):
        starts: int = 0

        def progress(self, name: str, done: int, total: int | None, text: str = "") -> None:
            self.starts += name == "train" and done == 1
            if self.starts == 2:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(tiny_experiment(tiny_images, tmp_path / "broken", *long), reporter=InSecond())
    (folder,) = (tmp_path / "broken" / "tiny").iterdir()
    first = (folder / "seed-0" / "bundle.json").stat().st_mtime_ns
    run = train_tiny(tiny_images, tmp_path / "broken", *long, resume=True)
    assert run.result.folder == folder
    assert (folder / "seed-0" / "bundle.json").stat().st_mtime_ns == first
    for mine, other in zip(run.result.runs, whole.result.runs, strict=True):
        assert mine.metrics == other.metrics
        assert same(load_file(mine.folder / "model.safetensors"), load_file(other.folder / "model.safetensors"))


def test_the_precision_of_the_first_start_stays(
    tiny_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    faster = ["bf16", "fp32"]  # another machine may choose another one the second time

    def dry_run(*_: object, precision: str, **__: object) -> Trial:
        return Trial(faster.pop(0) if precision == "auto" else precision, 1.0, None, 1)

    monkeypatch.setattr(SESSION, "dry_run", dry_run)
    trial = Broken(tiny_images, tmp_path, ["trainer.precision=auto"])
    trial.stopped(1)
    trials = [line.split("  ", 1)[1] for line in trial.resumed().log.splitlines() if "trial step" in line]
    assert [line.split()[4] for line in trials] == ["bf16,", "bf16,"]


def test_best_weights_stay_as_long_as_a_checkpoint_needs_them(tmp_path: Path) -> None:
    for name in ("step-00000004", "step-00000009", "best-00000002", "best-00000003", "best-00000008", "best-00000011"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "trainer.pt").touch()

    def left() -> list[int]:
        return sorted(int(path.name[5:]) for path in tmp_path.glob("best-*"))

    remove_weights(tmp_path, keep=8)  # 3 for checkpoint 4; 11 is of a step that comes again
    assert left() == [3, 8]
    shutil.rmtree(tmp_path / "step-00000004")
    remove_weights(tmp_path, keep=8)
    assert left() == [8]


def test_weights_of_steps_that_come_again_are_not_believed(tiny_images: Path, tmp_path: Path) -> None:
    trial = Broken(tiny_images, tmp_path, RECIPES["adamw-cosine"])
    trial.stopped(4)
    (folder,) = (tmp_path / "broken" / "tiny").iterdir()
    (stale := folder / "checkpoints" / "best-00000005").mkdir()
    (stale / "model.safetensors").write_bytes(b"from a start that was lost")
    trial.stopped(5, resume=True)
    assert not stale.exists()


# -- Real kills ---------------------------------------------------------------------------------------------------

KILLS = 20


@pytest.fixture(scope="module")
def other_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("other") / "images", splits={"train": 12}, seed=9)


def last_step(root: Path) -> int:
    """The last step in the log of the only run."""
    logs = list(root.glob("tiny/*/history.csv"))
    rows = read_history(logs[0]) if logs else []
    return max((int(row["step"]) for row in rows if row.get("step", "").isdigit()), default=0)


@pytest.mark.slow
def test_killed_for_good_at_twenty_random_steps(tiny_images: Path, other_images: Path, tmp_path: Path) -> None:
    places = [(tiny_images, "images", 2), (other_images, "other", 1)]
    sources = [{"kind": "folder", "name": n, "path": str(path), "weight": weight} for path, n, weight in places]
    recipe = [
        *RECIPES["adamw-cosine"],
        f"data.sources={json.dumps(sources)}",
        "task.loss={kind: focal, class_weights: balanced, label_smoothing: 0.1}",
        "data.mixture.stop=steps",
        "data.mixture.steps=5",  # windows of 5 + 5, 5 + 5 and 5 cases
        "trainer.max_epochs=200",
        f"trainer.max_steps={6 * KILLS + 3}",
        "trainer.log_every=1",
    ]
    whole = train_tiny(tiny_images, tmp_path / "whole", *recipe)
    config, output, broken = tmp_path / "tiny.yaml", tmp_path / "output.txt", tmp_path / "broken"
    config.write_text(to_yaml(tiny_experiment(tiny_images, broken, *recipe)), encoding="utf-8")
    choose = random.Random(20)
    killed = []
    for number in range(KILLS):
        process = start(config, *(["--resume"] if number else []), output=output)
        step, deadline = 6 * number + choose.randint(1, 5), time.monotonic() + 120
        while last_step(broken) < step and process.is_alive() and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(choose.uniform(0, 0.03))  # anywhere in a step, a validation or a checkpoint
        process.kill()
        process.join(60)
        assert process.exitcode == -signal.SIGKILL, output.read_text(encoding="utf-8")
        killed.append(last_step(broken))
    assert len(set(killed)) == KILLS, killed
    process = start(config, "--resume", output=output)
    process.join(300)
    assert process.exitcode == 0, output.read_text(encoding="utf-8")
    (folder,) = (broken / "tiny").iterdir()
    run = Run(TrainResult(folder, [RunResult(folder, read_manifest(folder).metrics)]), Recorder())
    assert history(run) == history(whole)
    assert run.steps("step")[-1] == 6 * KILLS + 3
    assert (folder / "model.safetensors").read_bytes() == (whole.folder / "model.safetensors").read_bytes()
    assert run.metrics == whole.metrics
    assert_same_state(last_state(run), last_state(whole))
    assert not list((folder / "checkpoints").glob(".*"))
