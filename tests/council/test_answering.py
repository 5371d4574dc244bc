"""A council answers as its bundles do: the same route, the same label, the same figures."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import consilium
from consilium.core.errors import BundleError, ConfigError
from consilium.council import Council
from consilium.data.batches.rows import Query
from consilium.data.store.store import Store
from consilium.predictor import Predictor
from tests.cli.conftest import Cli
from tests.council.conftest import Bundles, with_thresholds

Build = Callable[..., Path]
EXPERTS = {"fundus": "fundus", "skin": "skin", "xray.chest": "chest", "xray": "hand"}


def near(left: Any, right: Any) -> None:
    """Equal, and figures within 1e-5."""
    assert type(left) is type(right)
    if isinstance(left, dict):
        assert left.keys() == right.keys()
        for name in left:
            near(left[name], right[name])
    elif isinstance(left, list):
        assert len(left) == len(right)
        for own, other in zip(left, right, strict=True):
            near(own, other)
    else:
        assert left == (pytest.approx(right, abs=1e-5) if isinstance(left, float) else right)


def without(record: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name not in (*names, "image", "text", "metadata")}


def loaded(folder: Path, **options: Any) -> Council:
    council = consilium.load(folder, device="cpu", **options)
    assert isinstance(council, Council)
    return council


@pytest.mark.parametrize("resident", [None, 1])
def test_answers_equal_those_of_each_bundle(
    bundles: Bundles, images: list[str], build: Build, resident: int | None
) -> None:
    found = loaded(build(experts=EXPERTS), batch_size=3, resident=resident).predict(images)
    assert [record["image"] for record in found] == images
    routes = Predictor.load(bundles["router"], device="cpu").predict(images)
    alone = {node: Predictor.load(bundles[name], device="cpu") for node, name in EXPERTS.items()}
    for record, route in zip(found, routes, strict=True):
        near(record["route"], without(route))
        seats = [node for node in EXPERTS if f"{route['label']}.".startswith(f"{node}.")]
        assert record["expert"] == max(seats, key=len, default="unknown")
        if seats:
            (own,) = alone[record["expert"]].predict([record["image"]])
            near(record["answer"], without(own))
    assert {record["expert"] for record in found} >= {"fundus", "skin", "xray.chest", "xray"}, "the router has learned"


def test_a_generator_and_one_image_are_answered_alike(build: Build, images: list[str]) -> None:
    council = loaded(build(experts=EXPERTS), batch_size=2)
    expected = council.predict(images)
    near(list(council.stream(image for image in images)), expected)
    near(council.predict(images[0]), expected[:1])
    assert council.predict([]) == []


def test_the_default_answers_what_nobody_sits_at_or_the_router_is_unsure_of(
    bundles: Bundles, images: list[str], build: Build, tmp_path: Path
) -> None:
    plain = loaded(build(experts={"skin": "skin"})).predict(images)
    free = [record for record in plain if record["expert"] == "unknown"]
    assert len(free) >= 8
    assert all(record["answer"] is None and "error" not in record for record in free)
    found = loaded(build(experts={"skin": "skin"}, default="general", out="other")).predict(images)
    assert [record["expert"] for record in found] == [
        "default" if record["expert"] == "unknown" else "skin" for record in plain
    ]
    for record in found:
        if record["expert"] == "default":
            near(
                record["answer"], without(Predictor.load(bundles["general"], device="cpu").predict(record["image"])[0])
            )
    doubtful = with_thresholds(bundles["sure"], tmp_path / "never", [None, None])
    unsure = consilium.build_council(
        router=doubtful,
        experts={"skin": bundles["skin"]},
        default=bundles["general"],
        out=tmp_path / "unsure",
        quiet=True,
    )
    assert {record["expert"] for record in loaded(unsure).predict(images)} == {"default"}


def test_a_generalist_is_mixed_in_where_labels_are_in_one_tree_and_listed_elsewhere(
    bundles: Bundles, images: list[str], build: Build
) -> None:
    experts = {"xray.chest": "chest", "fundus": "fundus"}
    found = loaded(build(experts=experts, generalist="general")).predict(images)
    general = Predictor.load(bundles["general"], device="cpu").predict(images)
    seen = set()
    for record, other in zip(found, general, strict=True):
        seen.add(record["expert"])
        if record["expert"] == "generalist":  # nobody else was asked
            near(record["answer"], without(other))
            assert "asked" not in record
            continue
        expert, generalist = record["asked"]
        near(generalist["answer"], without(other))
        share = record["route"]["probabilities"][record["expert"]]
        assert (expert["weight"], generalist["weight"]) == pytest.approx((share, 1 - share))
        assert record["combined"] is (record["expert"] == "xray.chest")
        if not record["combined"]:
            assert record["answer"] == expert["answer"]
            continue
        for label, value in record["answer"]["probabilities"].items():
            own = expert["answer"]["probabilities"].get(label, 0.0)
            assert value == pytest.approx(share * own + (1 - share) * other["probabilities"][label], abs=2e-6)
        assert record["answer"]["label"] == max(record["answer"]["probabilities"].items(), key=lambda pair: pair[1])[0]
    assert seen == {"xray.chest", "fundus", "generalist"}


def test_of_several_experts_only_those_that_are_likeliest_run(
    bundles: Bundles, images: list[str], build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    experts = {"xray.chest": "chest", "xray.hand": "hand", "fundus": "fundus", "skin": "skin"}
    council = loaded(build(experts=experts, top_k=2))
    asked: list[tuple[str, str]] = []
    ask = Council.ask

    def noted(self: Council, seat: Any, items: Any, rows: Any) -> Any:
        asked.extend((seat.name, items[row]) for row in rows)
        return ask(self, seat, items, rows)

    monkeypatch.setattr(Council, "ask", noted)
    found = council.predict(images)
    mixed = 0
    for record in found:
        if record["expert"] == "unknown":
            continue
        if "asked" not in record:  # the router is as sure as six digits say
            assert max(record["route"]["probabilities"][name] for name in experts if name != record["expert"]) == 0
            continue
        names = [one["expert"] for one in record["asked"]]
        assert sorted(names) == sorted(name for name, image in asked if image == record["image"])
        probabilities = record["route"]["probabilities"]
        weights = [probabilities[name] for name in names]
        assert [one["weight"] for one in record["asked"]] == pytest.approx(weights)
        assert set(names) == set(sorted(experts, key=lambda name: -probabilities[name])[:2])
        if set(names) == {"xray.chest", "xray.hand"}:  # all labels are below nodes of the router
            mixed += 1
            own = {one["expert"]: one["answer"]["probabilities"] for one in record["asked"]}
            for label, value in record["answer"]["probabilities"].items():
                if label.count(".") == 2:
                    seat = label.rpartition(".")[0]
                    expected = probabilities[seat] * own[seat][label] / sum(weights)
                    assert value == pytest.approx(expected, abs=2e-6)
            total = sum(value for label, value in record["answer"]["probabilities"].items() if label.count(".") == 2)
            assert total == pytest.approx(1, abs=1e-5)
        else:
            assert not record["combined"]
    assert mixed > 0


def test_an_index_shows_the_nearest_cases(bundles: Bundles, images: list[str], build: Build, tmp_path: Path) -> None:
    model = Predictor.load(bundles["fundus"], device="cpu")
    (store,) = (bundles["fundus"].parents[2] / "stores").glob("pairs-*")
    index = consilium.Index.build(model, [store], out=tmp_path / "index", quiet=True)
    council = build(experts={"fundus": "fundus"}, indexes={"fundus": tmp_path / "index"})
    shutil.rmtree(tmp_path / "index")
    found = [record for record in loaded(council, resident=1).predict(images) if record["expert"] == "fundus"]
    assert found
    for record in found:
        expected = {hit.id: hit.tree() for hit in index.search(image=record["image"], k=len(index))}
        hits = record["answer"]["nearest"]
        assert [hit["rank"] for hit in hits] == [1, 2, 3, 4, 5]
        for hit, best in zip(hits, expected.values(), strict=False):
            near(hit, {**expected[hit["id"]], "rank": hit["rank"]})
            near(hit["similarity"], best["similarity"])  # of two that are as near either may come first
        assert hits[0]["texts"]


def test_what_an_expert_lacks_it_says_and_the_others_go_on(bundles: Bundles, images: list[str], build: Build) -> None:
    """The eyes want views by name, the fusion reads the text and the metadata, the router and the chest neither."""
    experts = {"fundus": "eyes", "skin": "skin", "xray.chest": "chest"}
    council = loaded(build(experts=experts, generalist="skin"))
    assert council.meta_columns == ("age", "site")
    assert council.reads_text
    named = {record["route"]["label"]: record["image"] for record in council.predict(images)}
    eye, skin, chest = (named[name] for name in ("fundus", "skin", "xray.chest"))
    bare, views, text, wrong, words = council.predict(
        [
            eye,
            {"left": eye, "right": eye},
            Query(skin, "it is round", {"age": 70}),
            Query(chest, metadata={"weight": 70}),
            Query(text="it is round"),
        ]
    )
    assert bare["expert"] == "generalist"
    assert "1 image without a name" in bare["asked"][0]["answer"]["error"]
    assert "error" not in bare
    assert views["expert"] == "fundus"
    own = Predictor.load(bundles["eyes"], device="cpu").predict([{"left": eye, "right": eye}])
    near(views["asked"][0]["answer"], without(own[0]))
    assert text["expert"] == "skin"
    assert text["asked"][0]["answer"]["modalities"] == ["image", "text", "metadata"]
    assert text["combined"]
    assert text["text"] == "it is round"
    assert "no metadata column called weight; the columns are age, site" in wrong["error"]
    assert words["expert"] == "generalist"
    assert "error" in words["route"]
    assert words["answer"]["modalities"] == ["text"]
    alone = loaded(build(experts={"fundus": "eyes"}, out="alone"))
    (failed,) = alone.predict([eye])
    assert failed["error"].startswith("expert fundus: 1 image without a name")
    (unread,) = alone.predict([Path("none.png")])
    assert unread.keys() == {"image", "error"}


def test_a_router_that_reads_text_routes_by_both(bundles: Bundles, build: Build) -> None:
    """The shape is what the text says, the colour what the image does."""
    router = Predictor.load(bundles["skin"], device="cpu")
    nodes = list(router.task.labels.names)
    council = loaded(build(router="skin", experts=dict.fromkeys(nodes, "chest")))
    image = str(next((bundles["skin"].parents[2] / "pairs").glob("*.png")))
    queries = [Query(image, "it is round"), Query(image, "it is flat"), Query(image, metadata={"age": 20})]
    for record, own in zip(council.predict(queries), router.predict(queries), strict=True):
        near(record["route"], without(own))
    assert len({json.dumps(record["route"]["probabilities"]) for record in council.predict(queries)}) == 3


def test_a_council_is_moved_and_packed(build: Build, images: list[str], tmp_path: Path) -> None:
    folder = build(experts=EXPERTS)
    expected = loaded(folder).predict(images)
    archive = shutil.make_archive(str(tmp_path / "packed"), "zip", folder)
    inside = shutil.make_archive(str(tmp_path / "named"), "zip", tmp_path, "council")
    folder.rename(tmp_path / "moved")
    for place in (tmp_path / "moved", Path(archive), Path(inside)):
        near(loaded(place).predict(images), expected)


def test_the_command_predicts_files_and_writes_tables(
    cli: Cli, build: Build, bundles: Bundles, images: list[str], tmp_path: Path
) -> None:
    folder = build(experts={"skin": "skin", "fundus": "eyes"})
    shown = cli(
        "predict",
        folder,
        images[1],
        "--text",
        "it is round",
        "--meta",
        "age=70",
        "--meta",
        "site=hand",
        "--resident",
        1,
    )
    assert shown.code == 0, shown.err
    assert shown.records[0]["expert"] == "skin"
    assert shown.records[0]["answer"]["modalities"] == ["image", "text", "metadata"]
    elsewhere = cli("predict", folder, images[1], "--meta", "site=moon", "--out", tmp_path / "a.jsonl")
    assert "another value': site 'moon' (1 case)" in elsewhere.out
    written = cli("predict", folder, *images[:4], "--out", tmp_path / "a.csv", "--device", "cpu")
    assert written.code == 1
    assert "1 of 4 cases have no answer" in written.err
    head, *rows = (tmp_path / "a.csv").read_text(encoding="utf-8").splitlines()
    assert head == "image,route,route_probability,error,expert,label,probability"
    assert [row.split(",")[1] for row in rows][:2] == ["fundus", "skin"]
    assert "without a name" in rows[0]
    (store,) = (bundles["skin"].parents[2] / "stores").glob("pairs-*")
    whole = cli("predict", folder, store, "--out", tmp_path / "store.jsonl", "--batch-size", 8, "--device", "cpu")
    lines = [json.loads(line) for line in (tmp_path / "store.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["image"] for line in lines] == Store.open(store).table.ids
    texts = [line for line in lines if line.get("expert") == "skin" and "text" in line["answer"].get("modalities", [])]
    assert len(texts) > 5
    assert whole.code == 1, "some have no image, which the router needs"
    refused = cli("predict", folder, images[0], "--out", tmp_path / "a.npz")
    assert refused.code == 2
    assert "it writes .jsonl, .csv." in refused.err
    vectors = cli("predict", folder, images[0], "--vectors", "notes.npz")
    assert (vectors.code, "a council reads texts themselves" in vectors.err) == (2, True)
    assert "no council" in cli("predict", bundles["skin"], images[0], "--resident", 2).err
    assert "reads no text" in cli("predict", build(experts={"skin": "chest"}, out="b"), images[0], "--text", "a").err


def test_other_commands_say_that_a_council_is_none_of_theirs(cli: Cli, build: Build, tmp_path: Path) -> None:
    folder = build(experts=EXPERTS)
    for words in (
        ("forgetting", folder, "--data", "a.yaml"),
        ("export", folder, "--to", "timm", "--out", tmp_path / "o"),
    ):
        answer = cli(*words)
        assert answer.code == 2
        assert "is a council of 5 bundles, but one trained bundle is expected here" in answer.err
    with pytest.raises(BundleError, match="is one bundle and no council"):
        Council.load(folder / "members/router")
    with pytest.raises(ConfigError, match="resident is 0; expected 1 or more"):
        Council.load(folder, resident=0)


def test_a_member_that_changed_is_refused(build: Build, images: list[str]) -> None:
    folder = build(experts=EXPERTS)
    weights = folder / "members/skin/model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-4] + b"\0\1\2\3")
    with pytest.raises(BundleError, match=r"members/skin/model\.safetensors is not the file that bundle\.json names"):
        loaded(folder).predict(images)
    weights.write_bytes(whole)
    manifest = folder / "members/skin/bundle.json"
    manifest.write_text(manifest.read_text(encoding="utf-8").replace('"seed": 0', '"seed": 1'), encoding="utf-8")
    with pytest.raises(BundleError, match=r"members/skin/bundle\.json is not the file .* \(its checksum differs\)"):
        consilium.load(folder)
    (folder / "members/xray/model.safetensors").unlink()
    manifest.write_text(manifest.read_text(encoding="utf-8").replace('"seed": 1', '"seed": 0'), encoding="utf-8")
    with pytest.raises(BundleError, match=r"members/xray/model\.safetensors is missing, without which"):
        consilium.load(folder)
    shutil.rmtree(folder / "members/skin")
    with pytest.raises(BundleError, match="is missing, without which the bundle is nothing"):
        consilium.load(folder)
