"""Image towers: models of timm or transformers as images in, features out.

Axes in names: B image, C channel, H height, W width, L token, F feature.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from typing import Any

import torch
from timm.models import group_parameters
from torch import Tensor, nn

from consilium.core.contracts import Batch
from consilium.core.errors import ConfigError
from consilium.core.licenses import License, with_stated
from consilium.models.blocks import depths_of, drop_unused, layer_blocks
from consilium.models.checkpoints.find import find_image, new_image_model
from consilium.models.checkpoints.layout import ImageLayout, PretrainedInput
from consilium.models.checkpoints.pretrained import ImageSource
from consilium.models.config import VisionConfig
from consilium.models.encoders import LoadedEncoder
from consilium.models.timm_models import SHORT_NAMES, named_timm, size_error
from consilium.models.weights import weights_hash

__all__ = ["SHORT_NAMES", "HubTower", "ImageEncoder", "PretrainedInput", "TimmTower", "VisionTower", "build_vision"]

_PREFIXES = 16  # class and register tokens that a model may have


class VisionTower(nn.Module, ABC):
    """A model without its classifier; build it with ``build_vision``.

    ``layout`` is what a bundle keeps to build it again, None where its config says all; ``weights_note`` is what a
    person should know of the file of its weights, and ``licenses`` are theirs.
    """

    library: str
    licenses: tuple[License, ...] = ()

    def __init__(
        self,
        model: nn.Module,
        *,
        pooling: str,
        image_size: tuple[int, int],
        shown: PretrainedInput,
        layout: ImageLayout | None = None,
        weights_note: str = "",
    ) -> None:
        super().__init__()
        self.model: Any = model
        self.pooling, self.pretrained_input = pooling, shown
        self.layout, self.weights_note = layout, weights_note
        self._prefix_tokens = 0
        self._pooled_axes: tuple[int, ...] = ()
        probe_BCHW = torch.zeros(1, 3, *image_size)
        training = self.training
        self.eval()  # BatchNorm must neither learn from the probe nor refuse a batch of one
        if pooling != "default":
            with torch.no_grad():
                self._prefix_tokens, self._pooled_axes = self._space(self._maps(probe_BCHW), image_size)
        if pooling != "default" or self.library == "transformers":
            self._drop_bypassed(probe_BCHW)
        with torch.no_grad():
            self.num_features = int(self(probe_BCHW).shape[1])
        self.train(training)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Features [B, num_features] of normalised images."""
        if self.pooling == "default":
            return self._pooled(images_BCHW)
        maps = self._maps(images_BCHW)
        maps = maps[:, self._prefix_tokens :] if self._prefix_tokens else maps
        if self.pooling == "avg":
            return maps.mean(self._pooled_axes)
        if self.pooling == "max":
            return maps.amax(self._pooled_axes)
        return torch.cat((maps.mean(self._pooled_axes), maps.amax(self._pooled_axes)), dim=1)

    @abstractmethod
    def blocks(self) -> list[list[nn.Parameter]]:
        """All parameters in blocks from input to output, in the tower's own sense.

        A block is a stage of a ResNet, a layer of a ViT; a trailing norm belongs to the block before it.
        """

    @abstractmethod
    def layers(self) -> list[list[nn.Parameter]]:
        """All parameters by layers, from input to output: those that layer-wise rates tell apart."""

    @abstractmethod
    def _pooled(self, images_BCHW: Tensor) -> Tensor:
        """Features [B, F] as the model itself gives them."""

    @abstractmethod
    def _maps(self, images_BCHW: Tensor) -> Tensor:
        """Features before they are pooled, [B, L, F] or [B, F, H, W] or [B, H, W, F]."""

    @abstractmethod
    def _space(self, maps: Tensor, image_size: tuple[int, int]) -> tuple[int, tuple[int, ...]]:
        """How many tokens of ``maps`` stand for no place, and which of its axes are space."""

    def depths(self) -> list[int]:
        """How many layers lie above that of each parameter; a tower whose layers are not known is a ConfigError."""
        return depths_of(self, self.layers())

    def _unknown_space(self, library: str, name: str) -> ConfigError:
        return ConfigError(
            f"task.vision.pooling is '{self.pooling}', but {library} does not say which features of {name} stand for "
            f"which part of the image; use default."
        )

    def _drop_bypassed(self, probe_BCHW: Tensor) -> None:
        """Take out modules that this pooling passes by, so that every parameter gets a gradient."""
        with torch.enable_grad():
            self(probe_BCHW).sum().backward()
        self._drop_parameters(drop_unused(self.model))

    def _drop_parameters(self, unused: set[nn.Parameter]) -> None:
        """Take out single parameters that are never used."""


