"""Files and calls of other scripts become ours: expected beside each example, and every line accounted for."""

from __future__ import annotations

import ast
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from consilium.converting import Conversion, convert, report, yaml_of
from consilium.converting.conversion import FAMILIES
from consilium.converting.image_text import IMAGE_TEXT
from consilium.core.errors import ConfigError
from consilium.core.reporter import Silent
from consilium.experiment import Experiment
from tests.docs.guides import read
from tests.policy.source import MODULES

EXAMPLES = Path(__file__).parent / "examples"
FILES = ["clip_splade", "trainer_arguments"]
CALLS = ["router", "expert", "biomed", "train_clip", "ret_clip", "image_text"]
KINDS = {"router": "classify", "image_text": "fuse"}


def words_of(example: str) -> list[str]:
    call = EXAMPLES / f"{example}.txt"
    return shlex.split(call.read_text(encoding="utf-8")) if call.is_file() else [f"{example}.yaml"]


def leaves(tree: dict[str, Any], place: str = "") -> Iterator[str]:
    """The names of all parameters, those in sections with dots."""
    for key, value in tree.items():
        yield from leaves(value, f"{place}{key}.") if isinstance(value, dict) else [f"{place}{key}"]


def converted(*words: str) -> Conversion:
    return convert(words, reporter=Silent())


