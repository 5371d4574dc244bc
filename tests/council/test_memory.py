"""A council of ten experts at one resident takes the memory of the router and of one expert."""

from __future__ import annotations

import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import pytest

import consilium
from consilium.council import Council
from consilium.council.seats import ROUTER
from consilium.predictor import Predictor
from tests.council.conftest import changed, classifier
from tests.tiny import train_tiny

TEN = [f"label{number}" for number in range(10)]
MEGABYTES = 16  # of an expert

_SCRIPT = """
import re, sys
from pathlib import Path
import torch
import consilium

council, image, resident = sys.argv[1:]
torch.set_num_threads(1)
model = consilium.load(council, device="cpu", resident=int(resident) or None)
(record,) = model.predict([image])
assert len(record.get("asked", [record])) == len(model.seats) - 1, record
print(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
"""


@pytest.fixture(scope="module")
def router(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A router that has not learned, so that all experts are likely."""
    return classifier(tmp_path_factory.mktemp("ten"), TEN, "trainer.max_epochs=1", "optimizer.learning_rate=1e-6")


def image_of(router: Path) -> Path:
    return min(router.parents[2].glob("test-*.png"))


def council_of(router: Path, expert: Path, folder: Path, *, experts: int) -> Path:
    """Copies of an expert, all of which are asked about each image."""

    def copy(number: int) -> Path:
        return changed(expert, folder / f"expert{number}", lambda tree: tree.update(seed=number))

    (route,) = Predictor.load(router, device="cpu").predict([image_of(router)])
    likeliest = sorted(TEN, key=lambda label: -route["probabilities"][label])
    seats = {label: copy(number) for number, label in enumerate(likeliest[:experts])}
    return consilium.build_council(router=router, experts=seats, top_k=experts, out=folder / "council", quiet=True)


@pytest.mark.parametrize(("resident", "alive"), [(1, 1), (3, 3), (None, 10)])
def test_no_more_experts_are_alive_than_may_be_resident(
    router: Path, tiny_run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, resident: int | None, alive: int
) -> None:
    folder = council_of(router, tiny_run.folder, tmp_path, experts=10)
    council = consilium.load(folder, device="cpu", resident=resident)
    assert isinstance(council, Council)
    seen: list[weakref.ref[Any]] = []
    most = 0
    load = Predictor.load.__func__  # type: ignore[attr-defined]

    def noted(cls: type[Predictor], *arguments: Any, **options: Any) -> Predictor:
        nonlocal most
        found: Predictor = load(cls, *arguments, **options)
        seen.append(weakref.ref(found.task))
        most = max(most, sum(own() is not None for own in seen))
        return found

    monkeypatch.setattr(Predictor, "load", classmethod(noted))
    image = image_of(router)
    council = consilium.load(folder, device="cpu", resident=resident)
    assert isinstance(council, Council)
    for _ in range(2):
        (record,) = council.predict([image])
        assert {one["expert"] for one in record["asked"]} == set(TEN)
    assert most == alive + 1, "the router stays"
    assert ROUTER in council.seats
    assert len(seen) == 1 + {1: 19, 3: 17, None: 10}[resident], "those in memory are asked first"


def peak(council: Path, image: Path, *, resident: int = 0) -> float:
    """The most memory of a process that asks a council about an image, in MB."""
    command = [sys.executable, "-c", _SCRIPT, str(council), str(image), str(resident)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return int(done.stdout) / 1024


@pytest.mark.slow
def test_ten_experts_at_one_resident_take_the_memory_of_one(router: Path, tiny_images: Path, tmp_path: Path) -> None:
    width = round((MEGABYTES * 2**20 / 4) ** 0.5)
    head = f"task.head={{kind: mlp, hidden_sizes: [{width}, {width}]}}"
    expert = train_tiny(tiny_images, tmp_path / "runs", head, "trainer.max_steps=1").folder
    assert (expert / "model.safetensors").stat().st_size > 0.95 * MEGABYTES * 2**20
    image = image_of(router)
    ten = council_of(router, expert, tmp_path / "many", experts=10)
    one = peak(council_of(router, expert, tmp_path / "few", experts=1), image)
    assert peak(ten, image, resident=1) - one < 0.5 * MEGABYTES
    assert peak(ten, image) - one > 8 * MEGABYTES, "the measure notices who stays"
