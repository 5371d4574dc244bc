"""Config of everything about data; imports no heavy library."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from consilium.core.config import Config

Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]
Probability = Annotated[float, Field(gt=0.0, le=1.0)]
Statistic = tuple[float, float, float]


class SourceBase(Config):
    """What every source has: a name (unique), a root or file, a weight in the mixture."""

    name: str = Field(min_length=1, pattern=r"^[A-Za-z0-9_.-]+$", description="Its name in tables and reports.")
    path: str = Field(description="Folder or file; relative paths are relative to the working directory.")
    weight: float | None = Field(
        default=None, gt=0, description="Share in the mixture. No source has one: all rows form one pool."
    )
    label_prefix: str = Field(default="", description="Put in front of every label of this source, as `prefix.`.")


class FolderSource(SourceBase):
    """``{path}/{train,val,test}/{label}/...`` or plain ``{path}/{label}/...``; group = file unless mapped."""

    kind: Literal["folder"] = "folder"
    label_levels: int = Field(default=1, ge=0, description="How many folder levels make the label; 0: no label.")
    group_pattern: str | None = Field(
        default=None, description="Regular expression on the file name; its first bracket is the group (patient)."
    )


class Columns(Config):
    """Which column (or JSON key) holds what; null: the file has none."""

    image: str | list[str] = Field(default="image", description="Path of the image; several columns: several views.")
    text: str | None = Field(default="text", description="Text of the case.")
    label: str | None = Field(default="label", description="Label; a dot separates the levels of one, as in a.b.")
    split: str | None = Field(default="split", description="train, val, test or unlabelled, in any usual spelling.")
    group: str | None = Field(default="group_id", description="What stays on one side of the splits: the patient.")
    id: str | None = Field(default="id", description="Id, unique in the source; none: the source's name and the line.")
    mask: str | None = Field(default="mask", description="Path of the mask.")
    is_gt: str | None = Field(default="is_gt", description="true or false; false marks a pseudo-label.")
    label_separator: str | None = Field(default=None, description="Splits a label cell into several (multi-label).")
    meta: list[str] | None = Field(default=None, description="Columns kept as metadata; null keeps all others.")


class TableSource(SourceBase):
    """A csv or parquet table, one case a row; columns that do not exist and were not named are skipped."""

    kind: Literal["csv", "parquet"]
    columns: Columns = Columns()
    image_root: str | None = Field(default=None, description="Folder of relative image paths; null: the file's own.")
    separator: str = Field(default=",", min_length=1, max_length=1, description="csv only.")


class JsonlSource(SourceBase):
    """MultiMediset form: one object a line, ``text`` or ``conversations``, ``modalities: [{type, value}]``."""

    kind: Literal["jsonl"] = "jsonl"
    columns: Columns = Columns()
    image_root: str | None = Field(default=None, description="Folder of relative image paths; null: the file's own.")
    attachment_token: str = Field(default="<|reserved_special_token_0|>", description="Removed from text, counted.")


Source = Annotated[FolderSource | TableSource | JsonlSource, Field(discriminator="kind")]


class SplitConfig(Config):
    """Fractions for rows without an explicit split; an explicit split always wins.

    Rows of a source with no explicit split are hashed by group into train, val and test. A source with
    explicit splits but no val gives ``val`` of its train groups; test is never taken from explicit train.
    """

    val: Fraction = Field(default=0.1, description="Share of the groups that validate.")
    test: Fraction = Field(default=0.1, description="Share of the groups that test.")
    seed: int = Field(default=0, description="Another seed divides the groups in another way.")

    @model_validator(mode="after")
    def _leaves_train(self) -> SplitConfig:
        if self.val + self.test >= 1:
            raise ValueError(f"val + test is {self.val + self.test}; it must leave something for train (below 1)")
        return self


class StoreConfig(Config):
    """Where prepared cases live, and whether images are referenced by path or embedded as bytes."""

    root: str = Field(default="stores", description="Folder of all stores.")
    images: Literal["reference", "embed"] = Field(
        default="reference", description="Keep the paths of the images, or a copy of them."
    )
    resize: int | None = Field(
        default=None, ge=16, description="embed only: shorter side in pixels that larger images are reduced to once."
    )
    max_pixels: int = Field(default=100_000_000, gt=0, description="Images with more pixels are bad rows.")

    @model_validator(mode="after")
    def _resize_needs_embed(self) -> StoreConfig:
        if self.resize is not None and self.images != "embed":
            raise ValueError("resize needs images: embed (a referenced file is never rewritten)")
        return self


class MixtureConfig(Config):
    """How training rows are drawn; see ``consilium.data.mixture``."""

    stop: Literal["first_exhausted", "all_exhausted", "steps"] = Field(
        default="first_exhausted",
        description="An epoch ends when the first source is used up, when all are, or after a number of steps.",
    )
    steps: int | None = Field(default=None, ge=1, description="Batches an epoch, with stop: steps.")
    sampling: Literal["shuffle", "class_balanced"] = Field(
        default="shuffle", description="class_balanced draws classes equally, with replacement (weighted sampling)."
    )

    @model_validator(mode="after")
    def _steps_given_once(self) -> MixtureConfig:
        if (self.stop == "steps") != (self.steps is not None):
            raise ValueError("stop: steps and steps: N belong together; give both or neither")
        return self


class ImageConfig(Config):
    """The image a model sees: size, fit and normalisation; saved in the bundle, so serving does the same."""

    size: tuple[Annotated[int, Field(ge=8)], Annotated[int, Field(ge=8)]] = Field(
        default=(224, 224), description="[height, width] in pixels."
    )
    fit: Literal["stretch", "crop", "pad"] = Field(
        default="stretch", description="Stretch both sides, crop the largest centred part, or pad with black."
    )
    interpolation: Literal["bilinear", "bicubic"] = Field(default="bilinear", description="Of resizing; antialiased.")
    statistics: Literal["given", "model", "data"] = Field(
        default="given",
        description="given: mean and std as below; model: those of the tower; data: computed from train.",
    )
    mean: Statistic = Field(default=(0.485, 0.456, 0.406), description="Per channel, of pixels in [0, 1].")
    std: Annotated[Statistic, Field(description="Per channel, of pixels in [0, 1].")] = (0.229, 0.224, 0.225)
    max_pixels: int = Field(default=100_000_000, gt=0, description="Larger images are refused.")

    @model_validator(mode="after")
    def _std_is_positive(self) -> ImageConfig:
        if min(self.std) <= 0:
            raise ValueError(f"std is {self.std}; every channel's must be above 0")
        return self


class AugmentationConfig(Config):
    """Random changes of training images; null turns one off. Factors are uniform in [1 - x, 1 + x]."""

    crop_scale: tuple[Probability, Probability] | None = Field(default=None, description="Area kept, [min, max].")
    crop_ratio: tuple[float, float] = Field(default=(3 / 4, 4 / 3), description="Width / height of the crop.")
    horizontal_flip_prob: Probability | None = Field(default=None, description="Chance to mirror left and right.")
    vertical_flip_prob: Probability | None = Field(default=None, description="Chance to mirror top and bottom.")
    rotation_degrees: float | None = Field(default=None, gt=0, le=180, description="Uniform in [-x, x].")
    translate: Probability | None = Field(default=None, description="Fraction of the side, uniform in [-x, x].")
    scale: tuple[float, float] | None = Field(default=None, description="Zoom [min, max]; 1 keeps the size.")
    brightness_jitter: float | None = Field(default=None, gt=0, le=1, description="Factor on every value.")
    contrast_jitter: float | None = Field(
        default=None, gt=0, le=1, description="Factor on the distance from mean grey."
    )
    saturation_jitter: float | None = Field(default=None, gt=0, le=1, description="Factor on the distance from grey.")
    hue_jitter: float | None = Field(default=None, gt=0, le=0.5, description="Fraction of the colour circle.")
    grayscale_prob: Probability | None = Field(default=None, description="Chance to turn grey.")

    @model_validator(mode="after")
    def _ranges_rise(self) -> AugmentationConfig:
        for name, given in (("crop_scale", self.crop_scale), ("crop_ratio", self.crop_ratio), ("scale", self.scale)):
            if given is not None and not 0 < given[0] <= given[1]:
                raise ValueError(f"{name} is {list(given)}; expected [min, max] with 0 < min <= max")
        return self


class LoaderConfig(Config):
    """Batches: their size and the processes that decode them."""

    batch_size: int = Field(default=32, ge=1, description="Cases a step, over all processes, before accumulation.")
    workers: int | Literal["auto"] = Field(
        default="auto", description="Processes that decode images; auto: the cores less one, at most 8."
    )
    prefetch_factor: int = Field(default=2, ge=1, description="Batches that each process prepares ahead.")
    drop_last: bool = Field(default=False, description="Leave out a last batch that is not full.")
    eval_batch_size: int | None = Field(
        default=None, ge=1, description="Cases at once when nothing is learned; null: batch_size."
    )


class DataConfig(Config):
    """From sources to batches."""

    sources: list[Source] = Field(min_length=1)
    split: SplitConfig = SplitConfig()
    store: StoreConfig = StoreConfig()
    on_bad_row: Literal["stop", "quarantine"] = Field(
        default="stop", description="Stop with a list of all bad rows, or set them aside in quarantine.csv."
    )
    on_leak: Literal["warn", "error"] = Field(
        default="warn", description="What to do about a group or file that is in several splits."
    )
    pseudo_labels: bool = Field(default=False, description="Let rows with is_gt: false into train.")
    mixture: MixtureConfig = MixtureConfig()
    image: ImageConfig = ImageConfig()
    augmentation: AugmentationConfig = AugmentationConfig()
    loader: LoaderConfig = LoaderConfig()

    @model_validator(mode="after")
    def _sources_agree(self) -> DataConfig:
        names = [source.name for source in self.sources]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"source names must differ; given twice: {', '.join(twice)}")
        weighted = [source.name for source in self.sources if source.weight is not None]
        if weighted and len(weighted) < len(names):
            missing = sorted(set(names) - set(weighted))
            raise ValueError(f"either every source has a weight or none; missing: {', '.join(missing)}")
        return self
