"""What surrounds each command: how errors are said, and which streams take what is printed."""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, ParamSpec

import typer

from torchdelta.cli.streams import INTERRUPTED, claim_stdout
from torchdelta.console import PlainConsole, console
from torchdelta.errors import TorchdeltaError
from torchdelta.targets import names_standard_output

P = ParamSpec("P")


def guarded(command: Callable[P, None]) -> Callable[P, None]:
    """Print errors that the user can mend without a traceback; leave others to Python."""

    @functools.wraps(command)
    def call(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except TorchdeltaError as error:
            console(stderr=True).say(f"error: {error}", style="red")
            raise typer.Exit(1) from error
        except KeyboardInterrupt as error:
            console(stderr=True).say("interrupted")
            raise typer.Exit(INTERRUPTED) from error

    return call


@contextlib.contextmanager
def consoles(json: Path | None) -> Iterator[tuple[PlainConsole, PlainConsole, BinaryIO | None]]:
    """Give the consoles of figures and of news, and standard output where it is for JSON alone."""
    if not names_standard_output(json):
        yield console(), console(stderr=True), None
        return
    stdout = sys.stdout
    try:
        alone = claim_stdout()
        log = console(stderr=True)
        yield log, log, alone
    finally:
        sys.stdout = stdout
