"""The guides say what is so: their examples run, their keys, figures, options and files exist."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import typer.main
import yaml
from PIL import Image

from consilium.core.config import build, merge, read_tree
from consilium.core.moved import MOVED
from consilium.data.batches.config import AugmentationConfig
from consilium.evaluation.labels.classification import _MULTI, _SINGLE
from consilium.evaluation.labels.tree import ANSWERED, AURC, HIERARCHICAL
from consilium.experiment import Experiment
from tests.conftest import write_images
from tests.docs.guides import DOCS, GUIDES, blocks, prose, script
from tests.docs.warm import warm_command

sys.path.insert(0, str(DOCS))
import key_reference

PAGES = sorted(path.stem for path in DOCS.glob("*.md"))
_INLINE = re.compile(r"`([^`\n]+)`")
_DOTTED = re.compile(r"(?P<key>[a-z_]+(?:\.[a-z0-9_]+)+)(?:[:=].*)?")
_FILE_ENDINGS = (
    "md", "yaml", "html", "json", "jsonl", "csv", "txt", "tif", "jpg", "png", "webp", "bmp", "safetensors", "bin",
    "zip", "py", "npy", "npz", "faiss", "model",
)  # fmt: skip
_NO_KEYS = ("consilium.", "radiology.", "microscopy.", "resnet50.", "meta.source")  # modules, labels, weights, columns

MINIMAL = {
    "name": "guide",
    "task": {"kind": "classify"},
    "data": {"sources": [{"kind": "folder", "name": "a", "path": "a"}]},
}


@pytest.fixture
def world(tmp_path: Path) -> Path:
    """What the guides take for given: folders of images, and every image that a table of theirs names."""
    write_images(tmp_path / "images")
    write_images(tmp_path / "hospital", splits={"train": 20, "val": 4, "test": 4}, seed=1)
    write_images(tmp_path / "atlas", splits={"train": 100, "val": 4, "test": 4}, seed=2)
    rng = np.random.default_rng(0)
    for page in GUIDES:
        for block in blocks(page):
            names = re.findall(r"scans/\w+\.png", block.text) if block.file else []
            for path in (tmp_path / name for name in names if "missing" not in name):
                path.parent.mkdir(exist_ok=True)
                Image.fromarray(rng.integers(0, 256, (40, 48, 3), dtype=np.uint8)).save(path)
    return tmp_path


@pytest.fixture(scope="module")
def warm() -> Iterator[Path]:
    """A folder with a ``consilium`` that starts at once."""
    with tempfile.TemporaryDirectory() as folder, warm_command(Path(folder)) as commands:
        yield commands


def follow(page: str, folder: Path, commands: Path | None = None) -> str:
    """Do all that a page says, in ``folder``, with what is in ``commands`` first; what was printed."""
    path = os.pathsep.join(
        [*([str(commands)] if commands else []), str(Path(sys.executable).parent), os.environ["PATH"]]
    )
    done = subprocess.run(
        ["bash", "-c", script(page)],
        cwd=folder,
        env={**os.environ, "PATH": path, "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    if done.returncode:
        pytest.fail(
            f"exit code {done.returncode}; printed last:\n{done.stdout[-1000:]}\n{done.stderr[-3000:]}", pytrace=False
        )
    for block in blocks(page):  # Tables that a guide shows are those that it prints; trained figures vary a little.
        if block.language == "text" and "-----" in block.text and page != "first_router":
            table = [line for line in block.text.splitlines() if line.startswith("  ")]
            assert "\n".join(table) in done.stdout, f"{block.place} is not what is printed"
    return done.stdout


def test_configuration_guide_runs(world: Path, warm: Path) -> None:
    printed = follow("configuration", world, warm)
    assert "path: /data/atlas" in printed
    assert "exit code 2" in printed


def test_data_guide_runs(world: Path, warm: Path) -> None:
    printed = follow("data", world, warm)
    assert "exit code 2" in printed
    assert "missing.png does not exist" in printed
    assert len(list(world.glob("stores/pairs-*/store.json"))) == 1


def test_tables_guide_runs(world: Path, warm: Path) -> None:
    printed = follow("tables", world, warm)
    (said,) = re.findall(r"^    (cases: .*)$", prose("tables"), re.MULTILINE)
    assert said in printed
    assert printed.count("prepared: ") == 3


@pytest.mark.slow
def test_from_multimeditron_guide_runs(world: Path, warm: Path) -> None:
    printed = follow("from_multimeditron", world, warm)
    (shown,) = (block.text for block in blocks("from_multimeditron") if block.language == "yaml")
    assert shown in (world / "skin_and_eye.yaml").read_text(encoding="utf-8")
    assert "mixture over 3 epochs" in printed
    assert "size: 64" in (world / "again.yaml").read_text(encoding="utf-8")


@pytest.mark.slow
def test_from_ret_clip_guide_runs(tmp_path: Path, warm: Path) -> None:
    printed = follow("from_ret_clip", tmp_path, warm)
    assert (tmp_path / "features.pt").is_file()
    assert (tmp_path / "judged" / "evaluation_results.json").is_file()
    assert "validation is taken from train, by patient" in printed
    assert "was 100 steps" in (tmp_path / "eyes.yaml").read_text(encoding="utf-8")
    assert printed.rstrip().endswith("validation and test: they are one")


def test_extending_guide_runs(tmp_path: Path) -> None:
    follow("extending", tmp_path)


@pytest.mark.slow
def test_checks_guide_runs(world: Path) -> None:
    """What it shows is what is printed; figures may differ in their last digits."""
    printed = re.sub(r"0\.\d+", "0.x", follow("checks", world))
    for block in blocks("checks"):
        if block.language == "text":
            lines = re.sub(r"0\.\d+", "0.x", block.text).splitlines()
            assert [line for line in lines if line not in printed] == [], block.place
    assert (world / "inspection" / "near_duplicates.png").exists()


@pytest.mark.slow
def test_mixtures_guide_runs(world: Path) -> None:
    assert "only 13% of its 300 training rows are ever seen" in follow("mixtures", world)


@pytest.mark.slow
def test_training_guide_runs(world: Path) -> None:
    follow("training", world)
    assert len(list(world.glob("runs/modality/*/report.html"))) == 5
    (wider,) = world.glob("runs/modality/wider-*/log.txt")
    assert re.search(r"features of \d+ cases are cached in \S+: all are there", wider.read_text(encoding="utf-8"))


@pytest.mark.slow
def test_experts_and_the_guides_that_go_on_from_them_run(tmp_path: Path, warm: Path) -> None:
    follow("experts", tmp_path)
    with np.load(tmp_path / "fundus.npz") as found:
        assert found["image_embedding"].shape == (len(found["image"]), 64)
    assert (tmp_path / "cases.parquet").is_file()
    assert "image_embedding" in follow("judging_experts", tmp_path)
    assert (tmp_path / "judged" / "evaluation_results.json").is_file()
    printed = follow("search", tmp_path, warm)
    assert "embedded 320 images and 78 texts" in printed
    assert "320 images, 78 texts; it is up to date" in printed
    assert (tmp_path / "found.html").read_text(encoding="utf-8").count("<img") == 10
    assert "the outputs of the bundle within" in follow("export", tmp_path, warm)
    assert (tmp_path / "probed" / "tables" / "test_probes.csv").is_file()
    assert (tmp_path / "forgotten" / "forgetting.html").is_file()


@pytest.mark.slow
def test_fusion_guide_runs(world: Path, warm: Path) -> None:
    printed = follow("fusion", world, warm)
    assert re.search(r"^image alone,.*,image,[-0-9.e]+,$", printed, re.MULTILINE)
    assert re.search(r"^text alone,.*,text,,[-0-9.e]+$", printed, re.MULTILINE)


@pytest.mark.slow
def test_council_guide_runs(tmp_path: Path, warm: Path) -> None:
    printed = follow("council", tmp_path, warm)
    answers = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text(encoding="utf-8").splitlines()]
    assert {"dermoscopy", "fundus", "unknown"} == {answer["expert"] for answer in answers}
    nearest = [json.loads(line) for line in (tmp_path / "nearest.jsonl").read_text(encoding="utf-8").splitlines()]
    assert {len(one["answer"]["nearest"]) for one in nearest if one["expert"] == "fundus"} == {5}
    assert (tmp_path / "eyes.csv").read_text(encoding="utf-8").startswith("image,route,route_probability,error,expert,")
    assert "The bundle eye was asked: it sits at fundus, which is what the router says." in printed
    assert (tmp_path / "explanation/explanation.html").read_text(encoding="utf-8").count('alt="Case ') == 5
    assert "What the image and the text count for" in (tmp_path / "why_skin/explanation.html").read_text(
        encoding="utf-8"
    )
    assert printed.splitlines()[-1].startswith("dermoscopy dermoscopy {")
    assert "oracle_end_to_end" in printed
    assert "routes without an expert" in printed
    assert (tmp_path / "council_there" / "calibration" / "router" / "calibration.html").is_file()


@pytest.mark.slow
def test_crossval_guide_runs(world: Path) -> None:
    printed = follow("crossval", world)
    assert len(list(world.glob("runs/sources/crossval-*/fold-*/report.html"))) == 9
    assert "fold 0 is finished" not in printed


@pytest.mark.slow
def test_another_site_guide_runs(world: Path, warm: Path) -> None:
    printed = follow("another_site", world, warm)
    assert "hospital: 84 cases" in printed
    assert (world / "atlas_at_hospital" / "calibration.html").is_file()
    assert (world / "as_it_was" / "bundle.json").is_file()


@pytest.mark.slow
def test_compare_guide_runs(world: Path) -> None:
    printed = follow("compare", world)
    assert len(list(world.glob("runs/towers/compare-*/*-seed-*/report.html"))) == 2 * 2 + 2 * 3 + 2 * 2
    assert "what decides: macro_f1" in printed


@pytest.mark.slow
def test_first_router_and_what_builds_on_it_run(tmp_path: Path) -> None:
    printed = follow("first_router", tmp_path)
    accuracy = re.search(r"test: 90 cases.*?accuracy +(\d\.\d+)", printed, re.DOTALL)
    assert accuracy is not None
    assert float(accuracy[1]) > 0.9, "the guide shows the figures of a model that has learned"
    predicted = (tmp_path / "predictions.csv").read_text().splitlines()
    assert predicted[0] == "image,label,probability,error,p_ct,p_fundus,p_ultrasound,p_xray_chest"
    follow("judging", tmp_path)
    assert "exit code 1" in follow("predicting", tmp_path)
    told = prose("first_router").split("## 5.")[1].split("## 6.")[0]
    report = (next(tmp_path.glob("runs/router/*")) / "report.html").read_text(encoding="utf-8")
    for name in re.findall(r"\*\*(.+?)\*\*", told)[1:]:
        assert name.rstrip(".") in report, f"first_router.md tells of '{name}' in the report"


def test_the_guides_build_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("myst_parser")
    command = [
        sys.executable,
        "-m",
        "sphinx",
        "-W",
        "--keep-going",
        "-q",
        "-E",
        "-b",
        "html",
        "-d",
        str(tmp_path / "trees"),
    ]
    done = subprocess.run([*command, str(DOCS), str(tmp_path / "html")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    keys = (tmp_path / "html/_generated/keys.html").read_text(encoding="utf-8")
    assert "data.loader.workers" in keys


@pytest.mark.parametrize("page", GUIDES)
def test_every_yaml_of_a_guide_is_valid(page: str, tmp_path: Path) -> None:
    """Files as they are, fragments on top of a minimal experiment."""
    for block in blocks(page):
        if block.file is not None:
            (tmp_path / block.file).write_text(block.text, encoding="utf-8")
        if block.language == "yaml":
            tree = yaml.safe_load(block.text) if block.file is None else read_tree(tmp_path / block.file)
            build(Experiment, merge(MINIMAL, tree), origin=block.place)


@pytest.mark.parametrize("page", PAGES)
def test_every_key_that_a_guide_names_exists(page: str) -> None:
    found = [match["key"] for text in _INLINE.findall(prose(page)) if (match := _DOTTED.fullmatch(text))]
    commands = [block.text for block in blocks(page) if block.language in ("sh", "console")]
    found += [key for text in commands for key in re.findall(r"[ '](\w+\.[\w.]+)=", text)]
    keys = [key for key in found if not key.startswith(_NO_KEYS) and key.rpartition(".")[2] not in _FILE_ENDINGS]
    assert [key for key in keys if not key_reference.resolves(key)] == [
        key
        for key in keys
        if key == "trainer.max_epoch" or key in MOVED  # the mistakes that configuration.md shows
    ]


def test_a_key_that_does_not_exist_is_noticed() -> None:
    for key in ("data.loader.worker", "data.sources.columns", "trainr.max_epochs", "task.head.hidden_sizes.a"):
        assert not key_reference.resolves(key)
    for key in ("data.sources.0.columns.meta", "task.loss.class_weights.ct", "data.image.size.1", "optimizer.nesterov"):
        assert key_reference.resolves(key)


def test_the_reference_explains_every_key() -> None:
    keys = [key for section in key_reference.sections() for key in section.keys]
    assert not [key.path for key in keys if not key.description]
    assert not [key.path for key in keys if not key_reference.resolves(key.path)]
    told = {key.path for key in keys}

    def leaves(tree: object, path: str) -> list[str]:
        if isinstance(tree, dict):
            return [leaf for key, value in tree.items() for leaf in leaves(value, f"{path}.{key}".lstrip("."))]
        return [path] if not path.endswith(".kind") else []

    resolved = build(Experiment, MINIMAL, origin="tests").model_dump()
    resolved["data"]["sources"] = {"0": resolved["data"]["sources"][0]}
    assert set(leaves(resolved, "")) <= told


def test_training_guide_tells_every_augmentation() -> None:
    table = prose("training").split("## Augmentation")[1].split("\n## ")[0]
    told = re.findall(r"^\| `(\w+)`", table, re.MULTILINE)
    assert set(told) == set(AugmentationConfig.model_fields)


def test_judging_guide_defines_every_figure() -> None:
    told = set(re.findall(r"^\| `(\w+)`", prose("judging"), re.MULTILINE))
    assert told == {*_SINGLE, *_MULTI, *HIERARCHICAL, *ANSWERED, AURC}


@pytest.mark.parametrize("page", PAGES)
def test_every_option_that_a_guide_names_exists(page: str) -> None:
    from consilium.cli import app

    def options(command: object) -> set[str]:
        parameters = command.params  # type: ignore[attr-defined]
        own = {name for parameter in parameters for name in (*parameter.opts, *parameter.secondary_opts)}
        return own.union(*map(options, getattr(command, "commands", {}).values()))

    known = options(typer.main.get_command(app))
    commands = [line for block in blocks(page) for line in block.text.splitlines() if line.startswith("consilium ")]
    named = [*re.findall(r"`(--[a-z-]+)`", prose(page)), *re.findall(r" (--[a-z-]+)", "\n".join(commands))]
    assert [name for name in named if name not in known] == []


def test_every_page_is_in_the_table_of_contents() -> None:
    toctrees = [block.text for block in blocks("index") if "toctree" in block.language]
    listed = {line for text in toctrees for line in text.splitlines() if line and not line.startswith(":")}
    assert listed - {"_generated/keys"} == set(PAGES) - {"index"}
