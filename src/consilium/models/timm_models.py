"""timm models without their classifier: random, or with weights of the hub, of files, or of other libraries."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import timm
import torch
from timm.layers.drop import DropPath
from timm.layers.patch_embed import PatchEmbed
from timm.models import PretrainedCfg
from torch import Tensor, nn

from consilium.core.errors import ConfigError, WeightsError
from consilium.core.reporter import counted
from consilium.core.transfer import fetch
from consilium.models.checkpoints.layout import ImageLayout
from consilium.models.config import VisionConfig
from consilium.models.encoders import LoadedEncoder
from consilium.models.hub import cached_if_unreachable, carried, file_in, how_to_carry
from consilium.models.licenses import LICENSE_FILES, file_licenses, timm_license
from consilium.models.parts import first_names, fit_table, tower_part, without
from consilium.models.weights import load_state, load_tensors

SHORT_NAMES = {
    "vit_b_16": "vit_base_patch16_224",
    "vit_b_32": "vit_base_patch32_224",
    "vit_l_16": "vit_large_patch16_224",
    "vit_l_32": "vit_large_patch32_224",
}
"""Names of torchvision that timm spells differently; resnet50, vgg16 and the like are the same in both."""

_BLOCK = re.compile(r"blocks\.(\d+)\.")
_FOLDER_FILES = ("model.safetensors", "pytorch_model.bin")  # the form in which timm pushes to a hub


def named_timm(config: VisionConfig, *, image_size: tuple[int, int], weights: bool) -> LoadedEncoder:
    """The model that a config names.

    A name or option that timm does not know, or a size that does not fit, is a ConfigError; weights that cannot be had
    or do not fit are a WeightsError.
    """
    name = _known_name(config.name)
    options: dict[str, Any] = {"num_classes": 0}
    if config.drop_path:
        options["drop_path_rate"] = config.drop_path
    note, licenses = "", None
    if not weights or config.pretrained is False:
        model = _create(name, image_size=image_size, options=options)
    elif (place := _given(name, config.pretrained)) is None:
        model = _create_pretrained(name, image_size=image_size, options=options)
        licenses = [timm_license(model.pretrained_cfg)]  # type: ignore[arg-type]
    else:
        local = _local_weights(name, place, image_size=image_size, options=options)
        model, note = _create_local(name, local, image_size=image_size, options=options), local.note
        licenses = file_licenses(local.file, source=name if config.pretrained is True else place)
    if config.drop_path and not any(isinstance(module, DropPath) for module in model.modules()):
        raise ConfigError(f"task.vision.drop_path is {config.drop_path}, but {name} has no drop path; set it to 0.")
    return LoadedEncoder(model, note, licenses=licenses)


def new_timm(layout: ImageLayout, *, image_size: tuple[int, int], drop_path: float = 0.0) -> nn.Module:
    """The model of a layout with random weights; a size that does not fit is a ConfigError."""
    return _with_input(_create(layout.name, image_size=image_size, options=_options(layout, drop_path)), layout)


def load_timm(
    layout: ImageLayout,
    state: Mapping[str, Tensor],
    *,
    image_size: tuple[int, int],
    origin: str,
    drop_path: float = 0.0,
) -> nn.Module:
    """The model of a layout with these weights, whose names may be those of open_clip; positions are resized.

    What does not fit is a WeightsError that begins with ``origin``.
    """
    options = _options(layout, drop_path)
    try:
        return _with_input(_overlaid(layout.name, {"state_dict": dict(state)}, image_size, options), layout)
    except Exception as error:
        own = _create(layout.name, image_size=image_size, options=options).state_dict()  # raises if the size is wrong
        details: object = str(error).partition("\n")[2] or error  # after torch's headline
        blocks = {found[1] for name in state if (found := _BLOCK.search(name))}
        if blocks and len(blocks) != layout.options.get("depth", len(blocks)):
            details = f"they have {len(blocks)} blocks, and the model {layout.options['depth']}; it is another one"
        table = fit_table(state, own) if own.keys() & state.keys() else ""  # others are names that timm translates
        raise WeightsError(f"{origin} do not fit {layout.name}: {_short(details)}.{table}") from error


@cache  # a training asks more than once
def timm_width(name: str, pool: str) -> int:
    """The features of a model with this pooling; "" is its own."""
    options: dict[str, Any] = {"global_pool": pool} if pool else {}
    with torch.device("meta"):  # a large one would take minutes to draw its weights
        model: Any = timm.create_model(name, num_classes=0, **options)
    return int(model.num_features)


def size_error(name: str, image_size: tuple[int, int], reason: object) -> ConfigError:
    """That images of this size do not fit."""
    own = f" Its own size is {_by(_cfg(name).input_size[1:])}." if timm.is_model(name) else ""
    return ConfigError(
        f"images of {_by(image_size)} pixels (data.image.size) do not fit {name}: {_short(reason)}.{own}"
    )


def _options(layout: ImageLayout, drop_path: float) -> dict[str, Any]:
    return {"num_classes": 0, **layout.options, **({"drop_path_rate": drop_path} if drop_path else {})}


def _with_input(model: Any, layout: ImageLayout) -> nn.Module:
    """The model, which now says of its images what the layout says, and not what timm says of the name."""
    shown = layout.input
    cfg = {"mean": shown.mean, "std": shown.std, "input_size": (3, *shown.size), "interpolation": shown.interpolation}
    model.pretrained_cfg = {**dict(model.pretrained_cfg), **cfg}
    return model  # type: ignore[no-any-return]


def _overlaid(name: str, overlay: dict[str, Any], image_size: tuple[int, int], options: dict[str, Any]) -> nn.Module:
    """The model with the weights of an overlay; timm converts foreign keys and resizes position embeddings."""
    # num_classes as in the model keeps timm's loading strict: it is lenient wherever it replaces a classifier.
    arguments = {**options, "pretrained": True, "pretrained_cfg_overlay": {**overlay, "num_classes": 0}}
    model = _timm_model(name, image_size=image_size, arguments=arguments)
    pretrained_cfg: Any = model.pretrained_cfg
    pretrained_cfg.pop("state_dict", None)  # else it would keep a second copy in memory
    return model


def hub_name(name: str) -> str | None:
    """Where the weights of a model of timm lie on the hub; None: they lie elsewhere, or there are none."""
    found: str | None = _cfg(_known_name(name)).hf_hub_id
    return found


def _given(name: str, pretrained: bool | str) -> str | None:
    """The place of weights that lie here: a path of the config, or a folder that was carried here; None: the hub's."""
    if isinstance(pretrained, str):
        return pretrained
    repository = hub_name(name)
    folder = None if repository is None else carried(repository)
    return None if folder is None else str(folder)


