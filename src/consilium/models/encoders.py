"""Hugging Face text encoders by name or folder: config, tokenizer and weights; code that comes with them never runs."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from consilium.core.errors import ConfigError, WeightsError
from consilium.core.places import is_remote
from consilium.core.transfer import fetch
from consilium.models.hub import cached_if_unreachable
from consilium.models.parts import first_names, tower_part
from consilium.models.weights import load_tensors

WEIGHTS_FILES = ("model.safetensors", "pytorch_model.bin")
_WEIGHTS = (
    ["model*.safetensors", "model.safetensors.index.json"],
    ["pytorch_model*.bin", "pytorch_model.bin.index.json"],
)
_FILES = (
    "config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json", "vocab.txt", "vocab.json", "merges.txt", "spiece.model", "sentencepiece.bpe.model",
)  # fmt: skip
_NO_NETWORK = "Without a network, set text.name to a local folder with its files, or to small (from scratch)."


@dataclass(frozen=True)
class LoadedEncoder:
    """A model with weights, what a person should know of their file, and the tensors that the file lacks."""

    model: Any
    note: str = ""
    missing: frozenset[str] = field(default_factory=frozenset)


class HubEncoder:
    """The config, tokenizer and weights that lie under ``text.name``: in a folder, or on the hub.

    What cannot be had or read is a WeightsError; what is there but is no text encoder, a ConfigError.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._folder = _folder(name)

    @cached_property
    def config(self) -> Any:
        """The transformers config."""
        from transformers import AutoConfig

        config = self._read("config", AutoConfig.from_pretrained)
        if config.is_encoder_decoder or getattr(config, "vision_config", None) is not None:
            raise ConfigError(
                f"text.name '{self.name}' is a model of type {config.model_type}, which is more than a text encoder; "
                "name an encoder such as a BERT."
            )
        return config

    def tokenizer(self) -> tuple[str, int]:
        """The text of its ``tokenizer.json``, and the id of its padding token."""
        from transformers import AutoTokenizer

        found = self._read("tokenizer", AutoTokenizer.from_pretrained)
        if not found.is_fast:
            raise ConfigError(
                f"the tokenizer of {self.name} ({type(found).__name__}) has no form that the tokenizers library reads "
                "(tokenizer.json); name an encoder that has one."
            )
        if len(found) <= len(found.all_special_ids):  # what transformers makes of a folder without a vocabulary
            raise ConfigError(f"{self.name} brings no vocabulary; add its tokenizer.json (or vocab.txt).")
        definition: str = found.backend_tokenizer.to_str()
        return definition, found.pad_token_id or 0

    def pretrained(self) -> LoadedEncoder:
        """The model with the weights that lie under the name."""
        from transformers import AutoModel

        # The library would else build a model in half precision where its file is.
        options = {"config": self.config, "dtype": torch.float32, "output_loading_info": True}
        model, info = self._read("weights", AutoModel.from_pretrained, options)
        return LoadedEncoder(model, missing=frozenset(info["missing_keys"]))

    def with_weights_of(self, place: str) -> LoadedEncoder:
        """The model with the weights of a file, or of the folder that holds one; a file may hold a whole training."""
        file = _weights_file(place)
        tensors = load_tensors(file)
        with torch.device("meta"):
            empty = new_encoder(self.config)
        part = tower_part(tensors, empty.state_dict(), classifiers=())
        if part is None:
            raise WeightsError(
                f"the weights in {file} do not fit {self.name}: the file holds {len(tensors)} tensors, "
                f"{first_names(tensors)}; most of those of {type(empty).__name__} are not among them. Check text.name."
            )
        try:
            with _quiet():
                model, info = type(empty).from_pretrained(
                    None, config=self.config, state_dict=part.state, dtype=torch.float32, output_loading_info=True
                )
        except Exception as error:  # the library raises errors of many kinds
            raise WeightsError(f"the weights in {file} do not fit {self.name}: {_short(error)}.") from error
        note = part.said()
        return LoadedEncoder(model, f"{file.name}: {note}" if note else "", frozenset(info["missing_keys"]))

    def _read(self, what: str, read: Any, options: Mapping[str, Any] | None = None) -> Any:
        """What ``read`` makes of the files, which are fetched from the hub first where they are not in a folder."""
        folder = self._folder or self._fetched(what)
        try:
            with _quiet():
                return read(folder, local_files_only=True, trust_remote_code=False, **(options or {}))
        except Exception as error:  # the library raises errors of many kinds
            raise WeightsError(f"the {what} of {self.name} cannot be read ({folder}): {_short(error)}.") from error

    def _fetched(self, what: str) -> Path:
        """The folder of the hub's cache. The library itself would ask the hub to convert old weights."""
        from huggingface_hub import snapshot_download

        with cached_if_unreachable() as unreachable:
            try:
                if what != "weights":
                    return Path(snapshot_download(self.name, allow_patterns=list(_FILES)))
                for patterns in _WEIGHTS:
                    folder = Path(snapshot_download(self.name, allow_patterns=patterns))
                    if any(next(folder.glob(pattern), None) for pattern in patterns):
                        return folder
                raise FileNotFoundError("no weights in a form of PyTorch were found")
            except Exception as error:  # the hub's client raises errors of several network libraries
                why = f"{unreachable}; its cache on this machine does not hold it" if unreachable else _short(error)
                raise WeightsError(
                    f"the {what} of text.name '{self.name}' cannot be had from the hub ({why}). {_NO_NETWORK}"
                ) from error


