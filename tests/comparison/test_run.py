"""A comparison: the same seeds and test cases for all, every training a bundle, and a stop changes nothing."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import consilium
from consilium.comparison import CompareResult, compare
from consilium.core.errors import ConfigError, DataError, NonFiniteLossError, RunFolderError
from consilium.evaluating import evaluate
from consilium.experiment import Experiment
from tests.conftest import write_images
from tests.tasks.test_align_contract import experiment_of
from tests.tiny import Recorder, tiny_experiment

FAST = "optimizer.learning_rate=1e-2"


def pair(images: Path, runs: Path, *overrides: str) -> dict[str, Experiment]:
    return {
        "slow": tiny_experiment(images, runs, *overrides),
        "fast": tiny_experiment(images, runs, FAST, *overrides),
    }


@pytest.fixture(scope="module")
def whole(tiny_images: Path, tmp_path_factory: pytest.TempPathFactory) -> CompareResult:
    """Two configs with two seeds; no test changes them."""
    runs = tmp_path_factory.mktemp("compare") / "runs"
    return compare(pair(tiny_images, runs), runs=2, reporter=Recorder())


def written(result: CompareResult) -> dict[str, Any]:
    return dict(json.loads((result.folder / "compare.json").read_text(encoding="utf-8")))


def comparable(result: CompareResult) -> Any:
    """All that was found, without the folders, which tell the time."""
    tree = written(result)
    for run in tree["runs"]:
        run["folder"] = ""
    return tree


def weights(result: CompareResult) -> list[bytes]:
    return [(Path(run.folder) / "model.safetensors").read_bytes() for run in result.runs]


def test_every_training_is_a_bundle_with_the_figures_that_are_compared(whole: CompareResult) -> None:
    assert whole.folder.parts[-2:] == ("tiny", "compare-default-slow-fast")
    assert [(run.name, run.seed) for run in whole.runs] == [("slow", 0), ("fast", 0), ("slow", 1), ("fast", 1)]
    for run in whole.runs:
        judged = evaluate(run.folder)
        assert judged.metrics == pytest.approx(run.test.metrics, abs=1e-6)
        assert judged.intervals.keys() == run.test.intervals.keys()
        assert json.loads((Path(run.folder) / "metrics.json").read_text())["val"]["metrics"] == run.val
        own = Experiment.load(Path(run.folder) / "config.yaml")
        assert (own.seed, own.optimizer.learning_rate) == (run.seed, 1e-2 if run.name == "fast" else 1e-3)
    assert len(set(weights(whole))) == 4
    assert whole.decides == "macro_f1"
    assert repr(whole).startswith(f"<CompareResult {whole.folder}: macro_f1 of fast ")


def test_differences_are_of_the_same_seed(whole: CompareResult) -> None:
    values = {(run.name, run.seed): run.test.metrics["accuracy"] or 0 for run in whole.runs}
    found = whole.differences["fast"]["accuracy"]
    assert found.seeds == [values["fast", seed] - values["slow", seed] for seed in (0, 1)]
    assert found.mean == pytest.approx(np.mean(found.seeds))
    tree = written(whole)
    assert tree["differences"]["fast"]["accuracy"]["low"] == found.low
    assert tree["changes"] == [{"key": "optimizer.learning_rate", "slow": "0.001", "fast": "0.01"}]


def test_the_same_call_again_trains_nothing_and_more_runs_add_some(
    whole: CompareResult, tiny_images: Path, tmp_path: Path
) -> None:
    experiments = pair(tiny_images, tmp_path / "runs")
    one = compare(experiments, runs=1, quiet=True)
    reporter = Recorder()
    again = compare(experiments, runs=1, reporter=reporter)
    assert not [bar for bar in reporter.bars if bar[0] == "train"]
    assert sum("is finished" in line for line in reporter.lines) == 2
    assert comparable(again) == comparable(one)
    assert again.differences == one.differences
    two = compare({name: Experiment.load(one.folder / f"{name}.yaml") for name in experiments}, runs=2, quiet=True)
    assert two.folder == one.folder
    assert [run.folder for run in two.runs[:2]] == [run.folder for run in one.runs]
    assert weights(two) == weights(whole)
    assert comparable(two) == comparable(whole)


def test_three_configs_are_compared_to_the_end(tiny_images: Path, tmp_path: Path) -> None:
    """Each against the first, with a row in the plot and a column in the tables."""
    experiments = pair(tiny_images, tmp_path / "runs")
    experiments["still"] = tiny_experiment(tiny_images, tmp_path / "runs", "optimizer.learning_rate=1e-9")
    found = compare(experiments, runs=1, quiet=True)
    assert [(run.name, run.seed) for run in found.runs] == [("slow", 0), ("fast", 0), ("still", 0)]
    values = {run.name: run.test.metrics["macro_f1"] or 0 for run in found.runs}
    assert {name: own["macro_f1"].seeds for name, own in found.differences.items()} == {
        name: [values[name] - values["slow"]] for name in ("fast", "still")
    }
    tree = written(found)
    assert tree["changes"] == [{"key": "optimizer.learning_rate", "slow": "0.001", "fast": "0.01", "still": "1e-09"}]
    with (found.folder / "compare.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["config"] for row in rows if row["figure"] == "macro_f1"] == ["slow", "fast", "still"]
    page = (found.folder / "compare.html").read_text(encoding="utf-8")
    assert "<h1>fast and still against slow</h1>" in page
    plot = page.partition("<svg")[2].partition("</svg>")[0]
    assert [name for name in experiments if f"<title>{name}</title>" in plot] == ["fast", "still"]
    assert page.partition("<thead>")[2].partition("</thead>")[0].count("&#8722; slow") == 2


class StopIn(Recorder):
    """Stops a training, by its number, after its first step."""

    def __init__(self, number: int, stop: BaseException) -> None:
        super().__init__()
        self.number, self.error, self.starts = number, stop, 0

    def progress(self, name: str, done: int, total: int | None, text: str = "") -> None:
        self.starts += name == "train" and done == 1
        if name == "train" and self.starts == self.number:
            raise self.error


def test_stopped_and_started_again(whole: CompareResult, tiny_images: Path, tmp_path: Path) -> None:
    experiments = pair(tiny_images, tmp_path / "runs")
    with pytest.raises(KeyboardInterrupt):
        compare(experiments, runs=2, reporter=StopIn(3, KeyboardInterrupt()))
    folder = tmp_path / "runs" / "tiny" / "compare-default-slow-fast"
    assert not (folder / "compare.json").exists()
    first = {path.name: path.stat().st_mtime_ns for path in folder.glob("*-seed-0-*/*")}
    again = compare(experiments, runs=2, reporter=Recorder())
    assert {path.name: path.stat().st_mtime_ns for path in folder.glob("*-seed-0-*/*")} == first
    assert len(list(folder.glob("slow-seed-1-*"))) == 1, "the third training was resumed in place"
    assert weights(again) == weights(whole)
    assert comparable(again) == comparable(whole)


def test_a_training_that_fails_is_named_and_the_others_are_kept(tiny_images: Path, tmp_path: Path) -> None:
    with pytest.raises(
        NonFiniteLossError, match=r"^fast, seed 0: the loss became nan\. What is finished is kept in .*slow-fast"
    ):
        compare(
            pair(tiny_images, tmp_path / "runs"), runs=2, reporter=StopIn(2, NonFiniteLossError("the loss became nan."))
        )
    found = (tmp_path / "runs").rglob("bundle.json")
    assert [path.parent.name[:11] for path in found] == ["slow-seed-0"]


def test_what_is_wrong_with_one_shows_before_any_is_trained(tiny_images: Path, tmp_path: Path) -> None:
    experiments = pair(tiny_images, tmp_path / "runs")
    experiments["broken"] = tiny_experiment(tiny_images, tmp_path / "runs", "trainer.init_from=nowhere")
    reporter = Recorder()
    with pytest.raises(consilium.ConsiliumError, match=r"^broken, seed 0: .*nowhere"):
        compare(experiments, runs=2, reporter=reporter)
    assert not reporter.bars or not [bar for bar in reporter.bars if bar[0] == "train"]
    assert not list((tmp_path / "runs").rglob("run.json"))


def test_a_config_against_itself_differs_by_nothing(tiny_images: Path, tmp_path: Path) -> None:
    one = tiny_experiment(tiny_images, tmp_path / "runs")
    found = compare({"a": one, "b": one}, runs=1, quiet=True)
    for difference in found.differences["b"].values():
        assert (difference.mean, difference.low, difference.high) in ((0, 0, 0), (0, None, None))
    assert written(found)["sentences"][0].startswith("b and a have the same Macro F1, with every seed")
    assert written(found)["changes"] == []


def test_another_config_does_not_mix_with_finished_runs(whole: CompareResult, tiny_images: Path) -> None:
    root = whole.folder.parents[1]
    with pytest.raises(
        RunFolderError, match=r"^slow, seed 0: .*another config: trainer\.max_steps was 2 and is 1.*`output\.variation`"
    ):
        compare(pair(tiny_images, root, "trainer.max_steps=1"), runs=2, quiet=True)
    with pytest.raises(RunFolderError, match="--limit was null and is 9"):
        compare(pair(tiny_images, root), runs=2, limit=9, quiet=True)
    other = compare(pair(tiny_images, root, "trainer.max_steps=1", "output.variation=short"), runs=1, quiet=True)
    assert other.folder.name == "compare-short-slow-fast"


# -- What can be compared -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ([], {"runs": 0}, "runs is 0; expected the number of seeds"),
        (["trainer.num_runs=3"], {}, r"fast: trainer\.num_runs is 3.*give --runs"),
        (
            ["task.multi_label=true"],
            {},
            "slow and fast cannot be compared: they are not judged by the same figures: acc",
        ),
        (["data.split={folds: 2, fold: 0}"], {}, "have not the same test cases: 6 in both, 6 cases only in slow "),
        (["data.filters.labels=[ct, mri]"], {}, "8 in both, 4 cases only in slow .*test/xray/"),
        (
            ["data.rename_labels={mri: mr}"],
            {},
            r"of the test case \S+ the label is \('mri',\) for slow and \('mr',\) for",
        ),
        (["data.filters.sources=[none]"], {}, "none"),
    ],
    ids=str,
)
def test_what_is_refused(
    tiny_images: Path, tmp_path: Path, change: list[str], options: dict[str, Any], message: str
) -> None:
    experiments = pair(tiny_images, tmp_path / "runs")
    experiments["fast"] = tiny_experiment(tiny_images, tmp_path / "runs", *change)
    with pytest.raises((ConfigError, DataError), match=message):
        compare(experiments, quiet=True, **options)
    assert not (tmp_path / "runs").exists()


def test_what_is_no_pair_of_experiments(tiny_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = tiny_experiment(tiny_images, tmp_path)
    for given, message in (
        ({"a": one}, "needs two experiments or more, but got 1 experiment"),
        ([one, one], "takes experiments by name"),
        ({"a": one, "b": "b.yaml"}, "the experiment is 'b.yaml'; expected what"),
        ({"a": one, "b/c": one}, "an experiment is named 'b/c'"),
        ({"a": one, "b": experiment_of(tmp_path)}, r"one kind can be compared, but a is classify, b is align"),
    ):
        with pytest.raises(ConfigError, match=message):
            compare(given, quiet=True)  # type: ignore[arg-type]
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="compare runs in one process"):
        compare({"a": one, "b": one}, quiet=True)


def test_no_test_split(tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", splits={"train": 8, "val": 4})
    with pytest.raises(DataError, match="no case is in the test split"):
        compare(pair(images, tmp_path / "runs", "data.split.test=0"), quiet=True)


def test_more_training_data_and_another_budget_are_compared_and_said(tiny_images: Path, tmp_path: Path) -> None:
    write_images(tmp_path / "more", splits={"train": 4}, seed=5)
    sources = [
        {"kind": "folder", "name": "images", "path": str(tiny_images)},
        {"kind": "folder", "name": "more", "path": str(tmp_path / "more"), "split": "train"},
    ]
    store = f"data.store.root={tmp_path / 'stores'}"
    experiments = {
        "few": tiny_experiment(tiny_images, tmp_path / "runs", store),
        "many": tiny_experiment(
            tiny_images,
            tmp_path / "runs",
            store,
            f"data.sources={json.dumps(sources)}",
            "trainer.max_steps=3",
            "trainer.monitor=accuracy",
            "seed=7",
            "evaluation.confidence=0.9",
        ),
    }
    found = compare(experiments, runs=1, quiet=True)
    notes = " ".join(written(found)["notes"])
    for said in (
        "the budgets differ: trainer.max_steps is 2 for few, 3 for many.",
        "the training data differ: few on 24, many on 34 cases.",
        "the validation cases are not the same, so that their figures do not compare",
        "many keeps the weights that are best by accuracy on validation, not by macro_f1, which decides.",
        "the seeds begin with that of few, 0, also for many.",
        "the section evaluation is that of few also for many.",
        "One seed says nothing of other trainings",
    ):
        assert said in notes
    assert {run.seed for run in found.runs} == {0}
    assert found.runs[1].test.groups == found.runs[0].test.groups


# -- Another family -----------------------------------------------------------------------------------------------


def test_experts_of_captioned_images(tmp_path: Path) -> None:
    experiments = {
        "softmax": experiment_of(tmp_path, "trainer.max_epochs=1"),
        "sigmoid": experiment_of(tmp_path, "trainer.max_epochs=1", "task.loss={kind: sigmoid}"),
    }
    found = compare(experiments, runs=2, quiet=True)
    assert found.decides == "mean_recall"
    difference = found.differences["sigmoid"]["mean_recall"]
    assert difference.low <= difference.mean <= difference.high  # type: ignore[operator]
    page = (found.folder / "compare.html").read_text(encoding="utf-8")
    assert "Mean recall (decides)" in page
    assert "task.<wbr>loss.<wbr>kind" in page
    experiments["other"] = experiment_of(tmp_path / "other", texts={"green": "Nothing but green"})
    with pytest.raises(
        DataError, match=r"the text is \('A square that is green.* and \('Nothing but green',\) for other"
    ):
        compare(experiments, runs=1, quiet=True)
