"""The processes that decode images work in the surroundings of the training that wants them."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import pytest
from torch.utils.data import DataLoader

from consilium.data.batches import workers
from consilium.data.batches.loader import Loader, evaluation_requests
from consilium.data.batches.readers import ImageReader, Readers
from consilium.data.config import ImageConfig, LoaderConfig
from tests.data.samples import write_images

VARIABLE = "CONSILIUM_TEST_FOLDER"


class FromEnvironment:
    """An image in the folder that a variable names, as the credentials of a bucket are named."""

    def images(self, row: int) -> list[str | bytes]:
        return [f"{os.environ[VARIABLE]}/{row}.png"]


def test_more_workers_than_cores_are_said_once_and_in_our_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0}, raising=False)
    few, many = LoaderConfig(workers=1), LoaderConfig(workers=2)
    assert workers.more_than_cores(LoaderConfig(workers="auto")) is None
    assert workers.more_than_cores(few) is None
    said = workers.more_than_cores(many) or ""
    assert said.startswith("data.loader.workers is 2, and this process may use 1 core: ")
    with pytest.warns(UserWarning, match="This DataLoader will create 2 worker processes"):
        DataLoader([0], num_workers=2)
    loader = Loader(Readers(images=ImageReader(FromEnvironment(), image=ImageConfig())), config=many)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loader._build(2)


@pytest.mark.parametrize("folder", ["a", "b"])
def test_workers_have_the_environment_of_now(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str) -> None:
    """The process that they are forked from started before the variable was set, or with another value."""
    write_images(tmp_path / folder, ["0.png", "1.png"])
    monkeypatch.setenv(VARIABLE, str(tmp_path / folder))
    config = LoaderConfig(batch_size=1, workers=1)
    reader = ImageReader(FromEnvironment(), image=ImageConfig(size=(16, 16)))
    loader = Loader(Readers(images=reader), config=config)
    found = list(loader.load(evaluation_requests(range(2), config=config)))
    assert [loaded.errors for loaded in found] == [[], []]
    assert [len(loaded.batch) for loaded in found if loaded.batch is not None] == [1, 1]


def test_a_main_process_that_leaves_is_no_error_of_a_worker(capsys: pytest.CaptureFixture[str]) -> None:
    """Ctrl-C may come while it takes a batch: the thread that hands the batch over then finds nobody."""
    for left in (EOFError(), ConnectionResetError(), BrokenPipeError()):
        workers._report_unless_left(type(left), left, None)
    assert capsys.readouterr().err == ""
    fault = ValueError("its own")
    workers._report_unless_left(ValueError, fault, None)
    assert "ValueError: its own" in capsys.readouterr().err
