"""What is around a run: little shared memory, other signals, readers that go away, the umask, old locales."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from consilium.core import surroundings
from consilium.core.errors import ConfigError
from consilium.core.surroundings import Screen, require_utf8, use_utf8
from consilium.data.batches import workers
from consilium.data.batches.loader import Loader, evaluation_requests
from consilium.data.batches.readers import ImageReader, Readers
from consilium.data.batches.rows import Items
from consilium.data.config import ImageConfig, LoaderConfig
from tests.bad_input.conftest import runs
from tests.bad_input.test_stops import CLI, assert_loads, logged_step, saved_steps, start, wait_for
from tests.cli.conftest import Cli
from tests.tiny import SESSION, Run

# -- Shared memory ------------------------------------------------------------------------------------------------


def batches(images: Path, notes: list[str], *, count: int) -> list[torch.Tensor]:
    """All images of the folder as they arrive with ``count`` workers."""
    config, files = LoaderConfig(batch_size=8, workers=count), sorted(images.rglob("*.jpg"))
    reader = ImageReader(Items(files), image=ImageConfig(size=(16, 16)))
    loader = Loader(Readers(images=reader), config=config, note=notes.append)
    found = [loaded.batch for loaded in loader.load(evaluation_requests(range(len(files)), config=config))]
    return [batch.views.pixels for batch in found if batch is not None]


def free(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr(workers.shutil, "disk_usage", lambda _: SimpleNamespace(free=size))  # type: ignore[attr-defined]


def assert_the_same(found: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    assert len(found) == len(expected)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_batches_that_do_not_fit_into_shared_memory_come_another_way(
    tiny_images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = batches(tiny_images, [], count=0)
    notes: list[str] = []
    shared = batches(tiny_images, notes, count=1)
    assert not notes
    assert shared[0].is_shared()
    free(monkeypatch, 8 * 16 * 16 * 3 * 4 - 1)  # of four batches: two in the worker, one used, one on its way
    piped = batches(tiny_images, notes, count=1)
    (note,) = notes
    assert "shared memory (/dev/shm) has 0 MiB free" in note
    assert "Lower data.loader.workers, prefetch_factor or batch_size" in note
    assert not piped[0].is_shared()
    assert_the_same(shared, expected)
    assert_the_same(piped, expected)


def test_several_processes_of_a_machine_divide_its_shared_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    free(monkeypatch, 1000)
    assert workers.why_not_shared(1000) is None
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert workers.why_not_shared(250) is None
    assert workers.why_not_shared(251) is not None


def test_shared_memory_that_another_program_filled(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)")

    monkeypatch.setattr(torch.Tensor, "share_memory_", full)
    assert workers.shared((2, 3)) is None  # the worker then sends an ordinary array


def test_where_no_process_can_be_started_images_are_decoded_in_this_one(
    tiny_images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextlib.contextmanager
    def refused() -> Iterator[None]:
        raise OSError(28, "No space left on device")
        yield

    expected, notes = batches(tiny_images, [], count=0), []
    monkeypatch.setattr(workers, "warm_up", lambda: None)
    monkeypatch.setattr(workers, "starting", refused)
    assert_the_same(batches(tiny_images, notes, count=2), expected)
    assert [note for note in notes if "no process could be started to decode images ([Errno 28]" in note] == notes


# A script as people write it, without `if __name__ == "__main__":`.
SCRIPT = """
import sys
from consilium.data.config import ImageConfig, LoaderConfig
from consilium.data.batches.loader import Loader, evaluation_requests
from consilium.data.batches.readers import ImageReader, Readers
from consilium.data.batches.rows import Items

