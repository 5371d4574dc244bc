"""Zero-shot, neighbours, the linear head and few images a class, each beside an oracle or its definition."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler

from consilium.core.config import build
from consilium.core.errors import ConfigError, DataError
from consilium.core.evaluation import Outputs
from consilium.core.labels import LabelTree
from consilium.core.reporter import Silent
from consilium.evaluation.config import EvaluationConfig
from consilium.evaluation.logistic import STRENGTHS, fit_linear
from consilium.evaluation.probes.config import ProbesConfig, ZeroShotConfig
from consilium.evaluation.probes.evaluate import evaluate_probes
from consilium.evaluation.probes.linear import choose_probe
from consilium.evaluation.probes.neighbours import TEMPERATURE, class_means, draw_shots, vote
from consilium.evaluation.probes.zero_shot import ClassEmbeddings, ensemble, probabilities, prompts_of
from consilium.evaluation.retrieval.ranks import unit

LABELS = LabelTree(["benign", "malignant", "other"])
WORDS = {name: name for name in LABELS.names}


def clouds(count: int, *, seed: int, spread: float = 1.0, width: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """Features around a centre for each of three classes."""
    random = np.random.default_rng(seed)
    targets_N = random.integers(0, 3, count)
    centres_KF = np.eye(3, width) * 2
    return centres_KF[targets_N] + spread * random.normal(size=(count, width)), targets_N


def one_hot(targets_N: np.ndarray) -> np.ndarray:
    return np.eye(3)[targets_N]


def outputs(features_NF: np.ndarray, targets: np.ndarray, **arrays: np.ndarray) -> Outputs:
    names = [str(number) for number in range(len(targets))]
    own = {"features": features_NF.astype(np.float32), **arrays}
    return Outputs(
        own, targets, names, [f"p{number // 2}" for number in range(len(targets))], {"source": ["a"] * len(names)}
    )


# -- Zero-shot --------------------------------------------------------------------------------------------------------


def test_a_template_without_a_label_and_an_empty_phrase_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"`templates`: 'a photo' has no \{label\}.*put \{label\} where"):
        build(ZeroShotConfig, {"templates": ["a photo"]}, origin="probes")
    with pytest.raises(ValidationError, match="'mel' has an empty phrase"):
        ZeroShotConfig(prompts={"mel": [" "]})


def test_every_phrase_is_put_into_every_template() -> None:
    config = ZeroShotConfig(
        templates=["a photo of {label}", "{label}, magnified"],
        prompts={"benign": ["a mole", "a nevus"], "malignant": ["melanoma"], "other": ["a scar"]},
        negative_prompts={"other": ["bare skin"]},
    )
    first, second, third = prompts_of(LABELS.names, config, words=WORDS, multi_label=True)
    assert set(first.positive) == {"a photo of a mole", "a photo of a nevus", "a mole, magnified", "a nevus, magnified"}
    assert first.negative == ("no a mole", "no a nevus")
    assert (second.phrases, third.negative) == (("melanoma",), ("bare skin",))
    single = prompts_of(LABELS.names, ZeroShotConfig(), words=WORDS, multi_label=False)
    assert [(own.positive, own.negative) for own in single] == [((name,), ()) for name in LABELS.names]


def test_a_label_without_a_prompt_and_a_prompt_of_no_label_are_refused() -> None:
    config = ZeroShotConfig(prompts={"benign": ["a mole"], "other": ["a scar"]})
    with pytest.raises(ConfigError, match="no phrase for malignant; give every label"):
        prompts_of(LABELS.names, config, words=WORDS, multi_label=False)
    config = ZeroShotConfig(prompts={"malignat": ["melanoma"]})
    with pytest.raises(ConfigError, match="has 'malignat', which is no label; did you mean `malignant`"):
        prompts_of(LABELS.names, config, words=WORDS, multi_label=False)


def test_an_ensemble_is_the_mean_of_unit_embeddings_made_a_unit_again() -> None:
    random = np.random.default_rng(0)
    prompts = [random.normal(size=(count, 5)) * 7 for count in (1, 3)]
    found_KF = ensemble(prompts)
    expected = prompts[1] / np.linalg.norm(prompts[1], axis=1, keepdims=True)
    expected_F = expected.mean(axis=0) / np.linalg.norm(expected.mean(axis=0))
    np.testing.assert_allclose(found_KF[1], expected_F, atol=1e-6)
    np.testing.assert_allclose(found_KF[0], prompts[0][0] / np.linalg.norm(prompts[0][0]), atol=1e-6)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.1, 200))
def test_probabilities_of_single_labels_are_a_softmax_of_scaled_cosines(seed: int, scale: float) -> None:
    random = np.random.default_rng(seed)
    images_NF, classes_KF = random.normal(size=(7, 4)), unit(random.normal(size=(3, 4)))
    found_NK = probabilities(images_NF, ClassEmbeddings(classes_KF, None, scale))
    cosines_NK = (images_NF / np.linalg.norm(images_NF, axis=1, keepdims=True)) @ classes_KF.T
    assert (found_NK.argmax(axis=1) == cosines_NK.argmax(axis=1)).all()
    np.testing.assert_allclose(found_NK.sum(axis=1), 1)
    odds = np.log(found_NK.clip(1e-300)[:, :1] / found_NK.clip(1e-300)[:, 1:])
    mild = (found_NK > 1e-12).all(axis=1)
    np.testing.assert_allclose(odds[mild], scale * (cosines_NK[:, :1] - cosines_NK[:, 1:])[mild], atol=1e-3, rtol=1e-4)


def test_several_labels_set_the_positive_against_the_negative_prompt() -> None:
    random = np.random.default_rng(1)
    images_NF, positive_KF, negative_KF = (unit(random.normal(size=(rows, 4))) for rows in (9, 3, 3))
    found_NK = probabilities(images_NF, ClassEmbeddings(positive_KF, negative_KF, 5.0))
    both = np.exp(5 * images_NF @ positive_KF.T), np.exp(5 * images_NF @ negative_KF.T)
    np.testing.assert_allclose(found_NK, both[0] / (both[0] + both[1]), atol=1e-6)


# -- Neighbours -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 7])
def test_votes_are_those_of_scikit_learn(k: int) -> None:
    (train_TF, targets_T), (images_NF, _) = clouds(60, seed=0), clouds(40, seed=1)
    oracle = KNeighborsClassifier(
        k, metric="cosine", algorithm="brute", weights=lambda distance: np.exp((1 - distance) / TEMPERATURE)
    ).fit(train_TF, targets_T)
    found_NK = vote(train_TF, one_hot(targets_T), images_NF, k=k)
    np.testing.assert_allclose(found_NK, oracle.predict_proba(images_NF), atol=1e-4)


def test_of_fewer_images_than_asked_all_vote_and_several_labels_each_have_their_share() -> None:
    train_TF = np.array([[1.0, 0], [0, 1.0]])
    targets_TK = np.array([[1.0, 1, 0], [1, 0, 0]])
    found_NK = vote(train_TF, targets_TK, np.array([[1.0, 1.0]]), k=9)
    np.testing.assert_allclose(found_NK, [[1, 0.5, 0]], atol=1e-6)


def test_class_means_are_prototypes_and_draws_are_of_each_class_alike() -> None:
    train_TF, targets_T = clouds(60, seed=3)
    drawn = draw_shots(targets_T, shots=4, draws=5, labels=list(LABELS.names), seed=0)
    assert [np.bincount(targets_T[rows]).tolist() for rows in drawn] == [[4, 4, 4]] * 5
    assert all(len(set(rows.tolist())) == 12 for rows in drawn)
    assert any(set(drawn[0].tolist()) != set(rows.tolist()) for rows in drawn[1:])
    again = draw_shots(targets_T, shots=4, draws=5, labels=list(LABELS.names), seed=0)
    assert all((one == other).all() for one, other in zip(drawn, again, strict=True))
    means_KF = class_means(train_TF, targets_T, classes=3)
    np.testing.assert_allclose(np.linalg.norm(means_KF, axis=1), 1, atol=1e-6)
    with pytest.raises(DataError, match=r"asks for 30 training images of each class, and train has fewer of .*\(\d+\)"):
        draw_shots(targets_T, shots=30, draws=1, labels=list(LABELS.names), seed=0)


# -- The linear head --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strength", [1.0, 1e-2, 1e-4])
def test_the_linear_head_is_scikit_learn_s(strength: float) -> None:
    (train_TF, targets_T), (images_NF, _) = clouds(80, seed=0), clouds(40, seed=1)
    scale = StandardScaler().fit(train_TF)
    oracle = LogisticRegression(C=1 / (80 * strength), tol=1e-10, max_iter=10_000)
    oracle.fit(scale.transform(train_TF), targets_T)
    head = fit_linear(train_TF, one_hot(targets_T), strength=strength, multi_label=False)
    assert head.converged
    np.testing.assert_allclose(
        head.probabilities(images_NF), oracle.predict_proba(scale.transform(images_NF)), atol=1e-4
    )


def test_with_several_labels_it_is_one_head_for_each() -> None:
    (train_TF, targets_T), (images_NF, _) = clouds(80, seed=0), clouds(40, seed=1)
    targets_TK = one_hot(targets_T)
    targets_TK[::3, 0] = 1
    scale = StandardScaler().fit(train_TF)
    oracle = OneVsRestClassifier(LogisticRegression(C=1 / (80 * 0.01), tol=1e-10, max_iter=10_000))
    oracle.fit(scale.transform(train_TF), targets_TK)
    head = fit_linear(train_TF, targets_TK, strength=0.01, multi_label=True)
    np.testing.assert_allclose(
        head.probabilities(images_NF), oracle.predict_proba(scale.transform(images_NF)), atol=1e-4
    )


def test_classes_without_a_choice_keep_what_training_says() -> None:
    train_TF, targets_T = clouds(40, seed=0)
    never = one_hot(targets_T) * [1, 1, 0]
    some_TF, some_TK = train_TF[targets_T < 2], never[targets_T < 2]
    found_NK = fit_linear(some_TF, some_TK, strength=0.1, multi_label=False).probabilities(train_TF)
    assert (found_NK[:, 2] == 0).all()
    np.testing.assert_allclose(found_NK.sum(axis=1), 1)
    always = np.stack([np.ones(40), targets_T == 1], axis=1).astype(float)
    head = fit_linear(train_TF, always, strength=0.1, multi_label=True)
    assert (head.probabilities(train_TF)[:, 0] == 1).all()
    constant = fit_linear(np.ones((40, 3)), one_hot(targets_T), strength=0.1, multi_label=False)
    np.testing.assert_allclose(constant.probabilities(np.ones((1, 3)))[0], one_hot(targets_T).mean(axis=0), atol=1e-5)


def test_the_strength_is_that_of_the_least_loss_on_groups_left_out() -> None:
    """Copies of a patient's image in both parts would choose the weakest penalty: groups stay whole."""
    train_TF, targets_T = clouds(40, seed=0, spread=3, width=30)
    copied_TF = np.repeat(train_TF, 3, axis=0)
    copied_T, groups = np.repeat(targets_T, 3), [str(number) for number in range(40) for _ in range(3)]
    chosen = choose_probe(copied_TF, one_hot(copied_T), groups, multi_label=False, seed=0)
    assert chosen.strength == min(chosen.log_losses, key=lambda own: chosen.log_losses[own])
    tried = list(chosen.log_losses.values())
    assert tuple(chosen.log_losses) == STRENGTHS[: len(tried)]
    assert all(loss > min(tried) for loss in tried[-2:])  # after which no weaker one is tried
    torn = choose_probe(copied_TF, one_hot(copied_T), [str(n) for n in range(120)], multi_label=False, seed=0)
    assert torn.strength < chosen.strength
    again = fit_linear(copied_TF, one_hot(copied_T), strength=chosen.strength, multi_label=False)
    np.testing.assert_allclose(chosen.head.weight_FJ, again.weight_FJ)
    with pytest.raises(DataError, match="all training cases are of one group"):
        choose_probe(train_TF, one_hot(targets_T), ["p"] * 40, multi_label=False, seed=0)


