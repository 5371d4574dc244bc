"""``export``: a bundle in the form of another library."""

from __future__ import annotations

from pathlib import Path

import timm

from tests.cli.conftest import Cli
from tests.tiny import Run


def test_a_trained_bundle_leaves(cli: Cli, tiny_run: Run, tmp_path: Path) -> None:
    answer = cli("export", tiny_run.folder, "--to", "timm", "--out", tmp_path / "out")
    assert answer.code == 0
    assert "timm.create_model: the outputs of the bundle within" in answer.out
    assert "may identify" not in answer.out
    assert timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).num_classes == 3
    card = (tmp_path / "out/README.md").read_text(encoding="utf-8")
    assert "Not a medical device" in card


def test_a_form_that_does_not_fit(cli: Cli, tiny_run: Run, tmp_path: Path) -> None:
    answer = cli("export", tiny_run.folder, "--to", "open_clip", "--out", tmp_path / "out")
    assert answer.code == 2
    assert "What can: hf, timm, onnx, safetensors." in answer.err
    assert cli("export", tiny_run.folder, "--to", "keras", "--out", tmp_path / "out").code == 2
