"""An encoder in chunks is the encoder: its outputs, its gradients, and less memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from consilium.core import devices
from consilium.core.devices import _left_by_limits, free_memory
from consilium.models import chunked
from consilium.models.chunked import MARGIN, _kept, in_chunks, largest_chunk
from consilium.models.weights import batch_statistics


def layers(dropout: float = 0.0) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 64), nn.GELU(), nn.Dropout(dropout), nn.Linear(64, 64), nn.GELU())


def gradients(encoder: nn.Module, compute: Callable[[Tensor], Tensor], rows_N: Tensor) -> dict[str, Tensor]:
    encoder.zero_grad()
    torch.manual_seed(1)
    compute(rows_N).square().mean().backward()  # type: ignore[no-untyped-call]
    return {name: one.grad.clone() for name, one in encoder.named_parameters() if one.grad is not None}


@pytest.mark.parametrize("size", [1, 3, 5, 10, 11, None])
def test_chunks_change_neither_outputs_nor_gradients(size: int | None) -> None:
    encoder, rows_N = layers(), torch.randn(10, 6)
    torch.testing.assert_close(in_chunks(encoder, rows_N, size=size), encoder(rows_N))
    found = gradients(encoder, lambda rows: in_chunks(encoder, rows, size=size), rows_N)
    for name, gradient in gradients(encoder, encoder, rows_N).items():
        torch.testing.assert_close(found[name], gradient, msg=name)


def test_what_dropout_drops_is_dropped_in_the_backward_pass_too() -> None:
    encoder, rows_N = layers(dropout=0.5), torch.randn(10, 6)
    found = gradients(encoder, lambda rows: in_chunks(encoder, rows, size=4), rows_N)
    kept = gradients(encoder, lambda rows: torch.cat([encoder(own) for own in torch.split(rows, 4)]), rows_N)
    for name, gradient in kept.items():
        torch.testing.assert_close(found[name], gradient, msg=name)


def test_of_a_chunk_only_the_outputs_are_kept() -> None:
    encoder, rows_N = layers(), torch.randn(1024, 6)
    whole = sum(_kept(lambda count: encoder(rows_N[:count]), 1024))
    parts = sum(_kept(lambda count: in_chunks(encoder, rows_N[:count], size=32), 1024))
    assert parts < whole / 4


def test_the_largest_chunk_is_what_fits_beside_the_states_of_the_training(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = layers()
    row = 4 * (64 + 64 + 64)  # the inputs of both activations and of the second layer; those of the first are there
    state = 4 * 4 * sum(parameter.numel() for parameter in encoder.parameters())
    rows_N = torch.zeros(2, 6)
    for room, expected in ((100 * MARGIN * row, 100), (MARGIN * row // 2, 1), (-5, 1)):
        monkeypatch.setattr(chunked, "free_memory", lambda device, room=room: state + room)
        assert largest_chunk([lambda count: encoder(rows_N[:count])], learns=encoder.parameters()) == expected


def test_asking_for_it_changes_nothing() -> None:
    encoder, before = layers(dropout=0.5), torch.get_rng_state()
    largest_chunk([lambda count: encoder(torch.zeros(count, 6))], learns=encoder.parameters())
    assert torch.equal(torch.get_rng_state(), before)
    assert all(parameter.grad is None for parameter in encoder.parameters())


def test_layers_that_mix_a_batch_are_found() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3), nn.LayerNorm(3), nn.BatchNorm1d(3, track_running_stats=False))
    assert batch_statistics(model) == ["0", "2"]
    model[0].eval()
    assert batch_statistics(model) == ["2"]


def test_free_memory_keeps_to_the_limits_of_the_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inner = tmp_path / "jobs" / "mine"
    inner.mkdir(parents=True)
    (own := tmp_path / "cgroup").write_text("0::/jobs/mine\n")
    for folder, limit in ((inner, "max"), (inner.parent, "5000")):
        (folder / "memory.max").write_text(f"{limit}\n")
        (folder / "memory.current").write_text("3000\n")
        (folder / "memory.stat").write_text("anon 1\ninactive_file 700\n")
    assert _left_by_limits(tmp_path, own) == 2700
    (inner / "memory.max").write_text("100\n")
    assert _left_by_limits(tmp_path, own) == 0
    assert _left_by_limits(tmp_path / "none", own) == 2**63
    monkeypatch.setattr(devices, "_left_by_limits", lambda: 1000)
    assert free_memory(torch.device("cpu")) == 1000
