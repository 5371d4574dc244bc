"""Sphinx settings of the guides: `make docs`."""

from __future__ import annotations

import sys
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Any

project = "Consilium"
author = "The Consilium authors"
copyright = author
release = version = version_of("consilium")

extensions = ["myst_parser"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
exclude_patterns = ["_build"]

html_theme = "furo"
html_title = f"Consilium {version}"
html_show_sphinx = False
html_copy_source = False


def setup(app: Any) -> None:
    """Write the reference of all keys from the program, before the pages are read."""
    here = Path(__file__).parent
    sys.path.insert(0, str(here))
    import key_reference

    key_reference.write(here / "_generated" / "keys.md")
