"""Transforms on the device: torchvision's arithmetic, and numbers that belong to the draw alone."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms.v2 import functional as reference

from consilium.core.contracts import Batch, Views
from consilium.data.batches import transforms
from consilium.data.batches.colours import adjust_brightness_, adjust_contrast_, adjust_hue_, adjust_saturation_
from consilium.data.batches.config import AugmentationConfig
from consilium.data.batches.laterality import exchanged, sides_of
from consilium.data.batches.transforms import DeviceTransform, affine, sample_box, sample_quality, uniforms
from consilium.data.config import ImageConfig
from tests.data.samples import case_table

IMAGE = ImageConfig(size=(12, 20), mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3))
EVERYTHING = AugmentationConfig(
    crop_scale=(0.5, 1.0),
    horizontal_flip_prob=0.5,
    vertical_flip_prob=0.5,
    rotation_degrees=20,
    translate=0.1,
    scale=(0.8, 1.2),
    brightness_jitter=0.3,
    contrast_jitter=0.3,
    saturation_jitter=0.3,
    hue_jitter=0.1,
    grayscale_prob=0.3,
    channel_shift=0.1,
    gamma=(0.7, 1.4),
    invert_prob=0.3,
    blur=1.0,
    resolution=(0.3, 1.0),
    resolution_prob=0.5,
    noise=0.1,
    border_prob=0.5,
)


def batch_of(cases: int, *, views: int = 1, size: tuple[int, int] = (12, 20), seed: int = 0) -> Batch:
    rng = np.random.default_rng(seed)
    images_BVHWC = torch.from_numpy(rng.integers(0, 256, (cases, views, *size, 3), dtype=np.uint8))
    return Batch(
        images=Views(torch.ones(cases, views, dtype=torch.bool), images_BVHWC.permute(0, 1, 4, 2, 3)),
        rows_B=torch.arange(cases),
        draws_B=torch.arange(1000, 1000 + cases),
    )


def part_of(batch: Batch, cases: list[int]) -> Batch:
    return batch.take(torch.tensor(cases))


def augmented(batch: Batch, augmentation: AugmentationConfig, *, seed: int = 0) -> Tensor:
    """Images after training's transform, brought back to [0, 1]."""
    plain = ImageConfig(size=(12, 20), mean=(0, 0, 0), std=(1, 1, 1))
    return DeviceTransform(plain, augmentation=augmentation, seed=seed)(batch, train=True).views.pixels


def colours(count: int = 6, size: tuple[int, int] = (9, 14)) -> Tensor:
    """Images with plain noise, grey and pure colours: every branch of the hue."""
    images_NCHW = torch.rand(count, 3, *size, generator=torch.Generator().manual_seed(0))
    images_NCHW[:, :, 0] = images_NCHW[:, :1, 0]
    pure = torch.tensor(list(itertools.product((0.0, 1.0), repeat=3))).T
    images_NCHW[:, :, 1, :8] = pure
    return images_NCHW


# Numbers


def test_the_hash_is_splitmix64() -> None:
    # The published first outputs of SplitMix64 from state 1234567, which grows by the golden gamma.
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    states = [(1234567 + n * 0x9E3779B97F4A7C15) % 2**64 for n in range(4)]
    assert transforms._mix(np.array(states, np.uint64)).tolist() == expected


draw_numbers = st.integers(-1, 2**62)


@given(draws=st.lists(draw_numbers, min_size=1, max_size=8), seed=st.integers(0, 2**31 - 1), stream=st.integers(0, 9))
def test_uniforms_belong_to_the_draw_alone(draws: list[int], seed: int, stream: int) -> None:
    together = uniforms(np.array(draws), seed=seed, stream=stream, count=5)
    assert together.shape == (len(draws), 5)
    assert together.dtype == np.float64
    assert ((together >= 0) & (together < 1)).all()
    for number, draw in enumerate(draws):
        alone = uniforms(np.array([draw]), seed=seed, stream=stream, count=3)
        np.testing.assert_array_equal(alone[0], together[number, :3])


