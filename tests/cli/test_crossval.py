"""``crossval``: what it prints and returns."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.conftest import Cli


def test_crossval_prints_the_figures_and_says_where(cli: Cli, recipe: Path) -> None:
    answer = cli("crossval", recipe, "--folds", 2, "trainer.max_steps=1")
    assert answer.code == 0, answer.err
    folder = recipe.parent / "runs" / "tiny" / "crossval-default-2-folds"
    assert answer.out.splitlines()[-1] == f"finished: {folder}"
    for told in ("2 trainings", "-- fold 1 --", "test figures of each fold", "over all folds", "crossval.html"):
        assert told in answer.out
    again = cli("crossval", folder / "config.yaml", "--folds", 2)
    assert again.code == 0
    assert "fold 1 is finished" in again.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "crossval needs --folds K or --leave-out source"),
        (["--folds", 2, "--leave-out", "source"], "give one of them"),
        (["--leave-out", "source, label", "--limit", 3], "no value of source and label can be left out"),
        (["--leave-out", "hospital"], "names the column 'hospital'"),
        (["--folds", 1], "Invalid value"),
    ],
)
def test_what_can_be_mended_exits_2(cli: Cli, recipe: Path, arguments: list[object], message: str) -> None:
    answer = cli("crossval", recipe, *arguments)
    assert answer.code == 2
    assert message in answer.err


def test_a_fold_that_fails_exits_1_and_is_named(cli: Cli, recipe: Path) -> None:
    answer = cli("crossval", recipe, "--folds", 2, "optimizer={kind: sgd, learning_rate: 1e30}")
    assert answer.code == 1
    assert "error: fold 0: the loss became" in answer.err
    assert "Traceback" not in answer.err
