"""The arguments of the transformers Trainer, which many scripts take over as they are."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from consilium.converting.rules import (
    Given,
    Needless,
    Outcome,
    Rule,
    as_name,
    every,
    number,
    one_of,
    text,
    to,
    truth,
    where_true,
    whole,
)

TRAIN, EVALUATE = "consilium train {config}", "consilium evaluate {bundle}"


def batch_size(value: Any, given: Given) -> Outcome:
    """Theirs is of one device, ours of all together."""
    size = whole(value) * given.processes
    note = f"{given.processes} devices of {value} each" if given.processes > 1 else "over all devices together"
    return Outcome(ours={"data.loader.batch_size": size}, note=note)


def output_dir(value: Any, given: Given) -> Outcome:
    """A run goes to {root}/{name}/{variation}-{time}."""
    path = PurePath(text(value))
    if not path.name.strip("."):
        return Outcome(ours={"output.root": str(path)})
    return Outcome(ours={"output.root": str(path.parent), "name": as_name(path.name)})


def _warmup(value: Any, given: Given) -> Outcome:
    if given.values.get("lr_scheduler_type") == "constant":
        return Needless("the scheduler called constant has no warm-up, there and here")(value, given)
    return Outcome(ours={"schedule.warmup": every(value)} if number(value) else {})


def _warmup_ratio(value: Any, given: Given) -> Outcome:
    if number(given.values.get("warmup_steps") or 0) > 0:
        return Needless("`warmup_steps` comes first, there and here")(value, given)
    return _warmup(value, given)


def _betas(value: Any, given: Given) -> Outcome:
    betas = [number(given.values.get("adam_beta1", 0.9)), number(given.values.get("adam_beta2", 0.999))]
    return Outcome(ours={"optimizer.betas": betas})


def _epochs(value: Any, given: Given) -> Outcome:
    found = number(value)
    if found <= 0:
        raise ValueError("expected a number above 0")
    if number(given.values.get("max_steps", -1)) > 0:
        return Needless("`max_steps` comes first, there and here")(value, given)
    if found.is_integer():
        return Outcome(ours={"trainer.max_epochs": int(found)})
    return Outcome("changed", {"trainer.max_epochs": int(found) + 1}, note="a training has whole epochs")


def _max_steps(value: Any, given: Given) -> Outcome:
    return Outcome(ours={"trainer.max_steps": whole(value)} if number(value) > 0 else {})


def _precision(value: Any, given: Given) -> Outcome:
    if truth(value):
        return Outcome(ours={"trainer.precision": "bf16"})
    return Outcome(ours={} if truth(given.values.get("fp16", False)) else {"trainer.precision": "fp32"})


def _half_precision(value: Any, given: Given) -> Outcome:
    if not truth(value):
        return Outcome()
    return Outcome("changed", {"trainer.precision": "auto"}, note="fp16 becomes bf16 where device and model allow it")


def _clip_norm(value: Any, given: Given) -> Outcome:
    return Outcome(ours={"trainer.clip_norm": number(value) or None})


def _strategy(key: str, *, steps: tuple[str, ...], never: Needless) -> Rule:
    """steps (by the first of these parameters that is given), epoch, or no."""

    def rule(value: Any, given: Given) -> Outcome:
        match str(value).lower():
            case "steps":
                length = next((given.values[name] for name in steps if name in given.values), 500)
                return Outcome(ours={key: every(length)})
            case "epoch":
                return Outcome(ours={key: "1 epochs"})
            case "no" | "false" | "none":
                return never(value, given)
        return Outcome("unmapped", note="of strategies steps, epoch and no are known")

    return rule


def _by_steps(key: str, *, strategies: tuple[str, ...], usual: str) -> Rule:
    """A number of steps, which counts where the strategy is one of steps."""

    def rule(value: Any, given: Given) -> Outcome:
        strategy = next((given.values[name] for name in strategies if name in given.values), usual)
        if str(strategy).lower() == "steps":
            return Outcome(ours={key: every(value)})
        return Needless("it did nothing there either, where its strategy is another one")(value, given)

    return rule


def _metric(value: Any, given: Given) -> Outcome:
    name = text(value).removeprefix("eval_")
    if name == "loss":
        return Outcome(ours={"trainer.monitor": "log_loss"})
    return Outcome(
        "unmapped", note="the figures of this task are its own; `trainer.monitor` takes one of docs/judging_experts.md"
    )


def _report_to(value: Any, given: Given) -> Outcome:
    names = value if isinstance(value, list) else [value]
    unknown = [str(name) for name in names if name not in ("wandb", "tensorboard", "all", "none", None)]
    ours = {"trainer.wandb": True} if "wandb" in names else {}
    if unknown:
        return Outcome("unmapped", ours, note=f"no run is logged to {', '.join(unknown)}; wandb is `trainer.wandb`")
    return Outcome(ours=ours, note="" if ours else "TensorBoard and csv are written always")


def _resume(value: Any, given: Given) -> Outcome:
    if str(value).lower() in ("false", "none"):
        return Outcome()
    if str(value).lower() == "true":
        return Outcome(run=f"{TRAIN} --resume", note="of a run that was begun here")
    return Outcome(
        "unmapped", note="a checkpoint of the old script cannot be gone on with; a run begun here is, by --resume"
    )


def _checkpointing(value: Any, given: Given) -> Outcome:
    if not truth(value):
        return Outcome()
    learn = [
        side for side in ("vision", "text") if str(given.values.get(f"freeze_{side}_model", False)).lower() != "true"
    ]
    return Outcome(ours={f"task.{side}.gradient_checkpointing": True for side in learn})


def _train(value: Any, given: Given) -> Outcome:
    return Outcome(run=TRAIN) if truth(value) else Outcome(note="leave `consilium train` out")


def _evaluate(value: Any, given: Given) -> Outcome:
    return (
        Outcome(run=EVALUATE) if truth(value) else Outcome(note="every training is judged on its test split at its end")
    )


def _seed(value: Any, given: Given) -> Outcome:
    return Outcome(ours={"seed": whole(value)})


TRAINER: Mapping[str, Rule] = {
    "output_dir": output_dir,
    "overwrite_output_dir": lambda value, given: Outcome(
        ours={"output.if_exists": "replace" if truth(value) else "refuse"}
    ),
    "do_train": _train,
    "do_eval": _evaluate,
    "per_device_train_batch_size": batch_size,
    "per_device_eval_batch_size": lambda value, given: Outcome(
        ours={"data.loader.eval_batch_size": whole(value) * given.processes}
    ),
    "gradient_accumulation_steps": to("trainer.accumulate", make=whole),
    "learning_rate": to("optimizer.learning_rate", make=number),
    "weight_decay": to("optimizer.weight_decay", make=number),
    "optim": one_of(
        "optimizer.kind",
        {"adamw_torch": "adamw", "adamw_torch_fused": "adamw", "adamw_hf": "adamw", "sgd": "sgd"},
    ),
    "adam_beta1": _betas,
    "adam_beta2": _betas,
    "adam_epsilon": to("optimizer.eps", make=number),
    "max_grad_norm": _clip_norm,
    "lr_scheduler_type": one_of(
        "schedule.kind",
        {
            "linear": "linear",
            "cosine": "cosine",
            "constant": "constant",
            "constant_with_warmup": "constant",
            "reduce_lr_on_plateau": "plateau",
        },
    ),
    "warmup_steps": _warmup,
    "warmup_ratio": _warmup_ratio,
    "num_train_epochs": _epochs,
    "max_steps": _max_steps,
    "bf16": _precision,
    "fp16": _half_precision,
    "seed": _seed,
    "logging_steps": _by_steps("trainer.log_every", strategies=("logging_strategy",), usual="steps"),
    "logging_strategy": _strategy(
        "trainer.log_every", steps=("logging_steps",), never=Needless("a run always keeps a log")
    ),
    "eval_strategy": _strategy(
        "trainer.validate_every",
        steps=("eval_steps", "logging_steps"),
        never=Needless("validation chooses the weights that are kept"),
    ),
    "eval_steps": _by_steps("trainer.validate_every", strategies=("eval_strategy", "evaluation_strategy"), usual="no"),
    "save_strategy": _strategy(
        "trainer.save_every",
        steps=("save_steps",),
        never=Needless("a run can always be resumed, and keeps one checkpoint"),
    ),
    "save_steps": _by_steps("trainer.save_every", strategies=("save_strategy",), usual="steps"),
    "save_total_limit": to("trainer.keep_last", make=whole),
    "load_best_model_at_end": Needless("the best weights on validation are always those that are kept"),
    "metric_for_best_model": _metric,
    "greater_is_better": Needless("of every figure it is known which way is better"),
    "report_to": _report_to,
    "run_name": to("output.variation", make=lambda value: as_name(text(value))),
    "logging_dir": Needless("the log lies in the folder of the run"),
    "dataloader_num_workers": to("data.loader.workers", make=whole),
    "dataloader_prefetch_factor": to("data.loader.prefetch_factor", make=whole),
    "dataloader_drop_last": to("data.loader.drop_last", make=truth),
    "dataloader_pin_memory": Needless("batches are always copied in the fastest way that the device has"),
    "remove_unused_columns": Needless("`data.sources.0.columns.meta` says which columns are kept"),
    "gradient_checkpointing": _checkpointing,
    "torch_compile": to("trainer.compile", make=truth),
    "full_determinism": to("trainer.deterministic", make=truth),
    "use_cpu": where_true({"trainer.device": "cpu"}),
    "resume_from_checkpoint": _resume,
    "local_rank": Needless("`torchrun` or `accelerate launch` places the processes"),
    "disable_tqdm": Needless("progress is shown where there is a terminal"),
}
TRAINER = {**TRAINER, "evaluation_strategy": TRAINER["eval_strategy"]}
# What the Trainer does where nothing is said, as far as a training here would do otherwise.
USUAL: Mapping[str, Any] = {
    "per_device_train_batch_size": 8,
    "learning_rate": 5e-5,
    "weight_decay": 0.0,
    "max_grad_norm": 1.0,
    "lr_scheduler_type": "linear",
    "num_train_epochs": 3,
}

# Flags that may stand without a value: they are then true.
SWITCHES = frozenset(
    {
        "bf16", "dataloader_drop_last", "do_eval", "do_train", "fp16", "freeze_text_model", "freeze_vision_model",
        "full_determinism", "gradient_checkpointing", "load_best_model_at_end", "overwrite_cache",
        "overwrite_output_dir", "save_model", "torch_compile", "trust_remote_code", "use_cpu",
    }
)  # fmt: skip
