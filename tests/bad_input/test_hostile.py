"""Files made to harm: none of them runs code, is read from elsewhere, fills the memory or gets into a report."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.bad_input.conftest import assert_refused, cli, nothing_lost, recipe, runs
from tests.cli.conftest import Cli
from tests.tiny import Run, TrainTiny

__all__ = ["cli", "recipe"]


class Malicious:
    """Makes a folder when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.target),)


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "code_ran"


@pytest.fixture
def bundle(tiny_run: Run, tmp_path: Path) -> Path:
    names = shutil.ignore_patterns("checkpoints", "evaluation-*")
    return Path(shutil.copytree(tiny_run.folder, tmp_path / "bundle", ignore=names))


def evil_torch(path: Path, target: Path) -> None:
    torch.save({"state_dict": {"a": torch.ones(1)}, "x": Malicious(target)}, path)


def evil_pickle(path: Path, target: Path) -> None:
    path.write_bytes(pickle.dumps(Malicious(target)))


def trust(bundle: Path) -> None:
    """Give the manifest the checksum that the weights have."""
    tree = json.loads((bundle / "bundle.json").read_text(encoding="utf-8"))
    digest = hashlib.sha256((bundle / "model.safetensors").read_bytes()).hexdigest()
    tree["files"] = {"model.safetensors": digest}
    (bundle / "bundle.json").write_text(json.dumps(tree), encoding="utf-8")


@pytest.mark.parametrize("make", [evil_torch, evil_pickle])
@pytest.mark.parametrize("name", ["evil.pt", "evil.safetensors"])
@pytest.mark.parametrize("key", ["trainer.init_from", "task.vision.pretrained"])
def test_weights_that_would_run_code(
    cli: Cli, recipe: Path, tmp_path: Path, target: Path, make: Callable[[Path, Path], None], name: str, key: str
) -> None:
    make(tmp_path / name, target)
    assert_refused(cli("train", recipe, f"{key}={tmp_path / name}"), str(tmp_path / name))
    assert not target.exists()
    assert not runs(recipe)


@pytest.mark.parametrize("make", [evil_torch, evil_pickle])
def test_a_bundle_whose_weights_would_run_code(
    cli: Cli, recipe: Path, bundle: Path, tiny_images: Path, target: Path, make: Callable[[Path, Path], None]
) -> None:
    make(bundle / "model.safetensors", target)
    trust(bundle)
    told = [str(bundle / "model.safetensors"), "cannot be loaded"]
    assert_refused(cli("predict", bundle, tiny_images / "test"), *told)
    assert_refused(cli("evaluate", bundle), *told)
    assert_refused(cli("train", recipe, f"trainer.init_from={bundle}"), told[0])
    assert not target.exists()


@pytest.mark.parametrize("header", [2**63, 2**31, 10**8 + 1])
def test_a_huge_header_takes_no_memory(cli: Cli, bundle: Path, tiny_images: Path, header: int) -> None:
    (bundle / "model.safetensors").write_bytes(struct.pack("<Q", header) + b"{" * 1000)
    trust(bundle)
    assert_refused(cli("predict", bundle, tiny_images / "test"), "model.safetensors is damaged or not a weights file")


@pytest.mark.parametrize("name", ["bundle.json", "model.safetensors", "config.yaml"])
@pytest.mark.parametrize("as_in_a_hub_cache", [False, True])
def test_a_link_out_of_the_bundle(
    cli: Cli, recipe: Path, bundle: Path, tiny_images: Path, tmp_path: Path, name: str, as_in_a_hub_cache: bool
) -> None:
    elsewhere = tmp_path / ("blobs" if as_in_a_hub_cache else "elsewhere") / name
    elsewhere.parent.mkdir()
    (bundle / name).rename(elsewhere)
    (bundle / name).symlink_to(Path("..") / elsewhere.relative_to(tmp_path) if as_in_a_hub_cache else elsewhere)
    told = [f"{bundle / name} is a link to {elsewhere}, outside of the bundle", "cp -rL"]
    assert_refused(cli("predict", bundle, tiny_images / "test"), *told)
    assert_refused(cli("evaluate", bundle), *told)
    assert_refused(cli("train", recipe, f"trainer.init_from={bundle}"), *told)
    copy = tmp_path / "copy"
    shutil.copytree(bundle, copy)  # with what the links stand for, as the message advises
    assert cli("predict", copy, tiny_images / "test").code == 0


def test_a_link_inside_the_bundle_is_its_own_business(cli: Cli, bundle: Path, tiny_images: Path) -> None:
    (bundle / "model.safetensors").rename(bundle / "real")
    (bundle / "model.safetensors").symlink_to("real")
    assert cli("predict", bundle, tiny_images / "test").code == 0


