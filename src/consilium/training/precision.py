"""Which precision ``auto`` is: by the device and the kind of model alone, so that a config and a seed repeat."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

CPU_FLAGS = Path("/proc/cpuinfo")
FAST_ON_CPU = frozenset({"amx_bf16", "avx512_bf16"})  # what computes bf16 itself; without, it is slower than fp32
AMPERE = (8, 0)


def auto_precision(device: torch.device, model: nn.Module) -> str:
    """``bf16`` where autocast to it is faster, else ``fp32``.

    On CUDA that is from Ampere on; on a CPU with instructions for bf16, by a factor of 1.3 to 2.2 for convolutions and
    transformers, but not for depthwise convolutions, which take twice as long.
    """
    if device.type == "cuda":
        fast = torch.cuda.get_device_capability(device) >= AMPERE
    else:
        fast = device.type == "cpu" and _cpu_computes_bf16() and not _has_depthwise(model)
    return "bf16" if fast else "fp32"


def _cpu_computes_bf16() -> bool:
    try:
        lines = CPU_FLAGS.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):  # not Linux
        return False
    flags = next((line for line in lines if line.startswith("flags")), "")
    return not FAST_ON_CPU.isdisjoint(flags.split())


def _has_depthwise(model: nn.Module) -> bool:
    return any(isinstance(part, nn.Conv2d) and part.groups == part.in_channels > 1 for part in model.modules())