@pytest.mark.parametrize("example", [*FILES, *CALLS])
def test_an_example_becomes_what_is_expected_and_resolves(example: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(EXAMPLES)
    expected = EXAMPLES / f"{example}.ours.yaml"
    assert yaml_of(converted(*words_of(example))) == expected.read_text(encoding="utf-8")
    assert Experiment.load(expected).task.kind == KINDS.get(example, "align")


@pytest.mark.parametrize("example", [*FILES, *CALLS])
def test_every_parameter_is_on_a_line_of_the_report(example: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(EXAMPLES)
    words = words_of(example)
    file = next((word for word in words if word.endswith(".yaml")), None)
    given = set(leaves(yaml.safe_load(Path(file).read_text(encoding="utf-8")))) if file else set()
    flags = words[next((n for n, word in enumerate(words) if word.endswith(".py")), len(words)) :]
    given |= {word[2:].partition("=")[0].replace("-", "_") for word in flags if word.startswith("--")} - {"config"}
    told = report(converted(*words), config="ours.yaml")
    assert [key for key in given if f"\n  {key}: " not in told] == []
    assert told.splitlines()[-1].startswith("  consilium ")
    assert "hf_secret" not in told


def test_the_whole_example(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(EXAMPLES)
    told = report(converted("clip_splade.yaml"), config="ours.yaml")
    for line in (
        "  save_steps: 0.1 -> trainer.save_every: 10 %",
        "  text_model_name: naver/splade-v3 -> task.text.name: naver/splade-v3, task.text.pooling: splade: with the "
        "layer that weighs terms, which the script left out; task.text.pooling: cls is the encoder alone",
        "  lr_scheduler_type: linear (left out) -> schedule.kind: linear",
        "  overwrite_output_dir: true -> output.if_exists: replace",
        "  remove_unused_columns: false: `data.sources.0.columns.meta` says which columns are kept",
        "  consilium train ours.yaml",
    ):
        assert f"\n{line}\n" in f"{told}\n"
    assert "not compared with the length of the training, which must be longer: the data is not here" in told
    assert "sparse" not in told.partition("not mapped:")[2]


def test_what_has_no_meaning_here_has_its_reason_in_the_table_of_parameters() -> None:
    """A reason is given in one way, `Needless`, and in words of docs/parameters.md."""
    reasons, elsewhere = [], []
    for name, module in MODULES.items():
        for node in ast.walk(module.tree) if name.startswith("consilium.converting.") else ():
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.args:
                first = ast.literal_eval(node.args[0]) if isinstance(node.args[0], ast.Constant) else None
                if node.func.id == "Needless":
                    reasons.append(first)
                elif node.func.id == "Outcome" and first == "needless" and name != "consilium.converting.rules":
                    elsewhere.append(module.place(node))
    page = read("parameters")
    assert len(reasons) > 20
    assert [reason for reason in reasons if reason is None or reason not in page] == []
    assert elsewhere == []


def test_every_parameter_that_is_known_stands_in_the_table() -> None:
    page = read("parameters").replace("-", "_")
    known = {key for family in FAMILIES for key in family.table}
    of_data = {"dataset_name", "train_file", "dataset_config_name", "text_column", "use_auth_token"}
    not_yet = {"clip_weight_path", "bert_weight_path", "use_bn_sync", "skip_aggregate"}
    names = {key.rpartition(".")[2] for key in known - of_data - not_yet}
    assert [name for name in sorted(names) if name not in page] == []


@pytest.mark.parametrize(
    ("given", "ours"),
    [
        ({"warmup_steps": 0.1}, {"schedule.warmup": "10 %"}),
        ({"warmup_steps": 0, "warmup_ratio": 0.05}, {"schedule.warmup": "5 %"}),
        ({"warmup_steps": 0}, {"schedule.kind": "linear", "schedule.warmup": None}),
        ({"lr_scheduler_type": "constant", "warmup_steps": 9}, {"schedule.kind": "constant", "schedule.warmup": None}),
        ({"lr_scheduler_type": "constant_with_warmup", "warmup_steps": 9}, {"schedule.warmup": "9 steps"}),
        ({"eval_steps": 500}, {"trainer.validate_every": None}),
        ({"eval_strategy": "steps", "eval_steps": 500}, {"trainer.validate_every": "500 steps"}),
        ({"eval_strategy": "epoch"}, {"trainer.validate_every": "1 epochs"}),
        ({"save_strategy": "steps"}, {"trainer.save_every": "500 steps"}),
        ({"save_steps": 300}, {"trainer.save_every": "300 steps"}),
        ({"logging_steps": 0.01}, {"trainer.log_every": "1 %"}),
        ({"max_grad_norm": 0}, {"trainer.clip_norm": None}),
        ({}, {"trainer.clip_norm": 1.0, "optimizer.learning_rate": 5e-5, "trainer.max_epochs": 3}),
        ({"num_train_epochs": 2.5}, {"trainer.max_epochs": 3}),
        ({"bf16": "True"}, {"trainer.precision": "bf16"}),
        ({"bf16": False}, {"trainer.precision": "fp32"}),
        ({"bf16": False, "fp16": True}, {"trainer.precision": "auto"}),
        ({"max_steps": None, "learning_rate": None}, {"trainer.max_steps": None, "optimizer.learning_rate": 5e-5}),
        ({"adam_beta2": 0.95}, {"optimizer.betas": [0.9, 0.95]}),
        ({"report_to": "none"}, {"trainer.wandb": None}),
        ({"overwrite_output_dir": False}, {"output.if_exists": "refuse"}),
        ({"freeze_text_model": True, "gradient_checkpointing": True}, {"task.text.gradient_checkpointing": None}),
    ],
)
def test_arguments_of_the_trainer(given: dict[str, Any], ours: dict[str, Any], tmp_path: Path) -> None:
    tree = converted(str(written(tmp_path, **given))).tree
    for dotted, value in ours.items():
        found: Any = tree
        for key in dotted.split("."):
            found = found.get(key) if found else None
        assert found == value, dotted


def written(folder: Path, **given: Any) -> Path:
    """A small file for train_clip.py."""
    base = {
        "vision_model_name": "vision",
        "text_model_name": "text",
        "dataset_configs": [{"a": {"dataset_name": "nowhere/a.jsonl"}}],
    }
    path = folder / "theirs.yaml"
    path.write_text(yaml.safe_dump({**base, **given}), encoding="utf-8")
    return path


def of_data(**own: Any) -> dict[str, Any]:
    """The data set ``a``."""
    return {"dataset_configs": [{"a": own}]}


def test_do_eval_is_an_evaluation_of_the_bundle(tmp_path: Path) -> None:
    told = report(converted(str(written(tmp_path, do_eval=True, output_dir="out/us"))), config="my ours.yaml")
    assert told.endswith(
        "run:\n  consilium train 'my ours.yaml'\n  consilium evaluate \"$(ls -d out/us/default-* | tail -1)\""
    )


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"learning_rate": "fast"}, '`learning_rate` is "fast"; expected a number.'),
        ({"num_train_epochs": 0}, "`num_train_epochs` is 0; expected a number above 0."),
        ({"per_device_train_batch_size": 1.5}, "`per_device_train_batch_size` is 1.5; expected a whole number."),
        ({"dataloader_drop_last": "maybe"}, "expected true or false."),
        ({"vision_model_name": [1]}, "`vision_model_name`: expected text."),
        ({"vision_model_name": None}, "which needs vision_model_name or model_name_or_path"),
        (
            {"eval_strategy": "steps", "evaluation_strategy": "epoch"},
            "both say what trainer.validate_every is; keep one.",
        ),
        ({"save_steps": -1}, "expected a number above 0."),
        (
            {"dataset_configs": [{"a": {"dataset_name": "a.jsonl", "weight": 0}}]},
            "a: weight is 0; expected a number above 0",
        ),
        ({"dataset_configs": [{"a": {"dataset_name": "a.jsonl", "weight": -2}}]}, "a: weight is -2; expected"),
        (
            {"dataset_configs": [{"a": {"dataset_nam": "a.jsonl"}}]},
            "a: `dataset_nam` is not known; did you mean `dataset_name`?",
        ),
        ({"dataset_configs": [{"a": {"weight": 2}}]}, "a: dataset_name is missing"),
        ({"dataset_configs": [{"a": {"dataset_name": "a.csv", "data_dir": "x"}}]}, "a.csv is a file"),
        ({"dataset_configs": []}, "expected a list of data sets"),
        ({"dataset_configs": 3}, "expected a list of data sets"),
        (
            {"dataset_configs": [{"a": {"dataset_name": "a.jsonl", "weight": 1}}, {"b": {"dataset_name": "b.jsonl"}}]},
            "either every source has a weight or none; missing: b",
        ),
    ],
)
def test_values_that_cannot_be_are_refused(given: dict[str, Any], said: str, tmp_path: Path) -> None:
    path = written(tmp_path, **given)
    with pytest.raises(ConfigError) as refused:
        converted(str(path))
    assert said in str(refused.value)
    assert str(path) in str(refused.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("- a\n- b\n", "holds a list; a config is a mapping"),
        ("", "is the config of no script that can be converted; its keys are none"),
        ("lr: 3\nbatch: 4\n", "its keys are lr, batch, and train_clip.py reads dataset_configs or"),
        ("name: a\ntask: {kind: align}\n", "is a config of Consilium already"),
        ("name: a\ntask: {kind: align}\nseed: 3\n", "is a config of Consilium already"),
        ("output_dir: out\ntext_model_name: bert\n", "which needs dataset_configs or dataset_name or train_file and"),
        ("data_url: a/b\nlr: 3\noutput_dir: out\n", "These parameters fit expert_model_train.py and biomed_train.py."),
        ("a: [", "is not valid YAML"),
    ],
)
def test_files_that_are_no_such_config_are_refused(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "theirs.yaml"
    path.write_text(text, encoding="utf-8")
    for words in ([str(path)], ["train_clip.py", str(path)]):
        with pytest.raises(ConfigError) as refused:
            converted(*words)
        if len(words) == 1 or "its keys are" not in said:
            assert said in str(refused.value)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        ("image_router_train.py --data_dir", "the flag --data_dir has no value; write --data_dir=VALUE."),
        ("image_router_train.py --data_dir --lr 3", "the flag --data_dir has no value"),
        ("image_router_train.py images --lr 3", "the word 'images' belongs to no flag"),
        ("image_router_train.py --data_dir a --lr 3 --learning_rate 4", "`lr: 3` and `learning_rate: 4` both say what"),
        ("image_router_train.py --lr 3 --lr=4", "the flag --lr is given twice"),
        ("image_router_train.py --lr 3", "which needs data_dir; given are lr."),
        ("image_router_train.py --data_url a/b", "These parameters fit expert_model_train.py and biomed_train.py."),
        ("image_router_train.py --data_dir a --resnet_size 17", "expected 18, 34, 50, 101 or 152"),
        (
            "image_router_trian.py --data_dir a",
            "image_router_trian.py is no script that can be converted; these can: train_clip.py,",
        ),
        ("train_clip.py missing.yaml", "config file missing.yaml does not exist"),
        ("RET_CLIP/training/main.py --lr 3", "which needs train_data; given are lr."),
        ("main.py --config a.yaml", "config file a.yaml does not exist"),
        ("a.yaml b.yaml", "2 words came; expected one file"),
    ],
)
def test_calls_that_cannot_be_read_are_refused(call: str, said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        converted(*call.split())
    assert said in str(refused.value)


@pytest.mark.parametrize(
    ("launcher", "size"),
    [
        ("", 8),
        ("python", 8),
        ("torchrun --nproc_per_node=4", 32),
        ("torchrun --nnodes 2 --nproc-per-node 4", 64),
        ("python3 -m torch.distributed.launch --use_env --nproc_per_node=2", 16),
        ("accelerate launch --multi_gpu --num_processes 3", 24),
    ],
)
def test_a_batch_of_each_device_is_one_of_all(launcher: str, size: int) -> None:
    words = [*launcher.split(), "image_router_train.py", "--data_dir=a", "--batch_size=8"]
    assert converted(*words).tree["data"]["loader"]["batch_size"] == size


def test_tokens_are_never_written(tmp_path: Path) -> None:
    for words in (
        ["expert_model_train.py", "--data_url=a/b", "--token=hf_secret"],
        [str(written(tmp_path, token="hf_secret"))],
    ):
        found = converted(*words)
        assert "hf_secret" not in yaml_of(found) + report(found, config="ours.yaml")


def test_switches_are_true_without_a_value() -> None:
    towers = "--vision_model_name v --text_model_name t --freeze_vision_model"
    found = converted(*f"expert_model_train.py {towers} --data_url a/b --do_eval false".split())
    assert found.tree["task"]["vision"]["freeze"] == {"kind": "tower"}
    assert "model" not in found.tree["task"]
    assert "consilium evaluate" not in report(found, config="ours.yaml")


RET_CLIP = "RET_CLIP/training/main.py --train-data=lmdb --batch-size=8"


@pytest.mark.parametrize(
    ("flags", "task"),
    [
        ("", {"vision": {"name": "vit_base_patch16_clip_224.openai"}, "text": {"name": "hfl/chinese-roberta-wwm-ext"}}),
        ("--resume=a/epoch_latest.pt", {"model": "a/epoch_latest"}),
        ("--resume=a/epoch_latest.pt --clip-weight-path=b.pt", {"model": "a/epoch_latest"}),
        ("--clip-weight-path=c/clip.pt --bert-weight-path=c/clip.pt", {"model": "c/clip"}),
        (
            "--clip-weight-path=c/clip.pt --bert-weight-path=bert.bin",
            {
                "vision": {"kind": "open_clip", "name": "c/clip"},
                "text": {"name": "hfl/chinese-roberta-wwm-ext", "pretrained": "bert.bin"},
            },
        ),
        ("--clip-weight-path=weights", {"vision": {"kind": "open_clip", "name": "weights-converted"},
                                        "text": {"name": "hfl/chinese-roberta-wwm-ext"}}),
    ],
)  # fmt: skip
def test_checkpoints_of_ret_clip_are_converted_first(flags: str, task: dict[str, Any]) -> None:
    found = converted(*RET_CLIP.split(), *flags.split())
    assert found.tree["task"] == {"kind": "align", "views": {"names": ["left", "right"]}, **task}
    told = report(found, config="ours.yaml")
    for path in {flag.partition("=")[2] for flag in flags.split() if "bert.bin" not in flag}:
        assert f"consilium models convert {path} --out " in told or "resume is given" in told


@pytest.mark.parametrize(
    ("launcher", "flags", "batch", "accumulate"),
    [
        ("torchrun --nproc_per_node=4", "", 32, None),
        ("torchrun --nproc_per_node=4", "--skip-aggregate", 8, 4),
        ("torchrun --nproc_per_node=4", "--skip-aggregate --accum-freq=2", 16, 4),
        ("python", "--skip-aggregate", 8, None),
    ],
)
def test_devices_that_compare_their_own_cases_are_batches_one_after_the_other(
    launcher: str, flags: str, batch: int, accumulate: int | None
) -> None:
    tree = converted(*launcher.split(), *RET_CLIP.split(), *flags.split()).tree
    assert tree["data"]["loader"]["batch_size"] == batch
    assert tree.get("trainer", {}).get("accumulate") == accumulate


def test_the_example_of_the_image_and_text_workflow_has_every_parameter() -> None:
    tree = yaml.safe_load((EXAMPLES / "image_text.yaml").read_text(encoding="utf-8"))
    elsewhere = {"data.metadata_path", "data.img_prefix", "seed", "splits.seed"}
    again = {f"output.{name}" for name in tree["checkpoint"]}
    assert set(leaves(tree)) == IMAGE_TEXT.table.keys() - elsewhere - again


def sections(folder: Path, **given: Any) -> Path:
    """A small file of the image + text workflow; ``__`` stands between sections and names."""
    optimizer = {part: {"name": "adamw", "learning_rate": 1e-3} for part in ("vision_model", "multimodal_classifier")}
    data, text = {"dataset": "dataset_v1"}, {"model_name": "pubmedbert"}
    tree = {"data": data, "vision_model": {"name": "vit_b_16"}, "text_embedding": text, "optimizer": optimizer}
    for dotted, value in given.items():
        *above, key = dotted.split("__")
        place: dict[str, Any] = tree
        for name in above:
            place = place.setdefault(name, {})
        place[key] = value
    path = folder / "theirs.yaml"
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return path


HIDDEN = {f"multimodal_classifier__{name}_projection_hidden": [8] for name in ("image", "text")}
RANDOM = {f"masking__random_mask__{name}": value for name, value in {"enabled": True, "text_prob": 0.5}.items()}


@pytest.mark.parametrize(
    ("given", "ours"),
    [
        ({}, {"task.vision.freeze.kind": "tower", "schedule.kind": "cosine", "task.text.freeze.kind": "tower"}),
        ({"vision_model__unfreeze_layers": 3}, {"task.vision.freeze.blocks": 3}),
        ({"vision_model__pooling_type": "max"}, {"task.vision.pooling": None}),
        ({"data__use_local": True}, {"data.root": "${CONSILIUM_DATA:-data}", "data.sources": None}),
        (
            {"data__metadata_path": "gs://b/a.csv", "data__img_prefix": "gs://b/i"},
            {"data.sources": [{"kind": "harmonised", "name": "a", "path": "gs://b/a.csv", "image_root": "gs://b/i"}]},
        ),
        ({"data__derm1m_sources": ["edu"], "data__datasets": ["isic"]}, {"data.filters.origins": None}),
        ({"data__derm1m_sources": ["edu"]}, {"data.filters.origins": {"derm1m": ["edu"]}}),
        ({"data__has_text": True, "data__data_fraction": 1.0}, {"data.filters": {"has_text": True}}),
        ({"training__compute_stats": False}, {"data.image.statistics": "given"}),
        ({"scheduler__use_cosine_annealing": False, "scheduler__vision_eta_min": 1e-6}, {"schedule.kind": "constant"}),
        ({"scheduler__vision_eta_min": 1e-5}, {"optimizer.groups.image.floor": 0.01}),
        (
            {"multimodal_classifier__projection_activation": "GELU", **HIDDEN},
            {"task.image_projection.activation": "gelu", "task.text_projection.activation": "gelu"},
        ),
        ({"multimodal_classifier__projection_activation": "relu"}, {"task.image_projection": {"kind": "linear"}}),
        ({"multimodal_classifier__projection_dropout": 0.1}, {"task.text_projection.dropout": 0.1}),
        ({"multimodal_classifier__loss_fn": "focal", "multimodal_classifier__label_smoothing": 0.1},
         {"task.loss.label_smoothing": None}),
        ({"multimodal_classifier__class_weights": {"a": 2}, "multimodal_classifier__use_class_weights_from_data": True},
         {"task.loss.class_weights": {"a": 2.0}}),
        ({"multimodal_classifier__use_auxiliary_loss": False, "multimodal_classifier__auxiliary_loss_weight": 0.2},
         {"task.auxiliary": None}),
        ({"masking__random_mask__text_prob": 0.5}, {"task.masking": None}),
        (RANDOM, {"task.masking.text": 0.5}),
        ({**RANDOM, "masking__mask_complete": "text"}, {"task.masking": {"complete": "text"}}),
        ({"text_embedding__model_name": "SapBERT", "text_embedding__qwen_instr": "x"},
         {"task.text.name": "sapbert", "task.text.instruction": None}),
        ({"text_embedding__embedding_filename": "a.parquet", "text_embedding__pooling_type": "cls"},
         {"task.text": {"kind": "vectors", "name": "a.parquet", "pooling": "cls"}}),
        ({"optimizer__vision_model__name": "adam", "optimizer__vision_model__momentum": 0.9},
         {"optimizer.groups.image": {"kind": "adam", "learning_rate": 0.001}}),
        ({"checkpoint__load_from": "runs/a"}, {"trainer.init_from": "runs/a"}),
        ({"output__keep_last": 2, "checkpoint__load_from": "best.pth"},
         {"trainer.keep_last": 2, "trainer.init_from": None}),
        ({"seed": 3}, {"seed": 3, "data.split.seed": 3}),
        ({"augmentation": None, "augmentation2__x": 1}, {"data.augmentation": None}),
    ],
)  # fmt: skip
def test_parameters_of_the_image_and_text_workflow(given: dict[str, Any], ours: dict[str, Any], tmp_path: Path) -> None:
    tree = converted(str(sections(tmp_path, **given))).tree
    for dotted, value in ours.items():
        found: Any = tree
        for key in dotted.split("."):
            found = found.get(key) if found else None
        assert found == value, dotted


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"data__dataset": None}, "which needs data.dataset or data.metadata_path"),
        ({"vision_model__name": None, "training__patience": 3}, "which needs vision_model.name"),
        ({"optimizer": None}, "which needs optimizer.vision_model.name and optimizer.vision_model.learning_rate and"),
        ({"data__datasets": "isic"}, '`data.datasets` is "isic"; expected a list of names.'),
        ({"image__img_size": [224]}, "`image.img_size`: expected two numbers in a list."),
        ({"scheduler__vision_eta_min": 1.0}, "expected a rate between 0 and optimizer.vision_model.learning"),
        ({"multimodal_classifier__final_hidden_sizes": 3}, "expected a list of widths."),
        ({"image__seed": 3, "splits__seed": 4}, "both say what seed is; keep one."),
    ],
)
def test_values_of_the_image_and_text_workflow_that_cannot_be(given: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as refused:
        converted(str(sections(tmp_path, **given)))
    assert said in str(refused.value)


def test_what_the_image_and_text_workflow_has_and_we_do_not_is_named(tmp_path: Path) -> None:
    given = {
        "vision_model__name": "inception_v3",
        "multimodal_classifier__final_activation": "mish",
        "multimodal_classifier__class_weights": [1, 2],
        "checkpoint__load_from": "best.pth",
        "training__num_epoch": 3,
    }
    told = report(converted(str(sections(tmp_path, **given))), config="ours.yaml").partition("not mapped:")[2]
    for line in (
        "vision_model.name: inception_v3: task.vision.name has nothing like it",
        "multimodal_classifier.final_activation: mish: heads know relu, gelu, silu, tanh",
        "multimodal_classifier.class_weights: [1, 2]: task.loss.class_weights has a number by label",
        "checkpoint.load_from: best.pth: its parts are others than ours",
        "training.num_epoch: 3: no parameter that is known; did you mean `training.num_epochs`?",
    ):
        assert line in told
