"""The fuse task: what is missing is never looked at, masking follows its chances, fusions and what they answer."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import consilium
from consilium.comparison import compare, load_experiments
from consilium.core.config import build, to_yaml
from consilium.core.errors import BadRowsError, ConfigError, DataError
from consilium.data.batches.rows import Query
from consilium.experiment import Experiment
from consilium.models.config import (
    AttentionConfig,
    ConcatConfig,
    GatedConfig,
    LateConfig,
    LinearHeadConfig,
    WeightedSumConfig,
)
from consilium.models.fusion import build_fusion
from consilium.predictions import predict_files
from consilium.session import train
from consilium.tasks.fuse.config import FuseConfig
from consilium.tasks.fuse.masking import WITHHELD, kept, subsets
from consilium.training.hooks import read_history
from tests.models.texts import write_encoder
from tests.tasks.test_fuse_contract import COLOURS, experiment_of, write
from tests.tiny import Recorder, Run

FUSIONS = [WeightedSumConfig(), ConcatConfig(), GatedConfig(), AttentionConfig(layers=1, heads=2), LateConfig()]
DRAWS = torch.arange(20_000)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A small model that has learned both modalities."""
    reporter = Recorder()
    result = train(
        experiment_of(tmp_path_factory.mktemp("fused"), "trainer.max_epochs=12", "optimizer.learning_rate=0.002"),
        reporter=reporter,
    )
    assert result is not None
    return Run(result, reporter)


# -- Masking -----------------------------------------------------------------------------------------------------------


@given(st.floats(0.0, 1.0), st.floats(0.0, 0.95))
def test_what_remains_follows_the_chances(image: float, text: float) -> None:
    """Each combination is as likely as when every modality is drawn by itself and draws that leave nothing are void."""
    left_BM = kept(torch.ones(len(DRAWS), 2, dtype=torch.bool), DRAWS, chances=(image, text))
    chance = {(a, b): (1 - image if a else image) * (1 - text if b else text) for a, b in product((0, 1), repeat=2)}
    possible = 1 - chance[0, 0]
    for own in ((1, 1), (1, 0), (0, 1)):
        found = float((left_BM == torch.tensor(own, dtype=torch.bool)).all(1).float().mean())
        assert found == pytest.approx(chance[own] / possible, abs=0.02)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=20), st.floats(0.0, 1.0), st.integers(0))
def test_a_case_keeps_something_of_what_it_has(there: list[tuple[bool, bool]], chance: float, first: int) -> None:
    there_BM, draws_B = torch.tensor(there), torch.arange(len(there)) + first % 1_000_000
    left_BM = kept(there_BM, draws_B, chances=(chance, 1 - chance))
    assert not (left_BM & ~there_BM).any()
    assert torch.equal(left_BM.any(1), there_BM.any(1))
    again_BM = kept(there_BM.flip(0), draws_B.flip(0), chances=(chance, 1 - chance)).flip(0)
    assert torch.equal(left_BM, again_BM)  # whatever else is in the batch


def test_subsets_go_from_nothing_to_all() -> None:
    assert subsets(2).tolist() == [[False, False], [True, False], [False, True], [True, True]]


