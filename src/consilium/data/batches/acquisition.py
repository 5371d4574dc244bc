"""How other devices and other publishers would have shown the same image.

A model that has seen one scanner or one journal takes its resolution, noise, colours, borders and compression for a
part of the class. These functions vary them. All but ``recompressed`` take float images [N, 3, H, W] in [0, 1] and one
number per image; a trailing underscore changes in place.

Axes in names: N image, C channel, M = N * C, H height, W width, P pixels of one side, T step of a kernel, K number of a
bank.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import simplejpeg
import torch
from torch import Tensor
from torch.nn.functional import conv1d, conv2d

from consilium.data.images.pixels import Pixels

BANK = 2**20  # values of noise beyond those of one image


def recompressed(pixels_HWC: Pixels, *, quality: int) -> Pixels:
    """The pixels after a JPEG of this quality (with halved colour resolution, as most are)."""
    encoded = simplejpeg.encode_jpeg(pixels_HWC, quality=quality, colorspace="RGB", colorsubsampling="420")
    decoded: Pixels = simplejpeg.decode_jpeg(encoded, "RGB")
    return decoded


def quarter_turned(images_NHWC: Tensor, *, turns_N: npt.NDArray[np.int64]) -> Tensor:
    """Square images turned anticlockwise by so many quarters."""
    result_NHWC = images_NHWC.clone()
    for turns in (1, 2, 3):
        which = torch.from_numpy(np.flatnonzero(turns_N == turns)).to(images_NHWC.device)
        result_NHWC.index_copy_(0, which, images_NHWC.index_select(0, which).rot90(turns, (1, 2)))
    return result_NHWC


def shift_channels_(images_NCHW: Tensor, *, gains_NC: Tensor, offsets_NC: Tensor) -> None:
    """Every channel times its gain plus its offset: white balance and stain."""
    images_NCHW.mul_(gains_NC[:, :, None, None]).add_(offsets_NC[:, :, None, None]).clamp_(0, 1)


def adjust_gamma_(images_NCHW: Tensor, *, exponents_N: Tensor) -> None:
    """Every value to the power of its image's exponent: the curve of the screen or sensor."""
    images_NCHW.clamp_(min=0).pow_(exponents_N[:, None, None, None])


def invert_(images_NCHW: Tensor, *, chosen_N: Tensor) -> None:
    """Black and white exchanged where ``chosen_N`` (bool) says so."""
    chosen_N111 = chosen_N.float()[:, None, None, None]
    images_NCHW.mul_(1 - 2 * chosen_N111).add_(chosen_N111)


def blurred(images_NCHW: Tensor, *, pixels_N: Tensor, most: float) -> Tensor:
    """Convolved with a gaussian of so many pixels' deviation; at the edges its weights are scaled to a sum of 1.

    No deviation is above ``most``: the kernel reaches four times as far, whatever the others in the batch are.
    """
    count, channels, height, width = images_NCHW.shape
    reach = math.ceil(4 * most)
    steps_T = torch.arange(-reach, reach + 1, device=images_NCHW.device)
    kernel_NT = (steps_T / pixels_N.clamp(min=1e-3)[:, None]).square_().mul_(-0.5).exp_()
    kernel_MT = kernel_NT.repeat_interleave(channels, 0)
    groups = count * channels
    planes_1MHW = images_NCHW.reshape(1, groups, height, width)
    planes_1MHW = conv2d(planes_1MHW, kernel_MT[:, None, :, None], padding=(reach, 0), groups=groups)
    planes_1MHW = conv2d(planes_1MHW, kernel_MT[:, None, None, :], padding=(0, reach), groups=groups)

    def weight(side: int) -> Tensor:
        ones_1NP = torch.ones((1, count, side), device=images_NCHW.device)
        return conv1d(ones_1NP, kernel_NT[:, None], padding=reach, groups=count)[0]

    weights_NHW = weight(height)[:, :, None] * weight(width)[:, None, :]
    return planes_1MHW.view(images_NCHW.shape).div_(weights_NHW[:, None])


