"""Trainings with patch dropout, layer-wise rates of both towers and gradient checkpointing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from consilium.session import train
from tests.tasks.test_align_contract import experiment_of, train_pairs
from tests.tiny import Recorder, Run, same

OWN = [
    "task.vision.patch_dropout=0.5",
    "optimizer.groups={image: {layer_decay: 0.8}, text: {layer_decay: 0.7}}",
]
TWICE = ["task.vision.gradient_checkpointing=true", "task.text.gradient_checkpointing=true"]


def run_of(folder: Path, *overrides: str, resume: bool = False) -> Run:
    return train_pairs(folder, *OWN, *overrides, resume=resume)


@pytest.mark.slow
def test_computing_twice_changes_nothing_that_is_learned(tmp_path: Path) -> None:
    """What dropout of texts and patches leaves out is the same the second time; a resumed run is the unbroken one."""
    once, twice = run_of(tmp_path / "once"), run_of(tmp_path / "twice", *TWICE)
    for name, tensor in twice.weights.items():
        torch.testing.assert_close(tensor, once.weights[name], rtol=0, atol=1e-5, msg=name)
    for step in (1, 5):
        with pytest.raises(KeyboardInterrupt):
            train(experiment_of(tmp_path / "broken", *OWN, *TWICE), resume=step > 1, reporter=Recorder(stop_at=step))
    assert same(run_of(tmp_path / "broken", *TWICE, resume=True).weights, twice.weights)
    whole = run_of(tmp_path / "whole", "task.vision.patch_dropout=0")
    assert not torch.allclose(whole.weights["vision.model.pos_embed"], once.weights["vision.model.pos_embed"])
