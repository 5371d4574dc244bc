"""Which unfinished run is gone on with, and that a dry run looks at it as the training would."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from consilium.core.errors import RunFolderError
from consilium.session import train
from tests.older import make_older
from tests.tiny import Recorder, TrainTiny, tiny_experiment

LONG = ["trainer.max_epochs=2", "trainer.max_steps=5", "trainer.save_every=0.34"]


def stopped(images: Path, runs: Path, *overrides: str) -> Path:
    """The folder of a run that was interrupted."""
    before = set(runs.glob("tiny/*"))
    with pytest.raises(KeyboardInterrupt):
        train(tiny_experiment(images, runs, *LONG, *overrides), reporter=Recorder(stop_at=3))
    (new,) = set(runs.glob("tiny/*")) - before
    return new


def started(run: Path, moment: str) -> None:
    state = json.loads((run / "run.json").read_text(encoding="utf-8"))
    (run / "run.json").write_text(json.dumps({**state, "started": moment}), encoding="utf-8")


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("2026-03-01 10:00:00", "2026-03-01 10:00:05"),  # as an earlier version wrote it
        ("2026-10-25 02:50:00+0200", "2026-10-25 02:10:00+0100"),  # the clock went back an hour between them
        ("2026-03-01 10:00:00+0000", "2026-03-01 06:00:00-0500"),
    ],
)
def test_the_run_that_started_last_is_resumed_whatever_its_name(
    tiny: TrainTiny, tiny_images: Path, tmp_path: Path, first: str, second: str
) -> None:
    runs = tmp_path / "runs"
    one, other = stopped(tiny_images, runs), stopped(tiny_images, runs)
    earlier = one.rename(one.with_name("default-20991231-235959"))
    started(earlier, first)
    started(other, second)
    assert tiny(*LONG, resume=True).folder == other
    assert tiny(*LONG, resume=True).folder == earlier


def test_a_start_that_is_no_time_is_named(tiny_images: Path, tmp_path: Path) -> None:
    started(stopped(tiny_images, tmp_path), "yesterday")
    with pytest.raises(RunFolderError, match=r"run\.json is damaged: .*yesterday.*`started`"):
        train(tiny_experiment(tiny_images, tmp_path, *LONG), resume=True)


def test_a_dry_run_refuses_what_the_training_would_refuse(tiny_images: Path, tmp_path: Path) -> None:
    def dry(*overrides: str, resume: bool = True, limit: int | None = None) -> list[str]:
        reporter = Recorder()
        experiment = tiny_experiment(tiny_images, tmp_path, *LONG, *overrides)
        assert train(experiment, dry_run=True, resume=resume, limit=limit, reporter=reporter) is None
        return reporter.lines

    with pytest.raises(RunFolderError, match="no unfinished run"):
        dry()
    run = stopped(tiny_images, tmp_path)
    with pytest.raises(
        RunFolderError, match=rf"optimizer\.learning_rate was .* it was started with, {run}/config.yaml"
    ):
        dry("optimizer.learning_rate=0.5")
    with pytest.raises(RunFolderError, match="another config"):
        dry("optimizer.learning_rate=0.5", "output.if_exists=resume", resume=False)
    with pytest.raises(RunFolderError, match="--limit was null and is 6"):
        dry(limit=6)
    with pytest.raises(RunFolderError, match="if_exists is refuse"):
        dry("output.if_exists=refuse", resume=False)
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    assert any(f"this would go on with {run}" in line for line in dry())
    assert not any("this would go on" in line for line in dry(resume=False))
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before
    assert list(tmp_path.glob("tiny/*")) == [run]


def test_a_run_of_a_version_without_a_key_is_resumed(tiny: TrainTiny, tiny_images: Path, tmp_path: Path) -> None:
    run = stopped(tiny_images, tmp_path / "runs")
    text = (run / "config.yaml").read_text(encoding="utf-8")
    (line,) = (line for line in text.splitlines() if "cache_features" in line)
    (run / "config.yaml").write_text(text.replace(f"{line}\n", ""), encoding="utf-8")
    assert tiny(*LONG, resume=True).folder == run


def test_a_run_of_a_version_whose_keys_have_moved_is_resumed(
    tiny: TrainTiny, tiny_images: Path, tmp_path: Path
) -> None:
    run = stopped(tiny_images, tmp_path / "runs")
    make_older(run)
    assert tiny(*LONG, resume=True).folder == run


def test_a_moved_key_that_differs_is_still_a_change(tiny: TrainTiny, tiny_images: Path, tmp_path: Path) -> None:
    run = stopped(tiny_images, tmp_path / "runs")
    make_older(run, threshold=0.25)
    with pytest.raises(RunFolderError, match=r"task\.answers\.threshold was 0\.25 and is 0\.5"):
        tiny(*LONG, resume=True)
