"""Images that belong to another one: its mask, its thumbnail."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from consilium.core.errors import ConsiliumError
from consilium.core.places import is_remote, join
from consilium.data.images.reading import decode, read_bytes
from consilium.data.sources.names import Glob

Kind = Literal["mask", "thumbnail"]
_WORDS: dict[Kind, frozenset[str]] = {
    "mask": frozenset(
        {
            *("mask", "masks", "segmentation", "segmentations", "segmented", "seg", "segm", "segs", "roi", "gt"),
            *(
                "label",
                "labels",
                "labelmap",
                "labelstr",
                "labelsts",
                "groundtruth",
                "annotation",
                "annotations",
                "anno",
            ),
            *("contour", "contours", "superpixels", "trimap"),
        }
    ),
    "thumbnail": frozenset({"thumb", "thumbs", "thumbnail", "thumbnails", "tn"}),
}
_KIND_OF: dict[str, Kind] = {word: kind for kind, words in _WORDS.items() for word in words}
_IMAGE_WORDS = frozenset(
    {"image", "images", "img", "imgs", "im", "scan", "scans", "frame", "frames", "original", "imagestr", "imagests"}
)
_SEPARATOR = re.compile(r"[\s_.\-]+")
_ENDING = re.compile(r"(?:\.nii)?\.[^.]*$", re.I)
_LOOKED_AT = 16  # pictures of a kind that are decoded to see that they are masks
_FEW = 32  # grey levels that a map of labels has at most
_FLAT = 0.98  # share of pixels near black or white in a mask that was saved as JPEG
MAX_PIXELS = 100_000_000


@dataclass(frozen=True)
class Companion:
    """A file that belongs to an image; ``sign`` is the word or folder that says so, as it is written."""

    name: str
    image: str
    kind: Kind
    sign: str


def companions(names: Sequence[str], *, root: str) -> list[Companion]:
    """The masks and thumbnails among images, given by their paths below ``root``, with the image of each.

    A file is one where a word in its name says so and the image that has the same name without that word lies beside
    it (``a_mask.png``, ``seg-a.png`` and ``a.jpg``); or where it lies in a folder called so (``masks``) and an image
    of its name outside that folder, below the one above. The second, and files named after another with any other
    words (``a_lesion.png`` and ``a.png``), count as masks only if their pictures are those of one: a few levels, or
    black and white. At most 16 pictures of a kind are decoded for this, and none in a bucket.
    """
    folders: dict[str, _Folder | None] = {}
    parsed = [_parse(name, folders) for name in names]
    aboves = {item.folder.above for item in parsed if item.folder is not None}
    beside: dict[tuple[str, str], str] = {}  # the image in a folder, of a key
    below: dict[tuple[str, str], list[str]] = defaultdict(list)  # the images anywhere below a folder, of a key
    for item in parsed:
        if item.kind is None:
            beside.setdefault((item.home, item.key), item.name)
            for above in _ancestors(item.home) if aboves and item.folder is None else ():
                if above in aboves:
                    below[above, item.key].append(item.name)
    found: list[Companion] = []
    doubtful: dict[str, list[Companion]] = defaultdict(list)
    for item in parsed:
        image, sign = _image_beside(item, beside) if item.images else (None, "")
        if image is not None and item.kind is not None:
            found.append(Companion(item.name, image, item.kind, sign))
        elif item.folder is not None and (lower := _image_below(item, item.folder, below)) is not None:
            companion = Companion(item.name, lower, item.folder.kind, item.folder.name)
            (found if companion.kind == "thumbnail" else doubtful[companion.sign]).append(companion)
        elif image is not None:
            doubtful[sign].append(Companion(item.name, image, "mask", sign))
    for alike in doubtful.values():
        if _are_masks(alike, root):
            found += alike
    return sorted(found, key=lambda item: item.name)


class _Folder(NamedTuple):
    """A folder called masks: what it holds, and the folder above, below which the images are."""

    above: str
    name: str
    kind: Kind


class _Name(NamedTuple):
    """A path, taken apart.

    ``home`` is the folder that it is in, ``key`` what its name has in common with those of its companions; ``images``
    are the keys that its own image may have, with the word that makes the difference; ``kind`` is what such a word
    says; ``folder`` is the one called masks that it is in.
    """

    name: str
    home: str
    key: str
    images: Sequence[tuple[str, str]]
    kind: Kind | None
    folder: _Folder | None


def _parse(name: str, folders: dict[str, _Folder | None]) -> _Name:
    """``folders`` keeps what is known of the folders."""
    home, _, file = name.rpartition("/")
    stem = _ENDING.sub("", file) or file
    words = [word for word in _SEPARATOR.split(stem) if word]
    small = [word.lower() for word in words]
    if home not in folders:
        folders[home] = _kind_of(home)
    if _KIND_OF.keys().isdisjoint(small):
        ends = [end for end in range(len(words) - 1, 0, -1) if not _is_number(words[end])]
        return _Name(name, home, _key(words), [(_key(words[:end]), words[end]) for end in ends], None, folders[home])
    at = max(at for at, word in enumerate(small) if word in _KIND_OF)
    without = [_key(words[:at] + words[at + 1 :])]
    if all(map(_is_number, words[at + 1 :])):  # a second mask of the image
        without.append(_key(words[:at]))
    images = [(other, words[at]) for other in without]
    return _Name(name, home, _key(words), images, _KIND_OF[small[at]], folders[home])


def _kind_of(folder: str) -> _Folder | None:
    """The first folder of a path that is called masks."""
    parts = folder.split("/")
    for depth, part in enumerate(parts):
        for word in _SEPARATOR.split(part.lower()):
            if word in _KIND_OF:
                return _Folder("/".join(parts[:depth]), part, _KIND_OF[word])
    return None


def _is_number(word: str) -> bool:
    return word.strip("()").isdigit()


def _key(words: Sequence[str]) -> str:
    """The words of a name without those that only say that it is an image."""
    return " ".join([word for word in map(str.lower, words) if word not in _IMAGE_WORDS])


def _ancestors(folder: str) -> Iterator[str]:
    """The folder and all above it."""
    while folder:
        yield folder
        folder = folder.rpartition("/")[0]
    yield ""


def _image_beside(item: _Name, beside: Mapping[tuple[str, str], str]) -> tuple[str | None, str]:
    """The image of a file that lies beside it, and the word that makes the difference."""
    for key, sign in item.images:
        image = beside.get((item.home, key), item.name)
        if image != item.name:
            return image, sign
    return None, ""


def _image_below(item: _Name, folder: _Folder, below: Mapping[tuple[str, str], list[str]]) -> str | None:
    """The image of a file in a folder of masks: of several of its name the one in the like folders."""
    for key in (item.key, *(key for key, _ in item.images if item.kind is not None)):
        found = below.get((folder.above, key), [])
        if len(found) > 1:
            own = _tail(item.name, folder.above, drop=folder.name)
            found = [name for name in found if _tail(name, folder.above, drop=None) == own]
        if len(found) == 1:
            return found[0]
    return None


def _tail(name: str, above: str, *, drop: str | None) -> list[str]:
    """The folders of a path below another, without the one called masks and those called images."""
    folders = name[len(above) :].strip("/").split("/")[:-1]
    return [folder for folder in folders if folder != drop and folder.lower() not in _IMAGE_WORDS]


def _are_masks(found: Sequence[Companion], root: str) -> bool:
    """Whether the pictures, as far as they are looked at, are those of masks, and those of their images are not."""
    if is_remote(root):
        return False
    looked_at = found[:: max(1, len(found) // _LOOKED_AT)][:_LOOKED_AT]
    return all(_is_mask(join(root, item.name)) and not _is_mask(join(root, item.image)) for item in looked_at)


def _is_mask(path: str) -> bool:
    try:
        pixels_HWC = decode(read_bytes(path), name=path, max_pixels=MAX_PIXELS)
    except ConsiliumError:
        return False
    if (np.ptp(pixels_HWC, axis=2) > 8).any():
        return False  # colours
    levels = np.bincount(pixels_HWC[..., 1].ravel(), minlength=256) / (pixels_HWC.size // 3)
    return int((levels > 0).sum()) <= _FEW or float(levels[:24].sum() + levels[-24:].sum()) >= _FLAT


def pattern_of(found: Sequence[Companion], names: Sequence[str]) -> str:
    """A pattern of names that leaves out these companions, all of one sign, and no other of ``names``."""
    first = found[0]
    file = first.name.rpartition("/")[2]
    before, _, after = file.rpartition(first.sign)
    sign = _escaped(first.sign)
    wanted = {item.name for item in found}
    last = _escaped(before[-1:])
    tried = [f"*{last}{sign}.*", f"*{last}{sign}*"] if before else [f"{sign}{_escaped(after[:1])}*"]
    for pattern in [sign, *tried]:
        glob = Glob(pattern)
        if {name for name in names if glob.matches(name)} == wanted:
            return pattern
    return f"*{sign}*"


def _escaped(text: str) -> str:
    return re.sub(r"([*?[])", r"[\1]", text)
