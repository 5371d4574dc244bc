"""Config of towers and heads; imports no model library."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Literal, TypeVar

from pydantic import BeforeValidator, Field, field_validator, model_validator

from consilium.core.config import Config
from consilium.core.durations import Epochs, NoOrMoreEpochs

Dropout = Annotated[float, Field(ge=0.0, lt=1.0)]


class FreezeConfig(Config):
    """Which parts of the tower learn. A frozen part keeps its BatchNorm statistics.

    ``none``: all learns. ``tower``: only the head learns. ``all_but_last_blocks``: the head and the last
    ``blocks`` of the tower, in the tower's own sense of a block. ``warmup_epochs`` freezes the whole
    tower for the first epochs, whatever the rest says. ``unfreeze_every`` then lets what learns begin block by block,
    from the top (gradual unfreezing, Howard and Ruder, arXiv:1801.06146).
    """

    kind: Literal["none", "tower", "all_but_last_blocks"] = Field(default="none", description="What does not learn.")
    blocks: int | None = Field(default=None, ge=1, description="all_but_last_blocks only: how many blocks learn.")
    warmup_epochs: NoOrMoreEpochs = Field(default=0, description="Epochs at the start with the whole tower frozen.")
    unfreeze_every: Epochs | None = Field(
        default=None,
        description="Epochs from one block that begins to learn, the last at first, to the next one below; null: all "
        "begin at once.",
    )

    @model_validator(mode="after")
    def _blocks_belong(self) -> FreezeConfig:
        if (self.kind == "all_but_last_blocks") != (self.blocks is not None):
            raise ValueError("kind: all_but_last_blocks and blocks: N belong together; give both or neither")
        if self.kind == "tower" and self.unfreeze_every is not None:
            raise ValueError("unfreeze_every lets blocks learn one after the other, and with kind: tower none does")
        return self


class LoraConfig(Config):
    """Low-rank adapters that learn beside the linear layers of a tower, which itself stays as it is.

    A layer changes by ``alpha / rank`` times the product of two matrices, of ``rank`` columns and of as many rows
    (LoRA, Hu et al., 2022, arXiv:2106.09685). A bundle holds the sum; the adapters lie beside it in peft's format.
    """

    rank: int = Field(default=8, ge=1, description="Width between the two matrices of an adapter.")
    alpha: int = Field(default=16, ge=1, description="The change of a layer is scaled by alpha / rank.")
    dropout: Dropout = Field(default=0.0, description="Share of what an adapter sees that is set to 0 in training.")
    targets: str | Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1)] | None = Field(
        default=None,
        description="Linear layers, by the ends of their names ([qkv, fc1]) or a regular expression over whole names; "
        "null: those of the attention; with dropout, those of them that can have it.",
    )
    last_blocks: int | None = Field(default=None, ge=1, description="Only in so many last blocks; null: in all.")

    @field_validator("targets")
    @classmethod
    def _pattern_is_one(cls, targets: str | list[str] | None) -> str | list[str] | None:
        try:
            re.compile(targets if isinstance(targets, str) else "")
        except re.error as error:
            raise ValueError(f"'{targets}' is no regular expression ({error}); names of layers are a list") from error
        return targets


def _truth(value: object) -> object:
    """yes, no, on and off, which are text in YAML, as what they mean."""
    return (
        {"yes": True, "on": True, "no": False, "off": False}.get(value.lower(), value)
        if isinstance(value, str)
        else value
    )


HOW_IT_LEARNS = {"freeze", "lora", "patch_dropout", "gradient_checkpointing"}  # keys that say nothing of what it is
TowerT = TypeVar("TowerT", "VisionConfig", "TextConfig")
LicenseOfWeights = Annotated[
    Annotated[str, Field(min_length=1, max_length=120)] | None,
    Field(
        description="The licence of the pretrained weights where no card names it, by its name in model cards: "
        "cc-by-nc-4.0."
    ),
]
Lora = Annotated[
    LoraConfig | None, Field(description="Low-rank adapters that learn in place of the tower; null: none.")
]
GradientCheckpointing = Annotated[
    bool, Field(description="Less memory in training, about a third more time: blocks are computed twice.")
]


def _weights_are_there(tower: TowerT) -> TowerT:
    if tower.kind == "bundle" and tower.pretrained is not True:
        raise ValueError(
            f"pretrained is {str(tower.pretrained).lower()}, but a tower of a bundle has the weights of the bundle; "
            "leave pretrained out"
        )
    if tower.license is not None and tower.pretrained is False:
        raise ValueError(
            f"license is {tower.license}, but pretrained is false, so there are no weights that it could be of"
        )
    return tower


def _frozen_means_frozen(tower: TowerT) -> TowerT:
    """What only learning needs is refused where the whole tower stays, and adapters where parts of it learn."""
    kind = tower.freeze.kind
    if tower.lora is not None and tower.freeze.unfreeze_every is not None:
        raise ValueError("freeze.unfreeze_every is for blocks that learn, and lora lets adapters alone; leave one out")
    if kind == "none":
        return tower
    if tower.lora is not None:
        raise ValueError(
            f"lora lets adapters learn and nothing else of the tower, and freeze.kind is {kind}; leave one of them "
            "out (lora.last_blocks: N has adapters in the last blocks only)"
        )
    unused = [name for name in ("gradient_checkpointing", "patch_dropout") if getattr(tower, name, False)]
    if kind == "tower" and unused:
        raise ValueError(f"{unused[0]} is for towers that learn, and freeze.kind is tower; leave one of them out")
    return tower


class VisionConfig(Config):
    """An image encoder: any timm model, or the image tower of open_clip, of Hugging Face, or of a bundle."""

    kind: Literal["timm", "open_clip", "hf", "bundle"] = Field(
        default="timm", description="What `name` names. hf: a model of transformers, such as CLIP, SigLIP or DINO."
    )
    name: str = Field(
        default="resnet50",
        description="timm: a model, or a short name: vit_b_16, vit_b_32, vit_l_16, vit_l_32. open_clip: MODEL/TAG, "
        "or a folder or name on the hub. hf: a folder or name on the hub. bundle: a folder, archive or bucket.",
    )
    pretrained: Annotated[bool | str, BeforeValidator(_truth)] = Field(
        default=True, description="true, false, or a weights file or folder, here or in a bucket."
    )
    license: LicenseOfWeights = None
    pooling: Literal["default", "avg", "max", "concat"] = Field(
        default="default", description="default: the model's own; concat: avg and max side by side."
    )
    drop_path: Dropout = Field(default=0.0, description="Chance to leave a residual branch out (stochastic depth).")
    patch_dropout: Dropout = Field(
        default=0.0, description="Share of the patches left out of each image in training (vision transformers)."
    )
    freeze: FreezeConfig = FreezeConfig()
    lora: Lora = None
    gradient_checkpointing: GradientCheckpointing = False

    _consistent = model_validator(mode="after")(_frozen_means_frozen)
    _licensed = model_validator(mode="after")(_weights_are_there)


TextPooling = Literal["cls", "mean", "last_token", "eot", "pooler", "splade"]
_TASK = "Classify the finding that a clinical note describes"
SHORT_TEXTS: Mapping[str, Mapping[str, str]] = {  # what names of text encoders stand for
    "pubmedbert": {"name": "microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract-fulltext", "pooling": "mean"},
    "sapbert": {"name": "cambridgeltl/SapBERT-from-PubMedBERT-fulltext", "pooling": "cls"},
    "biosyn": {"name": "dmis-lab/biosyn-sapbert-bc5cdr-disease", "pooling": "cls"},
    "qwen": {
        "name": "Qwen/Qwen3-Embedding-0.6B",
        "pooling": "last_token",
        "instruction": f"Instruct: {_TASK}\nQuery:",
    },
    "minilm": {"name": "sentence-transformers/all-MiniLM-L6-v2", "pooling": "mean"},
}
FROM_SCRATCH = ("tiny", "small")  # BERT encoders that start from random weights and learn their own vocabulary
VOCABULARY_SIZE = 8192  # of these, where the config names no other


class TextConfig(Config):
    """A text encoder: any Hugging Face encoder, the text tower of open_clip or of a bundle, or a BERT from scratch.

    ``tiny`` has 2 layers of 128 features, ``small`` 4 of 256. Their WordPiece vocabulary is learned from the training
    texts; every other encoder brings its own tokenizer. ``kind: vectors`` takes vectors that were computed elsewhere in
    the place of an encoder.
    """

    kind: Literal["hf", "open_clip", "bundle", "vectors"] = Field(default="hf", description="What `name` names.")
    name: str = Field(
        default="microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract",
        description="hf: an encoder of Hugging Face, or a CLIP or SigLIP, by its name on the hub or as a folder here "
        f"or in a bucket; {', '.join(SHORT_TEXTS)} stand for one of them with its usual pooling and instruction; tiny "
        "and small are BERT encoders from scratch. open_clip: MODEL/TAG, or a folder or name on the hub. bundle: a "
        "folder, archive or bucket. vectors: a .npz, .pt, .parquet or .csv file, here or in a bucket, with the id of "
        "each case and its vector; a bare name lies in the folder embeddings of data.dataset.",
    )
    encoder: str | None = Field(
        default=None,
        description="vectors only: what must have computed them, where the file says it; null: any. pooling, likewise.",
    )
    pretrained: Annotated[bool | str, BeforeValidator(_truth)] = Field(
        default=True, description="true: the weights of `name`; false: random; or a weights file or folder."
    )
    license: LicenseOfWeights = None
    pooling: TextPooling | None = Field(
        default=None,
        description="One vector of a text: its first token (cls), the mean of its tokens, its last_token, the token at "
        "the end of the text (eot, of CLIP), the model's own pooler, or a weight for each term of the vocabulary "
        "(splade, of a masked language model). null: as a CLIP, SigLIP or bundle was trained, else cls.",
    )
    flops: float = Field(
        default=0.0,
        ge=0.0,
        description="splade only: weight of a penalty on terms that many texts use, which keeps vectors sparse.",
    )
    instruction: str | None = Field(
        default=None,
        min_length=1,
        description="Words that are put before every text, for encoders that were trained with some, such as "
        "Qwen3-Embedding; they count in context_length.",
    )
    context_length: int = Field(default=256, ge=3, description="Tokens of a text that are read; longer ones are cut.")
    interpolate_positions: bool = Field(
        default=False,
        description="Let context_length be longer than the encoder was made for: its positions are stretched.",
    )
    vocabulary_size: int | None = Field(
        default=None, ge=256, description=f"tiny and small only: tokens that are learned; null: {VOCABULARY_SIZE}."
    )
    freeze: FreezeConfig = FreezeConfig()
    lora: Lora = None
    gradient_checkpointing: GradientCheckpointing = False

    _consistent = model_validator(mode="after")(_frozen_means_frozen)
    _licensed = model_validator(mode="after")(_weights_are_there)

    @model_validator(mode="before")
    @classmethod
    def _short_name_is_written_out(cls, given: object) -> object:
        """A short name becomes what it stands for; pooling and instruction stay where the config gives them."""
        if not isinstance(given, Mapping) or given.get("kind", "hf") != "hf" or not isinstance(given.get("name"), str):
            return given
        if (meant := SHORT_TEXTS.get(given["name"])) is None:
            return given
        stated = {key: value for key, value in given.items() if key != "name" and value is not None}
        return {**meant, **stated}

    @property
    def from_scratch(self) -> bool:
        """Whether the encoder and its tokenizer start from nothing."""
        return self.kind == "hf" and self.name in FROM_SCRATCH

    @property
    def learns_words(self) -> bool:
        """Whether the tokenizer may have words of training texts; what a bundle's began with is not looked up."""
        return self.from_scratch or self.kind == "bundle"

    @model_validator(mode="after")
    def _terms_are_penalised(self) -> TextConfig:
        if self.flops and self.pooling not in ("splade", None):
            raise ValueError(f"flops is {self.flops:g}, but pooling is {self.pooling}, which gives no weights of terms")
        return self

    @model_validator(mode="after")
    def _vectors_are_as_they_are(self) -> TextConfig:
        if self.kind != "vectors":
            if self.encoder is not None:
                raise ValueError(f"encoder is for kind: vectors, and kind is {self.kind}; leave it out")
            return self
        for name, usual in type(self).model_fields.items():
            if name not in ("kind", "name", "encoder", "pooling") and getattr(self, name) != usual.get_default():
                raise ValueError(f"{name} is for encoders, and kind is vectors, which stay as they are; leave it out")
        return self

    @model_validator(mode="after")
    def _instruction_is_understood(self) -> TextConfig:
        if self.instruction is not None and self.learns_words:
            why = f"{self.name} starts from nothing" if self.from_scratch else "a bundle keeps its own"
            raise ValueError(f"instruction is for encoders that were trained with one, and {why}; leave it out")
        return self

    @model_validator(mode="after")
    def _scratch_brings_nothing(self) -> TextConfig:
        if self.from_scratch and self.pretrained is not False:
            raise ValueError(
                f"{self.name} has no pretrained weights: set pretrained: false, or name a Hugging Face encoder"
            )
        if self.from_scratch and self.interpolate_positions:
            raise ValueError(
                f"interpolate_positions is for pretrained encoders; {self.name} is made for context_length"
            )
        if not self.from_scratch and self.vocabulary_size is not None:
            raise ValueError(
                f"vocabulary_size is for {' and '.join(FROM_SCRATCH)} only; {self.name} brings its tokenizer"
            )
        return self


