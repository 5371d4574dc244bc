"""From what a config names to the reader of its form."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from consilium.core.errors import ConfigError, WeightsError
from consilium.models.checkpoints.hugging_face import ALONE, WHOLE, HubImages, HubModel
from consilium.models.checkpoints.layout import ImageLayout
from consilium.models.checkpoints.open_clip import OpenClipModel, read_description
from consilium.models.checkpoints.pretrained import ImageSource, TextSource, image_source, text_source
from consilium.models.config import TextConfig, VisionConfig
from consilium.models.encoders import HubEncoder, LoadedEncoder, encoder_of, new_encoder, text_class
from consilium.models.hub import (
    HUB,
    ModelFolder,
    cached_if_unreachable,
    carried,
    file_in,
    how_to_carry,
    is_a_path,
    pretrained_key,
    short,
    weights_of,
)
from consilium.models.licenses import CARD
from consilium.models.timm_models import new_timm

if TYPE_CHECKING:
    from consilium.models.checkpoints.pretrained import Pretrained

_INSTEAD = "Without a network, name a local folder with its files: its weights, its config and its tokenizer."


def find_model(name: str, *, weights: str | None = None, key: str = "task.model", views: bool = False) -> Pretrained:
    """The whole model that a config names.

    ``name`` is a folder here or in a bucket, ``ORG/NAME`` or ``hf-hub:ORG/NAME`` on the hub, or a model of open_clip as
    ``NAME/TAG``, where the tag says which weights. ``weights`` is a file that stands for those of a folder or a tag.
    ``key`` is the config key that messages name. With ``views`` a model that has heads for views is one, too. What
    cannot be had is a WeightsError, what is no such model a
    ConfigError.
    """
    given: Callable[[], Path] | None = partial(weights_of, weights, key=pretrained_key(key)) if weights else None
    named, _, tag = name.partition("/")
    if weights is None and (repository := open_clip_hub_name(name)) is not None and carried(repository) is not None:
        return find_model(f"{HUB}{repository}", key=key)
    if not is_a_path(name) and not name.startswith(HUB) and (described := _of_open_clip(named, tag)) is not None:
        place = ModelFolder(name, key, _INSTEAD)
        if not tag and weights is None:
            raise ConfigError(f"{key} '{name}' says no weights: give {name}/TAG, of which there is {_tags(named)}.")
        get = given or partial(_download, named, tag, place)
        return OpenClipModel(name, described, file=get, source=weights or name, place=place)
    place = ModelFolder(name.removeprefix(HUB), key, _INSTEAD + ("" if name.startswith(HUB) else _near(named)))
    folder = place.descriptions("config")
    if (folder / "open_clip_config.json").is_file():
        described = read_description(folder / "open_clip_config.json")
        heads = views and described.get("views")
        if key == "task.model" and not heads and (why := described.get("towers_only")):
            other = "" if not described.get("views") else " Or set task.views, which takes its heads."
            raise ConfigError(
                f"task.model '{name}' has two towers, but no projections that fit: {why}. Take the towers by "
                f"themselves: task.vision and task.text, each with kind: open_clip and this name.{other}"
            )
        get = given or (lambda: file_in(place.weights()))
        return OpenClipModel(name, described, file=get, source=weights or name, place=place)
    return HubModel(place.name, place=place, file=given)


def open_clip_hub_name(name: str) -> str | None:
    """Where the weights of a model of open_clip (``NAME/TAG``) lie on the hub; None where it is no such model."""
    model, _, tag = name.partition("/")
    if is_a_path(name) or name.startswith(HUB) or (described := _of_open_clip(model, tag)) is None:
        return None
    return str(described["preprocess_cfg"].get("hf_hub", "")).rpartition("/")[0] or None


def find_image(config: VisionConfig) -> ImageSource:
    """The image tower of another library than timm that a config names: of a whole model, or a model of images alone.

    What cannot be had is a WeightsError, what is no such model a ConfigError.
    """
    key = "task.vision.name"
    weights = config.pretrained if isinstance(config.pretrained, str) else None
    place = ModelFolder(config.name, key, _INSTEAD)
    if config.kind == "hf" and HubModel(config.name, place=place).kind not in WHOLE:
        if weights is not None:
            raise ConfigError(
                f"task.vision.pretrained is {weights}, but the weights of a model of images alone lie in its folder; "
                "name that as task.vision.name, and set task.vision.pretrained to true."
            )
        alone = HubImages(config.name, place=place, weights=bool(config.pretrained))
        return ImageSource(alone.layout, alone.load)
    found = find_model(config.name, weights=weights, key=key)
    if config.pretrained:
        return image_source(found)
    layout = found.layout.image
    return ImageSource(layout, partial(new_image_model, layout))


def find_text(config: TextConfig) -> TextSource:
    """The text tower that a config names: an encoder of Hugging Face, or that of a whole model.

    What cannot be had is a WeightsError, what is no text tower a ConfigError.
    """
    encoder = HubEncoder(config.name)
    if config.kind == "open_clip" or encoder.any_config.model_type in WHOLE:
        weights = config.pretrained if isinstance(config.pretrained, str) else None
        whole = find_model(config.name, weights=weights, key="task.text.name")
        source = text_source(whole)
        if config.pretrained:
            return source
        return replace(source, load=lambda: LoadedEncoder(encoder_of(whole.layout.text.options)))

    if (kind := encoder.any_config.model_type) in ALONE:
        raise ConfigError(
            f"task.text.name '{config.name}' is the text tower of a SigLIP by itself ({kind}), which does not say how "
            "its texts are cleaned and padded; name the folder of the whole model, whose text tower is then taken."
        )

    def load() -> LoadedEncoder:
        kind = text_class(config.pooling)
        if isinstance(config.pretrained, str):
            return encoder.with_weights_of(config.pretrained, kind)
        return encoder.pretrained(kind) if config.pretrained else LoadedEncoder(new_encoder(encoder.config, kind))

    return TextSource(encoder.config.model_type, None, None, encoder.tokenizer, load)


def new_image_model(layout: ImageLayout, *, image_size: tuple[int, int], drop_path: float = 0.0) -> LoadedEncoder:
    """The image tower of a layout with random weights."""
    if layout.library == "timm":
        return LoadedEncoder(new_timm(layout, image_size=image_size, drop_path=drop_path))
    return LoadedEncoder(encoder_of(layout.options))


def _of_open_clip(name: str, tag: str) -> dict[str, Any] | None:
    """What open_clip knows of a name and of its weights; None where it is not installed, or does not know it."""
    try:
        import open_clip
    except ImportError:
        return None
    if name not in open_clip.list_models():
        return None
    model, known = open_clip.get_model_config(name), (open_clip.get_pretrained_cfg(name, tag) if tag else {})
    if known:  # the activation is that of the weights, whatever the name says
        model["quick_gelu"] = bool(known.get("quick_gelu", False))
    return {"model_cfg": model, "preprocess_cfg": known}


def _near(name: str) -> str:
    """Which models of open_clip a name may have meant, in words."""
    try:
        import open_clip
    except ImportError:
        return " Models of open_clip have names where it is installed: pip install 'consilium[clip]'."
    close = difflib.get_close_matches(name, open_clip.list_models(), n=3, cutoff=0.8)
    return f" Of open_clip's models the nearest are {', '.join(close)}." if close else ""


def _tags(name: str) -> str:
    import open_clip

    return ", ".join(open_clip.list_pretrained_tags_by_model(name)) or "none: name a file as `pretrained`"


def _from_file(key: str, name: str) -> str:
    """What to set for weights of a file, in words; the tag stays in the name, for it says how they are read."""
    if key == "task.model":
        return f"set task.model to {{name: {name}, pretrained: FILE}}"
    return f"set {pretrained_key(key)} to FILE"


def _download(name: str, tag: str, place: ModelFolder) -> Path:
    import open_clip
    from huggingface_hub import hf_hub_download

    config = open_clip.get_pretrained_cfg(name, tag)
    if not config:
        raise ConfigError(f"open_clip has no weights '{tag}' of {name}; it has {_tags(name)}.")
    with cached_if_unreachable() as unreachable:
        try:
            file = Path(open_clip.download_pretrained(config))
        except Exception as error:  # several network libraries
            why = f"{unreachable}; its cache on this machine does not hold them" if unreachable else short(error)
            raise WeightsError(
                f"the weights of {place.key} '{name}/{tag}' cannot be had ({why}). Without a network, download "
                f"{config.get('hf_hub') or config.get('url')} elsewhere, and {_from_file(place.key, f'{name}/{tag}')}. "
                f"{how_to_carry(f'{name}/{tag}')}"
            ) from error
        if repository := config.get("hf_hub", "").rpartition("/")[0]:
            with contextlib.suppress(Exception):  # without its card the licence is unknown
                hf_hub_download(repository, CARD)
    return file
