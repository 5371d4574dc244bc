"""An index inherits the licences of the weights that its expert was trained from."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from consilium import Index, Query
from consilium.core.errors import SearchError
from consilium.core.licenses import License
from consilium.predictor import Predictor
from consilium.search.building import build_index
from consilium.search.finding import find
from tests.tiny import Recorder, Run

NAMED = License(source="ViT-B-32/mine", name="cc-by-nc-4.0", read_from="README.md")
Licensed = Callable[[Any], Predictor]


@pytest.fixture
def licensed(expert: Run, tmp_path: Path) -> Licensed:
    """The expert with other licences in its bundle."""

    def load(licenses: Any) -> Predictor:
        folder = tmp_path / "bundle"
        shutil.copytree(expert.folder, folder, dirs_exist_ok=True)
        manifest = json.loads((folder / "bundle.json").read_text(encoding="utf-8"))
        (folder / "bundle.json").write_text(json.dumps({**manifest, "licenses": licenses}), encoding="utf-8")
        return Predictor.load(folder, device="cpu", workers=0)

    return load


def described(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "index.json").read_text(encoding="utf-8")))


def test_the_licences_of_its_bundle_stand_in_an_index_and_are_said(
    licensed: Licensed, squares: Path, tmp_path: Path
) -> None:
    model = licensed([NAMED.model_dump()])
    build_index(model, [str(squares)], out=tmp_path / "index", reporter=(seen := Recorder()))
    assert described(tmp_path / "index")["licenses"] == [NAMED.model_dump()]
    assert "licence of ViT-B-32/mine: cc-by-nc-4.0" in seen.lines
    assert [line for line in seen.lines if line.startswith("warning: ") and "forbids commercial use" in line]
    index = Index.load(tmp_path / "index", model)
    assert index.manifest.licenses == index.licenses == [NAMED]
    page = find(index, Query(text="A square"), k=2, among="images").page(images=False)
    assert "ViT-B-32/mine: cc-by-nc-4.0" in page


def test_of_random_weights_there_is_nothing_to_say(licensed: Licensed, squares: Path, tmp_path: Path) -> None:
    model = licensed([])
    build_index(model, [str(squares)], out=tmp_path / "index", reporter=(seen := Recorder()))
    assert described(tmp_path / "index")["licenses"] == []
    assert not [line for line in seen.lines if "licence" in line]
    results = find(Index.load(tmp_path / "index", model), Query(text="A square"), k=2, among="images")
    assert "Licence" not in results.page(images=False)


def test_a_bundle_that_kept_none_has_unknown_ones(licensed: Licensed, squares: Path, tmp_path: Path) -> None:
    build_index(licensed(None), [str(squares)], out=tmp_path / "index", reporter=(seen := Recorder()))
    (own,) = described(tmp_path / "index")["licenses"]
    assert (own["source"], own["name"]) == ("pairs", None)
    assert "licence of pairs: unknown" in seen.lines


def test_an_index_of_an_earlier_version_is_searched_and_takes_them_over(
    licensed: Licensed, squares: Path, tmp_path: Path
) -> None:
    model, folder = licensed([NAMED.model_dump()]), tmp_path / "index"
    build_index(model, [str(squares)], out=folder, reporter=Recorder())
    tree = described(folder)
    del tree["licenses"]
    (folder / "index.json").write_text(json.dumps(tree), encoding="utf-8")
    index = Index.load(folder, model)
    assert index.manifest.licenses is None
    assert index.licenses == [NAMED]
    assert len(index.search(text="A square", k=3)) == 3
    again = build_index(model, [], out=folder, reporter=Recorder())
    assert (again.embedded_images, again.embedded_texts, again.removed) == (0, 0, 0)
    assert described(folder)["licenses"] == [NAMED.model_dump()]


def test_licences_that_are_none_are_damage(licensed: Licensed, squares: Path, tmp_path: Path) -> None:
    model, folder = licensed([]), tmp_path / "index"
    build_index(model, [str(squares)], out=folder, reporter=Recorder())
    (folder / "index.json").write_text(json.dumps({**described(folder), "licenses": "mine"}), encoding="utf-8")
    with pytest.raises(SearchError, match=r"damaged \(index\.json"):
        Index.load(folder, model)
