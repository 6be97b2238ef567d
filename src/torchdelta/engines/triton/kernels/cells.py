"""The input gate in cells: what `ops.gate.input_gate` does with a grain of more than 1.

These run between `find_hot`, which then looks for boxes far beyond the threshold, and
`publish_input`, which then publishes the hot pixels alone.
"""

from __future__ import annotations

import triton
import triton.language as tl

from torchdelta.engines.triton.kernels.gate import _tile_pixels
from torchdelta.engines.triton.kernels.shared import MODE, begin

_PLAIN = ["h", "w", "down", "across", "blocks", "cell_blocks", "GRAIN"]


@triton.jit(do_not_specialize=_PLAIN)
def sum_cells(
    ctl_ptr, h, w, down, across, cell_blocks, difference_ptr, threshold_ptr, hot_ptr, excess_ptr,
    state_ptr, GRAIN, BS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Add up the cells' pixels that can be compared.

    hot_ptr:    stamps [slots, h, w] of pixels whose 3x3 box lies far beyond the threshold
    excess_ptr: float32 [slots, down, across], sum of (difference - threshold)
    state_ptr:  uint8 [slots, down, across]: 2 where a pixel has a stamp, else 1 where any pixel can
                be compared, else 0
    """
    begin(PDL)
    pid = tl.program_id(0)
    slot = pid // cell_blocks
    threshold = tl.load(threshold_ptr + slot)
    if (tl.load(ctl_ptr + MODE + slot) == 1) & (threshold != 0.0):
        now = tl.load(ctl_ptr).to(tl.int32)
        n = (pid - slot * cell_blocks) * BS + tl.arange(0, BS)
        ok = n < down * across
        top, left = n // across * GRAIN, n % across * GRAIN
        excess = tl.zeros((BS,), tl.float32)
        known = tl.zeros((BS,), tl.int32)
        fine = tl.zeros((BS,), tl.int32)
        for i in range(GRAIN * GRAIN):
            y, x = top + i // GRAIN, left + i % GRAIN
            inside = ok & (y < h) & (x < w)
            at = slot * (h * w) + y * w + x
            difference = tl.load(difference_ptr + at, mask=inside, other=-1.0)
            # below 0 there is no difference; a NaN is one
            comparable = (difference < 0.0) == 0
            excess += tl.where(comparable, difference - threshold, 0.0)
            known |= comparable.to(tl.int32)
            stamp = tl.load(hot_ptr + at, mask=inside, other=0).to(tl.int32)
            fine |= (stamp == now).to(tl.int32)
        cell = slot * (down * across) + n
        tl.store(excess_ptr + cell, excess, mask=ok)
        tl.store(state_ptr + cell, tl.maximum(2 * fine, known).to(tl.uint8), mask=ok)


@triton.jit(do_not_specialize=_PLAIN)
def find_cells(
    ctl_ptr, down, across, cell_blocks, threshold_ptr, excess_ptr, state_ptr, hot_cells_ptr,
    BS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Mark the hot cells: uint8 [slots, down, across], 1 or 0."""
    begin(PDL)
    pid = tl.program_id(0)
    slot = pid // cell_blocks
    if (tl.load(ctl_ptr + MODE + slot) == 1) & (tl.load(threshold_ptr + slot) != 0.0):
        n = (pid - slot * cell_blocks) * BS + tl.arange(0, BS)
        ok = n < down * across
        y, x = n // across, n % across
        cells = slot * (down * across)
        total = tl.zeros((BS,), tl.float32)
        for i in tl.static_range(-1, 2):
            for j in tl.static_range(-1, 2):
                inside = ok & (y + i >= 0) & (y + i < down) & (x + j >= 0) & (x + j < across)
                total += tl.load(excess_ptr + (cells + n + i * across + j), mask=inside, other=0.0)
        state = tl.load(state_ptr + cells + n, mask=ok, other=0).to(tl.int32)
        # written this way round, a NaN is hot
        hot = (state == 2) | ((state == 1) & ((total <= 0.0) == 0))
        tl.store(hot_cells_ptr + cells + n, hot.to(tl.uint8), mask=ok)


@triton.jit(do_not_specialize=_PLAIN)
def mark_cells(
    ctl_ptr, h, w, down, across, blocks, threshold_ptr, hot_cells_ptr, hot_ptr, hot_tiles_ptr,
    GRAIN, TILE_W: tl.constexpr, BS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Stamp the pixels of hot cells and of those beside them, and the tiles that have any."""
    begin(PDL)
    pid = tl.program_id(0)
    slot = pid // blocks
    if (tl.load(ctl_ptr + MODE + slot) == 1) & (tl.load(threshold_ptr + slot) != 0.0):
        now = tl.load(ctl_ptr).to(tl.int32)
        block = pid - slot * blocks
        tiles = tl.cdiv(w, TILE_W)
        y, x, ok = _tile_pixels(block // tiles, block % tiles, h, w, TILE_W, BS)
        row, column = y // GRAIN, x // GRAIN
        hot = tl.zeros((BS,), tl.int32)
        for i in tl.static_range(-1, 2):
            for j in tl.static_range(-1, 2):
                inside = (row + i >= 0) & (row + i < down)
                inside &= (column + j >= 0) & (column + j < across) & ok
                at = slot * (down * across) + (row + i) * across + column + j
                hot |= tl.load(hot_cells_ptr + at, mask=inside, other=0).to(tl.int32)
        marked = (hot > 0) & ok
        at = slot * (h * w) + y * w + x
        tl.store(hot_ptr + at, (y * 0 + now).to(tl.uint8), mask=marked)
        if tl.max(marked.to(tl.int32)) > 0:
            tl.store(hot_tiles_ptr + pid, now.to(tl.uint8))
