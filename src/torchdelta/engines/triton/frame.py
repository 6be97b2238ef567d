"""What the launches of a frame share: lists, counters, partial sums, and arguments of kernels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil, prod
from typing import Any

import torch
from torch import Tensor

from torchdelta.engines.triton import pack
from torchdelta.engines.triton.launch import Work, divider
from torchdelta.engines.triton.memory import Memory
from torchdelta.engines.triton.program import Program
from torchdelta.engines.triton.schedule import Schedule, make_lanes, phases_of
from torchdelta.engines.triton.windows import Windows
from torchdelta.state import State


@dataclass(frozen=True)
class List:
    """Pixels of a map: int32 entries and their number; a region of `capacity` per phase."""

    entries: Tensor
    count: Tensor


class Frame:
    """One kind of frame of a session, bound to its memory.

    forced: steps whose active sets come from `forced_masks` instead of the stamps
    windows: where they may move, or frames have masks; else None: kernels know nothing of them
    zeros:  int32, set to 0 by a frame's first kernel: `info` and the lengths of the lists
    counts: int32 [steps, slots] active pixels;  changed: int32 [slots] published input pixels
    info:   both of them, as they are read back after a frame
    lists:  by leader, and whether it is the wide one
    lanes:  of the graph
    work:   of the input gate, of each step, and of the end, with the index of a step
            (`work.make_frame`)
    bytes:  of lists, counters and partial sums
    """

    def __init__(
        self,
        program: Program,
        state: State,
        memory: Memory,
        schedule: Schedule,
        forced: frozenset[int],
        windows: Windows | None,
    ) -> None:
        self.program, self.plan, self.gpu = program, program.plan, program.gpu
        self.memory = memory
        # not the state itself, which would then live as long as this
        self._buffers, self._norm = state.buffers, state.norm
        self.slots = memory.slots
        self.schedule = schedule
        self.windows = windows
        self.bytes = 0
        steps, self._info_size = len(self.plan.steps), (len(self.plan.steps) + 1) * self.slots
        lists = sum(1 + prod(phases_of(self.plan, index)) for index in schedule.selections)
        self.zeros = torch.zeros(self._info_size + lists, dtype=torch.int32, device=self.gpu.device)
        self.info = self.zeros[: self._info_size]
        self.counts = self.zeros[: steps * self.slots].view(steps, self.slots)
        self.changed = self.zeros[steps * self.slots : self._info_size]
        self._lists_made = 0
        self.dummy = self.zeros
        self.forced_masks: dict[int, Tensor] = {}
        self.forced = forced
        self.constants: list[Tensor] = []
        self.lists: dict[tuple[int, bool], List] = {}
        self.lanes = make_lanes(self.plan, schedule, program.most_lanes)
        # by lane, whose steps use it one after the other
        self._partial_sums = [self._make_partial_sums(n) for n in range(self.lanes.count)]
        self.work: list[tuple[int | None, list[Work]]] = []

    # what makers of launches ask for

    def weights(self, index: int) -> Mapping[str, Tensor]:
        """Give a step's weights on the device, in the compute dtype."""
        return self.program.weights[index]

    def capacity(self, index: int) -> int:
        """Give the longest that a step's list can be."""
        return self.slots * prod(self.plan.values[self.plan.steps[index].output].size)

    def programs(self, blocks: int, per_processor: int = 4) -> int:
        """Choose how many programs share so many blocks at most."""
        return max(1, min(blocks, self.gpu.processors * per_processor))

    def in_args(self, value: int, name: str) -> dict[str, Any]:
        """Give a kernel's arguments for reading a value."""
        v = self.plan.values[value]
        buffer = self._buffers[v.buffer]
        return {
            f"{name}_ptr": buffer[..., v.offset :] if v.offset else buffer,
            f"{name}_slot": buffer.stride(0), f"{name}_px": buffer.stride(2),
            f"{name}_h": v.size[0], f"{name}_w": v.size[1], f"{name}_ring_ptr": self.ring(value),
        }  # fmt: skip

    def ring(self, value: int) -> Tensor:
        """Give where the windows begin in a value's buffer, [slots, 2]."""
        return self.dummy if self.windows is None else self.windows.rings[value]

    def window_args(self, value: int) -> dict[str, Any]:
        """Give a kernel's arguments for what a move makes of a written value."""
        windows = self.windows
        if windows is None:
            return {"lines_ptr": self.dummy, "lines_slot": 0, "MOVING": False}
        lines = windows.lines[:, windows.first[value] :]
        return {"lines_ptr": lines, "lines_slot": lines.stride(0), "MOVING": True}

    def out_args(self, index: int) -> dict[str, Any]:
        """Give a kernel's arguments for publishing a step's output."""
        output = self.plan.steps[index].output
        v = self.plan.values[output]
        buffer = self._buffers[v.buffer]
        stamp = self.memory.stamps.get(output)
        return {
            "out_ptr": buffer[..., v.offset :] if v.offset else buffer,
            "out_slot": buffer.stride(0), "out_px": buffer.stride(2), "hw": prod(v.size),
            "hw_by": divider(prod(v.size)), "out_w": v.size[1], "out_w_by": divider(v.size[1]),
            "out_ring_ptr": self.ring(output), **self.window_args(output),
            "channels": v.channels, "limit_ptr": self.memory.limits[:, output],
            "limit_stride": len(self.plan.values), "ctl_ptr": self.memory.ctl,
            "stamp_ptr": self.memory.touch if stamp is None else stamp,
            "touch_ptr": self.memory.touch[output], "NORM_MAX": self._norm == "max",
            "STAMP": stamp is not None, "TOUCH": output in self.program.touched,
            "PDL": self.gpu.pdl,
        }  # fmt: skip

    def list_args(self, index: int) -> dict[str, Any]:
        """Give a kernel's arguments for walking over a step's list."""
        use = self.schedule.uses[index]
        found = self.lists[use.leader, use.wide]
        filters = [self.memory.stamps[v] for v in use.filters]
        padded = [*filters, self.memory.touch, self.memory.touch]
        return {
            "list_ptr": found.entries, "count_ptr": found.count, "filter0_ptr": padded[0],
            "filter1_ptr": padded[1], "FILTERS": len(filters),
        }  # fmt: skip

    def window(self, value: int, slot: int) -> Tensor:
        """Give one slot of a value in reading order, [H, W, C]."""
        v = self.plan.values[value]
        x = self._buffers[v.buffer][slot].narrow(2, v.offset, v.channels)
        if self.windows is None:
            return x
        for axis, n in enumerate(v.size):
            # where it begins only the device knows: a captured graph moves with it
            places = torch.arange(n, device=self.gpu.device) + self.windows.rings[value, slot, axis]
            x = x.index_select(axis, places % n)
        return x

    def new_list(self, entries: int, phases: int = 1) -> List:
        """Take room for a list."""
        first = self._info_size + self._lists_made
        self._lists_made += phases
        room = torch.zeros(entries * phases, dtype=torch.int32, device=self.gpu.device)
        self.bytes += room.numel() * 4
        return List(room, self.zeros[first : first + phases])

    def listed(self, index: int) -> Tensor:
        """Give the pixels of a leader's list, bool [slots * H * W]."""
        found = self.lists[index, False]
        mask = torch.zeros(self.capacity(index), dtype=torch.bool, device=self.gpu.device)
        for phase, count in enumerate(found.count.tolist()):
            first = phase * self.capacity(index)
            mask[found.entries[first : first + count].long()] = True
        return mask

    def partial_sums(self, index: int) -> tuple[Tensor, Tensor]:
        """Give room for a step's partial sums, and a counter per tile."""
        return self._partial_sums[self.lanes.lane(index)]

    def _make_partial_sums(self, lane: int) -> tuple[Tensor, Tensor]:
        numbers = tiles = 0
        for index, packed in self.program.packed.items():
            if self.lanes.lane(index) != lane or packed.depthwise or packed.splits == 1:
                continue
            channels = self.plan.values[self.plan.steps[index].output].channels
            blocks = pack.choose_blocks(self.gpu, packed, channels)
            capacity = self.capacity(index)
            columns = ceil(channels / blocks.width)
            own, rows_px = blocks.split_tiles(capacity)
            tiles = max(tiles, own * columns)
            numbers = max(numbers, rows_px * columns * blocks.width * packed.splits)
        self.bytes += 4 * (numbers + tiles)
        return (
            torch.zeros(numbers, dtype=torch.float32, device=self.gpu.device),
            torch.zeros(tiles, dtype=torch.int32, device=self.gpu.device),
        )
