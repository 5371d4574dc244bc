"""Errors of a config in words: each names the key, what came and what was expected."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel

from consilium.core.moved import MOVED
from consilium.core.reporter import some

SHOWN = 30  # of known names, where none is near


_EXPECTED = {
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "string_type": "text",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "a section of keys",
    "model_type": "a section of keys",
    "model_attributes_type": "a section of keys",
    "greater_than": "a number above {gt:g}",
    "greater_than_equal": "a number of {ge:g} or more",
    "less_than": "a number below {lt:g}",
    "less_than_equal": "a number of {le:g} or less",
    "string_too_short": "text of {min_length} or more characters",
    "string_pattern_mismatch": "text that matches {pattern}",
    "too_short": "{min_length} or more items",
    "too_long": "no more than {max_length} items",
}


@dataclass(frozen=True)
class _Place:
    """Where a problem is: the user's keys, the value there, the config models of its section and of itself.

    ``others`` are the kinds that the section might have, but has not.
    """

    keys: tuple[str, ...]
    value: Any
    parents: list[type[BaseModel]]
    others: list[type[BaseModel]]
    models: list[type[BaseModel]]

    @property
    def dotted(self) -> str:
        return ".".join(self.keys)


def explain(model: type[BaseModel], tree: Mapping[str, Any], problems: Sequence[dict[str, Any]]) -> list[str]:
    """One line per place; alternatives of one place (a number or text) are joined by 'or'."""
    places = [_place(model, tree, problem) for problem in problems]
    deeper = {place.keys[:depth] for place in places for depth in range(len(place.keys))}
    lines: list[str] = []
    expected: dict[tuple[str, ...], list[str]] = {}
    for place, problem in zip(places, problems, strict=True):
        line = _about_keys(place, problem)
        if line is not None:
            lines.append(line)
        elif not (place.keys in deeper and isinstance(place.value, (dict, list))):
            # Of the alternatives of a union only the one that the user chose is told: it has a problem inside.
            expected.setdefault(place.keys, []).append(_about_value(place, problem))
    for place in places:
        words = expected.pop(place.keys, None)
        if words is not None:
            lines.append(f"`{place.dotted}` is {shown(place.value)}; expected {' or '.join(dict.fromkeys(words))}.")
    return lines


def _about_keys(place: _Place, problem: Mapping[str, Any]) -> str | None:
    """The line about a key that is unknown or missing, or about what a section's own check said."""
    kinds = [kind for model in place.models for kind in _kinds(model)]
    match problem["type"]:
        case "extra_forbidden" if place.dotted in MOVED:
            return f"`{place.dotted}` has moved: write it as `{MOVED[place.dotted]}`."
        case "extra_forbidden":
            parent = f"`{'.'.join(place.keys[:-1])}`" if len(place.keys) > 1 else "the config"
            fields = sorted({field for model in place.parents for field in model.model_fields})
            key, others = place.keys[-1], [model for model in place.others if place.keys[-1] in model.model_fields]
            if not others:
                return f"`{key}` is not a key of {parent}{nearest(key, fields)}"
            section = ".".join(place.keys[:-1])
            fitting = " or ".join(f"`{section}.kind: {kind}`" for model in others for kind in _kinds(model))
            return f"`{key}` is not a key of {parent}; it is one of: {some(fields, SHOWN)}. It is a key of {fitting}."
        case "missing" if isinstance(problem["loc"][-1], str):
            return f"`{place.dotted}` is missing; it has no default, so give it a value."
        case "union_tag_not_found":
            return f"`{place.dotted}`: `kind` is missing; it is one of {', '.join(kinds)}."
        case "union_tag_invalid":
            kind = str(problem["ctx"]["tag"])
            return f"`{place.dotted}.kind` is {shown(kind)}, which does not exist{nearest(kind, kinds)}"
        case "value_error":
            said = problem["msg"].removeprefix("Value error, ")
            return f"`{place.dotted or 'the config'}`: {said}" + ("" if said.endswith(("?", ".")) else ".")
    return None


def _about_value(place: _Place, problem: Mapping[str, Any]) -> str:
    """What a value should have been."""
    context = problem.get("ctx", {})
    kinds = [kind for model in place.models for kind in _kinds(model)]
    match problem["type"]:
        case "literal_error":
            words = re.findall(r"'([^']*)'", context["expected"])
            close = difflib.get_close_matches(str(place.value), words, n=1)
            one_of = f"one of {', '.join(words)}" if len(words) > 1 else words[0]
            return one_of + (f" (did you mean {close[0]}?)" if close else "")
        case "missing":
            return "more items"
        case "string_type" if isinstance(place.value, (bool, int, float)):
            return "text (put it in quotes)"
        case "model_attributes_type" | "model_type" if len(kinds) > 1:
            return f"a section of keys with `kind`: {', '.join(kinds)}"
    template = _EXPECTED.get(problem["type"])
    return str(problem["msg"]) if template is None else template.format(**context)


def _place(model: type[BaseModel], tree: Mapping[str, Any], problem: Mapping[str, Any]) -> _Place:
    """Follow a pydantic location down the tree.

    Pydantic mixes tags of unions and names of types into a location: what is not in the tree is not a key.
    """
    keys: list[str] = []
    value: Any = tree
    models: list[type[BaseModel]] = [model]
    parents: list[type[BaseModel]] = []
    others: list[type[BaseModel]] = []
    is_mapping = False
    location = problem["loc"]
    for depth, part in enumerate(location):
        if part in value if isinstance(value, dict) else isinstance(value, list) and part in range(len(value)):
            inner = value[part]
        elif problem["type"] == "missing" and depth == len(location) - 1 and isinstance(part, str):
            inner = None
        else:
            continue
        chosen = _chosen(models, value)
        keys.append(str(part))
        if is_mapping:  # this part is a name, and below it is what the mapping holds
            is_mapping = False
        elif not isinstance(part, int):
            parents, others = chosen, [model for model in models if model not in chosen]
            fields = [c.model_fields[part].annotation for c in chosen if part in c.model_fields]
            models = [found for annotation in fields for found in models_in(annotation)]
            is_mapping = any(get_origin(annotation) is dict for annotation in fields)
        value = inner
    return _Place(tuple(keys), value, parents, others, models)


def _chosen(models: list[type[BaseModel]], section: Any) -> list[type[BaseModel]]:
    """Those of a union that the section's ``kind`` names; all when it names none."""
    kind = section.get("kind") if isinstance(section, dict) else None
    return [model for model in models if kind in _kinds(model)] or models


def _kinds(model: type[BaseModel]) -> tuple[str, ...]:
    """The names by which a choice finds a model; none where ``kind`` is a key like others."""
    field = model.model_fields.get("kind")
    return get_args(field.annotation) if field is not None and get_origin(field.annotation) is Literal else ()


def models_in(annotation: Any) -> list[type[BaseModel]]:
    """The config models of a field: several where it is a choice by ``kind``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in models_in(argument)]


def shown(value: Any) -> str:
    """A value as a message shows it."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else f"a long {'section' if isinstance(value, dict) else type(value).__name__}"


def nearest(name: str, known: Sequence[str], *, there: str = "it is one of") -> str:
    """The end of a message about an unknown name: the nearest known one, or else those that are ``there``."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"; did you mean `{close[0]}`?" if close else f"; {there}: {some(known, SHOWN) or 'none'}."
