"""``config convert``: the file, the report, and that what it writes is what other commands read."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from tests.cli.conftest import Cli

THEIRS = """
output_dir: out/us
model_name_or_path: clip
dataset_configs: [US: {dataset_name: us.jsonl, caption_column: caption}]
save_steps: 0.1
lerning_rate: 3
"""


@pytest.fixture
def theirs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = Path("theirs.yaml")
    path.write_text(THEIRS, encoding="utf-8")
    return path


def test_a_file_becomes_ours_and_the_report_is_printed(cli: Cli, theirs: Path) -> None:
    answer = cli("config", "convert", theirs, "--out", "ours.yaml")
    assert answer.code == 0
    assert answer.out.startswith("ours.yaml is written.\nmapped:\n")
    assert "  save_steps: 0.1 -> trainer.save_every: 10 %\n" in answer.out
    assert "not mapped:\n  lerning_rate: 3: no parameter that is known; did you mean `learning_rate`?" in answer.out
    assert answer.out.endswith("run:\n  consilium train ours.yaml\n")
    shown = yaml.safe_load(cli("config", "show", "ours.yaml").out)
    assert (shown["name"], shown["output"]["root"], shown["trainer"]["save_every"]) == ("us", "out", "10 %")
    again = cli("config", "convert", theirs, "--out", "ours.yaml")
    assert again.code == 2
    assert "ours.yaml exists; give another name, or remove it first." in again.err


def test_without_a_file_the_config_alone_is_on_standard_output(cli: Cli, theirs: Path) -> None:
    answer = cli("config", "convert", theirs)
    assert yaml.safe_load(answer.out)["task"] == {"kind": "align", "model": "clip"}
    assert "save_steps: 0.1 -> trainer.save_every: 10 %" in answer.err


def test_a_call_stands_behind_two_dashes(cli: Cli, theirs: Path) -> None:
    answer = cli("config", "convert", "--", "image_router_train.py", "--data_dir=images", "--resnet_size=34")
    assert yaml.safe_load(answer.out)["task"]["vision"] == {"name": "resnet34"}
    answer = cli("config", "convert", "--out", "ours.yaml", "--", "train_clip.py", theirs, "--do_eval")
    assert '  consilium evaluate "$(ls -d out/us/default-* | tail -1)"' in answer.out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["missing.yaml"], "config file missing.yaml does not exist"),
        (["--", "train.py", "--lr=3"], "train.py is no script that can be converted; these can: train_clip.py,"),
        (["--", "image_router_train.py", "--data_dir"], "the flag --data_dir has no value"),
        (["--", "echo"], "config file echo does not exist"),
    ],
)
def test_what_cannot_be_converted_is_said(cli: Cli, theirs: Path, words: list[str], said: str) -> None:
    answer = cli("config", "convert", *words)
    assert answer.code == 2
    assert said in answer.err
    assert answer.out == ""
