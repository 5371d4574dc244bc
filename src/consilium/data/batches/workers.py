"""Decoding processes: how they start, how their batches come back, and what is said when they end."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from multiprocessing.forkserver import ensure_running
from typing import TYPE_CHECKING, Any

from consilium.core.errors import MemoryExhaustedError
from consilium.core.reporter import counted
from consilium.data.config import LoaderConfig

if TYPE_CHECKING:
    import torch

SHARED_MEMORY = "/dev/shm"
GRACE = 10  # seconds that a worker goes on after SIGTERM
LONGEST_TEMPORARY = 64  # characters of the folder that sockets lie in, whose whole path may have about 100
# A terminal that closes and a scheduler send these to every process; the main one then still needs its batches.
_GROUP_SIGNALS = {signal.SIGHUP, signal.SIGUSR1}


def worker_count(config: LoaderConfig) -> int:
    """The number of decoding processes; auto leaves one core to the training."""
    if config.workers != "auto":
        return config.workers
    return min(_cores() - 1, 8)


def more_than_cores(config: LoaderConfig) -> str | None:
    """What to say of more decoding processes than there are cores; None where each may have one."""
    count, cores = worker_count(config), _cores()
    if count <= cores:
        return None
    return (
        f"data.loader.workers is {count}, and this process may use {counted(cores, 'core')}: the workers wait for each "
        "other, which may be slower than fewer of them."
    )


def _cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def start_method() -> str:
    """Workers are forked from a small process without threads, which imports what they need once.

    A fork of this process could wait for ever for a lock that one of its threads held.
    """
    return "forkserver" if _sockets_work() else "spawn"


def warm_up() -> None:
    """Let the process that workers are forked from import what they need, while this one does something else."""
    multiprocessing.get_context("forkserver").set_forkserver_preload(
        ["consilium.data.batches.loader", "pyarrow", "simplejpeg"]
    )
    if _sockets_work():
        with contextlib.suppress(OSError), starting():  # whoever starts a worker hears of it
            ensure_running()


@contextlib.contextmanager
def starting() -> Iterator[None]:
    """Where workers are started: they do not run the user's script, and keep off signals to the whole group.

    Python would run the script again in every worker, and a script without ``if __name__ == "__main__":`` would train
    there too. Workers only need what is imported from this package.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _GROUP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        sys.modules["__main__"] = main


@dataclass(frozen=True)
class WorkerStart:
    """What a worker does first: it takes over what buckets are reached by in the process that wants it.

    ``environment`` has its variables, ``buckets`` the settings of fsspec: the process that a worker is forked from may
    have started before credentials were given.
    """

    environment: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    buckets: Mapping[str, Any] = field(default_factory=lambda: _bucket_settings())

    def __call__(self, number: int) -> None:
        """Run in worker ``number``."""
        os.environ.clear()
        os.environ.update(self.environment)
        if self.buckets:
            import fsspec.config

            fsspec.config.conf.update(self.buckets)
        _prepare_worker()


def _bucket_settings() -> dict[str, Any]:
    """What a program set for buckets in Python; {} where it uses none."""
    settings = sys.modules.get("fsspec.config")
    return {} if settings is None else dict(settings.conf)


def _prepare_worker() -> None:
    import torch

    torch.set_num_threads(1)
    # Ctrl-C and a cluster's SIGTERM reach every process of the group, and the main one still needs the batch that this
    # worker is on to end its step and save. It says itself when it is done; only SIGTERM may also come from its exit.
    for number in (signal.SIGINT, *_GROUP_SIGNALS):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(GRACE))
    sys.excepthook = _report_unless_left


def _report_unless_left(kind: type[BaseException], error: BaseException, trace: types.TracebackType | None) -> None:
    """What a thread of a worker did not handle; a main process that stops while it takes a batch is no error."""
    if not issubclass(kind, EOFError | ConnectionError):
        sys.__excepthook__(kind, error, trace)


def why_not_shared(needed: int) -> str | None:
    """Why batches of ``needed`` bytes in all cannot wait in shared memory; None: they can."""
    if not _sockets_work():
        return f"the path of temporary files, {tempfile.gettempdir()}, is too long"
    try:
        free = shutil.disk_usage(SHARED_MEMORY).free // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    except OSError:  # a system that keeps shared memory elsewhere
        return None
    if needed <= free:
        return None
    return f"shared memory ({SHARED_MEMORY}) has {free / 2**20:,.0f} MiB free, and {needed / 2**20:,.0f} MiB may wait"


def shared(size: tuple[int, ...]) -> torch.Tensor | None:
    """Zeros (uint8) in shared memory; None where it is full."""
    import torch

    try:
        found: torch.Tensor = torch.zeros(size, dtype=torch.uint8).share_memory_()  # type: ignore[no-untyped-call]
        return found
    except RuntimeError:  # torch has no error of its own for this
        return None


@contextlib.contextmanager
def deaths_explained() -> Iterator[None]:
    """A worker that is gone becomes an error that says what to change."""
    try:
        yield
    except (RuntimeError, ConnectionError, EOFError) as error:  # torch has no error of its own for this
        said = str(error)
        if isinstance(error, RuntimeError) and not said.startswith("DataLoader worker"):
            raise
        if "in DataLoader worker process" in said:  # one that a worker sent
            raise
        raise MemoryExhaustedError(
            f"a process that decodes images died ({said.partition('. ')[0]}). Most often memory or shared memory "
            f"({SHARED_MEMORY}) ran out: lower data.loader.workers, prefetch_factor or batch_size, or give the run "
            "more of it; a training goes on with the same command and --resume."
        ) from error


def _sockets_work() -> bool:
    return len(tempfile.gettempdir()) <= LONGEST_TEMPORARY
