"""The evaluator of retrieval: its contract, figures that can be counted by hand, intervals, tables, and refusals."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consilium.core.errors import DataError
from consilium.core.evaluation import Evaluator, Outputs
from consilium.evaluation.config import EvaluationConfig
from consilium.evaluation.retrieval.evaluator import RetrievalEvaluator
from tests.contracts.evaluator import EvaluatorContract

CONFIG = EvaluationConfig(bootstrap_samples=200)


def outputs(
    count: int = 40, *, texts: int = 20, noise: float = 0.8, seed: int = 0, scale: float | None = 10
) -> Outputs:
    """Images near the embedding of their text; cases 2n and 2n + 1 are of one patient."""
    random = np.random.default_rng(seed)
    same = np.concatenate((np.arange(texts), random.integers(texts, size=count - texts)))
    text = random.normal(size=(texts, 8)).astype(np.float32)[same]
    image = text + noise * random.normal(size=(count, 8)).astype(np.float32)
    arrays = {"image_embeddings": image, "text_embeddings": text, "same_text": same}
    if scale is not None:
        arrays["scale"] = np.full(count, scale, dtype=np.float32)
    return Outputs(
        arrays=arrays,
        targets=None,  # type: ignore[arg-type]
        ids=[f"case {n:03d}" for n in range(count)],
        groups=[f"patient {n // 2:03d}" for n in range(count)],
        columns={"source": ["here" if n % 3 else "there" for n in range(count)]},
    )


class TestRetrieval(EvaluatorContract):
    def evaluator(self) -> Evaluator:
        return RetrievalEvaluator(config=CONFIG)

    def outputs(self) -> Outputs:
        return replace(outputs(), labels=[("x",), ("y",), ("x", "y"), ()] * 10)


def simple() -> Outputs:
    """Four images in a plane, two of one text; the third is nearer to another text than to its own."""
    angles = np.radians([0, 10, 50, 90])
    text = np.radians([0, 0, 90, 120])
    return Outputs(
        arrays={
            "image_embeddings": np.stack((np.cos(angles), np.sin(angles)), axis=1) * 3,
            "text_embeddings": np.stack((np.cos(text), np.sin(text)), axis=1),
            "same_text": np.array([7, 7, 2, 4]),
        },
        targets=None,  # type: ignore[arg-type]
        ids=["a", "b", "c", "d"],
        groups=["a", "b", "c", "d"],
        columns={"source": ["one"] * 4},
    )


def test_figures_counted_by_hand() -> None:
    found = RetrievalEvaluator(config=CONFIG).quick(simple())
    # Images: a, b find 0 degrees first; c (50) finds 90 first; d (90) finds 90, then 120.
    assert found["image_to_text_recall_at_1"] == 0.75
    assert found["image_to_text_median_rank"] == 1
    assert found["image_to_text_mean_average_precision"] == pytest.approx((1 + 1 + 1 + 1 / 2) / 4)
    # Texts: 0 (twice) finds a, b first; 90 finds d, then c; 120 finds d first.
    assert found["text_to_image_recall_at_1"] == 0.75
    assert found["text_to_image_mean_average_precision"] == pytest.approx((1 + 1 + 1 / 2 + 1) / 4)
    assert found["text_to_image_recall_at_5"] == 1
    assert found["mean_recall"] == pytest.approx((0.75 + 1 + 1) / 3)
    assert found["log_loss"] is None


def test_the_summary_has_chance_beside_each_figure() -> None:
    found = RetrievalEvaluator(config=CONFIG).evaluate(simple(), split="test")
    by_image, by_text = found.tables["retrieval"]
    assert (by_image["direction"], by_image["queries"], by_image["gallery"]) == ("image_to_text", 4, 3)
    assert (by_text["direction"], by_text["queries"], by_text["gallery"]) == ("text_to_image", 4, 4)
    assert by_image["recall_at_1"] == 0.75
    assert by_image["recall_at_1_chance"] == pytest.approx(1 / 3)
    assert by_text["recall_at_1_chance"] == pytest.approx((2 / 4 + 2 / 4 + 1 / 4 + 1 / 4) / 4)
    assert by_image["median_rank_chance"] == 2
    assert by_image["recall_at_5"] == by_image["recall_at_5_chance"] == 1
    assert by_image["recall_at_1_low"] <= 0.75 <= by_image["recall_at_1_high"]


def test_random_embeddings_are_near_chance_and_right_ones_are_perfect() -> None:
    random = outputs(400, texts=300)
    shuffled = replace(random, arrays={**random.arrays, "image_embeddings": random.arrays["image_embeddings"][::-1]})
    for row in RetrievalEvaluator(config=CONFIG).evaluate(shuffled, split="test").tables["retrieval"]:
        assert row["recall_at_10"] == pytest.approx(row["recall_at_10_chance"], abs=0.06)
        assert row["median_rank"] == pytest.approx(row["median_rank_chance"], rel=0.35)
    perfect = RetrievalEvaluator(config=CONFIG).evaluate(outputs(noise=0.0), split="test")
    assert perfect.metrics["mean_recall"] == 1
    assert perfect.intervals["mean_recall"].low == pytest.approx(0.84, abs=0.01)  # Wilson's, of 20 patients
    assert "worst" not in perfect.tables


def test_log_loss_falls_with_better_embeddings_and_is_that_of_equal_ones() -> None:
    evaluator = RetrievalEvaluator(config=CONFIG)
    good, bad = (evaluator.quick(outputs(noise=noise))["log_loss"] for noise in (0.2, 2.0))
    assert good is not None
    assert bad is not None
    assert good < bad
    case = simple()
    flat = replace(case, arrays={**case.arrays, "image_embeddings": np.ones((4, 2)), "text_embeddings": np.ones((4, 2)),
                                 "scale": np.full(4, 5.0)})  # fmt: skip
    by_image, by_text = np.log(3), (2 * np.log(2) + 2 * np.log(4)) / 4
    assert evaluator.quick(flat)["log_loss"] == pytest.approx((by_image + by_text) / 2)


def test_intervals_are_of_groups_as_cases_of_a_patient_are_alike() -> None:
    case = outputs(60, texts=60, noise=1.5)
    rows = np.repeat(np.arange(60), 3)  # each patient thrice
    repeated = Outputs(
        arrays={name: array[rows] for name, array in case.arrays.items()},
        targets=None,  # type: ignore[arg-type]
        ids=[f"{case.ids[row]} {n}" for n, row in enumerate(rows)],
        groups=[case.ids[row] for row in rows],
        columns={"source": ["one"] * len(rows)},
    )
    by_patient = RetrievalEvaluator(config=CONFIG).evaluate(repeated, split="test")
    by_case = RetrievalEvaluator(config=CONFIG).evaluate(replace(repeated, groups=repeated.ids), split="test")
    assert (by_patient.groups, by_case.groups) == (60, 180)
    for name in ("mean_recall", "text_to_image_mean_average_precision", "log_loss"):
        wide, narrow = (found.intervals[name] for found in (by_patient, by_case))
        assert None not in (wide.low, wide.high, narrow.low, narrow.high)
        assert wide.high - wide.low > 1.2 * (narrow.high - narrow.low)  # type: ignore[operator]


def test_figures_of_a_column_are_those_of_its_queries_in_the_whole_gallery() -> None:
    case = outputs()
    whole = RetrievalEvaluator(config=CONFIG).evaluate(case, split="test")
    rows = whole.tables["per_source"]
    assert [(row["source"], row["n"]) for row in rows] == [("here", 26), ("there", 14)]
    for name in ("image_to_text_recall_at_1", "text_to_image_mean_average_precision", "mean_recall"):
        mean = sum(row[name] * row["n"] for row in rows) / 40
        assert mean == pytest.approx(whole.metrics[name])
    config = EvaluationConfig(bootstrap_samples=0, columns=["site", "source"], max_column_values=1)
    noted = RetrievalEvaluator(config=config).evaluate(case, split="test")
    assert [row["note"].split(";")[0] for row in noted.tables["notes"]] == [
        "There is no column 'site'",
        "Column 'source' has 2 values and is left out",
    ]


def test_the_worst_queries_and_what_stands_before_their_answers() -> None:
    rows = RetrievalEvaluator(config=CONFIG).evaluate(simple(), split="test").tables["worst"]
    assert [(row["direction"], row["id"], row["rank"], row["first"]) for row in rows] == [
        ("image_to_text", "d", 2, "c"),
        ("text_to_image", "c", 2, "d"),
    ]
    assert rows[0]["similarity"] == pytest.approx(np.cos(np.radians(30)), abs=1e-6)
    assert rows[0]["first_similarity"] == pytest.approx(1, abs=1e-6)


def several() -> Outputs:
    """Three images in a plane; the first has two texts, of which the second is the third image's, too."""
    angles, none = np.radians([0, 60, 90]), 0.0
    text = np.radians([[20, 80], [65, none], [80, none]])
    plane = [np.stack((np.cos(own), np.sin(own)), axis=-1) for own in (angles, text)]
    same = np.array([[5, 8], [6, -1], [8, -1]])
    return Outputs(
        arrays={"image_embeddings": plane[0], "text_embeddings": plane[1], "same_text": same, "scale": np.full(3, 4.0)},
        targets=None,
        ids=["a", "b", "c"],
        groups=["a", "b", "c"],
        columns={"source": ["one"] * 3},
    )


