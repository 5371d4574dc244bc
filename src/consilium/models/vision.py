"""Image towers: any timm model as images in, features out.

Axes in names: B image, C channel, H height, W width, L token, F feature.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import timm
import torch
from timm.layers.drop import DropPath
from timm.layers.patch_embed import PatchEmbed
from timm.models import PretrainedCfg, group_parameters
from torch import Tensor, nn

from consilium.core.contracts import Batch
from consilium.core.errors import ConfigError, WeightsError
from consilium.core.reporter import counted
from consilium.core.transfer import fetch
from consilium.models.config import VisionConfig
from consilium.models.hub import cached_if_unreachable
from consilium.models.parts import first_names, tower_part, without
from consilium.models.weights import load_state, load_tensors, weights_hash

SHORT_NAMES = {
    "vit_b_16": "vit_base_patch16_224",
    "vit_b_32": "vit_base_patch32_224",
    "vit_l_16": "vit_large_patch16_224",
    "vit_l_32": "vit_large_patch32_224",
}
"""Names of torchvision that timm spells differently; resnet50, vgg16 and the like are the same in both."""

_FOLDER_FILES = ("model.safetensors", "pytorch_model.bin")  # the form in which timm pushes to a hub


@dataclass(frozen=True)
class PretrainedInput:
    """The images that the pretrained weights of a tower were trained on; ``size`` is (height, width)."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    size: tuple[int, int]
    interpolation: str


class VisionTower(nn.Module):
    """A timm model without its classifier; build it with ``build_vision``.

    ``weights_note`` is what a person should know of the file of its weights.
    """

    def __init__(self, model: nn.Module, *, pooling: str, image_size: tuple[int, int], weights_note: str = "") -> None:
        super().__init__()
        self.model: Any = model
        self.weights_note = weights_note
        self.pooling = pooling
        cfg: Any = model.pretrained_cfg
        self.pretrained_input = PretrainedInput(
            mean=tuple(cfg["mean"]),
            std=tuple(cfg["std"]),
            size=(cfg["input_size"][1], cfg["input_size"][2]),
            interpolation=cfg["interpolation"],
        )
        self._prefix_tokens = 0
        self._pooled_axes: tuple[int, ...] = ()
        probe_BCHW = torch.zeros(1, 3, *image_size)
        training = self.training
        self.eval()  # BatchNorm must neither learn from the probe nor refuse a batch of one
        if pooling != "default":
            self._look_at_maps(probe_BCHW)
            self._drop_bypassed(probe_BCHW)
        with torch.no_grad():
            self.num_features = int(self(probe_BCHW).shape[1])
        self.train(training)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Features [B, num_features] of normalised images."""
        if self.pooling == "default":
            features_BF: Tensor = self.model(images_BCHW)
            return features_BF
        maps: Tensor = self.model.forward_features(images_BCHW)
        maps = maps[:, self._prefix_tokens :] if self._prefix_tokens else maps
        if self.pooling == "avg":
            return maps.mean(self._pooled_axes)
        if self.pooling == "max":
            return maps.amax(self._pooled_axes)
        return torch.cat((maps.mean(self._pooled_axes), maps.amax(self._pooled_axes)), dim=1)

    def blocks(self) -> list[list[nn.Parameter]]:
        """All parameters in blocks from input to output, in the tower's own sense.

        A block is a stage of a ResNet, a layer of a ViT; a trailing norm belongs to the block before it.
        """
        if not (blocks := self._grouped(coarse=True)):
            name = self.model.pretrained_cfg["architecture"]
            raise ConfigError(f"timm does not know the blocks of {name}; set freeze.kind to none or tower.")
        return blocks

    def depths(self) -> list[int]:
        """How many layers lie above that of each parameter; a tower whose layers timm does not know is a ConfigError.

        A layer is what timm calls one for layer-wise rates: a block of a ResNet, a layer of a ViT.
        """
        if not (layers := self._grouped(coarse=False)):
            name = self.model.pretrained_cfg["architecture"]
            raise ConfigError(f"timm does not know the layers of {name}; leave layer_decay out.")
        above = {parameter: len(layers) - 1 - n for n, layer in enumerate(layers) for parameter in layer}
        return [above[parameter] for parameter in self.parameters()]

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

    def _look_at_maps(self, probe_BCHW: Tensor) -> None:
        """Find which axes of the feature maps are space."""
        with torch.no_grad():
            maps = self.model.forward_features(probe_BCHW)
        features = self.model.num_features
        prefix_tokens = getattr(self.model, "num_prefix_tokens", None)
        if isinstance(maps, Tensor) and maps.ndim == 4 and features in (maps.shape[1], maps.shape[3]):
            channels_last = getattr(self.model, "output_fmt", "NCHW") == "NHWC"
            self._pooled_axes = (1, 2) if channels_last else (2, 3)
        elif isinstance(maps, Tensor) and maps.ndim == 3 and prefix_tokens is not None:
            self._prefix_tokens, self._pooled_axes = prefix_tokens, (1,)
        else:
            name = self.model.pretrained_cfg["architecture"]
            raise ConfigError(
                f"vision.pooling is '{self.pooling}', but timm does not say which features of {name} stand for "
                f"which part of the image; use default."
            )

    def _drop_bypassed(self, probe_BCHW: Tensor) -> None:
        """Take out modules that only the model's own pooling uses, so that every parameter gets a gradient."""
        with torch.enable_grad():
            self(probe_BCHW).sum().backward()
        unused = {parameter for parameter in self.model.parameters() if parameter.grad is None}
        self.model.zero_grad(set_to_none=True)
        for name, module in list(self.model.named_modules()):
            parameters = set(module.parameters())
            if name and parameters and parameters <= unused:
                unused -= parameters
                self.model.set_submodule(name, nn.Identity())


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
            "timm": version("timm"),
            "tower": self.config.name,
            "pooling": self.config.pooling,
            "weights_hash": weights_hash(self.module),
        }

    def encode(self, batch: Batch) -> Tensor:
        """Features [N, F] of all views that are there, case by case."""
        return self.features(batch)


