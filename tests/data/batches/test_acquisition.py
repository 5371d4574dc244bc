"""Other devices and publishers: each augmentation does what its name says, by the number of its draw alone."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate
from torchvision.transforms.v2 import functional as reference

from consilium.core.contracts import Batch
from consilium.core.contracts import Views as ViewColumn
from consilium.data.batches.acquisition import (
    add_noise_,
    adjust_gamma_,
    blurred,
    coarsened,
    invert_,
    noise_bank,
    on_canvas,
    recompressed,
    shift_channels_,
)
from consilium.data.batches.config import AugmentationConfig
from consilium.data.batches.loader import Loader, Request
from consilium.data.batches.readers import ImageReader, Readers
from consilium.data.batches.transforms import DeviceTransform, sample_quality
from consilium.data.config import DataConfig, ImageConfig, LoaderConfig
from tests.data.samples import image_bytes

SIZE = (16, 16)
PLAIN = ImageConfig(size=SIZE, mean=(0, 0, 0), std=(1, 1, 1))


def batch_of(images_NHWC: np.ndarray) -> Batch:
    count = len(images_NHWC)
    return Batch(
        images=ViewColumn(
            torch.ones(count, 1, dtype=torch.bool), torch.from_numpy(images_NHWC[:, None]).permute(0, 1, 4, 2, 3)
        ),
        rows_B=torch.arange(count),
        draws_B=torch.arange(500, 500 + count),
    )


def flat(count: int, level: int = 128, size: tuple[int, int] = SIZE) -> Batch:
    return batch_of(np.full((count, *size, 3), level, np.uint8))


def noisy(count: int, size: tuple[int, int] = SIZE) -> Batch:
    return batch_of(np.random.default_rng(0).integers(0, 256, (count, *size, 3), dtype=np.uint8))


def augmented(batch: Batch, **augmentation: object) -> Tensor:
    """Images [N, 3, H, W] after training's transform, in [0, 1]."""
    chosen = AugmentationConfig.model_validate(augmentation)
    return DeviceTransform(PLAIN, augmentation=chosen, seed=3)(batch, train=True).views.pixels[:, 0]


def pixels_of(batch: Batch) -> Tensor:
    return batch.views.pixels[:, 0] / 255


def random_images(count: int = 4, size: tuple[int, int] = (20, 31)) -> Tensor:
    return torch.rand(count, 3, *size, generator=torch.Generator().manual_seed(1))


# -- Resolution and blur ------------------------------------------------------------------------------------------


