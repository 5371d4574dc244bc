"""Pictures with the statistics of photographs, made and not shipped."""

from __future__ import annotations

import numpy as np
from PIL import Image


def synthetic(side: int, *, seed: int) -> Image.Image:
    """A seeded picture with the statistics of a photograph.

    Noise of a falling spectrum (amplitude 1 / f^1.5, channels mostly alike) under soft discs. A JPEG of it at
    quality 90 has about 1.5 to 2 bits a pixel, like real photographs.
    """
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None])
    frequency[0, 0] = np.inf
    planes = [
        np.fft.irfft2(np.fft.rfft2(rng.standard_normal((side, side))) / frequency**1.5, s=(side, side))
        for _ in range(4)
    ]
    common, *own = [plane / plane.std() for plane in planes]
    pixels_HWC = 120 + 45 * (0.9 * common[..., None] + 0.3 * np.stack(own, axis=-1))
    y, x = np.mgrid[:side, :side] / side
    for _ in range(12):
        distance = np.hypot(y - rng.random(), x - rng.random()) - rng.uniform(0.03, 0.2)
        edge = 1 / (1 + np.exp(np.clip(distance * 256, -30, 30)))
        pixels_HWC += edge[..., None] * rng.uniform(-60, 60, 3)
    pixels_HWC += rng.normal(0, 1.5, pixels_HWC.shape)  # sensor noise
    return Image.fromarray(np.clip(np.rint(pixels_HWC), 0, 255).astype(np.uint8))
