"""Further looks: mirror images are exact, centres are where and as large as they should be."""

from __future__ import annotations

import pytest
import torch
from torchvision.transforms.v2 import functional as reference

from consilium.core.contracts import Look, Views
from consilium.data.batches.looks import looks


def viewed(images_BVCHW: torch.Tensor) -> Views:
    return Views(torch.ones(images_BVCHW.shape[:2], dtype=torch.bool), images_BVCHW)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_each_crop_and_its_mirror_image_come_in_order(layout: torch.memory_format) -> None:
    images_NCHW = torch.rand(6, 3, 20, 31, generator=torch.Generator().manual_seed(0))
    images_BVCHW = images_NCHW.contiguous(memory_format=layout).view(3, 2, 3, 20, 31)
    named = list(looks(viewed(images_BVCHW), mirror=True, crops=[0.8, 0.5]))
    assert [(look.centre, look.mirrored) for look, _ in named] == [
        (centre, mirrored) for centre in (1.0, 0.8, 0.5) for mirrored in (False, True)
    ]
    found = [own.pixels for _, own in named]
    assert len(found) == 6
    assert torch.equal(found[0], images_BVCHW)
    for number, (rows, columns) in {2: (16, 25), 4: (10, 16)}.items():
        top, left = (20 - rows) // 2, (31 - columns) // 2
        expected = reference.resized_crop(images_NCHW, top, left, rows, columns, [20, 31], antialias=False)
        torch.testing.assert_close(found[number], expected.view_as(found[number]))
    for number in (1, 3, 5):
        assert torch.equal(found[number], found[number - 1].flip(-1))
    assert len(list(looks(viewed(images_BVCHW), mirror=False, crops=[0.8]))) == 2
    ((_, only),) = looks(viewed(images_BVCHW), mirror=False, crops=[])
    assert torch.equal(only.pixels, images_BVCHW)


def test_views_that_do_not_exist_stay_zeros() -> None:
    images_BVCHW = torch.zeros(1, 2, 3, 8, 8)
    assert not any(own.pixels.any() for _, own in looks(viewed(images_BVCHW), mirror=True, crops=[0.7]))


@pytest.mark.parametrize("mirror", [False, True])
def test_zooms_come_from_behind_the_views_with_what_is_there_of_each(mirror: bool) -> None:
    pixels_BVCHW = torch.rand(2, 6, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    there_BV = torch.tensor([[True, False] * 3, [True, True] * 3])
    named = list(looks(Views(there_BV, pixels_BVCHW), mirror=mirror, crops=[0.5], zooms=[0.25, 0.04]))
    plain = [(look, own) for look, own in named if not look.mirrored]
    assert [look for look, _ in plain] == [Look(), Look(centre=0.5), Look(zoom=0.25), Look(zoom=0.04)]
    assert len(named) == len(plain) * (1 + mirror)
    for start, (_, own) in {0: plain[0], 2: plain[2], 4: plain[3]}.items():
        assert torch.equal(own.pixels, pixels_BVCHW[:, start : start + 2])
        assert torch.equal(own.there_BV, there_BV[:, :2])