@pytest.mark.parametrize(
    ("masking", "message"),
    [
        ({"image": 1.0, "text": 1.0}, "nothing would remain"),
        ({"complete": "text", "image": 0.5}, "one modality is left"),
        ({"withheld": {"image": 1.0, "text": 1.0}}, "nothing would remain"),
        ({"withheld": {"metadata": 0.5}}, "withheld names metadata, but the modalities are image and text"),
        ({"complete": "text", "withheld": {"text": 0.5}}, "leave out masking.text|one modality is left"),
    ],
)
def test_masking_that_leaves_nothing_is_refused(masking: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FuseConfig.model_validate({"kind": "fuse", "masking": masking})


def test_heads_of_attention_divide_the_width() -> None:
    with pytest.raises(ValueError, match=r"heads is 3, which does not divide width \(16\)"):
        FuseConfig(kind="fuse", width=16, fusion=AttentionConfig(heads=3))


# -- Fusion ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", FUSIONS, ids=lambda config: config.kind)
def test_what_is_missing_has_no_say(config: Any) -> None:
    """Scores do not depend on the vector of a modality that is not there; and every parameter has a gradient."""
    torch.manual_seed(0)
    fusion = build_fusion(config, LinearHeadConfig(), modalities=2, width=8, classes=3).eval()
    vectors_BMD, other_BMD = torch.randn(2, 4, 2, 8)
    there_BM = torch.tensor([[True, False], [False, True], [True, True], [False, False]])
    mixed_BMD = torch.where(there_BM[:, :, None], vectors_BMD, other_BMD)
    scores_BK = fusion(vectors_BMD, there_BM)
    torch.testing.assert_close(scores_BK, fusion(mixed_BMD, there_BM), rtol=0, atol=0)
    alone_BK = torch.cat([fusion(vectors_BMD[case : case + 1], there_BM[case : case + 1]) for case in range(4)])
    torch.testing.assert_close(scores_BK, alone_BK)
    fusion(vectors_BMD, torch.ones_like(there_BM)).sum().backward()
    assert all(parameter.grad is not None for parameter in fusion.parameters())


def test_late_fusion_is_the_mean_of_two_branches() -> None:
    fusion: Any = build_fusion(LateConfig(), LinearHeadConfig(), modalities=2, width=8, classes=3).eval()
    vectors_BMD = torch.randn(5, 2, 8)
    image_BK, text_BK = fusion.heads[0](vectors_BMD[:, 0]), fusion.heads[1](vectors_BMD[:, 1])
    both = torch.ones(5, 2, dtype=torch.bool)
    torch.testing.assert_close(fusion(vectors_BMD, both), (image_BK + text_BK) / 2)
    torch.testing.assert_close(fusion(vectors_BMD, both & torch.tensor([True, False])), image_BK)


def test_what_is_withheld_is_withheld_for_good() -> None:
    """Every row lacks a text or does not, in every epoch; those of a smaller share are among those of a larger one."""
    every = torch.ones(len(DRAWS), 2, dtype=torch.bool)
    quarter, half = (kept(every, DRAWS, chances=(0.0, share), stream=WITHHELD)[:, 1] for share in (0.25, 0.5))
    assert float(half.float().mean()) == pytest.approx(0.5, abs=0.02)
    assert bool(quarter[half].all())
    assert not torch.equal(half, kept(every, DRAWS, chances=(0.0, 0.5))[:, 1])


def test_a_comparison_shows_both_sides_of_a_lack(tmp_path: Path) -> None:
    config = tmp_path / "fused.yaml"
    config.write_text(to_yaml(experiment_of(tmp_path, "task.masking={}", "task.auxiliary={}")), encoding="utf-8")
    experiments = load_experiments([str(config)], vary="task.masking.withheld={}, {text: 1.0}")
    result = compare(experiments, runs=1, quiet=True)
    assert list(experiments) == ["fused-withheld-__", "fused-withheld-_text__1.0_"]
    page = (result.folder / "compare.html").read_text(encoding="utf-8")
    assert "What is missing, in training and at test" in page
    assert "fused-withheld-_text__1.0_, text missing in 50%" in page
    written = json.loads((result.folder / "compare.json").read_text(encoding="utf-8"))
    assert all("text only" in {row["what"] for row in run["modalities"]} for run in written["runs"])
    pulls = []
    for run in result.runs:
        history = read_history(Path(run.folder) / "history.csv")
        pulls.append(min(float(row["train_gradient_text"]) for row in history if row["train_loss"]))
    assert pulls[0] > pulls[1] == 0.0  # in a batch without a case that has nothing else, no text is seen


def test_the_gradient_is_shared_among_the_modalities(run: Run) -> None:
    history = [row for row in read_history(run.folder / "history.csv") if row["train_loss"]]
    shares = [float(row["train_gradient_image"]) + float(row["train_gradient_text"]) for row in history]
    assert shares == pytest.approx([1.0] * len(history), abs=1e-5)
    assert all(0 < float(row["train_gradient_text"]) < 1 for row in history)


def test_each_modality_alone_is_judged_while_it_learns(run: Run) -> None:
    judged = [row for row in read_history(run.folder / "history.csv") if row["val_accuracy"]]
    assert len(judged) == 12
    whole, image, text = (
        float(judged[-1][f"val_{name}"]) for name in ("macro_f1", "macro_f1_image_only", "macro_f1_text_only")
    )
    assert whole > max(image, text) > 0
    page = (run.folder / "report.html").read_text(encoding="utf-8")
    assert "macro F1 of each alone, validation" in page
    assert "Share of the gradient" in page


# -- The whole task ----------------------------------------------------------------------------------------------------


def test_it_learns_what_each_modality_alone_does_not_tell(run: Run) -> None:
    test = _figures(run.folder, "test")
    assert test["accuracy"] > 0.6
    rows = {row["what"]: row for row in _table(run.folder / "tables" / "test_modalities.csv")}
    whole, image, text = (float(rows[name]["accuracy"]) for name in ("with all modalities", "image only", "text only"))
    assert whole > image > 0.3
    assert whole > text
    assert float(rows["as they are"]["accuracy"]) == pytest.approx(test["accuracy"])
    assert float(rows["text missing in 100%"]["text"]) < 0.2  # cases that have nothing else keep it


def test_an_answer_says_what_counted(run: Run) -> None:
    red = np.full((32, 32, 3), COLOURS["red"], dtype=np.uint8)
    model = consilium.load(run.folder)
    both, image, text = model.predict([Query(red, "it is round"), Query(red), Query(text="it is round")])
    assert both["modalities"] == ["image", "text"]
    assert (image["modalities"], text["modalities"]) == (["image"], ["text"])
    assert both["without"]["text"] == {"label": image["label"], "probability": pytest.approx(image["probability"])}
    assert both["without"]["image"] == {"label": text["label"], "probability": pytest.approx(text["probability"])}
    assert image["without"] == {}
    nothing = both["probability"] - sum(both["counted"].values())
    assert 0 < nothing < 1  # what is answered without anything


def test_a_table_is_predicted_row_by_row(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "answers.csv"
    images = run.folder.parents[2] / "pairs"
    summary = predict_files(
        run.folder, [str(images / "pairs.jsonl")], out=out, batch_size=8, device="cpu", reporter=Recorder()
    )
    assert (summary.cases, summary.errors) == (90, 0)
    rows = {row["image"]: row for row in _table(out)}
    assert rows["case0"]["modalities"] == "image"
    assert rows["case3"]["modalities"] == "text"
    assert rows["case1"]["modalities"] == "image;text"
    assert rows["case0"]["counted_text"] == ""


def test_frozen_towers_give_the_same_from_their_features(tmp_path: Path) -> None:
    frozen = ["task.vision.freeze.kind=tower", "task.text.freeze.kind=tower", "trainer.max_epochs=1"]
    folders = []
    for name, more in (("cached", []), ("not", ["data.augmentation.brightness_jitter=0.0001"])):
        result = train(experiment_of(tmp_path, *frozen, *more, f"name={name}"), reporter=(lines := Recorder()))
        assert result is not None
        folders.append((result.bundle, lines))
    assert any(line.startswith("features of") for line in folders[0][1].lines)
    ours, theirs = (
        json.loads((folder / "metrics.json").read_text())["val"]["metrics"]["log_loss"] for folder, _ in folders
    )
    assert ours == pytest.approx(theirs, abs=1e-3)


def test_a_modality_may_be_left_out_for_good(tmp_path: Path) -> None:
    plain = ["task.masking={complete: text}", "task.auxiliary={}", "trainer.max_epochs=1"]
    result = train(experiment_of(tmp_path, *plain), reporter=Recorder())
    assert result is not None
    red = np.full((32, 32, 3), COLOURS["red"], dtype=np.uint8)
    with_text, without = consilium.load(result.bundle).predict([Query(red, "it is round"), Query(red)])
    assert with_text["probabilities"] == pytest.approx(without["probabilities"])
    assert with_text["modalities"] == ["image"]


def test_a_case_with_neither_is_a_bad_row(tmp_path: Path) -> None:
    experiment = experiment_of(tmp_path, "trainer.max_steps=1")
    table = tmp_path / "pairs" / "pairs.jsonl"
    with table.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"id": "nothing", "label": "red_flat", "split": "train"}) + "\n")
    with pytest.raises(BadRowsError, match=r"pairs.jsonl:91: the row has neither an image nor a text"):
        train(experiment, reporter=Recorder())


