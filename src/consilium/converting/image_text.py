"""The training file of the image + text workflow: sections for data, towers, fusion and two optimizers."""

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
from consilium.models.config import SHORT_TEXTS

_CONVOLUTIONAL = ("resnet50", "resnet101", "densenet121", *(f"efficientnet_b{n}" for n in (0, 1, 4)), "vgg16")
_TRANSFORMERS = ("vit_b_16", "vit_b_32", "vit_l_16", "vit_l_32")
_ACTIVATIONS = ("relu", "gelu", "silu", "tanh")
_GROUPS = {"vision_model": "optimizer.groups.image", "multimodal_classifier": "optimizer"}


def _value(given: Given, key: str, usual: Any = None) -> Any:
    """A parameter beside the one of a rule; null is as if it were left out."""
    found = given.values.get(key)
    return usual if found is None else found


def _same(*names: str) -> dict[str, str]:
    """Names that are the same in both."""
    return {name: name for name in names}


def _says(note: str) -> Outcome:
    return Outcome(note=note)


# -- Data --------------------------------------------------------------------------------------------------------------


def _root(value: Any, given: Given) -> Outcome:
    if _value(given, "data.dataset") is None:
        return _says("data.sources says where the files are")
    place, note = ("data", "the folder of datasets") if truth(value) else ("gs://your-bucket", "the bucket of datasets")
    note = f"{note}, which the script has in its code: set CONSILIUM_DATA, or put it here"
    return Outcome("changed", {"data.root": f"${{CONSILIUM_DATA:-{place}}}"}, note)


def _source(value: Any, given: Given) -> Outcome:
    """A harmonised table by its own path; what is left out comes from the dataset."""
    dataset, table = _value(given, "data.dataset"), _value(given, "data.metadata_path")
    name = text(dataset) if table is None else PurePath(text(table)).stem
    paths = {"path": table, "image_root": _value(given, "data.img_prefix")}
    stated = {key: text(path) for key, path in paths.items() if path is not None}
    return Outcome(ours={"data.sources": [{"kind": "harmonised", "name": as_name(name), **stated}]})


def _origins(value: Any, given: Given) -> Outcome:
    datasets = _value(given, "data.datasets")
    if datasets is not None and "derm1m" not in datasets:
        return _says("data.datasets has no derm1m")
    return Outcome(ours={"data.filters.origins": {"derm1m": _names(value)}})


def _least(value: Any, given: Given) -> Outcome:
    note = "counted in train, on what the other filters leave"
    return Outcome("changed", {"data.filters.min_samples_per_label": whole(value)}, note) if whole(value) else Outcome()


def _fraction(value: Any, given: Given) -> Outcome:
    if number(value) in (0, 1):
        return _says("all")
    return Outcome("changed", {"data.filters.fraction": number(value)}, "of train alone, so that figures compare")


def _names(value: Any) -> list[str]:
    if not isinstance(value, list) or not value:
        raise ValueError("expected a list of names")
    return [text(one) for one in value]


def _numbers(value: Any) -> list[float]:
    if not isinstance(value, list) or len(value) != 2:
        raise ValueError("expected two numbers in a list")
    return [number(one) for one in value]


def _chance(name: str) -> Rule:
    """A change of training images; 0 turns it off."""

    def rule(value: Any, given: Given) -> Outcome:
        return Outcome(ours={f"data.augmentation.{name}": number(value)}) if number(value) else _says("off")

    return rule


def _translate(value: Any, given: Given) -> Outcome:
    shares = _numbers(value) if isinstance(value, list) else [number(value)]
    if len(set(shares)) == 1:
        return _chance("translate")(shares[0], given)
    return Outcome("changed", {"data.augmentation.translate": max(shares)}, "one share for both directions")


# -- Model -------------------------------------------------------------------------------------------------------------


def _pooling(value: Any, given: Given) -> Outcome:
    if _value(given, "vision_model.name") in _TRANSFORMERS:
        return _says("a transformer has its own pooling")
    return one_of("task.vision.pooling", _same("avg", "max", "concat"))(value, given)


def _unfreeze(value: Any, given: Given) -> Outcome:
    if not whole(value):
        return Outcome(ours={"task.vision.freeze.kind": "tower"})
    ours = {"task.vision.freeze.kind": "all_but_last_blocks", "task.vision.freeze.blocks": whole(value)}
    if _value(given, "vision_model.name") in _TRANSFORMERS:
        return Outcome(ours=ours)
    return Outcome("changed", ours, "a block is a whole stage of the tower, not a single layer")


