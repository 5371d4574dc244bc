"""Splits for cross-validation: folds of whole groups, and sources or other values left out."""

from __future__ import annotations

from consilium.data.config import SplitConfig
from consilium.data.store import CaseTable


def resplit(table: CaseTable, *, config: SplitConfig) -> CaseTable:
    """The cases in the splits of the fold, or of what is left out, that the config names; else as they were."""
    if config.folds is None and config.leave_out is None:
        return table
    raise NotImplementedError