# -- All together -----------------------------------------------------------------------------------------------------


def judged(config: dict[str, Any], *, multi_label: bool = False, spread: float = 1.0) -> Any:
    (train_TF, targets_T), (images_NF, targets_N) = clouds(90, seed=0, spread=spread), clouds(60, seed=1, spread=spread)
    own = [one_hot(one).astype(np.float32) if multi_label else one for one in (targets_T, targets_N)]
    classes = ClassEmbeddings(np.eye(3, 6), -np.eye(3, 6) if multi_label else None, 10.0)
    return evaluate_probes(
        ProbesConfig.model_validate({**config, "multi_label": multi_label}),
        outputs(images_NF, own[1], image_embeddings=images_NF),
        train=outputs(train_TF, own[0]),
        labels=LABELS,
        classes=classes,
        evaluation=EvaluationConfig(bootstrap_samples=50),
        split="test",
        reporter=Silent(),
    )


def test_all_probes_have_figures_intervals_and_tables() -> None:
    found = judged({"zero_shot": {}, "knn": 5, "linear": True, "few_shot": [1, 8], "few_shot_draws": 3})
    assert [row["probe"] for row in found.tables["probes"]] == ["zero_shot", "knn", "linear"]
    for row in found.tables["probes"]:
        assert row["accuracy_low"] < row["accuracy"] == found.metrics[f"{row['probe']}_accuracy"] < row["accuracy_high"]
        assert found.intervals[f"{row['probe']}_macro_auroc"].low is not None
        assert row["learned_from"] == (0 if row["probe"] == "zero_shot" else 90)
        assert {f"{row['probe']}_{table}" for table in ("per_class", "confusion", "per_source")} <= set(found.tables)
    one, eight = found.tables["few_shot"]
    assert (one["images"], eight["images"], eight["draws"]) == (1, 8, 3)
    assert one["balanced_accuracy"] < eight["balanced_accuracy"]
    assert all(row["accuracy_low"] < row["accuracy"] < row["accuracy_high"] for row in (one, eight))
    assert sum(row["chosen"] for row in found.tables["linear_strengths"]) == 1
    assert (found.cases, found.groups) == (60, 30)


