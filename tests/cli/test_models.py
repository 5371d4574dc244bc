"""``models``: the list, and the folder that every command looks into first."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.cli.conftest import Cli


@pytest.mark.parametrize("words", [["--from", "{}", "models"], ["models", "--from={}"], ["models", "--from", "{}"]])
def test_the_folder_may_stand_anywhere(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    monkeypatch.setenv("CONSILIUM_MODELS", "")
    assert cli("models").out.splitlines()[0].split()[-1] == "recipes"
    (tmp_path / "google" / "siglip-base-patch16-224").mkdir(parents=True)
    (tmp_path / "google" / "siglip-base-patch16-224" / "config.json").write_text("{}", encoding="utf-8")
    answer = cli(*(word.format(tmp_path) for word in words))
    assert (answer.code, answer.err) == (0, "")
    there = {line.split()[0]: line.split()[-1] for line in answer.out.splitlines()[2:-2]}
    assert there.pop("google/siglip-base-patch16-224") == "yes"
    assert set(there.values()) == {"no"}
    assert os.environ["CONSILIUM_MODELS"] == str(tmp_path)


def test_a_training_looks_there(cli: Cli, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONSILIUM_MODELS", "")
    words = ("train", recipe, "task.vision.pretrained=true", "--dry-run", "--from")
    answer = cli(*words, tmp_path / "none")
    assert answer.code == 2
    assert "which is no folder" in answer.err
    answer = cli(*words, tmp_path)
    assert answer.code == 2
    assert f"{tmp_path} (--from) does not hold it. Where there is a network, `consilium models fetch" in answer.err


def test_what_cannot_be_fetched_is_exit_code_2(cli: Cli, tmp_path: Path) -> None:
    answer = cli("models", "fetch", "resnet5o", "--to", tmp_path)
    assert (answer.code, answer.out) == (2, "")
    assert "'resnet5o' is no model on the hub" in answer.err
