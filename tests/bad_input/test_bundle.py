"""Bundles that cannot be trusted: each is refused with what is wrong, and older predictions and reports stay."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

import consilium.predictions
from tests.bad_input.conftest import assert_refused, nothing_lost
from tests.cli.conftest import Cli
from tests.tiny import Run


@pytest.fixture
def bundle(tiny_run: Run, tmp_path: Path) -> Path:
    """A copy of the shared bundle that a test may damage."""
    return Path(shutil.copytree(tiny_run.folder, tmp_path / "bundle"))


@pytest.fixture
def older(cli: Cli, tiny_run: Run, tiny_images: Path, tmp_path: Path) -> Path:
    """A folder with the predictions and the report of an earlier day."""
    out = tmp_path / "older"
    assert cli("predict", tiny_run.folder, tiny_images / "test", "--out", out / "predictions.jsonl").code == 0
    assert cli("evaluate", tiny_run.folder, "--out", out / "report").code == 0
    return out


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def change(**keys: Any) -> Callable[[Path], None]:
    """Changes the manifest."""

    def act(bundle: Path) -> None:
        path = bundle / "bundle.json"
        path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **keys}), encoding="utf-8")

    return act


def knows(**keys: Any) -> Callable[[Path], None]:
    """Changes what the family knows."""

    def act(bundle: Path) -> None:
        known = json.loads((bundle / "bundle.json").read_text(encoding="utf-8"))["knowledge"]
        change(knowledge={**known, **keys})(bundle)

    return act


def write(text: str) -> Callable[[Path], None]:
    return lambda bundle: (bundle / "bundle.json").write_text(text, encoding="utf-8") and None


def other_weights(bundle: Path) -> None:
    """Whole weights of another model, with their true checksum."""
    import hashlib

    path = bundle / "model.safetensors"
    state = load_file(path)
    del state["head.1.bias"]
    save_file(state, path)
    change(files={path.name: hashlib.sha256(path.read_bytes()).hexdigest()})(bundle)


DAMAGE: dict[str, tuple[Callable[[Path], None], list[str]]] = {
    "flipped byte": (lambda b: flip(b / "model.safetensors"), ["its checksum differs", "Copy the bundle again"]),
    "truncated weights": (lambda b: cut(b / "model.safetensors"), ["its checksum differs", "Copy the bundle again"]),
    "no weights": (lambda b: (b / "model.safetensors").unlink(), ["model.safetensors is missing", "Copy it again"]),
    "other weights": (other_weights, ["cannot be loaded", "missing                1  head.1.bias"]),
    "no manifest": (lambda b: (b / "bundle.json").unlink(), ["has no bundle.json, so it is not a finished run"]),
    "empty manifest": (write(""), ["bundle.json is damaged", "Copy the bundle again"]),
    "bad JSON": (write('{"name": "a", '), ["bundle.json is damaged: Expecting", "Copy the bundle again"]),
    "deep JSON": (write('{"a": ' * 100_000), ["bundle.json is damaged: maximum recursion depth"]),
    "a list": (write("[]"), ["bundle.json is damaged: the whole"]),
    "not text": (lambda b: (b / "bundle.json").write_bytes(b"\xff\xfe") and None, ["bundle.json is damaged"]),
    "missing key": (write('{"format_version": 1}'), ["bundle.json is damaged: consilium_version: Field required"]),
    "wrong value": (change(seed="high"), ["bundle.json is damaged: seed"]),
    "newer": (
        change(format_version=99, consilium_version="9.1.0", flavour="new"),
        ["was written by Consilium 9.1.0 in bundle format 99", "reads up to 3. Update Consilium"],
    ),
    "labels": (knows(labels=["ct", "mri"]), ["cannot be loaded"]),
    "one label twice": (knows(labels=["ct", "ct", "xray"]), ["cannot be loaded"]),
    "tower": (
        change(task={"vision": {"name": "resnet1"}}),
        ["cannot be loaded: task.vision.name 'resnet1' is not a timm"],
    ),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_bundle(cli: Cli, bundle: Path, older: Path, tiny_images: Path, kind: str) -> None:
    damage, told = DAMAGE[kind]
    damage(bundle)
    with nothing_lost(older):
        images = tiny_images / "test"
        assert_refused(cli("predict", bundle, images, "--out", older / "predictions.jsonl"), str(bundle), *told)
        assert_refused(cli("evaluate", bundle, "--out", older / "report"), str(bundle), *told)


def test_a_folder_that_is_not_there(cli: Cli, tmp_path: Path) -> None:
    for command in ("predict", "evaluate"):
        arguments = ["a.jpg"] if command == "predict" else []
        assert_refused(cli(command, tmp_path / "none", *arguments), f"{tmp_path / 'none'} does not exist")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, ["cannot be judged", "config.yaml does not exist"]),
        ("data: [", ["cannot be judged", "is not valid YAML"]),
        ("task: {}\n", ["is damaged: it has no `data` section"]),
        ("task: 3\ndata: {}\n", ["is damaged: it has no `task` section"]),
        ("task: {}\ndata: {sources: []}\n", ["`sources` is []; expected 1 or more items"]),
    ],
    ids=["missing", "yaml", "data", "task", "value"],
)
def test_a_bundle_without_its_config_still_predicts(
    cli: Cli, bundle: Path, tiny_images: Path, content: str | None, told: list[str]
) -> None:
    path = bundle / "config.yaml"
    if content is None:
        path.unlink()
    else:
        path.write_text(content, encoding="utf-8")
    assert_refused(cli("evaluate", bundle), *told)
    assert cli("predict", bundle, tiny_images / "test" / "ct" / "000.jpg").code == 0


def test_nothing_to_predict(cli: Cli, tiny_run: Run, tiny_images: Path, tmp_path: Path) -> None:
    refused = cli("predict", tiny_run.folder, tmp_path)
    assert_refused(refused, f"no image under {tmp_path}: the folder is empty. Expected")
    assert_refused(cli("predict", tiny_run.folder, tmp_path / "*.jpg"), f"{tmp_path / '*.jpg'}")
    answer = cli("predict", tiny_run.folder, tiny_images, "--out", tmp_path / "p.txt")
    assert_refused(answer, "p.txt; expected a name that ends in .jsonl, .csv, .npz, .parquet or .pt")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
def test_predictions_stop_half_way(
    cli: Cli, tiny_run: Run, tiny_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    out = tmp_path / "out" / f"predictions.{suffix}"
    assert cli("predict", tiny_run.folder, tiny_images / "test" / "ct", "--out", out).code == 0
    for error, code in ((OSError(errno.ENOSPC, "No space left on device"), 2), (KeyboardInterrupt(), 130)):
        records = iter(range(3))

        def stops(*_: object, records: Any = records, error: BaseException = error) -> None:
            if next(records) == 2:
                raise error

        with monkeypatch.context() as patch, nothing_lost(out.parent):
            for writer in (consilium.predictions._JsonLines, consilium.predictions._Csv):
                patch.setattr(writer, "write", stops)
            answer = cli("predict", tiny_run.folder, tiny_images / "test", "--out", out)
            assert answer.code == code
            assert "Traceback" not in answer.err
            assert ("No space left on device" if code == 2 else "interrupted") in answer.err