def test_all_texts_of_a_case_are_right_answers_counted_by_hand() -> None:
    evaluator = RetrievalEvaluator(config=CONFIG)
    found = evaluator.evaluate(several(), split="test")
    metrics = found.metrics
    # Images: a finds 20 first, then 65 (wrong), then 80; b finds 65 first; c finds 80 first.
    assert metrics["image_to_text_recall_at_1"] == 1
    assert metrics["image_to_text_mean_average_precision"] == pytest.approx(((1 + 2 / 3) / 2 + 1 + 1) / 3)
    # Texts: 20 finds a first; 80 finds c first, and a, which is right as well, last; 65 finds b first.
    assert metrics["text_to_image_recall_at_1"] == 1
    eighty = (1 + 2 / 3) / 2
    assert metrics["text_to_image_mean_average_precision"] == pytest.approx(((1 + eighty) / 2 + 1 + eighty) / 3)
    by_image, by_text = found.tables["retrieval"]
    assert (by_image["queries"], by_image["gallery"]) == (3, 3)
    assert (by_text["queries"], by_text["gallery"]) == (4, 3)
    assert by_image["recall_at_1_chance"] == pytest.approx((2 + 1 + 1) / 3 / 3)
    assert by_text["recall_at_1_chance"] == pytest.approx(((1 + 2) / 2 + 1 + 2) / 3 / 3)
    shown = [(row["query"], row["id"], row["text"], row["right"]) for row in found.tables["nearest_texts"]]
    assert shown[:3] == [("a", "a", 1, True), ("a", "b", 1, False), ("a", "a", 2, True)]
    rows = [(row["query"], row["text"], row["id"], row["right"]) for row in found.tables["nearest_images"]]
    assert rows[-3:] == [("c", 1, "c", True), ("c", 1, "b", False), ("c", 1, "a", True)]