class LinearHeadConfig(Config):
    """Dropout, then one linear layer."""

    kind: Literal["linear"] = "linear"
    dropout: Dropout = Field(default=0.0, description="Share of the features set to 0 in training.")


class MLPHeadConfig(Config):
    """Hidden layers, each linear + activation + dropout, then one linear layer."""

    kind: Literal["mlp"] = "mlp"
    hidden_sizes: list[Annotated[int, Field(ge=1)]] = Field(
        default=[256], min_length=1, description="The width of each hidden layer."
    )
    activation: Literal["relu", "gelu", "silu", "tanh"] = Field(default="gelu", description="Of the hidden layers.")
    batch_norm: bool = Field(
        default=False, description="Normalise each hidden layer over the batch, before activation."
    )
    dropout: Dropout = Field(default=0.1, description="After each hidden layer, in training.")


HeadConfig = Annotated[LinearHeadConfig | MLPHeadConfig, Field(discriminator="kind")]


class WeightedSumConfig(Config):
    """The sum of what the modalities say, each times its learned share; the shares are one softmax for all cases."""

    kind: Literal["weighted_sum"] = "weighted_sum"


class ConcatConfig(Config):
    """What the modalities say side by side; the head makes of it what it can."""

    kind: Literal["concat"] = "concat"


