"""Trainings in processes of their own, forked from one that has imported everything: twenty starts take seconds."""

from __future__ import annotations

import multiprocessing
import os
import sys
from multiprocessing.context import ForkServerProcess
from pathlib import Path

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["consilium.session", "consilium.cli", "consilium.console", "tests.session.processes"])


def start(config: Path, *options: str, output: Path) -> ForkServerProcess:
    """``consilium train CONFIG OPTIONS`` in a new process, which a signal may end; what it prints goes to a file."""
    process = _CONTEXT.Process(target=_consilium, args=(["train", str(config), *options], str(output)))
    process.start()
    return process


def _consilium(arguments: list[str], output: str) -> None:
    from consilium.cli import main

    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.argv = ["consilium", *arguments]
    main()
