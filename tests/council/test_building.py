"""Building a council: what is inside, and what is refused, with what to do."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import consilium
from consilium.core.errors import BundleError, ConfigError, ConsiliumError, SearchError
from consilium.manifest import CouncilManifest, read_header
from consilium.predictor import Predictor
from tests.cli.conftest import Cli
from tests.council.conftest import LABELS, Bundles, changed, classifier
from tests.tiny import Recorder

Build = Callable[..., Path]


def test_a_council_is_a_bundle_of_bundles(cli: Cli, bundles: Bundles, tmp_path: Path) -> None:
    given = {"fundus": "fundus", "xray": "skin", "xray.chest": "chest", "xray.hand": "skin"}
    words = [word for node, name in given.items() for word in ("--expert", f"{node}={bundles[name]}")]
    made = cli(
        "council",
        "build",
        "--router",
        bundles["router"],
        *words,
        "--out",
        tmp_path / "c",
        "--generalist",
        bundles["general"],
    )
    assert (made.code, made.err) == (0, "")
    assert "no expert sits at skin: the generalist answers" in made.out
    assert "the answers of xray.chest and the generalist are mixed" in made.out
    assert "the answers of fundus and the generalist are listed side by side" in made.out
    found = read_header(tmp_path / "c")
    assert isinstance(found, CouncilManifest)
    assert found.name == "c"
    assert found.reads == ["image", "text", "metadata"]
    expected = {node: f"members/{node}" for node in given} | {"xray.hand": "members/xray"}
    assert found.council.experts == expected, "a bundle that sits twice is there once"
    assert found.council.generalist == "members/generalist"
    assert len(found.members) == 5
    for folder, digest in found.members.items():
        file = tmp_path / "c" / folder / "bundle.json"
        assert hashlib.sha256(file.read_bytes()).hexdigest() == digest
        assert Predictor.load(file.parent, device="cpu") is not None
        assert {path.name for path in file.parent.iterdir()} <= {
            "bundle.json", "config.yaml", "history.csv", "model.safetensors"
        }, "what a bundle is made of, and no report"  # fmt: skip
    assert "<Council 'c': 5 experts, fundus, xray, xray.chest, xray.hand, generalist>" in repr(
        consilium.load(tmp_path / "c")
    )


def test_a_cascade_routes(bundles: Bundles, images: list[str], tmp_path: Path) -> None:
    cascade = classifier(tmp_path / "cascade", LABELS, "task.tree.head=cascade")
    folder = consilium.build_council(
        router=cascade, experts={"xray": bundles["hand"]}, out=tmp_path / "council", quiet=True
    )
    routes = Predictor.load(cascade, device="cpu").predict(images)
    assert [record["route"]["label"] for record in consilium.load(folder, device="cpu").predict(images)] == [
        route["label"] for route in routes
    ]
    with pytest.raises(BundleError, match=r"expert of 'xray': .* is a cascade of 2 networks, .* one network"):
        consilium.build_council(router=cascade, experts={"xray": cascade}, out=tmp_path / "other", quiet=True)


def test_licences_are_inherited_and_shown(bundles: Bundles, tmp_path: Path) -> None:
    def closed(tree: dict[str, Any]) -> None:
        tree["licenses"] = [{"source": "some/model", "name": "cc-by-nc-4.0", "read_from": "its card"}]

    expert = changed(bundles["chest"], tmp_path / "closed", closed)
    reporter = Recorder()
    folder = consilium.build_council(
        router=bundles["router"],
        experts={"xray.chest": expert, "xray.hand": expert},
        out=tmp_path / "council",
        reporter=reporter,
    )
    assert [license.name for license in read_header(folder).licenses or ()] == ["cc-by-nc-4.0"]
    assert "licence of some/model: cc-by-nc-4.0" in reporter.lines
    assert any(line.startswith("warning: ") and "commercial use" in line for line in reporter.lines)


def newer(tree: dict[str, Any]) -> None:
    tree["format_version"], tree["consilium_version"] = 9, "9.0"


def of_vectors(tree: dict[str, Any]) -> None:
    tree["task"]["text"] = {"kind": "vectors", "name": "notes.npz"}


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"experts": {"fundus": "no/such"}}, BundleError, r"the expert of 'fundus': no/such does not exist; give the"),
        ({"experts": {"fundsu": "fundus"}}, ConfigError, r"at 'fundsu', .* 'router'; did you mean `fundus`\?"),
        ({"experts": {"brain": "fundus"}}, ConfigError, r"no node .*; its nodes are: fundus, skin, xray, xray\.chest"),
        (
            {"router": "flat", "experts": {"xray": "skin"}},
            ConfigError,
            r"at 'xray', .*: it is flat.* Give an expert of xray\.chest, xray\.hand, or .* joint",
        ),
        ({"experts": {}}, ConfigError, "there is no expert; give one for a node of the router: fundus, skin"),
        ({"experts": {"default": "skin"}}, ConfigError, "at 'default', a name that is taken"),
        ({"router": "fundus"}, ConfigError, "the router 'pairs' answers with image_embedding, text_embedding"),
        ({"router": "findings"}, ConfigError, "answers with any number of labels"),
        (
            {"router": "sure", "default": "general"},
            ConfigError,
            r"has no thresholds .*wanted_accuracy.*, as expert of fundus, xray\.chest, xray\.hand",
        ),
        ({"top_k": 2}, ConfigError, "top_k is 2, but there is 1 expert; expected 1 to 1"),
        ({"indexes": {"skn": "x"}}, ConfigError, "for 'skn', which is no expert of the council; did you mean `skin`"),
        ({"indexes": {"skin": "x"}}, ConfigError, "the bundle 'fused' has no embeddings to search by"),
        (
            {"experts": {"fundus": "fundus"}, "indexes": {"fundus": "none"}},
            SearchError,
            "the index of the expert of 'fundus': there is no index in none",
        ),
    ],
)
def test_what_does_not_fit_is_refused(
    build: Build, tmp_path: Path, options: dict[str, Any], error: type[ConsiliumError], message: str
) -> None:
    with pytest.raises(error, match=message):
        build(**{"experts": {"skin": "skin"}, **options})
    assert not (tmp_path / "council").exists()


def test_members_of_another_kind_or_version_are_refused(build: Build, bundles: Bundles, tmp_path: Path) -> None:
    inner = build(experts={"skin": "skin"}, out="inner")
    for who in (
        {"router": inner, "experts": {"skin": bundles["skin"]}},
        {"router": bundles["sure"], "experts": {"skin": inner}},
    ):
        with pytest.raises(BundleError, match=r"is a council, and a council is made of single models"):
            consilium.build_council(**who, out=tmp_path / "outer", quiet=True)
    later = changed(bundles["chest"], tmp_path / "later", newer)
    with pytest.raises(BundleError, match=r"expert of 'skin': .* written by Consilium 9\.0 in bundle format 9"):
        build(experts={"skin": later})
    broken = changed(bundles["chest"], tmp_path / "broken", lambda tree: None)
    (broken / "model.safetensors").write_bytes(b"other")
    with pytest.raises(BundleError, match=r"expert of 'skin': .*model\.safetensors is not the file that"):
        build(experts={"skin": broken})
    vectors = changed(bundles["skin"], tmp_path / "vectors", of_vectors)
    with pytest.raises(BundleError, match=r"expert of 'skin': .* reads vectors in the place of texts \(notes\.npz\)"):
        build(experts={"skin": vectors})
    assert not (tmp_path / "council").exists(), "nothing is left of it"


def test_an_index_of_another_bundle_is_refused(
    build: Build, bundles: Bundles, images: list[str], tmp_path: Path
) -> None:
    model = Predictor.load(bundles["fundus"], device="cpu")
    consilium.Index.build(model, [images[0]], out=tmp_path / "index", quiet=True)
    with pytest.raises(
        SearchError, match=r"index of the expert of 'skin': .* is of bundle 'pairs', not of the bundle 'eyes'"
    ):
        build(experts={"skin": "eyes"}, indexes={"skin": tmp_path / "index"})


def test_the_command_says_what_it_expected(cli: Cli, bundles: Bundles, tmp_path: Path) -> None:
    base = ["council", "build", "--router", bundles["router"], "--out", tmp_path / "c"]
    twice = cli(*base, "--expert", f"skin={bundles['skin']}", "--expert", f"skin={bundles['chest']}")
    assert twice.code == 2
    assert "--expert gives 'skin' twice" in twice.err
    assert "a node has one expert" in twice.err
    assert "--expert is 'skin'; expected NODE=BUNDLE" in cli(*base, "--expert", "skin").err
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "notes.txt").write_text("mine", encoding="utf-8")
    taken = cli(*base, "--expert", f"skin={bundles['skin']}")
    assert f"{tmp_path / 'c'} is there already" in taken.err


def test_a_damaged_manifest_of_a_council_is_refused(build: Build) -> None:
    folder = build(experts={"skin": "skin"})
    whole = (folder / "bundle.json").read_text(encoding="utf-8")
    for change, message in (
        (lambda tree: tree["council"].update(router="members/none"), "'members/none' is none of the members"),
        (
            lambda tree: tree["council"].update(indexes={"skin": "../elsewhere"}),
            "'../elsewhere' is none of the indexes",
        ),
        (lambda tree: tree["members"].update({"../skin": "0"}), "is no place inside a bundle"),
        (lambda tree: tree.update(council=3), "council: Input should be"),
    ):
        tree = json.loads(whole)
        change(tree)
        (folder / "bundle.json").write_text(json.dumps(tree), encoding="utf-8")
        with pytest.raises(BundleError, match=message):
            consilium.load(folder)
