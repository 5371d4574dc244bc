"""Whether two images show the same picture, judged on their details.

Axes in names: B blocks of an image, H height, W width, Y and X shifts.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from consilium.data.config import ImageConfig
from consilium.data.images.reading import load_view, read_bytes

COMPARED = 256
MOST_PIXELS = 4_000_000
SMALLEST = 32
BLOCKS = 8
WINDOW = 64
REACH = 0.03
NOISE = 1.5
TEXTURED = 4
LEAST_SIMILARITY = 0.85
LEAST_IN_FULL = 0.75


def grey_image(
    image: str | Path | bytes, *, name: str, size: tuple[int, int], max_pixels: int, in_full: bool = False
) -> np.ndarray:
    """An image of ``size`` (height, width) in grey, uint8 [H, W], reduced to ``COMPARED`` pixels on its longer side.

    With ``in_full`` it is reduced only where it has more than ``MOST_PIXELS``.
    """
    zoom = min(1.0, math.sqrt(MOST_PIXELS / math.prod(size)) if in_full else COMPARED / max(size))
    height, width = (max(SMALLEST, round(side * zoom)) for side in size)
    config = ImageConfig(size=(height, width), max_pixels=max_pixels)
    pixels_HWC = load_view(read_bytes(image), name=name, image=config, box=None)
    grey_HW: np.ndarray = np.rint(pixels_HWC @ np.array([0.299, 0.587, 0.114], np.float32)).astype(np.uint8)
    return grey_HW


def similarity(one_HW: np.ndarray, other_HW: np.ndarray) -> float:
    """How alike the details of two grey images (uint8) are, from -1 to 1; 0 where there is too little to compare.

    Both are brought to the size of the smaller one, and what changes slowly (brightness, the shape of a body or of a
    field of view, which are alike in all images of a kind) is taken away. Of 8 x 8 blocks of one, each is looked for
    in the other within 3 % of its longer side, which follows a crop, by normalised cross-correlation (Lewis, "Fast
    normalized cross-correlation", 1995). The result is the lower quartile of the blocks: three quarters of the
    picture must agree. Blocks without detail in both images do not count.

    At ``LEAST_SIMILARITY`` two images are near-duplicates if ``similarity_in_full`` agrees;
    ``bench/near_duplicates.py`` measures what that accepts.
    """
    size = min(one_HW.shape, other_HW.shape, key=math.prod)
    slow, window = max(size) // 16, (size[0] // BLOCKS, size[1] // BLOCKS)
    return _lower_quartile(_details(one_HW, size, slow, 1), _details(other_HW, size, slow, 1), window) or 0.0


def similarity_in_full(one_HW: np.ndarray, other_HW: np.ndarray) -> float | None:
    """As ``similarity``, of the finest details of larger images; None where they have too little to compare.

    Only what changes within 33 pixels is kept, less the noise within 5, and of each of the 8 x 8 blocks the middle,
    64 x 64 pixels, is looked for: details that an image of ``COMPARED`` pixels cannot show. Windows so small also fit
    where a crop, brought to the other's size, is a hundredth larger. An image enlarged or blurred much has nothing so
    fine, hence None. Near-duplicates reach ``LEAST_IN_FULL``: less than above, since compression takes fine details.
    """
    size = min(one_HW.shape, other_HW.shape, key=math.prod)
    window = (min(WINDOW, size[0] // BLOCKS), min(WINDOW, size[1] // BLOCKS))
    return _lower_quartile(_details(one_HW, size, 16, 2), _details(other_HW, size, 16, 2), window)


def _lower_quartile(one_HW: np.ndarray, other_HW: np.ndarray, window: tuple[int, int]) -> float | None:
    found_B = _correlations(one_HW, other_HW, window)
    return float(np.percentile(found_B, 25)) if len(found_B) >= TEXTURED else None


def _details(grey_HW: np.ndarray, size: tuple[int, ...], slow: int, noise: int) -> np.ndarray:
    """The image at a size without changes slower than a radius and without the noise within another."""
    import torch
    from torch.nn.functional import interpolate

    image_11HW = torch.from_numpy(grey_HW.astype(np.float32))[None, None]
    pixels_HW = interpolate(image_11HW, size, mode="bilinear", antialias=True, align_corners=False)[0, 0].numpy()
    return _mean_around(pixels_HW - _mean_around(pixels_HW, slow), noise)


def _mean_around(pixels_HW: np.ndarray, radius: int) -> np.ndarray:
    """The mean over a square of 2 x radius + 1 pixels around each pixel."""
    length = 2 * radius + 1
    padded_HW = np.pad(pixels_HW, radius, mode="edge")
    means_HW: np.ndarray = _sums(padded_HW[None], (length, length))[0] / length**2
    return means_HW.astype(np.float32)


def _sums(pixels_BHW: np.ndarray, window: tuple[int, int]) -> np.ndarray:
    """The sum over each window, float64 [B, H - window + 1, W - window + 1]."""
    high, wide = window
    sums_BHW = np.pad(pixels_BHW.astype(np.float64), ((0, 0), (1, 0), (1, 0))).cumsum(1).cumsum(2)
    rows_BHW = sums_BHW[:, high:] - sums_BHW[:, :-high]
    windows_BHW: np.ndarray = rows_BHW[:, :, wide:] - rows_BHW[:, :, :-wide]
    return windows_BHW


def _correlations(one_HW: np.ndarray, other_HW: np.ndarray, window: tuple[int, int]) -> np.ndarray:
    """For the window in the middle of each block of one, if there is detail, its best correlation in the other."""
    (high, wide), (rows, columns) = window, one_HW.shape
    reach = math.ceil(REACH * max(one_HW.shape))
    area, noise = high * wide, NOISE**2 * high * wide
    tops, lefts = _middle(rows, high), _middle(columns, wide)
    corners = [(top, left) for top in tops for left in lefts]
    blocks_BHW = np.stack([one_HW[top : top + high, left : left + wide] for top, left in corners])
    blocks_BHW = blocks_BHW - blocks_BHW.mean((1, 2), keepdims=True)
    padded_HW, shifts = np.pad(other_HW, reach), 2 * reach + 1
    shape = (high + 2 * reach, wide + 2 * reach)
    areas_BHW = np.stack([padded_HW[top : top + shape[0], left : left + shape[1]] for top, left in corners])
    spectrum_BHW = np.conj(np.fft.rfft2(blocks_BHW, s=shape)) * np.fft.rfft2(areas_BHW)
    products_BYX = np.fft.irfft2(spectrum_BHW, s=shape)[:, :shifts, :shifts]
    energy_B = (blocks_BHW**2).sum((1, 2))
    energy_BYX = _sums(areas_BHW**2, (high, wide)) - _sums(areas_BHW, (high, wide)) ** 2 / area
    scale_BYX = np.sqrt(np.maximum(energy_B, noise)[:, None, None] * np.maximum(energy_BYX, noise))
    textured_B = (energy_B > noise) | (energy_BYX[:, reach, reach] > noise)
    best_B: np.ndarray = (products_BYX / scale_BYX).max((1, 2))[textured_B]
    return best_B


def _middle(length: int, window: int) -> list[int]:
    """Where a window in the middle of each block begins."""
    return [((2 * block + 1) * length // BLOCKS - window) // 2 for block in range(BLOCKS)]
