"""Options of the run: precision, validation, checkpoints, starts, repetitions, folders, trackers, recipes."""

from __future__ import annotations

import csv
import json
import statistics
from pathlib import Path
from typing import Any

import pytest
import torch

import consilium
from consilium.core.errors import ConfigError, RunFolderError
from consilium.evaluating import evaluate
from consilium.session import train
from tests.policy.source import REPOSITORY
from tests.tiny import Recorder, Run, TrainTiny, same, tiny_experiment

NO_BATCH_STATISTICS = "task.vision.name=test_convnext"
STILL = "optimizer.learning_rate=1e-9"  # nothing improves


def test_the_same_experiment_gives_the_same_weights(tiny: TrainTiny, tiny_run: Run) -> None:
    again = tiny()
    assert same(again.weights, tiny_run.weights)
    assert again.metrics == tiny_run.metrics


# -- Precision and speed ------------------------------------------------------------------------------------------


def state(run: Run) -> dict[str, Any]:
    return dict(json.loads((run.folder / "run.json").read_text(encoding="utf-8")))


def test_precision(tiny: TrainTiny, tiny_run: Run) -> None:
    assert state(tiny_run)["precision"] == "fp32"
    half = tiny("trainer.precision=bf16")
    assert state(half)["precision"] == "bf16"
    assert all(tensor.dtype in (torch.float32, torch.int64) for tensor in half.weights.values())
    difference = (half.weights["head.1.weight"] - tiny_run.weights["head.1.weight"]).abs().max().item()
    assert 0 < difference < 0.01
    chosen = tiny("trainer.precision=auto")
    expected = {"fp32": tiny_run, "bf16": half}[state(chosen)["precision"]]
    assert same(chosen.weights, expected.weights)


def test_deterministic_kernels(tiny: TrainTiny, tiny_run: Run) -> None:
    run = tiny("trainer.deterministic=true")
    assert torch.are_deterministic_algorithms_enabled()
    assert same(run.weights, tiny("trainer.deterministic=true").weights)
    tiny("trainer.deterministic=false")
    assert not torch.are_deterministic_algorithms_enabled()


def test_threads(tiny: TrainTiny) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    tiny(f"trainer.threads={before}")
    assert torch.get_num_threads() == before


@pytest.mark.slow
def test_compile_computes_the_same(tiny: TrainTiny) -> None:
    plain, compiled = (tiny(NO_BATCH_STATISTICS, f"trainer.compile={switch}") for switch in ("false", "true"))
    assert plain.weights.keys() == compiled.weights.keys()
    assert plain.steps("train_loss") == pytest.approx(compiled.steps("train_loss"), rel=1e-3)
    assert consilium.load(compiled.folder).task.labels.leaves == ("ct", "mri", "xray")


# -- Validation and stopping --------------------------------------------------------------------------------------

EPOCHS = ["data.loader.batch_size=4", "trainer.max_steps=null"]  # six steps an epoch


def test_validation_every_so_many_epochs(tiny: TrainTiny) -> None:
    assert tiny(*EPOCHS, "trainer.validate_every=0.5").validations("step") == [3, 6]
    assert tiny(*EPOCHS, "trainer.max_epochs=3", "trainer.validate_every=2").validations("step") == [12, 18]


def test_max_steps_ends_a_training_and_validates(tiny: TrainTiny) -> None:
    run = tiny(*EPOCHS, "trainer.max_epochs=5", "trainer.max_steps=8")
    assert run.validations("step") == [6, 8]
    assert run.steps("step") == list(range(1, 9))


def test_patience_stops_a_training_that_does_not_improve(tiny: TrainTiny) -> None:
    still = [*EPOCHS, STILL, "trainer.max_epochs=9", "trainer.validate_every=0.5"]
    run = tiny(*still, "task.vision.freeze.kind=tower", "trainer.patience=2")
    assert run.validations("step") == [3, 6, 9]  # the first is the best, two without a gain
    assert run.checkpoints("best") == [3]
    assert "macro_f1 has not improved for 2 validations" in run.log