def test_uniforms_differ_by_seed_stream_draw_and_position_and_spread_evenly() -> None:
    draws = np.arange(4000)
    sets = [uniforms(draws, seed=seed, stream=stream, count=4) for seed in (0, 1) for stream in (0, 1, 2)]
    columns = np.concatenate(sets, axis=1).T
    assert len(np.unique(columns)) == columns.size
    assert np.abs(columns.mean(axis=1) - 0.5).max() < 4 * math.sqrt(1 / 12 / 4000)
    correlation = np.corrcoef(np.concatenate([columns, columns[:, np.roll(draws, 1)]])) - np.eye(2 * len(columns))
    assert np.abs(correlation).max() < 5 / math.sqrt(4000)


# Crops


@given(
    draw=draw_numbers,
    width=st.integers(1, 3000),
    height=st.integers(1, 3000),
    scale=st.tuples(st.floats(0.05, 0.5), st.floats(0.5, 1.0)),
    ratio=st.tuples(st.floats(0.3, 1.0), st.floats(1.0, 3.0)),
)
def test_a_box_lies_inside_on_whole_pixels(
    draw: int, width: int, height: int, scale: tuple[float, float], ratio: tuple[float, float]
) -> None:
    chosen = AugmentationConfig(crop_scale=scale, crop_ratio=ratio)
    box = sample_box(draw, seed=3, view=0, augmentation=chosen, width=width, height=height)
    assert box is not None
    pixels = np.array([box.left * width, box.top * height, box.width * width, box.height * height])
    np.testing.assert_allclose(pixels, pixels.round(), atol=1e-6)
    left, top, columns, rows = pixels.round()
    assert left >= 0
    assert top >= 0
    assert columns >= 1
    assert rows >= 1
    assert left + columns <= width
    assert top + rows <= height


def test_boxes_are_spread_as_torchvision_spreads_them() -> None:
    scale, ratio, size = (0.2, 0.9), (0.5, 1.6), (150, 200)
    chosen = AugmentationConfig(crop_scale=scale, crop_ratio=ratio)
    ours = []
    for draw in range(3000):
        box = sample_box(draw, seed=0, view=0, augmentation=chosen, width=size[1], height=size[0])
        assert box is not None
        ours.append((box.top * size[0], box.left * size[1], box.height * size[0], box.width * size[1]))
    torch.manual_seed(0)
    image = torch.empty(3, *size)
    theirs = np.array([RandomResizedCrop.get_params(image, list(scale), list(ratio)) for _ in range(3000)])
    for power in (1, 2):
        np.testing.assert_allclose((np.array(ours) ** power).mean(axis=0), (theirs**power).mean(axis=0), rtol=0.06)


def test_a_box_belongs_to_draw_view_and_seed() -> None:
    def box(draw: int = 7, view: int = 0, seed: int = 0) -> object:
        return sample_box(draw, seed=seed, view=view, augmentation=EVERYTHING, width=640, height=480)

    assert box() == box()
    assert len({box(), box(draw=8), box(view=1), box(seed=1)}) == 4


def test_a_box_reaches_every_place() -> None:
    chosen = AugmentationConfig(crop_scale=(0.25, 0.25), crop_ratio=(1, 1))
    boxes = [sample_box(draw, seed=0, view=0, augmentation=chosen, width=4, height=4) for draw in range(300)]
    assert {(box.left, box.top) for box in boxes if box} == set(itertools.product((0.0, 0.25, 0.5), repeat=2))


def test_no_crop_scale_no_box() -> None:
    assert sample_box(0, seed=0, view=0, augmentation=AugmentationConfig(), width=9, height=9) is None


