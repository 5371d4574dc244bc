"""The notebooks run from the first cell to the last, as on a machine where Consilium is installed."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.policy.source import REPOSITORY

NOTEBOOKS = sorted((REPOSITORY / "notebooks").glob("*.ipynb"))


def printed(notebook: Any) -> str:
    """What the cells of a notebook wrote."""
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    return "".join(output.text for output in outputs if output.output_type == "stream" and output.name == "stdout")


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cell that fails stops it; a command that fails makes its cell fail."""
    import nbformat
    from nbclient import NotebookClient

    monkeypatch.setenv("CONSILIUM_INSTALLED", "yes")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("PATH", os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    (folder := tmp_path / "content").mkdir()
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    ).execute()
    assert "image_to_text" in printed(notebook)
    if path.stem == "training_pipeline":
        assert (folder / "retina.lmdb").is_dir()
        assert "'image_embedding': (" in printed(notebook)
    if path.stem == "test_evaluation":
        assert "macro_auroc" in printed(notebook)
        assert "melanoma" in printed(notebook)
