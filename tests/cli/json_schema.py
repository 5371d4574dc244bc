"""Just enough of JSON Schema (draft 2020-12) to judge a value by what pydantic writes."""

from __future__ import annotations

import re
from typing import Any

_TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
}
_SILENT = {"title", "description", "default", "$defs", "discriminator", "examples"}
_BOUNDS = {
    "minimum": lambda value, bound: value >= bound,
    "maximum": lambda value, bound: value <= bound,
    "exclusiveMinimum": lambda value, bound: value > bound,
    "exclusiveMaximum": lambda value, bound: value < bound,
}
_LENGTHS = {"minLength": str, "minItems": list, "maxLength": str, "maxItems": list, "minProperties": dict}


def problems(value: Any, schema: dict[str, Any], *, root: dict[str, Any] | None = None, place: str = "$") -> list[str]:
    """What is wrong with ``value``; a keyword that is not known here is an error of the test."""
    root = schema if root is None else root
    found: list[str] = []
    for keyword, rule in schema.items():
        found += _judge(value, keyword, rule, schema, root, place)
    return found


def _judge(value: Any, keyword: str, rule: Any, schema: dict[str, Any], root: dict[str, Any], place: str) -> list[str]:
    wrong = [f"{place}: {value!r} against {keyword} {rule!r}"]
    number = isinstance(value, int | float) and not isinstance(value, bool)
    match keyword:
        case "$ref":
            return problems(value, root["$defs"][rule.removeprefix("#/$defs/")], root=root, place=place)
        case "anyOf" | "oneOf":
            fits = sum(not problems(value, option, root=root, place=place) for option in rule)
            return [] if fits == 1 or (fits and keyword == "anyOf") else wrong
        case "type":
            fits_type = isinstance(value, _TYPES[rule]) and (rule == "boolean" or not isinstance(value, bool))
            return [] if fits_type or (rule == "integer" and isinstance(value, float) and value.is_integer()) else wrong
        case "const":
            return [] if value == rule else wrong
        case "enum":
            return [] if value in rule else wrong
        case "pattern":
            return wrong if isinstance(value, str) and not re.search(rule, value) else []
        case "properties" if isinstance(value, dict):
            parts = [problems(value[k], rule[k], root=root, place=f"{place}.{k}") for k in value if k in rule]
            return [problem for part in parts for problem in part]
        case "required" if isinstance(value, dict):
            return [f"{place}: {key} is missing" for key in rule if key not in value]
        case "additionalProperties" if isinstance(value, dict):
            others = [key for key in value if key not in schema.get("properties", {})]
            if rule is False:
                return [f"{place}: {key} is not known" for key in others]
            parts = (
                []
                if rule is True
                else [problems(value[key], rule, root=root, place=f"{place}.{key}") for key in others]
            )
            return [problem for part in parts for problem in part]
        case "items" if isinstance(value, list):
            start = len(schema.get("prefixItems", []))
            parts = [problems(item, rule, root=root, place=f"{place}[]") for item in value[start:]]
            return [problem for part in parts for problem in part]
        case "prefixItems" if isinstance(value, list):
            parts = [problems(i, s, root=root, place=f"{place}[]") for i, s in zip(value, rule, strict=False)]
            return [problem for part in parts for problem in part]
        case _ if keyword in _BOUNDS:
            return wrong if number and not _BOUNDS[keyword](value, rule) else []
        case _ if keyword in _LENGTHS:
            measured = isinstance(value, _LENGTHS[keyword])
            short = keyword.startswith("min")
            return wrong if measured and (len(value) < rule if short else len(value) > rule) else []
        case "properties" | "required" | "additionalProperties" | "items" | "prefixItems":
            return []
        case _:
            assert keyword in _SILENT, f"{place}: the keyword {keyword} is not known"
            return []
