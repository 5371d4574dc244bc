"""The images of several networks that answer as one; no torch."""

from __future__ import annotations

from collections.abc import Mapping

from consilium.core.errors import DataError
from consilium.data.config import ImageConfig

OWN = {"mean", "std", "statistics"}  # of an image config: what each network has for itself


def common_image(images: Mapping[str, ImageConfig]) -> ImageConfig:
    """The image config of networks together: their own, with values left in [0, 1]; a DataError where they differ."""
    shown = {name: image.model_dump_json(exclude=OWN) for name, image in images.items()}
    first = next(iter(images))
    for name, own in shown.items():
        if own != shown[first]:
            raise DataError(f"the networks of '{first}' and '{name}' take different images: {shown[first]} and {own}.")
    same = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0), "statistics": "given"}
    return images[first].model_copy(update=same)