def test_the_texts_of_a_case_count_together_as_much_as_one() -> None:
    """The text of every second case is given thrice, in other words that are embedded alike: figures stay."""
    case = outputs(texts=40)
    text, same = case.arrays["text_embeddings"], case.arrays["same_text"]
    thrice = np.stack([same, np.where(same % 2, 40 + same, -1), np.where(same % 2, 80 + same, -1)], axis=1)
    arrays = {**case.arrays, "text_embeddings": np.repeat(text[:, None], 3, axis=1), "same_text": thrice}
    evaluator = RetrievalEvaluator(config=CONFIG)
    one, other = (evaluator.evaluate(found, split="test") for found in (case, replace(case, arrays=arrays)))
    for name in one.metrics:
        if name.startswith("text_to_image"):
            assert other.metrics[name] == pytest.approx(one.metrics[name])
            assert other.intervals[name].low == pytest.approx(one.intervals[name].low)
    for figure in ("recall_at_1_chance", "median_rank_chance", "mean_average_precision_chance"):
        assert other.tables["retrieval"][1][figure] == pytest.approx(one.tables["retrieval"][1][figure])


def test_a_text_that_a_case_has_twice_counts_once() -> None:
    case = several()
    twice = {
        "text_embeddings": np.concatenate([case.arrays["text_embeddings"], case.arrays["text_embeddings"]], axis=1),
        "same_text": np.concatenate([case.arrays["same_text"]] * 2, axis=1),
    }
    evaluator = RetrievalEvaluator(config=CONFIG)
    assert evaluator.quick(replace(case, arrays={**case.arrays, **twice})) == evaluator.quick(case)


