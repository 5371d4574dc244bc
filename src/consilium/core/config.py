"""Config files: YAML in, one frozen pydantic tree out, and errors that name the key."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from consilium.core.errors import ConfigError


class Config(BaseModel):
    """Base of every config section: immutable, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False)


ConfigT = TypeVar("ConfigT", bound=Config)
_PYDANTIC_PART = re.compile(r"(function-|is-instance|tuple|list|dict|literal|constrained)\S*")
_VARIABLE = re.compile(r"\$\{(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?::-(?P<default>[^}]*))?\}")


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses duplicate keys and reads 1e-4 as a number."""


def _mapping_without_duplicates(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: dict[Any, yaml.Node] = {}
    for key_node, _ in node.value:
        key = loader.construct_object(key_node)
        if key in seen:
            where = key_node.start_mark
            raise ConfigError(f"{where.name}:{where.line + 1}: the key '{key}' is given twice; keep one of them.")
        seen[key] = key_node
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping_without_duplicates)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9][0-9_]*)(?:\.[0-9_]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


def parse_yaml(text: str, *, origin: str) -> Any:
    """The value of a YAML text; ``origin`` names it in errors."""
    loader = _Loader(text)
    loader.name = origin
    try:
        return loader.get_single_data()
    except yaml.YAMLError as error:
        raise ConfigError(f"{origin} is not valid YAML: {error}") from error
    finally:
        loader.dispose()


def read_tree(path: Path, *, _parents: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The mapping in a YAML file with ``extends`` layered and ``${VAR}`` replaced."""
    path = path.expanduser()
    if path.resolve() in _parents:
        chain = " -> ".join(str(p) for p in (*_parents, path))
        raise ConfigError(f"`extends` runs in a circle: {chain}. Remove one of these links.")
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"config file {path} does not exist; give the path of a YAML file.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"config file {path} cannot be read: {error}") from error
    tree = parse_yaml(text, origin=str(path)) or {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{path} holds a {type(tree).__name__}; a config is a mapping of sections.")
    tree = _replace_variables(tree, origin=str(path))
    bases = tree.pop("extends", [])
    merged: dict[str, Any] = {}
    for base in [bases] if isinstance(bases, str) else bases:
        merged = merge(merged, read_tree(path.parent / str(base), _parents=(*_parents, path.resolve())))
    return merge(merged, tree)


def merge(base: Mapping[str, Any], later: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` overlaid by ``later``, key by key; lists and scalars are replaced whole."""
    result = dict(base)
    for key, value in later.items():
        old = result.get(key)
        replaces = "kind" in value and isinstance(old, Mapping) and old.get("kind") != value["kind"] \
            if isinstance(value, Mapping) else True
        result[key] = value if replaces or not isinstance(old, Mapping) else merge(old, value)
    return result


def apply_overrides(tree: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """``tree`` with ``a.b=value`` overrides applied; values are read as YAML."""
    result = dict(tree)
    for override in overrides:
        dotted, sign, text = override.partition("=")
        if not sign or not dotted:
            raise ConfigError(f"override '{override}' has no value; write it as section.key=value.")
        value = _replace_variables(parse_yaml(text, origin=f"override {dotted}"), origin=f"override {dotted}")
        result = _set(result, dotted.strip().split("."), value, dotted)
    return result


def _set(node: Any, keys: list[str], value: Any, dotted: str) -> Any:
    if not keys:
        return value
    head, rest = keys[0], keys[1:]
    if isinstance(node, list):
        if not head.isdigit() or int(head) >= len(node):
            raise ConfigError(f"override '{dotted}': '{head}' is not an index of a list with {len(node)} items.")
        return [_set(item, rest, value, dotted) if i == int(head) else item for i, item in enumerate(node)]
    node = node if isinstance(node, Mapping) else {}
    return {**node, head: _set(node.get(head), rest, value, dotted)}


def _replace_variables(value: Any, *, origin: str) -> Any:
    if isinstance(value, dict):
        return {key: _replace_variables(item, origin=origin) for key, item in value.items()}
    if isinstance(value, list):
        return [_replace_variables(item, origin=origin) for item in value]
    if not isinstance(value, str) or "${" not in value:
        return value

    def lookup(match: re.Match[str]) -> str:
        found = os.environ.get(match["name"], match["default"])
        if found is None:
            raise ConfigError(
                f"{origin}: the environment variable {match['name']} is not set; "
                f"set it or write ${{{match['name']}:-default}}."
            )
        return found

    return _VARIABLE.sub(lookup, value)


def build(model: type[ConfigT], tree: Mapping[str, Any], *, origin: str) -> ConfigT:
    """``tree`` as a validated ``model``; every problem is listed with its config path."""
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        lines = [_explain(model, dict(problem)) for problem in error.errors()]
        raise ConfigError(f"{origin}:\n" + "\n".join(f"  - {line}" for line in lines)) from None


def _explain(model: type[BaseModel], problem: dict[str, Any]) -> str:
    # pydantic puts the tag of a discriminated union into the location; it is not a key the user wrote.
    keys, section = _walk(model, list(problem["loc"]))
    dotted = ".".join(str(key) for key in keys)
    if problem["type"] == "extra_forbidden":
        parent = ".".join(str(key) for key in keys[:-1]) or "the config"
        return f"`{keys[-1]}` is not a key of `{parent}`{nearest(str(keys[-1]), section)}"
    if problem["type"] == "missing":
        return f"`{dotted}` is missing; it has no default, so give it a value."
    if problem["type"].startswith("union_tag"):
        context = problem.get("ctx", {})
        return f"`{dotted}`: kind '{context.get('tag', '(none)')}' is not one of {context.get('expected_tags', '')}."
    came = problem["input"]
    shown = repr(came) if not isinstance(came, (dict, list)) or len(repr(came)) < 60 else f"a {type(came).__name__}"
    message = problem["msg"].removeprefix("Value error, ")
    return f"`{dotted or 'config'}`: {message} (came: {shown})."


def _walk(model: type[BaseModel], location: list[Any]) -> tuple[list[Any], list[str]]:
    """The user's keys along a pydantic location, and the field names of the section the last one is in."""
    keys: list[Any] = []
    sections: list[type[BaseModel]] = [model]
    fields = list(model.model_fields)
    for part in location:
        tagged = [m for m in sections if isinstance(part, str) and _kind(m) == part]
        if tagged and not any(part in m.model_fields for m in sections):
            sections = tagged
            continue
        if isinstance(part, str) and _PYDANTIC_PART.fullmatch(part):
            continue
        keys.append(part)
        if sections:
            fields = sorted({name for m in sections for name in m.model_fields})
        if not isinstance(part, int):
            annotations = [m.model_fields[part].annotation for m in sections if part in m.model_fields]
            sections = [found for annotation in annotations for found in _models_in(annotation)]
    return keys, fields


def _kind(model: type[BaseModel]) -> str | None:
    field = model.model_fields.get("kind")
    return None if field is None else next(iter(get_args(field.annotation)), None)


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in _models_in(argument)]


def nearest(key: str, names: Sequence[str]) -> str:
    """The end of a message about an unknown name: the nearest known one, or else all of them."""
    close = difflib.get_close_matches(key, names, n=1, cutoff=0.6)
    return f"; did you mean `{close[0]}`?" if close else f"; it is one of: {', '.join(names)}."


def to_yaml(config: Config) -> str:
    """The resolved config as YAML, in the order of the fields."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=100)