@pytest.mark.parametrize(("width", "height", "expected"), [(900, 9, (12, 9)), (9, 900, (9, 12))])
def test_where_no_shape_fits_the_centre_is_taken(width: int, height: int, expected: tuple[int, int]) -> None:
    box = sample_box(
        0, seed=0, view=0, augmentation=AugmentationConfig(crop_scale=(0.9, 1)), width=width, height=height
    )
    assert box is not None
    assert (round(box.width * width), round(box.height * height)) == expected
    assert box.left * width == pytest.approx((width - expected[0]) // 2)
    assert box.top * height == pytest.approx((height - expected[1]) // 2)


# Normalisation


@pytest.mark.parametrize("layout", ["stacked", "planes"])
@pytest.mark.parametrize("train", [False, True])
def test_without_augmentation_images_are_only_normalised(layout: str, train: bool) -> None:
    batch = batch_of(3, views=2)
    if layout == "planes":
        batch = replace(batch, images=batch.views.each(Tensor.contiguous))
    before = batch.views.pixels.clone()
    result = DeviceTransform(IMAGE, augmentation=AugmentationConfig(), seed=0)(batch, train=train)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGE.mean, IMAGE.std))
    torch.testing.assert_close(result.views.pixels, (before / 255 - mean) / std, atol=1e-5, rtol=1e-5)
    assert result.views.pixels.dtype == torch.float32
    assert result.views.pixels.flatten(0, 1).is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(batch.views.pixels, before)
    assert torch.equal(result.draws_B, batch.draws_B)


def test_evaluation_never_augments_and_needs_no_augmentation() -> None:
    batch = batch_of(4)
    plain = DeviceTransform(IMAGE, augmentation=None, seed=0)(batch, train=False)
    strong = DeviceTransform(IMAGE, augmentation=EVERYTHING, seed=0)(batch, train=False)
    assert torch.equal(plain.views.pixels, strong.views.pixels)


@pytest.mark.parametrize("augmentation", [None, EVERYTHING])
def test_views_that_do_not_exist_are_zeros(augmentation: AugmentationConfig | None) -> None:
    batch = batch_of(3, views=2)
    batch.views.there_BV[1, 1] = False
    result = DeviceTransform(IMAGE, augmentation=augmentation, seed=0)(batch, train=True).views.pixels
    assert not result[1, 1].any()
    assert result.flatten(2).any(dim=2).sum() == 5


# Views


@given(draw=st.integers(0, 2**40), view=st.integers(0, 5), seed=st.integers(0, 9))
def test_views_take_the_numbers_of_the_first_where_they_go_together(draw: int, view: int, seed: int) -> None:
    keys = {"crop_scale": (0.1, 0.9), "compression": (1, 100)}
    apart = AugmentationConfig(**keys)

    def drawn(augmentation: AugmentationConfig, view: int) -> tuple[object, object]:
        box = sample_box(draw, seed=seed, view=view, augmentation=augmentation, width=300, height=200)
        return box, sample_quality(draw, seed=seed, view=view, augmentation=augmentation)

    for views in ("together", "mirrored"):
        assert drawn(AugmentationConfig(**keys, views=views), view) == drawn(apart, 0)
    assert (drawn(apart, view) == drawn(apart, 0)) == (view == 0)


@pytest.mark.parametrize("views", ["together", "mirrored"])
def test_views_that_go_together_are_changed_alike(views: str) -> None:
    batch = batch_of(5, views=3)
    pixels_BVCHW = batch.views.pixels[:, :1].repeat(1, 3, 1, 1, 1)
    batch = replace(batch, images=replace(batch.views, pixels_BVCHW=pixels_BVCHW))
    apart = augmented(batch, EVERYTHING)
    found = augmented(batch, EVERYTHING.model_copy(update={"views": views}))
    assert torch.equal(found, apart[:, :1].expand_as(apart))
    assert not torch.equal(found, apart)


FLIPS = AugmentationConfig(horizontal_flip_prob=0.5, views="mirrored")
PLAIN = ImageConfig(size=(12, 20), mean=(0, 0, 0), std=(1, 1, 1))


