"""Cross-validation: every fold a bundle, every case tested once, and a stop at any moment changes nothing."""

from __future__ import annotations

import csv
import json
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from consilium.core.config import to_yaml
from consilium.core.errors import ConfigError, DataError, InterruptedRunError, NonFiniteLossError, RunFolderError
from consilium.crossval import CrossvalResult, cross_validate
from consilium.evaluating import evaluate
from consilium.experiment import Experiment
from tests.conftest import write_images
from tests.tiny import Recorder, tiny_experiment

SECONDS = ["data.split.val=0.2"]


@pytest.fixture(scope="module")
def whole(tiny_images: Path, tmp_path_factory: pytest.TempPathFactory) -> CrossvalResult:
    """Three folds of the tiny experiment; no test changes them."""
    runs = tmp_path_factory.mktemp("crossval") / "runs"
    return cross_validate(tiny_experiment(tiny_images, runs, *SECONDS), folds=3, reporter=Recorder())


def written(result: CrossvalResult) -> dict[str, Any]:
    return dict(json.loads((result.folder / "crossval.json").read_text(encoding="utf-8")))


def comparable(result: CrossvalResult) -> Any:
    """All that was found, without the folders, which tell the time."""
    tree = written(result)
    for fold in tree["folds"]:
        fold["folder"] = ""
    return tree


def weights(result: CrossvalResult) -> list[bytes]:
    return [(Path(fold.folder) / "model.safetensors").read_bytes() for fold in result.folds]


def test_every_case_is_tested_once_and_every_fold_is_a_bundle(whole: CrossvalResult) -> None:
    assert whole.folder.parts[-2:] == ("tiny", "crossval-default-3-folds")
    assert [fold.name for fold in whole.folds] == ["fold 0", "fold 1", "fold 2"]
    assert whole.pooled.cases == 48
    for fold in whole.folds:
        assert (fold.train + fold.val, fold.test) == (32, 16)
        assert 3 <= fold.val <= 9
        judged = evaluate(fold.folder)
        assert judged.cases == fold.test
        assert judged.metrics == pytest.approx(fold.metrics, abs=1e-6)
        assert (Path(fold.folder) / "report.html").is_file()


def test_the_pooled_figures_are_those_of_all_cases(whole: CrossvalResult) -> None:
    right = sum(round((fold.metrics["accuracy"] or 0) * fold.test) for fold in whole.folds)
    assert whole.pooled.metrics["accuracy"] == pytest.approx(right / 48)
    assert sum(row["support"] for row in whole.pooled.tables["per_class"]) == 48
    interval = whole.pooled.intervals["accuracy"]
    assert interval.low is not None and interval.high is not None  # noqa: PT018
    assert interval.low < interval.value < interval.high


def test_what_is_written(whole: CrossvalResult) -> None:
    tree = written(whole)
    values = [fold.metrics["macro_auroc"] for fold in whole.folds]
    assert tree["means"]["macro_auroc"]["mean"] == pytest.approx(np.mean(values))
    assert tree["means"]["macro_auroc"]["deviation"] == pytest.approx(np.std(values, ddof=1))
    answered = [fold.metrics["aurc"] for fold in whole.folds]  # of the answers of each fold's own model alone
    assert tree["means"]["aurc"]["mean"] == pytest.approx(np.mean(answered))
    assert tree["pooled"]["metrics"] == whole.pooled.metrics
    rows = list(csv.DictReader((whole.folder / "crossval.csv").open(encoding="utf-8")))
    assert [float(row["accuracy"]) for row in rows] == [fold.metrics["accuracy"] for fold in whole.folds]
    assert {"fold", "train", "val", "test", "accuracy_low", "accuracy_high", "folder"} <= set(rows[0])
    page = (whole.folder / "crossval.html").read_text(encoding="utf-8")
    for told in (
        "tiny: 3 folds",
        "fold 2",
        "not a standard error",
        "Bengio",
        "--folds 3",
        "48 cases were each tested once",
    ):
        assert told in page
    assert "src=" not in page


def test_the_same_call_again_trains_nothing(whole: CrossvalResult) -> None:
    before = (whole.folder / "crossval.json").read_bytes()
    reporter = Recorder()
    again = cross_validate(Experiment.load(whole.folder / "config.yaml"), folds=3, reporter=reporter)
    assert not [bar for bar in reporter.bars if bar[0] == "train"]
    assert sum("is finished" in line for line in reporter.lines) == 3
    assert again.folds == whole.folds
    assert (whole.folder / "crossval.json").read_bytes() == before


