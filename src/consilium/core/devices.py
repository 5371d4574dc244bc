"""Which device a task runs on."""

from __future__ import annotations

import torch

from consilium.core.errors import ConfigError


def choose_device(name: str | torch.device) -> torch.device:
    """The torch device of ``auto`` (cuda, mps, cpu, the first there is) or of its name (cuda:1: the second one)."""
    name = str(name)
    there = [f"cuda:{number}" for number in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    there += ["mps"] if torch.backends.mps.is_available() else []
    there += ["cpu"]
    if name == "auto":
        return torch.device(there[0].partition(":")[0])
    if name not in there and f"{name}:0" not in there:
        raise ConfigError(f"the device is '{name}', but this machine has {', '.join(there)}; choose one, or auto.")
    return torch.device(name)
