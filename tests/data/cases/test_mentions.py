"""Sentences that name a label go out of texts: all of them, nothing else, and without knowing the label."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import consilium
from consilium.core.config import build
from consilium.core.errors import ConfigError
from consilium.core.reporter import counted
from consilium.data.batches.rows import Query
from consilium.data.case import Text
from consilium.data.cases.mentions import Mentions, WithoutMentions
from consilium.data.guards.texts import label_phrases
from consilium.evaluating import evaluate
from consilium.experiment import Experiment
from consilium.session import train
from consilium.session.embed import embed
from tests.models.texts import write_encoder
from tests.tasks.test_fuse_contract import TREE, experiment_of, write
from tests.tiny import Recorder

LABELS = {"skin.malignant.melanoma", "skin.benign.nevus", "xray"}
STRIP = "data.strip_label_mentions=true"


def mentions(**synonyms: list[str]) -> Mentions:
    return Mentions(label_phrases(LABELS, synonyms)[0])


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("A mole. Melanoma was found. It itches.", "A mole. It itches."),
        ("A mole. No MELANOMAS here! It itches.", "A mole. It itches."),
        ("It is benign. It itches.", "It itches."),  # a branch
        ("Two nevi? A nevus. It itches.", "Two nevi? It itches."),
        ("An x-ray of the hand. It itches.", "It itches."),
        ("Melanoma.", ""),
        ("A  mole.\n It itches. ", "A  mole.\n It itches. "),  # as it was
        ("A melanomatous mole.", "A melanomatous mole."),  # another word
    ],
)
def test_sentences_that_name_a_label_go(text: str, left: str) -> None:
    assert mentions().without(text)[0] == left


def test_synonyms_of_labels_and_branches_go_too() -> None:
    text = "Mm was seen. Cancer is suspected. It itches."
    assert mentions().without(text) == (text, 0)
    assert mentions(melanoma=["MM"], malignant=["cancer"]).without(text) == ("It itches.", 2)
    assert "'wart', which is no label" in label_phrases(LABELS, {"wart": ["verruca"]})[1][0]


SENTENCES = st.sampled_from(
    ["It itches.", "Dr. Smith saw it.", "Melanoma was found.", "Not benign!", "Is it a nevus?", "A mole of 3 mm."]
)


@given(st.lists(SENTENCES, max_size=8))
def test_what_is_left_has_none_and_what_went_had_one(sentences: list[str]) -> None:
    naming = ("elanoma", "benign", "nevus")
    clean = [sentence for sentence in sentences if not any(word in sentence for word in naming)]
    left, count = mentions().without(" ".join(sentences))
    assert left == " ".join(clean)
    assert count == len(sentences) - len(clean)
    assert mentions().without(left) == (left, 0)  # again, nothing goes


@given(st.text(max_size=60))
def test_any_text_loses_all_mentions_within_sentences(text: str) -> None:
    left, count = mentions().without(text)
    assert (left == text) == (count == 0)
    assert mentions().without(left)[0] == left


def test_parts_that_a_training_draws_lose_theirs() -> None:
    text = Text("A mole. Melanoma.", parts=("A mole.", "Melanoma."))
    assert mentions().stripped(text) == (Text("A mole.", parts=("A mole.",)), 1)


def test_rows_of_texts_go_to_other_processes() -> None:
    class Rows:
        most_captions = 2

        def captions(self, row: int) -> list[str]:
            return ["Melanoma.", "It itches. A nevus."][row:]

    stripped = WithoutMentions(Rows(), copy.deepcopy(mentions()))
    assert (stripped.captions(0), stripped.captions(2), stripped.most_captions) == (["It itches."], [], 2)


# -- A training --------------------------------------------------------------------------------------------------------


LETTERS = ("alpha", "beta", "gamma", "delta", "epsilon", "zeta")


def told(folder: Path) -> dict[str, int]:
    """Every third text says the label, and some of these say nothing else; how many there are."""
    table = write(folder / "pairs")
    rows = [json.loads(line) for line in table.read_text(encoding="utf-8").splitlines()]
    letters = dict(zip(dict.fromkeys(row["label"] for row in rows), LETTERS, strict=True))
    counts = dict.fromkeys(("texts", "touched", "emptied", "left out"), 0)
    for number, row in enumerate(rows):
        row["label"] = f"greek.{letters[row['label']]}"
        if "text" not in row:
            continue
        counts["texts"] += 1
        if number % 3 == 0:
            said = f"The answer is {row['label'].rpartition('.')[2]}."
            row["text"] = said if number % 4 == 0 else f"{row['text']} of all. {said}"
            counts["touched"] += 1
            counts["emptied"] += row["text"] == said
            counts["left out"] += row["text"] == said and "image" not in row
    table.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return counts


def test_a_training_says_what_went_and_a_bundle_does_the_same(tmp_path: Path) -> None:
    counts = told(tmp_path)
    overrides = ["trainer.max_steps=1", "data.guards.synonyms={beta: [bb]}"]
    train(experiment_of(tmp_path, *overrides), reporter=(seen := Recorder()))
    assert any("label in text" in line for line in seen.lines)
    result = train(experiment_of(tmp_path, *overrides, STRIP), reporter=(seen := Recorder()))
    assert result is not None
    assert not any("label in text" in line for line in seen.lines)
    (line,) = [line for line in seen.lines if "strip_label_mentions" in line]
    assert line == (
        f"note: data.strip_label_mentions took {counts['touched']} sentences that name a label out of the texts of "
        f"{counts['touched']} of {counts['texts']} cases with a text ({counts['touched'] / counts['texts']:.1%}); "
        f"{counts['emptied']} have no text left."
    )
    assert f"{counted(counts['left out'], 'case')} left out: neither an image nor a text" in "\n".join(seen.lines)
    assert line.removeprefix("note: ") in (result.folder / "report.html").read_text(encoding="utf-8")
    model = consilium.load(result.folder, device="cpu")
    assert {*LETTERS, "bb", "greek"} <= set(model.knowledge.mentions)
    image, plain = str(tmp_path / "pairs" / "1.png"), "it is round, and number 5 of all."
    clean, naming = model.predict([Query(image, plain), Query(image, f"{plain} The answer is alpha. Or BB.")])
    assert naming["probabilities"] == clean["probabilities"]
    (nothing,) = model.predict([Query(image, "The answer is gamma.")])
    assert nothing["modalities"] == ["image"]
    again = evaluate(result.folder, reporter=Recorder())
    assert again.metrics["log_loss"] == pytest.approx(result.runs[0].metrics["test"]["log_loss"])


def test_kept_vectors_are_of_what_is_left(tmp_path: Path) -> None:
    counts = told(tmp_path)
    frozen = ["task.text.freeze.kind=tower", "trainer.max_epochs=1", f"task.text.name={write_encoder(tmp_path / 'e')}"]
    frozen += ["task.text.pretrained=true", "task.text.vocabulary_size=null"]
    (whole,) = embed(experiment_of(tmp_path, *frozen), reporter=Recorder())
    (stripped,) = embed(experiment_of(tmp_path, *frozen, STRIP), reporter=Recorder())
    assert whole.folder == stripped.folder
    assert stripped.computed == counts["touched"] - counts["emptied"]


@pytest.mark.parametrize(
    ("section", "message"),
    [
        (
            {"data": {"captions": {"template": ["a {label}"]}}},
            "captions.template of the source a writes them into texts",
        ),
        (
            {"text": {"kind": "vectors", "name": "v.npz"}},
            "task.text.kind is vectors, which were computed of whole ones",
        ),
    ],
)
def test_what_it_does_not_go_with_is_refused(section: dict[str, Any], message: str) -> None:
    source = {"kind": "jsonl", "name": "a", "path": "a.jsonl", **section.get("data", {})}
    text = {"text": section["text"]} if "text" in section else {}
    tree = TREE | {"task": {"kind": "fuse", **text}, "data": {"sources": [source], "strip_label_mentions": True}}
    with pytest.raises(ConfigError, match=message):
        build(Experiment, tree, origin="t")


def test_a_task_that_reads_no_texts_has_none_to_strip(tmp_path: Path) -> None:
    told(tmp_path)
    tree = experiment_of(tmp_path, "trainer.max_steps=1", STRIP).model_dump(mode="json", exclude_unset=True)
    tree["task"] = {"kind": "classify", "vision": {"name": "test_vit", "pretrained": False}}
    train(build(Experiment, tree, origin="t"), reporter=(seen := Recorder()))
    assert not any("strip_label_mentions" in line for line in seen.lines)
