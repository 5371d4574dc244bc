"""What a task of views begins with: the heads of a converted checkpoint, and a table of what came from where."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from consilium.core.errors import ConfigError, WeightsError
from consilium.models.checkpoints.heads import read_heads
from consilium.models.checkpoints.pretrained import Pretrained
from consilium.tasks.align.config import AlignConfig
from consilium.tasks.align.task import Align
from consilium.tasks.align.views import AlignViews

_MAP, _TEXT, _SCALE = "{}_feature_mapping.", "text_projection{}.", "logit_scale{}"  # of RET-CLIP


def begin_views(task: Align, section: AlignConfig, whole: Pretrained | None, *, as_it_came: bool) -> None:
    """Take over the heads of a checkpoint that has some, and tell which part of the task began with what.

    ``as_it_came``: nothing will be trained, so that random heads are a ConfigError.
    """
    loaded = {} if whole is None or not whole.layout.views else _load_heads(task, section, whole.layout.views)
    if as_it_came and not loaded:
        raise ConfigError(
            "zero_shot judges task.model as it came, and it has no heads for task.views, which would be random: name a "
            "converted RET-CLIP, or leave task.views out."
        )
    task.begun = _table(task, section, whole, loaded)


def _parts(task: Align) -> dict[str, tuple[nn.Module, str, str]]:
    """What lies behind the towers: each module, where it is in the task, and what RET-CLIP calls it."""
    parts: dict[str, tuple[nn.Module, str, str]] = {}
    if isinstance(task, AlignViews):
        parts["image map of the case"] = task.heads.case_map, "heads.case_map.", _MAP.format("global")
        for view, name in enumerate(task.views):
            own = task.heads.view_maps[view]
            parts[f"image map of {name}"] = own, f"heads.view_maps.{view}.", _MAP.format(name)
    parts["text head of the case"] = task.text_projection.layers, "text_projection.layers.", _TEXT.format("")
    if isinstance(task, AlignViews):
        for view, name in enumerate(task.views):
            own = task.heads.text_heads[view]
            parts[f"text head of {name}"] = own, f"heads.text_heads.{view}.", _TEXT.format(f"_{name}")
    return parts


def _load_heads(task: Align, section: AlignConfig, views: tuple[str, ...]) -> dict[str, str]:
    """Load the heads of a RET-CLIP; returns what each part was called there, and what of it is not used."""
    assert section.model is not None
    if section.view_names and section.view_names != views:
        raise ConfigError(
            f"task.views.names are {', '.join(section.view_names)}, but {section.model.name} has heads for "
            f"{', '.join(views)}, in this order; name the views so."
        )
    heads = read_heads(section.model.name)
    found, used = {}, set[str]()
    for part, (module, _, theirs) in _parts(task).items():
        own = {name.removeprefix(theirs): tensor for name, tensor in heads.items() if name.startswith(theirs)}
        _load(module, own, what=f"the {part} ({theirs}) of {section.model.name}")
        used |= {theirs + name for name in own}
        found[part] = theirs
    losses = {"": task.loss}
    if isinstance(task, AlignViews):
        losses = dict(zip(("", *(f"_{name}" for name in task.views)), task.losses, strict=True))
    for suffix, loss in losses.items():
        name = _SCALE.format(suffix)
        if name not in heads:
            raise WeightsError(f"the heads of {section.model.name} lack {name}; convert its checkpoint again.")
        loss.start_at(float(heads[name].reshape(())), bias=None)
        used.add(name)
        found[f"temperature of {suffix.removeprefix('_') or 'the case'}"] = name
    found["unused"] = ", ".join(sorted({name.partition(".")[0] for name in heads.keys() - used}))
    return found


def _load(module: nn.Module, own: Mapping[str, Tensor], *, what: str) -> None:
    expected = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    given = {name: tuple(tensor.shape) for name, tensor in own.items()}
    if expected != given:
        raise WeightsError(f"{what} does not fit: it has {given or 'nothing'}, and {expected} is expected.")
    module.load_state_dict(dict(own))


def _table(
    task: Align, section: AlignConfig, whole: Pretrained | None, loaded: Mapping[str, str]
) -> list[dict[str, Any]]:
    """A row for each part: loaded, renamed, or random; and what of the checkpoint is not used."""
    rows: list[dict[str, Any]] = []

    def add(part: str, module: nn.Module, here: str, begins: str) -> None:
        rows.append({"part": part, "here": here, "tensors": len(module.state_dict()), "begins": begins})

    towers = (("image", task.vision, section.vision), ("text", task.text, section.text))
    for side, tower, config in towers:
        origin = config.pretrained if isinstance(config.pretrained, str) else config.name
        of_whole = None if section.model is None else section.model.pretrained or section.model.name
        begins = f"loaded: {of_whole or origin}" if of_whole or config.pretrained else "random"
        add(f"{side} tower", tower, "vision." if side == "image" else "text.", begins)
        if side == "image":
            own = "loaded: its projection" if whole is not None else "random"
            add("image projection", task.image_projection, "image_projection.", own)
    for part, (module, here, _) in _parts(task).items():
        add(part, module, here, f"loaded, renamed: {loaded[part]}" if part in loaded else "random")
    scale = f"1 / {float(task.loss.scale.detach()):.4g}"
    given = section.loss.temperature is not None
    origin = "as the config says" if given else "loaded" if whole is not None else "as usual"
    rows.append({"part": "temperatures", "here": "loss.", "tensors": len(task.spaces), "begins": f"{origin}: {scale}"})
    if whole is not None:
        unused = loaded.get("unused") if loaded else "its text projection"
        if unused:
            rows.append({"part": "left unused", "here": "-", "tensors": 0, "begins": f"of the checkpoint: {unused}"})
    return rows