def test_neighbours_of_a_few_queries_over_all_groups() -> None:
    tables = RetrievalEvaluator(config=CONFIG).evaluate(outputs(100), split="test").tables
    for name in ("nearest_texts", "nearest_images"):
        queries = list(dict.fromkeys(row["query"] for row in tables[name]))
        assert len(queries) == 12
        assert (queries[0], queries[-1]) == ("case 000", "case 098")
        assert [row["rank"] for row in tables[name]] == [1, 2, 3, 4, 5] * 12
        assert any(row["right"] for row in tables[name])
    few = RetrievalEvaluator(config=CONFIG).evaluate(simple(), split="test").tables["nearest_texts"]
    assert [row["id"] for row in few if row["query"] == "b"] == ["a", "c", "d"]  # a text is named by its first case


def test_cases_without_a_text_are_left_out_and_counted() -> None:
    case = outputs()
    same = case.arrays["same_text"].copy()
    same[[3, 5]] = -1
    found = RetrievalEvaluator(config=CONFIG).evaluate(
        replace(case, arrays={**case.arrays, "same_text": same}), split="test"
    )
    assert found.cases == 38
    assert found.tables["notes"] == [{"note": "2 of 40 cases have no text and are left out."}]
    json.dumps(asdict(replace(found, draws={})), allow_nan=False)


# -- Levels -------------------------------------------------------------------------------------------------------


@st.composite
def labelled(draw: st.DrawFn) -> Outputs:
    """Cases of up to three texts, some of them equal, with labels or without, on a grid where ties are usual."""
    count = draw(st.integers(2, 10))
    same_NK = np.array(
        draw(st.lists(st.lists(st.integers(-1, 6), min_size=3, max_size=3), min_size=count, max_size=count))
    )
    same_NK[:, 0] = np.where((same_NK < 0).all(axis=1), 0, same_NK[:, 0])
    grid = st.lists(st.integers(-2, 2), min_size=2, max_size=2)
    images, texts = (np.array(draw(st.lists(grid, min_size=n, max_size=n)), float) for n in (count, 7))
    labels = draw(st.lists(st.sampled_from([(), ("a",), ("b",), ("b", "a")]), min_size=count, max_size=count))
    arrays = {"image_embeddings": images, "text_embeddings": texts[same_NK], "same_text": same_NK}
    names = [f"case {n}" for n in range(count)]
    return Outputs(arrays, None, ids=names, groups=names, columns={}, labels=labels)


