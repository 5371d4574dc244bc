"""Random crops, augmentation and normalisation, all a pure function of (seed, draw).

Axes in names: B case in a batch, V view, N = B * V images, C channel, H height, W width.

What happens to a training image, in this order: crop and compression (``sample_box`` and ``sample_quality``, in the
worker), horizontal and vertical flip, quarter turns, rotation + zoom + translation (one resampling), brightness,
contrast, saturation, hue, channel shift, grey, gamma, inversion, blur, resolution, noise, border, normalisation.

Views of a case are augmented independently of each other (``views: apart``: a left and a right eye are two
photographs), or all with the numbers of the first (``together``); ``mirrored`` also exchanges left and right in a
horizontal flip, so that what looks like a right eye stands in the place of one.
"""

from __future__ import annotations

import math
from dataclasses import replace
from enum import IntEnum
from functools import lru_cache, partial

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from consilium.core.contracts import Batch
from consilium.data.batches.acquisition import (
    add_noise_,
    adjust_gamma_,
    blurred,
    coarsened,
    invert_,
    noise_bank,
    on_canvas,
    quarter_turned,
    shift_channels_,
)
from consilium.data.batches.colours import adjust_brightness_, adjust_contrast_, adjust_hue_, adjust_saturation_
from consilium.data.batches.config import AugmentationConfig
from consilium.data.batches.laterality import exchanged
from consilium.data.config import ImageConfig
from consilium.data.images.reading import Box

Uniforms = npt.NDArray[np.float64]

_CROP_ATTEMPTS = 10
_CHUNK_PIXELS = 2**19


class _Position(IntEnum):
    """Where in the stream of a view each augmentation finds its number: switching one on moves no other."""

    HORIZONTAL_FLIP = 0
    VERTICAL_FLIP = 1
    ROTATION = 2
    TRANSLATE_X = 3
    TRANSLATE_Y = 4
    SCALE = 5
    BRIGHTNESS = 6
    CONTRAST = 7
    SATURATION = 8
    HUE = 9
    GREY = 10
    QUARTER_TURN = 11
    GAINS = 12  # three, then three offsets
    OFFSETS = 15
    GAMMA = 18
    INVERT = 19
    BLUR = 20
    RESOLUTION = 21
    RESOLUTION_CHANCE = 22
    NOISE = 23
    NOISE_PLACE = 24
    BORDER = 25
    BORDER_HEIGHT = 26
    BORDER_WIDTH = 27
    BORDER_TOP = 28
    BORDER_LEFT = 29
    BORDER_GREY = 30


_NUMBERS = max(_Position) + 1
_TEXT_STREAM = 1 << 40  # no view has so high a number


def uniforms(draws_B: npt.NDArray[np.int64], *, seed: int, stream: int, count: int) -> Uniforms:
    """``count`` numbers in [0, 1) for every draw, float64 [B, count], the same wherever they are computed.

    A counter-based generator: each number is a hash of (seed, draw, stream, position), so it depends neither on
    the number of workers nor on what else is in the batch. The hash is the output function of SplitMix64, applied
    after seed, stream, draw and position are mixed in (Steele, Lea and Flood, "Fast splittable pseudorandom number
    generators", OOPSLA 2014, doi:10.1145/2660193.2660195). The crop of view v uses stream 2v, its augmentation 2v + 1.
    """
    key_B = _mix(_stream_key(seed, stream) ^ np.asarray(draws_B).astype(np.uint64))
    bits_BP = _mix(key_B[:, None] ^ np.arange(count, dtype=np.uint64))
    return (bits_BP >> np.uint64(11)).astype(np.float64) * 2.0**-53


@lru_cache(maxsize=256)
def _stream_key(seed: int, stream: int) -> npt.NDArray[np.uint64]:
    return _mix(_mix(np.array([seed], np.uint64)) ^ np.uint64(stream))


