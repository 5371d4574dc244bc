"""What a licence of starting weights is said to forbid, and what is unknown."""

from __future__ import annotations

import pytest

from consilium.core.licenses import License, license_warnings, recorded, with_stated

NO_COMMERCE, NO_CHANGES, OWN = "commercial use", "changed versions", "terms of its own"


def of(name: str | None) -> License:
    return License(source="org/model", name=name, read_from="README.md")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("apache-2.0", []),
        ("Apache License, Version 2.0", []),
        ("The MIT License", []),
        ("BSD-3-Clause", []),
        ("cc-by-4.0", []),
        ("CC BY-SA 4.0", []),
        ("cc-by-nc-4.0", [NO_COMMERCE]),
        ("CC BY-NC-SA 4.0", [NO_COMMERCE]),
        ("cc-by-nd-4.0", [NO_CHANGES]),
        ("cc-by-nc-nd-4.0", [NO_COMMERCE, NO_CHANGES]),
        ("fair-noncommercial-research-license", [NO_COMMERCE]),
        ("Creative Commons Attribution-NonCommercial 4.0", [NO_COMMERCE]),
        ("for non-commercial use", [NO_COMMERCE]),
        ("research-only", [NO_COMMERCE]),
        ("health-ai-developer-foundations", [OWN]),
        ("dinov3-license", [OWN]),
        ("apple-amlr", [OWN]),
        ("other", [OWN]),
        ("mit or something else", [OWN]),
        ("license", [OWN]),
        (None, ["unknown"]),
    ],
)
def test_what_a_licence_forbids_is_said(name: str | None, said: list[str]) -> None:
    warning = of(name).warning() or ""
    assert [words for words in (NO_COMMERCE, NO_CHANGES, OWN, "unknown") if words in warning] == said
    assert ("'org/model'" in warning) == bool(said)
    assert name is None or not said or name in warning


def test_the_same_warning_comes_once() -> None:
    assert license_warnings([of("cc-by-nc-4.0"), of("mit"), of("cc-by-nc-4.0")]) == [of("cc-by-nc-4.0").warning()]
    assert license_warnings([of("mit"), of("apache-2.0")]) == []


def test_a_bundle_that_recorded_nothing_is_unknown_and_one_without_starting_weights_has_none() -> None:
    assert recorded([], source="demo") == []
    (unknown,) = recorded(None, source="router")
    assert (unknown.source, unknown.name) == ("router", None)
    assert "did not record" in unknown.read_from


def test_what_the_config_states_replaces_what_is_unknown_and_hides_nothing() -> None:
    key = "task.vision.license"
    stated = License(source="weights.pt", name="mit", read_from=key)

    def found(known: list[License] | None, name: str | None = "mit") -> list[License]:
        return list(with_stated(known, name, source="weights.pt", key=key))

    assert found([of(None)]) == [stated.model_copy(update={"source": "org/model"})]
    assert found([of("cc-by-nc-4.0")]) == [of("cc-by-nc-4.0"), stated]
    assert found([of("mit")]) == [of("mit")]
    assert found([of("mit")], None) == [of("mit")]
    assert found([]) == [stated], "weights of a bundle that started from random ones"
    assert found(None) == [], "random weights"
