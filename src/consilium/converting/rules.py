"""What becomes of a parameter of another script: its rule, and the outcome of the rule for a value."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Kind = Literal["mapped", "changed", "needless", "unmapped"]


@dataclass(frozen=True)
class Given:
    """All parameters of a call or file by their names, and on how many devices the script ran."""

    values: Mapping[str, Any]
    processes: int = 1


@dataclass(frozen=True)
class Outcome:
    """``ours``: values by dotted key. ``run``: a command, with {config} and {bundle}, in the place of keys."""

    kind: Kind = "mapped"
    ours: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""
    run: str = ""


Rule = Callable[[Any, Given], Outcome]


@dataclass(frozen=True)
class Needless:
    """The rule of a parameter that has no meaning here; the reason stands in docs/parameters.md, too."""

    reason: str

    def __call__(self, value: Any, given: Given) -> Outcome:
        """The reason, whatever the value."""
        return Outcome("needless", note=self.reason)


@dataclass(frozen=True)
class Family:
    """A script: its parameters, and what is true of all its trainings.

    ``needs``: of each tuple at least one parameter is given. ``ours`` are values by dotted key that hold whatever is
    given, ``usual`` the script's own values of what is left out. ``switches`` are flags that stand without a value.
    ``reads_file``: it takes its parameters from a YAML or JSON file, which ``file_flag`` names in a call. Parameters
    with dots in their names lie in sections of it; ``sections`` gives other places of sections, and where they belong.
    """

    script: str
    table: Mapping[str, Rule]
    needs: tuple[tuple[str, ...], ...]
    ours: Mapping[str, Any]
    usual: Mapping[str, Any] = field(default_factory=dict)
    switches: frozenset[str] = frozenset()
    reads_file: bool = False
    file_flag: str | None = None
    sections: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()  # of what this version cannot do yet

    def parameters(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The values of a file by the names of parameters: those in sections with dots."""
        found: dict[str, Any] = {}
        for key, value in values.items():
            dotted = self.sections.get(key, key)
            inside = [name for name in self.table if name.startswith(f"{dotted}.")]
            if inside and isinstance(value, Mapping):
                found |= self.parameters({f"{dotted}.{name}": own for name, own in value.items()})
            elif value is not None or not inside:
                found[dotted] = value
        return found


def same(value: Any) -> Any:
    """The value as it is; null is none."""
    if value is None:
        raise ValueError("expected a value")
    return value


def number(value: Any) -> float:
    """A number, also as text."""
    if isinstance(value, bool):
        raise ValueError("expected a number")
    try:
        return float(value)
    except (TypeError, ValueError):
        raise ValueError("expected a number") from None


def whole(value: Any) -> int:
    """A whole number, also as text."""
    found = number(value)
    if not found.is_integer():
        raise ValueError("expected a whole number")
    return int(found)


def truth(value: Any) -> bool:
    """true or false, in the spellings of argparse and YAML."""
    words = {"true": True, "yes": True, "1": True, "on": True, "false": False, "no": False, "0": False, "off": False}
    found = words.get(str(value).lower())
    if found is None:
        raise ValueError("expected true or false")
    return found


def text(value: Any) -> str:
    """A text that says something."""
    if not isinstance(value, str | int | float) or isinstance(value, bool) or not str(value).strip():
        raise ValueError("expected text")
    return str(value)


def as_name(given: str) -> str:
    """A text as a name of a run or source: other letters than a folder may have become _."""
    return "".join(one if one.isascii() and (one.isalnum() or one in "._-") else "_" for one in given)


def to(*keys: str, make: Callable[[Any], Any] = same, note: str = "") -> Rule:
    """The value, as ``make`` reads it, in these keys of ours."""
    return lambda value, given: Outcome(ours=dict.fromkeys(keys, make(value)), note=note)


def where_true(ours: Mapping[str, Any], *, note: str = "") -> Rule:
    """These keys of ours where the value is true; where it is false ours are so by themselves."""
    return lambda value, given: Outcome(ours=ours if truth(value) else {}, note=note)


def one_of(key: str, names: Mapping[str, str]) -> Rule:
    """The key with our name for one of theirs; a name without one cannot be mapped."""

    def rule(value: Any, given: Given) -> Outcome:
        if (found := names.get(str(value))) is not None:
            return Outcome(ours={key: found})
        return Outcome("unmapped", note=f"{key} has nothing like it; of theirs it knows {', '.join(names)}")

    return rule


def every(value: Any) -> str:
    """Steps, or below 1 a share of the training, as the transformers Trainer counts."""
    found = number(value)
    if found <= 0:
        raise ValueError("expected a number above 0")
    return f"{round(100 * found, 6):.10g} %" if found < 1 else f"{whole(found)} steps"
