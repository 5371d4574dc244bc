"""Config of sources; imports no heavy library."""

from __future__ import annotations

import re
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    BeforeValidator,
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from consilium.core.config import Config

ATTACHMENT_TOKENS = ("<attachment>", "<|reserved_special_token_0|>")
_PLACES = re.compile(r"\{([^{}]*)\}")
FORMER_ATTACHMENT_TOKEN = "<|reserved_special_token_0|>"  # the default of earlier versions


def _one_or_several(value: object) -> object:
    """A text alone stands for a list of one."""
    return [value] if isinstance(value, str) else value


class CaptionConfig(Config):
    """What texts are made of the rows of a source, when they are used; the store holds rows as they are."""

    template: Annotated[list[str], BeforeValidator(_one_or_several, json_schema_input_type=str | list[str])] = Field(
        default=[],
        description='Text of a case that has none, as in "a fundus photograph of {label}"; of several each is a text.',
    )
    sections: Annotated[list[str], BeforeValidator(_one_or_several, json_schema_input_type=str | list[str])] = Field(
        default=[],
        description="Sections of a report that are its texts, by their headings (findings: what follows FINDINGS:) or "
        "by the columns of their texts; []: the whole.",
    )
    without_section: Literal["missing", "whole"] = Field(
        default="missing", description="A text without any of these sections counts as missing, or stays whole."
    )
    sentences: bool = Field(
        default=False,
        description="A training reads one sentence each time that it draws a case; a text is judged as a whole.",
    )

    @model_validator(mode="after")
    def _sections_are_names(self) -> CaptionConfig:
        if odd := [name for name in self.sections if not name.strip() or ":" in name]:
            raise ValueError(f"sections names '{odd[0]}'; expected a heading without its colon, as in findings")
        if self.without_section == "whole" and not self.sections:
            raise ValueError("without_section: whole says what to do without a section, and sections names none")
        return self

    @field_validator("template")
    @classmethod
    def _have_a_place(cls, templates: list[str]) -> list[str]:
        for template in templates:
            if set(_PLACES.findall(template)) != {"label"}:
                raise ValueError(
                    f"the template '{template}' has {_odd_places(template)}; write {{label}} where the label belongs, "
                    "as in 'a fundus photograph of {label}'"
                )
        return templates


def _odd_places(template: str) -> str:
    odd = [place for place in _PLACES.findall(template) if place != "label"]
    return f"a place for '{odd[0]}', which is not known" if odd else "no place for the label"


class SourceBase(Config):
    """What every source has: a name (unique), a root or file, a weight in the mixture."""

    later: ClassVar[tuple[str, ...]] = ()  # keys that came after the first stores; a default is as if it were not there

    name: str = Field(
        min_length=1, pattern=r"^\.*[A-Za-z0-9_-][A-Za-z0-9_.-]*$", description="Its name in tables and reports."
    )
    path: str = Field(
        description="Folder or file, here (relative: to the working directory) or in a bucket (gs://, s3://, hf://)."
    )
    weight: float | None = Field(
        default=None, gt=0, description="Share in the mixture. No source has one: all rows form one pool."
    )
    label_prefix: str = Field(default="", description="Put in front of every label of this source, as `prefix.`.")
    split: Literal["train", "val", "test", "unlabelled"] | None = Field(
        default=None, description="The split of every row that names none; null: what data.split decides."
    )
    route: str | None = Field(
        default=None,
        min_length=1,
        description="Judging a council: the true route of every case, whose labels are then the expert's truth.",
    )
    captions: CaptionConfig = CaptionConfig()


class FolderSource(SourceBase):
    """``{path}/{train,val,test}/{label}/...``, ``{path}/{label}/...`` or ``{path}/{label}/{train,val,test}/...``.

    Each image is a group of its own unless ``group_by`` or ``group_pattern`` says otherwise; a mask or thumbnail is in
    the group of its image. A pattern of names is a glob: without a slash it stands for files and folders of that name
    at any depth, with one for a path below ``path``, in which ``**`` stands for any folders.
    """

    later: ClassVar[tuple[str, ...]] = ("split_folders", "group_by", "include", "exclude")

    kind: Literal["folder"] = "folder"
    label_levels: int = Field(default=1, ge=0, description="How many folder levels make the label; 0: no label.")
    split_folders: Literal["above", "below", "none"] | None = Field(
        default=None,
        description="Where folders called train, val and test lie: above or below the labels, or none (they are "
        "labels); null: above where all folders are called so, else none, and an error where that looks wrong.",
    )
    group_by: Literal["file", "folder", "PatientID", "StudyInstanceUID"] = Field(
        default="file",
        description="What makes a group (patient): each file, the first folder below the label, or what a DICOM "
        "header says.",
    )
    group_pattern: str | None = Field(
        default=None,
        description="Regular expression on the file name or, where it finds nothing there, on the path below path; "
        "its first bracket is the group (patient).",
    )
    include: list[str] | None = Field(
        default=None, min_length=1, description="Patterns of names, as in ['*.dcm']; only these are read. null: all."
    )
    exclude: list[str] = Field(default=[], description="Patterns of names left out, as in ['*_mask.*', thumbs].")

    @model_validator(mode="after")
    def _one_group(self) -> FolderSource:
        if self.group_pattern is not None and self.group_by != "file":
            raise ValueError(f"group_pattern and group_by: {self.group_by} both name the group; give one")
        return self


