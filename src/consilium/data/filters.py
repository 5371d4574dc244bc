"""Which of the prepared cases are used: by label, source, text and number, in one documented order."""

from __future__ import annotations

from dataclasses import dataclass, field

from consilium.data.config import FilterConfig
from consilium.data.store import CaseTable


@dataclass(frozen=True)
class Filtered:
    """The cases that are left, and what each filter took away."""

    table: CaseTable
    notes: list[str] = field(default_factory=list)


def filtered(table: CaseTable, *, config: FilterConfig, seed: int) -> Filtered:
    """The cases of ``table`` that all filters keep."""
    if config != FilterConfig():
        raise NotImplementedError
    return Filtered(table)