print("the script runs", flush=True)
config, image = LoaderConfig(batch_size=1, workers=2), ImageConfig(size=(16, 16))
loader = Loader(Readers(images=ImageReader(Items([sys.argv[1]] * 8), image=image)), config=config)
print(sum(1 for _ in loader.load(evaluation_requests(range(8), config=config))))
"""


@pytest.mark.slow
def test_workers_do_not_run_the_script_again(tiny_images: Path, tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT, encoding="utf-8")
    command = [sys.executable, str(tmp_path / "script.py"), str(next(tiny_images.rglob("*.jpg")))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout == "the script runs\n8\n", done.stderr


# -- Signals ------------------------------------------------------------------------------------------------------

UNDER_NOHUP = f"import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN); {CLI}"


@pytest.mark.slow
def test_a_signal_that_nohup_ignores_and_the_warning_of_a_scheduler(recipe: Path) -> None:
    long = ["trainer.max_epochs=400", "trainer.max_steps=1200", "data.loader.workers=1"]
    process = start(UNDER_NOHUP, "train", recipe, *long)
    wait_for(lambda: logged_step(recipe) >= 2, process)
    os.killpg(process.pid, signal.SIGHUP)
    before = logged_step(recipe)
    wait_for(lambda: logged_step(recipe) >= before + 2, process)
    os.killpg(process.pid, signal.SIGUSR1)  # to all processes, as `srun` sends it
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    (run,) = runs(recipe, "default-*")
    (step,) = saved_steps(run)
    assert f"error: stopped by SIGUSR1 after step {step} of 1200" in err
    assert_loads(run)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1])
def test_signals_end_a_command_as_ctrl_c_does(
    cli: Cli, recipe: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    monkeypatch.setattr(SESSION, "begin", lambda *_, **__: signal.raise_signal(number))
    answer = cli("train", recipe)
    assert (answer.code, answer.err.strip()) == (130, "interrupted.")
    assert signal.getsignal(number) == signal.SIG_DFL


# -- Readers that go away -----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_training_outlives_the_reader_of_its_output(recipe: Path) -> None:
    process = start(CLI, "train", recipe)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    process.stderr.close()
    assert process.wait(timeout=120) == 0
    (run,) = runs(recipe)
    assert '"finished"' in (run / "run.json").read_text(encoding="utf-8")
    assert "bundle and report.html are in" in (run / "log.txt").read_text(encoding="utf-8")


def test_what_is_only_printed_ends_with_its_reader(recipe: Path) -> None:
    process = start(CLI, "config", "show", recipe)
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    err = process.stderr.read()
    assert process.wait(timeout=60) == 128 + signal.SIGPIPE
    assert not err


def test_a_screen_that_is_gone() -> None:
    read, write = os.pipe()
    with os.fdopen(write, "w", encoding="utf-8") as stream:
        screen = Screen(stream)
        os.close(read)
        for _ in range(3):
            screen.write("word")
            screen.flush()
    for stream_or_none in (None, stream):  # closed from the start, and in the meantime
        closed = Screen(stream_or_none)
        assert closed.write("word") == 4
        closed.flush()


# -- Permissions --------------------------------------------------------------------------------------------------


def test_all_files_of_a_run_have_the_same_permissions(tiny_run: Run) -> None:
    files = [path for path in tiny_run.folder.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} >= {".safetensors", ".pt", ".json", ".csv", ".html"}
    expected = stat.S_IMODE((tiny_run.folder / "log.txt").stat().st_mode)
    assert {path.name: stat.S_IMODE(path.stat().st_mode) for path in files} == dict.fromkeys(
        (path.name for path in files), expected
    )


# -- Locales ------------------------------------------------------------------------------------------------------


def test_what_a_screen_cannot_show_is_escaped(recipe: Path, tmp_path: Path) -> None:
    for encoding in ("ascii", "latin-1"):
        path = tmp_path / encoding
        with path.open("w", encoding=encoding) as stream:
            Screen(stream).write("Schädel 眼底 \udce4")
        shown = "Sch\\xe4del" if encoding == "ascii" else "Schädel"
        assert path.read_text(encoding=encoding) == f"{shown} \\u773c\\u5e95 \\udce4"
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-c", CLI, "config", "show", str(recipe), "output.root=Schädel"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=environment)
    assert (done.returncode, done.stderr) == (0, "")


def test_names_are_read_as_utf8_in_an_old_locale(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[list[str]] = []
    monkeypatch.setattr(surroundings.sys, "getfilesystemencoding", lambda: "iso8859-1")  # type: ignore[attr-defined]
    monkeypatch.setattr(surroundings.os, "execv", lambda _, command: started.append(command))  # type: ignore[attr-defined]
    monkeypatch.setattr(sys, "orig_argv", ["python", "/bin/consilium", "train", "a.yaml"])
    monkeypatch.setenv("PYTHONUTF8", "0")
    use_utf8()
    assert started == [[sys.executable, "-X", "utf8", "/bin/consilium", "train", "a.yaml"]]
    assert os.environ["PYTHONUTF8"] == "1"  # also for what this process starts
    with pytest.raises(ConfigError, match=r"takes file names for iso8859-1.*PYTHONUTF8=1"):
        require_utf8()  # a program of one's own


@pytest.mark.skipif(shutil.which("localedef") is None, reason="no locale can be made")
def test_a_real_old_locale(tmp_path: Path) -> None:
    made = subprocess.run(
        ["localedef", "-i", "de_DE", "-f", "ISO-8859-1", str(tmp_path / "de_DE")], capture_output=True, check=False
    )
    if made.returncode:
        pytest.skip("the sources of locales are not installed")
    (tmp_path / "files" / "Schädel").mkdir(parents=True)
    script = "import os; from consilium.core.surroundings import use_utf8; use_utf8(); print(os.listdir('files'))"
    environment = {**os.environ, "LOCPATH": str(tmp_path), "LC_ALL": "de_DE"}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, timeout=60, check=False, env=environment, cwd=tmp_path)
    assert done.stdout.decode() == "['Schädel']\n", done.stderr
