"""Config files: what they may say, and that every mistake is named where it was made."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pydantic
import pytest
from hypothesis import HealthCheck, Phase, given, settings

from consilium.core.config import apply_overrides, build, merge, parse_yaml, read_tree, to_yaml
from consilium.core.errors import ConfigError
from consilium.experiment import Experiment
from tests.core.configs import configs

GOOD: dict[str, Any] = {
    "name": "router",
    "task": {"kind": "classify"},
    "data": {"sources": [{"kind": "folder", "name": "atlas", "path": "images"}]},
    "optimizer": {"kind": "adamw"},
}


def problems(*overrides: str) -> list[str]:
    """The lines of the error that GOOD with these overrides gives."""
    with pytest.raises(ConfigError) as caught:
        build(Experiment, apply_overrides(GOOD, overrides), origin="r.yaml")
    first, *lines = str(caught.value).splitlines()
    assert first == "r.yaml:"
    return [line.removeprefix("  - ") for line in lines]


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


# --- what is wrong in a tree -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("nme=x", "`nme` is not a key of the config; did you mean `name`?"),
        ("optimizer.learning_rat=1", "`learning_rat` is not a key of `optimizer`; did you mean `learning_rate`?"),
        ("optimizer.nesterov=true", "`nesterov` is not a key of `optimizer`; it is one of: betas, eps, "),
        ("task.loss={kind: focal, gama: 2}", "`gama` is not a key of `task.loss`; did you mean `gamma`?"),
        (
            "data.sources.0.label_level=2",
            "`label_level` is not a key of `data.sources.0`; did you mean `label_levels`?",
        ),
        ("task.loss={gamma: 2}", "`task.loss`: `kind` is missing; it is one of cross_entropy, focal."),
        ("optimizer={learning_rate: 1}", "`optimizer`: `kind` is missing; it is one of adamw, adam, sgd."),
        ("task.loss.kind=focl", '`task.loss.kind` is "focl", which does not exist; did you mean `focal`?'),
        ("data.sources.0.kind=zip", '`data.sources.0.kind` is "zip", which does not exist; it is one of: folder, csv'),
        (
            "schedule=cosine",
            '`schedule` is "cosine"; expected a section of keys with `kind`: constant, cosine, linear, step',
        ),
        ("task=3", "`task` is 3; expected a section of keys with `kind`: classify, align, fuse."),
        ("data=null", "`data` is null; expected a section of keys."),
        ("data.sources=3", "`data.sources` is 3; expected a list."),
        ("data.sources=[]", "`data.sources` is []; expected 1 or more items."),
        ("data.sources.0={kind: folder, path: x}", "`data.sources.0.name` is missing; it has no default, so give it"),
        ("data.image.size=[224]", "`data.image.size` is [224]; expected more items."),
        ("data.image.size=[224, 4]", "`data.image.size.1` is 4; expected a number of 8 or more."),
        ("data.image.size=[1, 2, 3]", "`data.image.size` is [1, 2, 3]; expected no more than 2 items."),
        ("data.mixture.stop=step", '`data.mixture.stop` is "step"; expected one of first_exhausted, all_exhausted, '),
        ("task.vision.freeze.kind=towr", "(did you mean tower?)"),
        ("trainer.max_epochs=3.5", "`trainer.max_epochs` is 3.5; expected a whole number."),
        ("trainer.max_epochs=many", '`trainer.max_epochs` is "many"; expected a whole number.'),
        ("optimizer.learning_rate=0", "`optimizer.learning_rate` is 0; expected a number above 0."),
        ("optimizer.learning_rate=.inf", "`optimizer.learning_rate` is Infinity; expected a finite number."),
        ("trainer.compile=perhaps", '`trainer.compile` is "perhaps"; expected true or false.'),
        ("trainer.monitor=5", "`trainer.monitor` is 5; expected text (put it in quotes)."),
        ("trainer.wandb=3", "`trainer.wandb` is 3; expected true or false or a section of keys."),
        ("trainer.wandb={projct: a}", "`projct` is not a key of `trainer.wandb`; did you mean `project`?"),
        ("name=a b", '`name` is "a b"; expected text that matches ^\\.*[A-Za-z0-9_-][A-Za-z0-9_.-]*$.'),
        ("data.loader.workers=x", '`data.loader.workers` is "x"; expected a whole number or auto.'),
        (
            "optimizer.groups.haed.learning_rate=1",
            "`optimizer`: groups: the task has no group 'haed'; did you mean `head`?",
        ),
        ("optimizer.groups.text={}", "`optimizer`: groups: the task has no group 'text'; it is one of: tower, head."),
        (
            "optimizer.groups.head.kind=sdg",
            '`optimizer.groups.head.kind` is "sdg"; expected one of adamw, adam, sgd (did',
        ),
        (
            "optimizer.groups.head.learning_rat=1",
            "`learning_rat` is not a key of `optimizer.groups.head`; did you mean",
        ),
        ("optimizer.groups.head=3", "`optimizer.groups.head` is 3; expected a section of keys."),
        (
            "optimizer.groups.head.momentum=0.5",
            "`optimizer`: groups.head.momentum is given, but the optimizer of head, adamw, has no momentum.",
        ),
        (
            "optimizer.groups.head={kind: sgd, betas: [0.9, 0.9]}",
            "`optimizer`: groups.head.betas is given, but the optimizer of head, sgd, has no betas.",
        ),
        ("optimizer={kind: sgd, momentum: 0, nesterov: true}", "`optimizer`: nesterov looks ahead along the momentum"),
        (
            "optimizer.groups.head={kind: sgd, momentum: 0, nesterov: true}",
            "`optimizer`: groups.head: nesterov looks ahead along the momentum, which is 0",
        ),
        (
            "schedule.kind=constant optimizer.groups.head.floor=0.1",
            "`schedule`: kind constant has no floor, but optimizer.groups.head.floor is given; leave it out",
        ),
        (
            "task.vision.freeze={kind: tower, blocks: 2}",
            "`task.vision.freeze`: kind: all_but_last_blocks and blocks: N",
        ),
    ],
)
def test_problem_is_named_with_its_place_and_its_remedy(override: str, line: str) -> None:
    found = problems(*re.split(r" (?=optimizer\.)", override))
    assert len(found) == 1
    assert line in found[0]


def test_of_the_alternatives_of_a_value_the_one_that_was_meant_is_told() -> None:
    weights = "task.loss={kind: focal, class_weights: {ct: -1, mri: 1}}"
    assert problems(weights) == ["`task.loss.class_weights.ct` is -1; expected a number above 0."]
    assert problems("task.loss={kind: focal, class_weights: balancd}") == [
        '`task.loss.class_weights` is "balancd"; expected one of none, balanced (did you mean balanced?) '
        "or a section of keys."
    ]


def test_all_problems_are_listed_at_once() -> None:
    found = problems("seeed=1", "trainer.max_epochs=0", "data.image.std=[0, 1, 1]", "task.head={kind: mlp, size: 3}")
    assert len(found) == 4
    assert all(any(key in line for line in found) for key in ("seeed", "max_epochs", "data.image", "task.head"))


def test_sections_that_do_not_go_together() -> None:
    (found,) = problems("task.multi_label=true", "task.answers.wanted_accuracy=0.9")
    assert found.startswith("`task`: answers.wanted_accuracy is 0.9, but with multi_label nothing is left unanswered")


def test_missing_section_is_named() -> None:
    with pytest.raises(ConfigError, match=r"`task` is missing; it has no default") as caught:
        build(Experiment, {"name": "x"}, origin="r.yaml")
    assert "`data` is missing" in str(caught.value)


def test_config_cannot_be_changed_after_loading() -> None:
    experiment = build(Experiment, GOOD, origin="r.yaml")
    with pytest.raises(pydantic.ValidationError, match="frozen"):
        experiment.trainer.max_epochs = 3  # type: ignore[misc]


# --- YAML ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "number"),
    [("1e-4", 1e-4), ("1E5", 1e5), ("-2e3", -2e3), ("1.5e-3", 1.5e-3), ("1_0e1", 100.0), (".5", 0.5)],
)
def test_scientific_notation_is_a_number(text: str, number: float) -> None:
    assert parse_yaml(f"a: {text}", origin="x") == {"a": number}
    assert parse_yaml(f"a: '{text}'", origin="x") == {"a": text}


def test_keys_are_text_as_written_and_dates_are_text() -> None:
    parsed = parse_yaml("{0: a, 01: b, yes: c, 1.50: d, when: 2026-01-31}", origin="x")
    assert parsed == {"0": "a", "01": "b", "yes": "c", "1.50": "d", "when": "2026-01-31"}


def test_key_given_twice_is_refused_with_both_lines() -> None:
    with pytest.raises(ConfigError, match=r"r\.yaml:4: the key 'b' is given twice, first in line 2"):
        parse_yaml("a:\n  b: 1\n  c: 2\n  b: 3\n", origin="r.yaml")


def test_same_key_in_two_sections_is_fine_and_anchors_merge() -> None:
    parsed = parse_yaml("a: &base {x: 1, y: 2}\nb:\n  <<: *base\n  x: 3\n", origin="x")
    assert parsed == {"a": {"x": 1, "y": 2}, "b": {"x": 3, "y": 2}}


@pytest.mark.parametrize(
    "text", ["a: [1", "a: b: c", "\tx: 1", "a: !!python/object/apply:os.system [ls]", "a: 1\n--- \nb: 2"]
)
def test_text_that_is_not_yaml_is_refused_with_its_place(text: str) -> None:
    with pytest.raises(ConfigError, match=r"r\.yaml is not valid YAML:(.|\n)*line \d"):
        parse_yaml(text, origin="r.yaml")


def test_file_that_is_no_mapping_of_sections_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds a list; a config is a mapping"):
        read_tree(write(tmp_path / "a.yaml", "- 1\n"))
    with pytest.raises(ConfigError, match="does not exist"):
        read_tree(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_tree(tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"name: gr\xfc\n")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_tree(tmp_path / "latin.yaml")


def test_byte_order_mark_and_empty_file_are_fine(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("name: x\n", encoding="utf-8-sig")
    assert read_tree(tmp_path / "a.yaml") == {"name": "x"}
    assert read_tree(write(tmp_path / "b.yaml", "# nothing\n")) == {}


# --- extends ---------------------------------------------------------------------------------------------------------


def test_extends_layers_files_key_by_key(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    write(tmp_path / "base" / "root.yaml", "seed: 1\ntrainer: {max_epochs: 1, patience: 1}\nlist: [1, 2]\n")
    write(tmp_path / "base" / "middle.yaml", "extends: root.yaml\ntrainer: {patience: 2}\n")
    write(tmp_path / "other.yaml", "trainer: {patience: 3, log_every: 3}\n")
    path = write(tmp_path / "top.yaml", "extends: [base/middle.yaml, other.yaml]\nseed: 4\nlist: [3]\n")
    assert read_tree(path) == {
        "seed": 4,
        "trainer": {"max_epochs": 1, "patience": 3, "log_every": 3},
        "list": [3],
    }


def test_section_of_another_kind_replaces_the_base_and_of_the_same_kind_joins_it() -> None:
    base = {"optimizer": {"kind": "sgd", "momentum": 0.5, "learning_rate": 1}}
    assert merge(base, {"optimizer": {"kind": "adam"}}) == {"optimizer": {"kind": "adam"}}
    joined = {"optimizer": {"kind": "sgd", "momentum": 0.5, "learning_rate": 2}}
    assert merge(base, {"optimizer": {"kind": "sgd", "learning_rate": 2}}) == joined
    assert merge(base, {"optimizer": {"learning_rate": 2}}) == joined
    assert base == {"optimizer": {"kind": "sgd", "momentum": 0.5, "learning_rate": 1}}


def test_circle_of_extends_is_refused_and_drawn(tmp_path: Path) -> None:
    write(tmp_path / "a.yaml", "extends: b.yaml\n")
    write(tmp_path / "b.yaml", "extends: ./a.yaml\n")
    with pytest.raises(ConfigError, match=r"circle: .*a\.yaml -> .*b\.yaml -> .*a\.yaml"):
        read_tree(tmp_path / "a.yaml")


def test_same_base_twice_is_no_circle(tmp_path: Path) -> None:
    write(tmp_path / "root.yaml", "seed: 1\n")
    write(tmp_path / "a.yaml", "extends: root.yaml\n")
    assert read_tree(write(tmp_path / "b.yaml", "extends: [root.yaml, a.yaml]\n")) == {"seed": 1}


@pytest.mark.parametrize("value", ["3", "{a: b}", "[a.yaml, 3]"])
def test_extends_must_be_paths(tmp_path: Path, value: str) -> None:
    with pytest.raises(ConfigError, match=r"`extends` is .*expected the path of a YAML file"):
        read_tree(write(tmp_path / "x.yaml", f"extends: {value}\n"))


def test_missing_base_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.yaml, which .*a\.yaml extends, does not exist"):
        read_tree(write(tmp_path / "a.yaml", "extends: nowhere.yaml\n"))


# --- environment variables -------------------------------------------------------------------------------------------


def test_variables_are_replaced_everywhere_but_in_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATA", "/images")
    monkeypatch.delenv("UNSET_ONE", raising=False)
    text = "path: ${DATA}/${UNSET_ONE:-ct}/${DATA}\nempty: '${UNSET_ONE:-}'\nlist: [{a: '${DATA}'}]\nplain: $DATA\n"
    assert read_tree(write(tmp_path / "a.yaml", text)) == {
        "path": "/images/ct//images",
        "empty": "",
        "list": [{"a": "/images"}],
        "plain": "$DATA",
    }


def test_unset_variable_is_named_with_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("UNSET_ONE", raising=False)
    with pytest.raises(
        ConfigError, match=r"a\.yaml: the environment variable UNSET_ONE is not set; .*\$\{UNSET_ONE:-def"
    ):
        read_tree(write(tmp_path / "a.yaml", "path: ${UNSET_ONE}\n"))
    with pytest.raises(ConfigError, match=r"override output\.root: the environment variable UNSET_ONE"):
        apply_overrides(GOOD, ["output.root=${UNSET_ONE}"])


def test_variable_that_holds_a_number_counts_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EPOCHS", "7")
    tree = apply_overrides(GOOD, ["trainer.max_epochs=${EPOCHS}", "optimizer.learning_rate=${RATE:-1e-4}"])
    experiment = build(Experiment, tree, origin="x")
    assert experiment.trainer.max_epochs == 7
    assert experiment.optimizer.learning_rate == 1e-4


# --- overrides -------------------------------------------------------------------------------------------------------


def test_overrides_reach_into_lists_and_new_sections_and_leave_the_tree() -> None:
    before = to_yaml(build(Experiment, GOOD, origin="x"))
    tree = apply_overrides(
        GOOD, ["data.sources.0.path=other", "trainer.max_epochs=3", "optimizer.betas=[0.5, 0.9]", "name= spaced "]
    )
    assert tree["data"]["sources"] == [{"kind": "folder", "name": "atlas", "path": "other"}]
    assert tree["trainer"] == {"max_epochs": 3}
    assert tree["optimizer"] == {"kind": "adamw", "betas": [0.5, 0.9]}
    assert tree["name"] == "spaced"
    assert to_yaml(build(Experiment, GOOD, origin="x")) == before


def test_later_override_wins_and_a_value_may_hold_an_equals_sign() -> None:
    assert apply_overrides({}, ["a=1", "a=2", "b=x=y"]) == {"a": 2, "b": "x=y"}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trainer.max_epochs", "has no value; write it as section.key=value"),
        ("=3", "has no value"),
        ("data.sources.1.path=x", "'1' is not an index of a list with 1 items"),
        ("data.sources.first.path=x", "'first' is not an index of a list with 1 items"),
        ("name=[1", "override name is not valid YAML"),
    ],
)
def test_override_that_cannot_be_applied_is_refused(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        apply_overrides(GOOD, [override])


BARE = "name: a\ntask: {kind: classify}\ndata: {sources: [{kind: folder, name: a, path: images}]}\n"


@pytest.mark.parametrize(
    ("overrides", "section", "values"),
    [
        (["optimizer.learning_rate=1e-4"], "optimizer", {"kind": "adamw", "learning_rate": 1e-4, "eps": 1e-8}),
        (["schedule.floor=0.1"], "schedule", {"kind": "cosine", "floor": 0.1, "warmup": 0.05}),
        (["task.loss.label_smoothing=0.1"], "task.loss", {"kind": "cross_entropy", "label_smoothing": 0.1}),
        (["task.head.dropout=0.2"], "task.head", {"kind": "linear", "dropout": 0.2}),
        (["optimizer.momentum=0.5", "optimizer.kind=sgd"], "optimizer", {"kind": "sgd", "momentum": 0.5}),
        (["schedule.patience=7", "schedule.kind=plateau"], "schedule", {"kind": "plateau", "warmup": 0.0}),
        (["schedule={kind: cosine}", "schedule.floor=0.1"], "schedule", {"warmup": 0.0, "floor": 0.1}),
    ],
)
def test_an_override_in_a_section_that_is_not_there_changes_its_default(
    tmp_path: Path, overrides: list[str], section: str, values: dict[str, Any]
) -> None:
    empty = f"{section}:\n" if "." not in section else ""
    written, same = (write(tmp_path / name, BARE + more) for name, more in (("a.yaml", ""), ("b.yaml", empty)))
    assert Experiment.load(written, overrides=overrides) == Experiment.load(same, overrides=overrides)
    found = Experiment.load(written, overrides=overrides).model_dump()
    for key in section.split("."):
        found = found[key]
    assert found == {**found, **values}


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("optimizer.momentum=0.5", "`momentum` is not a key of `optimizer`; it is one of: betas, eps"),
        ("optimizer.momentum=0.5", "It is a key of `optimizer.kind: sgd`."),
        ("schedule.patience=2", "It is a key of `schedule.kind: plateau`."),
        ("schedule.factor=2", "It is a key of `schedule.kind: step` or `schedule.kind: plateau`."),
        ("optimizer.learning_rat=1", "`learning_rat` is not a key of `optimizer`; did you mean `learning_rate`?"),
    ],
)
def test_a_key_of_another_kind_names_that_kind(tmp_path: Path, override: str, line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Experiment.load(write(tmp_path / "r.yaml", BARE), overrides=[override])
    assert line in str(caught.value)


def test_load_reads_file_and_overrides(tmp_path: Path) -> None:
    path = write(tmp_path / "r.yaml", to_yaml(build(Experiment, GOOD, origin="x")))
    experiment = Experiment.load(path, overrides=["task.loss={kind: focal, gamma: 1}"])
    assert experiment.task.loss.kind == "focal"
    with pytest.raises(ConfigError, match=r"r\.yaml:\n  - `gama` is not a key of `task\.loss`"):
        Experiment.load(path, overrides=["task.loss={kind: focal, gama: 1}"])


# --- round trip ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["a\x85b", "a\u2028b", "\u2029", "a\nb\n", " a", "a: b", "1e5", "null", "ü\t", "'"])
def test_text_survives_yaml_character_by_character(text: str) -> None:
    tree = {**GOOD, "output": {"root": text}}
    experiment = build(Experiment, tree, origin="x")
    assert build(Experiment, parse_yaml(to_yaml(experiment), origin="x"), origin="x").output.root == text


# Shrinking a whole experiment takes minutes, and the failing YAML is readable as it is.
@settings(suppress_health_check=[HealthCheck.too_slow], phases=[Phase.reuse, Phase.generate])
@given(configs(Experiment))
def test_any_experiment_survives_yaml(experiment: Experiment) -> None:
    text = to_yaml(experiment)
    assert build(Experiment, parse_yaml(text, origin="x"), origin="x") == experiment, text
