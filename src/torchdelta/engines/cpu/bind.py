"""What the cpu engine calls in the native library: programs, and frames that run through them.

The structures mirror `native/src/torchdelta_native.h`.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

from torchdelta.errors import EngineError
from torchdelta.native_lib import agree, function, told
from torchdelta.plan.ir import GROUP_CHANNELS

MESSAGE_BYTES = 512

# step, slot, active [Ho*Wo], changed [Ho*Wo] -> 0, or a number that stops the frame
ForeignFn = ctypes.CFUNCTYPE(
    ctypes.c_int32, ctypes.c_int32, ctypes.c_int32, ctypes.c_void_p, ctypes.c_void_p
)

# for plans without such steps
NO_FOREIGN = ForeignFn()


class Slot(ctypes.Structure):
    """One slot's part in a frame (td_slot)."""

    _fields_ = (
        ("frame", ctypes.c_void_p),
        ("stride_y", ctypes.c_int64),
        ("stride_x", ctypes.c_int64),
        ("stride_c", ctypes.c_int64),
        ("frame_is_float", ctypes.c_int32),
        ("whole", ctypes.c_int32),
        ("exact", ctypes.c_int32),
        ("buffers", ctypes.c_void_p),
        ("origins", ctypes.c_void_p),
        ("moved", ctypes.c_void_p),
        ("border", ctypes.c_void_p),
        ("valid", ctypes.c_void_p),
        ("thresholds", ctypes.c_void_p),
        ("input_threshold", ctypes.c_double),
        ("input_grain", ctypes.c_int64),
        ("active_px", ctypes.c_void_p),
        ("published_px", ctypes.c_void_p),
        ("published_groups", ctypes.c_void_p),
        ("active", ctypes.c_void_p),
        ("changed", ctypes.c_void_p),
        ("changed_px", ctypes.c_void_p),
        ("forced", ctypes.c_void_p),
    )


class Call(ctypes.Structure):
    """One frame of some slots (td_call)."""

    _fields_ = (
        ("slots", ctypes.POINTER(Slot)),
        ("n_slots", ctypes.c_int32),
        ("threads", ctypes.c_int32),
        ("norm_is_max", ctypes.c_int32),
        ("foreign", ForeignFn),
        ("step_ms", ctypes.c_void_p),
    )


@cache
def names(kind: str) -> tuple[str, ...]:
    """List what the library has of a kind, in the order of the numbers that programs have for it.

    kind: "operations", "functions" of one number, or "pairs": functions of two
    Raises: EngineError where library and Python do not agree on structures or on a gate's group.
    """
    agree("td_slot", ctypes.sizeof(Slot))
    agree("td_call", ctypes.sizeof(Call))
    agree("group", GROUP_CHANNELS)
    return told()[kind]


def code_of(kind: str, name: str) -> int:
    """Give what stands for a name in a program. Raises: EngineError where the library lacks it."""
    known = names(kind)
    if name not in known:
        raise EngineError(
            f"the native library has no {name!r} among its {kind}; install torchdelta again"
        )
    return known.index(name)


class NativeProgram:
    """A program loaded for one instruction set; freed with the object."""

    def __init__(self, blob: bytes, isa: str) -> None:
        load = function(
            "td_load", ctypes.c_void_p,
            ctypes.c_char_p, ctypes.c_uint64, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_uint64,
        )  # fmt: skip
        self._free = function("td_free", None, ctypes.c_void_p)
        self._step = function("td_step", ctypes.c_int32, ctypes.c_void_p, ctypes.POINTER(Call))
        message = ctypes.create_string_buffer(MESSAGE_BYTES)
        self._handle = load(blob, len(blob), isa.encode(), message, MESSAGE_BYTES)
        if not self._handle:
            raise EngineError(f"the native engine refused the plan: {message.value.decode()}")

    def __del__(self) -> None:
        if getattr(self, "_handle", None):
            self._free(self._handle)

    @property
    def weight_bytes(self) -> int:
        """Bytes of the packed weights, shared by all sessions."""
        return self._bytes("td_weight_bytes")

    @property
    def scratch_bytes(self) -> int:
        """Bytes of masks, lists and partial sums that calls have needed so far."""
        return self._bytes("td_scratch_bytes")

    def _bytes(self, name: str) -> int:
        return int(function(name, ctypes.c_uint64, ctypes.c_void_p)(self._handle))

    def step(self, slots: Any, count: int, **fields: Any) -> int:
        """Run one frame; releases the GIL meanwhile."""
        call = Call(slots, count, **fields)
        return int(self._step(self._handle, ctypes.byref(call)))