def asked(case: Outputs, level: str) -> dict[str, list[tuple[float, float, float]]]:
    """Of each direction, for every query: how much it counts, rank of the first right answer, average precision."""
    images, same_NK = case.arrays["image_embeddings"], case.arrays["same_text"]
    pairs = [(n, m) for n, own in enumerate(same_NK.tolist()) for m in dict.fromkeys(own) if m >= 0]
    text_of = {m: case.arrays["text_embeddings"][n, k] for (n, k), m in np.ndenumerate(same_NK)}
    if level == "label":
        pairs = [(n, m) for n, m in pairs if case.labels[n]]
    cases, texts = list(dict.fromkeys(n for n, _ in pairs)), list(dict.fromkeys(m for _, m in pairs))
    entries = [(None, m) for m in texts] if level == "text" else pairs

    def right(image: int, case_of_text: int | None, text: int) -> bool:
        if level == "label":
            return set(case.labels[image]) == set(case.labels[case_of_text])
        return (image, text) in pairs if level == "text" else image == case_of_text

    def cosine(n: int, m: int) -> float:
        lengths = np.linalg.norm(images[n]) * np.linalg.norm(text_of[m])
        return round(float(images[n] @ text_of[m] / lengths), 5) if lengths else 0.0

    def found(answers: list[tuple[float, bool]]) -> tuple[float, float]:
        order = sorted(answers, key=lambda answer: (-answer[0], answer[1]))
        places = [place for place, (_, is_right) in enumerate(order, start=1) if is_right]
        return places[0], sum(k / place for k, place in enumerate(places, start=1)) / len(places)

    share = {n: 1 / sum(other == n for other, _ in pairs) for n in cases}
    return {
        "image_to_text": [(1, *found([(cosine(n, m), right(n, c, m)) for c, m in entries])) for n in cases],
        "text_to_image": [
            (share[n], *found([(cosine(i, m), right(i, None if level == "text" else n, m)) for i in cases]))
            for n, m in pairs
        ],
    }


@settings(deadline=None)
@given(labelled())
def test_every_level_is_that_of_an_oracle_which_sorts_all_answers(case: Outputs) -> None:
    metrics = RetrievalEvaluator(config=CONFIG).quick(case)
    for level in ("text", "instance", "label"):
        prefix = "" if level == "text" else f"{level}_"
        for direction, queries in asked(case, level).items():
            if metrics[f"{prefix}{direction}_recall_at_1"] is None:
                wrong = [rank for _, rank, precision in queries if rank > 1 or precision < 1]
                assert not wrong
                continue
            weights, ranks, precisions = (np.array(column) for column in zip(*queries, strict=True))
            for k in (1, 5, 10):
                expected = np.average(ranks <= k, weights=weights)
                assert metrics[f"{prefix}{direction}_recall_at_{k}"] == pytest.approx(expected)
            expected = np.average(precisions, weights=weights)
            assert metrics[f"{prefix}{direction}_mean_average_precision"] == pytest.approx(expected)


def test_labels_against_torchmetrics() -> None:
    """Without ties and with one text a case, average precision and recall are those of the library."""
    metrics = pytest.importorskip("torchmetrics.functional.retrieval")
    torch = pytest.importorskip("torch")
    labels = [("x",) if n % 3 else ("y",) for n in range(40)]
    case = replace(outputs(texts=40), labels=labels)
    images, texts = (case.arrays[f"{side}_embeddings"] for side in ("image", "text"))
    cosine = images @ texts.T / np.outer(np.linalg.norm(images, axis=1), np.linalg.norm(texts, axis=1))
    similarity = torch.tensor(cosine + 1)  # the library drops right answers whose score is not positive
    right = torch.tensor([[one == other for other in labels] for one in labels])
    found = RetrievalEvaluator(config=CONFIG).quick(case)
    for direction, scores in (("image_to_text", similarity), ("text_to_image", similarity.T)):
        precisions = [float(metrics.retrieval_average_precision(*pair)) for pair in zip(scores, right, strict=True)]
        hits = [float(metrics.retrieval_hit_rate(*pair, top_k=5)) for pair in zip(scores, right, strict=True)]
        own = [float(metrics.retrieval_reciprocal_rank(scores[n], torch.arange(40) == n)) for n in range(40)]
        assert found[f"label_{direction}_mean_average_precision"] == pytest.approx(np.mean(precisions), abs=1e-6)
        assert found[f"label_{direction}_recall_at_5"] == pytest.approx(np.mean(hits))
        assert found[f"instance_{direction}_mean_average_precision"] == pytest.approx(np.mean(own), abs=1e-6)


