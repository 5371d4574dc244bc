"""A council is judged by its route and its answer, beside the same with the true route."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import consilium
from consilium.core.errors import ConfigError, DataError
from consilium.core.evaluation import Evaluation
from consilium.data.config import DataConfig
from consilium.data.store.prepare import prepare
from tests.cli.conftest import Cli
from tests.council.conftest import CHEST, Bundles
from tests.session.tables import write_table
from tests.tiny import Recorder

Build = Callable[..., Path]
EXPERTS = {"fundus": "fundus", "xray.chest": "chest"}


def route_of(image: str) -> str:
    """The true route of an image of the router's table, which its name tells."""
    return Path(image).name.split("-")[1]


@pytest.fixture
def judge(tmp_path: Path) -> Callable[..., Evaluation]:
    """``judge(council, rows)``: rows of a table with the columns image, label, answer."""

    def run(council: Path, rows: list[dict[str, str]], *, columns: str = '{"answer": "answer"}', **source: Any) -> Any:
        folder = tmp_path / f"judged-{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        write_table(folder, rows)
        own = {"kind": "csv", "name": "cases", "path": str(folder / "table.csv"), "columns": json.loads(columns)}
        tree = {
            "data": {"sources": [{**own, **source}], "store": {"root": str(folder / "stores")}},
            "evaluation": {"bootstrap_samples": 20},
            "report": {"images": False},
        }
        (folder / "data.yaml").write_text(json.dumps(tree), encoding="utf-8")
        return consilium.evaluate(
            council, data=folder / "data.yaml", split="all", out=folder / "out", device="cpu", reporter=Recorder()
        )

    return run


def cases_of(evaluation: Evaluation) -> list[dict[str, Any]]:
    return evaluation.tables["cases"]


def truths(council: Path, images: list[str]) -> list[dict[str, str]]:
    """Rows whose answer is that of the council for every other chest image, and the other class for the rest."""
    rows = []
    for number, (image, record) in enumerate(
        zip(images, consilium.load(council, device="cpu").predict(images), strict=True)
    ):
        said = (record["answer"] or {}).get("label")
        other = CHEST[0] if said == CHEST[1] else CHEST[1]
        answer = (said if number % 8 < 4 else other) if route_of(image) == "xray.chest" and said in CHEST else ""
        rows.append({"image": image, "label": route_of(image), "answer": answer or ""})
    return rows


def test_figures_equal_those_of_the_answers_themselves(
    build: Build, images: list[str], judge: Callable[..., Evaluation]
) -> None:
    council = build(experts=EXPERTS)
    rows = truths(council, images)
    found = judge(council, rows)
    records = consilium.load(council, device="cpu").predict(images)
    right = judged = routed = 0
    for row, record in zip(rows, records, strict=True):
        expected = next((node for node in EXPERTS if row["label"] == node), None)
        to_it = record["expert"] == (expected or "unknown")
        routed += to_it
        if expected is None or row["answer"]:
            judged += 1
            right += to_it and (expected is None or record["answer"]["label"] == row["answer"])
    assert judged > 8
    assert 0 < right < judged
    assert found.metrics["end_to_end"] == pytest.approx(right / judged)
    assert found.metrics["route_accuracy"] == pytest.approx(routed / len(rows))
    experts = {row["expert"]: row for row in found.tables["per_expert"]}
    assert experts["fundus"]["judged"] == 0, "its answers are embeddings"
    assert {row["stage"] for row in found.tables["stages"]} == {"router", "fundus", "xray.chest"}
    assert found.tables["stages"][0]["cases"] == len(images)


def test_with_the_true_route_every_expert_is_asked_about_its_own(
    bundles: Bundles, build: Build, images: list[str], judge: Callable[..., Evaluation]
) -> None:
    """Skin images whose truth says chest: the router sends them elsewhere, and the oracle asks the chest expert."""
    council = build(experts=EXPERTS)
    skin = [image for image in images if route_of(image) == "skin"]
    alone = consilium.load(bundles["chest"], device="cpu").predict(skin)
    rows = [
        {"image": image, "label": "xray.chest", "answer": record["label"]}
        for image, record in zip(skin, alone, strict=True)
    ]
    rows.append({"image": images[0], "label": route_of(images[0]), "answer": ""})  # one that the router may know
    found = judge(council, rows)
    assert found.metrics["end_to_end"] == 0
    assert found.metrics["oracle_end_to_end"] == 1
    assert found.metrics["router_cost"] == 1
    assert {row["outcome"] for row in cases_of(found)[: len(skin)]} <= {
        "not sent to its expert", "sent to a wrong expert",
    }  # fmt: skip


