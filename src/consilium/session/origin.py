"""What a training begins with: the bundle that it goes on from and whose settings it takes over, or weights alone."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from consilium.bundle import load_member, read_known
from consilium.core.config import build, merge
from consilium.core.errors import ConfigError, WeightsError
from consilium.core.section import Knowledge
from consilium.core.task import Task
from consilium.experiment import Experiment
from consilium.manifest import local_bundle, read_manifest, weights_file
from consilium.models.distance import DISTANCE
from consilium.models.licenses import file_licenses
from consilium.models.lora import renamed
from consilium.models.parts import first_names
from consilium.models.weights import adapters, load_state, load_strict
from consilium.tasks.family import Known, Member, family_of
from consilium.training.state import FROZEN, saved_weights


def load_bundle(origin: str) -> Member:
    """A bundle that a config names, loaded."""
    folder = local_bundle(origin)
    return load_member(folder, read_manifest(folder))


def with_start(experiment: Experiment) -> tuple[Experiment, Knowledge | None]:
    """The experiment with the settings of what it begins with, and what that knows.

    A bundle that the task goes on from fixes settings, and a config that says otherwise is a ConfigError; pretrained
    models bring settings for what the config leaves out.
    """
    origin = experiment.task.origin
    if origin is None:
        return _with_pretrained(experiment)
    known = _known(origin)
    adopted = family_of(experiment.task).adopted(experiment.task, known)
    stated = experiment.model_dump(mode="json", exclude_unset=True)
    if experiment.data.image.statistics != "given":
        for name in ("mean", "std"):
            stated["data"]["image"].pop(name, None)
    if different := list(_different(stated, adopted.settings)):
        raise ConfigError(
            f"the training goes on from {origin} and takes over what that was trained with, and the config says "
            f"otherwise: {'; '.join(different)}. Leave these keys out."
        )
    if experiment.trainer.init_from is not None:
        raise ConfigError(f"{origin} and trainer.init_from both give the first weights; leave init_from out.")
    tree = merge(merge(experiment.model_dump(mode="json"), adopted.settings), adopted.forced)
    return build(Experiment, tree, origin=f"the config with the settings of {origin}"), known.knowledge


def _with_pretrained(experiment: Experiment) -> tuple[Experiment, Knowledge | None]:
    """The experiment with what the pretrained models that it names bring, where the config leaves it open."""
    task = experiment.task
    brought = family_of(task).brings(task, {name: _known(name) for name in task.borrows})
    if not brought.settings:
        return experiment, brought.knowledge
    stated = experiment.model_dump(mode="json", exclude_unset=True)
    tree = merge(merge(experiment.model_dump(mode="json"), brought.settings), stated)
    return build(Experiment, tree, origin="the config with the settings of its pretrained models"), brought.knowledge


def _known(bundle: str) -> Known:
    folder = local_bundle(bundle)
    return read_known(folder, read_manifest(folder))


def trained_groups(experiment: Experiment) -> tuple[str, ...]:
    """The groups of parameters that begin with trained weights."""
    return experiment.task.groups if experiment.trainer.init_from else experiment.task.pretrained_groups


def load_first(task: Task, origin: str) -> None:
    """Give a task the weights of ``trainer.init_from``: a bundle, a file of weights, or that of a checkpoint.

    Nothing is left of the weights that it was built with, nor of their licences. Distances belong to the training cases
    of the other task, and are measured anew.
    """
    file = weights_file(origin)
    of_checkpoint = (file.parent.parent / FROZEN).is_file()
    state = saved_weights(file.parent) if of_checkpoint else load_state(file)
    state = {name: tensor for name, tensor in renamed(task, state).items() if not name.startswith(f"{DISTANCE}.")}
    if not state.keys() & task.state_dict().keys():
        raise WeightsError(
            f"trainer.init_from: the weights in {origin} do not fit the model, of which they hold nothing, but "
            f"{first_names(state)}. Give a bundle of this kind of task; the weights of a tower alone belong to "
            "task.vision.pretrained."
        )
    load_strict(task, {**adapters(task), **state}, origin=origin)
    task.licenses = tuple(file_licenses(file, source=origin))


def _different(stated: Mapping[str, Any], own: Mapping[str, Any], path: str = "") -> Iterator[str]:
    """The keys in both whose values differ, in words."""
    for key in stated.keys() & own.keys():
        here, there, dotted = stated[key], own[key], f"{path}.{key}".lstrip(".")
        if isinstance(here, dict) and isinstance(there, dict):
            yield from _different(here, there, dotted)
        elif here != there:
            yield f"{dotted} is {json.dumps(here)}, the bundle's is {json.dumps(there)}"
