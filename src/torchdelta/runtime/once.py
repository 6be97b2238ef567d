"""Things that take long to make, made once for all threads that ask for them."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import CancelledError, Future
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")


class Once(Generic[K, T]):
    """Makes a thing for each key when it is first asked for, and keeps those asked for last.

    Whoever asks for what is being made waits for it, nobody else does. What making it raises goes
    to all of them, and the next one to ask has it tried again.

    make:  makes the thing of a key, in the thread that asks
    most:  how many are kept
    first: what is there already, and is always kept
    """

    def __init__(self, make: Callable[[K], T], most: int, first: dict[K, T]) -> None:
        self._make, self._most = make, most
        self._always = frozenset(first)
        self._kept: OrderedDict[K, T] = OrderedDict(first)
        self._under_way: dict[K, Future[T]] = {}
        # held for moments only
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._kept)

    def __contains__(self, key: object) -> bool:
        return key in self._kept

    def get(self, key: K) -> T:
        """Give the thing of a key. Raises: what making it raises."""
        while True:
            with self._lock:
                if key in self._kept:
                    self._kept.move_to_end(key)
                    return self._kept[key]
                future = self._under_way.get(key)
                first = future is None
                if future is None:
                    future = self._under_way[key] = Future()
            if first:
                return self._make_for_all(key, future)
            try:
                return future.result()
            except CancelledError:
                # who was making it has been interrupted; that was not meant for this thread
                continue

    def _make_for_all(self, key: K, future: Future[T]) -> T:
        try:
            made = self._make(key)
        except BaseException as error:
            with self._lock:
                del self._under_way[key]
            if isinstance(error, Exception):
                future.set_exception(error)
            else:
                future.cancel()
            raise
        with self._lock:
            del self._under_way[key]
            self._kept[key] = made
            while len(self._kept) > self._most:
                oldest = next((k for k in self._kept if k not in self._always), key)
                del self._kept[oldest]
        future.set_result(made)
        return made