def test_a_manifest_that_names_files_elsewhere_reads_none(
    cli: Cli, bundle: Path, tiny_images: Path, target: Path
) -> None:
    evil_pickle(bundle / "w.pt", target)
    tree = json.loads((bundle / "bundle.json").read_text(encoding="utf-8"))
    for place in ("../../etc/passwd", str(bundle / "w.pt"), "gs://nobody/w.pt"):
        tree["task"]["vision"]["pretrained"] = place
        (bundle / "bundle.json").write_text(json.dumps(tree), encoding="utf-8")
        assert cli("predict", bundle, tiny_images / "test").code == 0
    assert not target.exists()


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{chr(98 + n)}: &{chr(98 + n)} [{', '.join(['*' + chr(97 + n)] * 9)}]\n" for n in range(9)
)


@pytest.mark.parametrize("text", [BOMB, "data: &d {sources: *d}\n", "data: " + "[" * 5000])
def test_a_yaml_bomb(cli: Cli, bundle: Path, tmp_path: Path, text: str) -> None:
    (bundle / "config.yaml").write_text(text, encoding="utf-8")
    assert_refused(cli("evaluate", bundle), str(bundle / "config.yaml"), "is refused")
    (tmp_path / "bomb.yaml").write_text(text, encoding="utf-8")
    assert_refused(cli("config", "show", tmp_path / "bomb.yaml"), "bomb.yaml is refused")


# Archives


def test_a_zipped_bundle_is_a_bundle(
    cli: Cli, recipe: Path, bundle: Path, tiny_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONSILIUM_CACHE", str(tmp_path / "cache"))
    expected = cli("predict", bundle, tiny_images / "test").records
    for kind, base in (("zip", "."), ("gztar", bundle.name)):
        packed = shutil.make_archive(str(tmp_path / "packed"), kind, bundle if base == "." else tmp_path, base)
        answer = cli("predict", packed, tiny_images / "test")
        assert answer.code == 0, answer.err
        assert answer.records == expected
        assert cli("evaluate", packed, "--out", tmp_path / kind).code == 0
        assert cli("train", recipe, f"trainer.init_from={packed}", "--dry-run").code == 0


@pytest.mark.parametrize("name", ["../evil.txt", "/tmp/evil.txt"])
def test_an_archive_that_writes_elsewhere(
    cli: Cli,
    recipe: Path,
    bundle: Path,
    tiny_images: Path,
    tmp_path: Path,
    name: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CONSILIUM_CACHE", str(tmp_path / "cache"))
    packed = Path(shutil.make_archive(str(tmp_path / "packed"), "zip", bundle))
    with zipfile.ZipFile(packed, "a") as archive:
        archive.writestr(name, "evil")
    with nothing_lost(bundle):
        assert_refused(cli("predict", packed, tiny_images), "packed.zip is refused", f"'{name}'")
        source = f"data.sources.0.path={packed}"
        assert_refused(cli("data", "prepare", recipe, source), "source 'images': the archive", f"'{name}'")
    assert not [path for path in tmp_path.rglob("*") if path.name == "evil.txt"]
    assert not Path("/tmp/evil.txt").exists()


def test_an_archive_without_a_bundle(
    cli: Cli, tiny_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONSILIUM_CACHE", str(tmp_path / "cache"))
    packed = shutil.make_archive(str(tmp_path / "packed"), "zip", tiny_images)
    assert_refused(cli("predict", packed, tiny_images), f"{packed} has no bundle.json, so it is no bundle")


# Reports

SCRIPT = '<script>alert("x")</script>'


def test_text_of_the_data_does_not_get_into_the_page_as_code(
    tiny: TrainTiny, tiny_images: Path, tmp_path: Path
) -> None:
    lines = ["image,label,id,split,site"]
    for path in sorted(tiny_images.rglob("*.jpg")):
        split, label, _ = path.relative_to(tiny_images).parts
        cells = [str(path), f"{SCRIPT}{label}", f"{SCRIPT}{path.stem}{split}{label}", split, f"<img src=x>{label}"]
        lines.append(",".join(f'"{cell.replace(chr(34), chr(34) * 2)}"' for cell in cells))
    (tmp_path / "cases.csv").write_text("\n".join(lines), encoding="utf-8")
    run = tiny(
        "data.sources.0.kind=csv",
        f"data.sources.0.path={tmp_path / 'cases.csv'}",
        f"data.store.root={tmp_path / 'stores'}",
        "evaluation.columns=[site]",
        "report.images=true",
        "report.cases=12",
    )
    page = (run.folder / "report.html").read_text(encoding="utf-8")
    assert "&lt;script&gt;" in page
    assert "<script" not in page.lower()
    assert "<img src=x>" not in page
    assert "default-src 'none'" in page, "and if one slipped through, the browser runs none"
    card = (run.folder / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert "<script" not in card.replace("\\<", "")