def test_a_mirror_exchanges_left_and_right() -> None:
    batch = batch_of(40, views=3)
    names = [["left", "right"], ["right", "x", "left"], ["left"], ["", ""], ["left", "left", "right"]]
    table = case_table([{"files": "abc"[: len(names[row % 5])], "names": names[row % 5]} for row in range(40)])
    transform = DeviceTransform(PLAIN, augmentation=FLIPS, seed=0, sides_N2=sides_of(table))
    given = batch.views.pixels.float() / 255
    flips = [uniforms(np.array([draw]), seed=0, stream=1, count=1)[0, 0] < 0.5 for draw in batch.draws_B.tolist()]
    assert 10 < sum(flips) < 30
    order = {0: [1, 0, 2], 1: [2, 1, 0]}
    expected = torch.stack(
        [
            given[row][order.get(row % 5, [0, 1, 2])].flip(-1) if flipped else given[row]
            for row, flipped in enumerate(flips)
        ]
    )
    torch.testing.assert_close(transform(batch, train=True).views.pixels, expected)
    torch.testing.assert_close(transform(batch, train=False).views.pixels, given)
    # In whatever batch and order the cases come.
    part = part_of(batch, [7, 31, 6])
    torch.testing.assert_close(transform(part, train=True).views.pixels, expected[[7, 31, 6]])
    # Without names they are only flipped.
    unnamed = DeviceTransform(PLAIN, augmentation=FLIPS, seed=0)(batch, train=True).views.pixels
    torch.testing.assert_close(
        unnamed, torch.stack([given[row].flip(-1) if flips[row] else given[row] for row in range(40)])
    )


@given(
    st.lists(st.permutations(range(4)).map(lambda places: places[:2]) | st.just([-1, -1]), min_size=1, max_size=6),
    st.data(),
)
def test_an_exchange_is_undone_by_another(sides: list[list[int]], data: st.DataObject) -> None:
    sides_B2 = np.array(sides)
    chosen_B = np.array(data.draw(st.lists(st.booleans(), min_size=len(sides), max_size=len(sides))))
    places_BV = exchanged(sides_B2, views=4, chosen_B=chosen_B)
    assert torch.equal(places_BV.gather(1, places_BV), torch.arange(4).expand(len(sides), 4))
    for (left, right), chosen, places in zip(sides, chosen_B, places_BV.tolist(), strict=True):
        expected = list(range(4))
        if chosen and left >= 0:
            expected[left], expected[right] = right, left
        assert places == expected


@given(st.lists(st.lists(st.sampled_from(["left", "right", "", "lateral"]), max_size=4), max_size=6), st.data())
def test_sides_of_a_table(names: list[list[str]], data: st.DataObject) -> None:
    table = case_table([{"files": [str(n) for n in range(len(own))], "names": own} for own in names])
    order = data.draw(st.permutations(range(len(names))))
    found = sides_of(table.select(np.array(order, dtype=int))).tolist()
    for row, sides in zip(order, found, strict=True):
        own = names[row]
        has_both = own.count("left") == own.count("right") == 1
        assert sides == ([own.index("left"), own.index("right")] if has_both else [-1, -1])


# Augmentation


@given(cases=st.permutations(range(6)).flatmap(lambda order: st.integers(1, 6).map(lambda n: list(order[:n]))))
def test_a_case_is_augmented_alike_in_any_batch(cases: list[int]) -> None:
    batch = batch_of(6, views=2)
    transform = DeviceTransform(IMAGE, augmentation=EVERYTHING, seed=5)
    whole = transform(batch, train=True).views.pixels
    assert torch.equal(transform(part_of(batch, cases), train=True).views.pixels, whole[cases])