def test_leaks_that_the_folds_report_are_on_the_page_that_sums_them_up(tmp_path: Path) -> None:
    """Almost the same image under two names: the folds part them, and each report says so."""
    rng = np.random.default_rng(0)
    for number in range(24):
        folder = tmp_path / "images" / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(rng.integers(0, 255, (10, 10, 3), dtype=np.uint8)).resize((96, 96))
        image.save(folder / f"{number}.png")
        image.resize((72, 72)).save(folder / f"{number}_small.jpg", quality=88)
    config = tiny_experiment(tmp_path / "images", tmp_path / "runs", *SECONDS, "trainer.max_steps=1")
    result = cross_validate(config, folds=2)
    leaks = [note for note in written(result)["notes"] if "leak: almost the same image is in " in note]
    assert leaks
    page = (result.folder / "crossval.html").read_text(encoding="utf-8")
    assert "leak: almost the same image is in " in page.split("Before you rely on this")[1].split("</aside>")[0]
    for fold in result.folds:
        assert any("leak: almost the same image" in note for note in fold.notes)
        shutil.rmtree(Path(fold.folder) / "tables")  # as an earlier version left it
    again = cross_validate(config, folds=2)
    assert [fold.metrics for fold in again.folds] == [fold.metrics for fold in result.folds]


@dataclass
class StopInSecond(Recorder):
    """Stops the training of the second fold."""

    starts: int = 0
    by: str = "kill"

    def progress(self, name: str, done: int, total: int | None, text: str = "") -> None:
        self.starts += name == "train" and done == 1
        if name == "train" and self.starts == 2 and done == 1:
            if self.by == "kill":
                raise KeyboardInterrupt
            signal.raise_signal(signal.SIGINT)


def test_what_is_noted_of_every_fold_is_told_once(tiny_images: Path, tmp_path: Path) -> None:
    reporter = Recorder()
    two = ["data.filters.labels=[ct, mri]", "trainer.max_steps=1", "evaluation.bootstrap_samples=0"]
    cross_validate(tiny_experiment(tiny_images, tmp_path / "runs", *two), folds=2, reporter=reporter)
    told = "note: data.filters.labels leaves out the labels 'xray' (16)."
    assert [line for line in reporter.lines if line == told or line.startswith("-- ")] == [
        "-- fold 0 --",
        told,
        "-- fold 1 --",
    ]


def test_a_model_that_may_know_what_is_tested_is_told_of(
    whole: CrossvalResult, tiny_images: Path, tmp_path: Path
) -> None:
    origin = whole.folds[0].folder
    start = [f"trainer.init_from={origin}", "trainer.max_steps=1", "evaluation.bootstrap_samples=0"]
    found = cross_validate(tiny_experiment(tiny_images, tmp_path / "runs", *start), folds=2)
    assert any(f"every fold starts from {origin}" in note for note in written(found)["notes"])


@pytest.mark.parametrize("by", ["kill", "signal"])
def test_stopped_and_started_again(whole: CrossvalResult, tiny_images: Path, tmp_path: Path, by: str) -> None:
    experiment = tiny_experiment(tiny_images, tmp_path / "runs", *SECONDS)
    stop: type[BaseException] = KeyboardInterrupt if by == "kill" else InterruptedRunError
    with pytest.raises(stop) as stopped:
        cross_validate(experiment, folds=3, reporter=StopInSecond(by=by))
    if by == "signal":
        assert str(stopped.value).startswith("fold 1: stopped by SIGINT")
        assert "the same crossval command goes on from there" in str(stopped.value)
    (folder,) = (tmp_path / "runs" / "tiny").iterdir()
    first = {path.name: path.stat().st_mtime_ns for path in folder.glob("fold-0-*/*")}
    again = cross_validate(experiment, folds=3, reporter=Recorder())
    assert {path.name: path.stat().st_mtime_ns for path in folder.glob("fold-0-*/*")} == first
    assert len(list(folder.glob("fold-1-*"))) == 1, "the second fold was resumed in place"
    assert weights(again) == weights(whole)
    assert {**comparable(again), "notes": []} == {**comparable(whole), "notes": []}


