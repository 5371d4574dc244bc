"""The one union: a kind of task is a folder here and a line below; imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, get_args

from pydantic import Discriminator, Tag

from consilium.core.config import Config
from consilium.core.section import TaskSection
from consilium.tasks.align.config import AlignConfig
from consilium.tasks.classify.config import ClassifyConfig
from consilium.tasks.fuse.config import FuseConfig


def kind_of(section: Any) -> Any:
    """The kind of a ``task`` section; one that names none classifies."""
    if isinstance(section, TaskSection):
        return section.kind
    return section.get("kind", "classify") if isinstance(section, Mapping) else "classify"


TaskConfig = Annotated[
    Annotated[ClassifyConfig, Tag("classify")]
    | Annotated[AlignConfig, Tag("align")]
    | Annotated[FuseConfig, Tag("fuse")],
    Discriminator(kind_of),
]


class OneTask(Config):
    """A ``task`` section alone."""

    task: TaskConfig


def kinds() -> list[str]:
    """All kinds, in the order of the union."""
    members = get_args(OneTask.model_fields["task"].annotation)
    return [tag.tag for member in members for tag in get_args(member) if isinstance(tag, Tag)]
