"""Fuse with metadata as a third modality: its contract, masking of three, answers, the command line, bad input."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import consilium
from consilium.core.answers import Calibration
from consilium.core.config import build
from consilium.core.errors import ConfigError, DataError
from consilium.core.evaluation import Outputs
from consilium.core.labels import LabelTree
from consilium.data.batches.rows import Query
from consilium.evaluation.config import AnswersConfig, EvaluationConfig
from consilium.evaluation.labels.modalities import ModalityEvaluator, under
from consilium.evaluation.labels.tree import TreeEvaluator
from consilium.experiment import Experiment
from consilium.models.config import LinearHeadConfig
from consilium.models.fusion import build_fusion
from consilium.predictions import Asked, predict_files
from consilium.session import train
from consilium.tasks.fuse.config import FuseConfig
from consilium.tasks.fuse.masking import kept
from tests.contracts.family import FamilyContract
from tests.models.texts import write_encoder
from tests.session.test_loop import by_one_and_by_two
from tests.tasks.test_fuse import DRAWS, FUSIONS
from tests.tasks.test_fuse_contract import COLOURS, experiment_of, write
from tests.tiny import Recorder, Run, assert_close

RED = np.full((32, 32, 3), COLOURS["red"], dtype=np.uint8)
METADATA = (
    "task.metadata={columns: [age, site], column_width: 8}",
    "task.masking={image: 0.2, text: 0.3, metadata: 0.2}",
    "task.auxiliary={image: 0.3, text: 0.3, metadata: 0.3}",
)
OLD = Path(__file__).parents[1] / "bundles" / "format3_fuse"


def with_metadata(folder: Path, **change: Any) -> list[dict[str, Any]]:
    """The rows of the squares with an age, which tells the shape as their texts do, and a site, which tells nothing.

    Every fifth has no age, every tenth neither. ``change`` adds columns.
    """
    table = write(folder / "pairs")
    rows = [json.loads(line) for line in table.read_text(encoding="utf-8").splitlines()]
    for number, row in enumerate(rows):
        age = (30 if row["label"].endswith("round") else 60) + number % 7
        row |= {} if number % 5 == 4 else {"age": age}
        row |= {} if number % 10 == 9 else {"site": ("hand", "foot", "back")[number * 7 % 11 % 3]}
        row |= {name: column(number, row) for name, column in change.items()}
    table.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return rows


def experiment_with(folder: Path, *overrides: str, **change: Any) -> Experiment:
    """The small experiment of three modalities."""
    if not (folder / "pairs" / "pairs.jsonl").is_file():
        with_metadata(folder, **change)
    return experiment_of(folder, *METADATA, *overrides)


class TestFuseWithMetadata(FamilyContract):
    @classmethod
    def experiment(cls, folder: Path, *overrides: str) -> Experiment:
        return experiment_with(folder, *overrides)

    @classmethod
    def queries(cls, experiment: Experiment) -> list[Any]:
        return [Query(RED, "it is round", {"age": 70, "site": "hand"}), Query(RED), Query(metadata={"site": "foot"})]

    def test_a_bundle_works_wherever_it_lies_and_says_what_it_reads_and_gives(self, run: Run, tmp_path: Path) -> None:
        assert run.manifest["reads"] == ["image", "text", "metadata"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A small model that has learned three modalities."""
    reporter, folder = Recorder(), tmp_path_factory.mktemp("three")
    result = train(experiment_with(folder, "trainer.max_epochs=12", "optimizer.learning_rate=0.002"), reporter=reporter)
    assert result is not None
    return Run(result, reporter)


