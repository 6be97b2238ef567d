"""What surrounds a call of torchdelta must not get into its state, nor into what it computes.

PyTorch has settings that hold for whatever a thread calls: autocast, gradients, inference mode, a
default device, modes that are shown every call. Public functions run apart from them (`apart`), and
leave them as they were. The default dtype belongs to the process, so that frames must not touch it:
what they allocate says its dtype. Only what runs the model itself sets it (`default_float32`).
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ParamSpec, TypeVar

import torch
from torch.overrides import (
    _len_torch_function_stack,
)
from torch.overrides import (
    _pop_mode as _pop_function_mode,
)
from torch.overrides import (
    _push_mode as _push_function_mode,
)
from torch.utils._python_dispatch import (
    _len_torch_dispatch_stack,
)
from torch.utils._python_dispatch import (
    _pop_mode as _pop_dispatch_mode,
)
from torch.utils._python_dispatch import (
    _push_mode as _push_dispatch_mode,
)

from torchdelta.errors import EngineError

P = ParamSpec("P")
R = TypeVar("R")

# devices that PyTorch has an autocast for
AUTOCAST = ("cpu", "cuda", "xpu", "mps", "mtia", "maia", "hpu", "xla", "ipu", "privateuseone")


def apart(function: Callable[P, R]) -> Callable[P, R]:
    """Have a function run apart from what surrounds its call, about 2 µs.

    What it returns are ordinary tensors without gradients, also where the caller is in inference
    mode. Raises: EngineError inside `torch.vmap` and its like, whose tensors hold no frames.
    """

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        with _Apart():
            return function(*args, **kwargs)

    return call


class _Apart:
    """Puts a thread's settings aside for a while; a class, since generators take longer."""

    __slots__ = ("_autocast", "_dispatch", "_functions", "_grad", "_inference")

    def __enter__(self) -> None:
        _refuse_transforms()
        # modes come first: they are shown whatever follows
        self._functions = [_pop_function_mode() for _ in range(_len_torch_function_stack())]
        self._dispatch = [_pop_dispatch_mode() for _ in range(_len_torch_dispatch_stack())]
        self._inference: Any = None
        if torch.is_inference_mode_enabled():
            self._inference = torch.inference_mode(False)
            self._inference.__enter__()
        self._grad = torch.is_grad_enabled()
        if self._grad:
            torch._C._set_grad_enabled(False)
        self._autocast: list[str] = []
        if torch._C._is_any_autocast_enabled():
            self._autocast = [name for name in AUTOCAST if torch.is_autocast_enabled(name)]
            for name in self._autocast:
                torch.set_autocast_enabled(name, False)

    def __exit__(self, *exc: object) -> None:
        for name in self._autocast:
            torch.set_autocast_enabled(name, True)
        if self._grad:
            torch._C._set_grad_enabled(True)
        if self._inference is not None:
            self._inference.__exit__(None, None, None)
        for mode in reversed(self._dispatch):
            _push_dispatch_mode(mode)
        for mode in reversed(self._functions):
            _push_function_mode(mode)


def _refuse_transforms() -> None:
    if torch._C._functorch.maybe_current_level() is not None:
        raise EngineError(
            "torchdelta cannot run inside torch.vmap, torch.func.grad and their like: a frame "
            "changes the session's state; call it outside of them, once for each frame"
        )
    if torch._C._get_tracing_state() is not None:
        raise EngineError(
            "torchdelta cannot be recorded by torch.jit.trace: the record would hold one frame's "
            "results; call it outside, or trace the model itself"
        )


class _DefaultDtype:
    """PyTorch's default dtype, as calls in several threads want it at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._calls = 0
        self._found: torch.dtype | None = None

    def enter(self) -> None:
        with self._lock:
            self._calls += 1
            found = torch.get_default_dtype()
            if found != torch.float32:
                self._found = found
                torch.set_default_dtype(torch.float32)

    def leave(self) -> None:
        with self._lock:
            self._calls -= 1
            if not self._calls and self._found is not None:
                torch.set_default_dtype(self._found)
                self._found = None


_DEFAULT_DTYPE = _DefaultDtype()


@contextmanager
def default_float32() -> Iterator[None]:
    """Make float32 the default dtype where it is another, until the last such call is over.

    Other threads see that too: only captures and the dense model need it.
    """
    _DEFAULT_DTYPE.enter()
    try:
        yield
    finally:
        _DEFAULT_DTYPE.leave()
