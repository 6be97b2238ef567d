"""Standard input, output and error as they may be found: closed, full, without a reader, ASCII."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import signal
import sys
from types import FrameType
from typing import Any, BinaryIO, NoReturn, TextIO

from torchdelta.errors import SinkError

BROKEN_PIPE = 128 + signal.SIGPIPE
INTERRUPTED = 128 + signal.SIGINT
STANDARD_OUTPUT = "standard output"
SHOW_CURSOR = "\x1b[?25h"


class OutputGone(BaseException):
    """Nobody can read any more what a command prints.

    No Exception: nothing below the command line may take it for an error of its own.
    """

    def __init__(self, name: str, error: OSError) -> None:
        super().__init__(f"{name} cannot be written: {error.strerror or error}")
        self.exit_code = BROKEN_PIPE if error.errno == errno.EPIPE else 1


class _Guarded:
    """A text stream whose failures are OutputGone, which libraries do not catch on the way.

    lossy:     what cannot be written is dropped where somebody may still read the other stream
    is_closed: the process was given none, and this one leads nowhere
    """

    def __init__(self, stream: TextIO, name: str, *, lossy: bool, is_closed: bool) -> None:
        self._stream, self._name, self._lossy = stream, name, lossy
        self.is_closed = is_closed

    def write(self, text: str) -> int:
        """Write text."""
        with self._told():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Hand everything to the system."""
        with self._told():
            self._stream.flush()

    @contextlib.contextmanager
    def _told(self) -> Any:
        try:
            yield
        except OSError as error:
            # what is still in its buffer would fail once more when Python ends
            _to_nowhere(self._stream)
            if error.errno == errno.EPIPE or not self._lossy:
                raise OutputGone(self._name, error) from error

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def prepare() -> None:
    """Make standard streams of what the process was given; once, before anything is opened.

    A closed one leads nowhere: the next file opened would take its place, and get what libraries
    print. Signs that the output's encoding lacks are written as escapes.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            # the lowest free descriptor, which is this one
            os.open(os.devnull, os.O_RDONLY if number == 0 else os.O_WRONLY)
    for name, title, lossy in (
        ("stdout", STANDARD_OUTPUT, False),
        ("stderr", "standard error", True),
    ):
        stream = getattr(sys, name)
        is_closed = stream is None
        if is_closed:
            # stays open as long as the process runs (SIM115)
            stream = open(os.devnull, "w")  # noqa: SIM115
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
        setattr(sys, name, _Guarded(stream, title, lossy=lossy, is_closed=is_closed))
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, leave)


class _Alone:
    """Standard output as bytes, for one writer alone; failures are OutputGone."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream

    def write(self, data: bytes) -> int:
        """Write all of it, in several turns where a pipe takes less."""
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[self._stream.write(rest) :]
            self._stream.flush()
        except OSError as error:
            raise OutputGone(STANDARD_OUTPUT, error) from error
        return len(data)

    def flush(self) -> None:
        """Nothing waits."""


def claim_stdout() -> Any:
    """Keep standard output for what is written to the stream returned; all else goes to stderr.

    Also what a model's module prints, or a library in C. Raises: SinkError where it is closed.
    """
    if getattr(sys.stdout, "is_closed", False):
        raise SinkError("standard output is closed; nothing can be written to it")
    sys.stdout.flush()
    try:
        number = sys.stdout.fileno()
    except io.UnsupportedOperation:
        # a stream of a test or a notebook
        claimed: Any = _Alone(sys.stdout.buffer)
    else:
        # whoever claims it closes it (SIM115)
        claimed = _Alone(open(os.dup(number), "wb", buffering=0))  # noqa: SIM115
        os.dup2(2, number)
    sys.stdout = sys.stderr
    return claimed


def finish() -> None:
    """Hand out what was printed; raises OutputGone where that fails."""
    sys.stdout.flush()
    sys.stderr.flush()


def leave(number: int, frame: FrameType | None = None) -> NoReturn:
    """End at once, as Ctrl-C asks while nothing is open that must be closed.

    A KeyboardInterrupt would come out of half an import as whatever error that makes of it.
    """
    shown = SHOW_CURSOR if os.isatty(2) else ""
    with contextlib.suppress(OSError):
        os.write(2, f"{shown}interrupted\n".encode())
    os._exit(128 + number)


def plain_exit(gone: OutputGone) -> int:
    """Say what was lost where somebody may read it; returns the exit code."""
    if gone.exit_code != BROKEN_PIPE:
        with contextlib.suppress(OSError, OutputGone):
            print(f"error: {gone}", file=sys.stderr, flush=True)
    return gone.exit_code


def _to_nowhere(stream: TextIO) -> None:
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
