"""Make each notebook of ``notebooks/`` from the Markdown beside it, the same every time: ``make notebooks``."""

from __future__ import annotations

from pathlib import Path

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
METADATA = {
    "accelerator": "GPU",
    "colab": {"provenance": []},
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def made_of(source: Path) -> str:
    """The notebook of a Markdown file; ``python`` and ``bash`` blocks are its cells of code."""
    import jupytext
    import nbformat

    notebook = jupytext.reads(source.read_text(encoding="utf-8"), fmt="md")
    notebook.metadata = nbformat.from_dict(METADATA)
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{number}"  # they are random otherwise
    return nbformat.writes(notebook) + "\n"


if __name__ == "__main__":
    for source in sorted(NOTEBOOKS.glob("*.md")):
        source.with_suffix(".ipynb").write_text(made_of(source), encoding="utf-8")
        print(source.with_suffix(".ipynb"))