def _hidden(head: str) -> Rule:
    """The hidden layers of a projection or of the head; none: one linear layer."""

    def rule(value: Any, given: Given) -> Outcome:
        if not isinstance(value, list):
            raise ValueError("expected a list of widths")
        if not value:
            return Outcome(ours={f"{head}.kind": "linear"})
        return Outcome(ours={f"{head}.kind": "mlp", f"{head}.hidden_sizes": [whole(one) for one in value]})

    return rule


_HIDDEN = {
    "task.image_projection": "multimodal_classifier.image_projection_hidden",
    "task.text_projection": "multimodal_classifier.text_projection_hidden",
    "task.head": "multimodal_classifier.final_hidden_sizes",
}


def _activation(*heads: str) -> Rule:
    """The activation of hidden layers, where there are any."""

    def rule(value: Any, given: Given) -> Outcome:
        layered = [head for head in heads if _value(given, _HIDDEN[head])]
        if text(value).lower() not in _ACTIVATIONS:
            return Outcome("unmapped", note=f"heads know {', '.join(_ACTIVATIONS)}")
        ours = {f"{head}.activation": text(value).lower() for head in layered}
        return Outcome(ours=ours, note="" if ours else "there are no hidden layers")

    return rule


def _projection_dropout(value: Any, given: Given) -> Outcome:
    own = _value(given, "multimodal_classifier.text_projection_dropout") is not None
    heads = ["task.image_projection"] if own else ["task.image_projection", "task.text_projection"]
    return Outcome(ours={f"{head}.dropout": number(value) for head in heads})


def _auxiliary(value: Any, given: Given) -> Outcome:
    if not truth(_value(given, "multimodal_classifier.use_auxiliary_loss", False)):
        return _says("use_auxiliary_loss is false")
    weight = number(_value(given, "multimodal_classifier.auxiliary_loss_weight", 0.3))
    left_out = _value(given, "masking.mask_complete")
    return Outcome(ours={f"task.auxiliary.{name}": weight for name in ("image", "text") if name != left_out})


def _smoothing(value: Any, given: Given) -> Outcome:
    if number(value) and _value(given, "multimodal_classifier.loss_fn") == "focal":
        return _says("the focal loss of the script has none")
    return Outcome(ours={"task.loss.label_smoothing": number(value)})


def _class_weights(value: Any, given: Given) -> Outcome:
    if not isinstance(value, dict):
        return Outcome("unmapped", note="task.loss.class_weights has a number by label: {nevus: 1.0, melanoma: 3.0}")
    return Outcome(ours={"task.loss.class_weights": {str(name): number(weight) for name, weight in value.items()}})


def _balanced(value: Any, given: Given) -> Outcome:
    if truth(value) and _value(given, "multimodal_classifier.class_weights"):
        return _says("class_weights come first")
    return where_true({"task.loss.class_weights": "balanced"})(value, given)


def _mask(modality: str) -> Rule:
    """The chance to see a case without a modality."""

    def rule(value: Any, given: Given) -> Outcome:
        if not truth(_value(given, "masking.random_mask.enabled", False)):
            return _says("random_mask.enabled is false")
        if _value(given, "masking.mask_complete") is not None:
            return _says("mask_complete leaves one modality, which stays")
        return Outcome(ours={f"task.masking.{modality}": number(value)})

    return rule


def _computed(rule: Rule) -> Rule:
    """A rule of the text encoder, which is not there where its vectors are."""

    def either(value: Any, given: Given) -> Outcome:
        there = _value(given, "text_embedding.embedding_filename") is not None
        return _says("embedding_filename has the vectors already") if there else rule(value, given)

    return either


def _encoder(value: Any, given: Given) -> Outcome:
    """An encoder that stays as it is, as always there."""
    name = text(value).lower() if text(value).lower() in SHORT_TEXTS else text(value)
    return Outcome(ours={"task.text.name": name, "task.text.freeze.kind": "tower"})


def _instruction(value: Any, given: Given) -> Outcome:
    if "qwen" not in str(_value(given, "text_embedding.model_name", "")).lower():
        return _says("only qwen reads it")
    words = text(value)
    note = "in the form that Qwen3-Embedding was trained with"
    whole_words = words if words.startswith("Instruct:") else f"Instruct: {words}\nQuery:"
    return Outcome(ours={"task.text.instruction": whole_words}, note=note)


def _vectors(value: Any, given: Given) -> Outcome:
    ours = {"task.text.kind": "vectors", "task.text.name": text(value)}
    return Outcome("changed", ours, "a table with id and vector of each case; a bare name lies in the dataset")