def test_images_in_several_chunks_come_out_as_in_one(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = batch_of(7)
    whole = augmented(batch, EVERYTHING)
    monkeypatch.setattr(transforms, "_CHUNK_PIXELS", 3 * 12 * 20)
    assert torch.equal(augmented(batch, EVERYTHING), whole)


SINGLE = {
    "horizontal_flip_prob": 1.0,
    "vertical_flip_prob": 1.0,
    "rotation_degrees": 90,
    "translate": 0.5,
    "scale": (1.5, 2.0),
    "brightness_jitter": 1.0,
    "contrast_jitter": 1.0,
    "saturation_jitter": 1.0,
    "hue_jitter": 0.5,
    "grayscale_prob": 1.0,
    "channel_shift": 0.5,
    "gamma": (2.0, 3.0),
    "invert_prob": 1.0,
    "blur": 50,
    "resolution": (0.1, 0.4),
    "noise": 0.5,
    "border_prob": 1.0,
}


@pytest.mark.parametrize("name", SINGLE)
def test_each_augmentation_changes_every_image_and_stays_in_range(name: str) -> None:
    batch = batch_of(5)
    result = augmented(batch, AugmentationConfig(**{name: SINGLE[name]}))
    assert result.min() >= 0
    assert result.max() <= 1
    assert ((result - batch.views.pixels / 255).abs().flatten(1).amax(1) > 0.02).all()


def test_flips_are_exact_and_as_frequent_as_asked() -> None:
    batch = batch_of(3)
    pixels = batch.views.pixels / 255
    torch.testing.assert_close(augmented(batch, AugmentationConfig(horizontal_flip_prob=1.0)), pixels.flip(-1))
    torch.testing.assert_close(augmented(batch, AugmentationConfig(vertical_flip_prob=1.0)), pixels.flip(-2))
    many = batch_of(2000, size=(2, 2))
    flipped = (augmented(many, AugmentationConfig(horizontal_flip_prob=0.3)) - many.views.pixels / 255).abs() > 0.002
    assert flipped.flatten(1).any(1).float().mean() == pytest.approx(0.3, abs=0.04)


def test_grey_images_have_the_grey_of_torchvision() -> None:
    batch = batch_of(3)
    result = augmented(batch, AugmentationConfig(grayscale_prob=1.0))
    expected = reference.rgb_to_grayscale(batch.views.pixels / 255, num_output_channels=3)
    torch.testing.assert_close(result, expected, atol=1e-5, rtol=0)


def test_switching_an_augmentation_on_moves_no_other() -> None:
    batch = batch_of(20)
    flips = AugmentationConfig(horizontal_flip_prob=0.5)
    more = AugmentationConfig(
        horizontal_flip_prob=0.5,
        rotation_degrees=1e-4,
        brightness_jitter=1e-4,
        hue_jitter=1e-6,
        channel_shift=1e-4,
        gamma=(1, 1.0001),
        invert_prob=1e-9,
        blur=0.05,
        resolution=(0.999, 1),
        noise=1e-4,
        border_prob=1e-9,
    )
    torch.testing.assert_close(augmented(batch, more), augmented(batch, flips), atol=2e-3, rtol=0)


def test_a_number_keeps_its_place_for_ever() -> None:
    # Runs of older versions are repeated by these places: a new augmentation is appended.
    places = {position.name: int(position) for position in transforms._Position}
    assert list(places.items())[:11] == [
        ("HORIZONTAL_FLIP", 0),
        ("VERTICAL_FLIP", 1),
        ("ROTATION", 2),
        ("TRANSLATE_X", 3),
        ("TRANSLATE_Y", 4),
        ("SCALE", 5),
        ("BRIGHTNESS", 6),
        ("CONTRAST", 7),
        ("SATURATION", 8),
        ("HUE", 9),
        ("GREY", 10),
    ]
    taken = [*places.values(), *(places[name] + n for name in ("GAINS", "OFFSETS") for n in (1, 2))]
    assert sorted(taken) == list(range(max(taken) + 1))  # each number is used once


def test_views_and_seeds_are_augmented_independently() -> None:
    batch = batch_of(2, views=2)
    batch.views.pixels[:, 1] = batch.views.pixels[:, 0]
    one, other = augmented(batch, EVERYTHING), augmented(batch, EVERYTHING, seed=1)
    for first, second in ((one[:, 0], one[:, 1]), (one, other)):
        assert (first - second).abs().flatten(1).mean(1).min() > 0.01


FACTORS = torch.tensor([0.0, 0.4, 0.9, 1.0, 1.3, 2.0])


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (adjust_brightness_, reference.adjust_brightness),
        (adjust_contrast_, reference.adjust_contrast),
        (adjust_saturation_, reference.adjust_saturation),
    ],
)
def test_colour_factors_match_torchvision(ours: object, theirs: object) -> None:
    images_NCHW = colours()
    expected = torch.stack([theirs(image, float(x)) for image, x in zip(images_NCHW, FACTORS, strict=True)])
    ours(images_NCHW, factors_N=FACTORS)
    torch.testing.assert_close(images_NCHW, expected, atol=2e-6, rtol=0)