def _known_name(name: str) -> str:
    timm_name = SHORT_NAMES.get(name, name)
    if timm.is_model(timm_name):
        try:
            timm.get_pretrained_cfg(timm_name)
        except RuntimeError as error:  # name.tag, where the tag chooses among several pretrained weights
            tags = [full.partition(".")[2] for full in timm.list_pretrained(timm_name.partition(".")[0])]
            raise ConfigError(f"task.vision.name '{name}': {error} It has: {', '.join(tags) or 'none'}.") from None
        return timm_name
    close = difflib.get_close_matches(name, [*SHORT_NAMES, *timm.list_models()], n=5, cutoff=0.6)
    hint = f"did you mean {', '.join(close)}?" if close else "timm.list_models() lists them."
    raise ConfigError(f"task.vision.name '{name}' is not a timm model; {hint}")


def sized_timm(name: str, *, image_size: tuple[int, int], arguments: dict[str, Any]) -> tuple[nn.Module, bool]:
    """The model for images of a size, and whether it had to know it.

    Models of a fixed size (most transformers) take ``img_size``; the others raise a TypeError at once.
    """
    try:
        return timm.create_model(name, img_size=image_size, **arguments), True
    except TypeError:
        return timm.create_model(name, **arguments), False


def _timm_model(name: str, *, image_size: tuple[int, int], arguments: dict[str, Any]) -> nn.Module:
    model, _ = sized_timm(name, image_size=image_size, arguments=arguments)
    embed = getattr(model, "patch_embed", None)
    patches = embed.patch_size if isinstance(embed, PatchEmbed) and not embed.dynamic_img_pad else (1, 1)
    if any(side % patch for side, patch in zip(image_size, patches, strict=True)):
        raise size_error(name, image_size, f"not divisible by its patches of {_by(patches)} pixels")
    return model


