"""A label that stands in its own text, and texts that stand on both sides of a split."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from consilium.data.case import SPLITS
from consilium.data.store.store import CaseTable

AT_LEAST = 0.05  # of a label's texts
TIMES = 3.0  # as often as in the texts of other labels
REPEATED = 0.2  # of the texts of a split
_WORD = re.compile(r"[^\W_]+")
_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z][a-z])")
Term = tuple[str, ...]


@dataclass(frozen=True)
class NamedLabel:
    """A label, or a branch of the tree, that its own texts name.

    ``term`` is the word that gives it away most often: in ``share`` of its texts, in ``elsewhere`` of all others.
    ``terms`` has all such words, ``shares`` per split the share of its texts with any of them; ``example`` is the id
    of a case.
    """

    label: str
    term: str
    share: float
    elsewhere: float
    terms: tuple[str, ...]
    shares: dict[str, float]
    example: str
    message: str


@dataclass(frozen=True)
class NamedLabels:
    """What ``named_labels`` found, and the words of ``data.guards.synonyms`` that belong to no label."""

    found: list[NamedLabel]
    notes: list[str]


def named_labels(table: CaseTable, *, synonyms: Mapping[str, Sequence[str]]) -> NamedLabels:
    """The labels whose name gives them away in their own texts.

    Purpose: a report that says "melanoma" makes the label melanoma easy, and the figures worth nothing where such
    a text is not at hand before the diagnosis. Looked for are, for each label and each branch of the tree: its last
    part as a phrase, each of its words of three letters or more, and its ``synonyms`` (by the label, its last part or
    the branch). Words count whole, in any case, in the singular and the simple plural, with and without a hyphen.
    "No melanoma" names it too. A term leaks where it is in at least two texts of the label and in a share of them that
    is above 3 times its share in the texts of all others, plus 5 %; a word that occurs with all labels alike does not.
    Cases without text or label have no part. Cost: one pass over the words.
    """
    rows = [row for row, text in enumerate(table.texts) if text and table.labels[row]]
    nodes_of = {labels: frozenset(_nodes(labels)) for labels in {table.labels[row] for row in rows}}
    terms_of, notes = _terms(set().union(*nodes_of.values()), synonyms)
    rows_with = _rows_with(table, rows, {term for terms in terms_of.values() for term in terms})
    rows_of: dict[str, list[int]] = defaultdict(list)
    for row in rows:
        for node in nodes_of[table.labels[row]]:
            rows_of[node].append(row)
    found = []
    for node, terms in sorted(terms_of.items()):
        inside, outside = len(rows_of[node]), len(rows) - len(rows_of[node])
        leaking: list[tuple[float, float, Term]] = []
        for term in terms:
            own = sum(node in nodes_of[table.labels[row]] for row in rows_with[term])
            share, elsewhere = own / inside, (len(rows_with[term]) - own) / max(outside, 1)
            if outside and own >= 2 and share >= TIMES * elsewhere + AT_LEAST:
                leaking.append((share, elsewhere, term))
        if leaking:
            naming = {row for *_, term in leaking for row in rows_with[term]}.intersection(rows_of[node])
            found.append(_named(table, node, leaking, members=rows_of[node], naming=sorted(naming)))
    return NamedLabels(found, notes)


def naming(table: CaseTable, rows: Sequence[int], phrases: Mapping[str, Sequence[str]]) -> dict[str, int]:
    """In how many of the rows a text has one of the phrases of each name; words count as in ``named_labels``."""
    terms_of = {name: {term for phrase in own if (term := _words(phrase))} for name, own in phrases.items()}
    rows_with = _rows_with(table, rows, {term for terms in terms_of.values() for term in terms})
    return {name: len({row for term in terms for row in rows_with[term]}) for name, terms in terms_of.items()}


def label_phrases(labels: Iterable[str], synonyms: Mapping[str, Sequence[str]]) -> tuple[list[str], list[str]]:
    """All that names one of the labels or a branch above them, as in ``named_labels``; notes on unused synonyms."""
    terms_of, notes = _terms(set(_nodes(labels)), synonyms)
    return sorted({" ".join(term) for terms in terms_of.values() for term in terms}), notes


def _nodes(labels: Iterable[str]) -> Iterable[str]:
    """The labels and all branches above them."""
    for label in labels:
        parts = label.split(".")
        for length in range(1, len(parts) + 1):
            yield ".".join(parts[:length])


def _terms(nodes: set[str], synonyms: Mapping[str, Sequence[str]]) -> tuple[dict[str, set[Term]], list[str]]:
    """What each label or branch is called, and the synonyms that belong to none."""
    more = {_words(name): [_words(other) for other in others] for name, others in synonyms.items()}
    used: set[Term] = set()
    terms_of: dict[str, set[Term]] = {}
    for node in nodes:
        name = _words(node.rpartition(".")[2])
        terms = {name, ("".join(name),), *((word,) for word in name if len(word) > 2)}
        for key in {name, _words(node)} & set(more):
            used.add(key)
            terms.update(more[key])
        terms_of[node] = {term for term in terms if len("".join(term)) > 1 and not "".join(term).isdigit()}
    unused = [name for name in synonyms if _words(name) not in used]
    return terms_of, [f"data.guards.synonyms names '{name}', which is no label and no part of one." for name in unused]


def _words(text: str) -> Term:
    return tuple(_WORD.findall(_CAMEL.sub(" ", text).casefold()))


class Finder:
    """Finds terms in texts: whole words in any case, singular and simple plural, with and without a hyphen."""

    def __init__(self, terms: Iterable[Term]) -> None:
        self._terms_of: dict[Term, list[Term]] = {}  # by what is looked for: the plural stands for its term
        for term in terms:
            for last in _forms(term[-1]):
                self._terms_of.setdefault((*term[:-1], last), []).append(term)
        self._lengths: dict[str, set[int]] = {}  # of what begins with a word
        for form in self._terms_of:
            self._lengths.setdefault(form[0], set()).add(len(form))

    @classmethod
    def of_phrases(cls, phrases: Iterable[str]) -> Finder:
        """Of terms that are written as texts."""
        return cls({term for phrase in phrases if (term := _words(phrase))})

    def of(self, text: str) -> set[Term]:
        """The terms that a text has."""
        text = text.casefold()
        words = _WORD.findall(text)
        if "-" in text:  # x-ray is also xray
            words += ["", *_WORD.findall(text.replace("-", ""))]
        found: set[Term] = set()
        if self._lengths.keys().isdisjoint(words):
            return found
        for position, word in enumerate(words):
            for length in self._lengths.get(word, ()):
                found.update(self._terms_of.get(tuple(words[position : position + length]), ()))
        return found


def _rows_with(table: CaseTable, rows: Sequence[int], terms: set[Term]) -> dict[Term, list[int]]:
    """The rows whose text has each term."""
    finder = Finder(terms)
    rows_with: dict[Term, list[int]] = {term: [] for term in terms}
    for row in rows:
        for term in finder.of("\n".join(table.captions(row))):
            rows_with[term].append(row)
    return rows_with


def _forms(word: str) -> set[str]:
    """A word, and its plural."""
    return {word, f"{word}s", f"{word}es", f"{word[:-1]}ies"} if word[-1:] == "y" else {word, f"{word}s", f"{word}es"}


def _named(
    table: CaseTable,
    node: str,
    leaking: list[tuple[float, float, Term]],
    *,
    members: Sequence[int],
    naming: Sequence[int],
) -> NamedLabel:
    leaking.sort(key=lambda found: (-found[0], -len(found[2]), found[2]))
    share, elsewhere, first = leaking[0]
    terms = tuple(" ".join(term) for *_, term in leaking)
    texts, with_name = Counter(table.splits[row] for row in members), Counter(table.splits[row] for row in naming)
    shares = {split: with_name[split] / texts[split] for split in SPLITS if texts[split]}
    by_split = ", ".join(f"{split} {value:.0%}" for split, value in shares.items())
    message = (
        f"'{terms[0]}' is in {share:.0%} of the texts of '{node}' and in {elsewhere:.0%} of all others "
        f"({f'with {len(terms) - 1} more words: ' if len(terms) > 1 else ''}{by_split}; such as case "
        f"{table.ids[naming[0]]}); take such sentences out (data.strip_label_mentions: true), or use a text that is "
        "written before the label is known."
    )
    return NamedLabel(node, " ".join(first), share, elsewhere, terms, shares, table.ids[naming[0]], message)


def repeated_texts(table: CaseTable) -> list[str]:
    """How many texts of val and test stand word for word in train, where that are many: templates.

    A model of texts is then judged on what it has seen. Case, punctuation and spaces do not count.
    """
    plain: dict[str, list[str]] = defaultdict(list)
    for row, split in enumerate(table.splits):
        plain[split] += [" ".join(_WORD.findall(text.casefold())) for text in table.captions(row)]
    seen = set(plain["train"])
    warnings = []
    for split in ("val", "test"):
        again = Counter(text for text in plain[split] if text in seen)
        if plain[split] and again.total() >= REPEATED * len(plain[split]):
            (example, _), *_ = again.most_common(1)
            warnings.append(
                f"{again.total() / len(plain[split]):.0%} of the texts of {split} are in train too, word for word "
                f"(most often '{example[:60]}'); figures on texts then say little."
            )
    return warnings