def test_hue_matches_torchvision() -> None:
    images_NCHW, turns = colours(), [-0.5, -0.2, -0.01, 0.0, 0.13, 0.5]
    expected = torch.stack([reference.adjust_hue(image, x) for image, x in zip(images_NCHW, turns, strict=True)])
    adjust_hue_(images_NCHW, turns_N=torch.tensor(turns))
    torch.testing.assert_close(images_NCHW, expected, atol=5e-6, rtol=0)


@pytest.mark.parametrize("size", [(20, 20), (12, 31), (33, 18)])
def test_affine_matches_torchvision(size: tuple[int, int]) -> None:
    height, width = size
    images_NCHW = torch.rand(4, 3, *size, generator=torch.Generator().manual_seed(1))
    degrees, pixels_x, pixels_y, zooms = [0, 15, -70, 180], [0, 3, -2, 1], [0, -4, 1, 2], [1.0, 1.2, 0.7, 1.0]
    found = affine(
        images_NCHW,
        degrees_N=torch.tensor(degrees, dtype=torch.float32),
        shift_x_N=torch.tensor(pixels_x) / width,
        shift_y_N=torch.tensor(pixels_y) / height,
        zoom_N=torch.tensor(zooms),
    )
    expected = torch.stack(
        [
            reference.affine(
                image,
                angle=angle,
                translate=[x, y],
                scale=zoom,
                shear=[0.0, 0.0],
                interpolation=reference.InterpolationMode.BILINEAR,
            )
            for image, angle, x, y, zoom in zip(images_NCHW, degrees, pixels_x, pixels_y, zooms, strict=True)
        ]
    )
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(found[0], images_NCHW[0], atol=1e-5, rtol=0)


def test_colour_changes_come_in_the_documented_order() -> None:
    batch = batch_of(4)
    chosen = AugmentationConfig(
        brightness_jitter=0.5, contrast_jitter=0.5, saturation_jitter=0.5, hue_jitter=0.2, grayscale_prob=0.5
    )
    numbers = uniforms(batch.draws_B.numpy(), seed=9, stream=1, count=11)
    expected = []
    for image, number in zip(batch.views.pixels[:, 0] / 255, numbers, strict=True):
        image = reference.adjust_brightness(image, 0.5 + number[6])
        image = reference.adjust_contrast(image, 0.5 + number[7])
        image = reference.adjust_saturation(image, 0.5 + number[8])
        image = reference.adjust_hue(image, -0.2 + 0.4 * number[9])
        expected.append(reference.rgb_to_grayscale(image, 3) if number[10] < 0.5 else image)
    torch.testing.assert_close(augmented(batch, chosen, seed=9)[:, 0], torch.stack(expected), atol=1e-5, rtol=0)
