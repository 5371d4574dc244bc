"""Config of everything about data; imports no heavy library."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from consilium.core.config import Config, LocalFolder
from consilium.core.durations import Steps
from consilium.core.labels import paths_of
from consilium.core.places import join
from consilium.data.batches.config import AugmentationConfig, Probability
from consilium.data.sources.config import Source

Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]
LeaveOut = Annotated[dict[str, Annotated[list[str], Field(min_length=1)]], Field(min_length=1)]


def _of_pixels_up_to_1(values: tuple[float, float, float]) -> tuple[float, float, float]:
    if min(values) < 0 or max(values) > 1:
        raise ValueError(f"{list(values)} came; pixels count from 0 to 1, so divide figures of 0 to 255 by 255")
    return values


def _positive(values: tuple[float, float, float]) -> tuple[float, float, float]:
    if min(values) <= 0:
        raise ValueError(f"{list(values)} came; every channel's must be above 0")
    return values


Mean = Annotated[tuple[float, float, float], AfterValidator(_of_pixels_up_to_1)]
Deviation = Annotated[Mean, AfterValidator(_positive)]


class SplitConfig(Config):
    """Fractions for rows without an explicit split; an explicit split always wins.

    Rows of a source with no explicit split are hashed by group into train, val and test. A source with
    explicit splits but no val gives ``val`` of its train groups; test is never taken from explicit train.
    """

    val: Fraction = Field(default=0.1, description="Share of the groups that validate.")
    test: Fraction = Field(default=0.1, description="Share of the groups that test.")
    seed: int = Field(default=0, description="Another seed divides the groups in another way.")
    every_class: bool = Field(
        default=True,
        description="Move the nearest group where the hash leaves a class of 3 or more groups without a case in a "
        "split; false: the hash alone.",
    )
    keep_sources_in: Literal["train"] | None = Field(
        default=None,
        description="train: of every class and source, as mixture.source_column tells them apart, some group trains; "
        "null: a small source may be left to val and test. Splits that rows name stay as they are.",
    )
    folds: int | None = Field(
        default=None, ge=2, description="Divide all groups into so many folds, whatever split they name; see fold."
    )
    fold: int | None = Field(default=None, ge=0, description="The fold that tests, from 0; val is taken from the rest.")
    leave_out: LeaveOut | list[LeaveOut] | None = Field(
        default=None,
        min_length=1,
        description="Test on the cases that have one of these values in every column named (source, label or "
        "metadata; of a list of such sections, in any), and train on the others, whatever split they name.",
    )

    @property
    def cells(self) -> list[LeaveOut]:
        """What is left out, as a list."""
        return [self.leave_out] if isinstance(self.leave_out, dict) else self.leave_out or []

    @property
    def anew(self) -> bool:
        """Whether cases are divided anew, whatever split they name."""
        return self.folds is not None or self.leave_out is not None

    @model_validator(mode="after")
    def _leaves_train(self) -> SplitConfig:
        if (self.folds is None) != (self.fold is None):
            raise ValueError("folds: K and fold: k belong together; give both or neither")
        if self.folds is not None and self.fold is not None and self.fold >= self.folds:
            raise ValueError(f"fold is {self.fold}; of {self.folds} folds the last is {self.folds - 1}")
        if self.folds is not None and self.leave_out is not None:
            raise ValueError("folds and leave_out exclude each other; give one")
        if self.val + self.test >= 1:
            raise ValueError(f"val + test is {self.val + self.test}; it must leave something for train (below 1)")
        return self


class FilterConfig(Config):
    """Which cases are used, applied in the order of these keys; see ``consilium.data.cases.filters``.

    The first six act on every split; ``labels`` names labels as they are before ``node``, and what follows counts
    the labels that it makes. ``fraction`` and ``max_samples_per_label`` act on train alone, so that figures stay
    comparable; ``min_samples_per_label`` counts in train and takes the label out of every split.
    """

    labels: list[str] | None = Field(default=None, description="Labels (or branches of the tree) kept; null: all.")
    sources: list[str] | None = Field(default=None, description="Names of the sources kept; null: all.")
    sub_sources: dict[str, list[str]] | None = Field(
        default=None, description="Metadata column: the values kept, as in {dataset: [isic, ham]}."
    )
    origins: dict[str, Annotated[list[str], Field(min_length=1)]] | None = Field(
        default=None,
        description="Of these datasets (metadata column dataset) the cases kept, by the first part of orig_filename, "
        "as in {derm1m: [edu, youtube]} for edu/1.png; other datasets stay whole.",
    )
    has_text: bool | None = Field(default=None, description="true: only cases with text; false: only without.")
    node: str | None = Field(
        default=None,
        min_length=1,
        description="Node of a label tree (root: the top): only cases below it, labelled with its children.",
    )
    fraction: Probability = Field(default=1.0, description="Share of train, drawn by label with the split's seed.")
    max_samples_per_label: int | None = Field(default=None, ge=1, description="Training cases kept of a label.")
    min_samples_per_label: int | None = Field(
        default=None, ge=1, description="Labels with fewer training cases are left out."
    )
    max_train_samples: int | None = Field(default=None, ge=1, description="Training cases kept, spread over labels.")
    max_eval_samples: int | None = Field(
        default=None, ge=1, description="Cases kept of val and of test each, spread over labels."
    )

    @model_validator(mode="after")
    def _most_is_not_below_least(self) -> FilterConfig:
        most, least = self.max_samples_per_label, self.min_samples_per_label
        if most is not None and least is not None and most < least:
            raise ValueError(
                f"max_samples_per_label is {most}, below min_samples_per_label: {least}; no label would stay"
            )
        return self


class GuardConfig(Config):
    """What is looked for in data before it is trusted; see ``consilium.data.guards``."""

    near_duplicates: bool = Field(default=True, description="Look for almost equal images on both sides of a split.")
    labels: bool = Field(default=True, description="Look for images labelled two ways, and labels in two spellings.")
    label_in_text: bool = Field(default=True, description="Look for labels that are named in their own text.")
    shortcuts: bool = Field(default=True, description="See whether sizes, borders and colours alone tell the label.")
    synonyms: dict[str, list[str]] = Field(
        default={}, description="Other words for a label, or for a part of one: {melanoma: [mm]}."
    )


class StoreConfig(Config):
    """Where prepared cases live, and whether images are referenced by path or embedded as bytes."""

    root: LocalFolder = Field(default="stores", description="Folder of all stores, on a disk of this machine.")
    images: Literal["reference", "embed"] = Field(
        default="reference", description="Keep the paths of the images, or a copy of them."
    )
    resize: int | None = Field(
        default=None, ge=16, description="embed only: shorter side in pixels that larger images are reduced to once."
    )
    max_pixels: int = Field(default=100_000_000, gt=0, description="Images with more pixels are bad rows.")
    check_images: Literal["decode", "header"] = Field(
        default="decode",
        description="decode: each image is decoded once, so that one with damaged pixels is a bad row; header: only "
        "its header is read, for very large data: damaged pixels are then found by the training that needs them.",
    )
    workers: int | Literal["auto"] = Field(
        default="auto", description="Threads that read images; auto: the cores, at most 8 (32 from a bucket)."
    )

    @model_validator(mode="after")
    def _resize_needs_embed(self) -> StoreConfig:
        if self.resize is not None and self.images != "embed":
            raise ValueError("resize needs images: embed (a referenced file is never rewritten)")
        return self


class MixtureConfig(Config):
    """How training rows are drawn; see ``consilium.data.cases.mixture``."""

    stop: Literal["first_exhausted", "all_exhausted", "steps"] = Field(
        default="first_exhausted",
        description="An epoch ends when the first source is used up, when all are, or after a number of steps.",
    )
    steps: Steps | None = Field(default=None, description="Batches an epoch, with stop: steps.")
    sampling: Literal["shuffle", "class_balanced", "source_balanced"] = Field(
        default="shuffle",
        description="class_balanced draws classes equally, with replacement (weighted sampling); source_balanced, "
        "too, and inside a class its sources equally.",
    )
    source_column: str = Field(
        default="source",
        min_length=1,
        description="What tells sources apart in source_balanced, one_source and the mixture table: source, or a "
        "metadata column.",
    )
    one_source: bool = Field(default=False, description="All cases of a batch are of one source.")
    groups_apart: bool = Field(default=False, description="No two cases of a batch are of one group (patient).")

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
    mean: Mean = Field(default=(0.485, 0.456, 0.406), description="Per channel, of pixels in [0, 1].")
    std: Annotated[Deviation, Field(description="Per channel, of pixels in [0, 1].")] = (0.229, 0.224, 0.225)
    window: tuple[float, float] | None = Field(
        default=None,
        description="[centre, width] of the grey values shown, in the image's own units (Hounsfield units of a CT); "
        "null: the file's own window, else from its lowest to its highest value.",
    )
    max_pixels: int = Field(default=100_000_000, gt=0, description="Larger images are refused.")

    @model_validator(mode="after")
    def _window_is_one(self) -> ImageConfig:
        if self.window is not None and self.window[1] <= 0:
            raise ValueError(f"window is {list(self.window)}; expected [centre, width] with a width above 0")
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
    """From sources to batches.

    ``dataset`` names a folder of ``root`` with a harmonised table and its images. Without ``sources`` it is the only
    one; ``harmonised`` sources take from it the paths that they leave out.
    """

    root: str = Field(
        default="data",
        min_length=1,
        description="Folder that dataset lies in, here or in a bucket (gs://, s3://, hf://).",
    )
    dataset: str | None = Field(
        default=None,
        pattern=r"^\.*[A-Za-z0-9_-][A-Za-z0-9_.-]*$",
        description="A folder in root, as dataset_v1: its metadata_all_harmonized.csv and imgs are a harmonised "
        "source. A path that sources give comes first.",
    )
    sources: list[Source] = Field(min_length=1)
    split: SplitConfig = SplitConfig()
    store: StoreConfig = StoreConfig()
    on_bad_row: Literal["stop", "quarantine"] = Field(
        default="stop", description="Stop with a list of all bad rows, or set them aside in quarantine.csv."
    )
    rename_labels: dict[str, str] = Field(
        default={},
        description="Other names for labels, or for branches with all below: {xray: rad.xra}. All else sees these.",
    )
    filters: FilterConfig = FilterConfig()
    guards: GuardConfig = GuardConfig()
    on_leak: Literal["warn", "error", "drop"] = Field(
        default="warn",
        description="What to do about a group, file or near-duplicate image in several splits: tell, stop, or drop: "
        "leave it in test alone, else in val alone.",
    )
    strip_label_mentions: bool = Field(
        default=False,
        description="Take the sentences out of texts that name a label, a part of one, or one of guards.synonyms; a "
        "bundle does the same with the texts that it is asked about.",
    )
    pseudo_labels: bool = Field(default=False, description="Let rows with is_gt: false into train.")
    mixture: MixtureConfig = MixtureConfig()
    image: ImageConfig = ImageConfig()
    augmentation: AugmentationConfig = AugmentationConfig()
    loader: LoaderConfig = LoaderConfig()

    def in_dataset(self, name: str) -> str | None:
        """The path of a file or folder of ``dataset``, such as ``embeddings/a.parquet``; None where none is named."""
        return None if self.dataset is None else join(join(self.root, self.dataset), name)

    @model_validator(mode="before")
    @classmethod
    def _dataset_gives_paths(cls, given: Any) -> Any:
        if not isinstance(given, dict) or not isinstance(name := given.get("dataset"), str):
            return given
        root = given.get("root", cls.model_fields["root"].default)
        sources = given.get("sources", [{"kind": "harmonised", "name": name}])
        if not isinstance(root, str) or not isinstance(sources, list):
            return given  # which the fields refuse
        folder = join(root, name)
        paths = {"path": join(folder, "metadata_all_harmonized.csv"), "image_root": join(folder, "imgs")}
        harmonised = [isinstance(source, dict) and source.get("kind") == "harmonised" for source in sources]
        filled = [{**paths, **one} if own else one for one, own in zip(sources, harmonised, strict=True)]
        return {**given, "sources": filled}

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
        if weighted and self.mixture.sampling == "source_balanced":
            raise ValueError(
                "mixture.sampling: source_balanced draws sources equally, the weights of sources say otherwise; take "
                "the weights out, or choose class_balanced"
            )
        return self

    @model_validator(mode="after")
    def _texts_of_labels_keep_them(self) -> DataConfig:
        written = [source.name for source in self.sources if source.captions.template]
        if self.strip_label_mentions and written:
            raise ValueError(
                f"strip_label_mentions takes labels out of texts, and captions.template of the source {written[0]} "
                "writes them into texts; leave one out"
            )
        return self

    @model_validator(mode="after")
    def _new_names_are_labels(self) -> DataConfig:
        for old, new in self.rename_labels.items():
            if not new.strip() or new != new.strip() or new not in paths_of([new]):
                raise ValueError(f"rename_labels gives '{old}' the name '{new}'; expected a label, as in a.b")
        return self

    @model_validator(mode="after")
    def _quarter_turns_fit(self) -> DataConfig:
        height, width = self.image.size
        for place, changes in (("augmentation", self.augmentation), ("augmentation.copies", self.augmentation.copies)):
            if changes is not None and changes.quarter_turn_prob is not None and height != width:
                raise ValueError(
                    f"{place}.quarter_turn_prob needs a square image, but image.size is [{height}, {width}]; leave it "
                    "out, or make the size square"
                )
        return self