def test_cut_texts_are_told_for_each_source(tmp_path: Path) -> None:
    """What is cut is counted with what every text has beside its words."""
    experiment = experiment_of(tmp_path, "task.text.context_length=5", "trainer.max_steps=1")
    train(experiment, reporter=(seen := Recorder()))
    (line,) = [line for line in seen.lines if "longer than the text tower reads" in line]
    assert line.startswith("note: source 'pairs': ")
    assert "(task.text.context_length: 5 tokens), and are cut." in line


def test_texts_in_another_language_are_refused(tmp_path: Path) -> None:
    table = write(tmp_path / "pairs")
    rows = [json.loads(line) for line in table.read_text(encoding="utf-8").splitlines()]
    rows = [row | {"text": "\u03b1\u03b2 \u03b3\u03b4"} if row["split"] == "train" else row for row in rows]
    table.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    folder = write_encoder(tmp_path / "bert")
    text = json.dumps({"name": str(folder), "context_length": 16})
    experiment = experiment_of(tmp_path, f"task.text={text}")
    with pytest.raises(DataError, match=r"source 'pairs': the tokenizer of task.text does not know 100 %"):
        train(experiment, reporter=Recorder())


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"tree": {"head": "cascade"}}, "cascade, which is for images alone"),
        ({"answers": {"distance": {}}}, "distance is for images alone"),
    ],
)
def test_what_does_not_go_with_it_is_refused(section: dict[str, Any], message: str) -> None:
    tree = {"name": "x", "task": {"kind": "fuse", **section}, "data": {"sources": []}}
    with pytest.raises(ConfigError, match=message):
        build(Experiment, tree, origin="t")


def _figures(folder: Path, split: str) -> dict[str, float]:
    found: dict[str, float] = json.loads((folder / "metrics.json").read_text())[split]["metrics"]
    return found


def _table(path: Path) -> list[dict[str, str]]:
    import csv

    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))
