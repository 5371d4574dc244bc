"""Scalars of YAML 1.1 that mean something else than they say, in files and in overrides."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pytest

from consilium.core.config import Config, apply_overrides, build, parse_yaml, to_yaml
from consilium.core.errors import ConfigError
from consilium.models.config import VisionConfig


class Sample(Config):
    """One key of each type that a config has."""

    whole: int = 0
    number: float = 0.0
    truth: bool = False
    text: str = ""
    texts: tuple[str, ...] = ()
    auto: int | Literal["auto", "off"] = "auto"
    either: bool | None = None


def of(**texts: str) -> Sample:
    return build(Sample, parse_yaml("".join(f"{key}: {text}\n" for key, text in texts.items()), origin="x"), origin="x")


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("whole", "010", 10), ("whole", "08", 8), ("whole", "-010", -10), ("whole", "1_000", 1000),
        ("whole", "0x10", 16), ("number", "010", 10.0), ("number", "01.5", 1.5), ("number", "1e-4", 1e-4),
        ("number", "1.5", 1.5), ("number", "-.5", -0.5), ("truth", "yes", True), ("truth", "Off", False),
        ("truth", "true", True), ("either", "no", False), ("either", "on", True), ("auto", "010", 10),
        ("auto", "off", "off"), ("auto", "auto", "auto"),
        ("text", "010", "010"), ("text", "1:30", "1:30"), ("text", "12:30:45.5", "12:30:45.5"), ("text", "no", "no"),
        ("text", "On", "On"), ("text", "y", "y"), ("text", "2026-01-31", "2026-01-31"), ("text", "=", "="),
        ("text", "0o10", "0o10"), ("text", "012e3", "012e3"),
    ],
)  # fmt: skip
def test_a_scalar_is_what_it_says(key: str, text: str, value: Any) -> None:
    found = getattr(of(**{key: text}), key)
    assert (found, type(found)) == (value, type(value))
    again = build(Sample, parse_yaml(to_yaml(of(**{key: text})), origin="x"), origin="x")
    assert getattr(again, key) == value


def test_labels_keep_their_form() -> None:
    assert of(texts="[no, yes, 007, 1:30, 'x']").texts == ("no", "yes", "007", "1:30", "x")


@pytest.mark.parametrize(("key", "text"), [("whole", "1:30"), ("whole", "0o10"), ("truth", "2"), ("text", "12")])
def test_what_does_not_fit_is_refused(key: str, text: str) -> None:
    with pytest.raises(ConfigError, match=f"`{key}` is "):
        of(**{key: text})


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("a=|", "|"), ("a=>", ">"), ("a=-", "-"), ("a=;", ";"), ("a=#", "#"), ("a=#id", "#id"), ("a=*", "*"),
        ("a=Case #", "Case #"), ("a=\t", "\t"), ("a= ", " "), ("a='|'", "|"), ("a=010", "010"), ("a=10", 10),
        ("a=", None), ("a=~", None), ("a=null", None), ("a=[a, b]", ["a", "b"]), ("a={b: 1}", {"b": 1}),
        ("a=x#y", "x#y"),
    ],
)  # fmt: skip
def test_marks_in_overrides_stand_for_themselves(override: str, value: Any) -> None:
    assert apply_overrides({}, [override]) == {"a": value}


@pytest.mark.parametrize(("text", "value"), [("no", False), ("Yes", True), ("true", True), ("w.pt", "w.pt")])
def test_weights_that_are_a_truth_or_a_file(text: str, value: Any, tmp_path: Path) -> None:
    assert build(VisionConfig, parse_yaml(f"pretrained: {text}", origin="x"), origin="x").pretrained == value
