"""The configs of a comparison on the command line: their names, and overrides for all of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from consilium.comparison.entrants import check_same, entrant, load_experiments, names_of, same_validation
from consilium.core.config import to_yaml
from consilium.core.errors import ConfigError, DataError
from tests.tasks.test_fuse_contract import experiment_of
from tests.tasks.test_fuse_metadata import METADATA, with_metadata
from tests.tiny import Recorder, tiny_experiment


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["a/clip.yaml", "a/siglip.yaml"], ["clip", "siglip"]),
        (["a/clip.yaml", "b/clip.yaml", "c/lora.yaml"], ["a-clip", "b-clip", "lora"]),
        (["x/a/clip.yaml", "y/a/clip.yaml"], ["a-clip-1", "a-clip-2"]),
        (["gs://bucket/a/clip.yaml", "my clip (2).yaml"], ["clip", "my_clip__2_"]),
    ],
    ids=str,
)
def test_names_are_of_files_and_differ(paths: list[str], names: list[str]) -> None:
    assert names_of(paths) == names


def test_a_file_given_twice_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for again in ("./a.yaml", str(tmp_path / "a.yaml"), "a.yaml"):
        with pytest.raises(ConfigError, match=r"a\.yaml is given twice"):
            names_of(["a.yaml", again])


def test_a_key_is_varied(tiny_images: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(to_yaml(tiny_experiment(tiny_images, tmp_path)), encoding="utf-8")
    found = load_experiments([str(path), "trainer.max_epochs=7"], vary="optimizer.learning_rate=1e-3, 0.01")
    assert {name: one.optimizer.learning_rate for name, one in found.items()} == {
        "a-learning_rate-1e-3": 0.001,
        "a-learning_rate-0.01": 0.01,
    }
    assert {one.trainer.max_epochs for one in found.values()} == {7}
    sizes = load_experiments([str(path)], vary="data.image.size=[32, 32],[48,48]")
    assert [one.data.image.size for one in sizes.values()] == [(32, 32), (48, 48)]


@pytest.mark.parametrize("vary", ["optimizer.learning_rate", "seed=1", "seed=1,1", "seed=1,,2"])
def test_a_key_without_different_values_is_refused(vary: str) -> None:
    with pytest.raises(ConfigError, match="two different values or more"):
        load_experiments(["a.yaml"], vary=vary)


def test_what_only_one_reads_may_differ(tmp_path: Path) -> None:
    """A fused model against one of images alone: the same cases and labels, and no text to be the same."""
    with_metadata(tmp_path)
    table = tmp_path / "pairs" / "pairs.jsonl"
    lines = [line for line in table.read_text(encoding="utf-8").splitlines(keepends=True) if '"image"' in line]
    table.write_text("".join(lines), encoding="utf-8")
    fused = experiment_of(tmp_path, *METADATA)
    images = experiment_of(tmp_path, "task={kind: classify, vision: {name: test_vit, pretrained: false}}")
    one, other = (entrant(own.task.kind, own, limit=None, reporter=Recorder()) for own in (fused, images))
    check_same(one, other)
    check_same(other, one)
    assert same_validation([one, other])
    table.write_text("".join(lines).replace('"age": 3', '"age": 4'), encoding="utf-8")
    with pytest.raises(DataError, match=r"the metadata age is '3\d' for fuse and '4\d' for changed"):
        check_same(one, entrant("changed", fused, limit=None, reporter=Recorder()))


def test_overrides_are_for_all(tiny_images: Path, tmp_path: Path) -> None:
    paths = [tmp_path / "a.yaml", tmp_path / "b=c.yaml"]
    for path in paths:
        path.write_text(to_yaml(tiny_experiment(tiny_images, tmp_path)), encoding="utf-8")
    found = load_experiments([str(paths[0]), "trainer.max_epochs=7", str(paths[1]), "trainer.init_from=old.yaml"])
    assert list(found) == ["a", "b_c"]
    assert {one.trainer.max_epochs for one in found.values()} == {7}
    assert {one.trainer.init_from for one in found.values()} == {"old.yaml"}
    with pytest.raises(ConfigError, match=r"nowhere\.yaml does not exist"):
        load_experiments([str(paths[0]), "nowhere.yaml"])
