"""Damaged configs and overrides: read, or refused as a ConfigError."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import yaml

from consilium.core.config import apply_overrides, build, parse_yaml, read_tree, to_yaml
from consilium.core.errors import ConfigError
from consilium.experiment import Experiment
from tests.fuzz.mutate import Mutator, change_value, fuzz

PLAIN = """\
name: tiny
seed: 3
task: {kind: classify, vision: {name: resnet18}, loss: {kind: focal, gamma: 1.5}}
data:
  sources:
    - {kind: folder, name: a, path: "${HOME}/a", weight: 1}
    - kind: csv
      name: b
      path: b.csv
      weight: 2.5
      columns: {image: [left, right], label: null}
  image: {size: [32, 48]}
"""
ANCHORED = """\
extends: base.yaml
trainer: &t
  max_epochs: &n 3
  patience: *n
  precision: "fp32"
data:
  image: &x {size: [16, 16]}
  sources: [&s {kind: folder, name: a, path: a}, {<<: [*s, {label_levels: 2}], name: b}]
optimizer:
  kind: sgd
  learning_rate: 1e-3
"""
FLOW = b"""\
{name: j, task: {kind: classify, vision: {name: "resnet18"}, loss: {kind: focal}},
data: {sources: [{kind: jsonl, name: j, path: "\\u00e9.jsonl"}]}, trainer: {max_steps: 0x10}}
"""
BOMB = b"a: &a [x,x,x,x,x,x,x,x,x]\n" + b"".join(
    b"%c: &%c [%s]\n" % (name, name, b",".join([b"*%c" % (name - 1)] * 9)) for name in range(ord("b"), ord("j"))
)
CORPUS = [PLAIN.encode(), ANCHORED.encode(), FLOW, PLAIN.replace("\n", "\r\n").encode("utf-8-sig")]
TOKENS = [
    *(b"&a ", b"*a", b"&a [*a]", b"&t {t: *t}", b"<<: *t", b"<<: [*t, *x]", b"<<: 3", b"*x : 1", b"<<: *missing"),
    *(
        b"!!int ",
        b"!!float x",
        b"!!timestamp 2001-99-99",
        b"!!binary /",
        b"!!set {a, b}",
        b"!!omap [1]",
        b"!!pairs [1]",
    ),
    *(
        b"!!bool x",
        b"!!null x",
        b"!!str {}",
        b"!!map []",
        b"!!seq {}",
        b"!!python/object/apply:os.system [ls]",
        b"!own ",
    ),
    *(b".nan", b".inf", b"1e999", b"9" * 5000, b"0x", b"0b2", b"1:99:99", b"190:20:30.15", b"2026-01-31", b"~", b"-0"),
    *(
        b"[" * 3000,
        b"{a: " * 1500,
        b"- " * 3000,
        b"? " * 500,
        b'"',
        b"'",
        b"|\n",
        b">-\n  ",
        b"---\n",
        b"...\n",
        b"%YAML 9\n",
    ),
    *(b"\0", b"\xed\xa0\x80", b'"\\ud800"', b'"\\U00110000"', b"\xff\xfe", b"\xef\xbb\xbf", b"\x85", "\u2028".encode()),
    *(b"\t", b"\n", b": ", b"#", b"? {a: b}\n: c\n", b"? [1]\n: c\n", b"${HOME}", b"${A:-${B}}", b"${NOT_THERE}"),
    *(
        b"extends: self.yaml\n",
        b"extends: [base.yaml, base.yaml]\n",
        b"extends: {a: b}\n",
        b"extends: .\n",
        b"extends: /dev\n",
    ),
    *(
        b"kind: folder",
        b"kind: []",
        b"kind: {}",
        b"name: [",
        b"seed: 1e400",
        b"sources: {}",
        b"null: 1",
        b"true: 2",
        BOMB,
    ),
]


def change_key(data: bytes, chance: random.Random) -> bytes:
    """One value of a config becomes another."""
    try:
        tree = parse_yaml(data.decode("utf-8-sig"), origin="")
        if not isinstance(tree, dict):
            return data
        change_value(tree, chance)
        return yaml.safe_dump(tree, allow_unicode=True).encode(errors="surrogatepass")
    except (ConfigError, ValueError, RecursionError):
        return data


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "base.yaml").write_text(PLAIN, encoding="utf-8")
    return tmp_path


def test_damaged_configs(folder: Path, count: int) -> None:
    path = folder / "self.yaml"

    def check(data: bytes) -> bool:
        path.write_bytes(data)
        experiment = build(Experiment, read_tree(path), origin="fuzz")
        path.write_text(to_yaml(experiment), encoding="utf-8")
        # What was understood is what is written into the run, variables and layers resolved.
        assert build(Experiment, read_tree(path), origin="again") == experiment
        return True

    used, refused = fuzz(check, Mutator(CORPUS, TOKENS, seed=1, own=[change_key] * 6), count)
    assert used > count / 200
    assert refused > count / 2


def test_damaged_overrides(count: int) -> None:
    tree = parse_yaml(PLAIN, origin="base")
    valid = [
        *(
            "trainer.max_epochs=3",
            "data.sources.0.path=x",
            "data.image.size=[16, 24]",
            "seed=4",
            "task.loss={kind: focal}",
        ),
        *("data.sources.1.columns.image=[a, b]", "optimizer={kind: adamw, learning_rate: 1e-4}", "name='a.b'"),
    ]
    choose = random.Random(2)

    def check(data: bytes) -> bool:
        damaged = data.decode("utf-8", errors="surrogateescape")
        overrides = [choose.choice(valid), damaged]
        build(Experiment, apply_overrides(tree, overrides), origin="fuzz")
        return True

    mutator = Mutator([text.encode() for text in valid], [*TOKENS, b".", b"..", b"=", b"-1", b"99"], seed=3)
    used, refused = fuzz(check, mutator, count)
    assert used > count / 200
    assert refused > count / 2


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (BOMB.decode() + "name: [*i]\n", "more than 1,000,000 values"),
        ("a: &a [*a]\n", "nested too deeply"),
        ("a: &a {b: *a}\n", "nested too deeply"),
        ("a: " + "[" * 500 + "]" * 500, "nested too deeply"),
    ],
    ids=["aliases of aliases", "a list in itself", "a mapping in itself", "brackets"],
)
def test_small_texts_that_would_grow_without_end(tmp_path: Path, text: str, told: str) -> None:
    (path := tmp_path / "bomb.yaml").write_text(text, encoding="utf-8")
    for read in (lambda: read_tree(path), lambda: apply_overrides({}, [f"a={text}"])):
        with pytest.raises(ConfigError, match=told):
            read()
