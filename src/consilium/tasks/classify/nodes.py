"""The nodes of a label tree that have a network in a cascade; no torch."""

from __future__ import annotations

from collections.abc import Mapping

from consilium.core.errors import DataError
from consilium.core.files import folder_name
from consilium.core.labels import LabelTree, Siblings
from consilium.data.config import ImageConfig

OWN = {"mean", "std", "statistics"}  # of an image config: what each network has for itself


def choices(labels: LabelTree) -> dict[str, Siblings]:
    """The siblings that a network tells apart, by the name of the node above them, from the root down."""
    return {labels.name_of(group.parent): group for group in labels.choices}


def node_folder(node: str) -> str:
    """Where in the folder of a cascade the bundle of a node's network is."""
    return f"nodes/{folder_name(node)}"


def growing(labels: LabelTree, *, known: int) -> list[int]:
    """The nodes that learn when those from number ``known`` on are new: they, and the nodes above them."""
    return [node for node in range(len(labels)) if labels.ancestry_MM[known:, node].any()]


def common_image(images: Mapping[str, ImageConfig]) -> ImageConfig:
    """The image config of a cascade: its networks' own, with values left in [0, 1]; a DataError where they differ."""
    shown = {name: image.model_dump_json(exclude=OWN) for name, image in images.items()}
    first = next(iter(images))
    for name, own in shown.items():
        if own != shown[first]:
            raise DataError(f"the networks of '{first}' and '{name}' take different images: {shown[first]} and {own}.")
    same = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0), "statistics": "given"}
    return images[first].model_copy(update=same)