def build_vision(config: VisionConfig, *, image_size: tuple[int, int], weights: bool = True) -> VisionTower:
    """The tower that ``config`` describes, for images of ``image_size`` (height, width).

    With ``weights=False`` no pretrained weights are loaded: a bundle fills in its own. A name or option
    that timm does not know, or a size that does not fit, is a ConfigError; weights that
    cannot be had or do not fit are a WeightsError.
    """
    name = _known_name(config.name)
    options: dict[str, Any] = {"num_classes": 0}
    if config.drop_path:
        options["drop_path_rate"] = config.drop_path
    note = ""
    if not weights or config.pretrained is False:
        model = _create(name, image_size=image_size, options=options)
    elif config.pretrained is True:
        model = _create_pretrained(name, image_size=image_size, options=options)
    else:
        local = _local_weights(name, config.pretrained, image_size=image_size, options=options)
        model, note = _create_local(name, local, image_size=image_size, options=options), local.note
    if config.drop_path and not any(isinstance(module, DropPath) for module in model.modules()):
        raise ConfigError(f"vision.drop_path is {config.drop_path}, but {name} has no drop path; set it to 0.")
    try:
        return VisionTower(model, pooling=config.pooling, image_size=image_size, weights_note=note)
    except (RuntimeError, AssertionError, ValueError, IndexError) as error:
        raise _size_error(name, image_size, _short(error)) from error


def _known_name(name: str) -> str:
    timm_name = SHORT_NAMES.get(name, name)
    if timm.is_model(timm_name):
        try:
            timm.get_pretrained_cfg(timm_name)
        except RuntimeError as error:  # name.tag, where the tag chooses among several pretrained weights
            tags = [full.partition(".")[2] for full in timm.list_pretrained(timm_name.partition(".")[0])]
            raise ConfigError(f"vision.name '{name}': {error} It has: {', '.join(tags) or 'none'}.") from None
        return timm_name
    close = difflib.get_close_matches(name, [*SHORT_NAMES, *timm.list_models()], n=5, cutoff=0.6)
    hint = f"did you mean {', '.join(close)}?" if close else "timm.list_models() lists them."
    raise ConfigError(f"vision.name '{name}' is not a timm model; {hint}")


def _timm_model(name: str, *, image_size: tuple[int, int], arguments: dict[str, Any]) -> nn.Module:
    # Models of a fixed size (most transformers) take img_size; the others raise a TypeError at once.
    try:
        model: nn.Module = timm.create_model(name, img_size=image_size, **arguments)
    except TypeError:
        model = timm.create_model(name, **arguments)
    embed = getattr(model, "patch_embed", None)
    patches = embed.patch_size if isinstance(embed, PatchEmbed) and not embed.dynamic_img_pad else (1, 1)
    if any(side % patch for side, patch in zip(image_size, patches, strict=True)):
        raise _size_error(name, image_size, f"not divisible by its patches of {_by(patches)} pixels")
    return model


def _create(name: str, *, image_size: tuple[int, int], options: dict[str, Any]) -> nn.Module:
    try:
        return _timm_model(name, image_size=image_size, arguments=options)
    except TypeError as error:
        raise ConfigError(f"timm's {name} takes no vision.drop_path ({error}); set it to 0.") from error
    except (RuntimeError, AssertionError, ValueError) as error:
        raise _size_error(name, image_size, _short(error)) from error


