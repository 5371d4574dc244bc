"""Masks and thumbnails among images are found, and images that only sound like them are left in peace."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from consilium.data.sources.companions import companions, pattern_of
from consilium.data.sources.names import Glob
from consilium.data.store.prepare import prepare
from tests.data.samples import data_config, read, write_images


def write_mask(path: Path, *, levels: int = 2, format: str = "PNG") -> None:
    """A picture of a few grey levels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    mask = np.zeros((40, 48), np.uint8)
    for level in range(1, levels):
        mask[5 * level : 5 * level + 4, 5:30] = 255 if levels == 2 else level
    Image.fromarray(mask).save(path, format)


def found(root: Path) -> dict[str, str]:
    """The image of each companion below a folder."""
    names = sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())
    return {item.name: item.image for item in companions(names, root=str(root))}


@pytest.mark.parametrize(
    "name",
    ["a (1)_mask.png", "a (1)-mask.png", "a (1)_segmentation.tif", "a (1)_seg.png", "mask_a (1).png", "a (1).mask.png",
     "A (1)_MASK.PNG", "a (1)_mask_1.png", "a (1)_label.png", "a (1)_GroundTruth.png", "thumb_a (1).jpg"],
)  # fmt: skip
def test_words_in_names(tmp_path: Path, name: str) -> None:
    write_images(tmp_path, ["ct/a (1).jpg", f"ct/{name}", "ct/b.jpg", "mri/c_mask.png"])
    assert found(tmp_path) == {f"ct/{name}": "ct/a (1).jpg"}


@pytest.mark.parametrize(("image", "mask"), [("image_001.png", "mask_001.png"), ("image.png", "mask.png")])
def test_names_of_two_words(tmp_path: Path, image: str, mask: str) -> None:
    write_images(tmp_path, [f"ct/p1/{image}", f"ct/p1/{mask}", f"ct/p2/{image}"])
    assert found(tmp_path) == {f"ct/p1/{mask}": f"ct/p1/{image}"}


@pytest.mark.parametrize("levels", [2, 5])
@pytest.mark.parametrize("images", ["ct/{}.png", "ct/images/{}.png"])
def test_folders_of_masks(tmp_path: Path, images: str, levels: int) -> None:
    write_images(tmp_path, [images.format(n) for n in range(3)])
    for n in range(3):
        write_mask(tmp_path / f"ct/masks/{n}.png", levels=levels)
    assert found(tmp_path) == {f"ct/masks/{n}.png": images.format(n) for n in range(3)}


def test_a_folder_of_masks_beside_the_labels(tmp_path: Path) -> None:
    write_images(tmp_path, ["ct/1.png", "mri/1.png", "mri/2.png"])
    for name in ("ct/1.png", "mri/1.png", "mri/2.png"):
        write_mask(tmp_path / "masks" / name)
    assert found(tmp_path) == {f"masks/{name}": name for name in ("ct/1.png", "mri/1.png", "mri/2.png")}


def test_masks_named_so_in_a_folder_of_masks(tmp_path: Path) -> None:
    write_images(tmp_path, ["ct/ISIC_1.jpg", "mri/ISIC_2.jpg"])
    for name in ("ISIC_1_segmentation.png", "ISIC_2_segmentation.png"):
        write_mask(tmp_path / "GroundTruth" / name)
    assert found(tmp_path) == {
        "GroundTruth/ISIC_1_segmentation.png": "ct/ISIC_1.jpg",
        "GroundTruth/ISIC_2_segmentation.png": "mri/ISIC_2.jpg",
    }


def test_images_and_masks_in_a_folder_that_sounds_like_masks(tmp_path: Path) -> None:
    write_images(tmp_path, ["segmentation_data/ct/a.png", "segmentation_data/ct/a_mask.png"])
    assert found(tmp_path) == {"segmentation_data/ct/a_mask.png": "segmentation_data/ct/a.png"}


def test_pictures_of_two_values_named_after_another(tmp_path: Path) -> None:
    write_images(tmp_path, ["ct/1.png", "ct/2.png", "ct/1_lesion.png", "ct/2_view.png"])
    write_mask(tmp_path / "ct/1_lesion.png")
    assert found(tmp_path) == {"ct/1_lesion.png": "ct/1.png"}