# -- Training ----------------------------------------------------------------------------------------------------------


def _of_kind(part: str, key: str, *kinds: str) -> Rule:
    """A key that only some kinds of optimizer read."""

    def rule(value: Any, given: Given) -> Outcome:
        kind = str(_value(given, f"optimizer.{part}.name", "adam")).lower()
        if kind not in kinds:
            return _says(f"{kind} does not read it")
        return Outcome(ours={f"{_GROUPS[part]}.{key}": _numbers(value) if key == "betas" else number(value)})

    return rule


def _optimizer(part: str) -> dict[str, Rule]:
    group, adam = _GROUPS[part], ("adam", "adamw")
    kinds, note = one_of(f"{group}.kind", _same(*adam, "sgd")), "not of biases and norms"
    rules: dict[str, Rule] = {
        "name": lambda value, given: kinds(str(value).lower(), given),
        "learning_rate": to(f"{group}.learning_rate", make=number),
        "weight_decay": to(f"{group}.weight_decay", make=number, note=note),
        "momentum": _of_kind(part, "momentum", "sgd"),
        "betas": _of_kind(part, "betas", *adam),
        "eps": _of_kind(part, "eps", *adam),
    }
    return {f"optimizer.{part}.{name}": rule for name, rule in rules.items()}


def _floor(part: str, key: str) -> Rule:
    """A lowest rate as a fraction of the first; none where the rate stays."""

    def rule(value: Any, given: Given) -> Outcome:
        if not truth(_value(given, "training.scheduler.use_cosine_annealing", True)):
            return _says("use_cosine_annealing is false")
        rate = number(_value(given, f"optimizer.{part}.learning_rate"))
        if not 0 <= number(value) <= rate or not rate:
            raise ValueError(f"expected a rate between 0 and optimizer.{part}.learning_rate ({rate:g})")
        return Outcome(ours={key: float(f"{number(value) / rate:.6g}")}, note="as a fraction of the rate")

    return rule


def _epochs(key: str) -> Rule:
    return to(key, make=lambda value: f"{whole(value)} epochs")


def _load(value: Any, given: Given) -> Outcome:
    if PurePath(text(value)).suffix in (".pt", ".pth"):
        return Outcome("unmapped", note="its parts are others than ours; trainer.init_from takes a bundle of ours")
    return Outcome(ours={"trainer.init_from": text(value)})