def _create_pretrained(name: str, *, image_size: tuple[int, int], options: dict[str, Any]) -> nn.Module:
    with cached_if_unreachable() as unreachable:
        try:
            return _timm_model(name, image_size=image_size, arguments={**options, "pretrained": True})
        except Exception as error:  # the hub client raises errors of several network libraries
            _create(name, image_size=image_size, options=options)  # raises if the config is to blame
            why = f"{unreachable}; its cache on this machine does not hold them" if unreachable else _named(error)
            raise WeightsError(
                f"the pretrained weights of {name} cannot be had from the hub ({why}). Without a network, set "
                "vision.pretrained to a local weights file or folder, or to false (random weights)."
            ) from error


def _named(error: Exception) -> str:
    return f"{type(error).__name__}: {_short(error)}"


@dataclass(frozen=True)
class _LocalWeights:
    """Tensors for a timm model, what is known of its images, and words about what is used of the file."""

    file: Path
    state: dict[str, Tensor]
    overlay: dict[str, Any]
    note: str
    held: str


def _local_weights(name: str, place: str, *, image_size: tuple[int, int], options: dict[str, Any]) -> _LocalWeights:
    """What a file or folder holds for the model: its own tensors by name, or foreign ones that timm may convert."""
    try:
        path = fetch(place, names=("config.json", *_FOLDER_FILES))
    except OSError as error:
        raise WeightsError(f"vision.pretrained: {error}.") from error
    file, overlay = _local_files(name, path)
    known = overlay.get("classifier") or _cfg(name).classifier or ()
    classifiers = [known] if isinstance(known, str) else known
    tensors = load_tensors(file)
    own = _create(name, image_size=image_size, options=options).state_dict()
    part = tower_part(tensors, own, classifiers=classifiers)
    held = f"The file holds {counted(len(tensors), 'tensor')}, {first_names(tensors)}"
    if part is None:
        state = without(classifiers, load_state(file))
        return _LocalWeights(file, state, overlay, note="", held=f"{held}; most of those of {name} are not among them.")
    note, below = part.said(), f". Those below `{part.prefix}` fit best" if part.prefix else ""
    return _LocalWeights(file, part.state, overlay, note=f"{file.name}: {note}" if note else "", held=f"{held}{below}.")


def _create_local(
    name: str, local: _LocalWeights, *, image_size: tuple[int, int], options: dict[str, Any]
) -> nn.Module:
    """The model with these weights; timm converts foreign keys and resizes position embeddings."""
    # num_classes as in the model keeps timm's loading strict: it is lenient wherever it replaces a classifier.
    overlay = {**local.overlay, "state_dict": local.state, "num_classes": 0}
    try:
        arguments = {**options, "pretrained": True, "pretrained_cfg_overlay": overlay}
        model = _timm_model(name, image_size=image_size, arguments=arguments)
    except Exception as error:
        details = str(error).partition("\n")[2] or error  # after torch's headline
        raise WeightsError(
            f"the weights in {local.file} do not fit {name}: {_short(details)}. {local.held} "
            f"Check that vision.name is the model that they were trained with."
        ) from error
    pretrained_cfg: Any = model.pretrained_cfg
    pretrained_cfg.pop("state_dict", None)  # else it would keep a second copy in memory
    return model


def _local_files(name: str, path: Path) -> tuple[Path, dict[str, Any]]:
    """The weights file at ``path``, and what its ``config.json`` says about the images."""
    if not path.exists():
        raise WeightsError(f"vision.pretrained is {path}, which does not exist; give a weights file or folder.")
    if path.is_file():
        return path, {}
    file = next((path / found for found in _FOLDER_FILES if (path / found).is_file()), None)
    if file is None:
        raise WeightsError(f"the folder {path} holds no weights; expected {' or '.join(_FOLDER_FILES)}.")
    if not (path / "config.json").is_file():
        return file, {}
    try:
        described = json.loads((path / "config.json").read_text(encoding="utf-8"))
        architecture, cfg = described.get("architecture"), described.get("pretrained_cfg", {})
        known = {key: cfg[key] for key in ("mean", "std", "input_size", "interpolation", "classifier") if key in cfg}
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise WeightsError(f"{path / 'config.json'} is not the config of a timm model: {error}") from error
    if architecture is not None and architecture != name.partition(".")[0]:
        raise WeightsError(f"the weights in {path} are of {architecture}, but vision.name is {name}; make them agree.")
    return file, known


def _cfg(name: str) -> PretrainedCfg:
    return timm.get_pretrained_cfg(name) or PretrainedCfg()


def _short(message: object) -> str:
    lines = [line.strip().rstrip(".") for line in str(message).splitlines() if line.strip()]
    return "; ".join(line if len(line) <= 200 else f"{line[:200]} …" for line in lines[:4]) or type(message).__name__


def _by(size: tuple[int, ...]) -> str:
    return " x ".join(str(side) for side in size)


def _size_error(name: str, image_size: tuple[int, int], reason: str) -> ConfigError:
    native = _cfg(name).input_size[1:]
    return ConfigError(
        f"images of {_by(image_size)} pixels (data.image.size) do not fit {name}: {reason}. "
        f"Its own size is {_by(native)}."
    )