class TimmTower(VisionTower):
    """A model of timm."""

    library = "timm"

    def __init__(
        self,
        model: nn.Module,
        *,
        pooling: str,
        image_size: tuple[int, int],
        layout: ImageLayout | None = None,
        weights_note: str = "",
    ) -> None:
        cfg: Any = model.pretrained_cfg
        shown = PretrainedInput(
            mean=tuple(cfg["mean"]),
            std=tuple(cfg["std"]),
            size=(cfg["input_size"][1], cfg["input_size"][2]),
            interpolation=cfg["interpolation"],
        )
        super().__init__(
            model, pooling=pooling, image_size=image_size, shown=shown, layout=layout, weights_note=weights_note
        )

    def blocks(self) -> list[list[nn.Parameter]]:
        """All parameters in timm's coarse groups."""
        if not (blocks := self._grouped(coarse=True)):
            name = self.model.pretrained_cfg["architecture"]
            raise ConfigError(f"timm does not know the blocks of {name}; set freeze.kind to none or tower.")
        return blocks

    def layers(self) -> list[list[nn.Parameter]]:
        """All parameters in timm's fine groups: a block of a ResNet, a layer of a ViT."""
        if not (layers := self._grouped(coarse=False)):
            name = self.model.pretrained_cfg["architecture"]
            raise ConfigError(f"timm does not know the layers of {name}; leave layer_decay out.")
        return layers

    def _grouped(self, *, coarse: bool) -> list[list[nn.Parameter]]:
        """All parameters as timm groups them, from input to output; empty where it does not know how."""
        try:
            groups = group_parameters(self.model, self.model.group_matcher(coarse=coarse), return_values=True)
        except (AttributeError, AssertionError):
            return []
        blocks: list[list[nn.Parameter]] = []
        for number in sorted(groups):
            parameters = list(groups[number])
            if blocks and all(parameter.ndim <= 1 for parameter in parameters):
                blocks[-1].extend(parameters)
            else:
                blocks.append(parameters)
        return blocks

    def _pooled(self, images_BCHW: Tensor) -> Tensor:
        features_BF: Tensor = self.model(images_BCHW)
        return features_BF

    def _maps(self, images_BCHW: Tensor) -> Tensor:
        maps: Tensor = self.model.forward_features(images_BCHW)
        return maps

    def _space(self, maps: Tensor, image_size: tuple[int, int]) -> tuple[int, tuple[int, ...]]:
        features = self.model.num_features
        prefix_tokens = getattr(self.model, "num_prefix_tokens", None)
        if isinstance(maps, Tensor) and maps.ndim == 4 and features in (maps.shape[1], maps.shape[3]):
            return 0, (1, 2) if getattr(self.model, "output_fmt", "NCHW") == "NHWC" else (2, 3)
        if isinstance(maps, Tensor) and maps.ndim == 3 and prefix_tokens is not None:
            return prefix_tokens, (1,)
        raise self._unknown_space("timm", self.model.pretrained_cfg["architecture"])


