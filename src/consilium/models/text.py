"""Text towers: any Hugging Face encoder, one of CLIP or SigLIP, or a small BERT from scratch; tokens in, features out.

Axes in names: B text in a batch, T token, F feature.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn

from consilium.core.contracts import Batch, Texts
from consilium.core.errors import ConfigError, WeightsError
from consilium.core.licenses import License, with_stated
from consilium.core.reporter import some
from consilium.models.blocks import depths_of, drop_unused, layer_blocks
from consilium.models.checkpoints.find import find_text
from consilium.models.checkpoints.pretrained import TextSource
from consilium.models.config import VOCABULARY_SIZE, TextConfig, TextPooling
from consilium.models.encoders import LoadedEncoder, architecture_of, encoder_of, new_encoder, text_class
from consilium.models.positions import lengthened, position_table
from consilium.models.splade import split_terms
from consilium.models.tokenizer import Padded, Tokenizer, train_tokenizer
from consilium.models.weights import weights_hash

_SIZES: dict[str, dict[str, Any]] = {  # of the encoders from scratch
    "tiny": {"num_hidden_layers": 2, "hidden_size": 128, "num_attention_heads": 2, "intermediate_size": 512},
    "small": {"num_hidden_layers": 4, "hidden_size": 256, "num_attention_heads": 4, "intermediate_size": 1024},
}
_WITHOUT_MASK = {"clip_text_model", "siglip_text_model"}  # causal; and trained to read padding, too
_TO_CONTEXT = {"siglip_text_model"}
_PROBE = ("", "a a a")  # the first is padded beside the second
_SAME = 1e-3  # differences of features that padding may make, relative to their size
_SHOWN = 5


class TextTower(nn.Module):
    """A Hugging Face encoder without its heads; build it with ``build_text``.

    The features of a text do not depend on padding, nor on the other texts of its batch; a tower that ``reads_padding``
    gets every text filled up to the same length. ``architecture`` describes
    the encoder as JSON, from which ``build_text`` makes it again without asking the hub; ``weights_note`` is what a
    person should know of the file of its weights, and ``licenses`` are theirs.
    """

    licenses: tuple[License, ...] = ()

    def __init__(self, model: nn.Module, *, pooling: TextPooling, probe: Padded, weights_note: str = "") -> None:
        """``probe`` is a short and a longer text, from the tower's own tokenizer."""
        super().__init__()
        self.model: Any = model
        self.pooling = pooling
        self.terms = split_terms(model) if pooling == "splade" else None
        self.weights_note = weights_note
        self.architecture = architecture_of(self.model.config)
        if pooling == "eot" and self.architecture["model_type"] not in _WITHOUT_MASK:
            raise self._odd("has no end of text as CLIP has, which pooling 'eot' reads; use cls, mean or last_token")
        self._masked = self.architecture["model_type"] not in _WITHOUT_MASK
        self.reads_padding = self.architecture["model_type"] in _TO_CONTEXT
        training = self.training
        self.eval()
        self._drop_unused(probe)
        self.num_features = self._read_out(probe)
        self.train(training)

    def forward(self, tokens_BT: Tensor, attention_BT: Tensor) -> Tensor:
        """Features [B, num_features] of tokens int64 [B, T]; ``attention_BT`` is 1 for tokens and 0 for padding."""
        found = self.model(input_ids=tokens_BT, **({"attention_mask": attention_BT} if self._masked else {}))
        if self.terms is not None:
            return self.terms(found.logits, attention_BT)  # type: ignore[no-any-return]
        if self.pooling == "pooler" or (self.pooling == "eot" and not self.reads_padding):
            features_BF: Tensor = found.pooler_output
            return features_BF
        hidden_BTF: Tensor = found.last_hidden_state
        if self.pooling == "cls":
            return hidden_BTF[:, 0]
        if self.pooling == "last_token" and self.reads_padding:
            return hidden_BTF[:, -1]
        if self.pooling in ("last_token", "eot"):  # the end of a text has the largest id
            place_B = tokens_BT.argmax(1) if self.pooling == "eot" else attention_BT.sum(1) - 1
            return hidden_BTF[torch.arange(place_B.shape[0], device=place_B.device), place_B]
        weights_BT = attention_BT[:, :, None].to(hidden_BTF.dtype)
        return (hidden_BTF * weights_BT).sum(1) / weights_BT.sum(1)

    def blocks(self) -> list[list[nn.Parameter]]:
        """All parameters in blocks from input to output: the embeddings, then each layer; a last norm joins it."""
        return self._layers(advice="set freeze.kind to none or tower")

    def depths(self) -> list[int]:
        """How many layers lie above that of each parameter; the embeddings lie below all of them.

        Layers that cannot be told apart are a ConfigError.
        """
        return depths_of(self, self._layers(advice="leave layer_decay out"))

    def _layers(self, *, advice: str) -> list[list[nn.Parameter]]:
        layers = layer_blocks(self.model, advice=advice)
        known = {parameter for layer in layers for parameter in layer}  # the decoder may share the word embeddings
        layers[-1] += [parameter for parameter in self.parameters() if parameter not in known]
        return layers

    def _drop_unused(self, probe: Padded) -> None:
        """Take out modules that this pooling passes by, so that every parameter gets a gradient."""
        try:
            with torch.enable_grad():
                self(probe.tokens_BT, probe.attention_BT).sum().backward()
        except AttributeError as error:
            raise self._odd(f"has no output for pooling '{self.pooling}'; {_others(self.model)}") from error
        except (RuntimeError, ValueError, IndexError, TypeError) as error:
            raise self._odd(f"does not take tokens alone ({error}); name another one") from error
        drop_unused(self.model)

    def _read_out(self, probe: Padded) -> int:
        """The number of features, which must depend on the whole text and not on padding."""
        tokens_BT, attention_BT = probe.tokens_BT, probe.attention_BT
        short, longer = attention_BT.sum(1).tolist()
        other_BT, middle = tokens_BT.clone(), longer // 2
        other_BT[1, middle] = (tokens_BT[1, middle] + 1) % self.model.get_input_embeddings().num_embeddings
        with torch.no_grad():
            own_BF, other_BF = self(tokens_BT, attention_BT), self(other_BT, attention_BT)
            if tokens_BT.shape[1] == longer:  # texts are padded to the longest alone
                alone_F = self(tokens_BT[:1, :short], attention_BT[:1, :short])[0]
                if float((own_BF[0] - alone_F).abs().max()) > _SAME * float(alone_F.abs().max()):
                    raise self._odd("gives a padded text other features, although padding is masked; name another one")
        if torch.equal(own_BF[1], other_BF[1]):
            raise self._odd(f"reads with pooling '{self.pooling}' only a part of the text; use mean or last_token")
        return int(own_BF.shape[1])

    def _odd(self, what: str) -> ConfigError:
        return ConfigError(f"the text encoder (a {self.model.config.model_type}) {what}.")


