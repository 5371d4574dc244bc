"""The training call of RET-CLIP, whose flags are those of Chinese-CLIP and open_clip."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from consilium.converting.rules import (
    Family,
    Given,
    Needless,
    Outcome,
    Rule,
    as_name,
    number,
    one_of,
    text,
    to,
    truth,
    where_true,
    whole,
)

_NEVER = 99_999  # steps or epochs that stand for never
_VISION = {
    "ViT-B-16": "vit_base_patch16_clip_224.openai",
    "ViT-B-32": "vit_base_patch32_clip_224.openai",
    "ViT-L-14": "vit_large_patch14_clip_224.openai",
    "ViT-L-14-336": "vit_large_patch14_clip_336.openai",
}
_TEXT = {
    "RoBERTa-wwm-ext-base-chinese": "hfl/chinese-roberta-wwm-ext",
    "RoBERTa-wwm-ext-large-chinese": "hfl/chinese-roberta-wwm-ext-large",
    "RBT3-chinese": "hfl/rbt3",
}


def _source(path: str, *, name: str, split: str) -> dict[str, Any]:
    """The images of a split: an LMDB, or a TSV."""
    place = PurePath(path)
    found: dict[str, Any] = {"name": name, "split": split}
    if place.suffix == ".tsv":
        stem = place.name.removesuffix(".tsv").removesuffix("_imgs")
        return {"kind": "ret_clip_tsv", **found, "path": path, "texts": str(place.with_name(f"{stem}_texts.jsonl"))}
    return {"kind": "ret_clip_lmdb", **found, "path": path}


def _data(value: Any, given: Given) -> Outcome:
    """Both data sets; theirs for validation tests here, since a test that chose the weights would flatter them."""
    train, val = text(given.values["train_data"]), given.values.get("val_data")
    sources = [_source(train, name="train", split="train")]
    if val is not None and text(val) != train:
        sources.append(_source(text(val), name="test", split="test"))
    note = "validation is taken from train, by patient; what was your validation is the test"
    return Outcome("changed", {"data.sources": sources}, note=note)


def _apart(given: Given) -> bool:
    """Whether each device compares its own cases alone."""
    return given.processes > 1 and truth(given.values.get("skip_aggregate", False))


def _batch(value: Any, given: Given) -> Outcome:
    """open_clip collects the features of several batches: one contrastive batch of all, computed in chunks."""
    size, batches = whole(given.values.get("batch_size", 64)), whole(given.values.get("accum_freq", 1))
    ours = {"task.chunk": size} if batches > 1 else {}
    if _apart(given):  # the mean over devices is that over as many batches, one after the other
        note = f"{batches} batches x {size} compared with each other; the {given.processes} devices apart"
        return Outcome(ours={"data.loader.batch_size": batches * size, **ours}, note=note)
    note = f"{given.processes} devices x {batches} batches x {size}, compared with each other"
    return Outcome(ours={"data.loader.batch_size": given.processes * batches * size, **ours}, note=note)


def _converted(path: str) -> tuple[str, str]:
    """The folder that a checkpoint is converted to, and the command."""
    folder = str(PurePath(path).with_suffix(""))
    folder = f"{folder}-converted" if folder == path else folder
    return folder, f"first: consilium models convert {path} --out {folder}"


def _whole(given: Given) -> str | None:
    """The checkpoint that both towers come from; None where there is none."""
    clip, bert, resume = (given.values.get(name) for name in ("clip_weight_path", "bert_weight_path", "resume"))
    return text(resume) if resume else text(clip) if clip and clip == bert else None


def _resume(value: Any, given: Given) -> Outcome:
    folder, command = _converted(text(value))
    return Outcome("changed", {"task.model": folder}, note=f"{command}; the optimizer begins anew")


def _clip_weights(value: Any, given: Given) -> Outcome:
    if given.values.get("resume"):
        return Outcome(note="resume is given, which comes after it")
    folder, command = _converted(text(value))
    if _whole(given) is not None:
        return Outcome("changed", {"task.model": folder}, note=command)
    note = f"{command}; the image tower alone, its projection begins anew"
    return Outcome("changed", {"task.vision.kind": "open_clip", "task.vision.name": folder}, note=note)


def _bert_weights(value: Any, given: Given) -> Outcome:
    if _whole(given) is not None:
        return Outcome(note="in task.model, with the image tower")
    return Outcome(ours={"task.text.pretrained": text(value)})


def _vision(value: Any, given: Given) -> Outcome:
    if _whole(given) is not None or given.values.get("clip_weight_path"):
        return Outcome(note="read from the checkpoint")
    return one_of("task.vision.name", _VISION)(value, given)


def _text(value: Any, given: Given) -> Outcome:
    if _whole(given) is not None:
        return Outcome(note="read from the checkpoint")
    return one_of("task.text.name", _TEXT)(value, given)


def _interval(key: str, *, unit: str, other: str) -> Rule:
    """Every so many steps or epochs; one interval holds, that of steps where both are given."""

    def rule(value: Any, given: Given) -> Outcome:
        steps = number(given.values.get(other, _NEVER)) if unit == "epochs" else _NEVER
        if not 0 < number(value) < _NEVER:
            return Outcome(note="never")
        if 0 < steps < _NEVER:
            return Outcome(note=f"{other} is given")
        return Outcome(ours={key: f"{whole(value)} {unit}"})

    return rule


def _betas(value: Any, given: Given) -> Outcome:
    betas = [number(given.values.get("beta1", 0.9)), number(given.values.get("beta2", 0.98))]
    return Outcome(ours={"optimizer.betas": betas})


def _precision(value: Any, given: Given) -> Outcome:
    if value in ("fp32", "bf16"):
        return Outcome(ours={"trainer.precision": value})
    return Outcome("changed", {"trainer.precision": "auto"}, note="fp16 becomes bf16 where device and model allow it")


def _augment(value: Any, given: Given) -> Outcome:
    if not truth(value):
        return Outcome()
    ours = {"crop_scale": [0.9, 1.0], "brightness_jitter": 0.2, "contrast_jitter": 0.2}
    return Outcome(
        "changed",
        {f"data.augmentation.{key}": own for key, own in ours.items()},
        note="a milder one than AutoAugment, and without flips, which would make a right eye a left one",
    )


def _distillation(value: Any, given: Given) -> Outcome:
    if not truth(value):
        return Outcome()
    teacher = given.values.get("teacher_model_name")
    if teacher is None:
        return Outcome("unmapped", note="teacher_model_name is not given")
    key, weight = "task.feature_distillation", number(given.values.get("kd_loss_weight", 0.5))
    note = "the teacher is a bundle of ours: put its folder in the place of this name"
    return Outcome("changed", {f"{key}.kind": "cosine", f"{key}.weight": weight, f"{key}.teacher": text(teacher)}, note)


def _skip_aggregate(value: Any, given: Given) -> Outcome:
    if not _apart(given):
        return Outcome()
    note = "as many smaller batches, whose gradients add up, on however many devices"
    return Outcome(ours={"trainer.accumulate": given.processes}, note=note)


def _not_yet(what: str) -> Rule:
    return lambda value, given: Outcome("unmapped", note=what)


_TABLE: Mapping[str, Rule] = {
    "train_data": _data,
    "val_data": lambda value, given: Outcome(note="in data.sources, beside train_data"),
    "num_workers": to("data.loader.workers", make=whole),
    "valid_num_workers": Needless("validation decodes with as many processes as the training"),
    "logs": to("output.root", make=text),
    "name": to("name", make=lambda value: as_name(text(value))),
    "log_interval": to("trainer.log_every", make=lambda value: f"{whole(value)} steps"),
    "report_training_batch_acc": Needless("validation says how well texts are found, beside chance"),
    "batch_size": _batch,
    "valid_batch_size": to("data.loader.eval_batch_size", make=whole),
    "accum_freq": _batch,
    "max_epochs": to("trainer.max_epochs", make=whole),
    "max_steps": to("trainer.max_steps", make=whole),
    "valid_step_interval": _interval("trainer.validate_every", unit="steps", other=""),
    "valid_epoch_interval": _interval("trainer.validate_every", unit="epochs", other="valid_step_interval"),
    "save_step_frequency": _interval("trainer.save_every", unit="steps", other=""),
    "save_epoch_frequency": _interval("trainer.save_every", unit="epochs", other="save_step_frequency"),
    "context_length": to("task.text.context_length", make=whole),
    "lr": to("optimizer.learning_rate", make=number),
    "beta1": _betas,
    "beta2": _betas,
    "eps": to("optimizer.eps", make=number),
    "wd": to("optimizer.weight_decay", make=number),
    "warmup": to("schedule.warmup", make=lambda value: f"{whole(value)} steps"),
    "skip_scheduler": where_true({"schedule.kind": "constant"}),
    "vision_model": _vision,
    "text_model": _text,
    "precision": _precision,
    "mask_ratio": to("task.vision.patch_dropout", make=number),
    "freeze_vision": where_true({"task.vision.freeze.kind": "tower"}),
    "grad_checkpointing": where_true({f"task.{side}.gradient_checkpointing": True for side in ("vision", "text")}),
    "use_flash_attention": Needless("attention is always PyTorch's fused kernel"),
    "use_bn_sync": _not_yet("statistics of BatchNorm are those of one device; the towers named here have none"),
    "use_augment": _augment,
    "gather_with_grad": Needless("the loss is always that of all processes, with the gradient"),
    "skip_aggregate": _skip_aggregate,
    "seed": to("seed", make=whole),
    "resume": _resume,
    "reset_optimizer": Needless(
        "a foreign checkpoint gives weights alone; `--resume` goes on with all of a run of ours"
    ),
    "reset_data_offset": Needless(
        "a foreign checkpoint gives weights alone; `--resume` goes on with all of a run of ours"
    ),
    "clip_weight_path": _clip_weights,
    "bert_weight_path": _bert_weights,
    "distllation": _distillation,
    "distillation": _distillation,
    "teacher_model_name": lambda value, given: Outcome(note="see distllation"),
    "kd_loss_weight": lambda value, given: Outcome(note="see distllation"),
    "local_rank": Needless("`torchrun` or `accelerate launch` places the processes"),
    "use_env": Needless("`torchrun` or `accelerate launch` places the processes"),
}

RET_CLIP = Family(
    script="main.py",
    table=_TABLE,
    needs=(("train_data",),),
    ours={
        "task.kind": "align",
        "task.views.names": ["left", "right"],
        "name": "retclip",
        "optimizer.kind": "adamw",
        "schedule.kind": "cosine",
        "data.image.statistics": "model",
        "data.store.images": "embed",
        "data.loader.drop_last": True,
    },
    usual={"vision_model": "ViT-B-16", "text_model": "RoBERTa-wwm-ext-base-chinese"},
    switches=frozenset(
        {
            "report_training_batch_acc", "skip_scheduler", "freeze_vision", "grad_checkpointing",
            "use_flash_attention", "use_bn_sync", "use_augment", "gather_with_grad", "skip_aggregate",
            "reset_optimizer", "reset_data_offset", "distllation", "distillation", "use_env",
        }
    ),
)  # fmt: skip
