"""The recipe of fusion trains for two steps: on tiny towers, and slowly at full size with random weights."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import transformers

import consilium
from tests.models.checkpoints.writers import write_tokenizer
from tests.tasks.test_fuse_contract import write
from tests.tasks.test_recipes_of_experts import trained, write_towers


def cases(folder: Path) -> Path:
    """Coloured squares with texts, as the recipe names their table."""
    table = write(folder / "cases")
    return Path(shutil.copy(table, table.with_name("cases.jsonl")))


def test_two_steps_on_tiny_towers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = trained(
        "fuse", tmp_path, monkeypatch, *write_towers(tmp_path), "data.loader.batch_size=8", data=cases(tmp_path)
    )
    (answer,) = model.predict([consilium.Query(text="it is round")])
    assert answer["modalities"] == ["text"]


@pytest.mark.slow
def test_the_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = trained("fuse_demo", tmp_path, monkeypatch, data=cases(tmp_path))
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
        "report.images=false",  # else the time goes to maps of what answers depend on
        data=cases(tmp_path),
    )
    assert model.image.size == (224, 224)