@dataclass(frozen=True)
class TextEncoder:
    """A frozen tower, whose features may be kept; ``features`` gives those [B, F] of the texts of a batch."""

    module: TextTower
    config: TextConfig
    tokenizer: Tokenizer
    features: Callable[[Texts], Tensor]

    @property
    def width(self) -> int:
        """Features of each text."""
        return self.module.num_features

    @property
    def identity(self) -> Mapping[str, Any]:
        """The tower, its weights, and the tokenizer, which also says where a text is cut."""
        return {
            "transformers": version("transformers"),
            "tower": self.config.name,
            "pooling": self.module.pooling,
            "tokenizer": sha256(self.tokenizer.definition.encode()).hexdigest(),
            "weights_hash": weights_hash(self.module),
        }

    def encode(self, batch: Batch) -> Tensor:
        """Features [B, F] of texts."""
        if batch.texts is None:
            raise ValueError("this batch has no texts")
        return self.features(batch.texts)


def build_tokenizer(config: TextConfig, *, texts: Sequence[str] = (), source: TextSource | None = None) -> Tokenizer:
    """The tokenizer of the tower that ``config`` describes; ``tiny`` and ``small`` learn theirs from ``texts``.

    ``source`` is a tower that the config names in another place. Texts that teach nothing are a DataError; a tokenizer
    that cannot be had or read is a WeightsError.
    """
    if config.from_scratch:
        size = config.vocabulary_size or VOCABULARY_SIZE
        return train_tokenizer(texts, vocabulary_size=size, context_length=config.context_length)
    source = source or find_text(config)
    definition, pad_id = source.tokenizer()
    length, full = config.context_length, source.kind in _TO_CONTEXT
    stretched = config.interpolate_positions and length > (source.context_length or length)
    if full and length != source.context_length and not stretched:
        raise ConfigError(
            f"task.text.context_length is {length}, but this text tower ({source.kind}) reads a text out at the "
            f"last of its {source.context_length} positions, to which every text is padded; set it to that."
        )
    return Tokenizer.made_of(
        definition, context_length=length, pad_id=pad_id, to_context=full, instruction=config.instruction or ""
    )


