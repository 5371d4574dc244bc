"""Figures of named views: what is judged, and the symmetry of two sides against plain sums."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from consilium.core.errors import DataError
from consilium.core.evaluation import Outputs
from consilium.evaluation.config import EvaluationConfig
from consilium.evaluation.retrieval.evaluator import RetrievalEvaluator
from consilium.evaluation.retrieval.symmetry import exchange, symmetry
from consilium.evaluation.retrieval.views import ViewsEvaluator

CONFIG = EvaluationConfig(bootstrap_samples=40)
NAMES = ("left", "right")


def outputs_of(count: int = 9, *, lacking: tuple[int, ...] = (2, 5), groups: list[str] | None = None) -> Outputs:
    """Random embeddings; the cases in ``lacking`` have no left view."""
    random = np.random.default_rng(0)

    def unit(*shape: int) -> np.ndarray:
        found = random.normal(size=shape).astype(np.float32)
        return found / np.linalg.norm(found, axis=-1, keepdims=True)

    arrays: dict[str, Any] = {"same_text": np.arange(count)[:, None], "tower_image_embeddings": unit(count, 2, 4)}
    for space in ("", "left_", "right_"):
        arrays |= {f"{space}image_embeddings": unit(count, 4), f"{space}text_embeddings": unit(count, 1, 4)}
        arrays[f"{space}scale"] = np.full(count, 10.0, dtype=np.float32)
    arrays["exchanged_image_embeddings"] = unit(count, 4)
    for name in ("image_embeddings", "left_image_embeddings", "exchanged_image_embeddings"):
        arrays[name][list(lacking)] = 0
    ids = [f"c{n}" for n in range(count)]
    return Outputs(arrays, None, ids, groups or [f"g{n // 2}" for n in range(count)], {"source": ["s"] * count})


def test_cases_that_lack_a_view_are_left_out_and_counted() -> None:
    outputs = outputs_of()
    whole = outputs.take(np.array([0, 1, 3, 4, 6, 7, 8]))
    found = ViewsEvaluator(NAMES, config=CONFIG).evaluate(outputs, split="test")
    expected = RetrievalEvaluator(config=CONFIG).evaluate(whole, split="test")
    assert found.cases == 7
    assert found.metrics == expected.metrics
    assert found.intervals == expected.intervals
    assert found.metrics == ViewsEvaluator(NAMES, config=CONFIG).quick(outputs)
    (note,) = (row["note"] for row in found.tables["notes"])
    assert "2 of 9 cases lack a view (left, right)" in note


def test_each_view_is_judged_in_its_own_space() -> None:
    outputs = outputs_of()
    rows = ViewsEvaluator(NAMES, config=CONFIG).evaluate(outputs, split="test").tables["retrieval_views"]
    assert [(row["view"], row["gallery"]) for row in rows] == [("left", 7)] * 2 + [("right", 9)] * 2
    keys = ("image_embeddings", "text_embeddings", "scale")
    right = {key: outputs.arrays[f"right_{key}"] for key in keys} | {"same_text": outputs.arrays["same_text"]}
    alone = Outputs(right, None, outputs.ids, outputs.groups, outputs.columns)
    for row, expected in zip(
        rows[2:], RetrievalEvaluator(config=CONFIG).evaluate(alone, split="test").tables["retrieval"], strict=True
    ):
        assert row == {"view": "right", **expected}


def test_symmetry_is_what_its_words_say() -> None:
    outputs = outputs_of(lacking=())
    (row,) = symmetry(outputs, config=CONFIG)
    left, right = outputs.arrays["tower_image_embeddings"].astype(float).transpose(1, 0, 2)
    same = [left[n] @ right[n] for n in range(9)]
    other = []
    for n, group in enumerate(outputs.groups):
        others = [m for m in range(9) if outputs.groups[m] != group]
        other.append(
            (np.mean([left[n] @ right[m] for m in others]) + np.mean([right[n] @ left[m] for m in others])) / 2
        )
    assert row["cases"] == 9
    assert row["same_case"] == pytest.approx(np.mean(same))
    assert row["other_groups"] == pytest.approx(np.mean(other))
    assert row["difference"] == pytest.approx(np.mean(same) - np.mean(other))
    assert row["difference_low"] <= row["difference"] <= row["difference_high"]
    assert symmetry(outputs_of(lacking=(), groups=["one"] * 9), config=CONFIG) == []


def test_exchange_compares_the_figures_of_both_orders() -> None:
    outputs = outputs_of(lacking=())
    cosine, *rows = exchange(outputs, config=CONFIG)
    turned = Outputs(
        {**outputs.arrays, "image_embeddings": outputs.arrays["exchanged_image_embeddings"]},
        None, outputs.ids, outputs.groups, outputs.columns,
    )  # fmt: skip
    one, other = (RetrievalEvaluator(config=CONFIG).quick(own) for own in (outputs, turned))
    both = outputs.arrays["image_embeddings"] * outputs.arrays["exchanged_image_embeddings"]
    assert cosine["exchanged"] == pytest.approx(both.sum(axis=1).mean(), abs=1e-6)
    for row in rows:
        before, after = one[row["figure"]], other[row["figure"]]
        assert before is not None
        assert after is not None
        assert (row["value"], row["exchanged"]) == (pytest.approx(before), pytest.approx(after))
        assert row["difference"] == pytest.approx(after - before)
    same = {**outputs.arrays, "exchanged_image_embeddings": outputs.arrays["image_embeddings"]}
    unmoved = exchange(Outputs(same, None, outputs.ids, outputs.groups, outputs.columns), config=CONFIG)
    assert unmoved[0]["exchanged"] == pytest.approx(1)
    assert all(row["difference"] == 0 for row in unmoved[1:])


def test_no_case_has_all_views() -> None:
    with pytest.raises(DataError, match=r"none of 9 cases has all views \(left, right\)"):
        ViewsEvaluator(NAMES, config=CONFIG).quick(outputs_of(lacking=tuple(range(9))))


def test_more_than_two_views_have_no_sides() -> None:
    outputs = outputs_of(lacking=())
    arrays = {**outputs.arrays, **{f"top_{k}": outputs.arrays[f"left_{k}"] for k in
                                   ("image_embeddings", "text_embeddings", "scale")}}  # fmt: skip
    more = Outputs(arrays, None, outputs.ids, outputs.groups, outputs.columns)
    tables = ViewsEvaluator((*NAMES, "top"), config=CONFIG).evaluate(more, split="test").tables
    assert "symmetry" not in tables
    assert [row["view"] for row in tables["retrieval_views"]][::2] == ["left", "right", "top"]