def test_a_source_may_have_one_route_and_its_labels_are_the_answers(
    build: Build, images: list[str], judge: Callable[..., Evaluation]
) -> None:
    council = build(experts=EXPERTS)
    rows = [row for row in truths(council, images) if row["answer"]]
    by_column = judge(council, rows)
    by_route = judge(
        council, [{"image": row["image"], "label": row["answer"]} for row in rows], columns="{}", route="xray.chest"
    )
    assert by_route.metrics == by_column.metrics
    assert [row["truth"] for row in cases_of(by_route)] == [row["answer"] for row in rows]


def test_where_no_expert_sits_a_default_may_answer_and_is_judged_where_its_truth_is_known(
    build: Build, images: list[str], judge: Callable[..., Evaluation]
) -> None:
    council = build(experts=EXPERTS, default="general")
    hands = [image for image in images if route_of(image) == "xray.hand"]
    said = [record["answer"]["label"] for record in consilium.load(council, device="cpu").predict(hands)]
    rows = [{"image": image, "label": "xray.hand", "answer": ""} for image in hands]
    rows[0]["answer"], rows[1]["answer"] = said[0], next(name for name in [*CHEST, "other"] if name != said[1])
    found = cases_of(judge(council, rows))
    assert {row["asked"] for row in found} == {"default"}
    assert [row["outcome"] for row in found[:3]] == [
        "rightly sent to no expert", "wrong answer", "rightly sent to no expert",
    ]  # fmt: skip


def test_routes_that_the_router_does_not_know_and_routes_that_end_above_an_expert(
    build: Build, images: list[str], judge: Callable[..., Evaluation]
) -> None:
    council = build(experts=EXPERTS)
    rows = truths(council, images)[:6]
    rows[0]["label"], rows[1]["label"], rows[2]["label"] = "histology", "xray", ""
    found = judge(council, rows)
    notes = " ".join(row["note"] for row in found.tables["notes"])
    assert "1 case with a route that the router does not know (histology)" in notes
    assert "1 case left out: the route (xray) ends above the expert" in notes
    assert "1 case left out: no route, or several" in notes
    assert found.cases == 4
    (strange,) = [row for row in cases_of(found) if row["true_route"] == "histology"]
    assert strange["expected"] is None


def test_several_labels_are_right_as_a_whole(build: Build, images: list[str], judge: Callable[..., Evaluation]) -> None:
    council = build(experts={"xray.chest": "findings"})
    chest = [image for image in images if route_of(image) == "xray.chest"]
    said = [record["answer"]["labels"] for record in consilium.load(council, device="cpu").predict(chest)]
    rows = [
        {"image": image, "label": "xray.chest", "answer": ";".join(own)} for image, own in zip(chest, said, strict=True)
    ]
    rows[-1]["answer"] = "mass" if said[-1] != ["mass"] else "effusion"
    rows = [row for row in rows if row["answer"]]
    found = [row for row in cases_of(judge(council, rows)) if row["outcome"] != "not sent to its expert"]
    assert [row["outcome"] for row in found] == ["right answer"] * (len(found) - 1) + ["wrong answer"]


