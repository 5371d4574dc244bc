"""What a training and an evaluation say of their data before they begin."""

from __future__ import annotations

from pathlib import Path

import pytest

from consilium.core.reporter import Silent
from consilium.data.store.prepare import prepare
from tests.data.samples import data_config, write_images
from tests.labelled import load_labelled


class Lines(Silent):
    """A reporter that keeps its lines."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def line(self, text: str) -> None:
        self.lines.append(text)


@pytest.mark.parametrize("training", [True, False])
def test_what_was_left_aside_is_said_and_noted(tmp_path: Path, training: bool) -> None:
    """By notes of the cases, which the report repeats."""
    write_images(tmp_path / "d", [f"{label}/{n}.png" for label in "ab" for n in range(6)])
    (tmp_path / "d/a/notes.txt").write_text("x")
    (tmp_path / "d/c").mkdir()
    source = {"kind": "folder", "name": "s", "path": str(tmp_path / "d")}
    config = data_config(tmp_path, source)
    prepare(config)
    (tmp_path / "d/a/more.txt").write_text("x")  # the store stays, what is said does not
    reporter = Lines()
    loaded = load_labelled(config, splits=("train",), training=training, reporter=reporter)
    expected = "s: skipped 2 x .txt file, 1 x label folder without an image (c)"
    assert expected in loaded.cases.notes
    assert f"note: {expected}" in reporter.lines


def test_a_training_hears_of_patients_and_masks(tmp_path: Path) -> None:
    names = [f"{label}/p{p}/{n}{end}.png" for label in "ab" for p in range(2) for n in range(9) for end in ("", "_seg")]
    write_images(tmp_path / "d", names)
    source = {"kind": "folder", "name": "s", "path": str(tmp_path / "d")}
    config = data_config(tmp_path, source, split={"val": 0.3, "test": 0.3})
    notes = load_labelled(config, splits=("train",), training=True, reporter=Silent()).cases.notes
    assert any(note.startswith("patient: ") and "group_by: folder" in note for note in notes)
    assert any(note.startswith("mask: ") and "exclude: ['*_seg.*']" in note for note in notes)
