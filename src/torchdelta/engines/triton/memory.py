"""A session's memory on the device beside its state: stamps, thresholds, the control block."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, prod
from typing import Any

import torch

from torchdelta.engines.triton.kernels.shared import FRAME_NUMBERS, MODE
from torchdelta.engines.triton.program import Program
from torchdelta.ops.base import Size
from torchdelta.state import State

MODES_AT = int(MODE.value)
# frames that may be on their way at once
RING = 4
# pixels that a program of a select or input kernel looks at: few of a small map, whose programs
# would not fill the device; 1024 and more were slower on large maps (H200)
LEAST_PX, MOST_PX = 256, 512
# columns of the tiles in which the input gate looks at pixels
INPUT_TILE_PX = 64
# stamps are bytes: after this many frames they are cleared
LAST_STAMP = 255
ALIGNED_BYTES = 16


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
    reported: stamps of the program's reported values, which begin there at `reported_at`
    tile:   rows and columns of the input gate's tiles, `tiles` of them per slot; over_tiles,
            hot_tiles: uint8 [slots * tiles] stamps;  hot: of pixels
    thresholds, limits: float32 [slots, values];  forced: int32 [values], whose sets are forced
    cells:  of the input gate;  fine_cells, hot_cells: uint8 [slots * cells] stamps;  excess, known:
            by slot and cell, see `kernels.cells`
    given:  slots that have a frame
    """

    def __init__(self, program: Program, state: State) -> None:
        plan, device = program.plan, program.gpu.device
        self.slots = slots = len(state.input_threshold)
        self.ctl = torch.zeros(
            MODES_AT + slots * (1 + FRAME_NUMBERS), dtype=torch.int64, device=device
        )
        self.frames = self.ctl[MODES_AT + slots :]
        floats: Any = {"dtype": torch.float32, "device": device}
        self.thresholds = torch.zeros(slots, len(plan.values), **floats)
        self.limits = torch.zeros_like(self.thresholds)
        self.input_threshold = torch.zeros(slots, **floats)
        self.forced = torch.zeros(len(plan.values), dtype=torch.int32, device=device)
        # what results may ask for lies side by side: it is kept in one call
        stamped = [*program.reported, *sorted(program.stamped - set(program.reported))]
        # kernels read stamps by words
        sizes = [aligned(slots * prod(plan.values[v].size)) for v in stamped]
        touch, area = len(plan.values) * slots, prod(plan.size)
        self.cells = Cells.of(state.input_grain, plan.size)
        in_cells = slots * prod(self.cells.size) if self.cells.grain > 1 else 1
        self.input_px = pixels_each(area, slots, program.gpu.processors)
        if self.cells.summed:
            self.input_px = max(self.input_px, self.cells.grain * INPUT_TILE_PX)
        self.tile = (self.input_px // INPUT_TILE_PX, INPUT_TILE_PX)
        self.tiles = prod(ceil(n / side) for n, side in zip(plan.size, self.tile, strict=True))
        of_input = [slots * area, *(2 * [slots * self.tiles]), *(2 * [in_cells])]
        parted = [aligned(touch), *map(aligned, of_input), *sizes]
        self._stamp_bytes = torch.zeros(sum(parted), dtype=torch.uint8, device=device)
        # touch comes first: slots' bytes side by side
        touched, *parts = self._stamp_bytes.split(parted)
        self.touch = touched[:touch].view(len(plan.values), slots)
        self.hot, self.over_tiles, self.hot_tiles = parts[:3]
        self.fine_cells, self.hot_cells = parts[3:5]
        self.stamps = {
            v: part[: slots * prod(plan.values[v].size)]
            for v, part in zip(stamped, parts[5:], strict=True)
        }
        reported = sizes[: len(program.reported)]
        first = sum(parted) - sum(sizes)
        self.reported = self._stamp_bytes[first : first + sum(reported)]
        begins = itertools.accumulate(reported, initial=0)
        self.reported_at = dict(zip(program.reported, begins, strict=False))
        self.difference = torch.zeros(slots * area, **floats)
        self.excess = torch.zeros(in_cells, **floats)
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


def aligned(n: int) -> int:
    """Round up to what a word's place must be a multiple of."""
    return ceil(n / ALIGNED_BYTES) * ALIGNED_BYTES


def pixels_each(area: int, slots: int, processors: int) -> int:
    """Choose how many pixels of a map each program of a select or input kernel looks at."""
    return LEAST_PX if area * slots <= LEAST_PX * 2 * processors else MOST_PX
