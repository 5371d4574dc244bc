"""Config files: YAML in, one frozen pydantic tree out, and errors that name the key."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError

from consilium.core.errors import ConfigError
from consilium.core.explain import explain, models_in, shown
from consilium.core.explain import nearest as nearest  # of use wherever a name is looked up
from consilium.core.nearby import looked_for
from consilium.core.places import is_remote, join, parent, read_bytes


class Config(BaseModel):
    """Base of every config section: immutable, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False)


def _on_a_disk(path: str) -> str:
    if is_remote(path):
        raise ValueError(
            f"{path} is an address, but memory maps, locks and whole renames need a disk; give a folder of this "
            "machine (sources are read from buckets, and output.copy_to copies a finished run into one)"
        )
    return path


LocalFolder = Annotated[str, AfterValidator(_on_a_disk)]
ConfigT = TypeVar("ConfigT", bound=Config)
MAX_NODES = 1_000_000  # values of a config; a few lines of aliases to aliases can stand for billions
_VARIABLE = re.compile(r"\$\{(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?::-(?P<default>[^}]*))?\}")


class _Loader(yaml.SafeLoader):
    """SafeLoader whose keys are text as written, each given once; 1e-4 is a number.

    What YAML 1.1 reads in a way that nobody expects is text as written: 010 (8), 1:30 (90), no (false), 2026-01-31.
    A key that wants a number or a truth takes it from such a text: 010 is ten, and no is false.
    """


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[str, Any]:
    lines: dict[str, int] = {}
    for key_node, _ in node.value:
        key, line = str(key_node.value), key_node.start_mark.line + 1
        if key in lines:
            where = f"{key_node.start_mark.name}:{line}"
            raise ConfigError(f"{where}: the key '{key}' is given twice, first in line {lines[key]}; keep one.")
        lines[key] = line
    loader.flatten_mapping(node)  # `<<: *anchor`; an own key comes later and wins
    return {str(key_node.value): loader.construct_object(value, deep=True) for key_node, value in node.value}


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)
_LIKE_YAML_12 = {
    "bool": r"^(?:true|True|TRUE|false|False|FALSE)$",
    "int": r"^[-+]?(?:0b[01_]+|0x[0-9a-fA-F_]+|0|[1-9][0-9_]*)$",
    "float": r"^(?:[-+]?(?:0|[1-9][0-9_]*)\.[0-9_]*(?:[eE][-+][0-9]+)?|\.[0-9][0-9_]*(?:[eE][-+][0-9]+)?"
    r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$",
}
_Loader.yaml_implicit_resolvers = {
    first: [
        (tag, re.compile(_LIKE_YAML_12[kind]) if kind in _LIKE_YAML_12 else pattern)
        for tag, pattern in resolvers
        if (kind := tag.rpartition(":")[2]) not in ("value", "timestamp")  # = and dates
    ]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


class _Dumper(yaml.SafeDumper):
    """SafeDumper that quotes what ``_Loader`` would not read back as the same text."""

    def represent_str(self, data: str) -> yaml.ScalarNode:
        quoted = any(line_break in data for line_break in "\x85\u2028\u2029")
        return self.represent_scalar("tag:yaml.org,2002:str", data, style='"' if quoted else None)


_Dumper.add_representer(str, _Dumper.represent_str)
for _side in (_Loader, _Dumper):  # YAML 1.1 wants a dot in the mantissa and a sign in the exponent
    _side.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"^[-+]?(?:0|[1-9][0-9_]*)(?:\.[0-9_]*)?[eE][-+]?[0-9]+$"),
        list("-+0123456789"),
    )


def parse_yaml(text: str, *, origin: str) -> Any:
    """The value of a YAML text; ``origin`` names it in errors."""
    try:
        loader = _Loader(text)
    except yaml.YAMLError as error:  # a character that YAML does not know
        raise ConfigError(f"{origin} is not valid YAML: {error}") from error
    loader.name = origin
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        if _written_out(node, {}) > MAX_NODES:
            raise ConfigError(
                f"{origin} is refused: with its aliases (*name) written out it has more than {MAX_NODES:,} values."
            )
        return loader.construct_document(node)
    except (yaml.YAMLError, ValueError, LookupError, TypeError, AttributeError) as error:
        # PyYAML raises its own errors for most; the others come from a tag or an escape that does not fit its value.
        raise ConfigError(f"{origin} is not valid YAML: {error}") from error
    except RecursionError:
        raise ConfigError(f"{origin} is refused: it is nested too deeply, or an alias (*name) holds itself.") from None
    finally:
        loader.dispose()


def _written_out(node: yaml.Node, known: dict[int, int]) -> int:
    """How many values a node holds where every alias counts like what it stands for."""
    if id(node) not in known:
        inner = node.value if isinstance(node, yaml.CollectionNode) else ()
        nodes = [each for item in inner for each in (item if isinstance(item, tuple) else (item,))]
        known[id(node)] = 1 + sum(_written_out(each, known) for each in nodes)
    return known[id(node)]


