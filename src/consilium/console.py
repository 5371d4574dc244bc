"""A Reporter for people: lines above progress bars in a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from types import TracebackType
from typing import IO, cast

from rich.console import Console as RichConsole
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from consilium.core.reporter import Reporter, Silent
from consilium.core.surroundings import Screen


class Console:
    """Shows lines and bars; a context manager, so that the terminal is left clean.

    ``beside_answers``: on stderr, since stdout holds answers that another program may read.
    """

    def __init__(self, *, beside_answers: bool = False) -> None:
        stream = sys.stderr if beside_answers else sys.stdout
        self._console = RichConsole(highlight=False, soft_wrap=True, file=cast("IO[str]", Screen(stream)))
        self._bars: dict[str, TaskID] = {}
        self._progress = Progress(
            TextColumn("{task.description:<12}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[text]}"),
            console=self._console,
            transient=False,
            disable=not _draws_bars(self._console),
        )

    def __enter__(self) -> Console:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def line(self, text: str) -> None:
        """Show a line above the bars."""
        self._console.print(text, markup=False)

    def progress(self, name: str, done: int, total: int | None, text: str = "") -> None:
        """Move a bar; a finished one stays as it is, and the name may be used again."""
        if name not in self._bars:
            self._bars[name] = self._progress.add_task(name, total=total, text=text)
        self._progress.update(self._bars[name], completed=done, total=total, text=text)
        if total is not None and done >= total:
            self._progress.stop_task(self._bars.pop(name))


def _draws_bars(console: RichConsole) -> bool:
    """Whether bars can move: in a terminal, and in a notebook that has the widgets for it."""
    return find_spec("ipywidgets") is not None if console.is_jupyter else console.is_terminal


@contextlib.contextmanager
def reporting(reporter: Reporter | None, *, quiet: bool) -> Iterator[Reporter]:
    """What a call from Python reports to: nothing if it is to be ``quiet``, else ``reporter``, else the screen."""
    if quiet:
        yield Silent()
    elif reporter is not None:
        yield reporter
    else:
        with Console() as console:
            yield console
