"""Weights & Biases: what keeps it from working shows at once, in one line, and it prints little."""

from __future__ import annotations

import http.server
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from consilium.core.errors import ConfigError
from consilium.training.tracking import check_wandb
from tests.tiny import TrainTiny

wandb = pytest.importorskip("wandb", reason="wandb is not installed")


@pytest.fixture(autouse=True)
def nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No key of this machine's user, and nothing left of what an earlier test set up: wandb does so once a process."""
    wandb.teardown()
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path))


@pytest.fixture
def server() -> Iterator[str]:
    """A server that answers that there is nothing."""
    answering = http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
    threading.Thread(target=answering.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{answering.server_port}"
    answering.shutdown()
    answering.server_close()


def test_without_a_network_it_is_refused_before_any_data_is_read(
    tiny: TrainTiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    start = time.perf_counter()
    with pytest.raises(ConfigError, match=r"http://127\.0\.0\.1:9 does not answer: .*WANDB_MODE=offline") as caught:
        tiny("trainer.wandb=true", "data.sources.0.path=/no/such/folder")
    assert time.perf_counter() - start < 8
    assert "\n" not in str(caught.value)
    assert "<" not in str(caught.value)


def test_without_a_key_it_is_refused(monkeypatch: pytest.MonkeyPatch, server: str) -> None:
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_BASE_URL", server)
    with pytest.raises(ConfigError, match=r"No API key configured.*Log in with `wandb login`"):
        check_wandb()


def test_offline_nothing_is_asked_and_little_printed(
    tiny: TrainTiny, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    run = tiny("trainer.wandb=true")
    printed = capfd.readouterr()
    assert "wandb:" not in printed.out + printed.err
    assert run.log.count("Weights & Biases: kept in ") == 1
    monkeypatch.delenv("WANDB_MODE", raising=False)
