"""Fetching pretrained models into a folder that can be carried to a machine without a network."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import timm

from consilium.core.errors import ConfigError, WeightsError
from consilium.core.files import atomic_folder
from consilium.models.checkpoints.find import open_clip_hub_name
from consilium.models.checkpoints.hugging_face import WHOLE
from consilium.models.config import SHORT_TEXTS
from consilium.models.encoders import HubEncoder
from consilium.models.hub import DESCRIPTIONS, HUB, PATTERNS, TOWER_PATTERNS, ModelFolder, is_a_path
from consilium.models.licenses import file_licenses
from consilium.models.timm_models import SHORT_NAMES, hub_name

_KEY = "the model"


@dataclass(frozen=True)
class Fetched:
    """A model in a folder: its name on the hub, the licences of its weights, and the config key that takes it."""

    name: str
    repository: str
    folder: Path
    megabytes: float
    licenses: tuple[str, ...]
    keys: str
    created: bool

    def __str__(self) -> str:
        done = "is in" if self.created else "was there already:"
        licenses = ", ".join(self.licenses) or "unknown"
        return f"{self.name} {done} {self.folder} ({self.megabytes:,.0f} MB, licence {licenses}): {self.keys}"


def fetch_model(name: str, *, to: Path) -> Fetched:
    """Copy a model of the hub, with all that it takes to use it, into ``to``/ORG/NAME.

    ``name`` is what a config names: a model of timm, ``ORG/NAME`` or ``hf-hub:ORG/NAME``, or ``NAME/TAG`` of open_clip.
    One that is there already stays. What cannot be had is a WeightsError, what is no name on the hub a ConfigError.
    """
    repository = repository_of(name)
    folder = to / repository
    created = not folder.exists()
    if created:
        _copy(repository, folder, choices=TOWER_PATTERNS if _is_timm(name) else PATTERNS)
    size = sum(file.stat().st_size for file in folder.iterdir()) / 1e6
    licenses = tuple(license.name for license in file_licenses(folder, source=name) if license.name)
    return Fetched(name, repository, folder, size, licenses, _keys(folder), created)


def repository_of(name: str) -> str:
    """The name on the hub of a model that a config names in any form; one that has none is a ConfigError."""
    if is_a_path(name):
        raise ConfigError(f"{name} is a path of this machine; copy it, or give the name of a model on the hub.")
    if name in SHORT_TEXTS:
        return SHORT_TEXTS[name]["name"]
    found = hub_name(name) if _is_timm(name) else open_clip_hub_name(name) or name.removeprefix(HUB)
    if found is None or found.count("/") != 1:
        raise ConfigError(
            f"'{name}' is no model on the hub; expected a model of timm that has weights there, ORG/NAME, or NAME/TAG "
            "of open_clip (which must be installed). `consilium models` lists those of the recipes."
        )
    return found


def _is_timm(name: str) -> bool:
    return bool(timm.is_model(SHORT_NAMES.get(name, name)))


def _copy(repository: str, folder: Path, *, choices: Sequence[Sequence[str]]) -> None:
    """Copy configs, tokenizer, card and the first form of weights that there is; whole, or not at all."""
    place = ModelFolder(repository, _KEY, "")
    described, weights = place.descriptions("config"), place.weights(choices)
    form = next(patterns for patterns in choices if any(next(weights.glob(pattern), None) for pattern in patterns))
    with atomic_folder(folder) as temporary:
        for source, patterns in ((described, DESCRIPTIONS), (weights, form)):
            for pattern in patterns:
                for file in source.glob(pattern):
                    shutil.copyfile(file, temporary / file.name)  # of the cache it is a link
        _add_tokenizer(temporary)


def _add_tokenizer(folder: Path) -> None:
    """A model of open_clip may name the tokenizer of another one, which then comes along."""
    config = folder / "open_clip_config.json"
    if not config.is_file() or (folder / "tokenizer.json").is_file():
        return
    try:
        named = json.loads(config.read_text(encoding="utf-8"))["model_cfg"]["text_cfg"].get("hf_tokenizer_name")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(f"the open_clip_config.json of the model cannot be read: {error}.") from error
    if named is not None:
        from transformers import AutoTokenizer

        encoder = HubEncoder(named, place=ModelFolder(named, _KEY, ""))
        encoder.read("tokenizer", AutoTokenizer.from_pretrained).save_pretrained(folder)


def _keys(folder: Path) -> str:
    """What a config says to use the folder."""
    if (folder / "open_clip_config.json").is_file():
        return f"task.model={folder}"
    try:
        config = dict(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return f"{folder}"
    if "architecture" in config:  # of timm
        return f"task.vision.name={config['architecture']} task.vision.pretrained={folder}"
    if config.get("model_type") in WHOLE:
        return f"task.model={folder}"
    if "image_size" in config or "patch_size" in config:
        return f"task.vision.kind=hf task.vision.name={folder}"
    return f"task.text.name={folder}"
