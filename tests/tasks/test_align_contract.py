"""Align keeps the contract of families."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

import consilium
from consilium.calibrating import calibrate
from consilium.core.config import apply_overrides, build
from consilium.core.contracts import Batch, StepOutput
from consilium.core.errors import ConfigError, DataError
from consilium.data.batches.rows import Query
from consilium.data.cases.cases import Cases
from consilium.data.cases.filters import Filtered
from consilium.data.store.store import Store
from consilium.experiment import Experiment
from consilium.losses.config import SoftmaxContrastiveConfig
from consilium.models.config import TextConfig
from consilium.models.text import TextTower
from consilium.models.vision import VisionTower
from consilium.predictions import predict_files
from consilium.session import train
from consilium.tasks.align.config import AlignConfig
from consilium.tasks.align.family import FAMILY
from consilium.tasks.align.task import Align
from consilium.training.hooks import read_history
from tests.contracts.family import FamilyContract
from tests.data.samples import case_table
from tests.models.texts import write_encoder
from tests.session.test_loop import by_one_and_by_two
from tests.tiny import Recorder, Run

Captions = str | list[str]
COLOURS = {"red": (200, 40, 40), "green": (40, 180, 60), "blue": (50, 60, 210), "yellow": (210, 200, 40)}
TREE: dict[str, Any] = {
    "name": "pairs",
    "task": {
        "kind": "align",
        "vision": {"name": "test_vit", "pretrained": False},
        "text": {"name": "tiny", "pretrained": False, "context_length": 16, "vocabulary_size": 256},
        "embedding_size": 16,
    },
    "data": {
        "image": {"size": [32, 32]},
        "loader": {"batch_size": 8, "workers": 0, "drop_last": True},
    },
    "optimizer": {"kind": "adamw", "learning_rate": 1e-3},
    "schedule": {"kind": "constant"},
    "trainer": {"max_epochs": 2, "precision": "fp32", "device": "cpu", "log_every": 1},
    "evaluation": {"bootstrap_samples": 20},
    "report": {"cases": 2},
}


def write(folder: Path, *, texts: Mapping[str, Captions] | None = None) -> Path:
    """Captioned squares of a colour; some texts repeat."""
    folder.mkdir(parents=True, exist_ok=True)
    table = folder / "pairs.jsonl"
    if table.is_file():
        return table
    random, rows = np.random.default_rng(0), []
    for number in range(48):
        name = list(COLOURS)[number % 4]
        pixels = np.array(COLOURS[name]) + random.integers(-30, 30, (32, 32, 3))
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{number}.png")
        split = "val" if number % 6 == 4 else "test" if number % 6 == 5 else "train"
        text = f"A square that is {name}, as number {number // 8} of its kind"
        rows.append({"image": f"{number}.png", "text": (texts or {}).get(name, text), "split": split})
    table.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return table


def experiment_of(folder: Path, *overrides: str, texts: Mapping[str, Captions] | None = None) -> Experiment:
    places = {
        "data.sources": [{"kind": "jsonl", "name": "pairs", "path": str(write(folder / "pairs", texts=texts))}],
        "data.store": {"root": str(folder / "stores")},
        "output.root": str(folder / "runs"),
    }
    own = [f"{key}={json.dumps(value)}" for key, value in places.items()]
    return build(Experiment, apply_overrides(TREE, [*own, *overrides], model=Experiment), origin="tests")


def train_pairs(folder: Path, *overrides: str, reporter: Recorder | None = None, **options: Any) -> Run:
    """Train the experiment of captioned squares with overrides."""
    reporter = reporter or Recorder()
    result = train(experiment_of(folder, *overrides), reporter=reporter, **options)
    assert result is not None
    return Run(result, reporter)


def square(name: str) -> np.ndarray:
    return np.full((32, 32, 3), COLOURS[name], dtype=np.uint8)


def by_row(columns: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Columns of equal length as rows."""
    return [dict(zip(columns, own, strict=True)) for own in zip(*columns.values(), strict=True)]


