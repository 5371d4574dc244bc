"""From the answer of a router to the experts that are asked."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from consilium.core.answers import DEFAULT
from consilium.core.labels import LabelTree


@dataclass(frozen=True)
class Chosen:
    """An expert, by the node where it sits, and its weight: the probability of the router that the case is its own.

    The weight is None where the router is not sure enough, or where no expert sits at what it answered.
    """

    expert: str
    weight: float | None


@dataclass(frozen=True)
class Routing:
    """Where experts sit in the tree of a router, and whether a default answers the other cases."""

    tree: LabelTree
    experts: Collection[str]
    default: bool
    top_k: int

    def choose(self, route: Mapping[str, Any]) -> list[Chosen]:
        """The experts for a record of the router, the one on the answered path first; at most ``top_k``.

        Of several on that path it is the deepest. The weight of an expert is the probability of its node without those
        below it where another chosen expert sits. Further experts are the likeliest by the probability that is theirs
        alone. Where no expert sits on the path, and where there is no answer, it is the default, or none.
        """
        label = route.get("label")
        first = None if label not in self.tree.names else self.seat_of(label)
        if first is None:
            return [Chosen(DEFAULT, None)] if self.default else []
        probabilities = route["probabilities"]
        own = {name: self._alone(name, self.experts, probabilities) for name in self.experts if name != first}
        others = sorted((name for name in own if own[name] > 0), key=lambda name: -own[name])[: self.top_k - 1]
        chosen = [first, *others]
        return [Chosen(name, self._alone(name, chosen, probabilities)) for name in chosen]

    def seat_of(self, label: str) -> str | None:
        """The deepest node on the path of a label where an expert sits; None: at none of them."""
        return next((name for name in reversed(self._path(label)) if name in self.experts), None)

    def uncovered(self) -> list[str]:
        """The leaves that no expert sits at or above."""
        return [leaf for leaf in self.tree.leaves if self.seat_of(leaf) is None]

    def _path(self, label: str) -> list[str]:
        return [self.tree.names[node] for node in self.tree.path(self.tree.index(label))]

    def _alone(self, name: str, experts: Collection[str], probabilities: Mapping[str, float]) -> float:
        """The probability of a node, without the nearest ones below it where another of ``experts`` sits."""
        below = [other for other in experts if other != name and name in self._path(other)]
        nearest = [other for other in below if not any(between in below for between in self._path(other)[:-1])]
        return max(0.0, probabilities[name] - sum(probabilities[other] for other in nearest))