def test_an_expert_with_an_index_answers_with_the_label_of_the_nearest_case(
    bundles: Bundles, build: Build, images: list[str], judge: Callable[..., Evaluation], tmp_path: Path
) -> None:
    rows = [{"image": image, "label": f"kind-{number % 2}"} for number, image in enumerate(images)]
    write_table(tmp_path / "library", rows)
    sources = [{"kind": "csv", "name": "library", "path": str(tmp_path / "library" / "table.csv")}]
    config = DataConfig.model_validate({"sources": sources, "store": {"root": str(tmp_path / "stores")}})
    store = prepare(config, reporter=Recorder()).store.path
    model = consilium.load(bundles["fundus"], device="cpu")
    consilium.Index.build(model, [store], out=tmp_path / "index", quiet=True)
    council = build(experts={"fundus": "fundus"}, indexes={"fundus": tmp_path / "index"})
    fundus = [image for image in images if route_of(image) == "fundus"]
    nearest = [
        record["answer"]["nearest"][0]["labels"][0] for record in consilium.load(council, device="cpu").predict(fundus)
    ]
    found = judge(
        council,
        [{"image": image, "label": "fundus", "answer": own} for image, own in zip(fundus, nearest, strict=True)],
    )
    assert found.metrics["oracle_end_to_end"] == 1


def test_an_unreadable_image_counts_in_no_figure(
    build: Build, images: list[str], judge: Callable[..., Evaluation], tmp_path: Path
) -> None:
    copies = []
    for image in images[:4]:
        copies.append(str(tmp_path / Path(image).name))
        Path(copies[-1]).write_bytes(Path(image).read_bytes())
    council = build(experts=EXPERTS)
    rows = [{"image": image, "label": route_of(image), "answer": ""} for image in copies]
    judge(council, rows)
    Path(copies[0]).write_bytes(b"not an image")
    with pytest.raises(DataError, match="image"):
        judge(council, rows)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": "lung"}, "no case has a route that the router knows: the labels are lung"),
        ({"label": "xray.chest", "answer": "flu"}, "the expert of 'xray.chest' knows none of the answers of its cases"),
    ],
)
def test_data_that_fit_nothing_are_refused(
    build: Build, images: list[str], judge: Callable[..., Evaluation], change: dict[str, str], message: str
) -> None:
    rows = [{"image": image, "label": "xray.chest", "answer": "", **change} for image in images[:4]]
    with pytest.raises(DataError, match=message):
        judge(build(experts=EXPERTS), rows)


def test_an_answer_that_an_expert_never_learned_is_wrong_and_noted(
    build: Build, images: list[str], judge: Callable[..., Evaluation]
) -> None:
    council = build(experts=EXPERTS)
    rows = [row for row in truths(council, images) if row["answer"]]
    rows[0]["answer"] = "flu"
    found = judge(council, rows)
    assert cases_of(found)[0]["oracle_right"] is False
    assert any(
        "1 answer that the expert of 'xray.chest' has never learned (flu)" in row["note"]
        for row in found.tables["notes"]
    )


def test_columns_that_both_name_one_column_are_refused(
    build: Build, images: list[str], judge: Callable[..., Evaluation]
) -> None:
    rows = [{"image": image, "label": route_of(image)} for image in images[:4]]
    council = build(experts=EXPERTS)
    with pytest.raises(ConfigError, match=r"columns.answer and columns.label both name 'label'.*route"):
        judge(council, rows, columns='{"answer": "label"}')
    with pytest.raises(ConfigError, match=r"columns\.answer is 'truth'"):
        judge(council, rows, columns='{"answer": "truth"}')


def test_the_command(cli: Cli, build: Build, bundles: Bundles, tmp_path: Path) -> None:
    council = build(experts=EXPERTS)
    table = bundles["sure"].parents[2] / "table.csv"
    for given, message in (
        ((), "which has no data of its own"),
        (("--data", table, "--split", "tests"), "split is 'tests'; expected train, val, test or all."),
        (("--data", table), "cases that taught the council's router its weights"),
        (("--data", table, "--embeddings", tmp_path / "e.npz"), "spaces of their own"),
    ):
        refused = cli("evaluate", council, *given)
        assert (refused.code, message in " ".join(refused.err.split())) == (2, True), refused.err
    done = cli("evaluate", council, "--data", table, "--split", "test", "--out", tmp_path / "out")
    assert done.code == 0
    assert "oracle_end_to_end" in done.out
    assert "routes without an expert" in done.out
    assert (tmp_path / "out" / "report.html").is_file()
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["test"]["metrics"]["end_to_end"] is not None
