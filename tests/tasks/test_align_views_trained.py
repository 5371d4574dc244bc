"""Experts of two eyes, from a table with a column for each to a judged bundle; and what is refused on the way."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import consilium
from consilium.core.config import apply_overrides, build
from consilium.core.errors import ConfigError, DataError, ExportError, ImageError
from consilium.data.batches.rows import Query
from consilium.experiment import Experiment
from consilium.export.run import export
from consilium.predictions import predict_files
from consilium.search import Index
from consilium.search.building import build_index
from consilium.session import train
from consilium.training.hooks import read_history
from tests.contracts.family import FamilyContract
from tests.models.texts import write_encoder
from tests.session.test_loop import by_one_and_by_two
from tests.tasks.test_align_contract import COLOURS, TREE, square
from tests.tiny import Recorder, Run, assert_close

NAMES = list(COLOURS)
EYES: dict[str, Any] = {**TREE, "name": "eyes", "task": {**TREE["task"], "views": {"names": ["left", "right"]}}}


def write_eyes(folder: Path) -> Path:
    """Squares for the eyes of 48 patients; some have no left one, some no right one, each has one of them."""
    table = folder / "eyes.csv"
    if table.is_file():
        return table
    folder.mkdir(parents=True, exist_ok=True)
    random, rows = np.random.default_rng(0), []
    for number in range(48):
        colours = {"left": NAMES[number // 4 % 4], "right": NAMES[number % 4]}
        text = f"Left {colours['left']}, right {colours['right']}, round {number // 16}"
        split = "val" if number % 6 == 4 else "test" if number % 6 == 5 else "train"
        row = {"id": f"p{number}", "text": text, "split": split, "left": "", "right": ""}
        for side, colour in colours.items():
            if number % (7 if side == "left" else 11) != (3 if side == "left" else 5):
                pixels = np.array(COLOURS[colour]) + random.integers(-30, 30, (32, 32, 3))
                row[side] = f"{number}_{side}.png"
                Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / row[side])
        rows.append(row)
    with table.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return table


def experiment_of(folder: Path, *overrides: str, source: dict[str, Any] | None = None) -> Experiment:
    own = {"kind": "csv", "name": "eyes", "path": str(write_eyes(folder / "eyes"))}
    places = {
        "data.sources": [{**own, "columns": {"image": ["left", "right"]}, **(source or {})}],
        "data.store": {"root": str(folder / "stores")},
        "output.root": str(folder / "runs"),
    }
    given = [f"{key}={json.dumps(value)}" for key, value in places.items()]
    return build(Experiment, apply_overrides(EYES, [*given, *overrides], model=Experiment), origin="tests")


class TestAlignViews(FamilyContract):
    @classmethod
    def experiment(cls, folder: Path, *overrides: str) -> Experiment:
        return experiment_of(folder, *overrides)

    @classmethod
    def queries(cls, experiment: Experiment) -> list[Any]:
        text = "Left red, right green, round 1"
        return [Query({"left": square(left), "right": square("green")}, text) for left in ("red", "blue")]

    def test_cases_answer_with_the_views_that_they_have(self, run: Run) -> None:
        model = consilium.load(run.folder, device="cpu")
        both, pair, right, words, nameless, wrong, nothing = model.predict(
            [
                {"left": square("red"), "right": square("green")},
                (square("red"), square("green")),
                Query({"right": square("green")}, "Left red, right green, round 1"),
                Query(text="Left red, right green, round 1"),
                square("red"),
                {"lft": square("red")},
                {},
            ]
        )
        spaces = ("", "left_", "right_")
        assert set(both) == {"image", *(f"{space}image_embedding" for space in spaces)}
        assert both["image_embedding"] == pair["image_embedding"]
        texts = {f"{space}text_embedding" for space in spaces}
        assert set(right) == {"image", "text", "right_image_embedding", *texts}
        assert right["right_image_embedding"] == pytest.approx(both["right_image_embedding"], abs=1e-5)
        assert set(words) == {"text", *texts}
        assert "1 image without a name, of a case whose views are left, right: say which is which" in nameless["error"]
        assert "there is no view called lft; the views are left, right" in wrong["error"]
        assert "the case has no view" in nothing["error"]

    def test_a_store_is_embedded_with_the_names_of_its_views(self, run: Run, tmp_path: Path) -> None:
        (store,) = (run.folder.parents[2] / "stores").glob("eyes-*")
        out = tmp_path / "found.npz"
        predict_files(run.folder, [str(store)], out=out, batch_size=8, device="cpu", reporter=Recorder())
        found = dict(np.load(out))
        rows = {name: row for row, name in enumerate(found["image"].tolist())}
        lacks = {"left": rows["p3"], "right": rows["p5"]}
        for side, row in lacks.items():
            assert np.isnan(found["image_embedding"][row]).all()
            assert np.isnan(found[f"{side}_image_embedding"][row]).all()
            other = "right" if side == "left" else "left"
            assert np.linalg.norm(found[f"{other}_image_embedding"][row]) == pytest.approx(1, abs=1e-5)
        assert np.isfinite(found["image_embedding"][rows["p0"]]).all()

    def test_the_case_is_judged_and_each_view_and_the_symmetry(self, run: Run) -> None:
        results = json.loads((run.folder / "evaluation_results.json").read_text(encoding="utf-8"))
        test = results["splits"]["test"] if "splits" in results else results["test"]
        assert {row["view"] for row in test["retrieval_views"]} == {"left", "right"}
        (alike,) = test["symmetry"]
        assert alike["difference"] == pytest.approx(alike["same_case"] - alike["other_groups"])
        assert alike["same_case_low"] <= alike["same_case"] <= alike["same_case_high"]
        figures = {row["figure"]: row for row in test["exchange"]}
        assert set(figures) == {"cosine", "mean_recall", "image_to_text_recall_at_1", "text_to_image_recall_at_1"}
        assert figures["mean_recall"]["value"] == pytest.approx(run.metrics["test"]["mean_recall"])
        page = (run.folder / "report.html").read_text(encoding="utf-8")
        assert "Each view by itself" in page
        assert "One side against the other" in page
        assert any("lack a view (left, right): the figures of cases leave them out" in note for note in test["notes"])
        assert any("cases have all views, 4 lack left, " in line for line in run.reporter.lines)

    def test_no_form_of_another_library_holds_its_spaces(self, run: Run, tmp_path: Path) -> None:
        with pytest.raises(ExportError, match=r"an image map and a text head for each of its views \(left, right\)"):
            export(run.folder, to="hf", out=tmp_path / "out", reporter=Recorder())

    def test_an_index_is_of_cases_that_have_all_views(self, run: Run, tmp_path: Path) -> None:
        (store,) = (run.folder.parents[2] / "stores").glob("eyes-*")
        model = consilium.load(run.folder, device="cpu")
        built = build_index(model, [str(store)], out=tmp_path / "index", reporter=Recorder())
        assert "a view is missing" in built.unread["p3"]
        index = Index.load(built.folder, model)
        (hit, *_) = index.search(image={"left": square("red"), "right": square("green")}, k=1)
        assert hit.id not in built.unread
        with pytest.raises(ImageError, match="has no place in the space of the index: a view is missing"):
            index.search(image={"left": square("red")})


def test_probes_leave_out_cases_that_lack_a_view(tmp_path: Path) -> None:
    result = train(experiment_of(tmp_path, "trainer.max_epochs=1"), reporter=Recorder())
    assert result is not None
    folder = write_eyes(tmp_path / "eyes").parent
    rows = ["left,right,label", *(f"{n}_left.png,{n}_right.png,{'ab'[n % 2]}" for n in (0, 1, 2, 4)), "5_left.png,,a"]
    (folder / "labelled.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    source = {"kind": "csv", "name": "labelled", "path": str(folder / "labelled.csv")}
    tree = {
        "data": {
            "sources": [{**source, "columns": {"image": ["left", "right"]}}],
            "store": {"root": str(tmp_path / "stores")},
        },
        "probes": {"zero_shot": {"templates": ["Left {label}"]}},
    }
    (tmp_path / "probes.yaml").write_text(json.dumps(tree), encoding="utf-8")
    found = consilium.evaluate(
        result.folder, data=tmp_path / "probes.yaml", out=tmp_path / "out", split="all", device="cpu", quiet=True
    )
    assert found.cases == 4
    assert any(
        "Left out, since a view is missing and there is no embedding: 1 case" in row["note"]
        for row in found.tables["notes"]
    )


def test_features_of_a_frozen_tower_keep_the_names_of_views(tmp_path: Path) -> None:
    """Cached or computed in every step, the weights are the same."""
    runs = []
    for cached in ("true", "false"):
        own = ["task.vision.freeze.kind=tower", f"trainer.cache_features={cached}", "trainer.max_epochs=1"]
        result = train(experiment_of(tmp_path, *own), reporter=Recorder())
        assert result is not None
        runs.append(Run(result, Recorder()))
    assert_close(runs[0].weights, runs[1].weights)
    assert runs[0].metrics["test"] == pytest.approx(runs[1].metrics["test"], abs=1e-4)


def test_a_flip_exchanges_the_views_or_is_refused(tmp_path: Path) -> None:
    flip = "data.augmentation.horizontal_flip_prob=0.5"
    for views in ("apart", "together"):
        with pytest.raises(ConfigError, match=rf"while data.augmentation.views is {views}: set it to mirrored"):
            experiment_of(tmp_path, flip, f"data.augmentation.views={views}")
    with pytest.raises(ConfigError, match=r"evaluation.averaging.mirror looks at mirrored views"):
        experiment_of(tmp_path, "evaluation.averaging.mirror=true")
    copies = "data.augmentation.copies={horizontal_flip_prob: 0.5}"
    with pytest.raises(ConfigError, match=r"copies.horizontal_flip_prob mirrors a left view"):
        experiment_of(tmp_path, copies, "task.vision.freeze.kind=tower")
    mirrored = [flip, "data.augmentation.views=mirrored", "trainer.max_epochs=1"]
    assert train(experiment_of(tmp_path, *mirrored), reporter=Recorder()) is not None
    assert experiment_of(tmp_path, flip, "task.views={monocular: true}").task.needs.views == ()


def test_a_view_that_no_case_has(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"the view 'od', which no case has: the views are called left, right"):
        train(experiment_of(tmp_path, "task.views.names=[od, os]"), reporter=Recorder())


def test_a_left_eye_twice(tmp_path: Path) -> None:
    folder = write_eyes(tmp_path / "eyes").parent
    left, right = ({"type": "image", "value": f"0_{name}.png", "name": name} for name in ("left", "right"))
    rows = [{"id": "a", "modalities": [left, left], "text": "x"}, {"id": "b", "modalities": [right], "text": "y"}]
    (folder / "twice.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    source = {"kind": "jsonl", "path": str(folder / "twice.jsonl"), "columns": {}}
    with pytest.raises(DataError, match=r"the case a has the view 'left' 2 times; give each case one of it"):
        train(experiment_of(tmp_path, source=source), reporter=Recorder(), dry_run=True)


def test_cases_none_of_which_is_complete(tmp_path: Path) -> None:
    table = write_eyes(tmp_path / "eyes")
    with table.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for number, row in enumerate(rows):
        row["left" if number % 2 else "right"] = ""
    half = table.with_name("half.csv")
    with half.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(row for row in rows if row["left"] or row["right"])
    with pytest.raises(DataError, match=r"no case of train has all views \(left, right\), so that the map of the case"):
        train(experiment_of(tmp_path, source={"path": str(half)}), reporter=Recorder(), dry_run=True)


def test_monocular_never_takes_two_pictures_for_one(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"monocular reads one picture of a case, and \d+ cases have several"):
        train(experiment_of(tmp_path, "task.views={monocular: true}"), reporter=Recorder(), dry_run=True)
    one = {"columns": {"image": "right"}}
    result = train(experiment_of(tmp_path, "task.views={monocular: true}", source=one), reporter=Recorder())
    assert result is not None
    model = consilium.load(result.folder, device="cpu")
    (answer,) = model.predict([square("red")])
    assert set(answer) == {"image", "image_embedding"}


def test_texts_of_another_language_than_the_tokenizer(tmp_path: Path) -> None:
    table = write_eyes(tmp_path / "eyes")
    chinese = table.with_name("chinese.csv")
    text = table.read_text(encoding="utf-8").replace("Left ", "左眼").replace("right ", "右眼黄斑水肿")
    chinese.write_text(text, encoding="utf-8")
    own = f"task.text={{name: {write_encoder(tmp_path / 'bert')}, context_length: 16}}"
    with pytest.raises(DataError, match=r"does not know \d+ % of the tokens of its training texts .*another language"):
        train(experiment_of(tmp_path, own, source={"path": str(chinese)}), reporter=Recorder(), dry_run=True)


@pytest.mark.slow  # two processes
def test_two_processes_train_as_one(tmp_path: Path) -> None:
    """Batches of seven, some of which have few complete cases, on one process or two."""
    encoder = write_encoder(tmp_path / "encoder", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    own = [
        f"task.text={{name: {encoder}, context_length: 16}}",
        "data.loader={batch_size: 7, workers: 0, drop_last: false}",
        "optimizer={kind: sgd, learning_rate: 0.05, momentum: 0.9}",
    ]
    one, two = by_one_and_by_two(experiment_of, tmp_path, *own)
    for left, right in zip(*(read_history(folder / "history.csv") for folder in (two, one)), strict=True):
        for name in ("train_loss", "val_mean_recall", "val_log_loss"):
            assert float(left[name] or 0) == pytest.approx(float(right[name] or 0), rel=1e-4)
