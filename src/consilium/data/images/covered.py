"""An image with one place after another covered, to see what an answer depends on.

Axes in names: H height, W width, C channel (RGB), P place along a side.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from consilium.data.config import ImageConfig
from consilium.data.images.pillow import lossless
from consilium.data.images.reading import load_view, read_bytes

PLACES = 6  # along each side
LOOKS = 1 + PLACES**2  # at an image: the whole, then every place covered
BLUR = 2  # deviation of the blur, in places


@dataclass(frozen=True)
class Covered:
    """An image [H, W, 3] (uint8) as a model sees it, with what covers it.

    The cover is the image itself, blurred until no detail is left: a patch of one colour would be a shape of its own,
    above all on the black background of a scan.
    """

    image_HWC: np.ndarray

    @classmethod
    def read(cls, file: str | bytes, *, image: ImageConfig) -> Covered:
        """The image of a file at the size that a model sees; one that cannot be read is an ImageError."""
        name = file if isinstance(file, str) else "embedded image"
        return cls(load_view(read_bytes(file), name=name, image=image, box=None))

    def file(self, look: int = 0) -> bytes:
        """A look at the image as a file: 0 is the whole image, each other one covers a place, from the top left."""
        if look == 0:
            return lossless(self.image_HWC, compressed=False)
        row, column = divmod(look - 1, PLACES)
        height, width = self.image_HWC.shape[:2]
        cover_HW = np.outer(patch(height)[row], patch(width)[column])
        pixels_HWC = self.image_HWC + cover_HW[..., None] * (self._blurred_HWC.astype(float) - self.image_HWC)
        return lossless(np.rint(pixels_HWC).astype(np.uint8), compressed=False)

    @cached_property
    def _blurred_HWC(self) -> np.ndarray:
        from PIL import Image, ImageFilter

        height, width = self.image_HWC.shape[:2]
        radius = (BLUR * width / PLACES, BLUR * height / PLACES)
        return np.asarray(Image.fromarray(self.image_HWC).filter(ImageFilter.GaussianBlur(radius)))


def patch(size: int) -> np.ndarray:
    """How much each place covers along a side of ``size`` pixels, [P, size]: its cell wholly, fading out beside it."""
    distance = np.abs((np.arange(size) + 0.5) / size * PLACES - 0.5 - np.arange(PLACES)[:, None])
    return np.asarray(np.clip(2 - 2 * distance, 0, 1))
