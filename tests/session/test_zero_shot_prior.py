"""The names of the classes as the prior of a logistic head, by the text tower of the model that the images pass."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

import consilium
from consilium.core.config import apply_overrides, build
from consilium.core.errors import ConfigError, ExportError
from consilium.core.labels import LabelTree
from consilium.evaluation.logistic import TRUSTS, choose_linear, fit_linear
from consilium.experiment import Experiment
from consilium.export.run import export
from consilium.session import train
from consilium.tasks.classify.logistic import fit_siblings
from tests.models.checkpoints.writers import Written, clip_hf, clip_open, siglip_hf
from tests.models.texts import caption_tokenizer
from tests.session.tables import Row, coloured_rows, write_table
from tests.tiny import TREE, Recorder, Run, same

LABELS = ["scan.ct", "scan.mri", "photo"]
NAMES = {"scan.ct": ["ct scan", "computed tomography"], "eye": ["a fundus"]}
WORDS = ["a picture of {label}", "{label}"]


def experiment_of(folder: Path, rows: list[Row], model: Path, kind: str, *overrides: str) -> Experiment:
    prior = {"templates": WORDS, "names": NAMES}
    own = [
        f"task.vision={json.dumps({'kind': kind, 'name': str(model), 'freeze': {'kind': 'tower'}})}",
        f"task.head={json.dumps({'kind': 'logistic', 'leave_out': 'site', 'zero_shot': prior})}",
        "task.tree={head: joint, nodes: [scan.ct, scan.mri, photo, eye]}",
        "data.image={}",
        write_table(folder, rows),
        f"data.store.root={json.dumps(str(folder / 'stores'))}",
        f"output.root={json.dumps(str(folder / 'runs'))}",
    ]
    return build(Experiment, apply_overrides(TREE, [*own, *overrides]), origin="tests")


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[Row]:
    """Six training images of each label but eye, from three sites."""
    found = coloured_rows(tmp_path_factory.mktemp("rows"), LABELS, {"train": 6, "val": 3, "test": 3})
    return [{**row, "site": f"site {number % 3}"} for number, row in enumerate(found)]


def run_of(experiment: Experiment, **options: Any) -> Run:
    reporter = Recorder()
    result = train(experiment, reporter=reporter, **options)
    assert result is not None
    return Run(result, reporter)


@pytest.mark.parametrize(
    ("write_model", "kind"),
    [(clip_open, "open_clip"), (clip_hf, "hf"), (siglip_hf, "hf")],
    ids=["open_clip", "hf", "siglip"],
)
def test_vectors_are_those_of_the_model_s_own_library_and_the_bundle_needs_no_texts(
    write_model: Callable[[Path], Written], kind: str, rows: list[Row], tmp_path: Path
) -> None:
    written = write_model(tmp_path / "model")
    run = run_of(experiment_of(tmp_path, rows, written.folder, kind))
    assert run.knowledge["labels"] == ["scan", "scan.ct", "scan.mri", "photo", "eye"]
    shown = consilium.load(run.folder, device="cpu").predict([rows[0]["image"]])
    shutil.rmtree(written.folder)
    model = consilium.load(run.folder, device="cpu")
    assert model.predict([rows[0]["image"]]) == shown
    head: Any = model.task.head  # type: ignore[attr-defined]
    assert float(head.scale) == pytest.approx(written.scale, rel=1e-5)

    tokenizer = caption_tokenizer()
    texts = ["a picture of ct scan", "a picture of computed tomography", "ct scan", "computed tomography"]
    padded = tokenizer.pad(tokenizer.encode(texts))
    left = 32 - padded.tokens_BT.shape[1]
    tokens, mask = (functional.pad(own, (0, left)) for own in (padded.tokens_BT, padded.attention_BT))
    with torch.no_grad():
        unit_PD = functional.normalize(written.texts(tokens, mask), dim=1)
    expected_D = functional.normalize(unit_PD.mean(0), dim=0)
    torch.testing.assert_close(head.vectors_KD[1], expected_D, rtol=0, atol=1e-4)
    torch.testing.assert_close(
        head.vectors_KD[0], functional.normalize(head.vectors_KD[1] + head.vectors_KD[2], dim=0), rtol=0, atol=1e-5
    )


def test_the_bundle_s_scores_are_the_head_s_plus_what_is_trusted_of_zero_shot(rows: list[Row], tmp_path: Path) -> None:
    written = clip_open(tmp_path / "model")
    run = run_of(experiment_of(tmp_path, rows, written.folder, "open_clip"))
    assert "trust" in run.log
    model = consilium.load(run.folder, device="cpu")
    head: Any = model.task.head  # type: ignore[attr-defined]
    features_BF = torch.randn(5, 32)
    layers = dict(head.named_parameters())
    linear_BK = features_BF @ layers["linear.1.weight"].T + layers["linear.1.bias"]
    with torch.no_grad():
        cosines_BK = head.projection(features_BF) @ head.vectors_KD.T
        expected_BK = linear_BK + head.trust_K * written.scale * cosines_BK
        torch.testing.assert_close(head(features_BF), expected_BK, rtol=0, atol=1e-4)
    assert set(head.trust_K.tolist()) <= set(TRUSTS)
    assert not layers["linear.1.weight"][4].any()  # eye has no case
    with pytest.raises(ExportError, match="no other library has"):
        export(run.folder, out=tmp_path / "out", to="onnx", reporter=Recorder())
    more = {**TREE, "task": {"kind": "classify", "add_to": str(run.folder), "tree": {"head": "joint"}}}
    sources = json.loads(write_table(tmp_path, rows).removeprefix("data.sources="))
    more["data"] = {"sources": sources, "loader": TREE["data"]["loader"]}
    with pytest.raises(ConfigError, match="has zero-shot as its prior, and knows no word for a new label"):
        train(build(Experiment, more, origin="tests"), reporter=Recorder())


def test_a_stopped_training_goes_on_as_the_unbroken_one(rows: list[Row], tmp_path: Path) -> None:
    written = clip_hf(tmp_path / "model")
    whole = run_of(experiment_of(tmp_path / "whole", rows, written.folder, "hf"))
    experiment = experiment_of(tmp_path / "broken", rows, written.folder, "hf")
    with pytest.raises(KeyboardInterrupt):
        train(experiment, reporter=Recorder(stop_at=1))
    again = run_of(experiment, resume=True)
    assert same(again.weights, whole.weights)
    assert again.metrics == whole.metrics


# -- What the prior is good for ---------------------------------------------------------------------------------------


def clouds(count: int, *, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Features and classes, units of 12, and scores of another kind that name the class in four of five cases."""
    random = np.random.default_rng(seed)
    targets_T = random.integers(0, 4, count)
    features_TF = np.eye(4, 6)[targets_T] + random.normal(size=(count, 6))
    guess_T = np.where(random.random(count) < 0.8, targets_T, random.integers(0, 4, count))
    return features_TF, targets_T, random.integers(0, 12, count), 3 * np.eye(4)[guess_T]