class Findings(Config):
    """One column per finding, as chest collections have them: 1 is there, 0 or empty is not, -1 is uncertain."""

    columns: list[str] = Field(
        min_length=1,
        description="The columns, whose names are the labels; of a pattern such as finding_* what * stands for.",
    )
    uncertain: Literal["positive", "negative", "ignore"] | None = Field(
        default=None,
        description="-1 as 1 (U-Ones), as 0 (U-Zeros), or the case unlabelled (U-Ignore); null: such a row is bad.",
    )
    none: str | None = Field(default=None, min_length=1, description="Label of a row without any finding; null: none.")


def _short_findings(value: object) -> object:
    """Columns or a pattern alone stand for the section."""
    return {"columns": [value] if isinstance(value, str) else value} if isinstance(value, (str, list)) else value


class Columns(Config):
    """Which column (or JSON key) holds what; null: the file has none."""

    image: str | list[str] = Field(default="image", description="Path of the image; several columns: several views.")
    text: str | list[str] | None = Field(
        default="text",
        description="Text of the case, or a list of texts; several columns: several texts, named after them.",
    )
    label: str | None = Field(default="label", description="Label; a dot separates the levels of one, as in a.b.")
    answer: str | None = Field(
        default=None,
        description="Judging a council: truth of the expert's answer, beside a label that is the route; it is kept as "
        "metadata.",
    )
    split: str | None = Field(default="split", description="train, val, test or unlabelled, in any usual spelling.")
    group: str | None = Field(default="group_id", description="What stays on one side of the splits: the patient.")
    id: str | None = Field(default="id", description="Id, unique in the source; none: the source's name and the line.")
    mask: str | list[str] | dict[str, str | dict[str, str]] | None = Field(
        default="mask",
        description="Path of the mask; several columns: a mask of each class, named after them, or {class: column}, or "
        "{class: {annotator: column}}.",
    )
    is_gt: str | None = Field(default="is_gt", description="true or false; false marks a pseudo-label.")
    label_separator: str | None = Field(default=None, description="Splits a label cell into several (multi-label).")
    findings: Annotated[
        Findings | None,
        BeforeValidator(_short_findings, json_schema_input_type=Findings | list[str] | str | None),
    ] = Field(
        default=None,
        description="One column per finding, in place of label: their names, a pattern, or a section.",
    )
    meta: list[str] | None = Field(default=None, description="Columns kept as metadata; null keeps all others.")

    @model_validator(mode="after")
    def _one_truth_a_column(self) -> Columns:
        taken = [key for key in ("label", "text", "image", "group", "id", "split") if self.answer in self.names(key)]
        if self.answer is not None and taken:
            raise ValueError(
                f"columns.answer and columns.{taken[0]} both name '{self.answer}'; name the column of the route in "
                "columns.label, or leave columns.answer out and give the source one `route`: its labels are then the "
                "answers"
            )
        return self

    def names(self, key: str) -> list[str]:
        """All columns that a key names, such as both of ``image: [left, right]``."""

        def inside(value: Any) -> list[str]:
            if isinstance(value, dict | list):
                return [
                    name for item in (value.values() if isinstance(value, dict) else value) for name in inside(item)
                ]
            return [] if value is None else [value]

        return inside(getattr(self, key))

    @model_serializer(mode="wrap")
    def _as_before(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without ``findings`` and ``answer`` where there are none: stores are called after their config, and these
        came later."""
        tree: dict[str, Any] = write(self)
        return {key: value for key, value in tree.items() if key not in ("findings", "answer") or value is not None}


class RowSource(SourceBase):
    """A file of rows whose columns have names."""

    later: ClassVar[tuple[str, ...]] = ("image_template",)  # came after the first stores; as if absent where it is null
    required: ClassVar[tuple[str, ...]] = ()  # the keys of ``columns`` that a ready-made mapping cannot do without
    kind: str
    columns: Columns = Columns()
    image_root: str | None = Field(default=None, description="Folder of relative image paths; null: the file's own.")
    image_template: str | None = Field(
        default=None,
        pattern=r"\{(:0?\d+)?\}",
        description='Path of an image, as in "{}.png": {} is the cell of columns.image, {:06} its number with zeros in '
        "front, {patient} another column.",
    )


class TableSource(RowSource):
    """A csv or parquet table, one case a row; columns that do not exist and were not named are skipped."""

    kind: Literal["csv", "parquet"]
    separator: str = Field(default=",", min_length=1, max_length=1, description="csv only.")


class ModalityClassifierColumns(Columns):
    """Which column of the table of image modality classifiers holds what; a key that is given changes it alone."""

    image: str | list[str] = Field(default="img_path", description="Path of the image.")
    split: str | None = Field(default="split_set", description="TRAIN, VAL, TEST or UNL (unlabelled).")


class ModalityClassifierSource(TableSource):
    """The table of image modality classifiers (csv or parquet): ``img_path, split_set, label, is_gt``."""

    required: ClassVar[tuple[str, ...]] = ("image", "split", "label")
    kind: Literal["modality_classifier"]  # type: ignore[assignment]
    columns: ModalityClassifierColumns = ModalityClassifierColumns()


class HarmonisedColumns(Columns):
    """Which column of the harmonised table holds what; a key that is given changes it alone."""

    image: str | list[str] = Field(default="filename", description="Path of the image.")
    text: str | list[str] | None = Field(default="text_desc", description="Description of the image.")
    id: str | None = Field(default="image_id", description="Id, unique in the table.")


class HarmonisedSource(TableSource):
    """The harmonised table (csv or parquet): ``image_id, dataset, filename, orig_filename, label, text_desc``.

    ``dataset`` and ``orig_filename`` are metadata. Rows of one file are a group, unless ``columns.group`` names one.
    """

    required: ClassVar[tuple[str, ...]] = ("id", "image", "label", "text")
    kind: Literal["harmonised"]  # type: ignore[assignment]
    columns: HarmonisedColumns = HarmonisedColumns()


class JsonlSource(RowSource):
    """MultiMediset form: one object a line, ``text`` or ``conversations``, ``modalities: [{type, value}]``."""

    kind: Literal["jsonl", "multimediset"] = "jsonl"
    attachment_token: str | list[str] = Field(
        default=[*ATTACHMENT_TOKENS],
        description="One or several, removed from texts and counted, as are <image> and its like; '': keep all.",
    )


class HubDataset(Config):
    """A dataset of the Hugging Face hub, or a local copy of one, and how gently it is fetched."""

    path: str = Field(min_length=1, description="Dataset id, as owner/name, or the folder of a local copy.")
    config_name: str | None = Field(default=None, description="Configuration (subset) of the dataset.")
    data_dir: str | None = Field(default=None, description="Folder inside the dataset.")
    revision: str | None = Field(
        default=None, description="Branch, tag or commit; null: the newest when first fetched."
    )
    delay: float = Field(default=0.0, ge=0.0, description="Seconds to wait after every 1,000 rows fetched.")
    retries: int = Field(default=8, ge=0, description="Tries again after a rate limit or a lost connection.")


class HubSource(RowSource, HubDataset):
    """A Hugging Face dataset: an id (``owner/name``) or a local copy in any layout that ``datasets`` reads."""

    kind: Literal["hub"]
    path: str = Field(min_length=1, description="Dataset id, as owner/name, or the folder of a local copy.")
    splits: list[str] | None = Field(
        default=None, min_length=1, description="The dataset's own splits to read; null: all."
    )
    use_splits: bool = Field(
        default=True, description="Take the dataset's own splits for ours; false: data.split decides."
    )


class HubImages(HubDataset):
    """The images that a table names by their number in a dataset."""

    split: str = Field(default="train", min_length=1, description="The dataset's own split that the numbers count in.")
    image: str = Field(default="image", description="The column of the images.")


class RetClipCsvSource(SourceBase):
    """``dataset_index,label,prompt``: prompts and labels of images of a hub dataset, joined by index from 0."""

    kind: Literal["ret_clip_csv"]
    images: HubImages


class RetClipTsvSource(SourceBase):
    """TSV ``id<TAB>left base64<TAB>right base64`` (or one image), and JSONL ``{text_id, text, image_ids}``."""

    kind: Literal["ret_clip_tsv"]
    path: str = Field(description="The TSV of the images, here or in a bucket.")
    texts: str | None = Field(default=None, description="The JSONL of the texts; null: images without text.")


class RetClipLmdbSource(SourceBase):
    """A folder with the LMDB databases ``imgs`` and ``pairs``, as ``data export`` or RET-CLIP's programs write them."""

    kind: Literal["ret_clip_lmdb"]
    path: str = Field(description="The folder that holds imgs and pairs, on this machine.")


Source = Annotated[
    FolderSource
    | TableSource
    | ModalityClassifierSource
    | HarmonisedSource
    | JsonlSource
    | HubSource
    | RetClipCsvSource
    | RetClipTsvSource
    | RetClipLmdbSource,
    Field(discriminator="kind"),
]
