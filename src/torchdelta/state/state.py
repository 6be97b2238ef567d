"""The state of a session: one buffer per value (or group of values side by side), all slots."""

from __future__ import annotations

import contextlib
import mmap
from collections.abc import Sequence
from math import prod

import numpy as np
import torch
from torch import Tensor

from torchdelta.ops.base import Pixels, Ring, Size, take_all
from torchdelta.plan import Plan

# a cache line: stock kernels may sum in another order at another alignment; streams must not differ
# by slot
ALIGN_BYTES = 64


class State:
    """Buffers and thresholds of N slots, owned by one session.

    buffers:         one [N, H, W, C] tensor per `plan.buffers`, in the compute dtype or its own;
                     every slot begins on a cache line
    thresholds:      [N, values] float64, in the values' units; 0 compares values
    input_threshold: [N] float64, share of full scale
    input_grain:     side of the input gate's cells, pixels; of all slots
    changes:         of thresholds and input_threshold so far; whoever writes to them counts on
    rms:             [N, values] float64, NaN until it is known
    norm:            "rms" or "max", of a channel group
    exact:           by slot, whether a slot's pixel must have the same bits whatever lies beside
                     its windows; where not, engines may use faster sums that differ by rounding
    origin:          [N, 2] int64, the corner (y, x) of each slot's window in the world, input
                     pixels; `place` sets it
    rings:           [N, values, 2] int64, where in a value's buffer its window begins, pixels:
                     pixel (y, x) of the window lies at ((y + oy) mod H, (x + ox) mod W)
    bytes:           of all buffers
    """

    def __init__(
        self,
        plan: Plan,
        slots: int,
        dtype: torch.dtype,
        device: torch.device,
        norm: str,
        room: Sequence[int] | None = None,
        input_grain: int = 1,
    ) -> None:
        """Allocate the buffers; room: channels that a pixel has room for, if more than it has."""
        self.plan, self.norm, self.input_grain = plan, norm, input_grain
        channels = [b.c for b in plan.buffers]
        shapes = [(slots, b.h, b.w, c) for b, c in zip(plan.buffers, room or channels, strict=True)]
        full = _buffers(shapes, [b.dtype or dtype for b in plan.buffers], device)
        self.bytes = sum(b.numel() * b.element_size() for b in full)
        self.buffers = [b.narrow(3, 0, c) for b, c in zip(full, channels, strict=True)]
        self.thresholds = np.zeros((slots, len(plan.values)))
        self.input_threshold = np.zeros(slots)
        self.exact = [True] * slots
        self.changes = 0
        self.rms = np.full((slots, len(plan.values)), np.nan)
        self.origin = np.zeros((slots, 2), dtype=np.int64)
        self.rings = np.zeros((slots, len(plan.values), 2), dtype=np.int64)
        # by slot: whether any of its rings begins elsewhere than at the first pixel
        self._turned = [False] * slots
        self._views: dict[tuple[int, int], Tensor] = {}

    def place(self, slot: int, origin: Size) -> None:
        """Set the corner of a slot's window in the world; its contents stay where they are.

        origin: (y, x), input pixels, multiples of `plan.total_stride`
        """
        self.origin[slot] = origin
        self.rings[slot] = self.plan.shifts.rings(origin)
        self._turned[slot] = bool(self.rings[slot].any())

    @property
    def turned(self) -> bool:
        """Whether any slot's ring begins elsewhere than at the first pixel."""
        return any(self._turned)

    def view(self, value: int, slot: int) -> Tensor:
        """View one value of one slot: [H, W, C], a slice of its buffer, in the buffer's order."""
        found = self._views.get((value, slot))
        if found is None:
            v = self.plan.values[value]
            buffer = self.buffers[v.buffer][slot]
            if v.channels != buffer.shape[2]:
                buffer = buffer.narrow(2, v.offset, v.channels)
            found = self._views[value, slot] = buffer
        return found

    def pixels(self, value: int, slot: int) -> Pixels:
        """View one value of one slot in the order of its window: [H, W, C], or a ring of that."""
        view = self.view(value, slot)
        if self._turned[slot]:
            y, x = self.rings[slot, value].tolist()
            if y or x:
                return Ring(view, (y, x))
        return view

    def window(self, value: int, slot: int) -> Tensor:
        """Give one value of one slot in reading order, [H, W, C]: a view, a copy where it moved."""
        return take_all(self.pixels(value, slot))

    def batch_view(self, value: int) -> Tensor:
        """View one value of all slots: [N, H, W, C], in the buffer's order."""
        v = self.plan.values[value]
        return self.buffers[v.buffer].narrow(3, v.offset, v.channels)


def _buffers(
    shapes: list[tuple[int, int, int, int]], dtypes: list[torch.dtype], device: torch.device
) -> list[Tensor]:
    """Allocate tensors [N, H, W, C] of zeros, each slot on a cache line, in one piece of memory."""
    unit = ALIGN_BYTES
    per_slot = [prod(s[1:]) * t.itemsize for s, t in zip(shapes, dtypes, strict=True)]
    padded = [-(-size // unit) * unit for size in per_slot]
    memory = _zeros(sum(s[0] * size for s, size in zip(shapes, padded, strict=True)), device)
    buffers, at = [], 0
    for shape, dtype, slot in zip(shapes, dtypes, padded, strict=True):
        flat = memory[at : at + shape[0] * slot].view(dtype)
        _, _, w, c = shape
        # said outright: of one slot alone PyTorch takes another stride from slot to slot, kernels
        # are compiled anew for that, and may round otherwise than those of several slots
        buffers.append(flat.as_strided(shape, (slot // dtype.itemsize, w * c, c, 1)))
        at += shape[0] * slot
    return buffers


def _zeros(size: int, device: torch.device) -> Tensor:
    """Allocate bytes; on Linux's CPU on huge pages, because active pixels lie far apart.

    With pages of 4 KiB nearly each of their rows would be looked for in the page table.
    """
    if device.type != "cpu" or not hasattr(mmap, "MADV_HUGEPAGE") or not size:
        return torch.zeros(size, dtype=torch.uint8, device=device)
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    # a hint, which some kernels do not know; pages are made when they are first written
    with contextlib.suppress(OSError):
        memory.madvise(mmap.MADV_HUGEPAGE)
    # the tensor keeps the memory
    return torch.frombuffer(memory, dtype=torch.uint8)
