"""Sphinx settings of the guides: `make docs`."""

from __future__ import annotations

from importlib.metadata import version as version_of

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