class TestAlign(FamilyContract):
    @classmethod
    def experiment(cls, folder: Path, *overrides: str) -> Experiment:
        return experiment_of(folder, *overrides)

    @classmethod
    def queries(cls, experiment: Experiment) -> list[Any]:
        text = "A square that is red, as number 1 of its kind"
        return [Query(image=square(name), text=text) for name in ("red", "green")]

    def test_images_texts_and_both_may_be_asked_about(self, run: Run) -> None:
        model = consilium.load(run.folder, device="cpu")
        text = "A square that is blue, as number 2 of its kind"
        image, words, both = model.predict([square("blue"), Query(text=text), Query(square("blue"), text)])
        assert set(image) == {"image", "image_embedding"}
        assert set(words) == {"text", "text_embedding"}
        assert set(both) == {"image", "text", "image_embedding", "text_embedding"}
        assert both["image_embedding"] == pytest.approx(image["image_embedding"], abs=1e-5)
        assert both["text_embedding"] == pytest.approx(words["text_embedding"], abs=1e-5)
        for embedding in (image["image_embedding"], words["text_embedding"]):
            assert np.linalg.norm(embedding) == pytest.approx(1, abs=1e-5)
        (nothing,) = model.predict([Query()])
        assert "neither an image nor a text" in nothing["error"]

    def test_there_is_nothing_to_calibrate(self, run: Run, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"answers with image_embedding, text_embedding, which no temperature"):
            calibrate(run.folder, data=tmp_path, out=tmp_path / "new", device="cpu", quiet=True)

    @pytest.mark.parametrize("ending", ["npz", "parquet", "jsonl", "pt"])
    def test_embeddings_of_a_store_and_of_what_cannot_be_read(self, run: Run, tmp_path: Path, ending: str) -> None:
        (store,) = (run.folder.parents[2] / "stores").glob("pairs-*")
        odd, out = tmp_path / "odd.png", tmp_path / f"found.{ending}"
        odd.write_bytes(b"no image")
        summary = predict_files(
            run.folder, [str(store), str(odd)], out=out, batch_size=8, device="cpu", reporter=Recorder()
        )
        table = Store.open(store).table
        assert (summary.cases, summary.errors) == (len(table) + 1, 1)
        rows = {
            "npz": lambda: by_row(dict(np.load(out))),
            "pt": lambda: by_row(torch.load(out, weights_only=True)),
            "parquet": lambda: pq.read_table(out).to_pylist(),
            "jsonl": lambda: [json.loads(line) for line in out.read_text().splitlines()],
        }
        read = rows[ending]()
        assert [row["image"] for row in read] == [*table.ids, str(odd)]
        assert [bool(row.get("error")) for row in read] == [False] * len(table) + [True]
        query = Query(image=table.images(0)[0], text=table.texts[0])
        (expected,) = consilium.load(run.folder, device="cpu").predict([query])
        for name in ("image_embedding", "text_embedding"):
            assert read[0][name] == pytest.approx(expected[name], abs=1e-5)
            assert ending == "jsonl" or read[-1][name] is None or np.isnan(np.asarray(read[-1][name])).all()

    @pytest.mark.parametrize("ending", ["npz", "parquet", "pt"])
    def test_embeddings_of_the_judged_cases(self, run: Run, tmp_path: Path, ending: str) -> None:
        out = tmp_path / f"test.{ending}"
        found = consilium.evaluate(run.folder, embeddings=out, out=tmp_path / "report", device="cpu", quiet=True)
        read = {
            "npz": lambda: by_row(dict(np.load(out))),
            "pt": lambda: by_row(torch.load(out, weights_only=True)),
            "parquet": lambda: pq.read_table(out).to_pylist(),
        }[ending]()
        (store,) = (run.folder.parents[2] / "stores").glob("pairs-*")
        table = Store.open(store).table
        rows = table.rows("test")
        assert [row["image"] for row in read] == [table.ids[row] for row in rows]
        assert len(read) == found.cases
        query = Query(image=table.images(rows[0])[0], text=table.texts[rows[0]])
        (expected,) = consilium.load(run.folder, device="cpu").predict([query])
        for name in ("image_embedding", "text_embedding"):
            assert read[0][name] == pytest.approx(expected[name], abs=1e-5)

    def test_embeddings_go_to_no_other_file(self, run: Run, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"a\.jsonl; expected a name that ends in \.npz, \.parquet, \.pt\."):
            consilium.evaluate(run.folder, embeddings=tmp_path / "a.jsonl", device="cpu", quiet=True)

    def test_one_case_cannot_be_judged(self, run: Run, tmp_path: Path) -> None:
        Image.fromarray(square("red")).save(tmp_path / "a.png")
        (tmp_path / "one.csv").write_text("image,text\na.png,a red square\n")
        with pytest.raises(DataError, match=r"the 1 case of all cannot be judged\. There is one case"):
            consilium.evaluate(run.folder, data=tmp_path / "one.csv", device="cpu", quiet=True)

    def test_embeddings_fit_no_csv(self, run: Run, tmp_path: Path) -> None:
        image = tmp_path / "a.png"
        Image.fromarray(square("red")).save(image)
        with pytest.raises(ConfigError, match=r"does not fit .*it writes \.jsonl, \.npz, \.parquet, \.pt\."):
            predict_files(
                run.folder, [str(image)], out=tmp_path / "a.csv", batch_size=1, device="cpu", reporter=Recorder()
            )

    def test_the_report_says_chance_beside_ranks(self, run: Run) -> None:
        text = (run.folder / "report.html").read_text(encoding="utf-8")
        for told in ("Finding one by the other", "chance", "The nearest texts of an image", "The nearest images of a"):
            assert told in text
        card = (run.folder / "MODEL_CARD.md").read_text(encoding="utf-8")
        assert "An image and a text encoder" in card

    def test_a_bundle_needs_no_hub_and_keeps_its_tokenizer(self, run: Run) -> None:
        assert "WordPiece" in run.knowledge["tokenizer"]
        assert run.knowledge["architecture"]["model_type"] == "bert"


