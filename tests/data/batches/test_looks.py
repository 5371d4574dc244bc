"""Further looks: mirror images are exact, centres are where and as large as they should be."""

from __future__ import annotations

import pytest
import torch
from torchvision.transforms.v2 import functional as reference

from consilium.data.batches.looks import looks


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_each_crop_and_its_mirror_image_come_in_order(layout: torch.memory_format) -> None:
    images_NCHW = torch.rand(6, 3, 20, 31, generator=torch.Generator().manual_seed(0))
    images_BVCHW = images_NCHW.contiguous(memory_format=layout).view(3, 2, 3, 20, 31)
    named = list(looks(images_BVCHW, mirror=True, crops=[0.8, 0.5]))
    assert [(look.centre, look.mirrored) for look, _ in named] == [
        (centre, mirrored) for centre in (1.0, 0.8, 0.5) for mirrored in (False, True)
    ]
    found = [own for _, own in named]
    assert len(found) == 6
    assert torch.equal(found[0], images_BVCHW)
    for number, (rows, columns) in {2: (16, 25), 4: (10, 16)}.items():
        top, left = (20 - rows) // 2, (31 - columns) // 2
        expected = reference.resized_crop(images_NCHW, top, left, rows, columns, [20, 31], antialias=False)
        torch.testing.assert_close(found[number], expected.view_as(found[number]))
    for number in (1, 3, 5):
        assert torch.equal(found[number], found[number - 1].flip(-1))
    assert len(list(looks(images_BVCHW, mirror=False, crops=[0.8]))) == 2
    ((_, only),) = looks(images_BVCHW, mirror=False, crops=[])
    assert only is images_BVCHW


def test_views_that_do_not_exist_stay_zeros() -> None:
    images_BVCHW = torch.zeros(1, 2, 3, 8, 8)
    assert not any(own.any() for _, own in looks(images_BVCHW, mirror=True, crops=[0.7]))
