"""Loading any bundle: one of a trained task, or a council."""

from __future__ import annotations

from pathlib import Path

import torch

from consilium.core.errors import ConfigError
from consilium.council.answering import Council
from consilium.manifest import CouncilManifest, local_bundle, read_header
from consilium.predictor import Predictor


def load(
    bundle: str | Path,
    *,
    device: str | torch.device = "auto",
    batch_size: int = 32,
    resident: int | None = None,
) -> Predictor | Council:
    """Load a bundle or a council: ``consilium.load("runs/router/...").predict(["a.png"])``.

    ``resident``: how many experts of a council stay in memory at most; None: all that were asked.
    """
    folder = local_bundle(bundle)
    if isinstance(read_header(folder), CouncilManifest):
        return Council.load(folder, device=device, batch_size=batch_size, resident=resident)
    if resident is not None:
        raise ConfigError(f"resident is {resident}, but {bundle} is no council: it has no experts; leave it out.")
    return Predictor.load(folder, device=device, batch_size=batch_size)
