"""Every parameter that users of older scripts know has a place here, and the place exists."""

from __future__ import annotations

import re
import sys

import pytest
import typer.main

from tests.docs.guides import DOCS, prose

sys.path.insert(0, str(DOCS))
import key_reference

# What the older scripts call the parameters of their data.
DATA = {
    "CLIP expert and router scripts": (
        "data_dir", "data_url", "image_column", "caption_column", "max_samples_per_class", "cache_dir",
        "model_revision", "token", "trust_remote_code", "config name", "weight", "max_train_samples",
        "max_eval_samples", "overwrite_cache", "preprocessing_num_workers", "remove_unused_columns",
        "dataset_folders", "path_datasets", "path_to_dataset_repo", "fast transfer", "dataloader_drop_last",
    ),
    "Image + text workflow": (
        "use_local", "dataset", "metadata_path", "img_prefix", "min_samples_per_label", "datasets",
        "derm1m_sources", "has_text", "data_fraction", "test_size", "val_size", "seed", "batch_size", "num_workers",
        "prefetch_factor", "compute_stats", "weighted_sampling", "img_size", "brightness_jitter", "contrast_jitter",
        "saturation_jitter", "hue_jitter", "rotation_degrees", "scale", "horizontal_flip_prob", "vertical_flip_prob",
        "translate", "grayscale_prob",
    ),
    "Image modality classifier": (
        "img_path", "split_set", "label", "is_gt", "base_img_dir", "pseudo", "no-pseudo", "mean", "std",
        "num_workers", "batch_size", "classifier", "taxonomy", "model", "workspace", "lr", "project", "epochs",
        "patience", "pretrained", "gpus", "precision", "strategy",
    ),
    "Two-eye CLIP (RET-CLIP): the data": (
        "HF_TOKEN", "delay", "resume", "checkpoint interval", "image size", "csv_path", "dataset_index", "prompt",
        "train data", "val data", "workers",
    ),
}  # fmt: skip
NO_KEY = re.compile(r"no key: \S|the environment variable [A-Z_]+\b|`consilium \w+`")


def rows(section: str) -> list[tuple[str, str]]:
    text = prose("parameters").split(f"## {section}\n")[1].split("\n## ")[0]
    cells = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")
    ]
    assert all(len(row) == 2 for row in cells), section
    return [(theirs, ours) for theirs, ours in cells[2:]]


SECTIONS = re.findall(r"^## (.+)$", prose("parameters"), re.MULTILINE)


@pytest.mark.parametrize("section", SECTIONS)
def test_every_row_resolves(section: str) -> None:
    from consilium.cli import app

    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    for theirs, ours in rows(section):
        named = re.findall(r"`([^`]+)`", ours)
        keys = [text.partition("=")[0] for text in named if re.fullmatch(r"[a-z_]+(\.[a-z0-9_]+)*(=\S+)?", text)]
        keys = [key for key in keys if "." in key or key in ("name", "seed")]
        assert [key for key in keys if not key_reference.resolves(key)] == [], theirs
        assert keys or NO_KEY.search(ours), f"{theirs}: a key, a command, or why there is none"
        for command in re.findall(r"`consilium (\w+)", ours):
            assert command in commands, theirs


@pytest.mark.parametrize("section", DATA)
def test_every_parameter_of_the_data_has_a_row(section: str) -> None:
    theirs = " | ".join(row[0] for row in rows(section))
    assert [name for name in DATA[section] if not re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", theirs)] == []


def test_values_in_rows_are_values_of_their_keys() -> None:
    """``kind=hub`` is only right where hub is a kind."""
    from consilium.core.config import apply_overrides, build
    from consilium.experiment import Experiment

    base = {
        "name": "rows",
        "task": {"kind": "classify", "loss": {"kind": "cross_entropy"}},
        "data": {"sources": [{"kind": "folder", "name": "a", "path": "a"}]},
    }
    needed = {"hub": {}, "ret_clip_csv": {"images": {"path": "owner/name"}}}
    for section in SECTIONS:
        for _, ours in rows(section):
            for key, value in re.findall(r"`([a-z_0-9.]+)=([^`]+)`", ours):
                if key == "data.sources.0.kind":
                    source = {"kind": value, "name": "a", "path": "a", **needed.get(value, {})}
                    build(Experiment, {**base, "data": {"sources": [source]}}, origin=ours)
                else:
                    fused = re.match(r"task\.(image_projection|text_projection|fusion|masking|auxiliary)\.", key)
                    kind = "fuse" if fused else "align" if key.startswith("task.text.") else None
                    tree = base if kind is None else {**base, "task": {"kind": kind}}
                    build(Experiment, apply_overrides(tree, [f"{key}={value}"]), origin=ours)