def test_the_head_learns_what_the_prior_leaves_open() -> None:
    """At the optimum no small step of weight or bias lowers the loss, with the prior's scores in it."""
    features_TF, targets_T, _, prior_TK = clouds(200, seed=0)
    head = fit_linear(features_TF, np.eye(4)[targets_T], strength=0.01, prior_TK=prior_TK, trust=0.5)
    standard = torch.from_numpy((features_TF - head.mean_F) / head.deviation_F)
    theta = [torch.from_numpy(own.copy()).requires_grad_() for own in (head.weight_FJ, head.bias_J)]
    scores = standard @ theta[0] + theta[1] + 0.5 * torch.from_numpy(prior_TK)
    loss = functional.cross_entropy(scores, torch.from_numpy(targets_T)) + 0.005 * theta[0].square().sum()
    loss.backward()
    assert max(float(own.grad.abs().max()) for own in theta if own.grad is not None) < 1e-5


def test_a_class_without_cases_is_answered_by_the_prior_alone() -> None:
    features_TF, targets_T, units_T, prior_TK = clouds(600, seed=1)
    known = targets_T < 3
    arrays = features_TF[known], targets_T[known], np.ones(int(known.sum())), units_T[known]
    labels = LabelTree(["a", "b", "c", "new"])
    options: dict[str, Any] = {"labels": labels, "leave_out": "group", "progress": lambda *_: None}
    found = fit_siblings(*arrays, prior_TK=prior_TK[known], **options)
    assert found.trust_K[3] > 0
    assert not found.weight_KF[3].any()
    assert found.bias_K[3] == 0
    scores_NK = features_TF @ found.weight_KF.T + found.bias_K + found.trust_K * prior_TK
    new = targets_T == 3
    assert (scores_NK.argmax(axis=1)[new] == 3).mean() > 0.5
    without = fit_siblings(*arrays, **options)
    assert ((features_TF @ without.weight_KF.T + without.bias_K).argmax(axis=1) < 3).all()


def test_a_prior_that_says_nothing_is_not_trusted() -> None:
    features_TF, targets_T, units_T, _ = clouds(400, seed=2)
    noise_TK = 3 * np.random.default_rng(0).normal(size=(400, 4))
    plain = choose_linear(features_TF, np.eye(4)[targets_T], units_T % 5)
    found = choose_linear(features_TF, np.eye(4)[targets_T], units_T % 5, prior_TK=noise_TK)
    assert found.head.trust == 0
    assert found.by_trust[0.0] < min(found.by_trust[trust] for trust in TRUSTS[1:])
    assert found.strength == plain.strength
    np.testing.assert_allclose(found.head.weight_FJ, plain.head.weight_FJ, atol=1e-9)


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (
            ["task.vision={kind: timm, name: test_resnet, freeze: {kind: tower}}"],
            "vision.kind is timm, which has no text tower",
        ),
        (["task.vision.pretrained=false"], "vision.pretrained is false: head.zero_shot needs"),
        (["task.vision.pooling=avg"], "vision.pooling is avg: head.zero_shot reads the model's own"),
        (["task.head.zero_shot.templates=[a photo]"], r"'a photo' has no \{label\}"),
        (["task.head.zero_shot.names={eye: []}"], "task.head.zero_shot.names.eye"),
    ],
)
def test_a_prior_without_words_is_refused(overrides: list[str], says: str, rows: list[Row], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=says):
        experiment_of(tmp_path, rows, tmp_path / "model", "open_clip", *overrides)


def test_names_of_no_label_are_refused(rows: list[Row], tmp_path: Path) -> None:
    written = clip_open(tmp_path / "model")
    other = experiment_of(tmp_path, rows, written.folder, "open_clip", "task.head.zero_shot.names={photos: [picture]}")
    with pytest.raises(
        ConfigError, match=r"task.head.zero_shot.names has 'photos', which is no label; did you mean `photo`"
    ):
        train(other, reporter=Recorder())