def test_a_fold_that_fails_is_named_and_the_others_are_kept(tiny_images: Path, tmp_path: Path) -> None:
    class FailInSecond(StopInSecond):
        def progress(self, name: str, done: int, total: int | None, text: str = "") -> None:
            self.starts += name == "train" and done == 1
            if self.starts == 2:
                raise NonFiniteLossError("the loss became nan.")

    experiment = tiny_experiment(tiny_images, tmp_path / "runs", *SECONDS)
    with pytest.raises(
        NonFiniteLossError, match=r"^fold 1: the loss became nan\. What is finished is kept in .*3-folds"
    ):
        cross_validate(experiment, folds=3, reporter=FailInSecond())
    (folder,) = (tmp_path / "runs" / "tiny").iterdir()
    assert [path.parent.name[:6] for path in folder.glob("*/bundle.json")] == ["fold-0"]


def test_another_config_does_not_mix_with_finished_folds(tiny_images: Path, whole: CrossvalResult) -> None:
    root = whole.folder.parents[1]
    with pytest.raises(
        RunFolderError, match=r"^fold 0: .* another config: seed was 0 and is 1\. .*`output\.variation` of its own"
    ) as refused:
        cross_validate(tiny_experiment(tiny_images, root, *SECONDS, "seed=1"), folds=3)
    assert "--resume" not in str(refused.value)
    with pytest.raises(RunFolderError, match="--limit was null and is 9"):
        cross_validate(tiny_experiment(tiny_images, root, *SECONDS), folds=3, limit=9)


@pytest.mark.parametrize(
    ("overrides", "options", "message"),
    [
        ([], {}, "crossval needs --folds K or --leave-out"),
        ([], {"folds": 2, "leave_out": ["source"]}, "give one of them"),
        (["trainer.num_runs=2"], {"folds": 2}, "trainer.num_runs is 2"),
        (["task.add_to=runs/old"], {"folds": 2}, "the task goes on from runs/old, which may have learned"),
        (["data.split={folds: 2, fold: 0}"], {"folds": 2}, "take them out of the config"),
        ([], {"leave_out": ["sorce"]}, "'sorce'; did you mean `source`"),
        ([], {"leave_out": ["label"]}, "--leave-out source,label"),
        ([], {"leave_out": ["source"]}, "needs two values or more, but there is only: images"),
        ([], {"folds": 49}, "there are only 48 groups"),
    ],
    ids=str,
)
def test_what_is_refused(
    tiny_images: Path, tmp_path: Path, overrides: list[str], options: dict[str, Any], message: str
) -> None:
    with pytest.raises((ConfigError, DataError), match=message):
        cross_validate(tiny_experiment(tiny_images, tmp_path / "runs", *overrides), **options)
    assert not (tmp_path / "runs").exists()


def test_a_column_called_source_is_not_the_source(tiny_images: Path, tmp_path: Path) -> None:
    paths = sorted(tiny_images.rglob("*.png")) + sorted(tiny_images.rglob("*.jpg"))
    rows = [f"{path},{path.parent.name},h{number % 2}" for number, path in enumerate(paths)]
    (tmp_path / "t.csv").write_text("\n".join(["image,label,source", *rows]) + "\n", encoding="utf-8")
    table = f"data.sources={json.dumps([{'kind': 'csv', 'name': 's', 'path': str(tmp_path / 't.csv')}])}"
    experiment = tiny_experiment(tiny_images, tmp_path / "runs", table, f"data.store.root={tmp_path / 'stores'}")
    with pytest.raises(ConfigError, match=r"there is only: s\. Your column 'source' is called `meta\.source`\.$"):
        cross_validate(experiment, leave_out=["source"])


def test_several_processes_are_refused(tiny_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="crossval runs in one process"):
        cross_validate(tiny_experiment(tiny_images, tmp_path), folds=2)


# -- Leaving out --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Overrides for four weighted sources: two alike, one small of one class, one whose class nobody else has."""
    root = tmp_path_factory.mktemp("sources")
    for seed, (name, labels, train) in enumerate(
        [("first", ("ct", "mri", "xray"), 8), ("second", ("ct", "mri"), 8), ("small", ("ct",), 1), ("own", ("pet",), 3)]
    ):
        write_images(root / name, labels=labels, splits={"train": train, "val": 3, "test": 3}, seed=seed)
    listed = [
        {"kind": "folder", "name": name, "path": str(root / name), "weight": weight}
        for name, weight in {"first": 2.0, "second": 1.0, "small": 1.0, "own": 1.0}.items()
    ]
    return [f"data.sources={json.dumps(listed)}", f"data.store.root={root / 'stores'}", "data.loader.drop_last=true"]


