"""Where the windows of a session's slots lie, as its kernels read it."""

from __future__ import annotations

import numpy as np
import torch

from torchdelta.engines.base import FrameCall
from torchdelta.plan import Plan
from torchdelta.state import State


class Windows:
    """Rings, moves and masks of all slots on the device, made when the first window moves.

    rings:  int32 [values, slots, 2], where in a value's buffer a window begins (`State.rings`)
    masked: int32 [slots], whether a slot's frame has a mask;  valid: uint8 [slots, H, W], the masks
    lines:  uint8 [slots, L], what a move makes of the rows and columns of the written values
            (`Shifts.lines`), those of value v from `first[v]` on
    still:  int32 [slots, 2] zeros: a window that never moved
    """

    def __init__(self, plan: Plan, slots: int, device: torch.device, turns: int) -> None:
        self._plan = plan
        written = [plan.input, *(step.output for step in plan.steps)]
        self.first: dict[int, int] = {}
        length = 0
        for value in dict.fromkeys(written):
            self.first[value] = length
            length += sum(plan.values[value].size)
        values = len(plan.values)
        sizes = (8 * values * slots, 4 * slots, length * slots)
        pinned = device.type == "cuda"
        self._host = [
            torch.zeros(sum(sizes), dtype=torch.uint8, pin_memory=pinned) for _ in range(turns)
        ]
        self._device = torch.zeros(sum(sizes), dtype=torch.uint8, device=device)
        self._sent = np.zeros(sum(sizes), np.uint8)
        rings, masked, lines = self._device.split(sizes)
        self.rings = rings.view(torch.int32).view(values, slots, 2)
        self.masked = masked.view(torch.int32)
        self.lines = lines.view(slots, length)
        self.valid = torch.zeros((slots, *plan.size), dtype=torch.uint8, device=device)
        self.still = torch.zeros((slots, 2), dtype=torch.int32, device=device)
        self._sizes = sizes
        self.bytes = self._device.numel() + self.valid.numel()

    def send(self, turn: int, state: State, call: FrameCall) -> None:
        """Bring what holds for a frame to the device; turn: whose memory on the host is free."""
        host = self._host[turn].numpy()
        rings, masked, lines = np.split(host, np.cumsum(self._sizes)[:-1])
        values, slots = len(self._plan.values), len(state.rings)
        rings.view(np.int32).reshape(values, slots, 2)[:] = state.rings.transpose(1, 0, 2)
        masked.view(np.int32)[:] = [slot in call.masks for slot in range(slots)]
        lines[:] = 0
        by_slot = lines.reshape(slots, -1)
        for slot, move in call.moved.items():
            for value, first in self.first.items():
                rows, columns = self._plan.shifts.lines(value, move.shift, move.exact)
                middle = first + len(rows)
                by_slot[slot, first:middle] = rows
                by_slot[slot, middle : middle + len(columns)] = columns
        for slot, mask in call.masks.items():
            self.valid[slot].copy_(mask, non_blocking=True)
        if not np.array_equal(host, self._sent):
            self._sent[:] = host
            self._device.copy_(self._host[turn], non_blocking=True)
