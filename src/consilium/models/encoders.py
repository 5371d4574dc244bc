"""Models of transformers by folder or name: config, tokenizer and weights; code that comes with them never runs."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from consilium.core.errors import ConfigError, WeightsError
from consilium.core.licenses import License
from consilium.models.hub import ModelFolder, pretrained_key, short, weights_of
from consilium.models.licenses import file_licenses
from consilium.models.parts import first_names, fit_table, further_layers, tower_part
from consilium.models.weights import load_tensors

ENCODER, MASKED_LM = "AutoModel", "AutoModelForMaskedLM"  # without heads; with that which scores terms
_TEXT = ModelFolder(
    "",
    "task.text.name",
    "Without a network, set task.text.name to a local folder with its files, or learn a tower from nothing: "
    "task.text.name: small with task.text.pretrained: false.",
)
_BESIDE = {  # models that the library's AutoModel does not know
    "siglip_text_model": "SiglipTextModel",
    "siglip2_text_model": "Siglip2TextModel",
    "chinese_clip_text_model": "ChineseCLIPTextModel",
}
_FILES = ("model.safetensors", "pytorch_model.bin")


@dataclass(frozen=True)
class LoadedEncoder:
    """A model with weights, what a person should know of their file, and the tensors that the file lacks.

    ``licenses`` are those of the weights; None: they are random.
    """

    model: Any
    note: str = ""
    missing: frozenset[str] = field(default_factory=frozenset)
    licenses: Sequence[License] | None = None


class HubEncoder:
    """The config, tokenizer and weights of a model in the form of transformers.

    What cannot be had or read is a WeightsError; what is there but is not of this kind, a ConfigError.
    """

    def __init__(self, name: str, *, place: ModelFolder = _TEXT) -> None:
        """``name`` is a folder or a name on the hub; ``place`` says which config key it is from."""
        self.name = name
        self._place = ModelFolder(name, place.key, place.instead)

    @cached_property
    def any_config(self) -> Any:
        """The transformers config, of whatever model."""
        from transformers import AutoConfig

        return self.read("config", AutoConfig.from_pretrained)

    @cached_property
    def config(self) -> Any:
        """The transformers config of a text encoder."""
        config = self.any_config
        if config.is_encoder_decoder or getattr(config, "vision_config", None) is not None:
            raise ConfigError(
                f"{self._place.key} '{self.name}' is a model of type {config.model_type}, which is more than an "
                "encoder, and none of which a tower is taken; name one of texts such as a BERT, of images such as a "
                "ViT, or a CLIP, SigLIP, Chinese-CLIP or vision-text dual encoder."
            )
        return config

    def tokenizer(self) -> tuple[str, int]:
        """The text of its ``tokenizer.json``, and the id of its padding token."""
        from transformers import AutoTokenizer

        found = self.read("tokenizer", AutoTokenizer.from_pretrained)
        if not found.is_fast:
            raise ConfigError(
                f"the tokenizer of {self.name} ({type(found).__name__}) has no form that the tokenizers library reads "
                "(tokenizer.json); name an encoder that has one."
            )
        if len(found) <= len(found.all_special_ids):  # what transformers makes of a folder without a vocabulary
            raise ConfigError(f"{self.name} brings no vocabulary; add its tokenizer.json (or vocab.txt).")
        definition: str = found.backend_tokenizer.to_str()
        return definition, found.pad_token_id or 0

    def pretrained(self, kind: str = ENCODER) -> LoadedEncoder:
        """The model with the weights that lie under the name; ``kind`` is its class in transformers."""
        licenses = file_licenses(self._place.descriptions("card"), source=self.name)
        # The library would else build a model in half precision where its file is.
        config = self._config_for(kind)
        options = {"config": config, "dtype": torch.float32, "output_loading_info": True}
        model, info = self.read("weights", _class_of(config, kind).from_pretrained, options)
        return LoadedEncoder(model, missing=frozenset(info["missing_keys"]), licenses=licenses)

    def with_weights_of(self, place: str, kind: str = ENCODER) -> LoadedEncoder:
        """The model with the weights of a file, or of the folder that holds one; a file may hold a whole training."""
        file = weights_of(place, key=pretrained_key(self._place.key), names=_FILES)
        tensors = load_tensors(file)
        config = self._config_for(kind)
        with torch.device("meta"):
            empty = new_encoder(config, kind)
        part = tower_part(tensors, empty.state_dict(), classifiers=())
        if part is None:
            raise WeightsError(
                f"the weights in {file} do not fit {self.name}: the file holds {len(tensors)} tensors, "
                f"{first_names(tensors)}; most of those of {type(empty).__name__} are not among them. "
                f"Check {self._place.key}.{fit_table(tensors, empty.state_dict())}"
            )
        origin = f"the weights in {file} do not fit {self.name}"
        loaded = with_weights(config, part.state, origin=origin, kind=kind)
        note = part.said()
        said, licenses = f"{file.name}: {note}" if note else "", file_licenses(file, source=place)
        return replace(loaded, note=said, licenses=licenses)

    def _config_for(self, kind: str) -> Any:
        return self.config if kind in (ENCODER, MASKED_LM) else self.any_config

    def read(self, what: str, read: Any, options: Mapping[str, Any] | None = None) -> Any:
        """What ``read`` makes of the files, which are fetched from the hub first where they are not in a folder."""
        folder = self._place.weights() if what == "weights" else self._place.descriptions(what)
        try:
            with quiet():
                return read(folder, local_files_only=True, trust_remote_code=False, **(options or {}))
        except Exception as error:  # the library raises errors of many kinds
            raise WeightsError(f"the {what} of {self.name} cannot be read ({folder}): {short(error)}.") from error


def new_encoder(config: Any, kind: str = ENCODER) -> Any:
    """A model with random weights; a config of which there is no encoder is a ConfigError."""
    try:
        with quiet():
            found = _class_of(config, kind)
            if kind in (ENCODER, MASKED_LM) and config.model_type not in _BESIDE:  # a class that looks for the class
                return found.from_config(config, trust_remote_code=False, dtype=torch.float32)
            return found._from_config(config, dtype=torch.float32)
    except Exception as error:  # the library raises errors of many kinds
        raise ConfigError(f"transformers builds no encoder of type {config.model_type}: {short(error)}.") from error


def with_weights(config: Any, state: Mapping[str, Tensor], *, origin: str, kind: str = ENCODER) -> LoadedEncoder:
    """A model with these weights, whose names may be those of any version of the library.

    What does not fit is a WeightsError that begins with ``origin``.
    """
    with torch.device("meta"):
        empty = new_encoder(config, kind)
    try:
        with quiet():
            model, info = type(empty).from_pretrained(
                None, config=config, state_dict=dict(state), dtype=torch.float32, output_loading_info=True
            )
    except Exception as error:  # the library raises errors of many kinds
        raise WeightsError(f"{origin}: {short(error)}.{fit_table(state, empty.state_dict())}") from error
    if deeper := further_layers(info["unexpected_keys"], model.state_dict()):
        raise WeightsError(
            f"{origin}: they have {len(deeper)} tensors of layers that it does not have, such as {deeper[0]}; they are "
            "those of a deeper model."
        )
    return LoadedEncoder(model, missing=frozenset(info["missing_keys"]))


def text_class(pooling: str | None) -> str:
    """Which class of transformers a text tower is: weights of terms need the layer that scores them."""
    return MASKED_LM if pooling == "splade" else ENCODER


def architecture_of(config: Any) -> dict[str, Any]:
    """What ``encoder_of`` needs to build the same model, as JSON; no path and no name of a place."""
    found: dict[str, Any] = json.loads(config.to_json_string(use_diff=True))
    left_out = ("_name_or_path", "architectures", "auto_map", "dtype", "transformers_version")
    return {name: value for name, value in found.items() if name not in left_out}


def encoder_of(architecture: Mapping[str, Any], kind: str = ENCODER) -> Any:
    """The model, with random weights, whose architecture was noted."""
    return new_encoder(config_of(architecture), kind)


def config_of(architecture: Mapping[str, Any]) -> Any:
    """The transformers config that ``architecture_of`` noted."""
    from transformers import AutoConfig

    try:
        with quiet():
            return AutoConfig.for_model(**architecture)
    except Exception as error:  # the library raises errors of many kinds
        raise ConfigError(f"the architecture of an encoder cannot be read: {short(error)}.") from error


def _class_of(config: Any, kind: str) -> Any:
    import transformers

    return getattr(transformers, _BESIDE.get(config.model_type, kind))


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the progress bars and warnings of transformers: what matters of them is an error of ours."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
