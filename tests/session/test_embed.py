"""Features of frozen towers are computed ahead, once: what is there is never computed again, and none is stale."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from consilium.core.errors import ConfigError, WeightsError
from consilium.experiment import Experiment
from consilium.models.text import TextTower
from consilium.session import train
from consilium.session.embed import embed
from tests.models.texts import write_encoder
from tests.tasks.test_fuse_contract import experiment_of, write
from tests.tiny import Recorder

FROZEN = ["task.text.freeze.kind=tower", "trainer.max_epochs=1"]
TEXTS = 90 - 13  # every seventh case has none
ROUNDS = count()


class Tower:
    """Counts the texts that pass a text tower; raises before more than ``most`` do."""

    def __init__(self) -> None:
        self.texts, self.most = 0, 10_000

    def since(self) -> int:
        """The texts since it was last asked."""
        count, self.texts = self.texts, 0
        return count


@pytest.fixture
def tower(monkeypatch: pytest.MonkeyPatch) -> Iterator[Tower]:
    counter, forward = Tower(), TextTower.forward

    def counted(self: TextTower, tokens_BT: Tensor, attention_BT: Tensor) -> Tensor:
        if not torch.is_grad_enabled() and hasattr(self, "num_features"):  # else it is being built
            if counter.texts + len(tokens_BT) > counter.most:
                raise KeyboardInterrupt
            counter.texts += len(tokens_BT)
        return forward(self, tokens_BT, attention_BT)

    monkeypatch.setattr(TextTower, "forward", counted)
    return counter


@pytest.fixture
def encoder(tmp_path: Path) -> Path:
    return write_encoder(tmp_path / "encoder")


def fused(folder: Path, encoder: Path, *overrides: str) -> Experiment:
    text = json.dumps({"name": str(encoder), "context_length": 16})
    return experiment_of(folder, f"task.text={text}", *FROZEN, *overrides)


def test_a_training_after_it_computes_none(encoder: Path, tmp_path: Path, tower: Tower) -> None:
    experiment = fused(tmp_path, encoder)
    (filled,) = embed(experiment, reporter=(seen := Recorder()))
    assert (filled.what, filled.computed, filled.there) == ("texts", TEXTS, 0)
    assert tower.since() == TEXTS
    assert [bar[1:] for bar in seen.bars if bar[0] == "features"][-1] == (TEXTS, TEXTS)
    (again,) = embed(experiment, reporter=Recorder())
    assert (again.computed, again.there, again.folder) == (0, TEXTS, filled.folder)
    assert train(experiment, reporter=Recorder()) is not None
    assert tower.since() == 0


def test_images_of_a_frozen_tower_too_and_every_seed(encoder: Path, tmp_path: Path) -> None:
    experiment = fused(tmp_path, encoder, "task.vision.freeze.kind=tower", "trainer.num_runs=2")
    found = [(filled.what, filled.computed) for filled in embed(experiment, reporter=Recorder())]
    assert found[:2] == [("images", 77), ("texts", TEXTS)]
    assert found[3] == ("texts", 0)  # the image tower is random, another one in each run


@pytest.mark.parametrize("most", [8, 40])
def test_after_an_interruption_the_rest_is_computed(most: int, encoder: Path, tmp_path: Path, tower: Tower) -> None:
    experiment = fused(tmp_path, encoder)
    tower.most = most
    with pytest.raises(KeyboardInterrupt):
        embed(experiment, reporter=Recorder())
    done, tower.most = tower.since(), 10_000
    assert 0 < done <= most
    (filled,) = embed(experiment, reporter=Recorder())
    assert (filled.computed, filled.there) == (TEXTS - done, done)
    assert tower.since() == TEXTS - done


@settings(max_examples=5, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(changed=st.sets(st.integers(0, 76), max_size=5))
def test_of_other_texts_only_those_are_computed(changed: set[int], encoder: Path, tmp_path: Path, tower: Tower) -> None:
    table = write(tmp_path / "pairs")
    before = table.read_text(encoding="utf-8")
    try:
        embed(fused(tmp_path, encoder), reporter=Recorder())
        rows = [json.loads(line) for line in before.splitlines()]
        own = [row for row in rows if "text" in row]
        for number in changed:
            own[number]["text"] += f" and was seen again in round {next(ROUNDS)}"
        table.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        tower.since()
        (filled,) = embed(fused(tmp_path, encoder), reporter=Recorder())
        assert (filled.computed, filled.there) == (len(changed), TEXTS - len(changed))
    finally:
        table.write_text(before, encoding="utf-8")


@pytest.mark.parametrize(
    "other", ["task.text.pooling=mean", "task.text.context_length=8", "task.text.instruction=left"]
)
def test_another_way_to_read_texts_computes_all_anew(other: str, encoder: Path, tmp_path: Path) -> None:
    embed(fused(tmp_path, encoder), reporter=Recorder())
    (filled,) = embed(fused(tmp_path, encoder, other), reporter=Recorder())
    assert (filled.computed, filled.there) == (TEXTS, 0)


def test_other_weights_compute_all_anew(encoder: Path, tmp_path: Path) -> None:
    embed(fused(tmp_path, encoder), reporter=Recorder())
    _change(encoder, 1.0)
    (filled,) = embed(fused(tmp_path, encoder), reporter=Recorder())
    assert (filled.computed, filled.there) == (TEXTS, 0)


def test_features_that_are_no_numbers_are_refused(encoder: Path, tmp_path: Path) -> None:
    _change(encoder, float("nan"))
    with pytest.raises(WeightsError, match=r"encoder gives features that are NaN .*, for \d+ of \d+ texts .*: of case"):
        embed(fused(tmp_path, encoder), reporter=Recorder())
    assert not list((tmp_path / "stores").rglob("*.keys"))


def test_nothing_frozen_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no tower of this task stays frozen"):
        embed(experiment_of(tmp_path), reporter=Recorder())


def _change(encoder: Path, value: float) -> None:
    """Give the first embedding other weights."""
    file = encoder / "model.safetensors"
    tensors = load_file(file)
    tensors["embeddings.word_embeddings.weight"][:] += value
    save_file(tensors, file, metadata={"format": "pt"})
