"""A pretrained model judged as it came: nothing is trained, and the report says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch

from consilium.core.devices import choose_device
from consilium.core.errors import ConfigError
from consilium.core.evaluation import Evaluation
from consilium.core.reporter import Reporter, some
from consilium.core.task import Task
from consilium.experiment import Experiment
from consilium.judge import Judging, cases_to_judge, given_to_judge, judge_on
from consilium.manifest import new_manifest
from consilium.models.lora import merge_adapters
from consilium.predictor import Predictor
from consilium.session.origin import with_start
from consilium.session.outlook import resolved_image
from consilium.tasks.family import family_of
from consilium.training.hooks import RunLog


def evaluate_untouched(
    experiment: Experiment,
    *,
    data: str | None,
    split: str | None,
    out: Path | None,
    on_bad_row: Literal["stop", "quarantine"] | None,
    embeddings: Path | None,
    device: str,
    reporter: Reporter,
) -> Evaluation:
    """Judge the pretrained model of an experiment that says ``zero_shot: true``, on its data or on others.

    An experiment without that key, or whose model is not pretrained as a whole, is a ConfigError.
    """
    experiment = _checked(experiment)
    given = given_to_judge(data, split=split, own=experiment.data, probes=experiment.probes, on_bad_row=on_bad_row)
    model = some(list(experiment.task.towers.values()), 3)
    judging = Judging(
        section=experiment.task,
        data=given.data,
        split=given.split,
        evaluation=experiment.evaluation,
        report=experiment.report,
        probes=given.probes,
        trained_on=None,
        is_own=False,
        embeddings=embeddings,
        command=f"consilium evaluate (the config of {experiment.name}) --split {given.split}",
        warnings=[f"Nothing was trained (zero_shot: true): these are the figures of {model} as it came."],
    )
    reporter.line(judging.warnings[0])
    studied = cases_to_judge(judging, known=None, fingerprint="", reporter=reporter)
    predictor = _predictor(experiment, studied.knowledge, device=device, reporter=reporter)
    target = out or Path(experiment.output.root) / experiment.name / f"zero_shot-{given.name}"
    return judge_on(predictor, judging, target=target, reporter=reporter)


def _checked(experiment: Experiment) -> Experiment:
    """The experiment with what its pretrained model brings."""
    if not experiment.zero_shot:
        raise ConfigError(
            f"'{experiment.name}' is the config of a training, and `consilium evaluate` judges a trained bundle, never "
            "a fresh model. Train it and give the folder of its run; or set zero_shot: true, to "
            "judge the pretrained task.model as it came."
        )
    random = [name for name in experiment.task.groups if name not in experiment.task.pretrained_groups]
    if random:
        raise ConfigError(
            f"zero_shot: true judges a whole pretrained model as it came, but here {some(random, 5)} would be random. "
            "Name one as task.model (a CLIP, SigLIP or BiomedCLIP), or train."
        )
    return with_start(experiment)[0]


def _predictor(experiment: Experiment, knowledge: Any, *, device: str, reporter: Reporter) -> Predictor:
    """The model as it came, ready to answer."""
    section, image, chosen = experiment.task, experiment.data.image, choose_device(device)
    task: Task = family_of(section).build(section, knowledge, image=image, members={}, weights=True)
    merge_adapters(task)
    image = resolved_image(image, task.image_input(), log=RunLog(echo=reporter.line))
    manifest = new_manifest(
        section,
        knowledge,
        name=experiment.name,
        image=image,
        looks=experiment.evaluation.averaging,
        seed=experiment.seed,
        data_fingerprint="",
        metrics={},
        licenses=task.licenses,
    )
    task.to(chosen).to(memory_format=torch.channels_last)
    return Predictor(
        task.eval(),
        knowledge,
        image=image,
        loader=experiment.data.loader,
        device=chosen,
        manifest=manifest,
        looks=manifest.looks,
    )
