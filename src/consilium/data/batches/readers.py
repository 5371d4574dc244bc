"""Readers: each makes one column of a batch, one field of a case at a time, in the processes that decode.

Axes in names: B case in a batch, V view, C channel, H height, W width.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Protocol, TypeVar

import numpy as np
import torch

from consilium.core.contracts import Column, Masks, Meta, TextCoder, Views
from consilium.core.contracts import Texts as TextColumn
from consilium.core.errors import ImageError
from consilium.data.batches import workers
from consilium.data.batches.acquisition import recompressed
from consilium.data.batches.transforms import sample_box, sample_quality
from consilium.data.config import AugmentationConfig, ImageConfig
from consilium.data.images.reading import load_view, probe, read_bytes

NO_DRAW = -1  # the draw number of a case that nothing random happens to

RawT = TypeVar("RawT")
ColumnT_co = TypeVar("ColumnT_co", covariant=True, bound=Column)


class Reader(Protocol[RawT, ColumnT_co]):
    """Reads one field of a case, and makes a column of those of a batch. It is sent to other processes."""

    @property
    def nbytes(self) -> int:
        """Bytes of one case that wait in shared memory."""
        ...

    def read(self, row: int, draw: int) -> RawT:
        """The field of a row; all that is random about it is a function of ``draw``. What cannot be read is an
        ImageError."""
        ...

    def collate(self, raws: Sequence[RawT], *, shared: bool) -> ColumnT_co:
        """A column of arrays or tensors; what is large may be in shared memory."""
        ...


@dataclass(frozen=True)
class Readers:
    """One reader for every column that a task needs."""

    images: Reader[Any, Views] | None = None
    texts: Reader[Any, TextColumn] | None = None
    masks: Reader[Any, Masks] | None = None
    meta: Reader[Any, Meta] | None = None

    def __iter__(self) -> Iterator[tuple[str, Reader[Any, Column]]]:
        """The columns that are read, by their names in ``Batch``."""
        return ((item.name, reader) for item in fields(self) if (reader := getattr(self, item.name)) is not None)


class Images(Protocol):
    """Anything with rows of images: the case table, or a list of paths."""

    def images(self, row: int) -> Sequence[str | bytes]:
        """Paths or encoded bytes of the views of a row."""
        ...


class Texts(Protocol):
    """Anything with rows of texts: the case table, or a list of queries."""

    def text(self, row: int) -> str | None:
        """The text of a row; None where it has none."""
        ...


class ImageReader:
    """Decodes and crops the views of a case in uint8; everything else happens on the device."""

    def __init__(
        self,
        source: Images,
        *,
        image: ImageConfig,
        augmentation: AugmentationConfig | None = None,
        seed: int = 0,
        required: bool = True,
    ) -> None:
        """``required``: a case without an image is an error; else it has no view in the batch."""
        self._source, self._image, self._seed, self._required = source, image, seed, required
        self._augmentation = augmentation or AugmentationConfig()

    @property
    def nbytes(self) -> int:
        """Bytes of one view."""
        height, width = self._image.size
        return height * width * 3

    def read(self, row: int, draw: int) -> list[np.ndarray]:
        """The views of a case, each uint8 [H, W, 3]."""
        views = [self._view(image, draw, number) for number, image in enumerate(self._source.images(row))]
        if not views and self._required:
            raise ImageError(f"case {row} has no image; this task needs one per case.")
        return views

    def collate(self, raws: Sequence[list[np.ndarray]], *, shared: bool) -> Views:
        """uint8 pixels; views that are not there are zeros."""
        height, width = self._image.size
        size = (len(raws), max(1, *map(len, raws)), height, width, 3)
        tensor = workers.shared(size) if shared else None
        images_BVHWC = np.zeros(size, dtype=np.uint8) if tensor is None else tensor.numpy()
        there_BV = np.zeros(size[:2], dtype=bool)
        for number, views in enumerate(raws):
            for view, pixels_HWC in enumerate(views):
                images_BVHWC[number, view] = pixels_HWC
            there_BV[number, : len(views)] = True
        pixels_BVCHW: Any = images_BVHWC.transpose(0, 1, 4, 2, 3) if tensor is None else tensor.permute(0, 1, 4, 2, 3)
        return Views(there_BV, pixels_BVCHW)  # type: ignore[arg-type]

    def _view(self, image: str | bytes, draw: int, view: int) -> np.ndarray:
        name = image if isinstance(image, str) else "embedded image"
        data = read_bytes(image)
        box = None
        if draw != NO_DRAW and self._augmentation.crop_scale is not None:
            info = probe(data, name=name, max_pixels=self._image.max_pixels)
            box = sample_box(
                draw, seed=self._seed, view=view, augmentation=self._augmentation, width=info.width, height=info.height
            )
        pixels_HWC = load_view(data, name=name, image=self._image, box=box)
        if draw == NO_DRAW:
            return pixels_HWC
        quality = sample_quality(draw, seed=self._seed, view=view, augmentation=self._augmentation)
        return pixels_HWC if quality is None else recompressed(pixels_HWC, quality=quality)


class TextReader:
    """Tokens of texts, padded to the longest of the batch; equal texts have equal numbers."""

    nbytes = 0  # tokens are few

    def __init__(self, source: Texts, coder: TextCoder, *, numbers: Mapping[str, int] | None = None) -> None:
        """``numbers`` says which texts are equal over a whole set; None: equal within a batch is all that matters."""
        self._source, self._coder, self._numbers = source, coder, numbers

    def read(self, row: int, draw: int) -> tuple[str | None, list[int]]:
        """The text of a case and its token ids."""
        text = self._source.text(row)
        return text, self._coder.encode([text or ""])[0]

    def collate(self, raws: Sequence[tuple[str | None, list[int]]], *, shared: bool) -> TextColumn:
        """A case without a text is there as an empty one, with the number -1."""
        padded = self._coder.pad([ids for _, ids in raws])
        numbers = self._numbers
        if numbers is None:
            numbers = numbered(text for text, _ in raws)
        same = [-1 if not text else numbers[text] for text, _ in raws]
        there = torch.tensor([bool(text) for text, _ in raws])
        return TextColumn(there, torch.tensor(same), padded.tokens_BT, padded.attention_BT)


def numbered(texts: Iterable[str | None]) -> dict[str, int]:
    """A number for every different text."""
    return {text: number for number, text in enumerate(dict.fromkeys(text for text in texts if text))}


def tensors(column: Column) -> Column:
    """The column that a reader collated, as tensors."""
    return column.each(torch.as_tensor)
