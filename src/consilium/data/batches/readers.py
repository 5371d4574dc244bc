"""Readers: each makes one column of a batch, one field of a case at a time, in the processes that decode.

Axes in names: B case in a batch, V view, C channel, H height, W width.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from itertools import chain
from typing import Any, Protocol, TypeVar

import numpy as np
import torch

from consilium.core.contracts import Captions, Column, Masks, Meta, MetaCoder, TextCoder, Views
from consilium.core.contracts import Texts as TextColumn
from consilium.core.errors import ImageError
from consilium.data.batches import workers
from consilium.data.batches.acquisition import recompressed
from consilium.data.batches.config import AugmentationConfig
from consilium.data.batches.transforms import sample_box, sample_quality, sample_text
from consilium.data.config import ImageConfig
from consilium.data.images.reading import load_view, probe, read_bytes, zoomed

NO_DRAW = -1  # the draw number of a case that nothing random happens to

RawT = TypeVar("RawT")
ColumnT_co = TypeVar("ColumnT_co", covariant=True, bound=Column)


class Reader(Protocol[RawT, ColumnT_co]):
    """Reads one field of a case, and makes a column of those of a batch. It is sent to other processes."""

    @property
    def nbytes(self) -> int:
        """Bytes of one case that wait in shared memory."""
        ...

    @property
    def at_once(self) -> bool:
        """Whether ``read`` gives back the row and the draw, so that no case has to be read by itself."""
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

    def images(self, row: int) -> Sequence[str | bytes | None]:
        """Paths or encoded bytes of the views of a row; None: its place stays empty."""
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


class Metas(Protocol):
    """Anything with rows of metadata: the case table, or a list of queries."""

    def metadata(self, row: int) -> Mapping[str, str]:
        """The metadata of a row, by column."""
        ...


class TextsAndMetas(Texts, Metas, Protocol):
    """Anything with rows of texts and metadata."""


class TextsToDraw(Protocol):
    """Anything with rows of texts of which a training draws one: the case table."""

    def __len__(self) -> int: ...

    def drawn(self, row: int) -> Sequence[str]:
        """The texts of a row to draw from, each once."""
        ...


class DrawnTexts:
    """Which text of a case a draw chooses, a pure function of seed and draw, and the numbers of all that it has."""

    def __init__(self, source: TextsToDraw, *, seed: int = 0) -> None:
        self._source, self._seed = source, seed

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return numbered(map(self._source.drawn, range(len(self._source))))

    @cached_property
    def _width(self) -> int:
        return max((len(self._source.drawn(row)) for row in range(len(self._source))), default=0)

    def of(self, row: int, draw: int) -> tuple[str, list[int]]:
        """The text and the numbers of all texts of the row, its own first; '' and none where there is none."""
        texts = self._source.drawn(row)
        if not texts:
            return "", []
        text = texts[0] if len(texts) == 1 or draw == NO_DRAW else texts[sample_text(draw, self._seed, len(texts))]
        return text, [self._numbers[text], *(self._numbers[other] for other in texts if other != text)]

    def numbers(self, numbers: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor | None]:
        """``same_B`` and ``own_BK`` of a batch."""
        own_BK, _ = caption_numbers(numbers, max(1, self._width))
        return own_BK[:, 0], own_BK if self._width > 1 else None


class ImageReader:
    """Decodes and crops the views of a case in uint8; everything else happens on the device."""

    at_once = False

    def __init__(
        self,
        source: Images,
        *,
        image: ImageConfig,
        augmentation: AugmentationConfig | None = None,
        seed: int = 0,
        required: bool = True,
        zooms: Sequence[float] = (),
    ) -> None:
        """``required``: a case without an image is an error; else it has no view in the batch.

        ``zooms``: further looks at every view, at its centre with that share of the area. On the axis V the views of
        the whole images come first, then as many for each zoom; they do not go with an augmentation.
        """
        self._source, self._image, self._seed, self._required = source, image, seed, required
        self._augmentation = augmentation or AugmentationConfig()
        self._looks = (None, *zooms)

    @property
    def nbytes(self) -> int:
        """Bytes of one view, at which there may be several looks."""
        height, width = self._image.size
        return len(self._looks) * height * width * 3

    def read(self, row: int, draw: int) -> list[np.ndarray | None]:
        """The views of a case, look by look, each uint8 [H, W, 3]."""
        images = self._source.images(row)
        if self._required and all(image is None for image in images):
            raise ImageError(f"case {row} has no image; this task needs one per case.")
        return [
            None if image is None else self._view(image, draw, number, zoom)
            for zoom in self._looks
            for number, image in enumerate(images)
        ]

    def collate(self, raws: Sequence[list[np.ndarray | None]], *, shared: bool) -> Views:
        """uint8 pixels; views that are not there are zeros."""
        height, width = self._image.size
        looks = len(self._looks)
        most = max(1, *(len(views) // looks for views in raws))
        size = (len(raws), looks * most, height, width, 3)
        tensor = workers.shared(size) if shared else None
        images_BVHWC = np.zeros(size, dtype=np.uint8) if tensor is None else tensor.numpy()
        there_BV = np.zeros(size[:2], dtype=bool)
        for number, views in enumerate(raws):
            for place, pixels_HWC in enumerate(views):
                if pixels_HWC is None:
                    continue
                look, view = divmod(place, len(views) // looks)
                images_BVHWC[number, look * most + view] = pixels_HWC
                there_BV[number, look * most + view] = True
        pixels_BVCHW: Any = images_BVHWC.transpose(0, 1, 4, 2, 3) if tensor is None else tensor.permute(0, 1, 4, 2, 3)
        return Views(there_BV, pixels_BVCHW)  # type: ignore[arg-type]

    def _view(self, image: str | bytes, draw: int, view: int, zoom: float | None) -> np.ndarray:
        name = image if isinstance(image, str) else "embedded image"
        data = read_bytes(image)
        box = None
        if zoom is not None:
            box = zoomed(probe(data, name=name, max_pixels=self._image.max_pixels), self._image, share=zoom)
        elif draw != NO_DRAW and self._augmentation.crop_scale is not None:
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

    nbytes, at_once = 0, False  # tokens are few

    def __init__(self, drawn: DrawnTexts, coder: TextCoder) -> None:
        self._drawn, self._coder = drawn, coder

    def read(self, row: int, draw: int) -> tuple[list[int], list[int]]:
        """The numbers of the case's texts, that of the drawn one first, and its token ids."""
        text, numbers = self._drawn.of(row, draw)
        return numbers, self._coder.encode([text])[0]

    def collate(self, raws: Sequence[tuple[list[int], list[int]]], *, shared: bool) -> TextColumn:
        """A case without a text is there as an empty one."""
        padded = self._coder.pad([ids for _, ids in raws])
        same_B, own_BK = self._drawn.numbers([numbers for numbers, _ in raws])
        return TextColumn(same_B >= 0, same_B, padded.tokens_BT, padded.attention_BT, own_BK=own_BK)