@pytest.mark.parametrize(("monitor", "best_of"), [("log_loss", min), ("accuracy", max), ("macro_auroc", max)])
def test_the_best_weights_are_those_of_the_monitored_metric(tiny: TrainTiny, monitor: str, best_of: Any) -> None:
    fast = ["optimizer={kind: sgd, learning_rate: 0.3}", "trainer.max_epochs=4", "trainer.validate_every=0.5"]
    run = tiny(*EPOCHS, *fast, f"trainer.monitor={monitor}", "task.answers.calibrate=false")
    losses = run.validations("val_log_loss")
    figures, steps = run.validations(f"val_{monitor}"), run.validations("step")
    assert len(figures) == 8
    best = best_of(figures)
    ties = [(loss, step) for figure, loss, step in zip(figures, losses, steps, strict=True) if figure == best]
    assert run.checkpoints("best") == [min(ties)[1]]  # of equals that with the lower log loss
    assert run.metrics["val"][monitor] == pytest.approx(best, rel=1e-6)


def test_a_metric_that_does_not_exist_is_refused_before_the_first_step(tiny: TrainTiny) -> None:
    with pytest.raises(ConfigError, match="'makro_f1' is not a metric of this task"):
        tiny("trainer.monitor=makro_f1")


def test_a_figure_that_needs_the_order_of_labels_is_monitored_only_where_somebody_gave_it(tiny: TrainTiny) -> None:
    with pytest.raises(ConfigError, match=r"needs the order of the labels.* task\.tree\.nodes.*\[ct, mri, xray\]"):
        tiny("trainer.monitor=quadratic_kappa")
    run = tiny("trainer.monitor=quadratic_kappa", "task.tree.nodes=[xray, ct, mri]")
    assert run.metrics["test"]["quadratic_kappa"] is not None
    assert "xray, ct, mri" in (run.folder / "report.html").read_text(encoding="utf-8")
    assert evaluate(run.folder).metrics["quadratic_kappa"] == pytest.approx(run.metrics["test"]["quadratic_kappa"])
    assert tiny().metrics["test"]["quadratic_kappa"] is None


# -- Checkpoints --------------------------------------------------------------------------------------------------


def test_checkpoints_every_so_many_epochs_of_which_the_last_are_kept(tiny: TrainTiny) -> None:
    saved = [*EPOCHS, "trainer.max_epochs=2", "trainer.save_every=0.5"]
    assert tiny(*saved, "trainer.keep_last=3").checkpoints("step") == [6, 9, 12]
    assert tiny(*saved).checkpoints("step") == [12]
    assert tiny(*EPOCHS, "trainer.max_epochs=3", "trainer.save_every=2", "trainer.keep_last=9").checkpoints("step") == [
        12,
        18,
    ]


# -- Several runs -------------------------------------------------------------------------------------------------


def test_several_runs_have_a_mean_and_a_deviation(tiny: TrainTiny, tiny_run: Run) -> None:
    run = tiny("trainer.num_runs=3")
    folders = sorted(path.parent for path in run.result.folder.rglob("bundle.json"))
    assert [folder.name for folder in folders] == ["seed-0", "seed-1", "seed-2"]
    assert [one.folder for one in run.result.runs] == folders
    assert same(run.weights, tiny_run.weights)  # the first has the seed of the experiment
    summary = json.loads((run.result.folder / "summary.json").read_text(encoding="utf-8"))
    assert summary["runs"] == [folder.name for folder in folders]
    manifests = [json.loads((folder / "bundle.json").read_text(encoding="utf-8")) for folder in folders]
    assert [manifest["seed"] for manifest in manifests] == [0, 1, 2]
    for split in ("val", "test"):
        rows = {row["metric"]: row for row in summary["splits"][split]}
        defined = {name for name, value in manifests[0]["metrics"][split].items() if value is not None}
        assert set(rows) == defined
        for name, row in rows.items():
            values = [manifest["metrics"][split][name] for manifest in manifests]
            assert row["mean"] == pytest.approx(statistics.mean(values))
            assert row["deviation"] == pytest.approx(statistics.stdev(values))
    assert any(line.startswith("test: mean and standard deviation over 3 runs") for line in run.reporter.lines)


