"""Trainings whose monitored figure ties, rests or is undefined still keep the weights that learned most."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.session.tables import Row, coloured_rows, write_table
from tests.tiny import Recorder, Run, same, train_tiny

LABELS = ("ct", "mri", "xray")
FEW_STEPS = ["data.loader.batch_size=12", "trainer.max_steps=null", "trainer.max_epochs=6"]
RARE = ["task.multi_label=true", "task.vision.freeze.kind=tower", "optimizer.learning_rate=0.01"]
RARE_AND_F1 = [*RARE, "trainer.monitor=macro_f1", "task.answers.threshold=0.95"]  # which nothing reaches

Train = Callable[..., Run]


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[Row]:
    return coloured_rows(tmp_path_factory.mktemp("images"), LABELS, {"train": 8, "val": 4, "test": 4})


@pytest.fixture
def on(rows: list[Row], tmp_path: Path) -> Train:
    """Trains on rows of its own choice."""

    def run(*overrides: str, keep: Callable[[Row], bool] = lambda _: True, **options: object) -> Run:
        table = write_table(tmp_path, [row for row in rows if keep(row)])
        stores = f"data.store.root={tmp_path / 'stores'}"
        return train_tiny(tmp_path, tmp_path / "runs", *FEW_STEPS, table, stores, *overrides, **options)

    return run


def test_where_the_f1_rests_at_zero_log_loss_chooses_and_patience_holds(on: Train) -> None:
    run = on(*RARE_AND_F1, "trainer.patience=2")
    assert set(run.validations("val_macro_f1")) == {0.0}
    losses = run.validations("val_log_loss")
    assert len(losses) == 6  # patience has not run out
    assert losses.index(min(losses)) == 5
    assert run.checkpoints("best") == [12]
    assert "best macro_f1 0.0000, log_loss" in run.log


def test_a_plateau_schedule_waits_while_log_loss_falls(on: Train) -> None:
    run = on(*RARE_AND_F1, "schedule={kind: plateau, patience: 0, factor: 0.1}")
    assert set(run.steps("learning_rate_head")) == {0.01}


def test_many_labels_are_chosen_by_a_ranking_unless_the_config_says_otherwise(on: Train) -> None:
    run = on(*RARE)
    areas = list(zip(run.validations("val_macro_auroc"), [-x for x in run.validations("val_log_loss")], strict=True))
    assert run.checkpoints("best") == [2 * areas.index(max(areas)) + 2]
    assert "best macro_auroc" in run.log
    assert "monitor: macro_auroc" in (run.folder / "config.yaml").read_text(encoding="utf-8")


def test_a_figure_that_validation_does_not_define_leaves_a_bundle_and_a_word(on: Train) -> None:
    run = on("trainer.monitor=macro_auroc", keep=lambda row: row["split"] != "val" or row["label"] == "ct")
    assert run.log.count("note: macro_auroc is undefined on validation") == 1
    losses = run.validations("val_log_loss")
    assert run.checkpoints("best") == [2 * losses.index(min(losses)) + 2]
    assert "macro_auroc is undefined on validation" in (run.folder / "report.html").read_text(encoding="utf-8")


def test_a_resumed_run_remembers_the_tie_breaker(on: Train) -> None:
    whole = on(*RARE_AND_F1, "trainer.patience=2", "output.variation=whole")
    with pytest.raises(KeyboardInterrupt):
        on(*RARE_AND_F1, "trainer.patience=2", reporter=Recorder(stop_at=7))
    again = on(*RARE_AND_F1, "trainer.patience=2", resume=True)
    assert again.checkpoints("best") == whole.checkpoints("best")
    assert same(again.weights, whole.weights)
    ends = [next(line for line in run.log.splitlines() if "training ended" in line)[21:] for run in (again, whole)]
    assert ends[0] == ends[1]
