"""The machine that a measurement ran on."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path

import torch


def describe_machine() -> str:
    """Processor, cores, threads, load and torch, in one line."""
    model = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            model = next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return (
        f"{model}, {cores} cores, torch {torch.__version__} with {torch.get_num_threads()} threads, "
        f"load {os.getloadavg()[0]:.2f}"
    )


def peak() -> int:
    """The most memory that this process has had, in bytes."""
    found = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text(encoding="utf-8"))
    assert found is not None
    return 1024 * int(found[1])
