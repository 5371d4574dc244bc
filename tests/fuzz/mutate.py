"""Damages valid inputs, seeded, and holds what reads them to its bounds of time and memory."""

from __future__ import annotations

import contextlib
import copy
import random
import re
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from consilium.core.errors import ConsiliumError

MEMORY = 512 * 2**20  # bytes that reading may take beyond what the process has
SECONDS = 20.0  # for one input, on a busy machine
WORD = re.compile(rb'"[^"\n]*"|[\w.]+|\[[^\[\]\n]*\]|\{[^{}\n]*\}')
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


Damage = Callable[[bytes], bytes]
# Values of every type, for the place of one in a tree of lists and mappings.
VALUES: Sequence[Any] = (
    *(
        None,
        True,
        False,
        0,
        -1,
        2,
        0.5,
        1e300,
        10**30,
        float("nan"),
        float("inf"),
        "",
        " ",
        "x",
        "5",
        "train",
        "a.b",
        ".",
    ),
    *(
        [],
        {},
        [[]],
        ["x"],
        [1, 2],
        [None],
        {"a": 1},
        {"kind": "folder"},
        {"path": "x"},
        {"bytes": "x"},
        {"bytes": 5},
        "\0",
    ),
)


def change_value(tree: Any, random: random.Random) -> None:
    """One value somewhere in a tree becomes another, goes, or comes again under another key."""
    places = [(tree, key) for key in (tree if isinstance(tree, dict) else range(len(tree)))]
    for container, key in places:
        inner = container[key]
        if isinstance(inner, dict | list):
            places += [(inner, each) for each in (inner if isinstance(inner, dict) else range(len(inner)))]
    if not places:
        return
    container, key = random.choice(places)
    how = random.random()
    if how < 0.7:
        container[key] = copy.deepcopy(random.choice(VALUES))
    elif how < 0.85:
        del container[key]
    else:
        other, place = random.choice(places)
        other[place] = copy.deepcopy(container[key])


class Mutator:
    """Yields inputs that are one to four small damages away from a valid one.

    Some damages know the ``tokens`` of a form; ``own`` are damages that only it has.
    """

    def __init__(
        self,
        corpus: Sequence[bytes],
        tokens: Sequence[bytes],
        *,
        seed: int,
        own: Sequence[Callable[[bytes, random.Random], bytes]] = (),
    ) -> None:
        self.corpus, self.tokens = list(corpus), list(tokens)
        self.random = random.Random(seed)
        self._damages: list[Damage] = [
            *(partial(self._own, damage) for damage in own),
            self._flip,
            self._flip,
            self._insert,
            self._truncate,
            self._delete,
            self._duplicate,
            self._move,
            self._token,
            self._token,
            self._token,
            self._splice,
            self._number,
        ]

    def inputs(self, count: int) -> Iterator[bytes]:
        """``count`` inputs."""
        for _ in range(count):
            data = self.random.choice(self.corpus)
            for _ in range(self.random.choice((1, 1, 1, 2, 2, 3, 4))):
                data = self.random.choice(self._damages)(data)
            yield data

    def _place(self, data: bytes) -> int:
        return self.random.randint(0, len(data))

    def _span(self, data: bytes, longest: int = 64) -> tuple[int, int]:
        start = self._place(data)
        return start, min(len(data), start + self.random.randint(1, longest))

    def _own(self, damage: Callable[[bytes, random.Random], bytes], data: bytes) -> bytes:
        return damage(data, self.random)

    def _flip(self, data: bytes) -> bytes:
        changed = bytearray(data)
        for _ in range(self.random.choice((1, 1, 2, 8)) if data else 0):
            changed[self.random.randrange(len(data))] ^= 1 << self.random.randrange(8)
        return bytes(changed)

    def _insert(self, data: bytes) -> bytes:
        place = self._place(data)
        return data[:place] + self.random.randbytes(self.random.choice((1, 2, 4, 40))) + data[place:]

    def _truncate(self, data: bytes) -> bytes:
        return data[: self._place(data)]

    def _delete(self, data: bytes) -> bytes:
        start, end = self._span(data)
        return data[:start] + data[end:]

    def _duplicate(self, data: bytes) -> bytes:
        start, end = self._span(data)
        return data[:end] + data[start:end] * self.random.choice((1, 1, 2, 50)) + data[end:]

    def _move(self, data: bytes) -> bytes:
        start, end = self._span(data)
        rest, place = data[:start] + data[end:], self._place(data)
        return rest[:place] + data[start:end] + rest[place:]

    def _token(self, data: bytes) -> bytes:
        """A token put in, or in the place of a few bytes or of a whole word, number, quoted text or list."""
        words = [found.span() for found in WORD.finditer(data)] if self.random.random() < 0.5 else []
        if words:
            start, end = self.random.choice(words)
            return data[:start] + self.random.choice(self.tokens) + data[end:]
        place = self._place(data)
        end = place + self.random.choice((0, 0, 1, 4))
        return data[:place] + self.random.choice(self.tokens) + data[end:]

    def _splice(self, data: bytes) -> bytes:
        other = self.random.choice(self.corpus)
        return data[: self._place(data)] + other[self._place(other) :]

    def _number(self, data: bytes) -> bytes:
        """Bytes of a size or an offset set to an extreme."""
        place, width = self._place(data), self.random.choice((1, 2, 4, 8))
        return data[:place] + self.random.choice((b"\0", b"\xff", b"\x7f", b"\x80")) * width + data[place + width :]


def _memory(name: str) -> int:
    line = next(line for line in STATUS.read_text(encoding="ascii").splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


@contextlib.contextmanager
def _limited() -> Iterator[None]:
    """A process that may grow by a few times MEMORY: an input that wants more ends itself, not the machine."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (_memory("VmSize") + 4 * MEMORY, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def fuzz(check: Callable[[bytes], bool], mutator: Mutator, count: int) -> tuple[int, int]:
    """How many of ``count`` inputs were used and how many were refused: ``check`` says True or raises a ConsiliumError.

    Whatever else it raises, and whatever takes too much time or memory, fails with the input.
    """
    for data in mutator.corpus:
        assert check(data), f"not valid to begin with: {_shown(data)}"
    used = refused = 0
    measured = CLEAR.exists()
    with _limited() if measured else contextlib.nullcontext():
        for number, data in enumerate(mutator.inputs(count)):
            if measured:
                CLEAR.write_text("5", encoding="ascii")  # VmHWM counts anew
                before = _memory("VmRSS")
            start = time.monotonic()
            try:
                accepted = check(data)
            except ConsiliumError as error:
                str(error).encode()  # can be printed
                accepted = False
            except Exception as error:
                raise AssertionError(f"input {number} ends in {error!r}: {_shown(data)}") from error
            used, refused = used + accepted, refused + (not accepted)
            seconds = time.monotonic() - start
            assert seconds < SECONDS, f"input {number} takes {seconds:.0f} s: {_shown(data)}"
            if measured:
                grown = _memory("VmHWM") - before
                assert grown < MEMORY, f"input {number} takes {grown / 2**20:.0f} MiB: {_shown(data)}"
    return used, refused


def _shown(data: bytes) -> str:
    return f"{len(data)} bytes, {data[:1000]!r}"
