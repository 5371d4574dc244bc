"""``trainer.precision: auto`` depends on the device and the model alone, never on a clock."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch

from consilium.training.precision import auto_precision

AMX = "processor : 0\nflags : fpu avx512f amx_bf16 amx_tile\n"
ZEN4 = "processor : 0\nflags\t\t: fpu avx512f avx512_bf16\n"
OLDER = "processor : 0\nflags : fpu avx2 avx512f\nbugs : amx_bf16\n"
CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("flags", "name", "expected"),
    [
        (AMX, "test_resnet", "bf16"),
        (ZEN4, "test_resnet", "bf16"),
        (AMX, "test_vit", "bf16"),
        (AMX, "test_mambaout", "fp32"),
        (AMX, "test_efficientnet", "fp32"),
        (AMX, "test_convnext", "fp32"),
        (OLDER, "test_resnet", "fp32"),
        ("", "test_resnet", "fp32"),
        (None, "test_resnet", "fp32"),  # not Linux
    ],
)
def test_on_a_cpu_by_its_instructions_and_the_kind_of_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: str | None, name: str, expected: str
) -> None:
    if flags is not None:
        (tmp_path / "cpuinfo").write_text(flags, encoding="utf-8")
    monkeypatch.setattr("consilium.training.precision.CPU_FLAGS", tmp_path / "cpuinfo")
    assert auto_precision(CPU, timm.create_model(name)) == expected


@pytest.mark.parametrize(("capability", "expected"), [((7, 5), "fp32"), ((8, 0), "bf16"), ((9, 0), "bf16")])
def test_on_cuda_from_ampere_on(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], expected: str) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    assert auto_precision(CUDA, timm.create_model("test_efficientnet")) == expected


def test_on_mps_it_is_fp32() -> None:
    assert auto_precision(torch.device("mps"), timm.create_model("test_resnet")) == "fp32"
