"""FFmpeg's messages: attached to the errors that they explain, and kept from standard error."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, TypeVar

import av

T = TypeVar("T")


def said(error: Exception) -> str:
    """What FFmpeg says about a failure: its last message where there is one, and the error."""
    log = getattr(error, "log", None)
    text = getattr(error, "strerror", None) or str(error)
    return f"{log[2].strip()} ({text})" if log else text


class FfmpegLog:
    """While entered, FFmpeg's error messages are attached to the exceptions that they explain.

    Entering gives the list that they go to, (level, who, text) each.

    FFmpeg has one log level for the whole process: it is raised by the first user, from whatever
    thread, and put back by the last one.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._level: int | None = None
        self._skips_repeated = True
        self._local = threading.local()

    def __enter__(self) -> list[tuple[int, str, str]]:
        with self._lock:
            if self._users == 0:
                self._level = av.logging.get_level()
                if self._level is None:
                    av.logging.set_level(av.logging.ERROR)
                self._skips_repeated = av.logging.get_skip_repeated()
                av.logging.set_skip_repeated(False)
            self._users += 1
        # captured, so that the messages reach nobody else's log
        self._local.capture = av.logging.Capture(local=True)
        messages: list[tuple[int, str, str]] = self._local.capture.__enter__()
        return messages

    def __exit__(self, *exc: Any) -> None:
        self._local.capture.__exit__(*exc)
        with self._lock:
            self._users -= 1
            if self._users == 0:
                av.logging.set_level(self._level)
                av.logging.set_skip_repeated(self._skips_repeated)


FFMPEG_LOG = FfmpegLog()


def listened(call: Callable[[], T]) -> tuple[T, list[str]]:
    """Call into FFmpeg; returns what it gives and the errors that it speaks of meanwhile."""
    with FFMPEG_LOG as messages:
        found = call()
        return found, [text.strip() for level, _, text in messages if level <= av.logging.ERROR]
