"""Bundles that earlier versions wrote (``tests/bundles``) answer as they did then."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import consilium
from consilium.core.errors import BundleError
from consilium.manifest import FORMAT_VERSION, local_bundle, read_manifest

BUNDLES = Path(__file__).parent / "bundles"
EXPECTED: dict[str, list[dict[str, Any]]] = json.loads((BUNDLES / "expected.json").read_text(encoding="utf-8"))


def pictures() -> list[bytes]:
    random = np.random.default_rng(11)
    found = []
    for number in range(6):
        pixels_HWC = random.integers(0, 256, (40, 36, 3)).astype(np.uint8)
        pixels_HWC[..., number % 3] //= 3
        file = io.BytesIO()
        Image.fromarray(pixels_HWC).save(file, "PNG")
        found.append(file.getvalue())
    return found


def numbers(record: Any) -> Any:
    """A record without its probabilities, and these alone."""
    probabilities = record["probabilities"]
    return {name: value for name, value in record.items() if name in ("label", "labels", "error")}, probabilities


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_it_answers_as_it_did(name: str) -> None:
    found = consilium.load(BUNDLES / f"{name}.zip", device="cpu").predict(pictures())
    for record, expected in zip(found, EXPECTED[name], strict=True):
        (said, probabilities), (said_then, probabilities_then) = numbers(record), numbers(expected)
        assert said == said_then
        # Kernels of another processor may add in another order.
        assert probabilities == pytest.approx(probabilities_then, abs=2e-6)


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_its_manifest_is_read_as_one_of_today(name: str) -> None:
    folder = local_bundle(BUNDLES / f"{name}.zip")
    written = json.loads((folder / "bundle.json").read_text(encoding="utf-8"))
    manifest = read_manifest(folder)
    assert manifest.format_version == FORMAT_VERSION
    assert manifest.knowledge["labels"] == written["labels"]
    assert manifest.knowledge["training_cases"] == written["training_cases"]
    assert manifest.task.answers.threshold == written["threshold"]
    assert (manifest.name, manifest.metrics) == (written["name"], written["metrics"])
    assert len(manifest.members) == len(written.get("nodes", {}))
    assert bool(manifest.files) != bool(manifest.members)


def test_a_kind_of_task_that_this_version_does_not_know_is_named(tmp_path: Path) -> None:
    """A later version may have written it."""
    tree = {"format_version": FORMAT_VERSION, "task": {"kind": "dream"}}
    (tmp_path / "bundle.json").write_text(json.dumps(tree), encoding="utf-8")
    with pytest.raises(BundleError, match=r"a task of kind 'dream', which this version .*it knows .*Update Consilium"):
        consilium.load(tmp_path)