class HubTower(VisionTower):
    """A vision model of transformers; images of another size than its own get interpolated positions."""

    library = "transformers"

    def __init__(
        self, loaded: LoadedEncoder, *, pooling: str, image_size: tuple[int, int], layout: ImageLayout
    ) -> None:
        model, own = loaded.model, loaded.model.config
        size = getattr(own, "image_size", None)
        native = (size, size) if isinstance(size, int) else size
        patch = getattr(own, "patch_size", None)
        if isinstance(patch, int) and any(side % patch for side in image_size):
            raise ValueError(f"not divisible by its patches of {patch} x {patch} pixels")
        takes = "interpolate_pos_encoding" in inspect.signature(model.forward).parameters
        self._cls = layout.readout == "cls" or any(name.startswith("pooler.") for name in loaded.missing)
        if self._cls:
            layout = layout.model_copy(update={"readout": "cls"})
        self._options = {"interpolate_pos_encoding": True} if takes and tuple(native or ()) != image_size else {}
        super().__init__(
            model, pooling=pooling, image_size=image_size, shown=layout.input, layout=layout, weights_note=loaded.note
        )

    def _drop_parameters(self, unused: set[nn.Parameter]) -> None:
        for module in self.model.modules():
            for name, parameter in list(module.named_parameters(recurse=False)):
                if parameter in unused:  # such as the token that stands for hidden places in pre-training
                    module.register_parameter(name, None)

    def blocks(self) -> list[list[nn.Parameter]]:
        """The embeddings, then each layer."""
        return layer_blocks(self.model, advice="set freeze.kind to none or tower")

    def layers(self) -> list[list[nn.Parameter]]:
        """The same as blocks."""
        return layer_blocks(self.model, advice="leave layer_decay out")

    def _pooled(self, images_BCHW: Tensor) -> Tensor:
        found = self.model(pixel_values=images_BCHW, **self._options)
        if self._cls:
            first_BF: Tensor = found.last_hidden_state[:, 0]
            return first_BF
        pooled_BF: Tensor = found.pooler_output
        return pooled_BF.flatten(1)

    def _maps(self, images_BCHW: Tensor) -> Tensor:
        maps: Tensor = self.model(pixel_values=images_BCHW, **self._options).last_hidden_state
        return maps

    def _space(self, maps: Tensor, image_size: tuple[int, int]) -> tuple[int, tuple[int, ...]]:
        if maps.ndim == 4:
            return 0, (2, 3)
        patch = getattr(self.model.config, "patch_size", None)
        if isinstance(patch, int):
            before = maps.shape[1] - (image_size[0] // patch) * (image_size[1] // patch)
            if 0 <= before <= _PREFIXES:
                return before, (1,)
        raise self._unknown_space("transformers", self.model.config.model_type)


@dataclass(frozen=True)
class ImageEncoder:
    """A frozen tower, whose features may be kept; ``features`` gives those [N, F] of all views of a batch."""

    module: VisionTower
    config: VisionConfig
    features: Callable[[Batch], Tensor]

    @property
    def width(self) -> int:
        """Features of each image."""
        return self.module.num_features

    @property
    def identity(self) -> Mapping[str, Any]:
        """The tower and its weights."""
        return {
            self.module.library: version(self.module.library),
            "tower": self.config.name,
            "pooling": self.config.pooling,
            "weights_hash": weights_hash(self.module),
        }

    def encode(self, batch: Batch) -> Tensor:
        """Features [N, F] of all views that are there, case by case."""
        return self.features(batch)


def mean_of_views(features_NF: Tensor, there_BV: Tensor) -> Tensor:
    """The mean [B, F] of the features of each case's views, which come case by case; zeros where it has none."""
    case_N = there_BV.nonzero()[:, 0]
    sums_BF = features_NF.new_zeros(len(there_BV), features_NF.shape[1]).index_add_(0, case_N, features_NF)
    return sums_BF / there_BV.sum(1, keepdim=True).clamp(min=1).to(sums_BF.dtype)


def build_vision(
    config: VisionConfig,
    *,
    image_size: tuple[int, int],
    weights: bool = True,
    layout: ImageLayout | None = None,
    source: ImageSource | None = None,
) -> VisionTower:
    """The tower that ``config`` describes, for images of ``image_size`` (height, width).

    With ``weights=False`` no pretrained weights are loaded: a bundle fills in its own, and keeps the ``layout`` of a
    tower that is no plain timm model. ``source`` is a tower that the config names in another place: that of a whole
    model, or of a bundle. A name or option that the library does not know, or a size that does not fit, is a
    ConfigError; weights that cannot be had or do not fit are a WeightsError.
    """
    if weights and source is None and config.kind in ("hf", "open_clip"):
        source = find_image(config)
    if source is not None:
        layout = source.layout
    if layout is None:
        loaded = named_timm(config, image_size=image_size, weights=weights)
    else:
        if layout.library == "transformers" and config.drop_path:
            raise ConfigError(
                f"task.vision.drop_path is {config.drop_path}, but towers of transformers take none here; set it to 0."
            )
        load = partial(new_image_model, layout) if source is None else source.load
        loaded = load(image_size=image_size, drop_path=config.drop_path)
    tower: VisionTower
    try:
        if layout is not None and layout.library == "transformers":
            tower = HubTower(loaded, pooling=config.pooling, image_size=image_size, layout=layout)
        else:
            tower = TimmTower(
                loaded.model, pooling=config.pooling, image_size=image_size, layout=layout, weights_note=loaded.note
            )
    except (RuntimeError, AssertionError, ValueError, IndexError) as error:
        raise size_error(layout.name if layout else config.name, image_size, error) from error
    named = config.name if config.pretrained is True else str(config.pretrained)
    tower.licenses = with_stated(loaded.licenses, config.license, source=named, key="task.vision.license")
    return tower