class CaptionReader:
    """Tokens of all texts of each case, as a task that is asked gets them; nothing is drawn."""

    nbytes, at_once = 0, False

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


class MetaReader:
    """The metadata of each case as numbers."""

    nbytes, at_once = 0, False

    def __init__(self, source: Metas, coder: MetaCoder) -> None:
        self._source, self._coder = source, coder
        self._known: dict[int, tuple[list[float], list[bool]]] = {}  # a training comes back to its rows

    def read(self, row: int, draw: int) -> tuple[list[float], list[bool]]:
        """The value of each column, and whether there is one."""
        if row not in self._known:
            self._known[row] = self._coder.encode(self._source.metadata(row))
        return self._known[row]

    def collate(self, raws: Sequence[tuple[list[float], list[bool]]], *, shared: bool) -> Meta:
        """float32 values; those that are not there are 0."""
        values, there = zip(*raws, strict=True)
        return Meta(np.array(there, dtype=bool), np.array(values, dtype=np.float32))  # type: ignore[arg-type]


def caption_numbers(numbers: Sequence[Sequence[int]], width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The numbers of the texts of cases [B, K], -1 where there is none, and whether there is one."""
    same_BK = torch.tensor([[*own, *[-1] * (width - len(own))] for own in numbers])
    return same_BK, same_BK >= 0


def numbered(texts: Iterable[Sequence[str]]) -> dict[str, int]:
    """A number for every different text of some cases."""
    return {text: number for number, text in enumerate(dict.fromkeys(chain.from_iterable(texts)))}


def tensors(column: Column) -> Column:
    """The column that a reader collated, as tensors."""
    return column.each(torch.as_tensor)
