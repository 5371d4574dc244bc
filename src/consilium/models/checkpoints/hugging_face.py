"""Whole image-text models in the form of transformers: CLIP, SigLIP, Chinese-CLIP and dual encoders."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from consilium.core.errors import ConfigError, WeightsError
from consilium.core.reporter import some
from consilium.models.checkpoints.clip_tokenizer import canonical, lowered, sentence_pieces
from consilium.models.checkpoints.layout import (
    CLIP,
    HALF,
    IMAGENET,
    ImageLayout,
    ModelLayout,
    PretrainedInput,
    ProjectionLayout,
    TextLayout,
)
from consilium.models.checkpoints.pretrained import Joint, scalar
from consilium.models.encoders import HubEncoder, LoadedEncoder, architecture_of, new_encoder
from consilium.models.hub import ModelFolder

_CLASSES = {
    "clip": "CLIPModel",
    "siglip": "SiglipModel",
    "chinese_clip": "ChineseCLIPModel",
    "vision-text-dual-encoder": "VisionTextDualEncoderModel",
}
WHOLE = frozenset(_CLASSES)
ALONE = frozenset({"siglip_text_model", "siglip2_text_model"})  # part of a whole model that is not at hand
_POOLING: dict[str, Literal["eot", "pooler", "cls"]] = {
    "clip": "eot",
    "siglip": "pooler",
    "chinese_clip": "cls",
    "vision-text-dual-encoder": "pooler",
}
_INTERPOLATIONS = {2: "bilinear", 3: "bicubic"}  # Pillow's numbers


class HubModel:
    """A model of transformers that embeds images and texts; ``file`` stands for the weights of its folder."""

    def __init__(self, name: str, *, place: ModelFolder, file: Callable[[], Path] | None = None) -> None:
        self.name, self._place, self._file = name, place, file
        self._hub = HubEncoder(name, place=place)

    @property
    def kind(self) -> str:
        """The ``model_type`` of its config."""
        kind: str = self._hub.any_config.model_type
        return kind

    @cached_property
    def layout(self) -> ModelLayout:
        """What the model is made of."""
        config, kind = self._hub.any_config, self.kind
        if kind not in _CLASSES:
            raise ConfigError(
                f"{self._place.key} '{self.name}' is a model of type {kind}; whole models that are read are "
                f"{', '.join(_CLASSES)}, and those of open_clip."
            )
        vision, text = config.vision_config, config.text_config
        joined = kind == "siglip"  # its towers end in the space itself
        embed = int(vision.hidden_size if joined else config.projection_dim)
        sizes = [[embed], [embed]] if joined else [[int(part.hidden_size), embed] for part in (vision, text)]
        image, words = (ProjectionLayout(sizes=side, biases=[False] * (len(side) - 1)) for side in sizes)
        context = int(text.max_position_embeddings)
        return ModelLayout(
            image=ImageLayout(
                library="transformers",
                name=vision.model_type,
                options=architecture_of(vision),
                input=image_input(self._place.descriptions("image settings"), vision),
            ),
            text=TextLayout(options=architecture_of(text), pooling=_POOLING[kind], context_length=context),
            image_projection=image,
            text_projection=words,
            loss="sigmoid" if joined else "softmax",
        )

    def tokenizer(self) -> tuple[str, int]:
        """The tokenizer of its folder; SigLIP's cleans its texts first, and what it pads with is read, too."""
        if self.kind != "siglip":
            return self._hub.tokenizer()
        folder = self._place.descriptions("tokenizer")
        file, pieces = folder / "tokenizer.json", folder / "spiece.model"
        if not file.is_file() and not pieces.is_file():
            raise WeightsError(
                f"{self.name} brings no tokenizer: there is neither tokenizer.json nor spiece.model. Copy one of them "
                "from where the weights are from."
            )
        definition = file.read_text(encoding="utf-8") if file.is_file() else sentence_pieces(pieces)
        described = _described(folder / "tokenizer_config.json")
        # SigLIP2 has the vocabulary of Gemma, and its config does not say what it pads with.
        second = str(described.get("tokenizer_class")).startswith(("Gemma", "Siglip2"))
        pad_id = _id_of(described.get("pad_token"), definition)
        if pad_id is None:
            pad_id = int(self._hub.any_config.text_config.pad_token_id)
        return lowered(definition) if second else canonical(definition), pad_id

    def image(self, *, image_size: tuple[int, int], drop_path: float = 0.0) -> LoadedEncoder:
        """The image tower with its weights; its own positions are interpolated when another size is seen."""
        return LoadedEncoder(self._whole.model.vision_model, licenses=self._whole.licenses)

    def text(self) -> LoadedEncoder:
        """The text tower with its weights."""
        return LoadedEncoder(self._whole.model.text_model, licenses=self._whole.licenses)

    def joint(self) -> Joint:
        """Projections, temperature and bias."""
        whole = self._whole.model
        projections = {
            side: {} if self.kind == "siglip" else {"0.weight": getattr(whole, f"{name}_projection").weight.detach()}
            for side, name in (("image", "visual"), ("text", "text"))
        }
        state = whole.state_dict()
        return Joint(projections, scalar(state, "logit_scale") or 0.0, scalar(state, "logit_bias"))

    @cached_property
    def _whole(self) -> LoadedEncoder:
        kind = _CLASSES[self.kind]
        loaded = (
            self._hub.pretrained(kind) if self._file is None else self._hub.with_weights_of(str(self._file()), kind)
        )
        if loaded.missing:
            raise WeightsError(
                f"the weights of {self.name} lack {len(loaded.missing)} tensors of a {_CLASSES[self.kind]}: "
                f"{some(sorted(loaded.missing), 5)}. They are of another model, or of a part of it."
            )
        return loaded


