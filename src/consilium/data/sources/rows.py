"""From a row, as a mapping, to a case, by the configured columns."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

from consilium.core.config import nearest
from consilium.core.errors import ConfigError
from consilium.core.places import (
    FileFacts,
    absolute,
    facts,
    is_bucket,
    is_remote,
    join,
    local_path,
    names_in,
    parent,
    split_frame,
)
from consilium.data.case import (
    MISSING_LABEL,
    BadRow,
    Case,
    Mask,
    RowError,
    Text,
    View,
    flag,
    is_missing,
    label_paths,
    looks_missing,
    meta_text,
    printable,
    scalar_text,
    split_name,
    text_items,
)
from consilium.data.sources.config import Columns, RowSource
from consilium.data.sources.findings import IGNORED, FindingReader

EMPTY_TEXT = "an empty text in a list of texts is left out"
_OPTIONAL = ("text", "label", "split", "group", "id", "mask", "is_gt")
_SINGLE = ("label", "split", "group", "id", "is_gt")  # of these there is one column
# What a cell that says nan, NA or None is read as, by key; a label stays what it is, for "none" may be a class.
_MISSING = {
    "group": "each of these images is a group of its own",
    "id": "the line is the id",
    "split": "read as no split",
    "is_gt": "read as true",
}
_PLACE = re.compile(r"\{(?P<column>[^{}:]*)(?::0?(?P<width>\d+))?\}")


@lru_cache(maxsize=4096)  # a table repeats a few labels in all its rows
def _oddity(label: str) -> str:
    """What is odd about a label: 'missing' where it looks like a missing value, a mark that divides others, or ''."""
    if looks_missing(label.rpartition(".")[2]):
        return "missing"
    return next((mark for mark in "|;" if mark in label.strip(mark)), "")


class RowReader:
    """Turns the rows of one file, as mappings, into cases by the configured columns."""

    def __init__(self, source: RowSource, *, also_used: frozenset[str] = frozenset(), has_null: bool = False) -> None:
        self.source = source
        self.columns = source.columns
        self.has_null = has_null
        self.file = absolute(source.path)
        self.row_name = source.name
        self._examples: dict[str, str] = {}
        self._listings: dict[str, dict[str, FileFacts]] = {}  # folders of buckets, each asked for once
        root = source.image_root
        self.root = parent(self.file) if root is None else absolute(root)
        self.image_columns, self.text_columns = self.columns.names("image"), self.columns.names("text")
        self._masks = list(_masks_of(self.columns.mask))
        self._named = {key: name for key in _SINGLE if (name := getattr(self.columns, key)) is not None}
        self.used = also_used.union(*(self.columns.names(key) for key in ("image", *_OPTIONAL)))
        findings = self.columns.findings
        self.findings = None if findings is None else FindingReader(findings, used=self.used)

    def check_columns(self, present: Sequence[str]) -> None:
        """Refuse a column that the config names and the file lacks, and a file of neither images nor texts.

        A name that is the default counts as not named: a resolved config spells out every default. A ready-made
        mapping has columns that must be there; null in the config says that a file has none.
        """
        default: Columns = type(self.source).model_fields["columns"].default
        self._check_mapping(present)
        given = [key for key in (*_OPTIONAL, "image") if getattr(self.columns, key) != getattr(default, key)]
        named = [(key, name) for key in given for name in self.columns.names(key)]
        named += [("meta", name) for name in self.columns.meta or []]
        named += [("answer", name) for name in self.columns.names("answer")]
        keys = [(f"columns.{key} is", name) for key, name in named]
        keys += [("image_template names", match["column"]) for match in self._places() if match["column"]]
        for key, name in keys:
            if name not in present:
                raise ConfigError(f"source '{self.source.name}': {key} '{name}', {self._absent(name, present)}")
        self._check_findings(present)
        self._check_spelling(present)
        if not {*self.text_columns, *self.image_columns} & set(present):
            raise ConfigError(
                f"source '{self.source.name}': neither an image nor a text column was found; name one in columns.image "
                f"or columns.text. The image column is '{self.image_columns[0]}', "
                f"{self._absent(self.image_columns[0], present)}"
            )

    def _check_findings(self, present: Sequence[str]) -> None:
        """Refuse findings that the file lacks, and a label beside them."""
        if self.findings is None:
            return
        if (name := self.findings.absent(present)) is not None:
            raise ConfigError(
                f"source '{self.source.name}': columns.findings has '{name}', {self._absent(name, present)}"
            )
        if self.columns.label in present:
            raise ConfigError(
                f"source '{self.source.name}': both columns.findings and the column '{self.columns.label}' "
                "(columns.label) give labels; set columns.label: null, or leave out columns.findings."
            )

    def _check_spelling(self, present: Sequence[str]) -> None:
        """Refuse a column that is a default name but for spaces or capitals: its labels or groups would be lost."""
        free = {name.strip().lower(): name for name in present if name not in {*self.used, *(self.columns.meta or ())}}
        for key in (*_OPTIONAL, "image"):
            name = getattr(self.columns, key)
            if isinstance(name, str) and name not in present and (found := free.get(name.lower())):
                other = " (or null, if it is something else)" if key != "image" else ""
                raise ConfigError(
                    f"source '{self.source.name}': {self.file} has a column '{found}', but {key} is read from "
                    f"'{name}'. Rename the column, or set columns.{key}: '{found}'{other}."
                )

    def _check_mapping(self, present: Sequence[str]) -> None:
        """Refuse a file without the columns of its ready-made mapping."""
        required = self.source.required
        expected = {key: names for key in required if (names := self.columns.names(key))}
        missing = [(key, name) for key, names in expected.items() for name in names if name not in present]
        if missing:
            key, name = missing[0]
            columns = ", ".join(name for names in expected.values() for name in names)
            optional = f", or columns.{key}: null if the file has none" if key != "image" else ""
            raise ConfigError(
                f"source '{self.source.name}': kind {self.source.kind} expects the columns {columns}. The {key} column "
                f"is '{name}', {self._absent(name, present)} Name yours in columns.{key}{optional}."
            )

    def _absent(self, name: str, present: Sequence[str]) -> str:
        return printable(f"which {self.file} does not have{nearest(name, present, there='its columns are')}")

    def bad(self, line: int, reason: str) -> BadRow:
        """A bad row of this file."""
        return BadRow(self.source.name, self.file, line, reason)

    def path(self, value: str) -> str:
        """The absolute path of an image or mask as a row gives it."""
        value = local_path(value)
        if is_remote(value) and not is_bucket(value):
            raise RowError(f"'{value}' is an address; download the file and give its path")
        if "\0" in value:
            raise RowError("a path holds a zero byte")
        return join(self.root, value)

    def views(self, row: Mapping[str, Any]) -> list[View]:
        """The images in the image columns; each column of a list names its view."""
        several = not isinstance(self.columns.image, str)
        return [
            view
            for column in self.image_columns
            for view in self.cell_views(self._filled(row.get(column), row), name=column if several else "")
        ]

    def _places(self) -> Iterator[re.Match[str]]:
        """The places of ``image_template`` that are filled."""
        return _PLACE.finditer(self.source.image_template or "")

    def _filled(self, cell: Any, row: Mapping[str, Any]) -> Any:
        """The path of an image that a bare cell stands for, by ``image_template``."""
        if self.source.image_template is None or cell is None or isinstance(cell, (dict, bytes, bytearray)):
            return cell
        if isinstance(cell, (list, tuple)):
            return [self._filled(item, row) for item in cell]
        own = scalar_text(cell, "image")

        def text(place: re.Match[str]) -> str:
            name = place["column"]
            value = scalar_text(row.get(name), name) if name else own
            if not value:
                raise RowError(f"image_template needs the column '{name}', which is empty here")
            return value.zfill(int(place["width"] or 0))

        return _PLACE.sub(text, self.source.image_template) if own else ""

    def cell_views(self, cell: Any, *, name: str = "") -> list[View]:
        """The images of a cell: paths, bytes, Hugging Face structs, or a list of them."""
        if isinstance(cell, (list, tuple)):
            return [view for item in cell for view in self.cell_views(item, name=name)]
        if isinstance(cell, (bytes, bytearray)):
            return [View("", name, bytes(cell))]
        if isinstance(cell, dict):
            data = cell.get("bytes")
            if isinstance(data, (bytes, bytearray)):
                return [View(scalar_text(cell.get("path"), "path"), name, bytes(data))]
            if data is not None:
                raise RowError(f"the bytes of an image are a {type(data).__name__}; in JSON give its path instead")
            cell = cell.get("path")
        text = scalar_text(cell, "image")
        return [View(self.path(text), name)] if text else []

    def texts(self, row: Mapping[str, Any]) -> list[Text]:
        """The texts in the text columns, of which each may hold a list; each column of a list names its texts."""
        several = isinstance(self.columns.text, list)
        return [
            Text(text, column if several else "")
            for column in self.text_columns
            for text in text_items(row.get(column), f"'{column}'")[0]
        ]

    def case(self, row: Mapping[str, Any], line: int, *, views: list[View], texts: list[Text]) -> Case:
        """The case of a row whose images and texts are known already."""
        source = self.source
        if not views and not texts:
            raise RowError("the row has neither an image nor a text")
        notes = [EMPTY_TEXT for column in self.text_columns if text_items(row.get(column), f"'{column}'")[1]][:1]
        found = {key: row.get(column) for key, column in self._named.items()}
        for key in _MISSING:
            if isinstance(cell := found.get(key), str) and looks_missing(cell):
                found[key] = self._missing(cell, key, notes)
        identity = scalar_text(found.get("id"), "id")
        labels, split = self._labels(found.get("label"), row, notes), split_name(found.get("split")) or source.split
        return Case(
            id=identity or f"{self.row_name}:{line}",
            source=source.name,
            group=scalar_text(found.get("group"), "group") or self._own_group(views, texts, identity),
            split="unlabelled" if IGNORED in notes else split,
            views=tuple(views),
            texts=tuple(texts),
            labels=labels,
            masks=tuple(self._found_masks(row)),
            is_gt=flag(found.get("is_gt"), "is_gt"),
            file=self.file,
            line=line,
            meta={key: value for key in self._wanted(row) if (value := meta_text(row.get(key)))},
            notes=tuple(notes),
        )

    def _missing(self, cell: str, key: str, notes: list[str]) -> str | None:
        """The cell of a column that says in words that it has no value: None, or as it stands in a file with nulls."""
        missing = is_missing(cell, has_null=self.has_null)
        read = _MISSING[key] if missing else f"it is the {key} as it stands; write null where there is none"
        column = self._named[key]
        notes.append(f"'{cell.strip()}' in the column '{column}' looks like a missing value: {read}")
        return None if missing else cell

    def _labels(self, cell: Any, row: Mapping[str, Any], notes: list[str]) -> tuple[str, ...]:
        """The labels of a row, out of its label cell or its findings."""
        prefix = self.source.label_prefix
        if self.findings is not None:
            found, ignored = self.findings.labels(row)
            notes += [IGNORED] * ignored
            return label_paths(found, prefix=prefix)
        labels = label_paths(cell, separator=self.columns.label_separator, prefix=prefix)
        for label in labels:
            if (odd := _oddity(label)) == "missing":
                notes.append(f"the label '{label}' {MISSING_LABEL}: leave such cells empty")
            elif odd:
                notes.append(
                    f"a label with '{odd}' in it, such as '{self.example(odd, label)}', is one class: where it is "
                    f'several labels, set columns.label_separator: "{odd}" and task.multi_label: true'
                )
        return labels

    def example(self, kind: str, found: str) -> str:
        """The first that was found of a kind, so that the notes of all rows say the same."""
        return self._examples.setdefault(kind, found[:80])

    def _wanted(self, row: Mapping[str, Any]) -> Iterable[str]:
        """The columns that are kept as metadata."""
        if self.columns.meta is not None:
            return dict.fromkeys([*self.columns.meta, *self.columns.names("answer")])
        findings = {} if self.findings is None else self.findings.columns(list(row))
        return (key for key in row if key not in self.used and key not in findings)

    def _own_group(self, views: list[View], texts: list[Text], identity: str) -> str:
        """The group where none is given: rows of one image belong together. It never hangs on the row's line,
        so that rows put in between move nothing."""
        if views and views[0].image and views[0].data is None:  # beside bytes there is a bare name, if any
            file, _ = split_frame(views[0].image)  # the slices of one volume are one patient's
            return f"{self.source.name}:{file.removeprefix(f'{self.root}/')}"
        if identity and not views:
            return f"{self.source.name}:{identity}"
        content = views[0].data if views else texts[0].text.encode(errors="surrogatepass")
        return f"{self.source.name}:{hashlib.blake2b(content or b'', digest_size=8).hexdigest()}"

    def _found_masks(self, row: Mapping[str, Any]) -> list[Mask]:
        """The masks of a row and their files; that one is missing is found out when the images are looked at."""
        found = []
        for name, annotator, column in self._masks:
            if value := scalar_text(row.get(column), "mask"):
                path = self.path(value)
                found.append(Mask(path, name, annotator, self._facts(path)))
        return found

    def _facts(self, path: str) -> FileFacts | None:
        """What is known of a file; a folder of a bucket is listed once."""
        if not is_remote(path):
            return facts(path)
        folder, name = path.rsplit("/", 1)
        if folder not in self._listings:
            self._listings[folder] = names_in(folder)
        return self._listings[folder].get(name)

    def table_case(self, row: Mapping[str, Any], line: int) -> Case | BadRow:
        """The case of a csv or parquet row."""
        try:
            return self.case(row, line, views=self.views(row), texts=self.texts(row))
        except RowError as error:
            return self.bad(line, str(error))


def _masks_of(given: str | list[str] | dict[str, str | dict[str, str]] | None) -> Iterator[tuple[str, str, str]]:
    """(class, annotator, column) of each mask that ``columns.mask`` names."""
    if isinstance(given, str):
        yield "", "", given
    elif isinstance(given, list):
        yield from ((column, "", column) for column in given)
    elif given is not None:
        for name, columns in given.items():
            by_annotator = {"": columns} if isinstance(columns, str) else columns
            yield from ((name, annotator, column) for annotator, column in by_annotator.items())