def _create(name: str, *, image_size: tuple[int, int], options: dict[str, Any]) -> nn.Module:
    try:
        return _timm_model(name, image_size=image_size, arguments=options)
    except TypeError as error:
        raise ConfigError(f"timm's {name} takes no task.vision.drop_path ({error}); set it to 0.") from error
    except (RuntimeError, AssertionError, ValueError) as error:
        raise size_error(name, image_size, error) from error


def _create_pretrained(name: str, *, image_size: tuple[int, int], options: dict[str, Any]) -> nn.Module:
    with cached_if_unreachable() as unreachable:
        try:
            return _timm_model(name, image_size=image_size, arguments={**options, "pretrained": True})
        except Exception as error:  # the hub client raises errors of several network libraries
            _create(name, image_size=image_size, options=options)  # raises if the config is to blame
            why = f"{unreachable}; its cache on this machine does not hold them" if unreachable else _named(error)
            raise WeightsError(
                f"the pretrained weights of {name} cannot be had from the hub ({why}). Without a network, set "
                "task.vision.pretrained to a local weights file or folder, or to false (random weights). "
                f"{how_to_carry(name)}"
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
        path = fetch(place, names=(*LICENSE_FILES, *_FOLDER_FILES))
    except OSError as error:
        raise WeightsError(f"task.vision.pretrained: {error}.") from error
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
    try:
        return _overlaid(name, {**local.overlay, "state_dict": local.state}, image_size, options)
    except Exception as error:
        details = str(error).partition("\n")[2] or error  # after torch's headline
        raise WeightsError(
            f"the weights in {local.file} do not fit {name}: {_short(details)}. {local.held} "
            "Check that task.vision.name is the model that they were trained with."
            f"{fit_table(local.state, _create(name, image_size=image_size, options=options).state_dict())}"
        ) from error


def _local_files(name: str, path: Path) -> tuple[Path, dict[str, Any]]:
    """The weights file at ``path``, and what its ``config.json`` says about the images."""
    if not path.exists():
        raise WeightsError(f"task.vision.pretrained is {path}, which does not exist; give a weights file or folder.")
    if path.is_file():
        return path, {}
    file = file_in(path, _FOLDER_FILES)
    if not (path / "config.json").is_file():
        return file, {}
    try:
        described = json.loads((path / "config.json").read_text(encoding="utf-8"))
        architecture, cfg = described.get("architecture"), described.get("pretrained_cfg", {})
        known = {key: cfg[key] for key in ("mean", "std", "input_size", "interpolation", "classifier") if key in cfg}
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise WeightsError(f"{path / 'config.json'} is not the config of a timm model: {error}") from error
    if architecture is not None and architecture != name.partition(".")[0]:
        raise WeightsError(
            f"the weights in {path} are of {architecture}, but task.vision.name is {name}; make them agree."
        )
    return file, known


def _cfg(name: str) -> PretrainedCfg:
    return timm.get_pretrained_cfg(name) or PretrainedCfg()


def _short(message: object) -> str:
    lines = [line.strip().rstrip(".") for line in str(message).splitlines() if line.strip()]
    return "; ".join(line if len(line) <= 200 else f"{line[:200]} …" for line in lines[:4]) or type(message).__name__


def _by(size: tuple[int, ...]) -> str:
    return " x ".join(str(side) for side in size)
