"""Runs that are stopped: by numbers, a full disk, a signal, a kill. What was saved stays whole, and is resumed."""

from __future__ import annotations

import contextlib
import errno
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import consilium.training.state
from consilium.core.contracts import Batch, StepOutput
from consilium.data.batches.loader import Loader, evaluation_requests
from consilium.data.batches.readers import ImageReader, Readers
from consilium.data.batches.rows import Items
from consilium.data.config import ImageConfig, LoaderConfig
from consilium.tasks.classify.task import Classify
from consilium.training.hooks import ProgressHook, read_history
from consilium.training.state import checkpoints, load_checkpoint
from tests.bad_input.conftest import assert_refused, contents, nothing_lost, runs
from tests.cli.conftest import Cli
from tests.tiny import SESSION

LONG = ["trainer.max_epochs=4", "trainer.max_steps=12"]  # three steps an epoch; a checkpoint after each epoch


@pytest.fixture
def whole(cli: Cli, recipe: Path) -> Path:
    """The same training, unbroken."""
    assert cli("train", recipe, *LONG, "output.variation=whole").code == 0
    return runs(recipe, "whole-*")[0]


def broken_run(recipe: Path) -> Path:
    (run,) = runs(recipe, "default-*")
    return run


def saved_steps(run: Path) -> list[int]:
    return [int(path.name[5:]) for path in checkpoints(run / "checkpoints")]


def assert_loads(run: Path) -> None:
    """The last checkpoint is whole."""

    class Anything(nn.Module):
        def load_state_dict(self, state: Any, **_: Any) -> Any:  # type: ignore[override]
            self.state = state

        def take_found(self, found: Any) -> None:
            """Nothing was left to this machine."""

    module: Any = Anything()
    state, progress = load_checkpoint(checkpoints(run / "checkpoints")[-1], module=module)
    assert progress.step == saved_steps(run)[-1]
    assert all(torch.isfinite(tensor).all() for tensor in module.state.values())
    assert {"optimizer", "schedule", "random"} <= state.keys()


def assert_resumes(cli: Cli, recipe: Path, whole: Path) -> None:
    answer = cli("train", recipe, *LONG, "--resume")
    assert answer.code == 0, answer.err
    run = broken_run(recipe)
    assert (run / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert not list((run / "checkpoints").glob(".*"))


# -- Numbers ------------------------------------------------------------------------------------------------------


def test_a_loss_that_is_no_number(cli: Cli, recipe: Path, whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step, count = Classify.step, iter(range(1000))
    rows: list[int] = []

    def poisoned(task: Classify, batch: Batch) -> StepOutput:
        output = step(task, batch)
        if next(count) == 4 + 4:  # four steps of the trial, then four good ones
            rows[:] = batch.rows_B.tolist()
            output.loss = output.loss * torch.nan
        return output

    with monkeypatch.context() as patch:
        patch.setattr(Classify, "step", poisoned)
        answer = cli("train", recipe, *LONG)
    assert_refused(answer, "the loss became nan", "the optimizer did not take this step", "learning_rate", code=1)
    assert f"The last checkpoint, {checkpoints(broken_run(recipe) / 'checkpoints')[-1]}, is from before" in answer.err
    named = answer.err.partition("Cases of the step: ")[2].partition(". ")[0].split(", ")
    assert len(named) == len(rows) == 8
    assert all(name.startswith("images:train/") for name in named)
    run = broken_run(recipe)
    assert saved_steps(run) == [3]
    assert_loads(run)
    assert_resumes(cli, recipe, whole)


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["optimizer={kind: sgd, learning_rate: 1e30}"], "the loss became"),
        (["optimizer={kind: sgd, learning_rate: 1e30}", "data.loader.batch_size=24"], "validation cases are no longer"),
    ],
    ids=["loss", "validation"],
)
def test_a_training_that_diverges(cli: Cli, recipe: Path, overrides: list[str], told: str) -> None:
    answer = cli("train", recipe, *LONG, *overrides)
    assert_refused(answer, "Lower optimizer.learning_rate", "trainer.clip_norm", code=1)
    assert told in answer.err
    assert "No checkpoint was written yet." in answer.err
    run = broken_run(recipe)
    assert not list(run.rglob("*.safetensors"))  # nothing was good yet
    assert '"failed"' in (run / "run.json").read_text(encoding="utf-8")


# -- A full disk --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("written", ["weights", "trainer"])
def test_a_full_disk_while_a_checkpoint_is_written(
    cli: Cli, recipe: Path, whole: Path, monkeypatch: pytest.MonkeyPatch, written: str
) -> None:
    save_state, save = consilium.training.state.save_state, torch.save
    calls = iter(range(100))

    def full_state(state: Any, path: Path) -> None:
        save_state(state, path)
        if written == "weights" and path.parent.name.startswith(".step") and next(calls) == 1:
            raise OSError(errno.ENOSPC, "No space left on device")

    def full_save(value: Any, path: Path) -> None:
        save(value, path)
        if written == "trainer" and next(calls) == 1:
            raise RuntimeError("[enforce fail at inline_container.cc] . PytorchStreamWriter failed writing file")

    with monkeypatch.context() as patch:
        patch.setattr(consilium.training.state, "save_state", full_state)
        patch.setattr(torch, "save", full_save)
        answer = cli("train", recipe, *LONG)
    assert_refused(answer, "could not be written", "make room", "with --resume", code=1)
    run = broken_run(recipe)
    assert saved_steps(run) == [3]
    assert_loads(run)
    assert_resumes(cli, recipe, whole)