def test_captions_that_teach_nothing_are_refused(tmp_path: Path) -> None:
    same = dict.fromkeys(COLOURS, "a picture")
    with pytest.raises(DataError, match=r"training texts are all the same, so that there is nothing to tell apart"):
        train(experiment_of(tmp_path, texts=same), reporter=Recorder())


def test_cases_without_a_text_are_counted_and_left_out(tmp_path: Path) -> None:
    reporter = Recorder()
    train(experiment_of(tmp_path, texts={"red": ""}), reporter=reporter, dry_run=True)
    assert any("12 cases left out: no text" in line for line in reporter.lines)


def test_labels_alone_become_captions(tmp_path: Path) -> None:
    """Two templates a label: all cases of the label are right answers, whichever template was drawn."""
    write(tmp_path / "pairs")
    for number in range(48):
        folder = tmp_path / "squares" / list(COLOURS)[number % 4]
        folder.mkdir(parents=True, exist_ok=True)
        (tmp_path / "pairs" / f"{number}.png").rename(folder / f"{number}.png")
    source = {"kind": "folder", "name": "squares", "path": str(tmp_path / "squares")}
    source |= {"captions": {"template": ["a {label} square", "a square, {label}"]}}
    own = [f"data.sources={json.dumps([source])}", "data.split={val: 0.25, test: 0.25}"]
    reporter = Recorder()
    result = train(experiment_of(tmp_path, *own), reporter=reporter)
    assert result is not None
    assert any("48 cases got texts out of labels (captions.template), 2 each." in line for line in reporter.lines)
    with (result.folder / "tables" / "test_retrieval.csv").open(encoding="utf-8") as file:
        assert next(csv.DictReader(file))["gallery"] == "8"


@pytest.mark.parametrize("rule", ["one_source", "groups_apart"])
def test_batches_keep_the_rule_of_the_mixture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rule: str) -> None:
    table = write(tmp_path / "pairs")
    rows = [json.loads(line) for line in table.read_text(encoding="utf-8").splitlines()]
    for number, row in enumerate(rows):
        row["group_id"] = f"p{row['split']}{number // 4}"
    sources = []
    for number, part in enumerate([rows[:30], rows[30:]]):
        (path := table.with_name(f"part{number}.jsonl")).write_text("".join(json.dumps(row) + "\n" for row in part))
        sources.append({"kind": "jsonl", "name": f"part{number}", "path": str(path)})
    own = [f"data.sources={json.dumps(sources)}", f"data.mixture.{rule}=true", "trainer.max_epochs=1"]
    seen: list[list[int]] = []
    step = Align.step

    def noting(task: Align, batch: Batch) -> StepOutput:
        seen.append(batch.rows_B.tolist())
        return step(task, batch)

    monkeypatch.setattr(Align, "step", noting)
    assert train(experiment_of(tmp_path, *own, "data.loader.batch_size=4"), reporter=Recorder()) is not None
    (store,) = (tmp_path / "stores").glob("part0+part1-*")
    values = {"one_source": Store.open(store).table.sources, "groups_apart": Store.open(store).table.groups}[rule]
    different = {len({values[row] for row in batch}) for batch in seen if len(batch) == 4}
    assert different == ({1} if rule == "one_source" else {4})
    if rule == "groups_apart":
        with pytest.raises(ConfigError, match=r"the group 'ptrain\d+' is drawn \d times in an epoch, .* at most \d+"):
            train(experiment_of(tmp_path, *own, "data.loader.batch_size=31"), reporter=Recorder())


