"""Folders of pretrained models: on this machine, in a bucket, or on the hub, where there may be no network."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from huggingface_hub import constants, get_session

from consilium.core.errors import ConfigError, WeightsError
from consilium.core.places import is_remote
from consilium.core.transfer import fetch
from consilium.models.licenses import LICENSE_FILES

HUB = "hf-hub:"  # before a name on the hub, where it could be another
SECONDS = 5.0  # for an answer of any kind
DESCRIPTIONS = (
    *LICENSE_FILES, "open_clip_config.json", "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json",
    "special_tokens_map.json", "added_tokens.json", "vocab.txt", "vocab.json", "merges.txt", "spiece.model",
    "sentencepiece.bpe.model",
)  # fmt: skip
HEADS = "heads.safetensors"  # beside the weights of a converted checkpoint: what no tower of it has
WEIGHTS_FILES = (
    "open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin",
    "open_clip_pytorch_model.pth", "model.safetensors", "pytorch_model.bin",
)  # fmt: skip
TOWER_PATTERNS = (  # those of one row are one model
    ["model*.safetensors", "model.safetensors.index.json"],
    ["pytorch_model*.bin", "pytorch_model.bin.index.json"],
)
PATTERNS = (
    ["open_clip_*model.safetensors"],
    ["open_clip_*model.bin"],
    ["open_clip_*model.pth"],
    *TOWER_PATTERNS,
)
MODELS = "CONSILIUM_MODELS"  # the folder of models that were carried here; the option --from sets it
_CONFIGS = ("config.json", "open_clip_config.json")


@dataclass(frozen=True)
class ModelFolder:
    """The files of a model under ``name``, which is a folder here or in a bucket, or a name on the hub.

    A name on the hub is first looked for among the models that were carried here. ``key`` is the config key that a
    message names, ``instead`` what one can do without a network ('': it is being fetched for that). What cannot be had
    is a WeightsError.
    """

    name: str
    key: str
    instead: str

    @cached_property
    def local(self) -> Path | None:
        """The folder that the name means; None where it is a name on the hub that was not carried here."""
        if not is_a_path(self.name):
            return carried(self.name)
        try:
            folder = fetch(self.name, names=(*DESCRIPTIONS, *WEIGHTS_FILES, HEADS))
        except OSError as error:
            raise WeightsError(f"{self.key}: {error}.") from error
        if folder.is_file():
            raise WeightsError(
                f"{self.key} is {self.name}, a file of weights, which does not say what they are of; give the folder "
                f"or the name of the model as {self.key.removesuffix('.name')}.name, and the file as "
                f"{pretrained_key(self.key)}."
            )
        if not _is_model(folder):
            raise WeightsError(
                f"{self.key} is {self.name}, which is not a folder with a config.json; give the folder of a Hugging "
                "Face model, or its name on the hub."
            )
        return folder

    def descriptions(self, what: str) -> Path:
        """A folder with its configs and its tokenizer; ``what`` of these is wanted, a message says."""
        return self.local or self._fetched(what, [DESCRIPTIONS])

    def weights(self, choices: Sequence[Sequence[str]] = PATTERNS) -> Path:
        """A folder with its weights, in the first of these forms. The library itself would ask the hub to convert."""
        return self.local or self._fetched("weights", choices)

    def _fetched(self, what: str, choices: Sequence[Sequence[str]]) -> Path:
        """The folder of the hub's cache with the first choice of files of which there is one."""
        from huggingface_hub import snapshot_download

        with cached_if_unreachable() as unreachable:
            try:
                for patterns in choices:
                    folder = Path(snapshot_download(self.name, allow_patterns=list(patterns)))
                    if any(next(folder.glob(pattern), None) for pattern in patterns):
                        return folder
                raise FileNotFoundError(f"no {what} in a form that is read were found")
            except Exception as error:  # the hub's client raises errors of several network libraries
                why = f"{unreachable}; its cache on this machine does not hold it" if unreachable else short(error)
                raise WeightsError(
                    f"the {what} of {self.key} '{self.name}' cannot be had from the hub ({why}). {self._advice()}"
                ) from error

    def _advice(self) -> str:
        return f"{self.instead} {how_to_carry(self.name)}" if self.instead else "Check its name, and the network."


