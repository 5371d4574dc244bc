"""What the groups of a data set say about its splits."""

from __future__ import annotations

from collections.abc import Sequence

from consilium.data.sources.config import RowSource, Source


def one_group(groups: Sequence[str], sources: Sequence[Source]) -> str | None:
    """A sentence where all cases are of one group, which is in one split as a whole; None where there are several."""
    if len(groups) < 2 or len(set(groups)) > 1:
        return None
    named = [
        f"'{source.columns.group}' (source '{source.name}')" for source in sources if isinstance(source, RowSource)
    ]
    column = f", which comes from the column {' and '.join(named)}" if named else ""
    return f"all {len(groups):,} cases are of one group, '{groups[0]}'{column}; a group stays in one split."
