"""Labels from a table with one column per finding."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from consilium.data.case import RowError, looks_missing, scalar_text
from consilium.data.sources.config import Findings

_POSITIVE = frozenset({"1", "1.0", "true", "yes", "y", "t", "positive", "present"})
_NEGATIVE = frozenset({"", "0", "0.0", "-0.0", "false", "no", "n", "f", "negative", "absent"})
_UNCERTAIN = frozenset({"-1", "-1.0", "uncertain", "u"})
IGNORED = "a finding is uncertain (-1), so the case is unlabelled (columns.findings.uncertain: ignore)"


class FindingReader:
    """The findings of a row.

    Purpose: CheXpert, MIMIC-CXR, ISIC and others give each finding a column: 1 is there, 0 is not, empty is not
    mentioned, which counts as not there, and -1 is uncertain. What is uncertain counts as the config says, by the
    policies of Irvin et al. (CheXpert, AAAI 2019): U-Ones, U-Zeros or, for the case as a whole, U-Ignore.
    Errors: another value, and -1 without a policy, is a RowError.
    """

    def __init__(self, findings: Findings, *, used: Iterable[str]) -> None:
        self.findings = findings
        self._used = frozenset(used)
        self._known: dict[tuple[str, ...], dict[str, str]] = {}

    def columns(self, present: Sequence[str]) -> dict[str, str]:
        """The columns of findings among those present, each with the label that it stands for."""
        key = tuple(present)
        if key not in self._known:
            self._known[key] = {
                name: label for pattern in self.findings.columns for name, label in self._matching(pattern, key)
            }
        return self._known[key]

    def absent(self, present: Sequence[str]) -> str | None:
        """The first column or pattern that no column is meant by."""
        return next((name for name in self.findings.columns if not [*self._matching(name, present)]), None)

    def _matching(self, pattern: str, present: Sequence[str]) -> Iterable[tuple[str, str]]:
        if pattern in present:
            yield pattern, pattern
        elif "*" in pattern:
            parts = re.compile("(.+)".join(map(re.escape, pattern.split("*"))), re.DOTALL)
            for name in present:
                if name not in self._used and (found := parts.fullmatch(name)):
                    yield name, "_".join(found.groups())

    def labels(self, row: Mapping[str, Any]) -> tuple[list[str], bool]:
        """The findings that are there, and whether the case counts as unlabelled."""
        found, uncertain = [], False
        for column, label in self.columns(list(row)).items():
            text = scalar_text(row[column], f"finding '{column}'").lower()
            if text in _POSITIVE:
                found.append(label)
            elif text in _UNCERTAIN:
                uncertain = True
                if self.findings.uncertain is None:
                    raise RowError(
                        f"finding '{column}' is {text}, uncertain; say what that counts as in "
                        "columns.findings.uncertain: positive, negative, or ignore, which leaves the case unlabelled"
                    )
                found += [label] if self.findings.uncertain == "positive" else []
            elif text not in _NEGATIVE and not looks_missing(text):
                raise RowError(
                    f"finding '{column}' is '{text[:80]}'; expected 1 (there), 0 (not there), -1 (uncertain) or nothing"
                )
        if uncertain and self.findings.uncertain == "ignore":
            return [], True
        none = [] if self.findings.none is None else [self.findings.none]
        return found or none, False
