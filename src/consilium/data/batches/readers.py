"""Readers: each makes one column of a batch, one field of a case at a time, in the processes that decode.

Axes in names: B case in a batch, V view, C channel, H height, W width.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np
import torch

from consilium.core.contracts import Captions, Column, Masks, Meta, TextCoder, Views
from consilium.core.contracts import Texts as TextColumn
from consilium.core.errors import ImageError
from consilium.data.batches import workers
from consilium.data.batches.acquisition import recompressed
from consilium.data.batches.transforms import sample_box, sample_quality, sample_text
from consilium.data.config import AugmentationConfig, ImageConfig
from consilium.data.images.reading import load_view, probe, read_bytes

if TYPE_CHECKING:
    from consilium.data.store.store import CaseTable

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
    captions: Reader[Any, Captions] | None = None
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

    @property
    def most_captions(self) -> int:
        """The most texts that a row has."""
        ...

    def captions(self, row: int) -> Sequence[str]:
        """The texts of a row, each once."""
        ...


class DrawnTexts(Protocol):
    """Anything with rows of texts of which one is drawn."""

    def drawn(self, row: int) -> Sequence[str]:
        """The texts of a row to draw from, each once."""
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
    """Tokens of one text of each case, padded to the longest of the batch. Of several texts the draw chooses one."""

    nbytes = 0  # tokens are few

    def __init__(self, source: DrawnTexts, coder: TextCoder, *, numbers: Mapping[str, int], seed: int) -> None:
        """``numbers`` are those of ``alike``."""
        self._source, self._coder, self._numbers, self._seed = source, coder, numbers, seed

    def read(self, row: int, draw: int) -> tuple[int, list[int]]:
        """The number of the text, -1 where there is none, and its token ids."""
        text = drawn_text(self._source.drawn(row), draw, seed=self._seed)
        return (self._numbers[text] if text else -1), self._coder.encode([text])[0]

    def collate(self, raws: Sequence[tuple[int, list[int]]], *, shared: bool) -> TextColumn:
        """A case without a text is there as an empty one."""
        padded = self._coder.pad([ids for _, ids in raws])
        same_B = torch.tensor([number for number, _ in raws])
        return TextColumn(same_B >= 0, same_B, padded.tokens_BT, padded.attention_BT)


class CaptionReader:
    """Tokens of all texts of each case, as a task that is asked gets them; nothing is drawn."""

    nbytes = 0

    def __init__(self, source: Texts, coder: TextCoder, *, numbers: Mapping[str, int] | None = None) -> None:
        """``numbers`` are those of ``numbered``; None: it does not matter which texts are equal."""
        self._source, self._coder, self._numbers = source, coder, numbers
        self._width = max(1, source.most_captions)  # the same in every batch

    def read(self, row: int, draw: int) -> list[tuple[int, list[int]]]:
        """The number and the token ids of every text."""
        texts = self._source.captions(row)
        numbers = [0 if self._numbers is None else self._numbers[text] for text in texts]
        return list(zip(numbers, self._coder.encode(texts), strict=True))

    def collate(self, raws: Sequence[list[tuple[int, list[int]]]], *, shared: bool) -> Captions:
        """Texts that are not there are empty ones, with the number -1."""
        same_BK, there_BK = caption_numbers([[number for number, _ in own] for own in raws], self._width)
        (nothing,) = self._coder.encode([""])
        rows = [[ids for _, ids in own] + [nothing] * (self._width - len(own)) for own in raws]
        padded = self._coder.pad([ids for own in rows for ids in own])
        shape = (len(raws), self._width, -1)
        return Captions(there_BK, same_BK, padded.tokens_BT.reshape(shape), padded.attention_BT.reshape(shape))


def caption_numbers(numbers: Sequence[Sequence[int]], width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The numbers of the texts of cases [B, K], -1 where there is none, and whether there is one."""
    same_BK = torch.tensor([[*own, *[-1] * (width - len(own))] for own in numbers])
    return same_BK, same_BK >= 0


def drawn_text(texts: Sequence[str], draw: int, *, seed: int) -> str:
    """The text of a draw among the texts of a case; without any the empty one."""
    if len(texts) < 2 or draw == NO_DRAW:
        return texts[0] if texts else ""
    return texts[sample_text(draw, seed=seed, count=len(texts))]


def numbered(source: CaseTable) -> dict[str, int]:
    """A number for every different text of a table."""
    texts = (text for row in range(len(source)) for text in source.captions(row))
    return {text: number for number, text in enumerate(dict.fromkeys(texts))}


def alike(source: CaseTable) -> dict[str, int]:
    """A number for every text that may be drawn; texts that the very same cases have get one number.

    So the texts of one case, or of cases that share all they have, are right answers for each other, whichever are
    drawn. A text that further cases have is right for these as well, and has a number of its own.
    """
    rows_of: dict[str, list[int]] = defaultdict(list)
    for row in range(len(source)):
        for text in source.drawn(row):
            rows_of[text].append(row)
    numbers: dict[tuple[int, ...], int] = {}
    return {text: numbers.setdefault(tuple(rows), len(numbers)) for text, rows in rows_of.items()}


def tensors(column: Column) -> Column:
    """The column that a reader collated, as tensors."""
    return column.each(torch.as_tensor)
