"""Fuse on vectors that were computed elsewhere: it learns from them, and a case without one has no text."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import consilium
from consilium.comparison.entrants import check_same, entrant
from consilium.core.config import build
from consilium.core.errors import ConfigError, DataError
from consilium.data.batches.rows import Query
from consilium.evaluating import evaluate
from consilium.experiment import Experiment
from consilium.models.config import TextConfig
from consilium.models.text import build_text, build_tokenizer
from consilium.predictions import predict_files
from consilium.session import train
from tests.models.texts import write_encoder
from tests.tasks.test_fuse_contract import SHAPES, TREE, experiment_of, write
from tests.tasks.test_fuse_metadata import METADATA, with_metadata
from tests.tiny import Recorder, Run

WIDTH = 6


def vectors_of(rows: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    """A vector for each row with a text, which tells the shape."""
    random = np.random.default_rng(3)
    noise = {row["id"]: random.normal(size=WIDTH) for row in rows}
    shift = {row["id"]: 3.0 * SHAPES.index("round" if "round" in row.get("text", "") else "flat") for row in rows}
    return {row["id"]: (noise[row["id"]] + shift[row["id"]]).astype(np.float32) for row in rows if "text" in row}


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in write(folder / "pairs").read_text(encoding="utf-8").splitlines()]


def save(path: Path, vectors: dict[str, np.ndarray], **said: str) -> Path:
    np.savez(path, id=np.array(list(vectors)), vector=np.stack(list(vectors.values())), **said)
    return path


def on_vectors(folder: Path, *overrides: str, vectors: Path | None = None, **said: str) -> Experiment:
    place = vectors or save(folder / "vectors.npz", vectors_of(rows_of(folder)), **said)
    return experiment_of(folder, f"task.text={json.dumps({'kind': 'vectors', 'name': str(place)})}", *overrides)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("vectors")
    more = ["trainer.max_epochs=12", "optimizer.learning_rate=0.002", "data.loader.workers=2"]
    result = train(on_vectors(folder, *more, encoder="sapbert", pooling="cls"), reporter=(reporter := Recorder()))
    assert result is not None
    return Run(result, reporter)


def test_it_learns_what_vectors_tell(run: Run) -> None:
    assert run.metrics["test"]["accuracy"] > 0.6
    lines = "\n".join(run.reporter.lines)
    assert "note: 13 cases of 90 without a vector in " in lines
    assert not [name for name in run.weights if name.startswith("text.")]
    assert run.manifest["knowledge"]["vectors"] == {"width": WIDTH, "encoder": "sapbert", "pooling": "cls"}


def test_the_features_are_the_vectors(run: Run) -> None:
    """A model reads the vectors of the training where they still lie, by the ids of their cases."""
    task = consilium.load(run.folder).task
    rows = rows_of(run.folder.parents[2])
    vectors = vectors_of(rows)
    names = list(vectors)[5:9]
    padded = task.tokenizer.pad(task.tokenizer.encode(names))
    found = task.text(padded.tokens_BT, padded.attention_BT)
    torch.testing.assert_close(found, torch.from_numpy(np.stack([vectors[name] for name in names])), rtol=0, atol=0)


def test_it_is_judged_as_the_training_judged_it(run: Run) -> None:
    again = evaluate(run.folder, reporter=Recorder())
    assert again.metrics["accuracy"] == pytest.approx(run.metrics["test"]["accuracy"])
    assert again.metrics["log_loss"] == pytest.approx(run.metrics["test"]["log_loss"])


def moved(run: Run, folder: Path) -> Path:
    """The bundle on a machine without the vectors that it was trained on."""
    bundle = shutil.copytree(run.folder, folder / "bundle")
    for file in ("bundle.json", "config.yaml"):
        text = (bundle / file).read_text(encoding="utf-8")
        (bundle / file).write_text(text.replace("vectors.npz", "gone.npz"), encoding="utf-8")
    return bundle


def ask(bundle: Path, table: Path, vectors: Path | None) -> dict[str, dict[str, Any]]:
    out = table.with_suffix(".answers.jsonl")
    given = None if vectors is None else str(vectors)
    predict_files(bundle, [str(table)], out=out, batch_size=4, device="cpu", reporter=Recorder(), vectors=given)
    return {row["image"]: row for row in map(json.loads, out.read_text(encoding="utf-8").splitlines())}


def test_predict_takes_vectors_beside_a_table(run: Run, tmp_path: Path) -> None:
    bundle, rows = moved(run, tmp_path), rows_of(tmp_path)
    table = tmp_path / "pairs" / "pairs.jsonl"
    known = {name: own for name, own in vectors_of(rows).items() if name != "case1"}
    answers = ask(bundle, table, save(tmp_path / "mine.npz", known))
    theirs = ask(run.folder, table, save(tmp_path / "same.npz", known))
    assert answers == theirs
    assert answers["case1"]["modalities"] == ["image"]  # its text is not read
    assert answers["case2"]["modalities"] == ["image", "text"]
    assert answers["case3"]["modalities"] == ["text"]
    shapes = [answers[row["id"]]["label"].split("_")[1] == row["label"].split("_")[1] for row in rows if "text" in row]
    assert np.mean(shapes) > 0.65


def test_images_need_no_vectors(run: Run, tmp_path: Path) -> None:
    rows_of(tmp_path)
    (answer,) = consilium.load(moved(run, tmp_path), device="cpu").predict([str(tmp_path / "pairs" / "1.png")])
    assert answer["modalities"] == ["image"]


def test_a_text_without_vectors_is_refused(run: Run, tmp_path: Path) -> None:
    bundle = moved(run, tmp_path)
    with pytest.raises(DataError, match=r"the vectors in .*gone.npz cannot be read"):
        consilium.load(bundle, device="cpu").predict([Query(text="it is round")])
    with pytest.raises(
        DataError, match=r"has none for 'it is round'. It cannot compute one of a text .* --vectors FILE"
    ):
        consilium.load(run.folder, device="cpu").predict([Query(text="it is round")])


def test_vectors_that_do_not_fit_a_bundle_are_refused(run: Run, tmp_path: Path) -> None:
    vectors = vectors_of(rows_of(tmp_path))
    table = tmp_path / "pairs" / "pairs.jsonl"
    wide = {name: np.append(own, 0.0) for name, own in vectors.items()}
    with pytest.raises(DataError, match=r"have width 7, but the model was trained on 6"):
        ask(run.folder, table, save(tmp_path / "wide.npz", wide))
    with pytest.raises(DataError, match=r"have encoder minilm, but the model was trained on sapbert"):
        ask(run.folder, table, save(tmp_path / "other.npz", vectors, encoder="minilm"))
    strangers = {f"another {name}": own for name, own in vectors.items()}
    with pytest.raises(DataError, match=r"has vectors of 77 cases .*, and of none of the 90 at hand \(the first: case"):
        ask(run.folder, table, save(tmp_path / "strangers.npz", strangers))


def test_a_bundle_that_reads_texts_takes_no_vectors(tmp_path: Path) -> None:
    result = train(experiment_of(tmp_path, "trainer.max_steps=1"), reporter=Recorder())
    assert result is not None
    with pytest.raises(ConfigError, match=r"--vectors is v.npz, but this bundle reads texts themselves; leave it out"):
        ask(result.folder, tmp_path / "pairs" / "pairs.jsonl", Path("v.npz"))


def test_vectors_of_our_own_tower_answer_as_the_tower_does(tmp_path: Path) -> None:
    folder, rows = write_encoder(tmp_path / "encoder"), rows_of(tmp_path)
    text = {"name": str(folder), "context_length": 16, "freeze": {"kind": "tower"}}
    config = TextConfig(**text)  # type: ignore[arg-type]
    tokenizer = build_tokenizer(config)
    tower = build_text(config, tokenizer=tokenizer).eval()
    padded = tokenizer.pad(tokenizer.encode([row["text"] for row in rows if "text" in row]))
    with torch.no_grad():
        found = tower(padded.tokens_BT, padded.attention_BT).numpy()
    names = [row["id"] for row in rows if "text" in row]
    place = save(tmp_path / "own.npz", dict(zip(names, found, strict=True)))
    step = "trainer.max_steps=1"
    ours = train(experiment_of(tmp_path, f"task.text={json.dumps(text)}", step), reporter=Recorder())
    theirs = train(on_vectors(tmp_path, step, vectors=place), reporter=Recorder())
    assert ours is not None
    assert theirs is not None
    reads, looks_up = consilium.load(ours.folder, device="cpu"), consilium.load(theirs.folder, device="cpu")
    state = {name: own for name, own in reads.task.state_dict().items() if not name.startswith("text.")}
    looks_up.task.load_state_dict(state)
    few = [row for row in rows[:8] if "text" in row]
    read = reads.predict([Query(text=row["text"]) for row in few])
    looked_up = looks_up.predict([Query(text=row["id"]) for row in few])
    for one, other in zip(read, looked_up, strict=True):
        assert other["probabilities"] == pytest.approx(one["probabilities"], abs=1e-5)


def test_a_case_with_neither_is_left_out(tmp_path: Path) -> None:
    vectors = vectors_of(rows_of(tmp_path))
    del vectors["case3"]  # which has no image
    place = save(tmp_path / "fewer.npz", vectors)
    train(on_vectors(tmp_path, "trainer.max_steps=1", vectors=place), reporter=(seen := Recorder()))
    assert any("1 case left out: neither an image nor a text" in line for line in seen.lines)


def test_a_label_in_the_texts_behind_the_vectors_is_found(tmp_path: Path) -> None:
    """The ids that stand for texts are no texts."""
    table = write(tmp_path / "pairs")
    rows = [row | ({"text": f"{row['label']} it is"} if "text" in row else {}) for row in rows_of(tmp_path)]
    table.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    place = save(tmp_path / "vectors.npz", {row["id"]: np.zeros(2) for row in rows if "text" in row})
    train(on_vectors(tmp_path, "trainer.max_steps=1", vectors=place), reporter=(seen := Recorder()))
    assert any("label in text: " in line for line in seen.lines), seen.lines


@pytest.mark.parametrize(
    ("said", "section", "message"),
    [
        ({"encoder": "minilm"}, {"encoder": "sapbert"}, "have encoder minilm, but task.text asks for sapbert"),
        ({"pooling": "mean"}, {"pooling": "cls"}, "have pooling mean, but task.text asks for cls"),
    ],
)
def test_vectors_that_the_config_does_not_want_are_refused(
    said: dict[str, str], section: dict[str, str], message: str, tmp_path: Path
) -> None:
    overrides = [f"task.text.{name}={value}" for name, value in section.items()]
    with pytest.raises(DataError, match=message):
        train(on_vectors(tmp_path, *overrides, **said), reporter=Recorder())


def test_a_file_of_other_cases_is_refused(tmp_path: Path) -> None:
    place = save(tmp_path / "other.npz", {"x": np.zeros(2)})
    with pytest.raises(
        DataError, match=r"other.npz has vectors of 1 case \(the first: x\), and of none of the 90 at hand"
    ):
        train(on_vectors(tmp_path, vectors=place), reporter=Recorder())


@pytest.mark.parametrize(
    ("section", "message"),
    [
        (
            {"kind": "fuse", "text": {"kind": "vectors", "name": "v.npz", "context_length": 8}},
            "context_length is for enc",
        ),
        (
            {"kind": "fuse", "text": {"kind": "vectors", "name": "v.npz", "freeze": {"kind": "tower"}}},
            "freeze is for enc",
        ),
        ({"kind": "fuse", "text": {"name": "sapbert", "encoder": "sapbert"}}, "encoder is for kind: vectors"),
        ({"kind": "align", "text": {"kind": "vectors", "name": "v.npz"}}, "vectors, which is for task.kind: fuse"),
    ],
)
def test_what_vectors_do_not_go_with_is_refused(section: dict[str, Any], message: str) -> None:
    tree = TREE | {"task": section, "data": {"sources": [{"kind": "jsonl", "name": "a", "path": "a.jsonl"}]}}
    with pytest.raises(ConfigError, match=message):
        build(Experiment, tree, origin="t")


def test_there_is_no_text_tower_to_tune() -> None:
    tree = TREE | {
        "task": {"kind": "fuse", "text": {"kind": "vectors", "name": "v.npz"}},
        "data": {"sources": [{"kind": "jsonl", "name": "a", "path": "a.jsonl"}]},
        "optimizer": {"kind": "adamw", "groups": {"text": {"learning_rate": 1e-5}}},
    }
    with pytest.raises(ConfigError, match=r"the task has no group 'text'"):
        build(Experiment, tree, origin="t")


@pytest.mark.parametrize(
    ("data", "place"),
    [
        ({"root": "gs://bucket", "dataset": "ham_v1"}, "gs://bucket/ham_v1/embeddings/v.parquet"),
        ({"sources": [{"kind": "jsonl", "name": "a", "path": "a.jsonl"}]}, "v.parquet"),
    ],
)
def test_a_bare_name_is_a_file_of_the_dataset(data: dict[str, Any], place: str) -> None:
    tree = TREE | {"task": {"kind": "fuse", "text": {"kind": "vectors", "name": "v.parquet"}}, "data": data}
    experiment = build(Experiment, tree, origin="t")
    assert experiment.task.needs.vectors == place
    assert build(Experiment, experiment.model_dump(mode="json"), origin="t") == experiment


def test_metadata_goes_with_vectors(tmp_path: Path) -> None:
    rows = with_metadata(tmp_path)
    place = save(tmp_path / "vectors.npz", vectors_of(rows))
    result = train(on_vectors(tmp_path, *METADATA, "trainer.max_steps=1", vectors=place), reporter=Recorder())
    assert result is not None
    answers = ask(result.folder, tmp_path / "pairs" / "pairs.jsonl", place)
    assert {tuple(answer["modalities"]) for answer in answers.values()} >= {
        ("image", "text", "metadata"),
        ("image", "metadata"),
    }


def test_vectors_compare_with_a_tower_on_the_same_cases(tmp_path: Path) -> None:
    tower = entrant("tower", experiment_of(tmp_path), limit=None, reporter=Recorder())
    vectors = entrant("vectors", on_vectors(tmp_path), limit=None, reporter=Recorder())
    check_same(tower, vectors)
    assert tower.cases("test").keys() == vectors.cases("test").keys()
