"""The input gate in cells: what `ops.gate.input_gate` does with a grain of more than 1.

`compare_input` adds up the cells that divide its tiles (`sum_cells` the others), `find_hot` marks
those in which a box of 3x3 pixels lies far beyond the threshold, `find_cells` here marks what is to
be published, and `publish_input` looks at these marks. Slots of threshold 0 are compared pixel by
pixel, as without cells.
"""

from __future__ import annotations

import triton
import triton.language as tl

from torchdelta.engines.triton.kernels.shared import IS_FRAME, MODE, NO_DIFFERENCE, begin, divide

_CELL_PLAIN = [
    "h",
    "w",
    "down",
    "across",
    "across_by",
    "blocks",
    "blocks_by",
    "row_blocks",
    "row_blocks_by",
    "fine_ptr",
    "hot_ptr",
]


@triton.jit(do_not_specialize=_CELL_PLAIN)
def sum_cells(
    ctl_ptr, h, w, down, across, blocks, blocks_by, row_blocks, row_blocks_by, difference_ptr,
    threshold_ptr, excess_ptr, known_ptr,
    GRAIN: tl.constexpr, WIDE: tl.constexpr, CELLS: tl.constexpr, MOVING: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """Add up CELLS cells side by side; there are `row_blocks` of such in a row of cells.

    excess_ptr: float32 [slots, down, across], sum of (difference - threshold) over the pixels that
                can be compared
    known_ptr:  MOVING: uint8 [slots, down, across], whether there are any
    WIDE: power of 2, at least GRAIN
    """
    begin(PDL)
    pid = tl.program_id(0)
    slot = divide(pid, blocks_by)
    if tl.load(ctl_ptr + MODE + slot) == IS_FRAME:
        threshold = tl.load(threshold_ptr + slot)
        block = pid - slot * blocks
        row = divide(block, row_blocks_by)
        n = (block - row * row_blocks) * CELLS + tl.arange(0, CELLS)
        place = tl.arange(0, WIDE)[None, :]
        x = n[:, None] * GRAIN + place
        columns = (place < GRAIN) & (x < w)
        excess = tl.zeros((CELLS, WIDE), tl.float32)
        known = tl.zeros((CELLS, WIDE), tl.int32)
        for i in range(GRAIN):
            y = place * 0 + (row * GRAIN + i)
            at = slot * (h * w) + y * w + x
            difference = tl.load(difference_ptr + at, mask=columns & (y < h), other=NO_DIFFERENCE)
            # below 0 there is no difference; a NaN is one
            comparable = (difference < 0.0) == 0
            excess += tl.where(comparable, difference - threshold, 0.0)
            known |= comparable.to(tl.int32)
        cell = (slot * down + row) * across + n
        tl.store(excess_ptr + cell, tl.sum(excess, 1), mask=n < across)
        if MOVING:
            tl.store(known_ptr + cell, tl.max(known, 1).to(tl.uint8), mask=n < across)


@triton.jit(do_not_specialize=_CELL_PLAIN)
def find_cells(
    ctl_ptr, down, across, across_by, blocks, blocks_by, threshold_ptr, excess_ptr, known_ptr,
    fine_ptr, hot_ptr,
    BS: tl.constexpr, MOVING: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Mark the hot cells and the eight around each.

    fine_ptr: stamps [slots, down, across] of the cells in which a box of 3x3 pixels is far beyond
    hot_ptr:  stamps alike, written
    """
    begin(PDL)
    pid = tl.program_id(0)
    slot = divide(pid, blocks_by)
    if (tl.load(ctl_ptr + MODE + slot) == IS_FRAME) & (tl.load(threshold_ptr + slot) != 0.0):
        now = tl.load(ctl_ptr).to(tl.int32)
        n = (pid - slot * blocks) * BS + tl.arange(0, BS)
        ok = n < down * across
        y = divide(n, across_by)
        x = n - y * across
        at = slot * (down * across) + n
        total = tl.zeros((BS,), tl.float32)
        for i in tl.static_range(-1, 2):
            for j in tl.static_range(-1, 2):
                inside = ok & (y + i >= 0) & (y + i < down) & (x + j >= 0) & (x + j < across)
                total += tl.load(excess_ptr + (at + i * across + j), mask=inside, other=0.0)
        # written this way round, a NaN is hot
        hot = (total <= 0.0) == 0
        if MOVING:
            hot &= tl.load(known_ptr + at, mask=ok, other=0) != 0
        fine = tl.load(fine_ptr + at, mask=ok, other=0).to(tl.int32)
        hot = (hot | (fine == now)) & ok
        stamp = (y * 0 + now).to(tl.uint8)
        for i in tl.static_range(-1, 2):
            for j in tl.static_range(-1, 2):
                inside = hot & (y + i >= 0) & (y + i < down) & (x + j >= 0) & (x + j < across)
                tl.store(hot_ptr + (at + i * across + j), stamp, mask=inside)
