"""All guards on one table, in full for ``data inspect`` and in short before training."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TypeVar

import numpy as np
from pydantic import TypeAdapter

from consilium.core.files import fingerprint, locked, write_json
from consilium.core.reporter import Reporter
from consilium.data.config import DataConfig
from consilium.data.guards.digests import Digests, image_digests
from consilium.data.guards.folders import folder_warnings
from consilium.data.guards.labels import LabelConflict, label_conflicts, label_spellings, label_vocabularies
from consilium.data.guards.leaks import Leak, find_leaks, one_split
from consilium.data.guards.near_duplicates import NearDuplicates, Pair, find_near_duplicates
from consilium.data.guards.shortcuts import metadata_warnings, shortcut_warnings
from consilium.data.guards.texts import NamedLabel, named_labels, repeated_texts
from consilium.data.store.store import CaseTable, Store

VERSION = 3  # of what is kept in a store
NEAR_DUPLICATES = "near_duplicates"
ONE_SPLIT = "validation and test"
FoundT = TypeVar("FoundT", "Findings", NearDuplicates)
WHERE = "`consilium data inspect` lists all that was found, and draws near-duplicates."


@dataclass(frozen=True)
class Findings:
    """What the guards found in a table.

    ``warnings`` has messages by what they are about; ``notes`` what was not looked at, and why; ``near_duplicates``
    the pairs of rows with almost the same image, those of different splits first.
    """

    leaks: list[Leak] = field(default_factory=list)
    label_in_text: list[NamedLabel] = field(default_factory=list)
    label_conflicts: list[LabelConflict] = field(default_factory=list)
    warnings: dict[str, list[str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    near_duplicates: list[Pair] = field(default_factory=list)

    def messages(self) -> dict[str, list[str]]:
        """All messages, by what each is about."""
        return {
            "leak": [leak.message for leak in self.leaks],
            "label in text": [named.message for named in self.label_in_text],
            "labelled two ways": [conflict.message for conflict in self.label_conflicts],
            **self.warnings,
            "not looked at": self.notes,
        }

    def short(self) -> list[str]:
        """One line for each kind of finding, with its first example."""
        kinds: dict[tuple[str, str], list[str]] = {}
        for leak in self.leaks:
            kinds.setdefault(("leak", leak.kind), []).append(leak.message)
        kinds |= {(what, ""): messages for what, messages in self.messages().items() if messages and what != "leak"}
        lines = [
            f"{what}: {messages[0]}" + (f" And {len(messages) - 1} more like it." if len(messages) > 1 else "")
            for (what, _), messages in kinds.items()
        ]
        return [*lines, WHERE] if any(what != "not looked at" for what, _ in kinds) else lines


def check(
    store: Store,
    table: CaseTable,
    config: DataConfig,
    *,
    uses_text: bool,
    columns: Sequence[str] = (),
    images: bool = True,
    everything: bool = False,
    reporter: Reporter,
) -> Findings:
    """Look for all that ``config.guards`` names in ``table``, cases selected from ``store``.

    Purpose: what makes figures better than the model is, or labels worse than they could be, is said before anyone
    trusts either. ``uses_text`` says whether a model will read the texts; without it a label in its own text is no
    matter. ``columns`` are the metadata that it reads. ``images`` False leaves out what has to decode images, which is
    minutes for 100,000 of them. ``everything`` also looks at texts that no model reads, and for near-duplicates within
    a split. But with ``everything``, what was found is kept in the store, and free the next time that the same cases
    are looked at with the same settings.
    """
    if everything:
        return _look(
            store, table, config, uses_text=True, columns=columns, images=images, everything=True, reporter=reporter
        )
    settings = config.model_dump(mode="json", include=_READ)
    path = _place(store, table, "findings", [version("consilium"), settings, uses_text, [*columns], images])
    if (kept := _kept(path, _FINDINGS)) is None:
        look = partial(_look, uses_text=uses_text, columns=columns, images=images, everything=False, reporter=reporter)
        kept = look(store, table, config)
        _keep(path, _FINDINGS, kept)
    return kept


def _look(
    store: Store,
    table: CaseTable,
    config: DataConfig,
    *,
    uses_text: bool,
    columns: Sequence[str],
    images: bool,
    everything: bool,
    reporter: Reporter,
) -> Findings:
    guards = config.guards
    across, within = NearDuplicates([]), NearDuplicates([])
    warnings = folder_warnings(store, table, config, headers=images, reporter=reporter)
    looks = guards.near_duplicates or guards.shortcuts
    if looks and images and len(table.view_column("name")[0]):
        with _alone(store):
            digests = image_digests(store, progress=partial(reporter.progress, "look at images"))
            if guards.shortcuts:
                warnings["shortcut"] = shortcut_warnings(table, digests)
            if guards.near_duplicates:
                across = _near_duplicates(store, table, digests, across_splits=True, reporter=reporter)
                if everything:
                    within = _near_duplicates(store, table, digests, across_splits=False, reporter=reporter)
    if guards.shortcuts:
        warnings["shortcut in metadata"] = metadata_warnings(table, columns)
    known = {(pair.a, pair.b) for pair in across.pairs}
    pairs = across.pairs + [pair for pair in within.pairs if (pair.a, pair.b) not in known]
    notes = list(dict.fromkeys([*across.notes, *within.notes]))
    if looks and not images:
        notes.append("images, since only a part of the cases is used; a training on all of them looks at them.")
    conflicts: list[LabelConflict] = []
    if guards.labels:
        conflicts = label_conflicts(table, near_duplicates=[(pair.a, pair.b) for pair in pairs])
        warnings["spelling"] = label_spellings(label for own in table.labels for label in own)
        warnings["vocabulary"] = label_vocabularies(table)
    named: list[NamedLabel] = []
    if guards.label_in_text and uses_text:
        templated = {source.name for source in config.sources if source.captions.template}  # say labels by intention
        written = table.select(np.flatnonzero([source not in templated for source in table.sources]))
        found = named_labels(written, synonyms=guards.synonyms)
        named, notes = found.found, notes + found.notes
        warnings["repeated texts"] = repeated_texts(written)
    leaks = find_leaks(table, near_duplicates=[(pair.a, pair.b) for pair in across.pairs])
    warnings[ONE_SPLIT] = one_split(table, leaks)
    return Findings(leaks, named, conflicts, warnings, notes, pairs)


def look_up(store: Store, table: CaseTable, config: DataConfig) -> Findings:
    """The leaks of ``table`` that are found without opening an image: groups, files, and, where ``on_leak`` is drop,
    the near-duplicates that a training kept in the store, so that what it dropped is dropped again."""
    if config.on_leak != "drop" or not config.guards.near_duplicates or not len(table.view_column("name")[0]):
        leaks = find_leaks(table)
        return Findings(leaks, warnings={ONE_SPLIT: one_split(table, leaks)})
    found = _kept(_place(store, table, NEAR_DUPLICATES, True), _PAIRS)
    if found is None:
        why = "images; a training that drops almost the same images may have left out more of train and val."
        return Findings(find_leaks(table), notes=[why])
    pairs = [(pair.a, pair.b) for pair in found.pairs]
    return Findings(find_leaks(table, near_duplicates=pairs), notes=found.notes)


def _place(store: Store, table: CaseTable, what: str, settings: object) -> Path:
    """Where the near-duplicates, or all findings, of these rows in these splits are kept."""
    rows = hashlib.sha256(table.store_rows.tobytes() + "\n".join(table.splits).encode()).hexdigest()
    key = fingerprint([VERSION, store.manifest.fingerprint, store.manifest.created, rows, settings])
    return store.path / f"{what}-{key}.json"


def _kept(path: Path, form: TypeAdapter[FoundT]) -> FoundT | None:
    try:
        return form.validate_json(path.read_bytes())
    except (OSError, ValueError):
        return None  # not looked for yet, or half of a file that somebody copied


def _keep(path: Path, form: TypeAdapter[FoundT], found: FoundT) -> None:
    with contextlib.suppress(OSError):  # a store that is only read, or a full disk
        write_json(path, form.dump_python(found, mode="json"))


def _near_duplicates(
    store: Store, table: CaseTable, digests: Digests, *, across_splits: bool, reporter: Reporter
) -> NearDuplicates:
    """The pairs, kept in the store for the next time."""
    path = _place(store, table, NEAR_DUPLICATES, across_splits)
    if (kept := _kept(path, _PAIRS)) is None:
        progress = partial(reporter.progress, "compare images")
        kept = find_near_duplicates(table, digests, across_splits=across_splits, progress=progress)
        _keep(path, _PAIRS, kept)
    return kept


_FINDINGS, _PAIRS = TypeAdapter(Findings), TypeAdapter(NearDuplicates)
_READ = {
    "sources", "split", "rename_labels", "filters", "guards", "on_leak", "pseudo_labels", "strip_label_mentions"
}  # fmt: skip


@contextlib.contextmanager
def _alone(store: Store) -> Iterator[None]:
    """Hold off the other processes of a training: one looks at the images, the others read what it found."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # a store that is only read
            stack.enter_context(locked(store.path / ".guards.lock"))
        yield
