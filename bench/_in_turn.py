"""Two sides of a comparison, measured in turn, each time in a process of its own."""

from __future__ import annotations

import statistics
import subprocess
import sys
from collections.abc import Sequence

FIGURES = (("memory", "MB"), ("time", "s"))  # what a side prints, in this order


def in_turn(command: Sequence[str], *, rounds: int) -> None:
    """Print medians of memory and time and their ratios; ``--side plain`` and ``--side ours`` are added to the command.

    Each prints its megabytes and its seconds.
    """
    found = []
    for _ in range(rounds):
        sides = [
            subprocess.run(
                [sys.executable, *command, "--side", side], capture_output=True, text=True, check=True
            ).stdout
            for side in ("plain", "ours")
        ]
        found.append([[float(value) for value in side.split()] for side in sides])
    for number, (name, unit) in enumerate(FIGURES):
        values = [[side[number] for side in sides] for sides in found]
        plain, ours = (statistics.median(column) for column in zip(*values, strict=True))
        ratios = [our / theirs for theirs, our in values]
        print(
            f"  {name}: plain {plain:.2f} {unit}, ours {ours:.2f} {unit}, ratio {statistics.median(ratios):.3f} "
            f"(rounds {min(ratios):.3f} to {max(ratios):.3f})"
        )
