"""Every error that torchdelta raises for its users, so that one `except` catches them all."""

from __future__ import annotations

from typing import TypeVar


class TorchdeltaError(Exception):
    """Base of all errors that a user of torchdelta can cause and mend."""


class CaptureError(TorchdeltaError):
    """A model cannot be turned into a plan; the message lists all reasons together."""


class FrameError(TorchdeltaError, ValueError):
    """A frame does not fit the session (size, dtype, channels, device, values)."""


class StreamError(TorchdeltaError, KeyError):
    """A stream is unknown to the session, or there is no free slot for it."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class EngineError(TorchdeltaError, ValueError):
    """An engine is unknown or cannot run here."""


class ProfileError(TorchdeltaError, ValueError):
    """A profile file is malformed or belongs to another plan."""


class SourceError(TorchdeltaError):
    """A video source cannot be opened or is damaged."""


class SinkError(TorchdeltaError):
    """A video or log cannot be written, or would overwrite an input."""


class ModelError(TorchdeltaError):
    """A model spec cannot be resolved, or its weights cannot be read or do not fit."""


T = TypeVar("T")


def involved(error: BaseException, kind: type[T]) -> T | None:
    """Give what an exception is about: the deepest local variable of a kind in its traceback."""
    found: T | None = None
    trace = error.__traceback__
    while trace is not None:
        here = [v for v in trace.tb_frame.f_locals.values() if isinstance(v, kind)]
        found = here[-1] if here else found
        trace = trace.tb_next
    return found


def first_lines(error: BaseException, lines: int = 4) -> str:
    """Say what another library's error says, without its pages of detail."""
    text = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: " + " / ".join(text[:lines])[:600]
