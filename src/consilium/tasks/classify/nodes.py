"""The nodes of a label tree that have a network in a cascade; no torch."""

from __future__ import annotations

from consilium.core.files import folder_name
from consilium.core.labels import LabelTree, Siblings


def choices(labels: LabelTree) -> dict[str, Siblings]:
    """The siblings that a network tells apart, by the name of the node above them, from the root down."""
    return {labels.name_of(group.parent): group for group in labels.choices}


def node_folder(node: str) -> str:
    """Where in the folder of a cascade the bundle of a node's network is."""
    return f"nodes/{folder_name(node)}"


def growing(labels: LabelTree, *, known: int) -> list[int]:
    """The nodes that learn when those from number ``known`` on are new: they, and the nodes above them."""
    return [node for node in range(len(labels)) if labels.ancestry_MM[known:, node].any()]
