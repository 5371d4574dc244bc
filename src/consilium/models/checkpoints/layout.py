"""What a pretrained model is made of, as plain values that a bundle keeps; imports no model library."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from consilium.core.config import Config
from consilium.models.config import TextPooling

# Mean and deviation of images as families of models take them.
CLIP = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
HALF = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class PretrainedInput(Config):
    """The images that pretrained weights were trained on; ``size`` is (height, width)."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    size: tuple[int, int]
    interpolation: str = "bicubic"
    fit: Literal["stretch", "crop", "pad"] | None = None


class ImageLayout(Config):
    """An image tower: a timm model by ``name`` with its ``options``, or the config of a transformers model.

    ``readout`` is how transformers' outputs become one vector: what the model itself pools, or its class token, where
    its pooling was never trained.
    """

    library: Literal["timm", "transformers"]
    name: str
    options: dict[str, Any] = Field(default_factory=dict)
    readout: Literal["pooler", "cls"] = "pooler"
    input: PretrainedInput


class TextLayout(Config):
    """A text tower: the config of a transformers model, and how one vector comes of its outputs."""

    options: dict[str, Any]
    pooling: TextPooling
    context_length: int


class ProjectionLayout(Config):
    """Linear layers from ``sizes[0]`` features to ``sizes[-1]`` numbers; a single size means no layer at all."""

    sizes: list[int]
    biases: list[bool] = Field(default_factory=list)


class ModelLayout(Config):
    """Two towers that were trained into one space, and what lies between them and it.

    ``views`` are named views for which there are heads beside the weights; the texts then have no plain projection.
    """

    image: ImageLayout
    text: TextLayout
    image_projection: ProjectionLayout
    text_projection: ProjectionLayout
    loss: Literal["softmax", "sigmoid"]
    views: tuple[str, ...] = ()

    @property
    def embedding_size(self) -> int:
        """Numbers of an embedding."""
        return self.image_projection.sizes[-1]