def test_masks_saved_as_jpeg(tmp_path: Path) -> None:
    write_images(tmp_path, ["ct/1.png"])
    write_mask(tmp_path / "ct/1_area.jpg", format="JPEG")
    assert found(tmp_path) == {"ct/1_area.jpg": "ct/1.png"}


@pytest.mark.parametrize(
    "names",
    [
        ["mask/1.png", "no_mask/1.png"],  # a class called mask
        ["ct/left.png", "ct/left_eye.png"],
        ["ct/1.png", "ct/1_2.png", "ct/10.png"],
        ["ct/labels.png", "ct/mask_of_a_face.png", "ct/segment.png"],
        ["masks/a/1.png", "masks/b/2.png"],
    ],
)
def test_what_only_sounds_like_it(tmp_path: Path, names: list[str]) -> None:
    write_images(tmp_path, names)
    assert found(tmp_path) == {}


def test_images_that_are_all_of_two_values(tmp_path: Path) -> None:
    for name in ("1.png", "1_a.png", "1_b.png"):
        write_mask(tmp_path / "ct" / name)
    assert found(tmp_path) == {}


@pytest.mark.parametrize(
    ("masks", "pattern"),
    [
        (["ct/1_mask.png", "mri/2_mask.jpg"], "*_mask.*"),
        (["ct/1_mask.png", "ct/1_mask_2.png"], "*_mask*"),
        (["ct/mask-1.png"], "mask-*"),
        (["ct/masks/1.png", "mri/masks/2.png"], "masks"),
    ],
)
def test_the_pattern_that_leaves_them_out(tmp_path: Path, masks: list[str], pattern: str) -> None:
    write_images(tmp_path, ["ct/1.png", "mri/2.png"])
    for mask in masks:
        write_mask(tmp_path / mask)
    names = ["ct/1.png", "mri/2.png", *masks]
    items = companions(names, root=str(tmp_path))
    assert pattern_of(items, names) == pattern
    kept, _ = read("folder", tmp_path, exclude=[pattern])
    assert [case.id for case in kept] == ["s:ct/1.png", "s:mri/2.png"]


SIGNS = [*"a1_-. ()[]*?\udcff\u00e9", "mask", "seg", "img", "thumb"]
PART = st.lists(st.sampled_from(SIGNS), max_size=6).map("".join)
NAMES = st.lists(st.lists(PART.filter(lambda part: part not in ("", ".", "..")), min_size=1, max_size=3), max_size=12)


@given(names=NAMES.map(lambda found: sorted({"/".join(parts) for parts in found})))
def test_names_of_any_kind(names: list[str]) -> None:
    """Each companion is one of the names, has an image that is none, and a pattern leaves it out."""
    items = companions(names, root="s3://nowhere")
    of = {item.name: item.image for item in items}
    assert len(of) == len(items)
    assert of.keys() <= set(names)
    assert not of.keys() & set(of.values())
    for item in items:
        assert Glob(pattern_of([item], names)).matches(item.name)


def test_an_image_and_its_mask_are_never_on_two_sides(tmp_path: Path) -> None:
    names = [f"{label}/{label} ({n}).png" for label in ("benign", "normal") for n in range(20)]
    write_images(tmp_path / "d", names)
    for name in names:
        write_mask(tmp_path / "d" / name.replace(".png", "_mask.png"))
    source = {"kind": "folder", "name": "s", "path": str(tmp_path / "d")}
    table = prepare(data_config(tmp_path, source, split={"val": 0.3, "test": 0.3})).store.table
    split_of = dict(zip(table.ids, table.splits, strict=True))
    assert len(split_of) == 80
    assert all(split_of[f"s:{name}"] == split_of[f"s:{name[:-4]}_mask.png"] for name in names)


def test_a_mask_follows_the_patient_of_its_image(tmp_path: Path) -> None:
    write_images(tmp_path / "d", ["ct/p1_a.png", "ct/p1_a_mask.png"])
    cases, _ = read("folder", tmp_path / "d", group_pattern="^(p[0-9]+)_a.png")
    assert [case.group for case in cases] == ["p1", "p1"]
