"""A conversion as YAML with comments, and as a report."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from consilium.converting.conversion import Conversion, Line
from consilium.converting.trainer_arguments import TRAIN
from consilium.core.config import tree_to_yaml
from consilium.core.explain import shown
from consilium.experiment import Experiment

_TITLES = {
    "mapped": "mapped",
    "changed": "changed",
    "needless": "without a meaning here",
    "unmapped": "not mapped",
}


def yaml_of(found: Conversion) -> str:
    """The config; what was changed or could not be mapped stands in comments."""
    order = {name: place for place, name in enumerate(Experiment.model_fields)}
    tree = dict(sorted(found.tree.items(), key=lambda item: order[item[0]]))
    missing = [_line(line) for line in found.lines if line.outcome.kind == "unmapped"]
    head = [f"# Converted from {found.origin}.", *(f"# Not mapped: {text}" for text in missing)]
    return "\n".join([*head, *_commented(tree_to_yaml(tree).splitlines(), found.comments), ""])


def _commented(lines: list[str], comments: dict[str, str]) -> Iterator[str]:
    """The lines of a YAML file with the comments of keys that lie in sections, each above its key."""
    section = ""
    for line in lines:
        key = line.strip().partition(":")[0]
        section = section if line.startswith((" ", "-")) else key
        if line.startswith("  ") and (comment := comments.get(f"{section}.{key}")):
            yield f"  # {comment}"
        yield line


def report(found: Conversion, *, config: str) -> str:
    """Every parameter on a line of its own, and the commands to run."""
    texts = []
    for kind, title in _TITLES.items():
        own = [_line(line) for line in found.lines if line.outcome.kind == kind]
        texts += [f"{title}:", *(f"  {text}" for text in own)] if own else []
    return "\n".join([*texts, "run:", *(f"  {command}" for command in _commands(found, config))])


def _line(line: Line) -> str:
    ours = ", ".join(f"{key}: {_value(value)}" for key, value in line.outcome.ours.items())
    return ": ".join(filter(None, [" -> ".join(filter(None, [line.theirs, ours])), line.outcome.note]))


def _value(value: Any) -> str:
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return ", ".join(f"{source['kind']} {source['path']}" for source in value)
    return value if isinstance(value, str) and "\n" not in value else shown(value)


def _commands(found: Conversion, config: str) -> list[str]:
    output, name = found.tree.get("output", {}), found.tree["name"]
    runs = Path(output.get("root", "runs")) / name / f"{output.get('variation', 'default')}-"
    places = {"config": shlex.quote(config), "bundle": f'"$(ls -d {shlex.quote(str(runs))}* | tail -1)"'}
    given = [line.outcome.run for line in found.lines if line.outcome.run]
    first = [] if any(command.startswith(TRAIN) for command in given) else [TRAIN]
    return [text.format(**places) for text in dict.fromkeys([*first, *given])]