def read_tree(path: str | Path, *, _parents: tuple[str, ...] = ()) -> dict[str, Any]:
    """The mapping in a YAML file, here or in a bucket, with ``extends`` layered and ``${VAR}`` replaced."""
    path = os.path.expanduser(path)
    if "\0" in path:
        raise ConfigError(f"config file {path!r} has a zero byte in its name; give the path of a YAML file.")
    identity = path if is_remote(path) else os.path.realpath(path)
    if identity in _parents:
        chain = " -> ".join((*_parents, path))
        raise ConfigError(f"`extends` runs in a circle: {chain}. Remove one of these links.")
    try:
        text = read_bytes(path).decode("utf-8-sig")
    except FileNotFoundError:
        named = f", which {_parents[-1]} extends," if _parents else ""
        raise ConfigError(
            f"config file {path}{named} does not exist; give the path of a YAML file.{looked_for(path)}"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"config file {path} cannot be read: {error}") from error
    tree = parse_yaml(text, origin=path) or {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{path} holds a {type(tree).__name__}; a config is a mapping of sections.")
    tree = _replace_variables(tree, origin=path)
    bases = tree.pop("extends", None) or []
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise ConfigError(f"{path}: `extends` is {shown(bases)}; expected the path of a YAML file, or a list of them.")
    merged: dict[str, Any] = {}
    for base in bases:
        where = join(parent(path), os.path.expanduser(base))
        merged = merge(merged, read_tree(where, _parents=(*_parents, identity)))
    return merge(merged, tree)


def merge(base: Mapping[str, Any], later: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` overlaid by ``later``, key by key; lists, scalars and sections of another kind are replaced."""
    result = dict(base)
    for key, value in later.items():
        old = result.get(key)
        if isinstance(old, Mapping) and isinstance(value, Mapping) and value.get("kind") in (None, old.get("kind")):
            result[key] = merge(old, value)
        else:
            result[key] = value
    return result


def apply_overrides(
    tree: Mapping[str, Any], overrides: Sequence[str], *, model: type[Config] | None = None
) -> dict[str, Any]:
    """``tree`` with ``a.b=value`` overrides applied; values are read as YAML.

    ``model`` is what will be built: a key of a section that is not in ``tree`` then changes the section's default,
    unless a ``kind`` is given.
    """
    result, opened = dict(tree), set[tuple[str, ...]]()
    for override in overrides:
        dotted, sign, text = override.partition("=")
        if not sign or not dotted:
            raise ConfigError(f"override '{override}' has no value; write it as section.key=value.")
        text = _without_marks(text)
        value = _replace_variables(parse_yaml(text, origin=f"override {dotted}"), origin=f"override {dotted}")
        keys = tuple(dotted.strip().split("."))
        opened |= {keys[:depth] for depth in range(1, len(keys)) if not _section(result, keys[:depth])}
        result = _set(result, list(keys), value, dotted)
    for keys in sorted(opened):
        default = None if model is None else _default_choice(model, result, keys)
        own = _section(result, keys)
        if default is not None and "kind" not in own:
            result = _set(result, list(keys), merge(default.model_dump(mode="json"), own), ".".join(keys))
    return result


def _without_marks(text: str) -> str:
    """The value of an override as YAML in which a lone mark (``|``, ``-``, a tab) and a # stand for themselves."""
    own = text.strip() or text
    is_mark = len(own) == 1 and not own.isalnum() and own != "~"
    has_hash = re.search(r"(?:^|\s)#", own) and own[0] not in "\"'[{"
    return yaml.dump(own, default_style='"', allow_unicode=True, width=10**9) if is_mark or has_hash else text


def _section(tree: Any, keys: Sequence[str]) -> Mapping[str, Any]:
    for key in keys:
        tree = tree.get(key) if isinstance(tree, Mapping) else None
    return tree if isinstance(tree, Mapping) else {}


def _default_choice(model: type[BaseModel], tree: Mapping[str, Any], keys: Sequence[str]) -> Config | None:
    """The default of a section that is one of several kinds; None for any other section."""
    models, default = [model], None
    for depth, key in enumerate(keys):
        kind = _section(tree, keys[:depth]).get("kind")
        named = [one for one in models if kind in get_args(one.model_fields["kind"].annotation)] if kind else models
        field = named[0].model_fields.get(key) if named else None  # a section that names no kind is of the first
        models, default = ([], None) if field is None else (models_in(field.annotation), field.default)
    return default if len(models) > 1 and isinstance(default, Config) else None


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
        lines = explain(model, tree, [dict(problem) for problem in error.errors(include_url=False)])
        raise ConfigError(f"{origin}:\n" + "\n".join(f"  - {line}" for line in lines)) from None


def to_yaml(config: Config) -> str:
    """The resolved config as YAML, in the order of the fields."""
    return tree_to_yaml(config.model_dump(mode="json"))


def tree_to_yaml(tree: Mapping[str, Any]) -> str:
    """A tree of plain values as YAML that is read back as the same, in its order."""
    return yaml.dump(dict(tree), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)