@contextlib.contextmanager
def small_disk(folder: Path, *, size: str) -> Iterator[None]:
    """A real file system of so many bytes."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if os.geteuid() != 0 or shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small file system needs the administrator")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_disk_that_is_really_full(cli: Cli, recipe: Path, whole: Path) -> None:
    disk = recipe.parent / "runs" / "tiny-disk"
    with small_disk(disk, size="9m"):  # a checkpoint with its best weights takes 6 MB, and two of them do not fit
        answer = cli("train", recipe, *LONG, f"output.root={disk}")
        assert_refused(answer, "could not be written", "make room", "with --resume", code=1)
        (run,) = disk.glob("tiny/*")
        assert saved_steps(run) == [3]
        assert_loads(run)
        assert not list((run / "checkpoints").glob(".*"))
        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
        assert cli("train", recipe, *LONG, f"output.root={disk}", "--resume").code == 0
        assert (run / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


def test_a_full_disk_while_the_bundle_is_written(
    cli: Cli, recipe: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("consilium.bundle.save_state", full)
        answer = cli("train", recipe, *LONG)
    assert_refused(answer, "could not be written: [Errno 28]", "with --resume", code=1)
    run = broken_run(recipe)
    assert not (run / "bundle.json").exists()  # no half bundle
    assert_refused(cli("predict", run, "a.jpg"), "has no bundle.json, so it is not a finished run")
    assert_resumes(cli, recipe, whole)


# -- Signals and kills --------------------------------------------------------------------------------------------

# As the command line, but the second checkpoint takes for ever to write, and says so in a file.
SLOW_SAVE = """
import sys, time
from pathlib import Path
import torch
from consilium.cli import main

save, calls, marker = torch.save, iter(range(100)), Path(sys.argv.pop())

def slow(value, path):
    save(value, path)
    if next(calls) == 1:
        marker.touch()
        time.sleep(600)

