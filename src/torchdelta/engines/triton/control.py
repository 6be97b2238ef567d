"""What the host says of each frame: which slots have one, and where it lies in memory."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from torchdelta.engines.triton.kernels.shared import FRAME, FRAME_NUMBERS, NOTHING, WHOLE
from torchdelta.engines.triton.memory import MODES_AT, RING, Memory

# slots, those that are computed whole, which frames are float32, strides of the frames
Layout = tuple[tuple[int, ...], frozenset[int], list[bool], list[tuple[int, ...]]]


class Control:
    """The control blocks of a session on the host, by turn."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        numbers = memory.ctl.numel()
        self._sent = torch.zeros(RING, numbers, dtype=torch.int64, pin_memory=memory.ctl.is_cuda)
        # Python writes single numbers faster that way than into arrays
        self._blocks = [memoryview(block) for block in self._sent.numpy()]
        self._on_host = [block.data_ptr() for block in self._sent]
        self._copy = copy_to_device() if memory.ctl.is_cuda else None
        self._layouts: list[Layout | None] = [None] * RING
        # by turn: where the frames' addresses stand
        self._addresses: list[list[int]] = [[] for _ in range(RING)]

    def is_laid_out(self, turn: int, layout: Layout) -> bool:
        """Whether a turn's block says that already, but for the frames' addresses."""
        return layout == self._layouts[turn]

    def lay_out(self, turn: int, layout: Layout) -> None:
        """Say which slots have a frame, and how those lie in memory."""
        slots, whole, floats, strides = layout
        block, count = self._blocks[turn], self._memory.slots
        self._layouts[turn] = None
        for slot in range(count):
            block[MODES_AT + slot] = NOTHING
        rows = [MODES_AT + count + slot * FRAME_NUMBERS for slot in slots]
        for slot, row, is_float, (c, y, x) in zip(slots, rows, floats, strides, strict=True):
            block[MODES_AT + slot] = WHOLE if slot in whole else FRAME
            for n, number in enumerate((y, x, c, is_float), start=1):
                block[row + n] = number
        self._addresses[turn] = rows
        self._layouts[turn] = layout

    def send(self, turn: int, frames: Sequence[Tensor], stream: int) -> None:
        """Send a turn's block behind what is on a stream of the driver's.

        frames: of the slots laid out, which the device reads
        """
        block, ctl = self._blocks[turn], self._memory.ctl
        for at, frame in zip(self._addresses[turn], frames, strict=True):
            block[at] = frame.data_ptr()
        block[0] = self._memory.now
        if self._copy is None:
            ctl.copy_(self._sent[turn])
            return
        # through PyTorch this would take longer than all else that comes before a frame's graph
        error = self._copy(ctl.data_ptr(), self._on_host[turn], block.nbytes, stream)
        if error:
            raise RuntimeError(f"cuMemcpyHtoDAsync failed with CUresult {error}")


def copy_to_device() -> Callable[[int, int, int, int], int]:
    """Give the driver's copy: address on the device, address on the host, bytes, stream."""
    # not CDLL: the call is too short for giving up the interpreter's lock
    library = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    copy = ctypes.PyDLL(library).cuMemcpyHtoDAsync_v2
    copy.argtypes = [ctypes.c_uint64, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]
    copy.restype = ctypes.c_int
    return copy