def _mix(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def sample_box(
    draw: int, *, seed: int, view: int, augmentation: AugmentationConfig, width: int, height: int
) -> Box | None:
    """The random crop of one view of ``width`` x ``height`` pixels; None when ``crop_scale`` is null.

    Area uniform in ``crop_scale``, width / height log-uniform in ``crop_ratio``, in whole pixels; after ten shapes
    that do not fit into the image, its centre in the nearest shape allowed. The same rule as torchvision's
    RandomResizedCrop.
    """
    if augmentation.crop_scale is None:
        return None
    stream = 2 * _numbered_as(view, augmentation)
    numbers = uniforms(np.array([draw]), seed=seed, stream=stream, count=2 * _CROP_ATTEMPTS + 2)[0].tolist()
    (low, high), (narrow, wide) = augmentation.crop_scale, augmentation.crop_ratio
    for attempt in range(_CROP_ATTEMPTS):
        area = width * height * (low + (high - low) * numbers[2 * attempt])
        ratio = narrow * (wide / narrow) ** numbers[2 * attempt + 1]
        columns, rows = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < columns <= width and 0 < rows <= height:
            left = int(numbers[-2] * (width - columns + 1))
            top = int(numbers[-1] * (height - rows + 1))
            return Box(left=left / width, top=top / height, width=columns / width, height=rows / height)
    ratio = min(max(width / height, narrow), wide)
    columns, rows = max(1, min(width, round(height * ratio))), max(1, min(height, round(width / ratio)))
    left, top = (width - columns) // 2, (height - rows) // 2
    return Box(left=left / width, top=top / height, width=columns / width, height=rows / height)


def sample_quality(draw: int, *, seed: int, view: int, augmentation: AugmentationConfig) -> int | None:
    """The JPEG quality of one view, uniform in ``compression``; None when that is null."""
    if augmentation.compression is None:
        return None
    low, high = augmentation.compression
    place = 2 * _CROP_ATTEMPTS + 2  # behind the numbers of the crop
    stream = 2 * _numbered_as(view, augmentation)
    number = uniforms(np.array([draw]), seed=seed, stream=stream, count=place + 1)[0, place]
    return low + int(number * (high - low + 1))


def sample_text(draw: int, seed: int, count: int) -> int:
    """Which of so many texts of a case is drawn, all equally likely."""
    return int(uniforms(np.array([draw]), seed=seed, stream=_TEXT_STREAM, count=1)[0, 0] * count)


def _numbered_as(view: int, augmentation: AugmentationConfig) -> int:
    """The view whose numbers a view takes."""
    return view if augmentation.views == "apart" else 0


class DeviceTransform:
    """Turns the loader's uint8 images into normalised float32, on whatever device they are.

    In training every image is first augmented with the numbers of its draw. Images come out in channels_last
    order, which costs least when the loader stacks [B, V, H, W, C] and permutes. Views that are not there come out as
    zeros.
    """

    def __init__(
        self,
        image: ImageConfig,
        *,
        augmentation: AugmentationConfig | None,
        seed: int,
        sides_N2: npt.NDArray[np.int64] | None = None,
    ) -> None:
        """``sides_N2``: where the views that a flip exchanges are, in each case of the table; None: there are none."""
        chosen = augmentation or AugmentationConfig()
        self._augmentation = chosen
        self._seed = seed
        self._sides_N2 = sides_N2
        mean_C, std_C = torch.tensor(image.mean), torch.tensor(image.std)
        self._scale_C, self._shift_C = 1 / std_C, -mean_C / std_C
        self._moves = _any_of(chosen, "rotation_degrees", "translate", "scale")
        self._imitates = _any_of(chosen, "gamma", "invert_prob", "blur", "resolution", "noise", "border_prob")
        colours = ("brightness_jitter", "contrast_jitter", "saturation_jitter", "hue_jitter", "channel_shift")
        self._changes_values = self._moves or self._imitates or _any_of(chosen, *colours, "grayscale_prob")
        self._noise_K = None if chosen.noise is None else noise_bank(math.prod(image.size), seed=seed)

    def __call__(self, batch: Batch, *, train: bool) -> Batch:
        """The batch with its images normalised, and augmented when ``train``; the given one is left as it is.

        A batch without images, or with features in their place, comes back as it is.
        """
        images = batch.images
        if images is None or images.pixels_BVCHW is None:
            return batch
        if train and self._sides_N2 is not None:
            images = self._sides_exchanged(batch, self._sides_N2).views
        views = images.pixels.shape[1]
        images_NHWC = images.pixels.flatten(0, 1).permute(0, 2, 3, 1).contiguous()
        mask_N = images.there_BV.flatten()
        numbers_NP = self._numbers(batch, views) if train else None
        count, height, width, _ = images_NHWC.shape
        # On a CPU a few images at a time, so that what lies between two operations stays in the cache.
        step = max(1, _CHUNK_PIXELS // (height * width)) if images_NHWC.device.type == "cpu" else count
        result_NHWC = torch.empty(images_NHWC.shape, dtype=torch.float32, device=images_NHWC.device)
        for start in range(0, count, step):
            part = slice(start, start + step)
            some_NHWC = images_NHWC[part]
            if numbers_NP is not None:
                some_NHWC = self._augment(some_NHWC, numbers_NP[part])
            self._normalise(some_NHWC, mask_N[part], out=result_NHWC[part])
        pixels_BVCHW = result_NHWC.permute(0, 3, 1, 2).reshape(images.pixels.shape)
        return replace(batch, images=replace(images, pixels_BVCHW=pixels_BVCHW))

    def _numbers(self, batch: Batch, views: int) -> Uniforms:
        draws_B = np.asarray(batch.draws_B)
        of_views = [_numbered_as(view, self._augmentation) for view in range(views)]
        streams = [uniforms(draws_B, seed=self._seed, stream=2 * v + 1, count=_NUMBERS) for v in of_views]
        return np.stack(streams, axis=1).reshape(-1, _NUMBERS)

    def _sides_exchanged(self, batch: Batch, sides_N2: npt.NDArray[np.int64]) -> Batch:
        """The batch with left and right exchanged in the cases that are flipped afterwards."""
        flips_B = self._numbers(batch, 1)[:, _Position.HORIZONTAL_FLIP] < (self._augmentation.horizontal_flip_prob or 0)
        images = batch.views
        there_BV = images.there_BV
        places_BV = exchanged(sides_N2[np.asarray(batch.rows_B)], views=there_BV.shape[1], chosen_B=flips_B)
        cases_B1, places_BV = torch.arange(len(places_BV))[:, None].to(there_BV.device), places_BV.to(there_BV.device)
        return replace(batch, images=images.each(lambda tensor: tensor[cases_B1, places_BV]))

    def _normalise(self, images_NHWC: Tensor, mask_N: Tensor, *, out: Tensor) -> None:
        """(pixels - mean) / std as one multiplication and one addition over whole rows, times the mask."""
        count, height, width, channels = images_NHWC.shape
        device, unit = images_NHWC.device, 1 / 255 if images_NHWC.dtype == torch.uint8 else 1.0
        # Rows of W * C values with matching factors: broadcasting over C alone would run loops of three.
        mask_N11 = mask_N.float()[:, None, None]
        scale_N1R = mask_N11 * (self._scale_C * unit).repeat(width).to(device)
        shift_N1R = mask_N11 * self._shift_C.repeat(width).to(device)
        out.copy_(images_NHWC).view(count, height, width * channels).mul_(scale_N1R).add_(shift_N1R)

    def _augment(self, images_NHWC: Tensor, numbers_NP: Uniforms) -> Tensor:
        """uint8 when nothing but flips is asked for, else float in [0, 1]."""
        chosen = self._augmentation
        for probability, position, axis in (
            (chosen.horizontal_flip_prob, _Position.HORIZONTAL_FLIP, 2),
            (chosen.vertical_flip_prob, _Position.VERTICAL_FLIP, 1),
        ):
            if probability is not None:
                images_NHWC = _flip(images_NHWC, numbers_NP[:, position] < probability, axis=axis)
        if (x := chosen.quarter_turn_prob) is not None:  # below x: 1, 2 or 3 quarters, alike
            turns_N = np.where(numbers_NP[:, _Position.QUARTER_TURN] < x, numbers_NP[:, _Position.QUARTER_TURN] / x, -1)
            images_NHWC = quarter_turned(images_NHWC, turns_N=np.floor(1 + 3 * turns_N).astype(np.int64))
        if not self._changes_values:
            return images_NHWC
        # Colour planes one after the other: sums over C then run along the pixels, several times faster.
        images_NCHW = images_NHWC.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
        return self._change_values(images_NCHW.mul_(1 / 255), numbers_NP).permute(0, 2, 3, 1)

    def _change_values(self, images_NCHW: Tensor, numbers_NP: Uniforms) -> Tensor:
        chosen = self._augmentation
        between = partial(_between, numbers_NP, images_NCHW.device)
        if self._moves:
            degrees, shift = chosen.rotation_degrees or 0.0, chosen.translate or 0.0
            images_NCHW = affine(
                images_NCHW,
                degrees_N=between(-degrees, degrees, _Position.ROTATION),
                shift_x_N=between(-shift, shift, _Position.TRANSLATE_X),
                shift_y_N=between(-shift, shift, _Position.TRANSLATE_Y),
                zoom_N=between(*(chosen.scale or (1.0, 1.0)), _Position.SCALE),
            )
        if (x := chosen.brightness_jitter) is not None:
            adjust_brightness_(images_NCHW, factors_N=between(1 - x, 1 + x, _Position.BRIGHTNESS))
        if (x := chosen.contrast_jitter) is not None:
            adjust_contrast_(images_NCHW, factors_N=between(1 - x, 1 + x, _Position.CONTRAST))
        if (x := chosen.saturation_jitter) is not None:
            adjust_saturation_(images_NCHW, factors_N=between(1 - x, 1 + x, _Position.SATURATION))
        if (x := chosen.hue_jitter) is not None:
            adjust_hue_(images_NCHW, turns_N=between(-x, x, _Position.HUE))
        if (x := chosen.channel_shift) is not None:
            gains = [between(1 - x, 1 + x, _Position.GAINS + channel) for channel in range(3)]
            offsets = [between(-x, x, _Position.OFFSETS + channel) for channel in range(3)]
            shift_channels_(images_NCHW, gains_NC=torch.stack(gains, 1), offsets_NC=torch.stack(offsets, 1))
        if (x := chosen.grayscale_prob) is not None:  # grey is a saturation of 0
            adjust_saturation_(images_NCHW, factors_N=(between(0, 1, _Position.GREY) >= x).float())
        return self._imitate(images_NCHW, numbers_NP) if self._imitates else images_NCHW

    def _imitate(self, images_NCHW: Tensor, numbers_NP: Uniforms) -> Tensor:
        """As another device would have taken, and another publisher shown it."""
        chosen = self._augmentation
        between = partial(_between, numbers_NP, images_NCHW.device)
        if chosen.gamma is not None:  # as often below as above the middle of its logarithm
            low, high = chosen.gamma
            adjust_gamma_(images_NCHW, exponents_N=between(math.log(low), math.log(high), _Position.GAMMA).exp())
        if (x := chosen.invert_prob) is not None:
            invert_(images_NCHW, chosen_N=between(0, 1, _Position.INVERT) < x)
        if (x := chosen.blur) is not None:
            images_NCHW = blurred(images_NCHW, pixels_N=between(0, x, _Position.BLUR), most=x)
        if chosen.resolution is not None:
            factors_N = between(*chosen.resolution, _Position.RESOLUTION)
            which = _below(numbers_NP, _Position.RESOLUTION_CHANCE, chosen.resolution_prob or 1.0, factors_N.device)
            some_NCHW = coarsened(images_NCHW.index_select(0, which), factors_N=factors_N[which])
            images_NCHW = images_NCHW.index_copy(0, which, some_NCHW)
        if (x := chosen.noise) is not None and self._noise_K is not None:
            self._noise_K = self._noise_K.to(images_NCHW.device)
            deviations_N, places_N = between(0, x, _Position.NOISE), between(0, 1, _Position.NOISE_PLACE)
            add_noise_(images_NCHW, bank_K=self._noise_K, deviations_N=deviations_N, places_N=places_N)
        if (x := chosen.border_prob) is not None:
            which = _below(numbers_NP, _Position.BORDER, x, images_NCHW.device)
            some_NCHW = _bordered(images_NCHW.index_select(0, which), numbers_NP[which.cpu().numpy()])
            images_NCHW = images_NCHW.index_copy(0, which, some_NCHW)
        return images_NCHW


def _any_of(augmentation: AugmentationConfig, *names: str) -> bool:
    return any(getattr(augmentation, name) is not None for name in names)


def _between(numbers_NP: Uniforms, device: torch.device, low: float, high: float, position: int) -> Tensor:
    values_N = low + (high - low) * numbers_NP[:, position]
    return torch.from_numpy(values_N.astype(np.float32)).to(device)


def _below(numbers_NP: Uniforms, position: int, probability: float, device: torch.device) -> Tensor:
    """Which images an augmentation of this chance changes."""
    return torch.from_numpy(np.flatnonzero(numbers_NP[:, position] < probability)).to(device)


def _bordered(images_NCHW: Tensor, numbers_NP: Uniforms) -> Tensor:
    """Half to whole on both sides, half of them in their shape; a third on black, on white, and on some grey."""
    between = partial(_between, numbers_NP, images_NCHW.device)
    heights_N, widths_N = between(0.5, 1, _Position.BORDER_HEIGHT), between(0, 1, _Position.BORDER_WIDTH)
    shades_N = between(0, 3, _Position.BORDER_GREY)
    return on_canvas(
        images_NCHW,
        heights_N=heights_N,
        widths_N=torch.where(widths_N < 0.5, heights_N, widths_N),
        tops_N=between(0, 1, _Position.BORDER_TOP),
        lefts_N=between(0, 1, _Position.BORDER_LEFT),
        greys_N=torch.where(shades_N < 1, 0.0, (shades_N - 1).clamp(max=1)),
    )


def _flip(images_NHWC: Tensor, chosen_N: npt.NDArray[np.bool_], *, axis: int) -> Tensor:
    # Whole images are copied by index (fast on every device); where() and masks go pixel by pixel on a CPU.
    which, device = np.flatnonzero(chosen_N), images_NHWC.device
    source_N = np.arange(len(chosen_N))
    source_N[which] = len(chosen_N) + np.arange(len(which))
    flipped = images_NHWC.index_select(0, torch.from_numpy(which).to(device)).flip(axis)
    return torch.cat([images_NHWC, flipped]).index_select(0, torch.from_numpy(source_N).to(device))


def affine(images_NCHW: Tensor, *, degrees_N: Tensor, shift_x_N: Tensor, shift_y_N: Tensor, zoom_N: Tensor) -> Tensor:
    """Rotated clockwise about the centre, zoomed, then shifted by fractions of width and height, bilinearly.

    What comes in from outside the image is 0: black, as the background of most medical images is.
    """
    height, width = images_NCHW.shape[2:]
    device = images_NCHW.device
    # For each output pixel, where it comes from (the inverse map): from pixels off the centre to grid_sample's [-1, 1].
    radians_N = torch.deg2rad(degrees_N)
    cosine_N11 = (torch.cos(radians_N) / zoom_N)[:, None, None]
    sine_N11 = (torch.sin(radians_N) / zoom_N)[:, None, None]
    x_W = torch.arange(width, device=device) - (width - 1) / 2
    y_H = torch.arange(height, device=device) - (height - 1) / 2
    x_N1W = x_W - shift_x_N[:, None, None] * width
    y_NH1 = y_H[:, None] - shift_y_N[:, None, None] * height
    grid_NHW2 = torch.empty((len(images_NCHW), height, width, 2), device=device)
    torch.add(cosine_N11 * x_N1W * (2 / width), sine_N11 * y_NH1 * (2 / width), out=grid_NHW2[..., 0])
    torch.sub(cosine_N11 * y_NH1 * (2 / height), sine_N11 * x_N1W * (2 / height), out=grid_NHW2[..., 1])
    return grid_sample(images_NCHW, grid_NHW2, mode="bilinear", padding_mode="zeros", align_corners=False)
