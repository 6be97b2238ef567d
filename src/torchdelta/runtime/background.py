"""Work that must not keep a stream waiting."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from torchdelta.apart import apart

T = TypeVar("T")


def in_background(work: Callable[[], T], name: str) -> Future[T]:
    """Begin work in a thread of its own, which ends with the process.

    returns: a future that has what `work` returns, or raises what it raised
    """
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(apart(work)())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name=name, daemon=True).start()
    return future
