"""An expert whose text tower gives weights of terms: trained, judged, asked, and the same over processes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import consilium
from consilium.core.config import to_yaml
from consilium.data.batches.rows import Query
from consilium.session import train
from consilium.training.hooks import read_history
from tests.models.texts import write_encoder
from tests.session.test_loop import torchrun
from tests.tasks.test_align_contract import experiment_of, square, train_pairs
from tests.tiny import Recorder, assert_close

TEXT = "A square that is red, as number 1 of its kind"


def own(folder: Path, *overrides: str) -> list[str]:
    """The overrides of a tiny SPLADE."""
    quiet = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    encoder = write_encoder(folder / "encoder", head="AutoModelForMaskedLM", **quiet)
    text = {"name": str(encoder), "pooling": "splade", "context_length": 16, "flops": 0.01}
    return [f"task.text={json.dumps(text)}", *overrides]


def test_its_bundle_names_the_terms_of_a_text(tmp_path: Path) -> None:
    run = train_pairs(tmp_path, *own(tmp_path))
    rows = read_history(run.folder / "history.csv")
    assert all(row["train_loss"] for row in rows if row["step"] and not row["val_mean_recall"])
    model = consilium.load(run.folder, device="cpu")
    (answer,) = model.predict(Query(image=square("red"), text=TEXT))
    assert set(answer) >= {"image_embedding", "text_embedding", "text_terms"}
    weights = list(answer["text_terms"].values())
    assert weights == sorted(weights, reverse=True)
    task = model.task
    padded = task.tokenizer.pad(task.tokenizer.encode([TEXT]))
    with torch.no_grad():
        weights_1V = task.text(padded.tokens_BT, padded.attention_BT)
    by_name = {task.tokenizer.token(term): weight for term, weight in enumerate(weights_1V[0].tolist())}
    by_name.pop("")  # the encoder has rows that the vocabulary does not fill
    assert next(iter(answer["text_terms"])) == max(by_name, key=lambda name: by_name[name])
    assert answer["text_terms"] == pytest.approx({name: by_name[name] for name in answer["text_terms"]}, abs=1e-4)
    (alone,) = model.predict(Query(image=square("red")))
    assert "text_terms" not in alone


def test_a_penalty_makes_vectors_sparser(tmp_path: Path) -> None:
    def used(flops: float) -> float:
        run = train_pairs(
            tmp_path / str(flops), *own(tmp_path), f"task.text.flops={flops}", "trainer.max_epochs=4",
            "optimizer.learning_rate=0.01",
        )  # fmt: skip
        task = consilium.load(run.folder, device="cpu").task
        padded = task.tokenizer.pad(task.tokenizer.encode([TEXT]))
        with torch.no_grad():
            return float((task.text(padded.tokens_BT, padded.attention_BT) > 0.01).float().mean())

    assert used(100.0) < used(0.0)


@pytest.mark.slow  # two processes that load everything
def test_two_processes_train_as_one(tmp_path: Path) -> None:
    """The penalty is of the whole batch, whichever process has its texts."""
    overrides = own(
        tmp_path,
        "data.loader={batch_size: 7, workers: 0, drop_last: false}",
        "optimizer={kind: sgd, learning_rate: 0.05}",
        "task.text.flops=1.0",
    )
    one = train(experiment_of(tmp_path / "one", *overrides), reporter=Recorder())
    assert one is not None
    (config := tmp_path / "two.yaml").write_text(to_yaml(experiment_of(tmp_path / "two", *overrides)), encoding="utf-8")
    two = torchrun(config, tmp_path / "two" / "runs", name="pairs")
    assert_close(load_file(two / "model.safetensors"), load_file(one.folder / "model.safetensors"))
