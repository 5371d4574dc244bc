"""The command line: one short function per command, heavy imports inside."""

from __future__ import annotations

import os
import sys
import traceback
from typing import Annotated, NoReturn

import typer

from consilium.cli.configs import config_app
from consilium.cli.council import council_app
from consilium.cli.data import data_app
from consilium.cli.export import export
from consilium.cli.models import models_app
from consilium.cli.search import index, search
from consilium.cli.training import compare, crossval, demo, train
from consilium.cli.use import calibrate, ensemble, evaluate, forgetting, predict
from consilium.core.errors import ConsiliumError
from consilium.core.surroundings import end_without_reader, say, signals_as_ctrl_c, use_utf8

INTERRUPTED = 130  # the exit code that a shell gives for Ctrl-C

app = typer.Typer(
    help="Train, judge and serve a council of medical image and text models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (
    train,
    crossval,
    compare,
    evaluate,
    calibrate,
    ensemble,
    forgetting,
    predict,
    index,
    search,
    export,
    demo,
):
    app.command()(command)
app.add_typer(data_app, name="data")
app.add_typer(config_app, name="config")
app.add_typer(models_app, name="models")
app.add_typer(council_app, name="council")


def _version(show: bool) -> None:
    if show:
        from importlib.metadata import version

        typer.echo(version("consilium"))
        raise typer.Exit


@app.callback()
def _options(
    _version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
    _traceback: Annotated[bool, typer.Option("--traceback", help="Show the traceback of an error.")] = False,
    models: Annotated[
        str | None,
        typer.Option(
            "--from",
            help="A folder of pretrained models (consilium models fetch), where every command looks before the hub.",
            metavar="FOLDER",
        ),
    ] = None,
) -> None:
    """Options of every command."""
    if models is not None:
        os.environ["CONSILIUM_MODELS"] = models


def main() -> None:
    """Run a command; errors of ours become a message and their exit code."""
    use_utf8()
    # Before torch is loaded. Threads that spin while they wait take the cores from the processes that decode, and
    # beside a busy neighbour a batch takes many times as long.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    show = "--traceback" in sys.argv
    arguments = _of_all_first([argument for argument in sys.argv[1:] if argument != "--traceback"])
    with signals_as_ctrl_c():
        try:
            try:
                app(arguments)
            finally:
                if sys.stdout is not None:
                    sys.stdout.flush()
        except ConsiliumError as error:
            _end(f"error: {error}", code=error.exit_code, show=show)
        except BrokenPipeError:
            end_without_reader()
        except OSError as error:
            text = f"error: {error}. Look at this path, its permissions and its disk's free space."
            _end(text, code=2, show=show)
        except SystemExit as end:
            if isinstance(end.__context__, BrokenPipeError):  # Typer makes it the code of an error
                end_without_reader()
            if end.code == INTERRUPTED:  # Typer turns Ctrl-C into this without a word
                _end(_interruption(end), code=INTERRUPTED, show=show)
            raise


def _of_all_first(arguments: list[str]) -> list[str]:
    """The option ``--from FOLDER``, which is of every command, before the command, wherever it stood."""
    given = [number for number, argument in enumerate(arguments) if argument.partition("=")[0] == "--from"]
    taken = {place for number in given for place in (number, *([] if "=" in arguments[number] else [number + 1]))}
    return [
        *(argument for number, argument in enumerate(arguments) if number in taken),
        *(argument for number, argument in enumerate(arguments) if number not in taken),
    ]


def _interruption(end: BaseException) -> str:
    """What the KeyboardInterrupt behind an exit says: of a training where its checkpoint is."""
    found: BaseException | None = end
    while found is not None and not isinstance(found, KeyboardInterrupt):
        found = found.__cause__ or found.__context__
    return f"error: {found}" if isinstance(found, ConsiliumError) else "interrupted."


def _end(text: str, *, code: int, show: bool = False) -> NoReturn:
    if show:
        say(traceback.format_exc())
    say(text)
    sys.exit(code)
