"""One thing labelled two ways: an image with two labels, a label in two spellings, a data set in two vocabularies."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from consilium.core.reporter import some
from consilium.data.guards.leaks import clusters
from consilium.data.store.store import CaseTable

# Parts that stand at several places of one tree, each time for the rest of something else.
COMMON_PARTS = {"background", "healthy", "misc", "none", "normal", "oth", "other", "rest", "unknown"}
# What tells the parts of one data set from each other, in the names of sources.
PART_WORDS = {"train", "training", "val", "valid", "validation", "test", "testing", "part", "fold", "v", "version"}
_SEPARATOR = re.compile(r"(?<=[^\W_])[\s_.-]+(?=[^\W_])")
# Letters of the Cyrillic and the Greek alphabet that look like Latin ones.
_LOOK_ALIKE = str.maketrans(
    "АВЕЅІЈКМНОРСТХУаеѕіјорсхуΑΒΕΖΗΙΚΜΝΟΡΤΥΧοιν",
    "ABESIJKMHOPCTXYaesijopcxyABEZHIKMNOPTYXoiv",
)
_NO_LETTERS = re.compile(r"[\W\d_]+")


@dataclass(frozen=True)
class LabelConflict:
    """Cases of one image that are labelled in different ways; ``ids`` and ``labels`` go together."""

    ids: tuple[str, ...]
    labels: tuple[str, ...]
    message: str


def label_conflicts(table: CaseTable, *, near_duplicates: Sequence[tuple[int, int]] = ()) -> list[LabelConflict]:
    """Images that are in several cases with different labels.

    Purpose: one of the labels is wrong, or two classes overlap; no model can learn both. An image is known by its
    bytes, or by ``near_duplicates``, confirmed pairs of rows; of these, pairs within one group are left aside, since
    neighbouring frames of a video may truly differ. All labels of a multi-label case count together; a case without
    any contradicts nothing.
    """
    by_file: dict[str, dict[int, None]] = defaultdict(dict)
    for row, digest in table.file_hashes():
        if table.labels[row]:
            by_file[digest][row] = None
    found = [
        _conflict(table, list(rows), "the same file")
        for rows in by_file.values()
        if len({_label(table, row) for row in rows}) > 1
    ]
    differing = [
        (a, b)
        for a, b in near_duplicates
        if table.labels[a] and table.labels[b] and _label(table, a) != _label(table, b) and not _one_group(table, a, b)
    ]
    return found + [_conflict(table, rows, "almost the same image") for rows in clusters(differing)]


def _label(table: CaseTable, row: int) -> str:
    return "|".join(sorted(table.labels[row]))


def _one_group(table: CaseTable, a: int, b: int) -> bool:
    return (table.sources[a], table.groups[a]) == (table.sources[b], table.groups[b])


def _conflict(table: CaseTable, rows: Sequence[int], what: str) -> LabelConflict:
    ids_of: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        ids_of[_label(table, row)].append(table.ids[row])
    told = [f"'{label}' ({some(ids, 2)})" for label, ids in ids_of.items()]
    message = f"{what} is labelled {some(told, 4)}; correct one, or leave both out."
    return LabelConflict(tuple(table.ids[row] for row in rows), tuple(_label(table, row) for row in rows), message)


def label_spellings(labels: Iterable[str]) -> list[str]:
    """Labels that may be one: they differ only in case, spaces, dashes, underscores, dots, accents or a plural, or in
    what is not seen: the Unicode form of a letter, a letter of another alphabet, a space without width.

    A label that is the end of another's path (``melanoma`` and ``skin.melanoma``) may be the same one too, unless it
    is one of ``COMMON_PARTS``; ``ct.head`` and ``mri.head`` are two.
    """
    counts = Counter(labels)
    names = sorted(counts)
    by_key: dict[str, list[int]] = defaultdict(list)
    for number, name in enumerate(names):
        by_key[_key(name)].append(number)
    links = [same for same in by_key.values() if len(same) > 1]
    for number, name in enumerate(names):
        parts = name.split(".")
        for start in range(1, len(parts)):
            end = _key(".".join(parts[start:]))
            if end not in COMMON_PARTS:
                links += [[number, other] for other in by_key.get(end, []) if other != number]
    return [
        f"the labels {some(_told([names[number] for number in found], counts), 5)} may be spellings of one; if so, "
        "write them alike."
        for found in clusters(links)
    ]


def spelled_alike(label: str, labels: Iterable[str]) -> list[str]:
    """Those of the labels that may be another spelling of one; see ``label_spellings``."""
    key = _key(label)
    return [other for other in labels if _key(other) == key]


def _told(names: Sequence[str], counts: Mapping[str, int]) -> list[str]:
    """Labels with their cases; those that look the same also with their letters written out."""
    looks = Counter(map(_look, names))
    return [f"'{name}' ({counts[name]}" + (f", written {name!a})" if looks[_look(name)] > 1 else ")") for name in names]


def _look(label: str) -> str:
    """What a label looks like on a screen."""
    plain = unicodedata.normalize("NFKC", label).translate(_LOOK_ALIKE)
    return " ".join("".join(sign for sign in plain if unicodedata.category(sign) != "Cf").split())


def _key(label: str) -> str:
    """What spellings of one label have in common; digits that were apart stay apart."""
    letters = (sign for sign in unicodedata.normalize("NFKD", _look(label)) if not unicodedata.combining(sign))
    words = [_singular(word) for word in _SEPARATOR.split("".join(letters).casefold())]
    key = words[0]
    for word in words[1:]:
        key += f" {word}" if key[-1:].isdigit() and word[:1].isdigit() else word
    return key


def _singular(word: str) -> str:
    if len(word) <= 3 or not word.endswith("s") or word.endswith(("ss", "us", "is")):
        return word
    return f"{word[:-3]}y" if word.endswith("ies") else word[:-1]


def label_vocabularies(table: CaseTable) -> list[str]:
    """Parts of one data set, by the names of their sources, that have no label in common.

    ``ham_train`` and ``ham_test``, or ``isic2019`` and ``isic2020``, each with several labels: one of them probably
    names the same classes in another way.
    """
    labels_of: dict[str, set[str]] = defaultdict(set)
    for source, labels in zip(table.sources, table.labels, strict=True):
        labels_of[source].update(labels)
    named = {source: _data_set(source) for source, labels in labels_of.items() if len(labels) > 1}
    return [
        f"the sources '{a}' and '{b}' seem to be parts of one data set but have no label in common "
        f"({some(sorted(labels_of[a]), 3)}; {some(sorted(labels_of[b]), 3)}); if they share classes, name them alike."
        for a, b in combinations(sorted(named), 2)
        if named[a] == named[b]
        and not {_key(label) for label in labels_of[a]} & {_key(label) for label in labels_of[b]}
    ]


def _data_set(source: str) -> str:
    """The name of a source without split words, versions and numbers; itself where nothing else is in it."""
    words = [word for word in _NO_LETTERS.split(source.casefold()) if word and word not in PART_WORDS]
    return " ".join(words) or source
