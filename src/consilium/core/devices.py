"""Which device a task runs on, and how much memory is free there."""

from __future__ import annotations

import os
from pathlib import Path

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


def free_memory(device: torch.device) -> int:
    """The bytes that this process can still have on a device, as far as can be told."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    available = _numbers(Path("/proc/meminfo")).get("MemAvailable:")
    if available is None:  # not Linux
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    return min(1024 * available, _left_by_limits())


def _left_by_limits(groups: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> int:
    """What the limits of this process's control groups (of a container, or a job of a cluster) leave of memory."""
    left = [2**63]
    try:
        name = own.read_text(encoding="utf-8").strip().rpartition("0::/")[2]
        for group in (groups / name, *(groups / name).parents):
            if group.is_relative_to(groups) and (limit := group / "memory.max").is_file():
                most, used = (limit.read_text().strip(), int((group / "memory.current").read_text()))
                cached = _numbers(group / "memory.stat").get("inactive_file", 0)  # given back when it is wanted
                left += [] if most == "max" else [int(most) - used + cached]
    except (OSError, ValueError):  # no groups of version 2
        pass
    return max(min(left), 0)


def _numbers(file: Path) -> dict[str, int]:
    """The numbers of a file that has a name and a number in every line; none where it cannot be read."""
    try:
        rows = [line.split() for line in file.read_text(encoding="utf-8").splitlines()]
        return {row[0]: int(row[1]) for row in rows if len(row) > 1}
    except (OSError, ValueError):
        return {}
