"""``zero_shot: true``: a pretrained model is judged as it came, and a fresh one never."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch.nn import functional

from consilium.core.errors import ConfigError, DataError
from consilium.core.evaluation import Evaluation, Outputs
from consilium.data.images.reading import load_view
from consilium.evaluating import evaluate
from consilium.evaluation.labels.classification import ClassificationEvaluator
from consilium.experiment import Experiment
from consilium.session import train
from tests.models.checkpoints.writers import Written, clip_open
from tests.squares import write_squares
from tests.tasks.test_align_contract import COLOURS
from tests.tasks.test_whole_models import CONTEXT, built
from tests.tiny import Recorder

FIRST = ["8", "9", "10", "11"]  # of test
PROBES = {"zero_shot": {"templates": ["A square that is {label}"]}, "knn": 3}


@pytest.fixture
def written(tmp_path: Path) -> Written:
    return clip_open(tmp_path / "model")


def config(folder: Path, **keys: Any) -> Path:
    """The config of a pretrained model and labelled squares without texts."""
    tree = yaml.safe_load(write_squares(folder, PROBES).read_text(encoding="utf-8"))
    own = {
        "name": "as-it-came",
        "zero_shot": True,
        "task": {"kind": "align", "model": str(folder / "model")},
        "evaluation": {"bootstrap_samples": 20},
        "output": {"root": str(folder / "runs")},
    }
    path = folder / "model.yaml"
    path.write_text(yaml.safe_dump({**own, **tree, **keys}), encoding="utf-8")
    return path


def test_an_untouched_model_is_judged_by_name_and_the_report_says_so(written: Written, tmp_path: Path) -> None:
    recorder = Recorder()
    found = evaluate(config(tmp_path), device="cpu", reporter=recorder)
    folder = tmp_path / "runs/as-it-came/zero_shot-test"
    for told in (recorder.lines[0], (folder / "report.html").read_text(encoding="utf-8")):
        assert "Nothing was trained (zero_shot: true)" in told
        assert str(written.folder) in told
    assert json.loads((folder / "metrics.json").read_text())["test"]["metrics"] == found.metrics
    assert {"zero_shot_accuracy", "knn_accuracy"} <= set(found.metrics)
    assert not list((tmp_path / "runs").rglob("*.safetensors"))
    assert not list((tmp_path / "runs").rglob("bundle.json")), "what is not trained leaves no bundle"


def test_other_data_leave_bad_rows_out_where_asked(written: Written, tmp_path: Path) -> None:
    own, other = config(tmp_path), tmp_path / "other.yaml"
    tree = yaml.safe_load(own.read_text(encoding="utf-8"))
    other.write_text(yaml.safe_dump({"data": tree["data"], "probes": PROBES}), encoding="utf-8")
    (source,) = tree["data"]["sources"]
    rows = Path(source["path"])
    rows.write_text(rows.read_text(encoding="utf-8") + "no row\n", encoding="utf-8")
    with pytest.raises(DataError):
        evaluate(own, data=other, device="cpu", reporter=Recorder())
    found = evaluate(own, data=other, on_bad_row="quarantine", device="cpu", reporter=Recorder())
    assert "zero_shot_accuracy" in found.metrics


def test_its_probabilities_are_those_of_its_own_library(
    written: Written, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prompts through the library's own text tower, images through its image tower, the softmax of its scale."""
    seen: list[Outputs] = []
    whole = ClassificationEvaluator.evaluate

    def note(self: ClassificationEvaluator, outputs: Outputs, *, split: str) -> Evaluation:
        seen.append(outputs)
        return whole(self, outputs, split=split)

    monkeypatch.setattr(ClassificationEvaluator, "evaluate", note)
    path = config(tmp_path)
    evaluate(path, device="cpu", reporter=Recorder())
    task, started, _ = built(Experiment.load(path))
    texts = [f"A square that is {label}" for label in sorted(COLOURS)]
    padded = task.tokenizer.pad(task.tokenizer.encode(texts))
    short = CONTEXT - padded.tokens_BT.shape[1]
    full = [functional.pad(own, (0, short)) for own in (padded.tokens_BT, padded.attention_BT)]
    image = started.data.image
    pixels = [load_view((tmp_path / f"{name}.png").read_bytes(), name=name, image=image, box=None) for name in FIRST]
    mean, std = (torch.tensor(own)[:, None, None] for own in (image.mean, image.std))
    pixels_NCHW = (torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2) / 255 - mean) / std
    with torch.no_grad():
        images_ND, texts_KD = (
            functional.normalize(own, dim=1) for own in (written.images(pixels_NCHW), written.texts(*full))
        )
    expected_NK = (written.scale * images_ND @ texts_KD.T).softmax(1)
    assert [name.split("/")[-1] for name in seen[0].ids[: len(FIRST)]] == FIRST
    found_NK = torch.from_numpy(seen[0].arrays["probabilities"][: len(FIRST)])
    torch.testing.assert_close(found_NK.float(), expected_NK, atol=1e-4, rtol=0)


def test_a_fresh_model_is_never_judged(tmp_path: Path) -> None:
    clip_open(tmp_path / "model")
    with pytest.raises(ConfigError, match="judges a trained bundle, never a fresh model"):
        evaluate(config(tmp_path, zero_shot=False), device="cpu", reporter=Recorder())
    towers = {"kind": "align", "vision": {"name": "test_vit", "pretrained": False}}
    with pytest.raises(ConfigError, match=r"here image, projection, temperature would be random"):
        evaluate(config(tmp_path, task=towers), device="cpu", reporter=Recorder())
    with pytest.raises(ConfigError, match="judged as it came, never trained"):
        train(Experiment.load(config(tmp_path)), reporter=Recorder())
