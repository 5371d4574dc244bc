"""Which tensors of a weights file belong to a tower: a file may hold a whole training."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile

from torch import Tensor

from consilium.core.reporter import format_table, some

_AVERAGED = re.compile(r"(^|[._])(ema|teacher)([._]|$)")  # of a training's copies the one that is meant for use
_NUMBER = re.compile(r"\.\d+\.")
_SHOWN = 5


@dataclass(frozen=True)
class Part:
    """The tensors below a ``prefix``, by the tower's own names, and what is not used of the file.

    ``others`` are prefixes below which the tower is found as well.
    """

    prefix: str
    state: dict[str, Tensor]
    left_out: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)

    def said(self) -> str:
        """What was chosen, where there was a choice."""
        lines = [f"the weights below `{self.prefix}` are used"] if self.prefix else []
        if self.others:
            lines.append(
                f"those below {some([f'`{other}`' for other in self.others], _SHOWN)} fit, too, but are not used"
            )
        if self.left_out:
            lines.append(f"left out, as not the tower's: {some(self.left_out, _SHOWN)}")
        return "; ".join(lines)


def tower_part(tensors: Mapping[str, Tensor], own: Mapping[str, Tensor], *, classifiers: Sequence[str]) -> Part | None:
    """The tensors whose names, below a prefix, are the tower's ``own``; None where most of these are not found.

    Of several prefixes that one is taken where most tensors are found and fewest others lie beside them; among equals
    the exponential moving average or teacher, then the first. The layers ``classifiers`` are left out.
    """
    found: Counter[str] = Counter()
    for name, tensor in tensors.items():
        for start in (0, *(dot.end() for dot in re.finditer(r"\.", name))):
            if (mine := own.get(name[start:])) is not None:
                found[name[:start]] += 1 + (mine.shape == tensor.shape)
    parts = {prefix: without(classifiers, _below(prefix, tensors)) for prefix in found}
    order = {
        prefix: (count, -len(parts[prefix].keys() - own.keys()), _AVERAGED.search(prefix) is not None)
        for prefix, count in found.items()
    }
    prefix = max(order, key=order.__getitem__, default="")
    if found[prefix] < len(own):  # half of them, or all with other shapes
        return None
    others = [other for other in order if other != prefix and order[other][:2] == order[prefix][:2]]
    used = {f"{prefix}{name}" for name in parts[prefix]}
    left_out = [name for name in tensors if name not in used and not name.startswith(tuple(others))]
    return Part(prefix, parts[prefix], left_out, others)


def fit_table(held: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> str:
    """Which of a model's ``own`` tensors a file holds, by their names there, as the end of an error."""
    there = [name for name in own if name in held]
    kinds = {
        "fits": [name for name in there if held[name].shape == own[name].shape],
        "of another shape": [
            f"{name} is {list(held[name].shape)}, the model's {list(own[name].shape)}"
            for name in there
            if held[name].shape != own[name].shape
        ],
        "missing": [name for name in own if name not in held],
        "not of the model": [name for name in held if name not in own],
    }
    rows = [{"tensors": what, "number": len(names), "such as": some(names, 2)} for what, names in kinds.items()]
    return f"\n{format_table(rows)}"


def further_layers(names: Collection[str], own: Collection[str]) -> list[str]:
    """The names that are those of a tower's ``own`` tensors but for the number of a layer, sorted."""
    known = tuple({_NUMBER.sub(".#.", name) for name in own if _NUMBER.search(name)})
    return sorted(name for name in names if _NUMBER.sub(".#.", name).endswith(known))


def first_names(names: Collection[str]) -> str:
    """What a file holds, in a few words: the prefix that all names share, and how many have which part after it."""
    levels = zip(*(name.split(".")[:-1] for name in names), strict=False)  # as deep as the shortest name
    shared = [level[0] for level in takewhile(lambda level: len(set(level)) == 1, levels)]
    first = Counter(name.split(".")[len(shared)] for name in names)
    counts = some([f"{part} ({count})" for part, count in first.most_common()], _SHOWN)
    return f"all below `{'.'.join(shared)}.`: {counts}" if shared else counts


def without(layers: Sequence[str], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors that belong to none of these layers."""
    heads = tuple(f"{layer}." for layer in layers)
    return {name: tensor for name, tensor in tensors.items() if not name.startswith(heads)}


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
