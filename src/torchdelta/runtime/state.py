"""The state of a session: one buffer per value (or group of values side by side), all slots."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from torchdelta.plan import Plan

# a cache line
ALIGN_BYTES = 64


class State:
    """Buffers and thresholds of N slots, owned by one session.

    buffers:         one [N, H, W, C] tensor per `plan.buffers`, in the compute dtype or its own;
                     every slot begins on a cache line
    thresholds:      [N, values] float64, in the values' units; 0 compares values
    input_threshold: [N] float64, share of full scale
    rms:             [N, values] float64, NaN until it is known
    norm:            "rms" or "max", of a channel group
    """

    def __init__(
        self, plan: Plan, slots: int, dtype: torch.dtype, device: torch.device, norm: str
    ) -> None:
        self.plan, self.norm = plan, norm
        self.buffers = [
            _aligned_zeros((slots, b.h, b.w, b.c), b.dtype or dtype, device) for b in plan.buffers
        ]
        self.thresholds = np.zeros((slots, len(plan.values)))
        self.input_threshold = np.zeros(slots)
        self.rms = np.full((slots, len(plan.values)), np.nan)

    def view(self, value: int, slot: int) -> Tensor:
        """View one value of one slot: [H, W, C], a slice of its buffer."""
        v = self.plan.values[value]
        buffer = self.buffers[v.buffer][slot]
        if v.channels == buffer.shape[2]:
            return buffer
        return buffer.narrow(2, v.offset, v.channels)

    def batch_view(self, value: int) -> Tensor:
        """View one value of all slots: [N, H, W, C]."""
        v = self.plan.values[value]
        return self.buffers[v.buffer].narrow(3, v.offset, v.channels)

    @property
    def bytes(self) -> int:
        """Bytes of all buffers."""
        return sum(b.numel() * b.element_size() for b in self.buffers)


def _aligned_zeros(
    shape: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Allocate [N, H, W, C] whose slots are aligned alike.

    Stock kernels may sum in another order at another alignment; streams must not differ by slot.
    """
    per_slot = shape[1] * shape[2] * shape[3]
    unit = ALIGN_BYTES // dtype.itemsize
    padded = -(-per_slot // unit) * unit
    flat = torch.zeros((shape[0], padded), dtype=dtype, device=device)
    return flat[:, :per_slot].unflatten(1, shape[1:])