def coarsened(images_NCHW: Tensor, *, factors_N: Tensor) -> Tensor:
    """Reduced to ``factors_N`` (at most 1) of both sides in whole pixels, antialiased, and enlarged again, bilinearly.

    The arithmetic of torch's ``interpolate``: as if the image had been published at that size.
    """

    def kernel(side: int) -> Tensor:
        sizes_N = (factors_N * side).round().clamp(min=1)
        reduced_NPP = _reducing(side, sizes_N)
        places_P = torch.arange(side, device=images_NCHW.device, dtype=torch.float32)
        from_NP = (places_P + 0.5) * (sizes_N / side)[:, None] - 0.5
        from_NP = torch.minimum(from_NP.clamp(min=0), (sizes_N - 1)[:, None])
        low_NP = from_NP.floor()
        high_NP = torch.minimum(low_NP + 1, (sizes_N - 1)[:, None])
        part_NP1 = (from_NP - low_NP)[:, :, None]
        return _rows(reduced_NPP, low_NP) * (1 - part_NP1) + _rows(reduced_NPP, high_NP) * part_NP1

    return _separable(images_NCHW, kernel(images_NCHW.shape[2]), kernel(images_NCHW.shape[3]))


def on_canvas(
    images_NCHW: Tensor, *, heights_N: Tensor, widths_N: Tensor, tops_N: Tensor, lefts_N: Tensor, greys_N: Tensor
) -> Tensor:
    """Reduced to these fractions of both sides, antialiased, and laid on a canvas of one grey.

    ``tops_N`` and ``lefts_N`` are fractions of the room that is left: 0 is the upper or left edge, 1 the other one.
    """

    def kernel(side: int, fractions_N: Tensor, starts_N: Tensor) -> tuple[Tensor, Tensor]:
        sizes_N = (fractions_N * side).round().clamp(min=1)
        first_N = (starts_N * (side - sizes_N)).round()
        places_NP = torch.arange(side, device=images_NCHW.device) - first_N[:, None]
        inside_NP = (places_NP >= 0) & (places_NP < sizes_N[:, None])
        placed_NPP = _rows(_reducing(side, sizes_N), places_NP.clamp(0, side - 1))
        return placed_NPP.mul_(inside_NP[:, :, None]), inside_NP

    rows_NHH, inside_NH = kernel(images_NCHW.shape[2], heights_N, tops_N)
    columns_NWW, inside_NW = kernel(images_NCHW.shape[3], widths_N, lefts_N)
    outside_NHW = ~(inside_NH[:, :, None] & inside_NW[:, None, :])
    canvas_NHW = outside_NHW * greys_N[:, None, None]
    return _separable(images_NCHW, rows_NHH, columns_NWW).add_(canvas_NHW[:, None])


def noise_bank(pixels: int, *, seed: int) -> Tensor:
    """Standard normal numbers, of which each image takes a part as its noise; made once, on the CPU."""
    return torch.randn(pixels + BANK, generator=torch.Generator().manual_seed(seed))


def add_noise_(images_NCHW: Tensor, *, bank_K: Tensor, deviations_N: Tensor, places_N: Tensor) -> None:
    """Gaussian noise of this deviation, from ``places_N`` (in [0, 1)) of the bank on.

    It is the same in all channels, so that a grey image stays grey.
    """
    count, _, height, width = images_NCHW.shape
    starts_N = (places_N.double() * (len(bank_K) - height * width)).long()
    noise_NHW = bank_K.unfold(0, height * width, 1)[starts_N].view(count, height, width)
    images_NCHW.add_((noise_NHW * deviations_N[:, None, None])[:, None]).clamp_(0, 1)


def _separable(images_NCHW: Tensor, rows_NHH: Tensor, columns_NWW: Tensor) -> Tensor:
    """Every channel times one matrix from the left (over its rows) and another from the right (over its columns)."""
    count, channels, height, width = images_NCHW.shape
    across_NRW = images_NCHW.reshape(count, channels * height, width) @ columns_NWW.transpose(1, 2)
    return rows_NHH[:, None] @ across_NRW.view(count, channels, height, width)


def _reducing(side: int, sizes_N: Tensor) -> Tensor:
    """Matrices [N, P, P] whose first ``sizes_N`` rows reduce P pixels to so many, with a triangle filter."""
    scale_N11 = (side / sizes_N)[:, None, None]
    places_P = torch.arange(side, device=sizes_N.device, dtype=torch.float32)
    centres_NP1 = (places_P[:, None] + 0.5) * scale_N11
    distance_NPP = (places_P + 0.5 - centres_NP1).abs_().div_(scale_N11)
    weights_NPP = distance_NPP.neg_().add_(1).clamp_(min=0)
    return weights_NPP.div_(weights_NPP.sum(2, keepdim=True).clamp_(min=1e-6))


def _rows(matrices_NPP: Tensor, places_NP: Tensor) -> Tensor:
    return matrices_NPP.gather(1, places_NP.long()[:, :, None].expand_as(matrices_NPP))