# -- Run folders --------------------------------------------------------------------------------------------------


def runs_in(path: Path) -> list[Path]:
    return sorted(path.glob("tiny/*"))


def test_a_run_has_a_folder_of_its_own(tiny: TrainTiny, tmp_path: Path) -> None:
    first, second = tiny(), tiny()
    other = tiny("output.variation=other", "name=second")
    assert first.folder != second.folder
    assert runs_in(tmp_path / "runs") == sorted([first.folder, second.folder])
    assert other.folder.parent == tmp_path / "runs" / "second"
    assert other.folder.name.startswith("other-")
    present = {path.name for path in first.folder.iterdir()}
    assert {"config.yaml", "log.txt", "history.csv", "tensorboard", "report.html", "MODEL_CARD.md"} <= present
    assert list((first.folder / "tensorboard").glob("events.*"))


def test_an_existing_run_is_refused_or_replaced(tiny: TrainTiny, tmp_path: Path) -> None:
    tiny()
    with pytest.raises(RunFolderError, match=r"exists and output\.if_exists is refuse"):
        tiny("output.if_exists=refuse")
    third = tiny("output.if_exists=replace")
    assert runs_in(tmp_path / "runs") == [third.folder]


@pytest.mark.parametrize("way", ["option", "config"])
def test_an_interrupted_run_is_resumed_and_ends_as_if_nothing_had_happened(
    tiny: TrainTiny, tiny_images: Path, tmp_path: Path, way: str
) -> None:
    long = ["trainer.max_epochs=2", "trainer.max_steps=5", "trainer.save_every=0.34", "schedule.kind=cosine"]
    whole = tiny(*long, "output.variation=whole")
    broken = tiny_experiment(tiny_images, tmp_path / "runs", *long)
    with pytest.raises(KeyboardInterrupt):
        train(broken, reporter=Recorder(stop_at=3))
    (folder,) = [path for path in runs_in(tmp_path / "runs") if path.name.startswith("default")]
    assert not (folder / "bundle.json").exists()
    resumed = tiny(*long, resume=True) if way == "option" else tiny(*long, "output.if_exists=resume")
    assert resumed.folder == folder
    assert "resumed from step-" in resumed.log
    assert same(resumed.weights, whole.weights)
    assert resumed.metrics == whole.metrics
    assert resumed.steps("step") == whole.steps("step")


def test_a_run_is_never_resumed_with_another_config_or_limit(
    tiny: TrainTiny, tiny_images: Path, tmp_path: Path
) -> None:
    with pytest.raises(RunFolderError, match="no unfinished run"):
        tiny(resume=True)
    with pytest.raises(KeyboardInterrupt):
        train(tiny_experiment(tiny_images, tmp_path / "runs"), reporter=Recorder(stop_at=1))
    with pytest.raises(RunFolderError, match=r"another config: optimizer\.learning_rate was"):
        tiny("optimizer.learning_rate=1e-4", resume=True)
    with pytest.raises(RunFolderError, match="--limit was null and is 6"):
        tiny(resume=True, limit=6)
    assert tiny(resume=True).folder == runs_in(tmp_path / "runs")[0]


