"""The reference of all keys, written from the config models when the guides are built (see ``conf.py``)."""

from __future__ import annotations

import inspect
import json
import types
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from consilium.core.files import write_text
from consilium.experiment import Experiment

_WORDS = {
    bool: "true or false",
    int: "whole number",
    float: "number",
    str: "text",
    types.NoneType: "null",
    Any: "anything",
}
_LIMITS = (("ge", "{} or more"), ("gt", "above {}"), ("le", "at most {}"), ("lt", "below {}"))
_HEAD = """# All keys

Every key of an experiment: its type, its default and what it means, written from the program itself.
[Configuration](../configuration.md) says how files, overrides and keys work together. A section with a `kind` takes
the keys of that kind only. In a list, 0 stands for the first item, as on the command line.
"""


@dataclass(frozen=True)
class Key:
    """One key; ``default`` is None where a value must be given."""

    path: str
    type: str
    default: str | None
    description: str


@dataclass(frozen=True)
class Section:
    """One section, or one kind of it, with its keys; a section in it is a key too."""

    path: str
    kinds: tuple[str, ...]
    description: str
    keys: tuple[Key, ...]


def sections(model: type[BaseModel] = Experiment, *, path: str = "", several: bool = False) -> Iterator[Section]:
    """``model`` and every section in it, in the order of their fields; ``several``: it is one kind of some."""
    keys, inner = [], []
    for name, field in model.model_fields.items():
        dotted = f"{path}.{name}" if path else name
        models = _models(field.annotation)
        if models:
            keys.append(_section_key(dotted, field, models))
            place = dotted + {list: ".0", dict: ".NAME"}.get(get_origin(field.annotation), "")
            inner += [(found, place, len(models) > 1) for found in models]
        elif name != "kind" or not several:
            keys.append(Key(dotted, _type(field), _default(field), field.description or ""))
    yield Section(path, _kinds(model) if several else (), inspect.getdoc(model) or "", tuple(keys))
    for found, place, more in inner:
        yield from sections(found, path=place, several=more)


def resolves(dotted: str, model: type[BaseModel] = Experiment) -> bool:
    """Whether a dotted key exists; a list takes numbers, a mapping any name."""
    return _resolves(dotted.split("."), model)


def markdown() -> str:
    """The whole reference."""
    # Sources of several kinds share sections: each is told once.
    return "\n".join([_HEAD, *map(_section_text, dict.fromkeys(sections()))])


def write(path: Path) -> None:
    """Write the reference, if it is not there or differs (so that an unchanged page is not built again)."""
    text = markdown()
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        write_text(path, text)


def _section_text(section: Section) -> str:
    name = f"`{section.path}`" if section.path else "At the top"
    kinds = f", kind: {' or '.join(section.kinds)}" if section.kinds else ""
    lines = [f"## {name}{kinds}", "", section.description.replace("``", "`"), ""]
    lines += ["| key | type | default | meaning |", "|---|---|---|---|"]
    for key in section.keys:
        default = "required" if key.default is None else key.default
        cells = (f"`{key.path}`", key.type, default, key.description.replace("``", "`"))
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join([*lines, ""])


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in _models(argument)]


def _resolves(parts: list[str], annotation: Any) -> bool:
    if not parts:
        return True
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        field = annotation.model_fields.get(parts[0])
        return field is not None and _resolves(parts[1:], field.annotation)
    if get_origin(annotation) in (list, tuple):
        return parts[0].isdigit() and any(_resolves(parts[1:], argument) for argument in get_args(annotation))
    if get_origin(annotation) is dict:
        return _resolves(parts[1:], get_args(annotation)[1])
    return any(_resolves(parts, argument) for argument in get_args(annotation))


def _kinds(model: type[BaseModel]) -> tuple[str, ...]:
    return get_args(model.model_fields["kind"].annotation)


def _section_key(dotted: str, field: FieldInfo, models: list[type[BaseModel]]) -> Key:
    """A section as a row of the section around it; ``default`` is what holds where it is left out."""
    kinds = [f"`{kind}`" for model in models for kind in _kinds(model)] if len(models) > 1 else []
    words = {list: "list of sections", dict: "section for each name"}.get(get_origin(field.annotation), "section")
    if bool in get_args(field.annotation):
        words = f"{_words(bool)}, or section"
    first_line = (inspect.getdoc(models[0]) or "").partition("\n")[0]
    about = f"`kind` is {_or(kinds)}." if kinds else field.description or first_line
    if field.is_required():
        return Key(dotted, words, None, about)
    if not isinstance(field.default, BaseModel):
        return Key(dotted, words, _default(field), about)
    changed = field.default.model_dump(mode="json", exclude_defaults=True)
    if kinds:
        changed = {"kind": field.default.kind, **changed}
    return Key(dotted, words, ", ".join(f"`{key}: {value}`" for key, value in changed.items()), about)


def _type(field: FieldInfo) -> str:
    return _with_limits(_words(field.annotation), field.metadata)


def _words(annotation: Any) -> str:
    """A type as a person would say it."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if annotation in _WORDS:
        return _WORDS[annotation]
    if origin is Literal:
        return _or([f"`{value}`" for value in arguments])
    if origin in (Union, types.UnionType):
        return _or([_words(argument) for argument in arguments])
    if origin is Annotated:
        limits = [item for given in arguments[1:] for item in getattr(given, "metadata", [given])]
        return _with_limits(_words(arguments[0]), limits)
    if origin is tuple:
        return f"[{', '.join(_words(argument) for argument in arguments)}]"
    if origin is list:
        return f"list of {_words(arguments[0])}"
    if origin is dict:
        return f"{_words(arguments[1])} for each name"
    raise TypeError(f"no words for {annotation}")


def _or(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


def _with_limits(words: str, metadata: list[Any]) -> str:
    found = []
    for name, text in _LIMITS:
        for limit in (getattr(item, name, None) for item in metadata):
            if limit is not None:
                found.append(text.format(f"{limit:,}" if isinstance(limit, int) else f"{limit:g}"))
    return f"{words} ({', '.join(found)})" if found else words


def _default(field: FieldInfo) -> str | None:
    return None if field.is_required() else _value(field.default)


def _value(value: Any) -> str:
    if isinstance(value, float | tuple) and not isinstance(value, bool):
        numbers = value if isinstance(value, tuple) else (value,)
        text = ", ".join(f"{number:.4g}" if isinstance(number, float) else str(number) for number in numbers)
        return f"`[{text}]`" if isinstance(value, tuple) else f"`{text}`"
    text = value if isinstance(value, str) and value else json.dumps(value, default=str)
    return f"`{text}`"
