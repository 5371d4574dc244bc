"""``train``: what it prints, leaves and returns."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import consilium
from consilium.data.batches.readers import ImageReader
from consilium.data.store.store import CaseTable
from consilium.manifest import read_manifest
from consilium.tasks.classify.task import Classify
from consilium.training.dryrun import Trial
from tests.cli.conftest import Cli
from tests.conftest import ImageFolder
from tests.tiny import SESSION


def runs(recipe: Path) -> list[Path]:
    return sorted((recipe.parent / "runs").glob("tiny/*"))


def test_train_leaves_a_bundle_and_says_where(cli: Cli, recipe: Path) -> None:
    answer = cli("train", recipe)
    assert answer.code == 0
    assert answer.err == ""
    (run,) = runs(recipe)
    assert answer.out.splitlines()[-1] == f"finished: {run}"
    assert read_manifest(run).knowledge["labels"] == ["ct", "mri", "xray"]
    for told in (
        "mixture over 1 epochs",
        "parameters",
        "trial step",
        "step 2/2",
        "validation after step 2",
        "test: 12",
    ):
        assert told in answer.out


def test_overrides_win_over_the_file(cli: Cli, recipe: Path) -> None:
    assert cli("train", recipe, "trainer.max_steps=1", "task.head={kind: mlp, hidden_sizes: [4]}").code == 0
    (run,) = runs(recipe)
    manifest = read_manifest(run)
    assert manifest.task.head.kind == "mlp"
    shown = cli("config", "show", recipe, "trainer.max_steps=1", "task.head={kind: mlp, hidden_sizes: [4]}")
    assert shown.out == (run / "config.yaml").read_text(encoding="utf-8")


def test_the_config_of_a_run_repeats_it(cli: Cli, recipe: Path) -> None:
    assert cli("train", recipe).code == 0
    (first,) = runs(recipe)
    assert cli("train", first / "config.yaml").code == 0
    second = next(run for run in runs(recipe) if run != first)
    assert (second / "model.safetensors").read_bytes() == (first / "model.safetensors").read_bytes()


def test_limit_and_dry_run(cli: Cli, recipe: Path) -> None:
    dry = cli("train", recipe, "--dry-run")
    assert dry.code == 0
    assert "dry run: everything is ready" in dry.out
    assert not runs(recipe)
    assert cli("train", recipe, "--limit", 6).code == 0
    assert read_manifest(runs(recipe)[0]).knowledge["training_cases"] == 6
    assert cli("train", recipe, "--limit", 0).code == 2


@pytest.mark.parametrize("stop", ["stop: first_exhausted", "stop: all_exhausted", "stop: steps, steps: 3"])
def test_a_dry_run_tells_what_a_training_will_see(
    cli: Cli, recipe: Path, image_folder: ImageFolder, monkeypatch: pytest.MonkeyPatch, stop: str
) -> None:
    big, small = (
        image_folder(splits={"train": 20, "val": 2}),
        image_folder(recipe.parent / "small", splits={"train": 3}),
    )
    sources = [
        {"kind": "folder", "name": name, "path": str(path), "weight": 1, "split": None}
        for name, path in (("big", big), ("small", small))
    ]
    options = [
        f"data.sources={json.dumps(sources)}",
        f"data.mixture={{{stop}}}",
        "data.loader={batch_size: 4, drop_last: true, workers: 0}",
        "trainer={max_epochs: 3, max_steps: 7, accumulate: 2, precision: fp32, device: cpu}",  # ends in mid-epoch
    ]
    told = cli("train", recipe, "--dry-run", *options).out.splitlines()
    start = next(number for number, line in enumerate(told) if line.startswith("mixture over "))
    table = {
        name: (int(draws), int(seen), float(coverage))
        for name, _, _, draws, _, seen, coverage in (line.split() for line in told[start + 3 : start + 5])
    }
    learned: list[int] = []
    step = Classify.step
    monkeypatch.setattr(
        Classify, "step", lambda task, batch: (learned.extend(batch.rows_B.tolist()), step(task, batch))[1]
    )
    monkeypatch.setattr(SESSION, "dry_run", lambda *_, precision, **__: Trial(precision, 0.1, None, 1))
    tables: list[CaseTable] = []
    monkeypatch.setattr(ImageReader, "__init__", _noting(tables))
    assert cli("train", recipe, *options).code == 0
    source_of = [tables[0].sources[row] for row in learned]
    for name, rows in (("big", 60), ("small", 9)):
        own = [row for row, source in zip(learned, source_of, strict=True) if source == name]
        assert table[name] == (len(own), len(set(own)), pytest.approx(len(set(own)) / rows, abs=1e-3))
    hidden = any("source 'big': only" in line for line in told)
    assert hidden == (table["big"][2] < 0.5)


def _noting(tables: list[CaseTable]) -> Callable[..., None]:
    """A constructor of the reader of images that remembers the table it reads."""
    made = ImageReader.__init__

    def init(reader: ImageReader, table: CaseTable, **options: Any) -> None:
        tables.append(table)
        made(reader, table, **options)

    return init


def test_resume_without_a_run_is_an_error(cli: Cli, recipe: Path) -> None:
    answer = cli("train", recipe, "--resume")
    assert answer.code == 2
    assert "no unfinished run" in answer.err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["optimizer.learning_rat=1"], 2, "`learning_rat` is not a key of `optimizer`; did you mean `learning_rate`?"),
        (["trainer.max_epochs=many"], 2, '`trainer.max_epochs` is "many"; expected a whole number'),
        (["data.sources.0.path=nowhere"], 2, "the folder nowhere does not exist"),
        (["schedule.warmup=2"], 2, "schedule.warmup is 2 steps but the whole training has only 2"),
        (["task.vision.name=resnet5"], 2, "vision.name 'resnet5' is not a timm model; did you mean"),
        (["optimizer={kind: sgd, learning_rate: 1e30}"], 1, "the loss became"),
        (["trainer.max_epochs"], 2, "override 'trainer.max_epochs' has no value"),
    ],
    ids=["key", "type", "file", "warmup", "tower", "loss", "override"],
)
def test_errors_are_a_message_and_an_exit_code(
    cli: Cli, recipe: Path, arguments: list[str], code: int, message: str
) -> None:
    answer = cli("train", recipe, *arguments)
    assert answer.code == code
    assert answer.err.startswith("error: ")
    assert message in answer.err
    assert "Traceback" not in answer.out + answer.err
    assert not list((recipe.parent / "runs").rglob("bundle.json"))


def test_a_traceback_when_asked_for(cli: Cli, recipe: Path) -> None:
    for arguments in (("--traceback", "train", recipe, "seed=x"), ("train", recipe, "seed=x", "--traceback")):
        answer = cli(*arguments)
        assert answer.code == 2
        assert "Traceback (most recent call last)" in answer.err
        assert answer.err.splitlines()[-1].strip().startswith("- `seed` is")


def test_a_missing_file_is_named(cli: Cli, tmp_path: Path) -> None:
    answer = cli("train", tmp_path / "none.yaml")
    assert answer.code == 2
    assert f"config file {tmp_path / 'none.yaml'} does not exist" in answer.err


def test_version_and_help(cli: Cli) -> None:
    assert cli("--version").out.strip() == consilium.__version__
    shown = cli("--help")
    assert shown.code == 0
    for command in ("train", "evaluate", "predict", "demo", "data", "config"):
        assert command in shown.out
    assert cli("trian").code == 2
