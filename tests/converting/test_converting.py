"""Files and calls of other scripts become ours: expected beside each example, and every line accounted for."""

from __future__ import annotations

import ast
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from consilium.converting import Conversion, convert, report, yaml_of
from consilium.converting.conversion import FAMILIES
from consilium.core.errors import ConfigError
from consilium.core.reporter import Silent
from consilium.experiment import Experiment
from tests.docs.guides import read
from tests.policy.source import MODULES

EXAMPLES = Path(__file__).parent / "examples"
FILES = ["clip_splade", "trainer_arguments"]
CALLS = ["router", "expert", "biomed", "train_clip", "ret_clip"]


def words_of(example: str) -> list[str]:
    call = EXAMPLES / f"{example}.txt"
    return shlex.split(call.read_text(encoding="utf-8")) if call.is_file() else [f"{example}.yaml"]


def converted(*words: str) -> Conversion:
    return convert(words, reporter=Silent())


@pytest.mark.parametrize("example", [*FILES, *CALLS])
def test_an_example_becomes_what_is_expected_and_resolves(example: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(EXAMPLES)
    expected = EXAMPLES / f"{example}.ours.yaml"
    assert yaml_of(converted(*words_of(example))) == expected.read_text(encoding="utf-8")
    assert Experiment.load(expected).task.kind == ("classify" if example == "router" else "align")


@pytest.mark.parametrize("example", [*FILES, *CALLS])
def test_every_parameter_is_on_a_line_of_the_report(example: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(EXAMPLES)
    words = words_of(example)
    file = next((word for word in words if word.endswith(".yaml")), None)
    given = set(yaml.safe_load(Path(file).read_text(encoding="utf-8"))) if file else set()
    flags = words[next((n for n, word in enumerate(words) if word.endswith(".py")), len(words)) :]
    given |= {word[2:].partition("=")[0].replace("-", "_") for word in flags if word.startswith("--")}
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
    assert [key for key in sorted(known - of_data - not_yet) if key not in page] == []


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
        ("RET_CLIP/training/main.py --config a.yaml", "which needs train_data; given are config."),
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