def test_several_labels_are_judged_one_by_one() -> None:
    found = judged({"zero_shot": {}, "knn": 5, "linear": True}, multi_label=True)
    assert found.metrics["zero_shot_macro_auroc"] > 0.8
    assert found.metrics["linear_macro_auroc"] > 0.8
    assert "few_shot" not in found.tables
    assert {row["label"] for row in found.tables["zero_shot_per_class"]} == set(LABELS.names)


def test_a_class_that_train_lacks_is_named() -> None:
    (train_TF, targets_T), (images_NF, targets_N) = clouds(60, seed=0), clouds(60, seed=1)
    rows = targets_T < 2
    found = evaluate_probes(
        ProbesConfig(knn=500),
        outputs(images_NF, targets_N),
        train=outputs(train_TF[rows], targets_T[rows]),
        labels=LABELS,
        classes=None,
        evaluation=EvaluationConfig(bootstrap_samples=0),
        split="test",
        reporter=Silent(),
    )
    notes = [row["note"] for row in found.tables["notes"]]
    assert "train has no case of other: probes that learn cannot name them." in notes
    assert any("probes.knn asks 500" in note for note in notes)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "nothing is asked"),
        ({"few_shot": [1], "multi_label": True}, "needs one label a case"),
        ({"zero_shot": {"negative_prompts": {"a": ["b"]}}}, "needs multi_label"),
        ({"knn": 0}, "`knn` is 0; expected a number of 1 or more"),
        ({"liner": True}, "did you mean `linear`"),
    ],
)
def test_a_section_that_asks_for_nothing_that_can_be_done_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(ProbesConfig, given, origin="probes")
