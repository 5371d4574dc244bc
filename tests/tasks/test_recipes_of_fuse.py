"""The recipe of fusion trains for two steps: on tiny towers, and slowly at full size with random weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import transformers

import consilium
from consilium.core.config import apply_overrides, build, read_tree
from consilium.experiment import Experiment
from consilium.session import train
from tests.models.checkpoints.writers import write_tokenizer
from tests.tasks.test_fuse_contract import write
from tests.tasks.test_recipes_of_experts import RECIPES, SHORT, write_towers
from tests.tiny import Recorder


def trained(recipe: str, folder: Path, monkeypatch: pytest.MonkeyPatch, *overrides: str) -> consilium.Predictor:
    """The model that a recipe makes of coloured squares in two steps."""
    table = write(folder / "cases")
    shutil.copy(table, table.with_name("cases.jsonl"))
    monkeypatch.setenv("CONSILIUM_DATA", str(table.parent))
    places = [
        f"data.store.root={json.dumps(str(folder / 'stores'))}",
        f"output.root={json.dumps(str(folder / 'runs'))}",
    ]
    tree = apply_overrides(read_tree(RECIPES / f"{recipe}.yaml"), [*SHORT, *places, *overrides], model=Experiment)
    result = train(build(Experiment, tree, origin=recipe), reporter=Recorder())
    assert result is not None
    return consilium.load(result.folder, device="cpu")


def test_two_steps_on_tiny_towers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = trained("fuse", tmp_path, monkeypatch, *write_towers(tmp_path), "data.loader.batch_size=8")
    (answer,) = model.predict([consilium.Query(text="it is round")])
    assert answer["modalities"] == ["text"]


@pytest.mark.slow
def test_the_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = trained("fuse_demo", tmp_path, monkeypatch)
    assert model.task.labels.names == ("melanoma", "nevus", "seborrheic keratosis")


@pytest.mark.slow
def test_two_steps_at_full_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = tmp_path / "bert"
    write_tokenizer(text)
    transformers.BertModel(transformers.BertConfig(vocab_size=30522)).save_pretrained(text)
    model = trained(
        "fuse",
        tmp_path,
        monkeypatch,
        "task.vision.pretrained=false",
        f"task.text.name={text}",
        "data.loader.batch_size=4",
    )
    assert model.image.size == (224, 224)
