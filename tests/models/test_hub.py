"""Pretrained weights where there is no network: seconds and one message, not a minute of retries."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from huggingface_hub import constants

from consilium.core.errors import WeightsError
from consilium.models.config import VisionConfig
from consilium.models.hub import cached_if_unreachable
from consilium.models.vision import build_vision

NAME = "test_resnet"


@pytest.fixture(autouse=True)
def nothing_cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)


@pytest.fixture
def unreachable(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The addresses that were asked, in vain."""
    asked: list[str] = []

    class Session:
        def head(self, url: str, *, timeout: float) -> None:
            asked.append(url)
            raise OSError("[Errno 111] Connection refused")

    monkeypatch.setattr("consilium.models.hub.get_session", Session)
    return asked


def test_the_hub_is_asked_once_and_the_error_says_why(
    unreachable: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    start = time.perf_counter()
    with pytest.raises(WeightsError) as caught:
        build_vision(VisionConfig(name=NAME), image_size=(32, 32))
    assert time.perf_counter() - start < 5
    assert f"{constants.ENDPOINT} does not answer: [Errno 111] Connection refused; its cache" in str(caught.value)
    assert "local weights file or folder, or to false" in str(caught.value)
    assert unreachable == [constants.ENDPOINT]
    assert "Retrying" not in "".join(capfd.readouterr())
    assert not constants.HF_HUB_OFFLINE


def test_who_is_offline_on_purpose_is_told_so(unreachable: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(WeightsError, match="HF_HUB_OFFLINE is set; its cache on this machine does not hold them"):
        build_vision(VisionConfig(name=NAME), image_size=(32, 32))
    assert not unreachable
    assert constants.HF_HUB_OFFLINE


def test_where_the_hub_answers_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    class Session:
        def head(self, url: str, *, timeout: float) -> None:
            assert timeout <= 5

    monkeypatch.setattr("consilium.models.hub.get_session", Session)
    with cached_if_unreachable() as reason:
        assert (reason, constants.HF_HUB_OFFLINE) == ("", False)
