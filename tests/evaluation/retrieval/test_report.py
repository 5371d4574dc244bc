"""What retrieval adds to a report: charts, neighbours, a map, and the file of all results."""

from __future__ import annotations

import io
import json
import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from consilium.core.evaluation import Evaluation, Outputs
from consilium.evaluation.config import EvaluationConfig, ReportConfig
from consilium.evaluation.report.page import ReportContent, write_report
from consilium.evaluation.retrieval import charts
from consilium.evaluation.retrieval.evaluator import RetrievalEvaluator
from consilium.evaluation.retrieval.report import retrieval_parts
from tests.evaluation.retrieval.test_evaluator import outputs

CONFIG = EvaluationConfig(bootstrap_samples=50)
LABELS: list[tuple[str, ...]] = [("cat",), ("dog",), ("cat", "dog"), ()] * 10


def judged(case: Outputs) -> Evaluation:
    return RetrievalEvaluator(config=CONFIG).evaluate(case, split="test")


def written(folder: Path, found: Evaluation, *, images: bool = True) -> str:
    """The page of an evaluation, every case with a picture and a text."""
    picture = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(picture, "PNG")
    content = ReportContent(
        title="t",
        parts=retrieval_parts(),
        evaluations={"test": found},
        config=ReportConfig(images=images),
        thumbnail=lambda case: picture.getvalue(),
        text=lambda case, number: f"the secret of {case} <b>{number}</b>",
    )
    return write_report(folder, content).read_text(encoding="utf-8")


def test_the_page_shows_neighbours_both_ways_a_map_and_curves(tmp_path: Path) -> None:
    page = written(tmp_path, judged(replace(outputs(), labels=LABELS)))
    for section in ("retrieval", "space", "nearest-texts", "nearest-images"):
        assert f'<section id="{section}">' in page
    assert page.count("data:image/jpeg;base64") == 12 + 12 * 5  # each image asked about, and five answers to each text
    assert page.count("✓ right") == sum(row["right"] for name in ("texts", "images") for row in _near(name))
    assert page.count("✓ right") + page.count("✗ wrong") == 2 * 12 * 5
    assert "the secret of case 000 &lt;b&gt;1&lt;/b&gt;" in page
    for heading in ("all with this text", "own alone", "all with the query’s labels"):
        assert heading in page
    assert "Recall among the first k" in page
    assert "Similarity of pairs" in page


def _near(name: str) -> list[dict[str, bool]]:
    return judged(replace(outputs(), labels=LABELS)).tables[f"nearest_{name}"]


def test_without_images_no_picture_and_no_text_of_a_case_is_in_the_report(tmp_path: Path) -> None:
    page = written(tmp_path, judged(outputs()), images=False)
    assert "data:image" not in page
    files = [path.read_text(encoding="utf-8") for path in tmp_path.rglob("*") if path.is_file()]
    assert not any("secret" in text for text in files)


def test_the_results_have_both_ways_at_every_level_with_interval_and_chance(tmp_path: Path) -> None:
    found = judged(replace(outputs(), labels=LABELS))
    written(tmp_path, found)
    results = json.loads((tmp_path / "evaluation_results.json").read_text(encoding="utf-8"))["test"]
    assert (results["cases"], results["groups"], results["unread"]) == (40, 20, 0)
    for level, prefix in (("text", ""), ("instance", "instance_"), ("label", "label_")):
        for way in ("image_to_text", "text_to_image"):
            own = results[level][way]
            assert own["queries"] == (30 if level == "label" else 40)
            for figure in ("recall_at_1", "recall_at_5", "recall_at_10", "median_rank", "mean_average_precision"):
                assert own[figure]["value"] == found.metrics[f"{prefix}{way}_{figure}"]
                assert set(own[figure]) == {"value", "low", "high", "chance"}
    assert [row["value"] for row in results["per_label"]] == ["cat", "dog"]
    assert [row["value"] for row in results["per_source"]] == ["here", "there"]
    parts = [row["text"]["image_to_text"]["recall_at_5"]["value"] * row["cases"] for row in results["per_source"]]
    assert sum(parts) / 40 == pytest.approx(found.metrics["image_to_text_recall_at_5"])
    assert results["per_label"][0]["label"]["text_to_image"]["mean_average_precision"]["chance"] > 0
    assert results["notes"] == ["10 of 40 cases have no label; the figures of labels leave them out."]