def test_data_without_texts_are_refused_with_their_number(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"none of 48 cases can be used: 48 cases left out: no text\. Say in the sources"
    ):
        train(experiment_of(tmp_path, texts=dict.fromkeys(COLOURS, "")), reporter=Recorder())


def test_long_texts_are_counted_for_each_source_and_cut() -> None:
    rows = [("a", "one two"), ("a", "one two three four five"), ("b", "one"), ("c", "one two three four")]
    table = case_table([{"source": source, "text": text, "split": "train"} for source, text in rows])
    section = AlignConfig(kind="align", text=TextConfig(name="tiny", pretrained=False, context_length=5))
    cases = Cases.of(Filtered(table, []))
    assert FAMILY.study(section, cases, known=None, learns=True).cases.notes == [
        "source 'a': 1 of 2 training texts is longer than the text tower reads (task.text.context_length: 5 tokens), "
        "and is cut.",
        "source 'c': 1 of 1 training text is longer than the text tower reads (task.text.context_length: 5 tokens), "
        "and is cut.",
    ]
    wide = section.model_copy(update={"text": section.text.model_copy(update={"context_length": 9})})
    assert not FAMILY.study(wide, cases, known=None, learns=True).cases.notes


def test_a_batch_of_one_pair_is_refused_before_step_one(tmp_path: Path) -> None:
    one = "data.loader={batch_size: 31, workers: 0, drop_last: false}"
    with pytest.raises(ConfigError, match="a contrastive loss compares the pairs of a batch, and this batch has one"):
        train(experiment_of(tmp_path, one), reporter=Recorder())


@pytest.mark.parametrize(
    ("positives", "expected"),
    [("same_group", [0, 1, 1, 2]), ("same_label", [0, -1, 1, 0]), ("same_text", None), ("case", None)],
)
def test_what_is_right_beside_its_own_answer(positives: str, expected: list[int] | None) -> None:
    rows = [("a", ["x", "y"]), ("b", []), ("b", ["z"]), ("c", ["y", "x"])]
    table = case_table(
        [
            {"split": "train", "group": group, "label": labels, "text": f"text {number}"}
            for number, (group, labels) in enumerate(rows)
        ]
    )
    section = AlignConfig(
        kind="align",
        text=TextConfig(name="tiny", pretrained=False),
        loss=SoftmaxContrastiveConfig(positives=positives),  # type: ignore[arg-type]
    )
    studied = FAMILY.study(section, Cases.of(Filtered(table, [])), known=None, learns=True)
    assert (studied.targets if expected is None else studied.known_targets.tolist()) == expected


def test_labels_that_nobody_gave_make_no_positives(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"task.loss.positives is same_label, but no training case has a label"):
        train(experiment_of(tmp_path, "task.loss.positives=same_label"), reporter=Recorder(), dry_run=True)


def test_the_sigmoid_loss_learns(tmp_path: Path) -> None:
    own = ["task.loss={kind: sigmoid, positives: same_group}", "trainer.max_epochs=3"]
    result = train(experiment_of(tmp_path, *own), reporter=Recorder())
    assert result is not None
    losses = [float(row["train_loss"]) for row in read_history(result.folder / "history.csv") if row["train_loss"]]
    assert losses[-1] < losses[0]
    assert (result.runs[0].metrics["test"]["mean_recall"] or 0) > 0


def test_equal_texts_are_right_for_each_other(tmp_path: Path) -> None:
    """With one text for each colour every image of the colour is a right answer."""
    texts = {name: f"A {name} square" for name in COLOURS}
    result = train(experiment_of(tmp_path, texts=texts), reporter=Recorder())
    assert result is not None
    judged = json.loads((result.folder / "metrics.json").read_text(encoding="utf-8"))
    assert judged["test"]["metrics"]["image_to_text_recall_at_5"] == 1.0, "there are four texts"