def models_folder() -> Path | None:
    """The folder of models that were carried here; one that is not there is a ConfigError."""
    given = os.environ.get(MODELS)
    if not given:
        return None
    folder = Path(given).expanduser().absolute()
    if not folder.is_dir():
        raise ConfigError(
            f"--from ({MODELS}) is {given}, which is no folder (looked from {os.getcwd()}); give the one into which "
            "`consilium models fetch` wrote."
        )
    return folder


def carried(name: str) -> Path | None:
    """The folder of a model that was carried here, by its name on the hub; None where it was not."""
    root = models_folder()
    folder = None if root is None else root / name
    return folder if folder is not None and _is_model(folder) else None


def how_to_carry(name: str) -> str:
    """How a model comes to a machine without a network, in a sentence; the end of every error about missing weights."""
    root = models_folder()
    before = "" if root is None else f"{root} (--from) does not hold it. "
    return (
        f"{before}Where there is a network, `consilium models fetch {name} --to FOLDER` fetches it; carry FOLDER here, "
        f"and give it with --from FOLDER, or as {MODELS}."
    )


def _is_model(folder: Path) -> bool:
    return any((folder / file).is_file() for file in _CONFIGS)


def is_a_path(name: str) -> bool:
    """Whether a name means a place on this machine or in a bucket, and not one on the hub."""
    return is_remote(name) or name.startswith(("/", "./", "../", "~")) or Path(name).exists()


def pretrained_key(key: str) -> str:
    """The config key of the file of weights beside the key of a model's name."""
    return f"{key.removesuffix('.name')}.pretrained"


def weights_of(place: str, *, key: str, names: Sequence[str] = WEIGHTS_FILES) -> Path:
    """A weights file, or that of a folder, here or in a bucket; one that cannot be had is a WeightsError.

    ``key`` is the config key that a message names, ``names`` are those that a file may have in a folder.
    """
    try:
        path = fetch(place, names=(*LICENSE_FILES, *names))
    except OSError as error:
        raise WeightsError(f"{key}: {error}.") from error
    return file_in(path, names) if path.is_dir() else path


def file_in(folder: Path, names: Sequence[str] = WEIGHTS_FILES) -> Path:
    """The weights file of a folder, the first of these names; none is a WeightsError."""
    found = next((folder / name for name in names if (folder / name).is_file()), None)
    if found is None:
        raise WeightsError(f"the folder {folder} holds no weights; expected {' or '.join(names)}.")
    return found


def short(error: Exception) -> str:
    """An error of a library in at most three lines."""
    lines = [line.strip().rstrip(".") for line in str(error).splitlines() if line.strip()]
    return "; ".join(line[:200] for line in lines[:3]) or type(error).__name__


@contextlib.contextmanager
def cached_if_unreachable() -> Iterator[str]:
    """Let the hub's client take what its cache holds where the hub does not answer, instead of a minute of retries.

    Gives the reason, or nothing where the hub answers.
    """
    asked = constants.HF_HUB_OFFLINE
    reason = "HF_HUB_OFFLINE is set" if asked else _unreachable()
    constants.HF_HUB_OFFLINE = bool(reason)
    try:
        yield reason
    finally:
        constants.HF_HUB_OFFLINE = asked


def _unreachable() -> str:
    try:
        get_session().head(constants.ENDPOINT, timeout=SECONDS)
    except Exception as error:  # the client's network library is another one in each of its versions
        return f"{constants.ENDPOINT} does not answer: {error or type(error).__name__}"
    return ""
