"""What looking at data says, the training, its report and a cross-validation say too, where figures depend on it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from tests.bad_input.conftest import runs
from tests.cli.conftest import Cli


def box(page: Path) -> str:
    """What a page says before anyone relies on it."""
    return page.read_text(encoding="utf-8").split("Before you rely on this")[1].split("</aside>")[0]


def test_a_label_like_a_missing_value_and_a_class_without_validation(cli: Cli, recipe: Path, images: Path) -> None:
    for split in ("train", "val", "test"):
        (images / split / "xray").rename(images / split / "nan")
    shutil.rmtree(images / "val" / "ct")
    told = ("val has no case of: ct; the best weights are chosen without them.", "look like a missing value: 'nan'")
    answer = cli("train", recipe, f"data.sources.0.path={images}")
    assert answer.code == 0, answer.err
    (run,) = runs(recipe)
    for text in told:
        assert text in answer.out
        assert text.replace("'", "&#39;") in box(run / "report.html")
    answer = cli("crossval", recipe, "--folds", 2, f"data.sources.0.path={images}", "trainer.max_steps=1")
    assert answer.code == 0, answer.err
    folder = recipe.parent / "runs" / "tiny" / "crossval-default-2-folds"
    assert told[1].replace("'", "&#39;") in box(folder / "crossval.html")
    assert any(told[1] in note for note in json.loads((folder / "crossval.json").read_text(encoding="utf-8"))["notes"])
