"""Small bundles of every family, trained once, and councils of them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from consilium.council import build_council
from consilium.session import train
from tests.cli.conftest import cli
from tests.session.tables import coloured_rows, write_table
from tests.tasks.test_align_contract import train_pairs
from tests.tasks.test_align_views_trained import experiment_of as eyes_of
from tests.tasks.test_fuse_metadata import experiment_with as fused_of
from tests.tiny import Recorder, train_tiny

__all__ = ["cli"]

LABELS = ["fundus", "skin", "xray.chest", "xray.hand"]
CHEST = ["xray.chest.normal", "xray.chest.pneumonia"]
SIZE = ["data.image.size=[32,32]", "trainer.max_epochs=1"]

Bundles = dict[str, Path]


def classifier(folder: Path, labels: list[str], *overrides: str) -> Path:
    """A classifier of coloured images of these labels, its images beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = coloured_rows(folder, labels, {"train": 6, "val": 3, "test": 4})
    own = ["optimizer.learning_rate=0.01", "trainer.max_epochs=4", "trainer.max_steps=null"]
    return train_tiny(
        folder, folder / "runs", write_table(folder, rows), f"name={folder.name}", *own, *overrides
    ).folder


@pytest.fixture(scope="session")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Bundles:
    """A router over a tree, one that is always sure, and experts; no test changes them."""
    home = tmp_path_factory.mktemp("bundles")
    eyes = train(eyes_of(home / "eyes", *SIZE), reporter=Recorder())
    fused = train(fused_of(home / "fused", *SIZE), reporter=Recorder())
    assert eyes is not None
    assert fused is not None
    router = classifier(home / "router", LABELS, "task.tree.head=joint", "trainer.max_epochs=20")
    return {
        "sure": router,
        "router": with_thresholds(router, home / "thresholds", [0.6, 0.6]),
        "flat": classifier(home / "flat", LABELS, "trainer.max_epochs=1"),
        "chest": classifier(home / "chest", CHEST),
        "hand": classifier(home / "hand", ["xray.hand.fracture", "xray.hand.normal"]),
        "general": classifier(home / "general", [*CHEST, "other"]),
        "findings": classifier(home / "findings", ["effusion", "mass"], "task.multi_label=true"),
        "fundus": train_pairs(home / "fundus", *SIZE).folder,
        "eyes": eyes.bundle,
        "skin": fused.bundle,
    }


def with_thresholds(bundle: Path, target: Path, thresholds: list[float | None]) -> Path:
    """A copy of a bundle that answers from these probabilities on."""

    def change(tree: dict[str, Any]) -> None:
        tree["knowledge"]["calibration"]["thresholds"] = thresholds

    return changed(bundle, target, change)


def changed(bundle: Path, target: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """A copy of a bundle with another manifest."""
    shutil.copytree(bundle, target, ignore=shutil.ignore_patterns("checkpoints", "report*", "tables", "tensorboard"))
    tree = json.loads((target / "bundle.json").read_text(encoding="utf-8"))
    change(tree)
    (target / "bundle.json").write_text(json.dumps(tree), encoding="utf-8")
    return target


@pytest.fixture(scope="session")
def images(bundles: Bundles) -> list[str]:
    """Test images of every node of the router, mixed."""
    folder = bundles["sure"].parents[2]
    return [str(folder / f"test-{label}-{number}.png") for number in range(4) for label in LABELS]


@pytest.fixture
def build(bundles: Bundles, tmp_path: Path) -> Callable[..., Path]:
    """``build(experts={"fundus": "fundus"}, generalist="general")``: a council of bundles by their names."""

    def make(router: str = "router", out: str = "council", **options: Any) -> Path:
        named = {name: bundles.get(str(value), value) for name, value in options.items() if name != "experts"}
        experts = {node: bundles.get(str(one), one) for node, one in options.get("experts", {}).items()}
        return build_council(router=bundles[router], **{**named, "experts": experts}, out=tmp_path / out, quiet=True)

    return make
