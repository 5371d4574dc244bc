"""What is around a command: the locale, the screen, signals. None of them may end or change the work."""

from __future__ import annotations

import codecs
import contextlib
import io
import os
import signal
import sys
from collections.abc import Iterator
from typing import IO, Any, NoReturn, cast

from consilium.core.errors import ConfigError


def use_utf8() -> None:
    """Read file names and write text as UTF-8 whatever the locale is: else labels and splits would depend on it."""
    if codecs.lookup(sys.getfilesystemencoding()).name != "utf-8":
        os.environ["PYTHONUTF8"] = "1"  # for what this process starts
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def require_utf8() -> None:
    """Refuse to read file names in another encoding; the command line sees to it, a program of its own must."""
    encoding = sys.getfilesystemencoding()
    if codecs.lookup(encoding).name != "utf-8":
        raise ConfigError(
            f"this Python takes file names for {encoding}, by the locale; labels and splits would be others than on "
            "other machines. Start it with the environment variable PYTHONUTF8=1, or as `python -X utf8`."
        )


class Screen:
    """A text stream that replaces what it cannot show; when its reader goes away, the work goes on."""

    def __init__(self, stream: IO[str] | None) -> None:
        self._stream = stream
        self._gone = stream is None  # standard output may be closed from the start

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Show the text, if somebody is there."""
        encoding = getattr(self._stream, "encoding", None) or "utf-8"
        if not self._gone and self._stream is not None:
            with self._leaving():
                self._stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
        return len(text)

    def flush(self) -> None:
        """Show what was written."""
        if not self._gone and self._stream is not None:
            with self._leaving():
                self._stream.flush()

    @contextlib.contextmanager
    def _leaving(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError):  # ValueError: the stream was closed
            self._gone = True
            discard(self._stream)


def discard(stream: IO[str] | None) -> None:
    """Let what is still written to a stream whose reader is gone go nowhere, also when Python ends."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, cast("IO[str]", stream).fileno())
        os.close(nowhere)


def say(text: str) -> None:
    """A line on standard error."""
    screen = Screen(sys.stderr)
    screen.write(f"{text}\n")
    screen.flush()


def end_without_reader() -> NoReturn:
    """Exit where the reader of what was printed (``| head``) has seen enough."""
    discard(sys.stdout)
    sys.exit(128 + signal.SIGPIPE)  # what a shell gives for other programs


@contextlib.contextmanager
def signals_as_ctrl_c() -> Iterator[None]:
    """SIGTERM, SIGHUP and SIGUSR1 end a command as Ctrl-C does, unless they are ignored (as under nohup)."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    numbers = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
    taken = [number for number in numbers if signal.getsignal(number) == signal.SIG_DFL]
    for number in taken:
        signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_DFL)