class HubImages:
    """A model of transformers that takes images alone, such as DINO or a ViT."""

    def __init__(self, name: str, *, place: ModelFolder, weights: bool) -> None:
        self._hub, self._place, self._weights = HubEncoder(name, place=place), place, weights

    @cached_property
    def layout(self) -> ImageLayout:
        """What the tower is made of."""
        config = self._hub.config
        return ImageLayout(
            library="transformers",
            name=config.model_type,
            options=architecture_of(config),
            input=image_input(self._place.descriptions("image settings"), config),
        )

    def load(self, *, image_size: tuple[int, int], drop_path: float = 0.0) -> LoadedEncoder:
        """The tower with its weights; a pooling that was never trained is all that may be missing."""
        if not self._weights:
            return LoadedEncoder(new_encoder(self._hub.config))
        loaded = self._hub.pretrained()
        if missing := sorted(name for name in loaded.missing if not name.startswith("pooler.")):
            raise WeightsError(
                f"the weights of {self._place.name} lack {len(missing)} tensors of the image tower: "
                f"{some(missing, 5)}. They are of another model, or of a part of it."
            )
        return loaded


def image_input(folder: Path, vision: Any) -> PretrainedInput:
    """What ``preprocessor_config.json`` says of images; where it is silent, what such models usually take."""
    file = folder / "preprocessor_config.json"
    try:
        shown = _described(file)
        crops = bool(shown.get("do_center_crop", "clip" in vision.model_type and "siglip" not in vision.model_type))
        size = _size(shown.get("crop_size") if crops else shown.get("size")) or _size(
            getattr(vision, "image_size", None)
        )
        half = "siglip" in vision.model_type or vision.model_type == "vit"
        clip = "clip" in vision.model_type and not half
        usual = CLIP if clip else HALF if half else IMAGENET
        return PretrainedInput(
            mean=tuple(shown.get("image_mean") or usual[0]),
            std=tuple(shown.get("image_std") or usual[1]),
            size=size or (224, 224),
            interpolation=_INTERPOLATIONS.get(int(shown.get("resample", 3)), "bicubic"),
            fit="crop" if crops else "stretch",
        )
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise WeightsError(f"{file} does not describe images ({type(error).__name__}: {error}).") from error


def _described(file: Path) -> dict[str, Any]:
    """What a JSON file beside the weights says; nothing where there is none."""
    if not file.is_file():
        return {}
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise WeightsError(f"{file} cannot be read ({error}). Copy it again.") from error


def _id_of(token: str | dict[str, Any] | None, definition: str) -> int | None:
    """The id of a token, as ``tokenizer_config.json`` names it; None where the vocabulary does not have it."""
    from tokenizers import Tokenizer

    name = token.get("content") if isinstance(token, dict) else token
    found: int | None = Tokenizer.from_str(definition).token_to_id(name) if name else None
    return found


def _size(given: Any) -> tuple[int, int] | None:
    """Height and width, of the forms that configs have."""
    if isinstance(given, int):
        return given, given
    if isinstance(given, list | tuple):
        return int(given[0]), int(given[-1])
    if isinstance(given, dict):
        side = given.get("shortest_edge")
        return (int(given["height"]), int(given["width"])) if "height" in given else (side, side) if side else None
    return None
