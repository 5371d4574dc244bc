"""How a folder of images is laid out: where its splits, its labels and what lies below them are."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from consilium.core.errors import DataError
from consilium.core.reporter import some
from consilium.data.case import RowError, is_split_name, split_name
from consilium.data.sources.config import FolderSource

_SPLIT_WORD = re.compile(r"(?<![a-z])(training|train|trn|validation|valid|val|testing|test|tst)(?![a-z])", re.I)
_JOINED_SPLIT_WORD = re.compile(r"^(training|train|validation|valid|val|testing|test)(set|data|images?|imgs?)$", re.I)
_FOLD = re.compile(r"(?:k[-_ ]?)?fold[-_ ]?\d+", re.I)
_NUMBER = re.compile(r"\d")
# What the folder of one patient or examination is called.
_PATIENT = re.compile(r"(?:patient|person|subject|subj|sub|pat|pid|donor|study|case)[-_ ]?\d+", re.I)


class Placed(NamedTuple):
    """What the folders above an image say; ``split`` is None where they name none."""

    split: str | None
    label: tuple[str, ...]
    below: tuple[str, ...]


@dataclass(frozen=True)
class Layout:
    """Where a source has its splits, and how many folders make a label."""

    splits: Literal["above", "below", "none"]
    label_levels: int

    def place(self, name: str) -> Placed:
        """What the folders of a relative path say; one that lacks its split is a RowError."""
        folders = name.split("/")[:-1]
        split = None
        if self.splits == "above":
            if not folders:
                raise RowError("the image lies beside the split folders; put it into one of them")
            split = split_name(folders.pop(0))
        label, below = tuple(folders[: self.label_levels]), folders[self.label_levels :]
        if self.splits == "below" and len(label) == self.label_levels:
            if not below or not is_split_name(below[0]):
                raise RowError(
                    "split_folders: below expects a folder train, val or test below the label, here is "
                    + (f"'{below[0]}'" if below else "none")
                )
            split = split_name(below.pop(0))
        return Placed(split, label, tuple(below))


def has_splits_on_top(source: FolderSource, names: Iterable[str]) -> bool:
    """Whether the folders on top of a source, by the paths of its images, hold splits."""
    if source.split_folders is not None:
        return source.split_folders == "above"
    top = {name.split("/", 1)[0] for name in names if "/" in name}
    return bool(top) and all(map(is_split_name, top))


def layout_of(source: FolderSource, names: Sequence[str]) -> Layout:
    """The layout of a folder, from the relative paths of its images.

    Unless ``split_folders`` says where the splits are, they are above the labels where every folder on top is called
    as a split. Errors: a layout that would be learned wrongly is a DataError that names the key to set: split folders
    beside others, splits below the labels, labels called like splits or folds.
    """
    levels = source.label_levels
    if source.split_folders is not None:
        return Layout(source.split_folders, levels)
    if has_splits_on_top(source, names):
        return Layout("above", levels)
    folders_at: dict[int, set[str]] = defaultdict(set)
    for folders in {name.rpartition("/")[0] for name in names}:
        for level, folder in enumerate(folders.split("/")[: levels + 1] if folders else ()):
            folders_at[level].add(folder)
    _refuse_splits_beside_others(source, folders_at[0])
    for level in range(1, levels + 1):
        _refuse_splits_at(source, folders_at[level], level, names)
    if levels:
        _refuse_parts_as_labels(source, folders_at[0])
    return Layout("none", levels)


def _refuse_splits_beside_others(source: FolderSource, top: set[str]) -> None:
    splits = {name for name in top if is_split_name(name)}
    if splits:
        others = sorted(top - splits)
        raise DataError(
            f"source '{source.name}': {source.path} holds split folders ({', '.join(sorted(splits))}) beside others "
            f"({some(others, 5)}); put the others inside the splits, leave them out (exclude: [{others[0]}]), or point "
            "the source elsewhere. Where all of them are labels, set split_folders: none."
        )


def _refuse_splits_at(source: FolderSource, found: set[str], level: int, names: Sequence[str]) -> None:
    """Refuse folders of several splits at a level that is a label's, or the first below labels."""
    splits = sorted(name for name in found if is_split_name(name))
    if len({split_name(name) for name in splits}) < 2:
        return
    example = next(name for name in names if name.count("/") > level and is_split_name(name.split("/")[level]))
    advice = [f"if they hold the splits of the {_label_folders(level)} above them, set split_folders: below"]
    if level != source.label_levels:
        advice[0] += f" and label_levels: {level}"
    if example.count("/") > level + 1:
        above = "/".join(example.split("/")[:level])
        advice.append(f"if the labels lie below them, give {source.path}/{above} as the path, one source for each")
    advice.append("if these names mean no splits, set split_folders: none")
    raise DataError(
        f"source '{source.name}': {source.path} holds folders that are called like splits ({', '.join(splits)}) where "
        f"{'labels are expected' if level < source.label_levels else 'the label has been named already'}, as in "
        f"{example}; " + "; ".join(advice) + "."
    )


