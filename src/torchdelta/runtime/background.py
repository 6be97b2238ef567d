"""Work that must not keep a stream waiting."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from torchdelta.apart import apart

T = TypeVar("T")


# niceness of work that makes way for frames: where both want a core, a tenth of it
MAKES_WAY = 10


def in_background(work: Callable[[], T], name: str, *, makes_way: bool = False) -> Future[T]:
    """Begin work in a thread of its own, which ends with the process.

    makes_way: frames that run meanwhile have precedence for the processor (on Linux, where a
               thread has a priority of its own)
    returns: a future that has what `work` returns, or raises what it raised
    """
    future: Future[T] = Future()

    def run() -> None:
        try:
            if makes_way and sys.platform == "linux":
                # what it starts, such as OpenMP's threads, inherits it
                thread = threading.get_native_id()
                with contextlib.suppress(OSError):
                    niceness = max(MAKES_WAY, os.getpriority(os.PRIO_PROCESS, thread))
                    os.setpriority(os.PRIO_PROCESS, thread, niceness)
            future.set_result(apart(work)())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name=name, daemon=True).start()
    return future