def test_all_captions_of_a_case_are_learned_and_right(tmp_path: Path) -> None:
    """Three captions for each colour: none of the three that stand first is wrong, and any of them may be drawn."""
    texts = {name: [f"A {name} square", f"This is {name}", f"{name}, and no other"] for name in COLOURS}
    reporter = Recorder()
    result = train(experiment_of(tmp_path, "trainer.max_epochs=8", texts=texts), reporter=reporter)
    assert result is not None
    with (result.folder / "tables" / "test_retrieval.csv").open(encoding="utf-8") as file:
        judged = list(csv.DictReader(file))
    assert [(row["queries"], row["gallery"]) for row in judged] == [("8", "6"), ("24", "8")]
    precision = float(judged[0]["mean_average_precision"])
    assert precision > 0.9, "all three captions of a colour stand before those of the others"
    page = (result.folder / "report.html").read_text(encoding="utf-8")
    assert sum(text in page for own in texts.values() for text in own) >= 5, "the first five of an image"
    (store,) = (tmp_path / "stores").glob("pairs-*")
    out, bundle = tmp_path / "found.npz", result.runs[0].folder
    predict_files(bundle, [str(store)], out=out, batch_size=8, device="cpu", reporter=reporter)
    assert "note: 48 cases with several texts: the answer is about the first." in reporter.lines
    assert np.load(out)["text_embedding"].shape == (48, 16)


@pytest.mark.parametrize(
    ("frozen", "texts"),
    [
        (["text"], None),
        (["vision", "text"], {name: [f"FINDINGS: It is {name}. It is flat.", f"A {name} one."] for name in COLOURS}),
    ],
    ids=["text", "both, several captions and sentences"],
)
def test_a_frozen_tower_runs_once_and_teaches_what_it_would(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, frozen: list[str], texts: Mapping[str, Captions] | None
) -> None:
    """A text tower also where augmentation changes the images."""
    seen = {VisionTower: 0, TextTower: 0}

    def counting(tower: type[nn.Module]) -> Callable[..., Tensor]:
        forward = tower.forward

        def counted(self: nn.Module, *columns: Tensor) -> Tensor:
            seen[tower] += len(columns[0])
            return cast("Tensor", forward(self, *columns))

        return counted

    own = [f"task.{tower}.freeze.kind=tower" for tower in frozen]
    if texts is None:
        own.append("data.augmentation.horizontal_flip_prob=0.5")
    else:
        own.append("data.sources.0.captions={sentences: true}")
    with monkeypatch.context() as patch:
        for tower in seen:
            patch.setattr(tower, "forward", counting(tower))
        reporter = Recorder()
        cached = train(experiment_of(tmp_path, *own, texts=texts), reporter=reporter)
        assert cached is not None
        assert seen[TextTower] <= 24 + 8, "each of 24 texts once, and a few to try"
        assert (seen[VisionTower] <= 48 + 8) == ("vision" in frozen)
        assert any("features of the texts of 48 cases are cached in" in line for line in reporter.lines)
    run = train(experiment_of(tmp_path, *own, "trainer.cache_features=false", texts=texts), reporter=Recorder())
    assert run is not None
    expected = load_file(run.folder / "model.safetensors")
    for name, tensor in load_file(cached.folder / "model.safetensors").items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=1e-5, msg=name)
    assert cached.runs[0].metrics["test"] == pytest.approx(run.runs[0].metrics["test"], abs=1e-4)


@pytest.mark.slow  # two processes that load everything
@pytest.mark.parametrize("size", [12, 7])  # 32 pairs: a short last batch, also one that does not divide by two
def test_two_processes_train_as_one(tmp_path: Path, size: int) -> None:
    """Every pair of a batch is the others' negative, whichever process has it."""
    encoder = write_encoder(tmp_path / "encoder", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    own = [
        f"task.text={{name: {encoder}, context_length: 16}}",
        f"data.loader={{batch_size: {size}, workers: 0, drop_last: false}}",
        "optimizer={kind: sgd, learning_rate: 0.05, momentum: 0.9}",
        "trainer.accumulate=2",
        "trainer.clip_norm=1.0",
    ]
    texts = {name: [f"A {name} square", f"This is {name}", "A square"] for name in COLOURS} if size == 7 else None
    one, two = by_one_and_by_two(partial(experiment_of, texts=texts), tmp_path, *own)
    rows = [read_history(folder / "history.csv") for folder in (one, two)]
    assert len(rows[0]) == len(rows[1])
    for left, right in zip(*rows, strict=True):
        for name in ("step", "cases", "learning_rate_image"):
            assert left[name] == right[name]
        for name in ("train_loss", "gradient_norm", "val_mean_recall", "val_log_loss"):
            assert float(left[name] or 0) == pytest.approx(float(right[name] or 0), rel=1e-4)
