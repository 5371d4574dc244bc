"""Plain values out of a pickle, by reading its instructions: no unpickler runs, so nothing in it is ever called."""

from __future__ import annotations

import pickletools
from typing import Any

from consilium.data.case import RowError, printable

_VALUES = frozenset(  # each puts the value beside it on the stack
    {
        *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
        *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "STRING", "BINSTRING", "SHORT_BINSTRING"),
        *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
    }
)
_TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_MARK = object()


def plain_value(pickled: bytes) -> Any:
    """The text, bytes, number or tuple of these in a pickle; anything else in it is a RowError."""
    stack: list[Any] = []
    memo: dict[Any, Any] = {}
    try:
        for code, argument, _ in pickletools.genops(pickled):
            if code.name in _VALUES:
                stack.append(argument)
            elif code.name in _TUPLES:
                _join(stack, len(stack) - _TUPLES[code.name], marks=0)
            elif code.name == "MARK":
                stack.append(_MARK)
            elif code.name == "TUPLE":
                _join(stack, len(stack) - 1 - stack[::-1].index(_MARK), marks=1)
            elif code.name in ("MEMOIZE", "PUT", "BINPUT", "LONG_BINPUT"):
                memo[len(memo) if code.name == "MEMOIZE" else int(argument or 0)] = stack[-1]
            elif code.name in ("GET", "BINGET", "LONG_BINGET"):
                stack.append(memo[argument])
            elif code.name not in ("PROTO", "FRAME", "STOP"):
                raise RowError(_refused(code.name, argument, stack))
        (value,) = stack
    except (ValueError, IndexError, KeyError) as error:  # what genops raises, or a pickle that does not add up
        if isinstance(error, RowError):
            raise
        raise RowError(f"it is a pickle that is cut short or damaged ({error})") from None
    if value is _MARK:
        raise RowError("it is a pickle that is cut short or damaged (it ends within a tuple)")
    return value


def _join(stack: list[Any], start: int, *, marks: int) -> None:
    """Make a tuple of what is on the stack from ``start`` on, behind its ``marks``."""
    items = tuple(stack[start + marks :])
    if start < 0 or _MARK in items:
        raise ValueError("a tuple of nothing")
    stack[start:] = [items]


def _refused(code: str, argument: Any, stack: list[Any]) -> str:
    """What a pickle holds that is not read."""
    named = " ".join(map(str, stack[-2:])) if code == "STACK_GLOBAL" else argument
    if code in ("GLOBAL", "STACK_GLOBAL", "INST"):
        what = f"calls or names Python code ({printable(str(named).replace(' ', '.'))[:80]})"
    else:
        what = f"holds more than text, bytes, numbers and tuples ({code})"
    return f"it is a pickle that {what}; nothing in a pickle is ever run. Write the LMDB again from its TSV and JSONL"