_CHANGES = (
    *("brightness_jitter", "contrast_jitter", "saturation_jitter", "hue_jitter", "rotation_degrees"),
    *("horizontal_flip_prob", "vertical_flip_prob", "grayscale_prob"),
)
_CHECKPOINTS: Mapping[str, Rule] = {
    "save_frequency": _epochs("trainer.save_every"),
    "keep_last": to("trainer.keep_last", make=whole),
    "load_from": _load,
}
_DATA: Mapping[str, Rule] = {
    "data.use_local": _root,
    "data.dataset": to("data.dataset", make=text),
    "data.metadata_path": _source,
    "data.img_prefix": _source,
    "data.min_samples_per_label": _least,
    "data.datasets": to("data.filters.sub_sources", make=lambda value: {"dataset": _names(value)}),
    "data.derm1m_sources": _origins,
    "data.has_text": to("data.filters.has_text", make=truth),
    "data.data_fraction": _fraction,
    "splits.test_size": to("data.split.test", make=number, note="by file, so that no image is on two sides"),
    "splits.val_size": to("data.split.val", make=number),
    "image.img_size": to("data.image.size", make=lambda value: [whole(side) for side in _numbers(value)]),
    **dict.fromkeys(("seed", "image.seed", "splits.seed"), to("seed", "data.split.seed", make=whole)),
    **{f"augmentation.{name}": _chance(name) for name in _CHANGES},
    "augmentation.scale": to("data.augmentation.scale", make=_numbers),
    "augmentation.translate": _translate,
}
_MODEL: Mapping[str, Rule] = {
    "vision_model.name": one_of("task.vision.name", _same(*_CONVOLUTIONAL, *_TRANSFORMERS)),
    "vision_model.pretrained": to("task.vision.pretrained", make=truth),
    "vision_model.pooling_type": _pooling,
    "vision_model.unfreeze_layers": _unfreeze,
    "multimodal_classifier.projection_dim": to("task.width", make=whole),
    "multimodal_classifier.use_l2_normalization": to("task.normalize", make=truth),
    "multimodal_classifier.projection_activation": _activation("task.image_projection", "task.text_projection"),
    "multimodal_classifier.projection_dropout": _projection_dropout,
    "multimodal_classifier.text_projection_dropout": to("task.text_projection.dropout", make=number),
    "multimodal_classifier.final_activation": _activation("task.head"),
    "multimodal_classifier.final_dropout": to("task.head.dropout", make=number),
    **{theirs: _hidden(head) for head, theirs in _HIDDEN.items()},
    "multimodal_classifier.fusion_strategy": one_of(
        "task.fusion.kind", {"weighted_sum": "weighted_sum", "concat_mlp": "concat"}
    ),
    "multimodal_classifier.use_auxiliary_loss": _auxiliary,
    "multimodal_classifier.auxiliary_loss_weight": _auxiliary,
    "multimodal_classifier.loss_fn": one_of("task.loss.kind", _same("cross_entropy", "focal")),
    "multimodal_classifier.label_smoothing": _smoothing,
    "multimodal_classifier.use_class_weights_from_data": _balanced,
    "multimodal_classifier.class_weights": _class_weights,
    "masking.mask_complete": one_of("task.masking.complete", _same("image", "text")),
    "masking.random_mask.enabled": lambda value, given: _says("both chances are 0 where it is false"),
    "masking.random_mask.image_prob": _mask("image"),
    "masking.random_mask.text_prob": _mask("text"),
    "text_embedding.model_name": _computed(_encoder),
    "text_embedding.batch_size": to("data.loader.eval_batch_size", make=whole, note="at which a frozen tower runs"),
    "text_embedding.max_length": _computed(to("task.text.context_length", make=whole)),
    "text_embedding.pooling_type": one_of("task.text.pooling", _same("mean", "cls", "last_token")),
    "text_embedding.qwen_instr": _computed(_instruction),
    "text_embedding.embedding_filename": _vectors,
}
_TRAINING: Mapping[str, Rule] = {
    "training.batch_size": to("data.loader.batch_size", make=whole),
    "training.num_workers": to("data.loader.workers", make=whole),
    "training.prefetch_factor": to("data.loader.prefetch_factor", make=whole),
    "training.num_epochs": to("trainer.max_epochs", make=whole),
    "training.patience": to("trainer.patience", make=whole, note="of validations"),
    "training.validation_interval": _epochs("trainer.validate_every"),
    "training.n_warmup_epochs": to("task.vision.freeze.warmup_epochs", make=whole),
    "training.compute_stats": lambda value, given: Outcome(
        ours={"data.image.statistics": "data" if truth(value) else "given"}
    ),
    "training.weighted_sampling": where_true({"data.mixture.sampling": "class_balanced"}),
    "training.scheduler.use_cosine_annealing": lambda value, given: Outcome(
        ours={"schedule.kind": "cosine" if truth(value) else "constant"}, note="from step to step"
    ),
    "training.scheduler.vision_eta_min": _floor("vision_model", "optimizer.groups.image.floor"),
    "training.scheduler.multimodal_classifier_eta_min": _floor("multimodal_classifier", "schedule.floor"),
    **_optimizer("vision_model"),
    **_optimizer("multimodal_classifier"),
    "output.save_dir": to("output.root", make=text),
    "output.log_dir": Needless("the log lies in the folder of the run"),
    "output.experiment_name": to("name", make=lambda value: as_name(text(value))),
    "output.wandb_project": to("trainer.wandb.project", make=text),
    **{f"{section}.{name}": rule for section in ("output", "checkpoint") for name, rule in _CHECKPOINTS.items()},
}

IMAGE_TEXT = Family(
    script="main.py",
    table={**_DATA, **_MODEL, **_TRAINING},
    needs=(
        ("data.dataset", "data.metadata_path"),
        ("vision_model.name",),
        ("text_embedding.model_name", "text_embedding.embedding_filename"),
        *((f"optimizer.{part}.{key}",) for part in _GROUPS for key in ("name", "learning_rate")),
    ),
    ours={"task.kind": "fuse", "trainer.monitor": "log_loss"},
    usual={
        "training.scheduler.use_cosine_annealing": True,
        "vision_model.unfreeze_layers": 0,
        "multimodal_classifier.fusion_strategy": "weighted_sum",
        "multimodal_classifier.loss_fn": "cross_entropy",
        **{key: [] for key in _HIDDEN.values()},
    },
    reads_file=True,
    file_flag="config",
    sections={"scheduler": "training.scheduler"},
)
