"""The scripts of CLIP experts and their router: files for the transformers Trainer, and flags of their own."""

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
    text,
    to,
    where_true,
    whole,
)
from consilium.converting.trainer_arguments import SWITCHES, TRAINER, USUAL, batch_size, output_dir
from consilium.core.explain import nearest

_BIOMEDCLIP = "hf-hub:microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224"
_CLIP = "openai/clip-vit-base-patch32"
_OF_DATA = {
    "dataset_name", "dataset_config_name", "data_dir", "train_file", "image_column", "caption_column", "weight"
}  # fmt: skip
_FORMS = {".jsonl": "jsonl", ".json": "jsonl", ".csv": "csv", ".parquet": "parquet"}


def source_of(name: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """A source of ours for a data set of theirs: a hub id, or a file that its ending tells the form of."""
    if odd := [key for key in values if key not in _OF_DATA]:
        raise ValueError(f"{name}: `{odd[0]}` is not known{nearest(odd[0], sorted(_OF_DATA))}")
    path = values.get("train_file") or values.get("dataset_name")
    if path is None:
        raise ValueError(f"{name}: dataset_name is missing")
    kind = _FORMS.get(PurePath(text(path)).suffix.lower(), "hub")
    image, caption = values.get("image_column"), values.get("caption_column")
    if kind == "jsonl" and image == "modalities":
        kind, image = "multimediset", None  # whose rows name their images so by themselves
    found: dict[str, Any] = {"kind": kind, "name": as_name(name), "path": text(path)}
    for ours, theirs in (("config_name", "dataset_config_name"), ("data_dir", "data_dir")):
        if values.get(theirs) is not None:
            if kind != "hub":
                raise ValueError(f"{name}: {theirs} is given, but {path} is a file, not a data set of the hub")
            found[ours] = text(values[theirs])
    if columns := {key: column for key, column in (("image", image), ("text", caption)) if column not in (None, key)}:
        found["columns"] = columns
    if values.get("weight") is not None:
        weight = number(values["weight"])
        if weight <= 0:
            raise ValueError(
                f"{name}: weight is {weight:g}; expected a number above 0 (a data set of none is left out)"
            )
        found["weight"] = int(weight) if weight.is_integer() else weight
    return found


def _dataset_configs(value: Any, given: Given) -> Outcome:
    items = [{name: own} for name, own in value.items()] if isinstance(value, dict) else value
    if not isinstance(items, list) or not items or not all(isinstance(item, dict) and item for item in items):
        raise ValueError("expected a list of data sets, each as NAME: {dataset_name: ..., weight: ...}")
    sources = []
    for item in items:
        (name, own), *more = item.items()
        if more or not isinstance(own, dict):  # without a name around it
            name, own = PurePath(str(item.get("dataset_name", "data"))).stem, item
        sources.append(source_of(str(name), own))
    return _data(sources)


def _data(sources: list[dict[str, Any]]) -> Outcome:
    """Sources in our keys; data sets of the hub hold their images, so that there is no file to refer to."""
    embed = {"data.store.images": "embed"} if any(source["kind"] == "hub" for source in sources) else {}
    note = "rows that name no split are divided by group (data.split)"
    return Outcome(ours={"data.sources": sources, **embed}, note=note)


def _dataset(value: Any, given: Given) -> Outcome:
    own = {key: given.values[key] for key in _OF_DATA & given.values.keys()}
    return _data([source_of(PurePath(text(value)).stem, own)])


def _data_url(value: Any, given: Given) -> Outcome:
    columns = {"image_column": given.values.get("image_column")}
    columns["caption_column"] = given.values.get("caption_column", given.values.get("text_column"))
    return _data([source_of(PurePath(text(value)).stem, {"dataset_name": value, **columns})])


def _of_the_source(value: Any, given: Given) -> Outcome:
    return Outcome(note="in data.sources, with its data set")


def _text_tower(value: Any, given: Given) -> Outcome:
    name = text(value)
    ours = {"task.text.name": name}
    if "splade" not in name.lower():
        return Outcome(ours=ours)
    return Outcome(
        "changed",
        {**ours, "task.text.pooling": "splade"},
        note="with the layer that weighs terms, which the script left out; task.text.pooling: cls is the encoder alone",
    )


def _vision_tower(value: Any, given: Given) -> Outcome:
    return Outcome(ours={"task.vision.kind": "hf", "task.vision.name": text(value)})


def _whole_model(value: Any, given: Given) -> Outcome:
    towers = [name for name in ("vision_model_name", "text_model_name") if name in given.values]
    return Outcome(note=f"{towers[0]} comes first") if towers else Outcome(ours={"task.model": text(value)})


def _revision(value: Any, given: Given) -> Outcome:
    if value == "main":
        return Outcome()
    return Outcome(
        "unmapped", note="weights are taken at their newest; give the folder of another revision as the name"
    )


def _resnet(value: Any, given: Given) -> Outcome:
    if whole(value) not in (18, 34, 50, 101, 152):
        raise ValueError("expected 18, 34, 50, 101 or 152")
    return Outcome(ours={"task.vision.name": f"resnet{whole(value)}"})


def _folder(value: Any) -> dict[str, Any]:
    """{train,test}/{modality}/{category}: the modality is the label, the category lies below it."""
    return {"kind": "folder", "name": as_name(PurePath(text(value)).name or "images"), "path": text(value)}


_TOWERS: Mapping[str, Rule] = {
    "vision_model_name": _vision_tower,
    "text_model_name": _text_tower,
    "model_name_or_path": _whole_model,
    "freeze_vision_model": where_true({"task.vision.freeze.kind": "tower"}),
    "freeze_text_model": where_true({"task.text.freeze.kind": "tower"}),
    "max_seq_length": to("task.text.context_length", make=whole),
    "tokenizer_name": Needless("the tokenizer comes with `task.text.name`"),
    "image_processor_name": Needless(
        "`data.image.size`, and `data.image.statistics=model` for the tower's own normalisation"
    ),
    "model_revision": _revision,
    "image_column": _of_the_source,
    "caption_column": _of_the_source,
    "cache_dir": to("data.store.root", make=text),
    "token": Needless("the environment variable HF_TOKEN; never in a file"),
    "trust_remote_code": Needless("code that comes with data is never run"),
    "overwrite_cache": Needless("a store is made again when its data or config changed; delete it to force that"),
    "preprocessing_num_workers": to("data.store.workers", make=whole),
    "max_train_samples": to("data.filters.max_train_samples", make=whole),
    "max_eval_samples": to("data.filters.max_eval_samples", make=whole),
}
_FLAGS: Mapping[str, Rule] = {
    "batch_size": batch_size,
    "num_epochs": to("trainer.max_epochs", make=whole),
    "learning_rate": to("optimizer.learning_rate", make=number),
    "lr": to("optimizer.learning_rate", make=number),
    "weight_decay": to("optimizer.weight_decay", make=number),
    "warmup_steps": lambda value, given: Outcome(
        ours={"schedule.kind": "cosine", "schedule.warmup": f"{whole(value)} steps"}
    ),
    "num_runs": to("trainer.num_runs", make=whole),
    "max_samples_per_class": to("data.filters.max_samples_per_label", make=whole),
    "output_dir": output_dir,
    "save_model": Needless("a run always leaves a bundle"),
    "seed": TRAINER["seed"],
    "bf16": TRAINER["bf16"],
}

TRAIN_CLIP = Family(
    script="train_clip.py",
    table={
        **TRAINER,
        **_TOWERS,
        "use_auth_token": _TOWERS["token"],
        "dataset_configs": _dataset_configs,
        "dataset_name": _dataset,
        "train_file": _dataset,
        "dataset_config_name": _of_the_source,
        "data_dir": _of_the_source,
    },
    needs=(
        ("dataset_configs", "dataset_name", "train_file"),
        ("vision_model_name", "model_name_or_path"),
        ("text_model_name", "model_name_or_path"),
    ),
    ours={"task.kind": "align", "optimizer.kind": "adamw"},
    usual=USUAL,
    switches=SWITCHES,
    reads_file=True,
)
ROUTER = Family(
    script="image_router_train.py",
    table={**_FLAGS, "data_dir": to("data.sources", make=lambda value: [_folder(value)]), "resnet_size": _resnet},
    needs=(("data_dir",),),
    ours={"task.kind": "classify", "name": "router", "optimizer.kind": "adamw"},
)


def _expert(script: str, *, model: str, name: str) -> Family:
    table = {
        **_FLAGS,
        **_TOWERS,
        "data_url": _data_url,
        "text_column": _of_the_source,
        "num_train_epochs": to("trainer.max_epochs", make=whole),
        "do_train": TRAINER["do_train"],
        "do_eval": TRAINER["do_eval"],
    }
    ours = {"task.kind": "align", "name": name, "optimizer.kind": "adamw", "data.loader.drop_last": True}
    return Family(
        script=script,
        table=table,
        needs=(("data_url",),),
        ours=ours,
        usual={"model_name_or_path": model},
        switches=SWITCHES,
    )


EXPERT = _expert("expert_model_train.py", model=_CLIP, name="expert")
BIOMED = _expert("biomed_train.py", model=_BIOMEDCLIP, name="biomed")
