"""``consilium compare``."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.conftest import Cli


@pytest.fixture
def other(recipe: Path) -> Path:
    """A second config beside the recipe."""
    path = recipe.parent / "fast.yaml"
    path.write_text("extends: tiny.yaml\noptimizer: {learning_rate: 1e-2}\n", encoding="utf-8")
    return path


def test_compares_and_goes_on(cli: Cli, recipe: Path, other: Path) -> None:
    answer = cli("compare", recipe, other, "--runs", 1, "trainer.max_steps=1")
    assert answer.code == 0, answer.err
    folder = recipe.parent / "runs" / "tiny" / "compare-default-tiny-fast"
    for told in (
        "2 trainings",
        "seeds: 0",
        "what decides: macro_f1 on test, of the weights for which it is best on validation",
        "-- fast, seed 0 --",
        "compare.html",
        f"finished: {folder}",
    ):
        assert told in answer.out
    again = cli("compare", folder / "tiny.yaml", folder / "fast.yaml", "--runs", 1)
    assert again.code == 0, again.err
    assert "fast, seed 0 is finished" in again.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tiny.yaml"], "compare needs two experiments or more, but got 1 experiment"),
        (["trainer.max_epochs=1"], "but got 0 experiments"),
        (["tiny.yaml", "tiny.yaml"], "is given twice"),
        (["tiny.yaml", "nowhere.yaml"], "nowhere.yaml does not exist"),
        (["tiny.yaml", "fast.yaml", "trainer.max_epoch=1"], "did you mean `max_epochs`"),
        (["tiny.yaml", "fast.yaml", "trainer.num_runs=2"], "tiny: trainer.num_runs is 2"),
        (["tiny.yaml", "fast.yaml", "--runs", "0"], "Invalid value"),
        ([], "Missing argument"),
    ],
    ids=str,
)
def test_what_can_be_mended_exits_2(
    cli: Cli, recipe: Path, other: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(recipe.parent)
    answer = cli("compare", *arguments)
    assert answer.code == 2
    assert message in answer.err
    assert "Traceback" not in answer.err