def test_figures_of_labels_by_label_and_in_the_summary() -> None:
    labels: list[tuple[str, ...]] = [("x",), ("y",), ("x", "y"), ()] * 10
    case = replace(outputs(), labels=labels)
    found = RetrievalEvaluator(config=CONFIG).evaluate(case, split="test")
    rows = found.tables["per_label"]
    assert [(row["label"], row["n"], row["groups"]) for row in rows] == [("x", 20, 20), ("y", 20, 20)]
    assert rows[0]["label_image_to_text_recall_at_1_low"] <= rows[0]["label_image_to_text_recall_at_1"]
    assert rows[0]["label_image_to_text_recall_at_10_chance"] > rows[0]["label_image_to_text_recall_at_1_chance"] > 0
    assert rows[0]["text_to_image_median_rank"] >= 1
    by_image, by_text = found.tables["retrieval_label"]
    assert (by_image["queries"], by_image["gallery"]) == (by_text["queries"], by_text["gallery"]) == (30, 30)
    assert by_image["recall_at_1_chance"] == pytest.approx(1 / 3)
    assert by_image["recall_at_1_low"] <= by_image["recall_at_1"] <= by_image["recall_at_1_high"]
    assert found.tables["notes"] == [{"note": "10 of 40 cases have no label; the figures of labels leave them out."}]


def test_texts_of_several_cases_make_the_case_s_own_harder_to_find() -> None:
    found = RetrievalEvaluator(config=CONFIG).evaluate(simple(), split="test")
    assert found.metrics["instance_image_to_text_recall_at_1"] == 0.25  # a and b share a text, d finds another first
    assert found.tables["retrieval_instance"][0]["gallery"] == 4
    alike = outputs(texts=40)
    metrics = RetrievalEvaluator(config=CONFIG).quick(alike)
    for name in [name for name in metrics if name.startswith("instance_")]:
        assert metrics[name] == metrics[name.removeprefix("instance_")]


# -- Nothing to choose among --------------------------------------------------------------------------------------


def test_where_every_answer_is_right_nothing_is_defined_and_a_note_says_why() -> None:
    evaluator = RetrievalEvaluator(config=CONFIG)
    one = evaluator.evaluate(outputs(1, texts=1), split="test")
    assert set(one.metrics.values()) == {None}
    assert not one.intervals
    assert [row["note"] for row in one.tables["notes"]] == [
        "There is one case: nothing is there to choose among, and no figure of retrieval is defined."
    ]
    alike = evaluator.evaluate(outputs(20, texts=1), split="test")
    assert (
        alike.metrics["mean_recall"] is alike.metrics["image_to_text_recall_at_1"] is alike.metrics["log_loss"] is None
    )
    assert alike.metrics["instance_image_to_text_recall_at_1"] == 0  # among twenty equal texts
    assert [row["note"] for row in alike.tables["notes"]] == [
        "All 20 cases have the same text: every answer is right, and recall, ranks and mAP over different texts are "
        "not defined."
    ]
    case = replace(outputs(), labels=[("x",)] * 40)
    one_class = evaluator.evaluate(case, split="test")
    assert one_class.metrics["label_image_to_text_mean_average_precision"] is None
    assert "retrieval_label" not in one_class.tables
    assert one_class.metrics["mean_recall"] == evaluator.quick(outputs())["mean_recall"]
    assert [row["note"] for row in one_class.tables["notes"]] == [
        "All 40 cases with a label have the same: every answer is right, and the figures of labels are not defined."
    ]
    for found in (one, alike, one_class):
        json.dumps(asdict(replace(found, draws={})), allow_nan=False)


def test_outputs_that_cannot_be_judged() -> None:
    case, evaluator = outputs(), RetrievalEvaluator(config=CONFIG)

    def changed(name: str, array: np.ndarray) -> Outputs:
        return replace(case, arrays={**case.arrays, name: array})

    with pytest.raises(
        DataError, match=r"text_embeddings \(40, 7\) .* do not fit 40 cases; expected \[N, F\], \[N, K, F\]"
    ):
        evaluator.quick(changed("text_embeddings", np.ones((40, 7))))
    with pytest.raises(DataError, match="none of 40 cases has a text"):
        evaluator.quick(changed("same_text", np.full(40, -1)))
    broken = case.arrays["image_embeddings"].copy()
    broken[4, 2] = np.nan
    with pytest.raises(DataError, match=r"image embeddings of 1 of 40 .* \(the first: case 004\)"):
        evaluator.quick(changed("image_embeddings", broken))
