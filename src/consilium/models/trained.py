"""What trained models are made of, as whatever carries them to other libraries needs to know.

Axes in names: B case in a batch, C channel, H height, W width, T token, F feature, D number of an embedding, K class.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from consilium.core.answers import Calibration
from consilium.core.labels import LabelTree
from consilium.models.checkpoints.layout import ImageLayout
from consilium.models.text import TextTower
from consilium.models.tokenizer import Tokenizer
from consilium.models.vision import VisionTower


@dataclass(frozen=True)
class Layers:
    """The linear layers of a head or a projection, and the activation after each but the last; dropout is left out."""

    linear: tuple[nn.Linear, ...]
    activation: type[nn.Module] | None

    @classmethod
    def of(cls, module: nn.Module) -> Layers:
        """The layers of a module that is built of linear layers, activations and dropout alone."""
        parts = [part for part in module.modules() if next(part.children(), None) is None]
        linear = tuple(part for part in parts if isinstance(part, nn.Linear))
        between = [type(part) for part in parts if not isinstance(part, nn.Linear | nn.Dropout | nn.Sequential)]
        return cls(linear, between[0] if between else None)

    @property
    def is_one(self) -> bool:
        """Whether there is one layer alone."""
        return len(self.linear) == 1

    @property
    def biases(self) -> list[Tensor | None]:
        """The bias of each layer that has one."""
        return [dict(layer.named_parameters()).get("bias") for layer in self.linear]

    @property
    def is_clip(self) -> bool:
        """Whether it is one layer without a bias, as in CLIP."""
        return self.is_one and self.biases == [None]


@dataclass(frozen=True)
class DualEncoder:
    """An image and a text tower that embed into one space; ``log_scale`` is that of their similarities.

    ``learned_vocabulary``: the words of the tokenizer come from training texts.
    """

    vision: VisionTower
    layout: ImageLayout
    image_projection: nn.Module
    text: TextTower
    text_projection: nn.Module
    tokenizer: Tokenizer
    log_scale: float
    bias: float | None
    learned_vocabulary: bool

    @property
    def width(self) -> int:
        """Numbers of an embedding."""
        layers = Layers.of(self.image_projection).linear
        return layers[-1].out_features if layers else self.vision.num_features

    def embed_images(self, images_BCHW: Tensor) -> Tensor:
        """Embeddings [B, D] of length 1."""
        return self.image_projection(self.vision(images_BCHW))  # type: ignore[no-any-return]

    def embed_texts(self, tokens_BT: Tensor, attention_BT: Tensor) -> Tensor:
        """Embeddings [B, D] of length 1."""
        return self.text_projection(self.text(tokens_BT, attention_BT))  # type: ignore[no-any-return]


@dataclass(frozen=True)
class ImageClassifier:
    """An image tower and a head that scores labels; ``probabilities`` makes calibrated ones of logits [B, K]."""

    vision: VisionTower
    layout: ImageLayout
    head: nn.Module
    labels: LabelTree
    multi_label: bool
    calibration: Calibration
    threshold: float
    temperatures_K: Tensor
    offsets_K: Tensor
    probabilities: Callable[[Tensor], Tensor]

    def logits(self, images_BCHW: Tensor) -> Tensor:
        """Scores [B, K] before calibration."""
        return self.head(self.vision(images_BCHW))  # type: ignore[no-any-return]

    def scaled(self, logits_BK: Tensor) -> Tensor:
        """Scores [B, K] as calibration has them."""
        return logits_BK / self.temperatures_K + self.offsets_K

    def last_layer(self) -> tuple[Tensor, Tensor]:
        """Weight [K, F] and bias [K] of the last layer, as calibration has its scores."""
        last = Layers.of(self.head).linear[-1]
        return last.weight.detach() / self.temperatures_K[:, None], self.scaled(last.bias.detach())


Trained = DualEncoder | ImageClassifier
