"""What every reader of whole pretrained models gives, and the parts of a model made from its layout."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

from torch import Tensor, nn

from consilium.models.checkpoints.layout import ImageLayout, ModelLayout, ProjectionLayout
from consilium.models.config import TextPooling
from consilium.models.encoders import LoadedEncoder

SIDES = ("image", "text")


@dataclass(frozen=True)
class Joint:
    """What lies between the towers and their space: projections' tensors by side, logarithm of the scale, bias.

    A projection's tensors are named ``0.weight``, ``0.bias``, ``1.weight`` ... layer by layer.
    """

    projections: Mapping[str, Mapping[str, Tensor]]
    log_scale: float
    bias: float | None = None


class LoadsImages(Protocol):
    """Makes an image tower."""

    def __call__(self, *, image_size: tuple[int, int], drop_path: float = 0.0) -> LoadedEncoder:
        """The tower with its weights, for images of ``image_size`` (height, width)."""
        ...


@dataclass(frozen=True)
class ImageSource:
    """An image tower that lies somewhere: what it is made of, and how it is loaded."""

    layout: ImageLayout
    load: LoadsImages


@dataclass(frozen=True)
class TextSource:
    """A text tower that lies somewhere: its ``kind`` in transformers, how its texts are read, and how it is loaded.

    ``pooling`` is the one that it was trained with, None where that is not known.
    """

    kind: str
    pooling: TextPooling | None
    context_length: int | None
    tokenizer: Callable[[], tuple[str, int]]
    load: Callable[[], LoadedEncoder]


class Pretrained(Protocol):
    """A whole image-text model that lies somewhere; weights are read when they are asked for.

    What cannot be had or read is a WeightsError, what is there but cannot be used a ConfigError.
    """

    @property
    def layout(self) -> ModelLayout:
        """What the model is made of, from its config alone."""
        ...

    def tokenizer(self) -> tuple[str, int]:
        """The text of its ``tokenizer.json``, and the id of its padding token."""
        ...

    def image(self, *, image_size: tuple[int, int], drop_path: float = 0.0) -> LoadedEncoder:
        """The image tower with its weights, for images of ``image_size`` (height, width)."""
        ...

    def text(self) -> LoadedEncoder:
        """The text tower with its weights."""
        ...

    def joint(self) -> Joint:
        """Projections, temperature and bias."""
        ...


def text_source(model: Pretrained) -> TextSource:
    """The text tower of a whole model."""
    text = model.layout.text
    kind = str(text.options["model_type"])
    return TextSource(kind, text.pooling, text.context_length, model.tokenizer, model.text)


def image_source(model: Pretrained) -> ImageSource:
    """The image tower of a whole model."""
    return ImageSource(model.layout.image, model.image)


def linear_layers(layout: ProjectionLayout, tensors: Mapping[str, Tensor] | None = None) -> nn.Sequential:
    """The layers of a projection, a GELU between two of them; without ``tensors`` their weights are random."""
    linear = [
        nn.Linear(before, after, bias=bias)
        for (before, after), bias in zip(pairwise(layout.sizes), layout.biases, strict=True)
    ]
    for number, layer in enumerate(linear if tensors is not None else ()):
        own = {name: (tensors or {})[f"{number}.{name}"] for name in layer.state_dict()}
        layer.load_state_dict(own)
    return nn.Sequential(*(module for layer in linear for module in (nn.GELU(), layer)))[1:]


def scalar(state: Mapping[str, Any], name: str) -> float | None:
    """A single number of a file; None where it is not there."""
    return None if name not in state else float(state[name].reshape(()))