# -- Masking -----------------------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(0.0, 1.0), min_size=3, max_size=3), st.sampled_from(list(product((0, 1), repeat=3))[1:]))
def test_of_three_what_remains_follows_the_chances(chances: list[float], own: tuple[int, ...]) -> None:
    """Each combination of what a case has is as likely as if each were drawn alone and draws of nothing were void."""
    there_M = torch.tensor(own, dtype=torch.bool)
    left_BM = kept(there_M.expand(len(DRAWS), 3), DRAWS, chances=chances)
    share = {
        left: np.prod([(1 - p if stays else p) for p, has, stays in zip(chances, own, left, strict=True) if has])
        for left in product((0, 1), repeat=3)
        if all(has or not stays for has, stays in zip(own, left, strict=True))
    }
    possible = 1 - share.pop((0, 0, 0))
    for left, chance in share.items():
        found = float((left_BM == torch.tensor(left, dtype=torch.bool)).all(1).float().mean())
        assert found == pytest.approx(chance / possible if possible else float(left == own), abs=0.02)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"masking": {"image": 1, "text": 1, "metadata": 1}}, "image, text and metadata with a chance of 1 each"),
        ({"masking": {"complete": "metadata", "image": 1, "text": 1}}, "image and text with a chance of 1 each"),
        ({"masking": {"complete": ["image", "text"], "metadata": 0.5}}, "one modality is left"),
        ({"masking": {"complete": "text", "text": 0.5}}, "complete is text; leave out masking.text"),
        ({"masking": {"complete": ["text", "image", "metadata"]}}, "leaves out image, text and metadata"),
        ({"metadata": None, "masking": {"metadata": 0.5}}, "task.metadata is not set"),
        ({"metadata": None, "masking": {"complete": "metadata"}}, "task.metadata is not set"),
        ({"metadata": None, "auxiliary": {"metadata": 0.5}}, "task.metadata is not set"),
        ({"metadata": {"columns": []}}, "at least 1 item"),
        ({"metadata": {"columns": ["age", "age"]}}, "columns has 'age' twice"),
        ({"metadata": {"columns": ["age"], "kinds": {"sex": "category"}}}, "kinds names 'sex', which is none of"),
    ],
)
def test_sections_that_do_not_go_together_are_refused(section: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FuseConfig.model_validate({"kind": "fuse", "metadata": {"columns": ["age"]}, **section})


def test_two_of_three_may_be_always_masked() -> None:
    """Metadata alone remain; with image and text alone the same chances leave nothing."""
    section = {"kind": "fuse", "metadata": {"columns": ["age"]}, "masking": {"image": 1, "text": 1}}
    assert FuseConfig.model_validate(section).masking.chances(("image", "metadata")) == [1.0, 0.0]


# -- Fusion ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", FUSIONS, ids=lambda config: config.kind)
def test_what_is_missing_of_three_has_no_say(config: Any) -> None:
    torch.manual_seed(0)
    fusion = build_fusion(config, LinearHeadConfig(), modalities=3, width=8, classes=3).eval()
    vectors_BMD, other_BMD = torch.randn(2, 8, 3, 8)
    there_BM = torch.tensor(list(product((False, True), repeat=3)))
    mixed_BMD = torch.where(there_BM[:, :, None], vectors_BMD, other_BMD)
    torch.testing.assert_close(fusion(vectors_BMD, there_BM), fusion(mixed_BMD, there_BM), rtol=0, atol=0)
    assert len(fusion(vectors_BMD[:1].expand(8, 3, 8), there_BM).unique(dim=0)) == 8  # every subset says its own


# -- The whole task ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", FUSIONS, ids=lambda config: config.kind)
def test_every_fusion_trains(config: Any, tmp_path: Path) -> None:
    fusion = json.dumps(config.model_dump())
    result = train(experiment_with(tmp_path, f"task.fusion={fusion}", "trainer.max_steps=2"), reporter=Recorder())
    assert result is not None
    answers = consilium.load(result.bundle, device="cpu").predict(TestFuseWithMetadata.queries(None))  # type: ignore[arg-type]
    assert [answer["modalities"] for answer in answers] == [["image", "text", "metadata"], ["image"], ["metadata"]]


def test_an_answer_says_what_counted(run: Run) -> None:
    model = consilium.load(run.folder, device="cpu")
    age = {"age": 33, "site": None}
    whole, no_text, alone = model.predict(
        [Query(RED, "it is round", age), Query(RED, metadata=age), Query(metadata={"age": "33"})]
    )
    assert whole["modalities"] == ["image", "text", "metadata"]
    assert whole["without"]["text"] == {"label": no_text["label"], "probability": no_text["probability"]}
    assert no_text["without"]["image"] == {"label": alone["label"], "probability": alone["probability"]}
    assert set(whole["counted"]) == {"image", "text", "metadata"}
    assert alone["metadata"] == {"age": "33"}
    nothing = whole["probability"] - sum(whole["counted"].values())
    assert 0 < nothing < 1
    assert whole["label"] == no_text["label"] == "red_round"  # the age says what the text would have said


def test_the_report_says_what_metadata_are_worth(run: Run) -> None:
    rows = {row["what"]: row for row in _table(run.folder / "tables" / "test_modalities.csv")}
    assert {"image only", "text only", "metadata only", "metadata missing in 100%"} <= set(rows)
    assert [float(rows["without text"][name]) for name in ("image", "text", "metadata")] == [1, 0, 1]
    assert float(rows["as they are"]["metadata"]) == pytest.approx(0.9, abs=0.1)
    classes = _table(run.folder / "tables" / "test_modality_classes.csv")
    for row in classes:
        added = sum(float(row[f"{name} adds"]) for name in ("image", "text", "metadata"))
        assert float(row["nothing"]) + added == pytest.approx(float(row["all"]), abs=1e-5)
    report = (run.folder / "report.html").read_text(encoding="utf-8")
    assert "with metadata</th>" in report
    assert "metadata lost" in report  # in the drawing
    assert "age, site" in report


def test_what_is_lost_is_judged_where_no_case_has_all() -> None:
    """Cases of two modalities out of three: nothing is judged with all, and each loss all the same."""
    labels = LabelTree(["a", "b"])
    config, calibration = EvaluationConfig(bootstrap_samples=10), Calibration()
    answers = TreeEvaluator(labels, config=config, answers=AnswersConfig(), calibration=calibration)
    random = np.random.default_rng(0)
    logits_NSK = random.normal(size=(12, 8, 2)).astype(np.float32)
    seen = np.exp(logits_NSK) / np.exp(logits_NSK).sum(-1, keepdims=True)
    there_NM = np.array([[1, 1, 0], [0, 1, 1], [1, 0, 1]] * 4, dtype=np.float32)
    outputs = Outputs(
        {"there": there_NM, "subset_logits": logits_NSK, "subset_probabilities": seen, "subset_conditionals": seen},
        np.arange(12) % 2,
        ids=[str(n) for n in range(12)],
        groups=[str(n) for n in range(12)],
        columns={},
    )
    found = ModalityEvaluator(answers, modalities=["image", "text", "metadata"], labels=labels)
    rows = found.evaluate(under(outputs, there_NM > 0), split="test").tables["modalities"]
    assert [row["what"] for row in rows if row["share"] in (None, 1.0)] == [
        "as they are",
        *(f"{name} missing in 100%" for name in ("image", "text", "metadata")),
    ]
    assert rows[-1]["metadata"] == 0.0


def test_values_that_no_training_case_had_are_told_once(run: Run, tmp_path: Path) -> None:
    model = consilium.load(run.folder, device="cpu")
    elbow, knee, hand = model.predict([Query(RED, metadata={"site": place}) for place in ("elbow", "knee", "hand")])
    assert (elbow["unseen"], knee["unseen"]) == ({"site": "elbow"}, {"site": "knee"})
    assert "unseen" not in hand
    assert elbow["probabilities"] == knee["probabilities"]
    table = tmp_path / "asked.csv"
    table.write_text(f"id,text,site,other\n{''.join(f'{n},round,elbow,x{chr(10)}' for n in range(3))}", "utf-8")
    reporter = Recorder()
    predict_files(run.folder, [str(table)], out=tmp_path / "a.csv", batch_size=2, device="cpu", reporter=reporter)
    assert [line for line in reporter.lines if line.startswith("note")] == [
        "note: no case has metadata of age; it is missing everywhere.",
        "note: metadata that no training case had counts as 'another value': site 'elbow' (3 cases).",
    ]


def test_a_query_that_cannot_be_read_says_why(run: Run) -> None:
    queries = [
        Query(RED, metadata={"age": "old"}),
        Query(RED, metadata={"agee": 3}),
        Query(metadata={"age": None, "site": "NA"}),
        Query(metadata={}),
        Query(RED, metadata=["age"]),  # type: ignore[arg-type]
    ]
    found = [answer["error"] for answer in consilium.load(run.folder, device="cpu").predict(queries)]
    assert "'age' is 'old'; expected a number" in found[0]
    assert found[1] == "there is no metadata column called agee; the columns are age, site."
    assert found[2] == found[3] == "the query has neither an image nor a text, nor metadata."
    assert found[4].startswith("the metadata of the query are a list; expected values by column")


def test_a_table_and_the_store_answer_as_queries_do(run: Run, tmp_path: Path) -> None:
    table = run.folder.parents[2] / "pairs" / "pairs.jsonl"
    rows = [json.loads(line) for line in table.read_text(encoding="utf-8").splitlines()]
    queries = [
        Query(
            str(table.parent / row["image"]) if "image" in row else None,
            row.get("text"),
            {name: row.get(name) for name in ("age", "site")},
        )
        for row in rows
    ]
    expected = [answer["probabilities"] for answer in consilium.load(run.folder, device="cpu").predict(queries)]
    (store,) = {path.parent for path in (run.folder.parents[2] / "stores").rglob("store.json")}
    for place in (table, store):
        out = tmp_path / f"{place.name}.out.jsonl"
        predict_files(run.folder, [str(place)], out=out, batch_size=8, device="cpu", reporter=Recorder())
        found = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
        assert [answer["probabilities"] for answer in found] == expected


def test_frozen_towers_give_the_same_from_their_features(tmp_path: Path) -> None:
    frozen = ["task.vision.freeze.kind=tower", "task.text.freeze.kind=tower", "trainer.max_epochs=1"]
    found = []
    for own in ("true", "false"):
        changes = [f"trainer.cache_features={own}", f"name=cached_{own}"]
        result = train(experiment_with(tmp_path, *frozen, *changes), reporter=Recorder())
        assert result is not None
        found.append(Run(result, Recorder()))
    assert_close(found[0].weights, found[1].weights)
    assert found[0].metrics["test"] == pytest.approx(found[1].metrics["test"], abs=1e-5)


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path: Path) -> None:
    encoder = write_encoder(tmp_path / "encoder", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    own = [
        f"task.text={{name: {encoder}, context_length: 16}}",
        "data.loader={batch_size: 7, workers: 0, drop_last: false}",
        "optimizer={kind: sgd, learning_rate: 0.05, momentum: 0.9}",
    ]
    by_one_and_by_two(experiment_with, tmp_path, *own)


# -- Asking on the command line ----------------------------------------------------------------------------------------


def test_one_case_is_asked_about_in_the_call(run: Run, tmp_path: Path) -> None:
    image = str(next((run.folder.parents[2] / "pairs").glob("*.png")))
    out = tmp_path / "answer.jsonl"
    asked = Asked("it is round", {"age": "70"})
    for paths in ([image], []):
        predict_files(run.folder, paths, asked=asked, out=out, batch_size=1, device="cpu", reporter=Recorder())
        (line,) = out.read_text(encoding="utf-8").splitlines()
        (direct,) = consilium.load(run.folder, device="cpu").predict(
            [Query(*(paths or [None]), "it is round", {"age": 70})]
        )
        assert json.loads(line)["probabilities"] == direct["probabilities"]
        assert json.loads(line)["image"] == (paths or ["case"])[0]


@pytest.mark.parametrize(
    ("paths", "asked", "message"),
    [
        (["pairs"], Asked("it is round"), "ask about one case, which has one image or none, but .* holds 90 cases"),
        (["pairs/pairs.jsonl"], Asked("it is round"), "holds 90 cases"),
        (
            [],
            Asked(metadata={"agee": "70"}),
            r"--meta names 'agee', which this bundle does not read; did you mean `age`",
        ),
        ([], Asked(metadata={"age": "old"}), "'age' is 'old'; expected a number"),
    ],
)
def test_what_is_asked_in_the_call_is_checked(paths: list[str], asked: Asked, message: str, run: Run) -> None:
    given = [str(run.folder.parents[2] / path) for path in paths]
    with pytest.raises((ConfigError, DataError), match=message):
        predict_files(run.folder, given, asked=asked, out=None, batch_size=1, device="cpu", reporter=Recorder())


# -- Guards and bad input ----------------------------------------------------------------------------------------------


def test_a_column_that_tells_the_label_is_a_warning_and_stands_in_the_report(tmp_path: Path) -> None:
    def rank(number: int, row: dict[str, Any]) -> int:
        return ord(row["label"][0]) + number % 2

    def sex(number: int, row: dict[str, Any]) -> str:
        return "fm"[number // 3 % 2]

    colours = ["data.rename_labels=" + json.dumps({f"{c}_{s}": c for c in COLOURS for s in ("round", "flat")})]
    experiment = experiment_with(
        tmp_path, *colours, "task.metadata={columns: [rank, sex]}", "trainer.max_steps=1", rank=rank, sex=sex
    )
    result = train(experiment, reporter=(reporter := Recorder()))
    assert result is not None
    (line,) = [line for line in reporter.lines if "shortcut in metadata" in line]
    assert "of the metadata that the model reads, by itself rank reaches 1.00 balanced accuracy over 3 classes" in line
    assert "sex" not in line
    assert "by itself rank reaches 1.00" in (result.bundle / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (lambda number, row: "old" if number == 7 else number, r"is a number in 89 cases .*and text in 1 case \(case7"),
        (lambda number, row: row["label"], "is the label"),
        (lambda number, row: None, "which no case has"),
    ],
)
def test_a_column_that_cannot_be_used_is_refused(column: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        train(experiment_with(tmp_path, "task.metadata={columns: [age, x]}", x=column), reporter=Recorder())


def test_a_bundle_of_two_modalities_that_an_earlier_version_wrote_answers_as_it_did() -> None:
    expected = json.loads(OLD.with_suffix(".json").read_text(encoding="utf-8"))
    model = consilium.load(OLD.with_suffix(".zip"), device="cpu")
    for answer, before in zip(
        model.predict([Query(RED, "it is round"), Query(RED), Query(text="it is flat")]), expected, strict=True
    ):
        assert answer.keys() - {"image"} == before.keys()
        for name in ("probabilities", "counted"):
            assert answer[name] == pytest.approx(before[name], abs=2e-6)
        assert answer["modalities"] == before["modalities"]
    (refused,) = model.predict([Query(RED, metadata={"age": 3})])
    assert refused["error"] == "there is no metadata column called age; this model reads none."


def test_an_earlier_config_is_read(tmp_path: Path) -> None:
    tree = json.loads(experiment_of(tmp_path).model_dump_json())
    del tree["task"]["metadata"], tree["task"]["masking"]["metadata"], tree["task"]["auxiliary"]["metadata"]
    assert build(Experiment, tree, origin="t").task == experiment_of(tmp_path).task


def _table(path: Path) -> list[dict[str, str]]:
    import csv

    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))