def test_an_undefined_level_is_left_out_of_the_results_and_said(tmp_path: Path) -> None:
    page = written(tmp_path, judged(replace(outputs(), labels=[("cat",)] * 40)))
    results = json.loads((tmp_path / "evaluation_results.json").read_text(encoding="utf-8"))["test"]
    assert "label" not in results
    assert "text" in results
    assert "All 40 cases with a label have the same" in page
    alone = written(tmp_path / "alone", judged(outputs(1, texts=1)))
    assert "no figure of retrieval is defined" in alone
    assert "100.0\N{NO-BREAK SPACE}%" not in alone


# -- Charts -------------------------------------------------------------------------------------------------------


def test_charts_are_sound_and_name_everything() -> None:
    tables = judged(replace(outputs(), labels=LABELS, ids=[f"<{n}> & co" for n in range(40)])).tables
    drawn = [
        charts.recall_chart(tables["recall_curve"]),
        charts.similarity_chart(tables["similarity"]),
        charts.map_chart(tables["map"], tables["map_axes"]),
    ]
    for chart in drawn:
        ElementTree.fromstring(chart)
        assert "nan" not in chart
    circles = re.findall(r'<circle class="point (image|text) (\w+)"', drawn[2])
    assert len(circles) == 2 * 20 + 2 + 2  # the first case of each patient, both sides; sides and labels in the key
    assert "cat + dog" in drawn[2]
    assert "&lt;0&gt; &amp; co" in drawn[2]


def test_the_recall_curve_ends_at_one_and_passes_the_figures() -> None:
    found = judged(outputs())
    rows = {(row["direction"], row["k"]): row for row in found.tables["recall_curve"]}
    for way, gallery in (("image_to_text", 20), ("text_to_image", 40)):
        assert rows[way, gallery]["recall"] == 1
        assert rows[way, gallery]["chance"] == pytest.approx(1)
        for k in (1, 5, 10):
            assert rows[way, k]["recall"] == pytest.approx(found.metrics[f"{way}_recall_at_{k}"])


def test_similarities_are_shares_of_matched_and_unmatched_pairs() -> None:
    near, far = (judged(outputs(noise=noise)).tables["similarity"] for noise in (0.05, 20.0))
    for rows in (near, far):
        for side in ("matched", "unmatched"):
            assert sum(row[side] for row in rows) == pytest.approx(1)
    overlap = [sum(min(row["matched"], row["unmatched"]) for row in rows) for rows in (near, far)]
    assert overlap[0] < 0.05 < 0.5 < overlap[1]


def test_the_map_is_of_principal_components_and_knows_its_share() -> None:
    case = outputs(texts=40)
    tables = judged(case).tables
    sides = [case.arrays[f"{side}_embeddings"] for side in ("image", "text")]
    units = np.concatenate([own / np.linalg.norm(own, axis=1, keepdims=True) for own in sides])
    spread = np.linalg.svd(units - units.mean(axis=0), compute_uv=False) ** 2
    assert [row["variance"] for row in tables["map_axes"]] == pytest.approx(spread[:2] / spread.sum(), abs=1e-5)
    assert {row["label"] for row in tables["map"]} == {""}
    assert {row["source"] for row in tables["map"]} == {"here", "there"}
    flat = replace(
        case, arrays={**case.arrays, **{f"{side}_embeddings": np.ones((40, 8)) for side in ("image", "text")}}
    )
    assert "map" not in judged(flat).tables