def _label_folders(level: int) -> str:
    return "label folders" if level == 1 else f"{level} levels of label folders"


def _refuse_parts_as_labels(source: FolderSource, labels: set[str]) -> None:
    """Refuse labels that differ in a split word alone (train_images, test_images), or that are folds."""
    parts = _alike_but_for_the_split(labels)
    if parts:
        advice = "rename them to train, val and test, or give each as a source of its own with split: train and so on"
    elif len(labels) > 1 and all(_FOLD.fullmatch(label) for label in labels):
        parts = sorted(labels)
        advice = "give each as a source of its own, with split: train, val or test"
    if parts:
        raise DataError(
            f"source '{source.name}': the folders {some(parts, 5)} in {source.path} look like parts of a data set, not "
            f"like labels; {advice}. If they are labels, set split_folders: none."
        )


def _alike_but_for_the_split(folders: Iterable[str]) -> list[str]:
    """Folders whose names differ in a split word alone, as train_images and test_images."""
    alike: dict[str, list[str]] = defaultdict(list)
    for folder in sorted(folders):
        rest = _JOINED_SPLIT_WORD.sub(r"*\2", _SPLIT_WORD.sub("*", folder))
        if rest != folder:
            alike[rest.lower()].append(folder)
    return next((found for found in alike.values() if len(found) > 1), [])


def layout_notes(
    source: FolderSource, layout: Layout, names: Sequence[str], *, beside: Sequence[str] = ()
) -> list[str]:
    """What looks as if ``path`` were a level too high or too low, where it may also be right.

    ``beside`` are the names of the folders that lie beside the source's own.
    """
    notes = []
    own = source.path.rstrip("/").rpartition("/")[2]
    other_splits = sorted(name for name in beside if is_split_name(name) and name != own)
    if is_split_name(own) and other_splits and source.split is None and layout.splits == "none":
        notes.append(
            f"{source.path} is called like a split, and {', '.join(other_splits)} beside it is not read; give the "
            f"folder above as the path, or say which split it is (split: {split_name(own)})."
        )
    below: dict[tuple[str, ...], set[str]] = defaultdict(set)
    for name in names:
        try:
            placed = layout.place(name)
        except RowError:
            continue
        if placed.label and len(placed.label) == layout.label_levels:
            below[placed.label].update(placed.below[:1])
    labels = sorted("/".join(label) for label in below)
    if len(labels) > 1 and all(_PATIENT.fullmatch(label.rpartition("/")[2]) for label in labels):
        notes.append(
            f"the labels are called like patients ({some(labels, 3)}); if they are, give the folder above as the path, "
            "and set group_by: folder."
        )
    named = set().union(*below.values())
    if layout.splits == "none" and (parts := _alike_but_for_the_split(named)):
        notes.append(
            f"the folders {some(parts, 5)} below the labels look like splits and are not read so; name them train, val "
            "and test, and set split_folders: below."
        )
    # Folders of patients have numbers in their names; these look like words.
    words = sorted(folder for folder in named if not _NUMBER.search(folder))
    if len(words) > 1 and len(words) == len(named):
        shown = some(words, 5)
        if len(below) == 1:
            (label,) = below
            notes.append(
                f"all images have the label '{'.'.join(label)}', and below it lie the folders {shown}; if these are "
                f"the labels, give {source.path}/{'/'.join(label)} as the path, or set label_levels: "
                f"{layout.label_levels + 1}."
            )
        elif all(folders == named for folders in below.values()):
            notes.append(
                f"the folders {shown} lie below each of the {len(below)} labels; if these are the labels, give each of "
                f"the folders above as a source, or set label_levels: {layout.label_levels + 1}."
            )
    return notes
