"""Changes of brightness and colour of float images [N, 3, H, W] in [0, 1], in place, one number for each image.

Axes in names: N image, C channel, H height, W width.
"""

from __future__ import annotations

import torch
from torch import Tensor

_GREY_WEIGHTS = (0.2989, 0.587, 0.114)  # luma of ITU-R BT.601, with torchvision's digits


def adjust_brightness_(images_NCHW: Tensor, *, factors_N: Tensor) -> None:
    """Every value times its image's factor."""
    images_NCHW.mul_(factors_N[:, None, None, None]).clamp_(0, 1)


def adjust_contrast_(images_NCHW: Tensor, *, factors_N: Tensor) -> None:
    """The distance of every value from the mean grey of its image, times the factor."""
    weights_C = torch.tensor(_GREY_WEIGHTS, device=images_NCHW.device)
    mean_N = (images_NCHW.mean(dim=(2, 3)) * weights_C).sum(1)
    offset_N = mean_N * (1 - factors_N)
    images_NCHW.mul_(factors_N[:, None, None, None]).add_(offset_N[:, None, None, None]).clamp_(0, 1)


def adjust_saturation_(images_NCHW: Tensor, *, factors_N: Tensor) -> None:
    """The distance of every value from its pixel's grey, times the factor; 0 makes the image grey."""
    red, green, blue = images_NCHW[:, :1], images_NCHW[:, 1:2], images_NCHW[:, 2:]
    grey_N1HW = _GREY_WEIGHTS[0] * red + _GREY_WEIGHTS[1] * green + _GREY_WEIGHTS[2] * blue
    factors_N111 = factors_N[:, None, None, None]
    images_NCHW.mul_(factors_N111).add_(grey_N1HW.mul_(1 - factors_N111)).clamp_(0, 1)


def adjust_hue_(images_NCHW: Tensor, *, turns_N: Tensor) -> None:
    """The hue turned by a fraction of the colour circle; value and chroma (HSV) stay."""
    red_NHW, green_NHW, blue_NHW = images_NCHW.unbind(1)
    value_NHW = torch.maximum(torch.maximum(red_NHW, green_NHW), blue_NHW)
    chroma_NHW = value_NHW - torch.minimum(torch.minimum(red_NHW, green_NHW), blue_NHW)
    inverse_NHW = chroma_NHW.clamp(min=1e-12).reciprocal_()  # a grey pixel has chroma 0, and any hue will do
    # Hue in sixths of the circle: red is at 0, green at 2, blue at 4.
    hue_NHW = torch.where(
        value_NHW == red_NHW,
        (green_NHW - blue_NHW) * inverse_NHW,
        torch.where(
            value_NHW == green_NHW,
            ((blue_NHW - red_NHW) * inverse_NHW).add_(2),
            ((red_NHW - green_NHW) * inverse_NHW).add_(4),
        ),
    )
    hue_NHW.add_(6 * turns_N[:, None, None])
    for channel, own_hue in enumerate((0, 2, 4)):
        # A channel is at its highest up to one sixth from its own hue, at its lowest from two sixths on.
        distance_NHW = hue_NHW - own_hue
        distance_NHW.sub_(torch.round(distance_NHW / 6).mul_(6)).abs_()
        images_NCHW[:, channel] = value_NHW - chroma_NHW * distance_NHW.sub_(1).clamp_(0, 1)
