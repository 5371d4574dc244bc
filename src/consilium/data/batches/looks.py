"""Further looks at an image, for predictions that are averaged (test-time augmentation).

Axes in names: B case in a batch, V view, N = B * V images, C channel, H height, W width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from torch import Tensor
from torch.nn.functional import interpolate

from consilium.core.contracts import Look, Views


def looks(
    images: Views, *, mirror: bool, crops: Sequence[float], zooms: Sequence[float] = ()
) -> Iterator[tuple[Look, Views]]:
    """The images, their centre for each of ``crops``, and each of ``zooms``; with ``mirror`` each mirrored, too.

    ``crops`` are shares of both sides in whole pixels; what they cut out is enlarged to the size of the images.
    ``zooms`` were cut when the images were read, and lie behind these on the axis of views.
    """
    count = 1 + len(zooms)
    whole, *zoomed = (
        images.each(lambda tensor, look=look: tensor.unflatten(1, (count, -1))[:, look])  # type: ignore[misc]
        for look in range(count)
    )
    seen = [
        (Look(), whole),
        *((Look(centre=share), replace(whole, pixels_BVCHW=_centre(whole.pixels, share))) for share in crops),
        *((Look(zoom=share), own) for share, own in zip(zooms, zoomed, strict=True)),
    ]
    for look, own in seen:
        yield look, own
        if mirror:
            yield replace(look, mirrored=True), replace(own, pixels_BVCHW=own.pixels.flip(-1))


def _centre(images_BVCHW: Tensor, share: float) -> Tensor:
    height, width = images_BVCHW.shape[3:]
    rows, columns = max(1, round(share * height)), max(1, round(share * width))
    top, left = (height - rows) // 2, (width - columns) // 2
    centre_NCHW = images_BVCHW.flatten(0, 1)[:, :, top : top + rows, left : left + columns]
    enlarged_NCHW = interpolate(centre_NCHW, (height, width), mode="bilinear", align_corners=False)
    return enlarged_NCHW.reshape(images_BVCHW.shape)
