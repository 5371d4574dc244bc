"""Further looks at an image, for predictions that are averaged (test-time augmentation).

Axes in names: B case in a batch, V view, N = B * V images, C channel, H height, W width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor
from torch.nn.functional import interpolate

from consilium.core.contracts import Look


def looks(images_BVCHW: Tensor, *, mirror: bool, crops: Sequence[float]) -> Iterator[tuple[Look, Tensor]]:
    """The images, then the centre of them for each of ``crops``; each followed by its mirror image with ``mirror``.

    ``crops`` are shares of both sides in whole pixels; what they cut out is enlarged to the size of the images.
    """
    for share in (1.0, *crops):
        look_BVCHW = images_BVCHW if share == 1.0 else _centre(images_BVCHW, share)
        yield Look(centre=share), look_BVCHW
        if mirror:
            yield Look(mirrored=True, centre=share), look_BVCHW.flip(-1)


def _centre(images_BVCHW: Tensor, share: float) -> Tensor:
    height, width = images_BVCHW.shape[3:]
    rows, columns = max(1, round(share * height)), max(1, round(share * width))
    top, left = (height - rows) // 2, (width - columns) // 2
    centre_NCHW = images_BVCHW.flatten(0, 1)[:, :, top : top + rows, left : left + columns]
    enlarged_NCHW = interpolate(centre_NCHW, (height, width), mode="bilinear", align_corners=False)
    return enlarged_NCHW.reshape(images_BVCHW.shape)