def new_encoder(config: Any) -> Any:
    """A model with random weights; a config of which there is no encoder is a ConfigError."""
    from transformers import AutoModel

    try:
        with _quiet():
            return AutoModel.from_config(config, trust_remote_code=False, dtype=torch.float32)
    except Exception as error:  # the library raises errors of many kinds
        raise ConfigError(f"transformers builds no encoder of type {config.model_type}: {_short(error)}.") from error


def architecture_of(config: Any) -> dict[str, Any]:
    """What ``encoder_of`` needs to build the same model, as JSON; no path and no name of a place."""
    found: dict[str, Any] = json.loads(config.to_json_string(use_diff=True))
    left_out = ("_name_or_path", "architectures", "auto_map", "dtype", "transformers_version")
    return {name: value for name, value in found.items() if name not in left_out}


def encoder_of(architecture: Mapping[str, Any]) -> Any:
    """The model, with random weights, whose architecture was noted."""
    from transformers import AutoConfig

    try:
        with _quiet():
            config = AutoConfig.for_model(**architecture)
    except Exception as error:  # the library raises errors of many kinds
        raise ConfigError(f"the architecture of the text encoder cannot be read: {_short(error)}.") from error
    return new_encoder(config)


def _folder(name: str) -> Path | None:
    """The folder that a name means; None where it is a name on the hub."""
    if not (is_remote(name) or name.startswith(("/", "./", "../", "~")) or Path(name).is_dir()):
        return None
    try:
        folder = fetch(name, names=(*_FILES, *WEIGHTS_FILES))
    except OSError as error:
        raise WeightsError(f"text.name: {error}.") from error
    if not (folder / "config.json").is_file():
        raise WeightsError(
            f"text.name is {name}, which is not a folder with a config.json; give the folder of a Hugging Face "
            "encoder, or its name on the hub."
        )
    return folder


def _weights_file(place: str) -> Path:
    try:
        path = fetch(place, names=WEIGHTS_FILES)
    except OSError as error:
        raise WeightsError(f"text.pretrained: {error}.") from error
    if not path.is_dir():
        return path
    file = next((path / name for name in WEIGHTS_FILES if (path / name).is_file()), None)
    if file is None:
        raise WeightsError(f"the folder {path} holds no weights; expected {' or '.join(WEIGHTS_FILES)}.")
    return file


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
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


def _short(error: Exception) -> str:
    lines = [line.strip().rstrip(".") for line in str(error).splitlines() if line.strip()]
    return "; ".join(line[:200] for line in lines[:3]) or type(error).__name__
