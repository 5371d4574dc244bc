"""What tasks of an image and a text tower share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, Self

from torch import Tensor

from consilium.core.contracts import Batch, Encoder, ImageInput, ParameterGroup, TextCoder, Texts
from consilium.core.task import Task
from consilium.models.config import TextConfig, VisionConfig
from consilium.models.text import TextEncoder, TextTower
from consilium.models.tokenizer import Tokenizer
from consilium.models.vectors import VectorCoder, VectorTower
from consilium.models.vision import ImageEncoder, VisionTower
from consilium.models.weights import freeze_tower, train_unfrozen


class TowerConfigs(Protocol):
    """The part of a ``task`` section that is about its towers."""

    @property
    def vision(self) -> VisionConfig:
        """The image tower."""
        ...

    @property
    def text(self) -> TextConfig:
        """The text tower."""
        ...


class TwoTowers(Task):
    """The abstract base of tasks with an image tower ``vision`` and a text tower ``text``, which have to be set.

    What makes tokens for the text tower is the ``tokenizer``.
    """

    config: TowerConfigs
    vision: VisionTower
    text: TextTower | VectorTower
    tokenizer: Tokenizer | VectorCoder

    def view_features(self, batch: Batch) -> Tensor:
        """Features [N, F] of all views there are, case by case: those that the batch brings, or the tower's."""
        raise NotImplementedError

    def text_features(self, texts: Texts) -> Tensor:
        """Features [B, F]: those that the batch brings, or the tower's."""
        raise NotImplementedError

    def text_coder(self) -> TextCoder:
        """The tokenizer of the text tower."""
        return self.tokenizer

    def count_cut(self, texts: Sequence[str]) -> int:
        """How many of the texts are longer than ``task.text.context_length``."""
        return self.tokenizer.count_cut(texts)

    def unknown_share(self, texts: Sequence[str]) -> float:
        """Which share of their tokens the vocabulary lacks."""
        return self.tokenizer.unknown_share(texts)

    def image_input(self) -> ImageInput:
        """What the image tower was made for."""
        expected = self.vision.pretrained_input
        return ImageInput(expected.mean, expected.std, pretrained=self.config.vision.pretrained is not False)

    def notes(self) -> list[str]:
        """What is odd about the files of the towers' weights."""
        found = {"vision": self.vision.weights_note, "text": self.text.weights_note}
        return [f"task.{name}.pretrained: {note}" for name, note in found.items() if note]

    def encoders(self) -> Mapping[str, Encoder]:
        """The towers that stay frozen."""
        found: dict[str, Encoder] = {}
        if self.config.vision.freeze.kind == "tower":
            found["images"] = ImageEncoder(self.vision, self.config.vision, self.view_features)
        text, tokenizer = self.text, self.tokenizer
        if self.config.text.freeze.kind == "tower" and isinstance(text, TextTower) and isinstance(tokenizer, Tokenizer):
            found["texts"] = TextEncoder(text, self.config.text, tokenizer, self.text_features)
        return found

    def tower_groups(self) -> list[ParameterGroup]:
        """The parameters of each tower that has some."""
        found = [ParameterGroup("image", list(self.vision.parameters()), depths=self.vision.depths)]
        if isinstance(self.text, TextTower):
            found.append(ParameterGroup("text", list(self.text.parameters()), depths=self.text.depths))
        return found

    def set_epoch(self, epoch: int) -> None:
        """Freeze what the config says for this epoch."""
        freeze_tower(self.vision, self.config.vision.freeze, epoch=epoch)
        freeze_tower(self.text, self.config.text.freeze, epoch=epoch)
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """As ``nn.Module.train``, but frozen parts stay in evaluation mode."""
        if not mode:
            return super().train(False)
        train_unfrozen(self)
        return self
