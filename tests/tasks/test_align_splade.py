"""An expert whose text tower gives weights of terms: trained, judged, asked, and the same over processes."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch

import consilium
from consilium.data.batches.rows import Query
from consilium.tasks.align.task import Align
from consilium.training.hooks import read_history
from tests.models.texts import write_encoder
from tests.session.test_loop import by_one_and_by_two
from tests.tasks.test_align_contract import experiment_of, square, train_pairs

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
    assert answer["text_terms"] == pytest.approx({name: own for name, own in by_name.items() if own > 0}, abs=1e-6)
    several = model.predict([Query(image=square("red")), Query(text=TEXT)])
    assert "text_terms" not in several[0]
    assert several[1]["text_terms"] == pytest.approx(answer["text_terms"], abs=1e-5)


def terms_of(folder: Path) -> list[dict[str, str]]:
    """What a report shows of a few texts."""
    with (folder / "tables" / "test_terms.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_its_report_shows_the_terms_of_a_few_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And says of all texts of the test split how many terms they have, and how many of the vocabulary are in none."""
    run = train_pairs(tmp_path, *own(tmp_path), "report.cases=3")
    model = consilium.load(run.folder, device="cpu")
    rows = terms_of(run.folder)
    assert len(rows) == 3
    for row in rows:
        (answer,) = model.predict(Query(text=row["text"]))
        first = list(answer["text_terms"].items())[:10]
        assert int(row["terms"]) == len(answer["text_terms"])
        assert [name.rpartition(" ")[0] for name in row["highest"].split(" · ")] == [name for name, _ in first]
    page = (run.folder / "report.html").read_text(encoding="utf-8")
    lines = (tmp_path / "pairs" / "pairs.jsonl").read_text(encoding="utf-8").splitlines()
    texts = {case["text"] for case in map(json.loads, lines) if case["split"] == "test"}
    found = [set(answer["text_terms"]) for answer in model.predict([Query(text=text) for text in texts])]
    counts, known = list(map(len, found)), sum(name != "" for name in model.task.terms())
    unused = f"{100 * (1 - len(set.union(*found)) / known):.1f}\N{NO-BREAK SPACE}%"
    assert (
        f"The {len(texts)} different texts of test have {np.mean(counts):,.1f} terms above 0 in the mean "
        f"(from {min(counts)} to {max(counts)}); {unused} of the terms are in none of them."
    ) in page
    consilium.evaluate(run.folder, out=tmp_path / "again", device="cpu", quiet=True)
    assert terms_of(tmp_path / "again") == rows
    monkeypatch.setattr("consilium.tasks.align.terms._READ", 5)
    consilium.evaluate(run.folder, out=tmp_path / "part", device="cpu", quiet=True)
    page = (tmp_path / "part" / "report.html").read_text(encoding="utf-8")
    assert f"5 of the {len(texts)} different texts of test have" in page


def test_validation_does_not_look_for_terms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only an answer and the report name them: none of it in the validations of a training."""
    asked: list[int] = []
    monkeypatch.setattr(Align, "terms", lambda self: asked.append(1) or ())
    train_pairs(tmp_path, *own(tmp_path), "trainer.max_epochs=3")
    assert len(asked) == 1, "the report asks once whether there are any"


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
    by_one_and_by_two(experiment_of, tmp_path, *overrides)
