"""The page that says why a council answers a case as it does."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import consilium
from consilium.core.errors import BundleError, ConfigError, ImageError
from consilium.council import Council
from consilium.data.batches.rows import Item, Query
from consilium.data.images.covered import LOOKS, PLACES, Covered
from consilium.ensembling import ensemble
from consilium.explaining import explain
from consilium.predictor import Predictor
from tests.cli.conftest import Cli
from tests.council.conftest import CHEST, Bundles, changed, classifier, with_thresholds
from tests.tiny import Recorder

Build = Callable[..., Path]


def explained(council: Path | Council, item: Item, out: Path) -> tuple[str, dict[str, Any]]:
    """The text of the page (without tags and pictures) and the figures."""
    reporter = Recorder()
    page = explain(council, item, out=out, device="cpu", reporter=reporter)
    assert page == out / "explanation.html"
    assert f"explanation: {page}" in reporter.lines
    html = page.read_text(encoding="utf-8")
    assert not re.search(r'(src|href)="(?!data:)', html), "the page needs no other file"
    body = re.sub(r"<wbr>", "", html.partition("<body>")[2])
    text = unescape(re.sub(r"<[^>]*>", " ", body))
    text = " ".join(text.split())  # also at spaces that do not break
    return text, json.loads((out / "explanation.json").read_text(encoding="utf-8"))


def loaded(folder: Path) -> Council:
    council = consilium.load(folder, device="cpu")
    assert isinstance(council, Council)
    return council


def answered(council: Council, images: list[str], expert: str) -> tuple[str, dict[str, Any]]:
    """The first image that this expert answers, and the record of the council."""
    return next((record["image"], record) for record in council.predict(images) if record["expert"] == expert)


def test_the_page_tells_the_route_the_second_and_what_the_answer_depends_on(
    bundles: Bundles, images: list[str], build: Build, tmp_path: Path
) -> None:
    council = loaded(build(experts={"xray.chest": "chest", "skin": "skin"}))
    image, record = answered(council, images, "xray.chest")
    text, found = explained(council, image, tmp_path / "out")
    first, last = found["router"]["levels"]
    probabilities = record["route"]["probabilities"]
    assert (first["label"], last["label"]) == ("xray", "xray.chest")
    assert last["second"] == "xray.hand"
    assert last["second_probability"] == probabilities["xray.hand"]
    assert first["second_probability"] == max(probabilities["fundus"], probabilities["skin"])
    assert first["threshold"] == last["threshold"] == 0.6
    assert "is at least the threshold of 60.0 %" in text
    assert "The bundle chest was asked: it sits at xray.chest, which is what the router says." in text
    answer = record["answer"]
    assert f"The expert at xray.chest says {answer['label']}, with a probability of" in text
    assert found["experts"][0]["answer"] == answer
    assert text.count("Watched is the probability of") == 2
    assert "For research; not a medical device." in text
    html = (tmp_path / "out" / "explanation.html").read_text(encoding="utf-8")
    assert html.count('src="data:image/jpeg;base64,') == 5  # the image, and two maps with what the models see


def test_a_map_is_what_the_member_itself_says_of_covered_images_with_the_same_text(
    bundles: Bundles, images: list[str], build: Build, tmp_path: Path
) -> None:
    council = loaded(build(experts={"skin": "skin"}))
    image, _ = answered(council, images, "skin")
    reporter = Recorder()
    explain(council, Query(image, "it is round"), out=tmp_path / "out", reporter=reporter)
    assert {(name, total) for name, _, total in reporter.bars} == {
        ("cover places (router)", LOOKS),
        ("cover places (skin)", LOOKS),
    }
    found = json.loads((tmp_path / "out/explanation.json").read_text(encoding="utf-8"))["experts"][0]
    model, label = Predictor.load(bundles["skin"], device="cpu"), found["answer"]["label"]
    assert found["map"]["label"] == label
    covered = Covered.read(image, image=model.image)
    records = model.predict([Query(covered.file(look), "it is round") for look in range(LOOKS)])
    whole, *others = (record["probabilities"][label] for record in records)
    assert whole == pytest.approx(found["answer"]["probability"], abs=1e-5)
    expected_PP = (whole - np.array(others)).reshape(PLACES, PLACES)
    np.testing.assert_allclose(found["map"]["drops"], expected_PP, atol=2e-6)
    assert np.abs(expected_PP).max() > 1e-4, "the map is not flat"


def test_where_the_router_is_not_sure_the_page_says_so_with_figures(
    bundles: Bundles, images: list[str], build: Build, tmp_path: Path
) -> None:
    def flat(tree: dict[str, Any]) -> None:
        tree["knowledge"]["calibration"] |= {"thresholds": [0.95, 0.95], "temperatures": {"root": 100.0}}

    strict = changed(bundles["sure"], tmp_path / "strict", flat)
    doubtful = with_thresholds(bundles["sure"], tmp_path / "doubtful", [0.0, None])
    for name, router in (("strict", strict), ("doubtful", doubtful)):
        consilium.build_council(
            router=router,
            experts={"xray.chest": bundles["chest"]},
            default=bundles["general"],
            out=tmp_path / f"{name}-council",
            quiet=True,
        )
    image = next(path for path in images if "xray.chest" in path)
    text, found = explained(tmp_path / "strict-council", image, tmp_path / "a")
    probability = found["router"]["levels"][0]["probability"]
    likeliest = found["router"]["levels"][0]["label"]
    shown = f"its probability of {100 * probability:.1f} % is below the threshold of 95.0 %"
    assert f"The router says unknown. The likeliest is {likeliest}, but {shown}" in text
    assert "not sure enough of any label to choose an expert, so the default is asked: the bundle general." in text
    assert found["router"]["map"]["label"] == likeliest, "what was likeliest is watched"
    text, found = explained(tmp_path / "doubtful-council", image, tmp_path / "b")
    assert "The router says xray, with a probability of" in text
    assert "It says no more: below, the likeliest is xray.chest, but validation found no probability" in text
    assert "No expert sits at xray, so the default is asked" in text


def test_nobody_is_asked_where_no_expert_sits(images: list[str], build: Build, tmp_path: Path) -> None:
    council = loaded(build(experts={"skin": "skin"}))
    image = next(one["image"] for one in council.predict(images) if one["route"]["label"] == "xray.hand")
    text, found = explained(council, image, tmp_path / "out")
    assert "No expert sits at xray.hand or above it, and the council has no default" in text
    assert "so nobody is asked and the answer is unknown." in text
    assert (found["expert"], found["experts"]) == ("unknown", [])


def test_several_experts_are_listed_with_weights_and_their_mixture(
    images: list[str], build: Build, tmp_path: Path
) -> None:
    council = loaded(build(experts={"xray.chest": "chest", "fundus": "fundus"}, generalist="general"))
    image, record = answered(council, images, "xray.chest")
    assert record["combined"]
    text, found = explained(council, image, tmp_path / "out")
    assert [member["weight"] for member in found["experts"]] == [one["weight"] for one in record["asked"]]
    assert found["combined"] == record["answer"]
    assert "The generalist is asked about every case. Their answers are combined" in text
    assert f"Together the experts say {record['answer']['label']}, with" in text
    image, record = answered(council, images, "fundus")
    text, found = explained(council, image, tmp_path / "out")  # an earlier page is replaced
    assert found["combined"] is None
    assert "Their answers cannot be combined, so that of the expert at fundus is given" in text
    assert "answers with an embedding, not with labels" in text


def test_the_nearest_cases_have_their_pictures_as_long_as_these_are_there(
    bundles: Bundles, images: list[str], build: Build, tmp_path: Path
) -> None:
    (source,) = (bundles["fundus"].parents[2] / "stores").glob("pairs-*")
    store = tmp_path / "store"
    shutil.copytree(source, store)
    model = Predictor.load(bundles["fundus"], device="cpu")
    consilium.Index.build(model, [store], out=tmp_path / "index", quiet=True)
    council = loaded(build(experts={"fundus": "fundus"}, indexes={"fundus": tmp_path / "index"}))
    image, record = answered(council, images, "fundus")
    text, _ = explained(council, image, tmp_path / "out")
    for case in record["answer"]["nearest"]:
        assert case["id"] in text
        assert case["texts"][0] in text
    assert "no picture" not in text
    shutil.rmtree(store)
    text, _ = explained(loaded(tmp_path / "council"), image, tmp_path / "out")
    assert text.count("no picture") == 5


def test_a_fusion_says_what_each_modality_counts_for(
    bundles: Bundles, images: list[str], build: Build, tmp_path: Path
) -> None:
    council = loaded(build(experts={"skin": "skin"}))
    image, _ = answered(council, images, "skin")
    query = Query(image, "it is round", {"age": 70, "site": "nowhere"})
    text, found = explained(council, query, tmp_path / "out")
    answer = found["experts"][0]["answer"]
    assert list(answer["without"]) == ["image", "text", "metadata"]
    for name, other in answer["without"].items():
        shown = f"{100 * answer['counted'][name]:+.1f} points".replace("-", "−")
        assert f"{name} {shown} {other['label']}, with" in text
    assert "What the image and the text and the metadata count for" in text
    assert "No training case had the site 'nowhere'" in text
    assert (found["text"], found["metadata"]) == ("it is round", {"age": "70", "site": "nowhere"})
    text, _ = explained(council, image, tmp_path / "out")
    assert "this question has the image alone" in text


def test_a_router_that_reads_text_says_what_that_counts_for(bundles: Bundles, build: Build, tmp_path: Path) -> None:
    nodes = list(Predictor.load(bundles["skin"], device="cpu").task.labels.names)  # type: ignore[attr-defined]
    council = loaded(build(router="skin", experts=dict.fromkeys(nodes, "chest")))
    image = str(next((bundles["skin"].parents[2] / "pairs").glob("*.png")))
    text, found = explained(council, Query(image, "it is round"), tmp_path / "out")
    assert text.index("What the image and the text count for") < text.index("What the expert at")
    assert list(found["router"]["answer"]["without"]) == ["image", "text"]
    assert found["router"]["map"]["label"] == found["router"]["answer"]["label"]


def test_several_looks_and_an_ensemble_are_told(
    bundles: Bundles, images: list[str], build: Build, tmp_path: Path
) -> None:
    def mirror(tree: dict[str, Any]) -> None:
        tree["looks"]["mirror"] = True

    second = classifier(tmp_path / "chest", CHEST, "seed=1", "trainer.max_epochs=1")
    both = ensemble([bundles["chest"], second], out=tmp_path / "both", quiet=True)
    router = changed(bundles["sure"], tmp_path / "mirrored", mirror)
    council = consilium.build_council(router=router, experts={"xray": both}, out=tmp_path / "council", quiet=True)
    image, record = answered(loaded(council), images, "xray")
    text, found = explained(council, image, tmp_path / "out")
    assert "The answer is the mean over 2 looks at the image, the map is of one look." in text
    disagreement = record["answer"]["disagreement"]
    assert f"Its members or looks disagree by {disagreement:.3f} nats (0: all say the same)." in text
    assert found["router"]["answer"] == record["route"]


def test_labels_from_a_threshold_on(images: list[str], build: Build, tmp_path: Path) -> None:
    council = loaded(build(experts={"xray": "findings"}))
    image, record = answered(council, images, "xray")
    text, _ = explained(council, image, tmp_path / "out")
    given = ", ".join(record["answer"]["labels"]) or "none of its labels"
    assert f"The expert at xray says {given}. Each label with a probability of at least 50.0 % is given" in text


def test_an_expert_that_lacks_what_it_needs_says_so_and_the_rest_goes_on(
    images: list[str], build: Build, tmp_path: Path
) -> None:
    """The eyes want views by name."""
    council = loaded(build(experts={"fundus": "eyes"}, generalist="skin"))
    eye = next(one["image"] for one in council.predict(images) if one["route"]["label"] == "fundus")
    text, found = explained(council, eye, tmp_path / "out")
    assert "The expert at fundus has no answer: 1 image without a name" in text
    assert (found["expert"], [one["map"] is None for one in found["experts"]]) == ("generalist", [True, False])
    alone = loaded(build(experts={"fundus": "eyes"}, out="alone"))
    text, _ = explained(alone, eye, tmp_path / "alone-out")
    assert "The expert at fundus has no answer: 1 image without a name" in text
    assert "Why this route" in text
    assert "Darkest" in text or "No single place matters" in text
    text, _ = explained(council, {"left": eye, "right": eye}, tmp_path / "out")
    assert "has no answer" not in text
    html = (tmp_path / "out/explanation.html").read_text(encoding="utf-8")
    assert html.count("<figcaption>left</figcaption>") == html.count("<figcaption>right</figcaption>") == 1
    words, found = explained(council, Query(text="it is round"), tmp_path / "out")  # which the router cannot read
    assert "The router has no answer" in words
    assert "There is no map: the question has no image that the generalist reads." in words
    assert found["expert"] == "generalist"


def test_pixels_bytes_and_odd_names_are_cases_too(images: list[str], build: Build, tmp_path: Path) -> None:
    council = loaded(build(experts={"xray.chest": "chest"}))
    image, record = answered(council, images, "xray.chest")
    odd = os.fsencode(tmp_path) + b"/odd \xff <b>.png"
    shutil.copy(image, odd)
    with Image.open(image) as opened:
        items = [Path(image).read_bytes(), opened.convert("RGB"), os.fsdecode(odd), Path(image)]
    for number, item in enumerate(items):
        text, found = explained(council, item, tmp_path / str(number))
        assert found["experts"][0]["answer"] == record["answer"]
        assert "Watched is the probability of" in text
    assert "odd \\udcff <b>.png" in explained(council, items[2], tmp_path / "2")[0]


def test_what_cannot_be_explained_is_refused(
    cli: Cli, bundles: Bundles, images: list[str], build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = build(experts={"skin": "skin", "fundus": "fundus"})
    out = tmp_path / "out"
    with pytest.raises(BundleError, match="is one bundle and no council, so there is no route to explain"):
        explain(bundles["skin"], images[0], out=out, quiet=True)
    with pytest.raises(ImageError, match=r"gone\.png does not exist"):
        explain(folder, "gone.png", out=out, quiet=True)
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nthat is all")
    with pytest.raises(ImageError, match=r"broken\.png"):
        explain(folder, tmp_path / "broken.png", out=out, quiet=True)
    with pytest.raises(ConfigError, match=r"--meta names 'weight', which this bundle does not read; it reads"):
        explain(folder, Query(images[0], metadata={"weight": "70"}), out=out, quiet=True)
    with pytest.raises(ImageError, match="the metadata of the query are a list"):
        explain(folder, Query(images[0], metadata=["age"]), out=out, quiet=True)  # type: ignore[arg-type]
    blind = build(experts={"skin": "chest"}, out="blind")
    with pytest.raises(ConfigError, match="--text is given, but this bundle reads no text"):
        explain(blind, Query(images[0], "round"), out=out, quiet=True)
    assert not out.exists(), "nothing is written of what was refused"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("mine", encoding="utf-8")
    for taken in ("mine", "mine/notes.txt"):
        answer = cli("council", "explain", folder, images[0], "--out", taken)
        assert (answer.code, "holds no earlier explanation; name a new folder" in answer.err) == (2, True)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]
    assert "an address" in cli("council", "explain", folder, images[0], "--out", "s3://bucket/a").err


def test_the_command_writes_a_page_and_names_itself_on_it(
    cli: Cli, images: list[str], build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = build(experts={"skin": "skin"})
    image, _ = answered(loaded(folder), images, "skin")
    words = ("council", "explain", folder, image, "--text", "it is round", "--meta", "age=70", "--device", "cpu")
    answer = cli(*words)
    assert answer.code == 0, answer.err
    assert "The router says skin, with a probability of" in answer.out + answer.err
    page = (tmp_path / "explanation/explanation.html").read_text(encoding="utf-8")
    assert f"{folder} {image} --text &#39;it is round&#39; --meta age=70 --out explanation" in page
    assert cli(*words).code == 0, "an earlier explanation is replaced"
    assert "explain" in cli("council", "--help").out