# -- Trackers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("trainer.wandb=true", [b"tiny"]),
        ("trainer.wandb={project: figures, entity: our_team}", [b"figures", b"our_team"]),
    ],
)
def test_weights_and_biases_offline(
    tiny: TrainTiny, tiny_run: Run, monkeypatch: pytest.MonkeyPatch, override: str, told: list[bytes]
) -> None:
    pytest.importorskip("wandb", reason="wandb is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    run = tiny(override)
    (folder,) = (run.folder / "wandb").glob("offline-run-*")
    (written,) = folder.glob("*.wandb")
    assert all(word in written.read_bytes() for word in [b"train/loss", *told])
    assert same(run.weights, tiny_run.weights)


def test_the_log_tells_what_the_experiment_asked_for(tiny: TrainTiny) -> None:
    run = tiny("trainer.log_every=2", "trainer.max_epochs=2", "trainer.max_steps=5")
    told = [line.split()[3] for line in run.log.splitlines() if "  step " in line]
    assert told == ["1/5", "2/5", "4/5", "5/5"]
    assert all("waits for data" in line for line in run.log.splitlines() if "  step " in line)


# -- Evaluation and report ----------------------------------------------------------------------------------------


def test_intervals_and_thumbnails_are_the_configs(tiny: TrainTiny) -> None:
    metrics: list[dict[str, Any]] = []
    pages = []
    for overrides in (
        ["evaluation.bootstrap_samples=0", "report.images=false"],
        ["evaluation.bootstrap_samples=50", "report.images=true", "report.cases=3"],
    ):
        run = tiny(*overrides)
        metrics.append(json.loads((run.folder / "metrics.json").read_text(encoding="utf-8")))
        pages.append((run.folder / "report.html").read_text(encoding="utf-8"))
    none, some = (found["test"]["intervals"]["macro_f1"] for found in metrics)
    assert none["low"] is None
    assert some["low"] <= some["value"] <= some["high"]
    assert ["data:image/jpeg" in page for page in pages] == [False, True]


def test_figures_per_column_and_at_the_configs_levels(tiny: TrainTiny, tiny_images: Path, tmp_path: Path) -> None:
    files = sorted(tiny_images.rglob("*.jpg"))
    table = tmp_path / "cases.csv"
    rows = [f"{path},{path.parent.name},{path.parent.parent.name},s{n % 2}" for n, path in enumerate(files)]
    table.write_text("\n".join(["image,label,split,scanner", *rows]) + "\n", encoding="utf-8")
    run = tiny(
        f"data.sources=[{{kind: csv, name: cases, path: '{table}'}}]",
        f"data.store.root={tmp_path / 'stores'}",
        "task.answers={specificities: [0.5], calibration_bins: 4}",
        "evaluation={columns: [source, scanner], bootstrap_samples: 20}",
    )

    def table_of(name: str) -> list[dict[str, str]]:
        with (run.folder / "tables" / f"test_{name}.csv").open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))

    assert [(row["scanner"], row["n"]) for row in table_of("per_scanner")] == [("s0", "6"), ("s1", "6")]
    assert [row["source"] for row in table_of("per_source")] == ["cases"]
    assert len(table_of("calibration")) == 4
    assert "sensitivity_at_specificity_0.50" in table_of("per_class")[0]
    assert "sensitivity_at_specificity_0.95" not in table_of("per_class")[0]


# -- Recipes ------------------------------------------------------------------------------------------------------

RECIPES = sorted(path for path in (REPOSITORY / "recipes").glob("*.yaml") if not path.stem.endswith("_demo"))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_recipes_default_to_pretrained_towers_and_name_no_machine(
    recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONSILIUM_DATA", "/somewhere")
    experiment = consilium.Experiment.load(recipe)
    assert experiment.task.vision.pretrained is True
    assert all(source.path.startswith("/somewhere/") for source in experiment.data.sources)
    monkeypatch.delenv("CONSILIUM_DATA")
    assert all(source.path.startswith("data/") for source in consilium.Experiment.load(recipe).data.sources)


@pytest.mark.slow
def test_the_default_recipe_takes_two_steps_at_full_size(tiny_images: Path, tmp_path: Path) -> None:
    overrides = [
        "task.vision.pretrained=false",
        f"data.sources.0.path={tiny_images}",
        f"data.store.root={tmp_path / 'stores'}",
        f"output.root={tmp_path / 'runs'}",
        "data.loader.batch_size=8",
        "trainer.max_steps=2",
        "schedule.warmup=0",
    ]
    experiment = consilium.Experiment.load(REPOSITORY / "recipes" / "router.yaml", overrides=overrides)
    assert experiment.task.vision.name == "resnet50"
    assert experiment.data.image.size == (224, 224)
    result = consilium.train(experiment)
    assert result is not None
    answer = consilium.load(result.bundle).predict(sorted(tiny_images.rglob("*.jpg"))[:2])
    assert [sum(record["probabilities"].values()) for record in answer] == pytest.approx([1, 1], abs=1e-5)