class GatedConfig(Config):
    """A weighted sum whose shares each case decides for itself (Arevalo et al., 2017, arXiv:1702.01992)."""

    kind: Literal["gated"] = "gated"


class AttentionConfig(Config):
    """Transformer layers over one token of each modality and one of the case, which is read out."""

    kind: Literal["attention"] = "attention"
    layers: int = Field(default=2, ge=1, description="Transformer layers.")
    heads: int = Field(default=4, ge=1, description="Attention heads of each layer; they divide task.width.")


class LateConfig(Config):
    """A head for each modality and the mean of their scores: the baseline that every other fusion has to beat."""

    kind: Literal["late"] = "late"


FusionConfig = Annotated[
    WeightedSumConfig | ConcatConfig | GatedConfig | AttentionConfig | LateConfig, Field(discriminator="kind")
]


class LinearProjectionConfig(Config):
    """One linear layer, as in CLIP."""

    kind: Literal["linear"] = "linear"
    bias: bool = Field(default=False, description="Whether the layer adds a bias.")


class MLPProjectionConfig(Config):
    """Linear, activation, dropout, linear; as in BiomedCLIP with the defaults."""

    kind: Literal["mlp"] = "mlp"
    hidden_size: int | None = Field(
        default=None, ge=1, description="Width of the hidden layer; null: halfway between features and embedding."
    )
    activation: Literal["relu", "gelu", "silu", "tanh"] = Field(default="gelu", description="Of the hidden layer.")
    dropout: Dropout = Field(default=0.0, description="After the hidden layer, in training.")
    bias: bool = Field(default=False, description="Whether the layers add a bias.")


ProjectionConfig = Annotated[LinearProjectionConfig | MLPProjectionConfig, Field(discriminator="kind")]