torch.save = slow
main()
"""


def wait_for(happened: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not happened():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(0.01)


def start(script: str, *arguments: object) -> subprocess.Popen[str]:
    """A process of its own group, as a terminal starts it."""
    command = [sys.executable, "-c", script, *map(str, arguments)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, start_new_session=True)


@pytest.mark.slow
def test_killed_while_a_checkpoint_is_written(cli: Cli, recipe: Path, whole: Path) -> None:
    marker = recipe.parent / "writing"
    process = start(SLOW_SAVE, "train", recipe, *LONG, marker)
    wait_for(marker.exists, process)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    run = broken_run(recipe)
    assert list((run / "checkpoints").glob(".step-00000006.*.tmp"))  # it was in the middle
    assert saved_steps(run) == [3]
    assert_loads(run)
    assert_resumes(cli, recipe, whole)


CLI = "from consilium.cli import main; main()"


def logged_step(recipe: Path) -> int:
    rows = [row for run in runs(recipe, "default-*") for row in read_history(run / "history.csv")]
    return max((int(row["step"]) for row in rows if (row.get("step") or "").isdigit()), default=0)


def test_ctrl_c_in_the_middle_of_an_epoch(cli: Cli, recipe: Path) -> None:
    long = ["trainer.max_epochs=400", "trainer.max_steps=1200", "data.loader.workers=1"]
    process = start(CLI, "train", recipe, *long)
    wait_for(lambda: logged_step(recipe) >= 4, process)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: the workers get it too
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in out + err
    run = broken_run(recipe)
    (step,) = saved_steps(run)
    assert f"error: stopped by SIGINT after step {step} of 1200" in err
    assert "Give the same command with --resume to go on exactly there." in err
    assert_loads(run)
    assert '"interrupted"' in (run / "run.json").read_text(encoding="utf-8")


@pytest.mark.slow
def test_ctrl_c_and_resume_in_processes_of_their_own(cli: Cli, recipe: Path, whole: Path) -> None:
    process = start(CLI, "train", recipe, *LONG, "data.loader.workers=2")
    wait_for(lambda: logged_step(recipe) >= 4, process)
    os.killpg(process.pid, signal.SIGINT)
    process.communicate(timeout=60)
    process = start(CLI, "train", recipe, *LONG, "--resume")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert "resumed from step-" in out
    (run,) = runs(recipe, "default-*")
    assert (run / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


def test_ctrl_c_before_the_training(cli: Cli, recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(SESSION, "begin", interrupted)
    answer = cli("train", recipe)
    assert (answer.code, answer.err.strip()) == (130, "interrupted.")
    assert not runs(recipe)


def test_ctrl_c_while_judging(cli: Cli, recipe: Path, whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("consilium.session.finish.judge", interrupted)
        assert cli("train", recipe, *LONG).code == 130
    assert saved_steps(broken_run(recipe)) == [12]
    assert_resumes(cli, recipe, whole)


# -- Two processes, one run ---------------------------------------------------------------------------------------

HOLD = """
import sys
from pathlib import Path
from consilium.training.runs import hold
with hold(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextlib.contextmanager
def held(run: Path) -> Iterator[int]:
    """Another process that works in the run; its number."""
    command = [sys.executable, "-c", HOLD, str(run)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process.pid
        process.kill()  # the lock goes with the process, however it ends


def test_a_run_that_another_process_works_in(
    cli: Cli, recipe: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_at(monkeypatch, 4)
    assert cli("train", recipe, *LONG).code == 130
    monkeypatch.undo()
    run = broken_run(recipe)
    with held(run) as process, nothing_lost(run):
        answer = cli("train", recipe, *LONG, "--resume")
        assert_refused(answer, f"{run} is in use by process {process} on ", "Wait for it or stop it")
        other = cli("train", recipe, "output.if_exists=replace")  # replaces finished ones, not this one
        assert other.code == 0
        assert run.is_dir()
    (new,) = (path for path in runs(recipe, "default-*") if path != run)
    shutil.rmtree(new)
    assert_resumes(cli, recipe, whole)


def stop_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    on_step = ProgressHook.on_step

    def stopping(hook: ProgressHook, progress: Any, log: Any) -> None:
        on_step(hook, progress, log)
        if progress.step == step:
            raise KeyboardInterrupt

    monkeypatch.setattr(ProgressHook, "on_step", stopping)


def test_a_variation_that_begins_like_another_is_another(cli: Cli, recipe: Path) -> None:
    assert cli("train", recipe, "output.variation=a-b").code == 0
    (other,) = runs(recipe)
    with nothing_lost(other):
        assert cli("train", recipe, "output.variation=a", "output.if_exists=replace").code == 0
        assert_refused(cli("train", recipe, "output.variation=a", "--resume"), "no unfinished run of 'a'")
    assert len(runs(recipe)) == 2


def test_a_damaged_state_of_a_run(cli: Cli, recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stop_at(monkeypatch, 4)
    assert cli("train", recipe, *LONG).code == 130
    monkeypatch.undo()
    run = broken_run(recipe)
    (run / "config.yaml").write_text("name: [", encoding="utf-8")
    assert_refused(cli("train", recipe, *LONG, "--resume"), "config.yaml is damaged", "without --resume")
    (run / "run.json").write_text('{"status": ', encoding="utf-8")
    before = contents(run)
    assert_refused(cli("train", recipe, *LONG, "--resume"), "run.json is damaged", "start a new run")
    assert contents(run) == before
    assert cli("train", recipe).code == 0


# -- Processes that decode ----------------------------------------------------------------------------------------


def test_a_worker_that_dies(cli: Cli, recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on_step = ProgressHook.on_step

    def killing(hook: ProgressHook, progress: Any, log: Any) -> None:
        on_step(hook, progress, log)
        if progress.step == 4:
            for worker in multiprocessing.active_children():
                worker.kill()

    monkeypatch.setattr(ProgressHook, "on_step", killing)
    answer = cli("train", recipe, *LONG, "data.loader={batch_size: 8, workers: 1, prefetch_factor: 1}")
    told = ["a process that decodes images died", "shared memory (/dev/shm)", "lower data.loader.workers", "--resume"]
    assert_refused(answer, *told, code=1)
    assert saved_steps(broken_run(recipe)) == [3]


def test_workers_outlive_the_signals_that_end_a_step(tiny_images: Path) -> None:
    config = LoaderConfig(batch_size=4, workers=1, prefetch_factor=1)
    image, files = ImageConfig(size=(16, 16)), Items(sorted(tiny_images.rglob("*.jpg")))
    loader = Loader(Readers(images=ImageReader(files, image=image)), config=config)
    batches = loader.load(evaluation_requests(range(24), config=config))
    next(batches)
    (worker,) = multiprocessing.active_children()
    assert worker.pid is not None
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        os.kill(worker.pid, number)
    assert len(list(batches)) == 5
    assert worker.is_alive()


# A traceback keeps what it came through, so the loader is not closed before the interpreter ends its children.
FAILS_WITH_A_WORKER = """
import sys
from consilium.data.config import ImageConfig, LoaderConfig
from consilium.data.batches.loader import Loader, evaluation_requests
from consilium.data.batches.readers import ImageReader, Readers
from consilium.data.batches.rows import Items

config, image = LoaderConfig(batch_size=1, workers=1), ImageConfig(size=(16, 16))
loader = Loader(Readers(images=ImageReader(Items([sys.argv[1]] * 24), image=image)), config=config)
batches = sys.modules["kept"] = loader.load(evaluation_requests(range(24), config=config))
next(batches)
raise RuntimeError("the end")
"""


@pytest.mark.slow
def test_a_process_that_fails_with_workers_ends(tiny_images: Path) -> None:
    process = start(FAILS_WITH_A_WORKER, next(tiny_images.rglob("*.jpg")))
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "RuntimeError: the end" in err