def test_each_source_left_out(tiny_images: Path, tmp_path: Path, sources: list[str]) -> None:
    reporter = Recorder()
    result = cross_validate(
        tiny_experiment(tiny_images, tmp_path / "runs", *sources), leave_out=["source"], reporter=reporter
    )
    found = {fold.name: fold for fold in result.folds}
    assert list(found) == ["first", "second", "small"]
    assert {name: fold.test for name, fold in found.items()} == {"first": 28, "second": 28, "small": 7}
    assert result.pooled.cases == 28 + 28 + 7
    assert list(result.skipped) == ["own"]
    assert "none of its 9 cases has a label that the others have" in result.skipped["own"]
    assert found["small"].metrics["macro_auroc"] is None
    notes = written(result)["notes"]
    assert "own was not tested: none of its 9 cases has a label that the others have." in notes
    assert "first: 14 cases of test left out: training never sees their labels (xray)." in notes
    assert "small: only 7 cases tested: the figures say little." in notes
    assert "small: all cases tested have one label (ct): only how many are found can be measured." in notes
    assert len(list(result.folder.glob("fold-0-first-*/bundle.json"))) == 1
    assert "own is not tested" in "\n".join(reporter.lines)
    page = (result.folder / "crossval.html").read_text(encoding="utf-8")
    assert "each source left out" in page


def test_each_label_of_each_source_left_out(tiny_images: Path, tmp_path: Path, sources: list[str]) -> None:
    result = cross_validate(
        tiny_experiment(
            tiny_images, tmp_path / "runs", *sources, "trainer.max_steps=1", "evaluation.bootstrap_samples=0"
        ),
        leave_out=["source", "label"],
    )
    assert [fold.name for fold in result.folds] == ["first, ct", "first, mri", "second, ct", "second, mri", "small, ct"]
    assert {fold.test for fold in result.folds} == {14, 7}
    assert sorted(result.skipped) == ["first, xray", "own, pet"]


def test_multi_label_folds_are_pooled_too(tmp_path: Path, tiny_images: Path) -> None:
    overrides = [*SECONDS, "task.multi_label=true", "trainer.max_steps=1"]
    result = cross_validate(tiny_experiment(tiny_images, tmp_path / "runs", *overrides), folds=2)
    assert result.pooled.cases == 48
    assert result.pooled.metrics["exact_match"] is not None


def test_how_often_each_fold_answers_is_told_but_not_pooled(tmp_path: Path, tiny_images: Path) -> None:
    recorder = Recorder()
    overrides = [*SECONDS, "task.answers.wanted_accuracy=0.3"]
    result = cross_validate(tiny_experiment(tiny_images, tmp_path / "runs", *overrides), folds=2, reporter=recorder)
    (table,) = (line for line in recorder.lines if line.startswith("over all folds"))
    (row,) = (line.split() for line in table.splitlines() if line.split()[0] == "coverage")
    mean = np.mean([fold.metrics["coverage"] for fold in result.folds])
    assert (float(row[1]), row[4:]) == (pytest.approx(mean, abs=5e-4), ["-", "-", "-"])
    page = (result.folder / "crossval.html").read_text(encoding="utf-8")
    assert "Right when answered" in page
    assert "What depends on the answers of each model alone is not pooled." in page


# -- A real kill --------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["fold-0-*/run.json", "fold-1-*/checkpoints/step-*", "fold-2-*/report.html"])
def test_killed_for_good(whole: CrossvalResult, tiny_images: Path, tmp_path: Path, moment: str) -> None:
    config = tmp_path / "tiny.yaml"
    config.write_text(to_yaml(tiny_experiment(tiny_images, tmp_path / "runs", *SECONDS)), encoding="utf-8")
    command = [sys.executable, "-c", "from consilium.cli import main; main()", "crossval", str(config), "--folds", "3"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob(f"runs/tiny/*/{moment}")) and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait(60) == -signal.SIGKILL
    again = cross_validate(Experiment.load(config), folds=3)
    assert weights(again) == weights(whole)
    assert {**comparable(again), "notes": []} == {**comparable(whole), "notes": []}
    assert Counter(path.name[:6] for path in again.folder.glob("fold-*")) == {"fold-0": 1, "fold-1": 1, "fold-2": 1}