def build_text(
    config: TextConfig,
    *,
    tokenizer: Tokenizer,
    architecture: Mapping[str, Any] | None = None,
    pooling: TextPooling | None = None,
    source: TextSource | None = None,
) -> TextTower:
    """The tower that ``config`` describes, for the tokens of ``tokenizer``.

    With ``architecture`` and ``pooling``, which a bundle keeps, nothing is fetched and the weights are random: the
    bundle fills in its own. ``source`` is a tower that the config names in another place. A tokenizer that does not
    fit, or an encoder that does not give each text one vector, is a ConfigError; weights that cannot be had or do not
    fit are a WeightsError.
    """
    if architecture is not None:
        loaded = LoadedEncoder(encoder_of(architecture, text_class(pooling)))
    elif config.from_scratch:
        loaded = LoadedEncoder(_from_scratch(config, tokenizer))
    else:
        source = source or find_text(config)
        loaded, pooling = source.load(), config.pooling or source.pooling
        if config.interpolate_positions:
            loaded = lengthened(
                loaded, tokens=tokenizer.context_length, name=config.name, kind=text_class(config.pooling)
            )
    _refuse_misfit(loaded.model, tokenizer, name=config.name)
    probe = tokenizer.pad(tokenizer.encode(_PROBE))
    chosen = config.pooling or pooling or "cls"
    tower = TextTower(loaded.model, pooling=chosen, probe=probe, weights_note=loaded.note)
    _refuse_missing(tower, loaded, name=config.name)
    named = config.name if config.pretrained is True else str(config.pretrained)
    tower.licenses = with_stated(loaded.licenses, config.license, source=named, key="task.text.license")
    return tower


def _from_scratch(config: TextConfig, tokenizer: Tokenizer) -> Any:
    from transformers import BertConfig

    size: dict[str, Any] = {
        "vocab_size": tokenizer.vocabulary_size,
        "max_position_embeddings": tokenizer.context_length,
    }
    made = BertConfig(**_SIZES[config.name], **size, pad_token_id=tokenizer.pad_id)
    return new_encoder(made, text_class(config.pooling))


def _refuse_misfit(model: Any, tokenizer: Tokenizer, *, name: str) -> None:
    table = model.get_input_embeddings()
    if not isinstance(table, nn.Embedding):
        raise ConfigError(
            f"task.text.name '{name}' is a model of type {model.config.model_type}, which takes no tokens."
        )
    rows = table.num_embeddings
    if tokenizer.vocabulary_size > rows:
        raise ConfigError(
            f"the tokenizer has {tokenizer.vocabulary_size:,} tokens, but the text encoder {name} has embeddings of "
            f"{rows:,}; take tokenizer and encoder from the same folder."
        )
    positions = _positions(model)
    if positions is not None and tokenizer.context_length > positions:
        learned = position_table(model) is not None
        stretch = ", or let task.text.interpolate_positions: true stretch them" if learned else ""
        raise ConfigError(
            f"task.text.context_length is {tokenizer.context_length}, but the text encoder {name} has positions for "
            f"{positions} tokens; set at most that{stretch}."
        )


def _positions(model: Any) -> int | None:
    """The most tokens of a text; None where there is no limit."""
    if (found := position_table(model)) is not None:
        return found[1].num_embeddings - found[2]
    limit: int | None = getattr(model.config, "max_position_embeddings", None)
    return limit


def _refuse_missing(tower: TextTower, loaded: LoadedEncoder, *, name: str) -> None:
    """A tensor that is used must come from the file: what the library makes up at random would go unnoticed."""
    used = tower.model.state_dict().keys()
    missing = sorted(loaded.missing if tower.terms is not None else loaded.missing & used)
    if missing and tower.terms is not None:
        raise WeightsError(
            f"task.text.pooling is splade, but the weights of {name} lack layers that give each term its score: "
            f"{some(missing, _SHOWN)}. They are of an encoder without its head; name a SPLADE or another masked "
            "language model, or use cls or mean."
        )
    if missing and all(key.startswith("pooler.") for key in missing):
        raise WeightsError(
            f"task.text.pooling is pooler, but the weights of {name} have none (it was never trained); use cls or mean."
        )
    if missing:
        raise WeightsError(
            f"the weights of {name} lack {len(missing)} tensors of the text encoder: {some(missing, _SHOWN)}. "
            "They are of another model, or of a part of it."
        )


def _others(model: Any) -> str:
    """Which readouts there are instead."""
    return "it takes none but its pooler" if model.config.model_type in _TO_CONTEXT else "use cls, mean or last_token"
