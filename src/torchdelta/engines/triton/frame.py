"""A session's memory on the device beside its state, and its list of launches."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, prod
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from torchdelta.engines.triton import conv, rows
from torchdelta.engines.triton.kernels import cells as cell_kernels
from torchdelta.engines.triton.kernels import gate as gate_kernels
from torchdelta.engines.triton.kernels import select as select_kernels
from torchdelta.engines.triton.kernels.shared import MODE
from torchdelta.engines.triton.launch import Launch, divider
from torchdelta.engines.triton.schedule import (
    INPUT,
    MOST_SOURCES,
    MOST_TAPS,
    Schedule,
    Selection,
    is_identity,
    is_window,
    make_lanes,
)
from torchdelta.engines.triton.windows import Windows
from torchdelta.ops import ConvTranspose2d
from torchdelta.ops.base import Footprint, Size
from torchdelta.plan.ir import Plan

if TYPE_CHECKING:
    from torchdelta.engines.triton.engine import TritonEngine
    from torchdelta.runtime.state import State

# what a frame's row of the control block holds (kernels/gate.py)
FRAME_ROW = 5
MODES_AT = int(MODE.value)
# pixels that a program of a select or input kernel looks at: few of a small map, whose programs
# would not fill the device; 1024 and more were slower on large maps (H200)
LEAST_PX, MOST_PX = 256, 512
# columns of the tiles in which the input gate, and who reads the input, look at pixels
INPUT_TILE_PX, READER_TILE_PX = 64, 32
COUNT_PX = 4096
# channels of the input that a thread reads as a word
WORDS_OF_CHANNELS = (1, 2, 4)
# stamps are bytes: after this many frames they are cleared
LAST_STAMP = 255
ALIGNED_BYTES = 16
WORD_BYTES = 8

# a launch, or a call into PyTorch
Work = Launch | Callable[[], None]


@dataclass(frozen=True)
class List:
    """Pixels of a map: int32 entries and their number; a region of `capacity` per phase."""

    entries: Tensor
    count: Tensor


@dataclass(frozen=True)
class Cells:
    """The cells in which an input gate counts (`ops.gate.input_gate`); grain 1: it does not.

    size: rows and columns of cells
    """

    grain: int
    size: Size

    @classmethod
    def of(cls, grain: int, size: Size) -> Cells:
        """Cut maps of a size in cells."""
        return cls(grain, (ceil(size[0] / grain), ceil(size[1] / grain)))

    @property
    def summed(self) -> bool:
        """Whether the gate's tiles hold whole cells, which its first kernel adds up."""
        side = self.grain
        return side > 1 and INPUT_TILE_PX % side == 0 and side * INPUT_TILE_PX <= MOST_PX

    def covered(self, tile: Size) -> Size:
        """Count the rows and columns of cells that any tile lies in, in powers of 2."""
        rows, columns = (n // self.grain + 2 * (n % self.grain > 0) for n in tile)
        return 1 << (rows - 1).bit_length(), 1 << (columns - 1).bit_length()


class Memory:
    """Everything a session's frames need beside the state, allocated once.

    ctl: int64 control block [8 + slots * 6]: number of the frame, modes, rows of the frames
    stamps: value -> uint8 [slots * H * W];  touch: uint8 [values, slots]
    reported: stamps of the engine's reported values, which begin there at `reported_at`
    tile:   rows and columns of the input gate's tiles, `tiles` of them per slot; over_tiles,
            hot_tiles, changed_tiles: uint8 [slots * tiles] stamps;  hot: of pixels
    thresholds, limits: float32 [slots, values];  forced: int32 [values], whose sets are forced
    cells:  of the input gate;  fine_cells, hot_cells: uint8 [slots * cells] stamps;  excess, known:
            by slot and cell, see `kernels.cells`
    given:  slots that have a frame
    """

    def __init__(self, engine: TritonEngine, state: State) -> None:
        plan, device = engine.plan, engine.device
        self.slots = slots = len(state.input_threshold)
        self.ctl = torch.zeros(MODES_AT + slots * (1 + FRAME_ROW), dtype=torch.int64, device=device)
        self.frames = self.ctl[MODES_AT + slots :]
        self.thresholds = torch.zeros(slots, len(plan.values), device=device)
        self.limits = torch.zeros_like(self.thresholds)
        self.input_threshold = torch.zeros(slots, device=device)
        self.forced = torch.zeros(len(plan.values), dtype=torch.int32, device=device)
        # what results may ask for lies side by side: it is kept in one call
        stamped = [*engine.reported, *sorted(engine.stamped - set(engine.reported))]
        # kernels read stamps by words
        sizes = [_aligned(slots * prod(plan.values[v].size)) for v in stamped]
        touch, area = len(plan.values) * slots, prod(plan.size)
        self.cells = Cells.of(state.input_grain, plan.size)
        in_cells = slots * prod(self.cells.size) if self.cells.grain > 1 else 1
        self.input_px = pixels_each(area, slots, engine.processors)
        if self.cells.summed:
            self.input_px = max(self.input_px, self.cells.grain * INPUT_TILE_PX)
        self.tile = (self.input_px // INPUT_TILE_PX, INPUT_TILE_PX)
        self.tiles = prod(ceil(n / side) for n, side in zip(plan.size, self.tile, strict=True))
        of_input = [slots * area, *(3 * [slots * self.tiles]), *(2 * [in_cells])]
        parted = [_aligned(touch), *map(_aligned, of_input), *sizes]
        self._stamp_bytes = torch.zeros(sum(parted), dtype=torch.uint8, device=device)
        # touch comes first: slots' bytes side by side
        touched, *parts = self._stamp_bytes.split(parted)
        self.touch = touched[:touch].view(len(plan.values), slots)
        self.hot, self.over_tiles, self.hot_tiles, self.changed_tiles = parts[:4]
        self.fine_cells, self.hot_cells = parts[4:6]
        self.stamps = {
            v: part[: slots * prod(plan.values[v].size)]
            for v, part in zip(stamped, parts[6:], strict=True)
        }
        reported = sizes[: len(engine.reported)]
        first = sum(parted) - sum(sizes)
        self.reported = self._stamp_bytes[first : first + sum(reported)]
        begins = itertools.accumulate(reported, initial=0)
        self.reported_at = dict(zip(engine.reported, begins, strict=False))
        self.difference = torch.zeros(slots * area, device=device)
        self.excess = torch.zeros(in_cells, device=device)
        self.known = torch.zeros(in_cells, dtype=torch.uint8, device=device)
        self.bad = torch.zeros(slots, dtype=torch.int32, device=device)
        self.given: Sequence[int] = ()
        self.now = 0
        self.frame = 0
        self.bytes = sum(
            t.numel() * t.element_size()
            for t in (
                self.ctl,
                self.thresholds,
                self.limits,
                self._stamp_bytes,
                self.difference,
                self.excess,
                self.known,
            )
        )

    def tick(self) -> None:
        """Count a frame; clear the stamps before a number comes again."""
        self.frame += 1
        self.now += 1
        if self.now > LAST_STAMP:
            self.now = 1
            self._stamp_bytes.zero_()


class Frame:
    """The launches of one session's frame, bound to its memory.

    forced: steps whose active sets come from `forced_masks` instead of the stamps
    windows: where they may move, or frames have masks; else None: kernels know nothing of them
    counts: int32 [steps, slots] active pixels;  changed: int32 [slots] published input pixels
    info:   both of them, as they are read back after a frame
    lanes:  of the graph
    work:   of the input gate, of each step, and of the end, with the index of a step
    bytes:  of lists, counters and partial sums
    """

    def __init__(
        self,
        engine: TritonEngine,
        state: State,
        memory: Memory,
        schedule: Schedule,
        forced: frozenset[int],
        windows: Windows | None,
    ) -> None:
        self.engine, self.plan, self.memory = engine, engine.plan, memory
        # not the state itself, which would then live as long as this
        self._buffers, self._norm = state.buffers, state.norm
        self.device, self.dtype = engine.device, engine.dtype
        self.slots = memory.slots
        self.schedule = schedule
        self.windows = windows
        self.precision, self.interpreted = engine.precision, engine.interpreted
        self.processors = engine.processors
        self.bytes = 0
        # set to 0 by the first kernel of a frame: what is read back, what was found where active
        # sets are forced, and the lengths of the lists
        steps, self._info_size = len(self.plan.steps), (len(self.plan.steps) + 1) * self.slots
        lists = sum(1 + prod(_phases(self.plan, index)) for index in schedule.selections)
        self._zeros = torch.zeros(
            self._info_size + 1 + lists, dtype=torch.int32, device=self.device
        )
        self.info = self._zeros[: self._info_size]
        self.counts = self._zeros[: steps * self.slots].view(steps, self.slots)
        self.changed = self._zeros[steps * self.slots : self._info_size]
        self._found = self._zeros[self._info_size :]
        self._lists_made = 0
        self.dummy = self._zeros
        self.forced_masks: dict[int, Tensor] = {}
        self._forced = forced
        self._pdl = engine.pdl
        self.constants: list[Tensor] = []
        self._lists: dict[tuple[int, bool], List] = {}
        self.lanes = make_lanes(self.plan, schedule, engine.most_lanes)
        # by lane, whose steps use it one after the other
        self._partial_sums = [self._make_partial_sums(n) for n in range(self.lanes.count)]
        self.work: list[tuple[int | None, list[Work]]] = self._make()

    # what makers of launches ask for

    def weights(self, index: int) -> Mapping[str, Tensor]:
        """Give a step's weights on the device, in the compute dtype."""
        return self.engine.weights[index]

    def capacity(self, index: int) -> int:
        """Give the longest that a step's list can be."""
        return self.slots * prod(self.plan.values[self.plan.steps[index].output].size)

    def programs(self, blocks: int, per_processor: int = 4) -> int:
        """Choose how many programs share so many blocks at most."""
        return max(1, min(blocks, self.processors * per_processor))

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
            "STAMP": stamp is not None, "TOUCH": output in self.engine.touched, "PDL": self._pdl,
        }  # fmt: skip

    def list_args(self, index: int) -> dict[str, Any]:
        """Give a kernel's arguments for walking over a step's list."""
        use = self.schedule.uses[index]
        found = self._lists[use.leader, use.wide]
        filters = [self.memory.stamps[v] for v in use.filters]
        padded = [*filters, self.memory.touch, self.memory.touch]
        return {
            "list_ptr": found.entries, "count_ptr": found.count, "filter0_ptr": padded[0],
            "filter1_ptr": padded[1], "FILTERS": len(filters),
        }  # fmt: skip

    def _window(self, value: int, slot: int) -> Tensor:
        """Give one slot of a value in reading order, [H, W, C]."""
        v = self.plan.values[value]
        x = self._buffers[v.buffer][slot].narrow(2, v.offset, v.channels)
        if self.windows is None:
            return x
        for axis, n in enumerate(v.size):
            # where it begins only the device knows: a captured graph moves with it
            places = torch.arange(n, device=self.device) + self.windows.rings[value, slot, axis]
            x = x.index_select(axis, places % n)
        return x

    def _new_list(self, entries: int, phases: int = 1) -> List:
        """Take room for a list."""
        first = self._info_size + 1 + self._lists_made
        self._lists_made += phases
        room = torch.zeros(entries * phases, dtype=torch.int32, device=self.device)
        self.bytes += room.numel() * 4
        return List(room, self._zeros[first : first + phases])

    def listed(self, index: int) -> Tensor:
        """Give the pixels of a leader's list, bool [slots * H * W]."""
        found = self._lists[index, False]
        mask = torch.zeros(self.capacity(index), dtype=torch.bool, device=self.device)
        for phase, count in enumerate(found.count.tolist()):
            first = phase * self.capacity(index)
            mask[found.entries[first : first + count].long()] = True
        return mask

    # the frame

    def partial_sums(self, index: int) -> tuple[Tensor, Tensor]:
        """Give room for a step's partial sums, and a counter per tile."""
        return self._partial_sums[self.lanes.lane(index)]

    def _make_partial_sums(self, lane: int) -> tuple[Tensor, Tensor]:
        numbers = tiles = 0
        for index, packed in self.engine.packed.items():
            if self.lanes.lane(index) != lane or packed.depthwise or packed.splits == 1:
                continue
            channels = self.plan.values[self.plan.steps[index].output].channels
            blocks = conv.choose_blocks(self, packed, channels)
            capacity = self.capacity(index)
            columns = ceil(channels / blocks.width)
            own, rows_px = blocks.split_tiles(capacity)
            tiles = max(tiles, own * columns)
            numbers = max(numbers, rows_px * columns * blocks.width * packed.splits)
        self.bytes += 4 * (numbers + tiles)
        return (
            torch.zeros(numbers, device=self.device),
            torch.zeros(tiles, dtype=torch.int32, device=self.device),
        )

    def _make(self) -> list[tuple[int | None, list[Work]]]:
        work: list[tuple[int | None, list[Work]]] = [(None, self._input())]
        for index in range(len(self.plan.steps)):
            part: list[Work] = []
            if index in self.schedule.selections:
                part += self._select(self.schedule.selections[index])
            part += self._step(index)
            work.append((index, part))
        work.append((None, self._count_followers()))
        for step, (_, part) in enumerate(work, start=INPUT):
            if step in self.lanes.waits and part:
                first = part[0]
                assert isinstance(first, Launch)
                part[0] = first.behind()
        return work

    def _step(self, index: int) -> list[Work]:
        if index in self.engine.packed:
            return list(conv.launches(self, index, self.engine.packed[index]))
        if index in self.engine.foreign:
            return self._foreign(index)
        return list(rows.launches(self, index))

    def _foreign(self, index: int) -> list[Work]:
        """Let PyTorch compute a step whole; gate and publish as always.

        For the slots that have a frame, in a graph for all of them: what changed the host never
        knows.
        """
        plan, step = self.plan, self.plan.steps[index]
        v = plan.values[step.output]
        scratch = torch.zeros(
            (self.slots, *v.size, v.channels), dtype=v.dtype or self.dtype, device=self.device
        )
        self.bytes += scratch.numel() * scratch.element_size()
        self.constants.append(scratch)

        @torch.no_grad()
        def compute() -> None:
            for slot in self.memory.given:
                inputs = [self._window(value, slot) for value in step.inputs]
                scratch[slot].copy_(self.engine.oracle.evaluate(index, inputs))

        return [compute, *rows.publish_launches(self, index, scratch)]

    def _input(self) -> list[Work]:
        """Make the launches of the input gate."""
        plan, memory = self.plan, self.memory
        h, w = plan.size
        place = self.in_args(plan.input, "x")
        factor, shift = self.engine.normalise
        windows = self.windows
        moving = {
            **self.window_args(plan.input), "x_ring_ptr": place["x_ring_ptr"],
            "masked_ptr": self.dummy if windows is None else windows.masked,
            "valid_ptr": self.dummy if windows is None else windows.valid,
        }  # fmt: skip
        across = ceil(w / memory.tile[1])
        tiles = {
            "blocks": memory.tiles, "blocks_by": divider(memory.tiles), "across": across,
            "across_by": divider(across),
        }  # fmt: skip
        common = {
            **moving,
            "ctl_ptr": memory.ctl, "frames_ptr": memory.frames, "x_ptr": place["x_ptr"],
            "x_slot": place["x_slot"], "X_PX": place["x_px"], "h": h, "w": w,
            **tiles, "factor_ptr": factor, "shift_ptr": shift, **self._lanes(),
            "BGR": plan.preprocess.color == "bgr", "TILE_W": memory.tile[1],
            "BS": memory.input_px,
        }  # fmt: skip
        cells = memory.cells
        of_cells = {
            "GRAIN": cells.grain, "down": cells.size[0], "cells_across": cells.size[1],
        }  # fmt: skip
        compare = Launch(
            gate_kernels.compare_input, memory.tiles * self.slots,
            {**common, **of_cells, "excess_ptr": memory.excess, "known_ptr": memory.known,
             "SUMS": cells.summed, "scale_ptr": self.engine.to_full_scale,
             "zeros": self._zeros.numel(),
             "difference_ptr": memory.difference, "threshold_ptr": memory.input_threshold,
             "over_tiles_ptr": memory.over_tiles, "zeros_ptr": self._zeros,
             "thresholds_ptr": memory.thresholds, "forced_ptr": memory.forced,
             "limits_ptr": memory.limits, "values": len(plan.values),
             "limits": memory.limits.numel()},
        )  # fmt: skip
        find = Launch(
            gate_kernels.find_hot, memory.tiles * self.slots,
            {"ctl_ptr": memory.ctl, "h": h, "w": w, **tiles, **of_cells,
             "difference_ptr": memory.difference, "threshold_ptr": memory.input_threshold,
             "fine_ptr": memory.fine_cells,
             "over_tiles_ptr": memory.over_tiles, "hot_ptr": memory.hot,
             "hot_tiles_ptr": memory.hot_tiles, "TILE_W": memory.tile[1], "BS": memory.input_px,
             "MOVING": moving["MOVING"], "PDL": self._pdl}, warps=2,
        )  # fmt: skip
        rows, columns = cells.covered(memory.tile)
        publish = Launch(
            gate_kernels.publish_input, memory.tiles * self.slots,
            {**common, **of_cells, "CELL_ROWS": rows, "CELL_COLUMNS": columns,
             "hot_cells_ptr": memory.hot_cells, "hot_ptr": memory.hot,
             "hot_tiles_ptr": memory.hot_tiles, "tiles_ptr": memory.changed_tiles,
             "threshold_ptr": memory.input_threshold,
             "stamp_ptr": memory.stamps[plan.input],
             "touch_ptr": memory.touch[plan.input], "changed_ptr": self.changed,
             "PDL": self._pdl},
        )  # fmt: skip
        return [compare, find, *self._cells(cells), publish]

    def _cells(self, cells: Cells) -> list[Work]:
        """Make the launches of an input gate that counts in cells."""
        if cells.grain == 1:
            return []
        memory, (h, w), (down, across) = self.memory, self.plan.size, cells.size
        common = {
            "ctl_ptr": memory.ctl, "down": down, "across": across, "excess_ptr": memory.excess,
            "known_ptr": memory.known, "threshold_ptr": memory.input_threshold,
            "MOVING": self.windows is not None, "PDL": self._pdl,
        }  # fmt: skip
        wide = 1 << (cells.grain - 1).bit_length()
        side_by_side = max(1, MOST_PX // wide)
        row_blocks = ceil(across / side_by_side)
        add_up = Launch(
            cell_kernels.sum_cells, row_blocks * down * self.slots,
            {**common, "h": h, "w": w, "blocks": row_blocks * down,
             "blocks_by": divider(row_blocks * down), "row_blocks": row_blocks,
             "row_blocks_by": divider(row_blocks), "difference_ptr": memory.difference,
             "GRAIN": cells.grain, "WIDE": wide, "CELLS": side_by_side},
        )  # fmt: skip
        blocks = ceil(down * across / LEAST_PX)
        find = Launch(
            cell_kernels.find_cells, blocks * self.slots,
            {**common, "across_by": divider(across), "blocks": blocks,
             "blocks_by": divider(blocks), "fine_ptr": memory.fine_cells,
             "hot_ptr": memory.hot_cells, "BS": LEAST_PX},
        )  # fmt: skip
        return [find] if cells.summed else [add_up, find]

    def _lanes(self) -> dict[str, int]:
        """Give the input's channels, how many of them kernels take at once, and their room."""
        value = self.plan.values[self.plan.input]
        channels = value.channels
        alone = self.plan.buffers[value.buffer].c == channels
        # what lies between the pixels of a buffer of its own may be written: with 0
        room = conv.padded_channels(channels) if alone else channels
        # a word of the state is one thread's; sums that cross threads would be written by all of
        # them, the same number, but racecheck calls that a race
        lanes = room if alone and room in WORDS_OF_CHANNELS else 1
        return {"C": channels, "LANES": lanes, "ROOM": room}

    def check_frames(self) -> list[Work]:
        """Make the launches that refuse float frames with values that are not finite."""
        plan, memory = self.plan, self.memory
        h, w = plan.size
        place = self.in_args(plan.input, "x")
        factor, shift = self.engine.normalise
        size = self._pixels_each(h * w)
        blocks = ceil(h * w / size)
        check = Launch(
            gate_kernels.check_frames, blocks * self.slots,
            {"ctl_ptr": memory.ctl, "frames_ptr": memory.frames, "h": h, "w": w,
             "blocks": blocks, "factor_ptr": factor, "shift_ptr": shift, "bad_ptr": memory.bad,
             "x_ptr": place["x_ptr"], "C": plan.shape[0], "LANES": self._lanes()["LANES"],
             "BGR": plan.preprocess.color == "bgr", "BS": size},
        )  # fmt: skip
        most = 1 << (self.slots - 1).bit_length()
        drop = Launch(
            gate_kernels.drop_bad, 1,
            {"ctl_ptr": memory.ctl, "bad_ptr": memory.bad, "slots": self.slots, "BS": most},
        )  # fmt: skip

        def forget() -> None:
            memory.bad.zero_()

        return [forget, check, drop]

    def _pixels_each(self, area: int) -> int:
        """Choose how many pixels of a map each program looks at."""
        return pixels_each(area, self.slots, self.processors)

    def _select(self, selection: Selection) -> list[Work]:
        """Make the launches that list a step's active pixels: several where sources are many."""
        index = selection.step
        step = self.plan.steps[index]
        h, w = self.plan.values[step.output].size
        area = h * w
        across = max((_table_width(footprint) for _, footprint in selection.sources), default=1)
        size = self._pixels_each(area)
        if across > 1:
            # a program holds whole rows of windows
            size = max(16, size // across)
        blocks, tile_w = ceil(area / size), 0
        if any(value == self.plan.input for value, _ in selection.sources) and size >= LEAST_PX:
            # what changes in a frame lies together
            tile_w = READER_TILE_PX
            blocks = ceil(h / (size // tile_w)) * ceil(w / tile_w)
        phases = _phases(self.plan, index)
        own = self._new_list(self.capacity(index), prod(phases))
        self._lists[index, False] = own
        wide = own
        if selection.extra:
            wide = self._new_list(self.capacity(index))
        self._lists[index, True] = wide
        identity = [(value, None) for value in selection.extra]
        parts = [
            selection.sources[n : n + MOST_SOURCES]
            for n in range(0, len(selection.sources), MOST_SOURCES)
        ] or [[]]
        carry = self.dummy
        if len(parts) > 1:
            carry = torch.zeros(self.capacity(index), dtype=torch.uint8, device=self.device)
            self.bytes += carry.numel()
            self.constants.append(carry)
        mask = self.dummy
        if index in self._forced:
            mask = torch.zeros(area, dtype=torch.uint8, device=self.device)
            self.forced_masks[index] = mask
        out: list[Work] = []
        for number, part in enumerate(parts):
            last = number == len(parts) - 1
            sources: list[tuple[int, Any]] = [*part, *(identity if last else [])]
            args = {
                "list_ptr": own.entries, "count_ptr": own.count,
                "active_ptr": self.counts[index], "wide_list_ptr": wide.entries,
                "wide_count_ptr": wide.count, "ctl_ptr": self.memory.ctl, "carry_ptr": carry,
                "forced_ptr": mask, "found_ptr": self._found, "h": h, "w": w,
                "w_by": divider(w), "blocks_by": divider(blocks), **self.window_args(step.output),
                "blocks": blocks, "capacity": self.capacity(index), "OWN": len(part),
                "SOURCES": len(sources), "PHASES_Y": phases[0], "PHASES_X": phases[1],
                "CARRY_IN": number > 0, "CARRY_OUT": not last, "FORCED": index in self._forced,
                "tiles_ptr": self.memory.changed_tiles, "IN_H": self.memory.tile[0],
                "IN_W": self.memory.tile[1], "TILE_W": tile_w,
                "BS": size, "WIDE": across, "PDL": self._pdl,
            }  # fmt: skip
            for n in range(MOST_SOURCES):
                args |= self._source_args(n, sources[n] if n < len(sources) else None)
            out.append(
                Launch(select_kernels.select, blocks * self.slots, args, stages=1, step=index)
            )
        return out

    def _source_args(self, n: int, source: tuple[int, Any] | None) -> dict[str, Any]:
        """Give a select kernel's arguments for its source number n."""
        names = ("h", "w", "stride_y", "stride_x", "pad_y", "pad_x", "dilation_y", "dilation_x")
        numbers = [1, 1, 1, 1, 0, 0, 1, 1]
        args: dict[str, Any] = {
            f"s{n}_ptr": self.memory.touch, f"s{n}_rows_ptr": self.dummy,
            f"s{n}_cols_ptr": self.dummy, f"KIND{n}": select_kernels.IDENTITY, f"KH{n}": 1,
            f"KW{n}": 1,
        }  # fmt: skip
        if source is not None:
            value, footprint = source
            numbers[:2] = self.plan.values[value].size
            if footprint is not None and footprint.everything:
                args |= {f"s{n}_ptr": self.memory.touch[value], f"KIND{n}": select_kernels.TOUCH}
            else:
                args[f"s{n}_ptr"] = self.memory.stamps[value]
                if footprint is not None and not is_identity(footprint):
                    args |= self._footprint_args(n, footprint, numbers)
                    if value == self.plan.input and self._is_marked(args[f"KIND{n}"], footprint):
                        args[f"KIND{n}"] = self._input_kind(footprint)
        return {**args, **{f"s{n}_{k}": v for k, v in zip(names, numbers, strict=True)}}

    def _is_marked(self, kind: int, footprint: Footprint) -> bool:
        """Whether the tiles of a window's corners say if anything in it may have changed."""
        axes = (footprint.rows, footprint.cols)
        return kind == select_kernels.WINDOW and all(
            axis is not None and (axis.kernel - 1) * axis.dilation < side
            for axis, side in zip(axes, self.memory.tile, strict=True)
        )

    def _input_kind(self, footprint: Footprint) -> int:
        """Choose how windows of the input are looked through: by words where rows are such."""
        cols = footprint.cols
        assert cols is not None
        words = self.plan.size[1] % WORD_BYTES == 0 and cols.dilation == 1
        return select_kernels.WORDS if words and cols.kernel <= WORD_BYTES else select_kernels.INPUT

    def _footprint_args(self, n: int, footprint: Any, numbers: list[int]) -> dict[str, Any]:
        y, x = footprint.rows, footprint.cols
        if _table_width(footprint) == 1:
            numbers[2:] = [y.stride, x.stride, y.pad, x.pad, y.dilation, x.dilation]
            return {f"KIND{n}": select_kernels.WINDOW, f"KH{n}": y.kernel, f"KW{n}": x.kernel}
        tables = [
            torch.from_numpy(axis.taps.astype(np.int32)).contiguous().to(self.device)
            for axis in (y, x)
        ]
        self.constants += tables
        return {
            f"KIND{n}": select_kernels.TABLE, f"KH{n}": tables[0].shape[1],
            f"KW{n}": tables[1].shape[1], f"s{n}_rows_ptr": tables[0],
            f"s{n}_cols_ptr": tables[1],
        }  # fmt: skip

    def _count_followers(self) -> list[Work]:
        """Make the launch that counts the active pixels of steps without a list of their own."""
        jobs = []
        for index, use in enumerate(self.schedule.uses):
            if not use.filters:
                continue
            area = prod(self.plan.values[self.plan.steps[index].output].size)
            stamps = [self.memory.stamps[v].data_ptr() for v in use.filters]
            counter = self.counts[index].data_ptr()
            for slot in range(self.slots):
                for first in range(0, area, COUNT_PX):
                    at = slot * area + first
                    second = stamps[1] + at if len(stamps) > 1 else 0
                    length = min(COUNT_PX, area - first)
                    jobs.append((stamps[0] + at, second, counter + 4 * slot, length, slot))
        if not jobs:
            return []
        table = torch.tensor(jobs, dtype=torch.int64, device=self.device)
        self.bytes += table.numel() * 8
        self.constants.append(table)
        two = any(len(use.filters) > 1 for use in self.schedule.uses)
        args = {
            "jobs_ptr": table, "ctl_ptr": self.memory.ctl, "TWO": two, "BS": COUNT_PX,
            "PDL": self._pdl,
        }  # fmt: skip
        return [Launch(select_kernels.count_stamps, len(jobs), args)]


def _aligned(n: int) -> int:
    """Round up to what a word's place must be a multiple of."""
    return ceil(n / ALIGNED_BYTES) * ALIGNED_BYTES


def pixels_each(area: int, slots: int, processors: int) -> int:
    """Choose how many pixels of a map each program of a select or input kernel looks at."""
    return LEAST_PX if area * slots <= LEAST_PX * 2 * processors else MOST_PX


def _table_width(footprint: Footprint) -> int:
    """Give the columns of a window that is read through tables, as a power of 2; 1: it is not."""
    rows, cols = footprint.rows, footprint.cols
    if rows is None or cols is None:
        return 1
    if is_window(rows) and is_window(cols) and rows.kernel * cols.kernel <= MOST_TAPS:
        return 1
    return max(2, 1 << (cols.taps.shape[1] - 1).bit_length())


def _phases(plan: Plan, index: int) -> tuple[int, int]:
    """Give the phases of a step's output, each of which has a list: those of its stride."""
    op = plan.steps[index].op
    return op.stride if isinstance(op, ConvTranspose2d) else (1, 1)