@given(factor=st.floats(0.02, 1.0), height=st.integers(4, 24), width=st.integers(4, 24))
def test_lost_resolution_is_that_of_a_smaller_file(factor: float, height: int, width: int) -> None:
    images_NCHW = random_images(2, (height, width))
    factor = float(np.float32(factor))
    small = [max(1, round(float(np.float32(factor) * np.float32(side)))) for side in (height, width)]
    assume(min(small) > 1)  # to a width of 1 torch gets all rows alike
    reduced = interpolate(images_NCHW, small, mode="bilinear", antialias=True, align_corners=False)
    expected = interpolate(reduced, (height, width), mode="bilinear", align_corners=False)
    found = coarsened(images_NCHW, factors_N=torch.tensor([factor, 1.0]))
    torch.testing.assert_close(found[0], expected[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(found[1], images_NCHW[1], atol=1e-5, rtol=0)


def test_resolution_is_lost_as_often_and_as_much_as_asked() -> None:
    batch = noisy(600)
    found, before = augmented(batch, resolution=[0.1, 0.3], resolution_prob=0.4), pixels_of(batch)
    deviations = found.flatten(1).std(1) / before.flatten(1).std(1)
    kept = (found - before).abs().flatten(1).amax(1) < 1e-5
    assert kept.float().mean() == pytest.approx(0.6, abs=0.06)
    assert deviations[~kept].max() < 0.5
    always = augmented(batch, resolution=[0.1, 0.3])
    assert ((always - before).abs().flatten(1).amax(1) > 0.1).all()
    torch.testing.assert_close(always[~kept], found[~kept])  # the chance moves no factor


@pytest.mark.parametrize("deviation", [0.6, 1.5, 3.0])
def test_blur_is_a_gaussian(deviation: float) -> None:
    images_NCHW = random_images(2, (40, 50))
    found = blurred(images_NCHW, pixels_N=torch.tensor([deviation, 0.0]), most=3.0)
    taps = 2 * round(4 * deviation) + 1
    expected = reference.gaussian_blur(images_NCHW[0], [taps, taps], [deviation, deviation])
    inner = slice(taps // 2, -(taps // 2))
    torch.testing.assert_close(found[0][:, inner, inner], expected[:, inner, inner], atol=2e-4, rtol=0)
    torch.testing.assert_close(found[1], images_NCHW[1], atol=1e-6, rtol=0)
    even = blurred(torch.full((1, 3, 9, 7), 0.4), pixels_N=torch.tensor([deviation]), most=3.0)
    torch.testing.assert_close(even, torch.full((1, 3, 9, 7), 0.4))  # no dark edges


# -- Values -------------------------------------------------------------------------------------------------------


def test_noise_has_the_deviation_asked_for_and_keeps_grey_grey() -> None:
    found = augmented(flat(400, size=(64, 64)), noise=0.1)
    assert torch.equal(found[:, 0], found[:, 1])
    assert torch.equal(found[:, 0], found[:, 2])
    deviations = found[:, 0].flatten(1).std(1)
    assert deviations.max() == pytest.approx(0.1, rel=0.1)
    assert deviations.mean() == pytest.approx(0.05, rel=0.1)
    assert found.mean() == pytest.approx(128 / 255, abs=1e-3)
    strongest = found[int(deviations.argmax()), 0].flatten()
    within = ((strongest - strongest.mean()).abs() < strongest.std()).float().mean()
    assert within == pytest.approx(0.683, abs=0.03)  # of a gaussian
    correlation = torch.corrcoef(found[:40, 0].flatten(1)).fill_diagonal_(0)
    assert correlation.abs().max() < 0.1  # every image has noise of its own


def test_noise_takes_every_part_of_the_bank() -> None:
    images_NCHW, bank_K = torch.full((2, 3, 4, 5), 0.5), noise_bank(20, seed=0)
    add_noise_(images_NCHW, bank_K=bank_K, deviations_N=torch.tensor([0.1, 0.1]), places_N=torch.tensor([0.0, 1.0]))
    for image, part in zip(images_NCHW, (bank_K[:20], bank_K[-20:]), strict=True):
        torch.testing.assert_close(image[0].flatten(), (0.5 + 0.1 * part).clamp(0, 1))


def test_gamma_is_a_power_and_as_often_below_one_as_above() -> None:
    images_NCHW = random_images()
    exponents = torch.tensor([0.5, 1.0, 2.0, 3.0])
    expected = torch.stack([reference.adjust_gamma(i, float(g)) for i, g in zip(images_NCHW, exponents, strict=True)])
    adjust_gamma_(images_NCHW, exponents_N=exponents)
    torch.testing.assert_close(images_NCHW, expected, atol=1e-6, rtol=0)
    found = torch.log(augmented(flat(1000), gamma=[0.5, 2.0])[:, 0, 0, 0]) / np.log(128 / 255)
    assert found.min() == pytest.approx(0.5, rel=0.02)
    assert found.max() == pytest.approx(2.0, rel=0.02)
    assert (found < 1).float().mean() == pytest.approx(0.5, abs=0.05)
    assert not augmented(flat(3, level=0), gamma=[0.5, 2.0]).any()


def test_channels_are_shifted_on_their_own() -> None:
    images_NCHW = random_images(2)
    gains, offsets = torch.tensor([[1.0, 1, 1], [0.5, 1, 2]]), torch.tensor([[0.0, 0, 0], [0.1, -0.1, 0]])
    expected = (images_NCHW * gains[..., None, None] + offsets[..., None, None]).clamp(0, 1)
    shift_channels_(images_NCHW, gains_NC=gains, offsets_NC=offsets)
    torch.testing.assert_close(images_NCHW, expected)
    dark, half = augmented(flat(800, level=51), channel_shift=0.1), augmented(flat(800, level=102), channel_shift=0.1)
    gain = (half - dark)[:, :, 0, 0] / 0.2
    offset = dark[:, :, 0, 0] - 0.2 * gain
    for numbers, middle in ((gain, 1.0), (offset, 0.0)):
        assert numbers.mean().item() == pytest.approx(middle, abs=0.01)
        assert numbers.min().item() == pytest.approx(middle - 0.1, abs=0.003)
        assert numbers.max().item() == pytest.approx(middle + 0.1, abs=0.003)
    correlation = torch.corrcoef(torch.cat([gain, offset], dim=1).T).fill_diagonal_(0)
    assert correlation.abs().max() < 0.15
    assert augmented(flat(9), channel_shift=0.3, grayscale_prob=1.0).std(dim=1).max() < 1e-6  # grey has no tint


def test_inversion_exchanges_black_and_white_as_often_as_asked() -> None:
    batch = noisy(1000, size=(4, 4))
    found, before = augmented(batch, invert_prob=0.3), pixels_of(batch)
    is_inverted = (found - (1 - before)).abs().flatten(1).amax(1) < 1e-6
    is_kept = (found - before).abs().flatten(1).amax(1) < 1e-6
    assert (is_inverted | is_kept).all()
    assert is_inverted.float().mean() == pytest.approx(0.3, abs=0.05)
    images_NCHW = random_images(2)
    expected = torch.stack([1 - images_NCHW[0], images_NCHW[1]])
    invert_(images_NCHW, chosen_N=torch.tensor([True, False]))
    torch.testing.assert_close(images_NCHW, expected)


# -- Turns and borders --------------------------------------------------------------------------------------------


def test_quarter_turns_are_exact_and_come_alike() -> None:
    batch = noisy(2000, size=(4, 4))
    found, before = augmented(batch, quarter_turn_prob=0.6), pixels_of(batch)
    turned = torch.stack([(found - before.rot90(turns, (2, 3))).abs().flatten(1).amax(1) < 1e-6 for turns in range(4)])
    assert (turned.sum(0) == 1).all()
    assert turned.float().mean(1).tolist() == pytest.approx([0.4, 0.2, 0.2, 0.2], abs=0.04)


def test_quarter_turns_need_a_square() -> None:
    tree = {
        "sources": [{"kind": "folder", "name": "a", "path": "a"}],
        "image": {"size": [32, 48]},
        "augmentation": {"quarter_turn_prob": 0.5},
    }
    with pytest.raises(ValueError, match=r"quarter_turn_prob needs a square image, but image.size is \[32, 48\]"):
        DataConfig.model_validate(tree)


def test_a_canvas_holds_the_reduced_image() -> None:
    images_NCHW = random_images(2, (20, 32))
    found = on_canvas(
        images_NCHW,
        heights_N=torch.tensor([0.5, 1.0]),
        widths_N=torch.tensor([0.75, 1.0]),
        tops_N=torch.tensor([1.0, 0.3]),
        lefts_N=torch.tensor([0.5, 0.8]),
        greys_N=torch.tensor([0.25, 1.0]),
    )
    small = interpolate(images_NCHW[:1], (10, 24), mode="bilinear", antialias=True, align_corners=False)[0]
    expected = torch.full((3, 20, 32), 0.25)
    expected[:, 10:, 4:28] = small
    torch.testing.assert_close(found[0], expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(found[1], images_NCHW[1], atol=1e-5, rtol=0)


def test_borders_are_of_all_sizes_places_shapes_and_greys() -> None:
    count, side = 900, 64
    image = ImageConfig(size=(side, side), mean=(0, 0, 0), std=(1, 1, 1))
    batch = batch_of(np.tile(np.array([255, 0, 0], np.uint8), (count, side, side, 1)))
    chosen = AugmentationConfig(border_prob=0.8)
    found = DeviceTransform(image, augmentation=chosen, seed=0)(batch, train=True).views.pixels[:, 0]
    inside = (found[:, 0] - found[:, 1]) > 0.999  # red; the canvas is grey
    heights, widths = inside.any(2).sum(1) / side, inside.any(1).sum(1) / side
    assert torch.equal(inside.flatten(1).sum(1), (heights * widths * side * side).long())  # rectangles
    bordered = ~inside.flatten(1).all(1)
    assert bordered.float().mean() == pytest.approx(0.8, abs=0.04)
    for sides in (heights[bordered], widths[bordered]):
        assert sides.min() == pytest.approx(0.5, abs=0.02)
        assert sides.mean() == pytest.approx(0.75, abs=0.02)
    assert (heights == widths)[bordered].float().mean() == pytest.approx(0.5, abs=0.08)
    corners = found[:, :, [0, 0, -1, -1], [0, -1, 0, -1]]
    small = (heights < 0.9) & (widths < 0.9)
    greys = corners[small].amin(1).amax(1)  # the blue and green of a corner outside of the image
    for low, high in ((-0.001, 0.001), (0.001, 0.999), (0.999, 1.001)):
        assert ((greys > low) & (greys < high)).float().mean() == pytest.approx(1 / 3, abs=0.08)
    tops = inside.any(2).float().argmax(1)[small] / (side * (1 - heights[small]))
    assert tops.mean() == pytest.approx(0.5, abs=0.05)
    assert tops.max() == pytest.approx(1, abs=0.02)


# -- Compression --------------------------------------------------------------------------------------------------


def test_compression_is_that_of_a_real_jpeg() -> None:
    y, x = np.mgrid[:32, :48]
    smooth = np.stack([4 * x, 6 * y, 128 + 0 * x], axis=2).astype(np.uint8)
    for quality in (10, 60, 95):
        file = io.BytesIO()
        Image.fromarray(smooth).save(file, "JPEG", quality=quality, subsampling="4:2:0")
        found = recompressed(smooth, quality=quality)
        assert found.shape == smooth.shape
        assert found.dtype == np.uint8
        # Decoders differ by a few levels in how they enlarge the colours.
        assert np.abs(found.astype(int) - np.asarray(Image.open(file)).astype(int)).max() <= 6


def test_the_quality_is_spread_evenly_and_belongs_to_draw_view_and_seed() -> None:
    chosen = AugmentationConfig(compression=(30, 39), crop_scale=(0.5, 1.0))
    found = [sample_quality(draw, seed=0, view=0, augmentation=chosen) for draw in range(3000)]
    values, counts = np.unique(np.array(found), return_counts=True)
    assert values.tolist() == list(range(30, 40))
    assert counts == pytest.approx(300, rel=0.25)
    assert sample_quality(7, seed=0, view=0, augmentation=chosen) == found[7]
    for other in ({"seed": 1, "view": 0}, {"seed": 0, "view": 1}):
        assert [sample_quality(draw, augmentation=chosen, **other) for draw in range(40)] != found[:40]
    assert sample_quality(7, seed=0, view=0, augmentation=AugmentationConfig()) is None


class Views:
    """Cases of two images."""

    def images(self, row: int) -> list[bytes]:
        return [image_bytes(2 * row + view, size=(40, 40), format="PNG") for view in range(2)]


@pytest.mark.parametrize("workers", [0, 2])
def test_compression_happens_in_training_only_after_the_same_crop(workers: int) -> None:
    crop = AugmentationConfig(crop_scale=(0.3, 0.6))
    both = crop.model_copy(update={"compression": (10, 60)})
    requests = [Request([0, 1], draws, {"cases": 2}, 1.0) for draws in ([8, 9], [-1, -1])]

    def loaded(augmentation: AugmentationConfig) -> list[np.ndarray]:
        reader = ImageReader(Views(), image=PLAIN, augmentation=augmentation, seed=4)
        loader = Loader(Readers(images=reader), config=LoaderConfig(batch_size=2, workers=workers))
        batches = [one.batch for one in loader.load(requests)]
        return [batch.views.pixels.permute(0, 1, 3, 4, 2).numpy() for batch in batches if batch is not None]

    (train, evaluation), (pressed, same) = loaded(crop), loaded(both)
    np.testing.assert_array_equal(evaluation, same)
    for case, draw in enumerate((8, 9)):
        for view in range(2):
            quality = sample_quality(draw, seed=4, view=view, augmentation=both)
            assert quality is not None
            expected = recompressed(np.ascontiguousarray(train[case, view]), quality=quality)
            np.testing.assert_array_equal(pressed[case, view], expected)


# -- All together -------------------------------------------------------------------------------------------------

EVERYTHING = {
    "quarter_turn_prob": 0.5,
    "channel_shift": 0.1,
    "gamma": [0.5, 2.0],
    "invert_prob": 0.3,
    "blur": 1.5,
    "resolution": [0.25, 1.0],
    "resolution_prob": 0.5,
    "noise": 0.1,
    "border_prob": 0.5,
}


@given(order=st.permutations(range(7)), count=st.integers(1, 7))
def test_a_case_is_augmented_alike_in_any_batch(order: list[int], count: int) -> None:
    batch, chosen = noisy(7), order[:count]
    part = batch.take(torch.tensor(chosen))
    assert torch.equal(augmented(part, **EVERYTHING), augmented(batch, **EVERYTHING)[chosen])


@pytest.mark.parametrize("name", [name for name in EVERYTHING if name != "resolution_prob"])
def test_leaving_one_out_moves_no_other(name: str) -> None:
    """With one at a strength that changes nothing, the others do what they do without it."""
    harmless = {
        "quarter_turn_prob": 1e-9,
        "channel_shift": 1e-6,
        "gamma": [1.0, 1.0],
        "invert_prob": 1e-9,
        "blur": 1e-3,
        "resolution": [1.0, 1.0],
        "noise": 1e-6,
        "border_prob": 1e-9,
    }
    batch = noisy(30)
    without = {key: value for key, value in EVERYTHING.items() if key != name}
    found = augmented(batch, **{**EVERYTHING, name: harmless[name]})
    torch.testing.assert_close(found, augmented(batch, **without), atol=1e-3, rtol=0)
    assert (augmented(batch, **EVERYTHING) - found).abs().max() > 0.02


@pytest.mark.parametrize(
    "wrong",
    [{"gamma": [0, 1]}, {"resolution": [0.5, 2]}, {"compression": [90, 30]}, {"compression": [0, 50]}, {"blur": -1}],
    ids=str,
)
def test_ranges_that_make_no_sense_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        AugmentationConfig.model_validate(wrong)
