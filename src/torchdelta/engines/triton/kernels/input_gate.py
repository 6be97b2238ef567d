"""The input gate: frames in, published pixels of the network's input out (design: gates).

A program looks at a tile of TILE_W columns and BS / TILE_W rows of one slot's frame; there are
`blocks` of them per slot. Marks of pixels and of tiles are stamps, so most tiles of a quiet frame
are looked at once, by `compare_input`: where no pixel of a tile and the eight around it exceeds the
threshold, no mean over 3x3 pixels does.
"""

from __future__ import annotations

import triton
import triton.language as tl

from torchdelta.engines.triton.kernels.shared import (
    FRAME_ROW,
    IS_FRAME,
    IS_NOTHING,
    IS_UNSEEN,
    IS_WHOLE,
    MODE,
    NO_DIFFERENCE,
    NO_LIMIT,
    begin,
    divide,
    moved_level,
    on_ring,
)
from torchdelta.ops.gate import FINE

# where the gate counts in cells (GRAIN > 1): by how much boxes of 3x3 pixels must exceed it
FINE_FACTOR = tl.constexpr(FINE)
_GATE_PLAIN = [
    "h",
    "w",
    "blocks",
    "blocks_by",
    "across",
    "across_by",
    "zeros",
    "thresholds_ptr",
    "forced_ptr",
    "limits_ptr",
    "values",
    "limits",
    "frames_ptr",
    "stamp_ptr",
    "touch_ptr",
    "changed_ptr",
    "zeros_ptr",
    "over_ptr",
    "over_tiles_ptr",
    "hot_tiles_ptr",
    "lines_ptr",
    "lines_slot",
    "masked_ptr",
    "valid_ptr",
    "x_ring_ptr",
    "down",
    "cells_across",
    "fine_ptr",
    "hot_cells_ptr",
]


@triton.jit
def _tile(pid, blocks, blocks_by, across, across_by):
    """Find a program's slot, and its tile's row and column among those of the frame."""
    slot = divide(pid, blocks_by)
    block = pid - slot * blocks
    row = divide(block, across_by)
    return slot, row, block - row * across


@triton.jit
def _tile_pixels(row, column, h, w, TILE_W: tl.constexpr, BS: tl.constexpr):
    """Place a tile's pixels: y, x, and whether they lie in the frame, [BS] each."""
    n = tl.arange(0, BS)
    y = row * (BS // TILE_W) + n // TILE_W
    x = column * TILE_W + n % TILE_W
    return y, x, (y < h) & (x < w)


@triton.jit
def _marked_near(tiles_ptr, slot, row, column, blocks, across, now):
    """Whether a tile or one of those around it is marked."""
    n = tl.arange(0, 16)
    row = row + n // 3 - 1
    column = column + n % 3 - 1
    inside = (n < 9) & (row >= 0) & (row * across < blocks) & (column >= 0) & (column < across)
    marks = tl.load(tiles_ptr + slot * blocks + row * across + column, mask=inside, other=0)
    return tl.max((marks.to(tl.int32) == now).to(tl.int32)) > 0


@triton.jit
def _cells_of(y, x, slot, down, cells_across, GRAIN: tl.constexpr):
    """Find the cells that pixels lie in."""
    return (slot * down + y // GRAIN) * cells_across + x // GRAIN


@triton.jit
def _hot_cell_in(
    hot_cells_ptr, slot, row, column, down, cells_across, now,
    GRAIN: tl.constexpr, TILE_W: tl.constexpr, BS: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Whether one of the ROWS x COLUMNS cells from a tile's first on is hot: all the tile's are."""
    n = tl.arange(0, ROWS * COLUMNS)
    y = row * (BS // TILE_W) // GRAIN + n // COLUMNS
    x = column * TILE_W // GRAIN + n % COLUMNS
    inside = (y < down) & (x < cells_across)
    at = (slot * down + y) * cells_across + x
    marks = tl.load(hot_cells_ptr + at, mask=inside, other=0)
    return tl.max((marks.to(tl.int32) == now).to(tl.int32)) > 0


@triton.jit
def _sum_cells(
    difference, threshold, ok, slot, row, column, down, cells_across, excess_ptr, known_ptr,
    GRAIN: tl.constexpr, TILE_W: tl.constexpr, BS: tl.constexpr, MOVING: tl.constexpr,
):  # fmt: skip
    """Add up the cells of a tile, which holds whole ones (see `cells.sum_cells`)."""
    ROWS: tl.constexpr = BS // TILE_W // GRAIN
    COLUMNS: tl.constexpr = TILE_W // GRAIN
    comparable = ok
    if MOVING:
        comparable = ok & ((difference < 0.0) == 0)
    excess = tl.where(comparable, difference - threshold, 0.0)
    excess = tl.sum(tl.reshape(excess, (ROWS, GRAIN, COLUMNS, GRAIN)), 3)
    excess = tl.reshape(tl.sum(excess, 1), (ROWS * COLUMNS,))
    n = tl.arange(0, ROWS * COLUMNS)
    y = row * ROWS + n // COLUMNS
    x = column * COLUMNS + n % COLUMNS
    inside = (y < down) & (x < cells_across)
    cell = (slot * down + y) * cells_across + x
    tl.store(excess_ptr + cell, excess, mask=inside)
    if MOVING:
        known = tl.max(tl.reshape(comparable.to(tl.int32), (ROWS, GRAIN, COLUMNS, GRAIN)), 3)
        known = tl.reshape(tl.max(known, 1), (ROWS * COLUMNS,))
        tl.store(known_ptr + cell, known.to(tl.uint8), mask=inside)


@triton.jit
def _standing(y, x, slot, h, w, ok, lines_ptr, lines_slot, masked_ptr, valid_ptr):
    """Say which pixels of a frame are valid, and which were never seen: int32 [BS] each.

    masked_ptr: int32 [slots], whether a slot has a mask; valid_ptr: uint8 [slots, h, w], the masks
    """
    valid = tl.load(valid_ptr + slot * (h * w) + y * w + x, mask=ok, other=0).to(tl.int32)
    valid = tl.where(y * 0 + tl.load(masked_ptr + slot) == 0, 1, valid)
    level = moved_level(y, x, slot, h, ok, lines_ptr, lines_slot)
    return valid, (level == IS_UNSEEN).to(tl.int32)


@triton.jit
def _values(
    address, stride_c, is_float, place, mask, factor_ptr, shift_ptr, first,
    BGR: tl.constexpr, C: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """Read a frame's pixels, normalised: float32 [BS, LANES], 0 beyond the C channels.

    factor_ptr, shift_ptr: [2, C], for uint8 and for float frames; first: of the channels.
    """
    channel = first + tl.arange(0, LANES)[None, :]
    source = channel
    if BGR:
        # a fourth channel, alpha, stays
        source = tl.where(channel < 3, 2 - channel, channel)
    at = place[:, None] + source * stride_c
    mask = mask[:, None] & (channel < C)
    if is_float != 0:
        raw = tl.load(address.to(tl.pointer_type(tl.float32)) + at, mask=mask, other=0.0)
    else:
        byte = tl.load(address.to(tl.pointer_type(tl.uint8)) + at, mask=mask, other=0)
        raw = byte.to(tl.float32)
    kind = is_float * C + channel
    factor = tl.load(factor_ptr + kind, mask=channel < C, other=0.0)
    shift = tl.load(shift_ptr + kind, mask=channel < C, other=0.0)
    return tl.where(channel < C, raw * factor + shift, 0.0)


@triton.jit
def _room(stored, lane, ok, ROOM: tl.constexpr, LANES: tl.constexpr):
    """Address a block's channels in the state, and say which of them have room there."""
    inside = ok[:, None]
    if ROOM % LANES != 0:
        inside = inside & (lane < ROOM)
    return stored[:, None] + lane, inside


@triton.jit(do_not_specialize=_GATE_PLAIN)
def compare_input(
    ctl_ptr, frames_ptr, x_ptr, x_slot, h, w, blocks, blocks_by, across, across_by, factor_ptr,
    shift_ptr, scale_ptr,
    difference_ptr, threshold_ptr, over_tiles_ptr, zeros_ptr, zeros,
    thresholds_ptr, forced_ptr, limits_ptr, values, limits,
    x_ring_ptr, lines_ptr, lines_slot, masked_ptr, valid_ptr,
    down, cells_across, excess_ptr, known_ptr,
    X_PX: tl.constexpr, C: tl.constexpr, LANES: tl.constexpr, ROOM: tl.constexpr,
    BGR: tl.constexpr, TILE_W: tl.constexpr, BS: tl.constexpr,
    GRAIN: tl.constexpr, SUMS: tl.constexpr, MOVING: tl.constexpr,
):  # fmt: skip
    """Measure how far each pixel lies from what was published; set the frame's counters to 0.

    Also write the limits [slots, values] of this frame: the thresholds, NO_LIMIT where slots are
    WHOLE or forced_ptr [values] says that a value's active set is forced.

    difference_ptr: float32 [slots, h, w]: mean over the channels of |frame - published|, share of
    full scale; where the slot's threshold is 0: whether they differ at all. NO_DIFFERENCE: what
    cannot be compared, outside a frame's mask or never seen.
    over_tiles_ptr: marks of the tiles in which some pixel exceeds what a box must exceed.
    SUMS: tiles hold whole cells, which are added up here: excess_ptr and known_ptr.
    """
    pid = tl.program_id(0)
    for first in range(pid * BS, zeros, tl.num_programs(0) * BS):
        at = first + tl.arange(0, BS)
        tl.store(zeros_ptr + at, tl.zeros((BS,), tl.int32), mask=at < zeros)
    for first in range(pid * BS, limits, tl.num_programs(0) * BS):
        at = first + tl.arange(0, BS)
        mask = at < limits
        free = tl.load(ctl_ptr + MODE + at // values, mask=mask, other=0) == IS_WHOLE
        free |= tl.load(forced_ptr + at % values, mask=mask, other=0) != 0
        limit = tl.load(thresholds_ptr + at, mask=mask, other=0.0)
        tl.store(limits_ptr + at, tl.where(free, NO_LIMIT, limit), mask=mask)
    slot, row, column = _tile(pid, blocks, blocks_by, across, across_by)
    if tl.load(ctl_ptr + MODE + slot) == IS_FRAME:
        frame = frames_ptr + slot * FRAME_ROW
        address = tl.load(frame)
        stride_c = tl.load(frame + 3).to(tl.int32)
        is_float = tl.load(frame + 4)
        threshold = tl.load(threshold_ptr + slot)
        exact = threshold == 0.0
        y, x, ok = _tile_pixels(row, column, h, w, TILE_W, BS)
        # a frame's own offsets fit into 32 bits (runner)
        place = y * tl.load(frame + 1).to(tl.int32) + x * tl.load(frame + 2).to(tl.int32)
        ring_y, ring_x = on_ring(y, x, slot, h, w, x_ring_ptr, MOVING)
        cell = ring_y * w + ring_x
        stored = x_ptr + slot.to(tl.int64) * x_slot + cell * X_PX
        total = tl.zeros((BS,), tl.float32)
        differs = tl.zeros((BS,), tl.int32)
        for first in range(0, C, LANES):
            new = _values(
                address, stride_c, is_float, place, ok, factor_ptr, shift_ptr, first, BGR, C, LANES
            )
            new = new.to(x_ptr.dtype.element_ty).to(tl.float32)
            lane = first + tl.arange(0, LANES)[None, :]
            at, inside = _room(stored, lane, ok, ROOM, LANES)
            old = tl.load(at, mask=inside, other=0.0)
            old = tl.where(lane < C, old.to(tl.float32), 0.0)
            scale = tl.load(scale_ptr + lane, mask=lane < C, other=0.0)
            total += tl.sum(tl.abs(new - old) * scale, 1)
            differs |= tl.max((new != old).to(tl.int32), 1)
        result = tl.where(exact, differs.to(tl.float32), total)
        if MOVING:
            valid, unseen = _standing(
                y, x, slot, h, w, ok, lines_ptr, lines_slot, masked_ptr, valid_ptr
            )
            result = tl.where((valid != 0) & (unseen == 0), result, NO_DIFFERENCE)
        tl.store(difference_ptr + slot * (h * w) + y * w + x, result, mask=ok)
        if SUMS:
            _sum_cells(
                result, threshold, ok, slot, row, column, down, cells_across, excess_ptr,
                known_ptr, GRAIN, TILE_W, BS, MOVING,
            )  # fmt: skip
        if GRAIN > 1:
            threshold *= FINE_FACTOR
        # written this way round, a NaN exceeds it
        over = (result <= threshold) == 0
        if tl.max((over & ok).to(tl.int32)) > 0:
            tl.store(over_tiles_ptr + pid, tl.load(ctl_ptr).to(tl.uint8))


@triton.jit(do_not_specialize=_GATE_PLAIN)
def find_hot(
    ctl_ptr, h, w, blocks, blocks_by, across, across_by, difference_ptr, threshold_ptr,
    over_tiles_ptr, hot_ptr, hot_tiles_ptr, down, cells_across, fine_ptr,
    TILE_W: tl.constexpr, BS: tl.constexpr, GRAIN: tl.constexpr, MOVING: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """Mark the pixels whose 3x3 box (what of it can be compared) exceeds the threshold.

    hot_ptr: stamps [slots, h, w]; where the threshold is 0: of the pixels that differ;
    hot_tiles_ptr: marks of the tiles that have any.
    fine_ptr: of a gate with cells, instead: stamps of the cells of pixels whose box is far beyond.
    """
    begin(PDL)
    pid = tl.program_id(0)
    slot, row, column = _tile(pid, blocks, blocks_by, across, across_by)
    now = tl.load(ctl_ptr).to(tl.int32)
    if (tl.load(ctl_ptr + MODE + slot) == IS_FRAME) & _marked_near(
        over_tiles_ptr, slot, row, column, blocks, across, now
    ):
        threshold = tl.load(threshold_ptr + slot)
        if GRAIN > 1:
            threshold *= FINE_FACTOR
        y, x, ok = _tile_pixels(row, column, h, w, TILE_W, BS)
        at = y * w + x
        differences = difference_ptr + slot * (h * w)
        own = tl.load(differences + at, mask=ok, other=0.0)
        total = own
        if MOVING:
            # below 0 there is no difference; a NaN is one
            known = (own < 0.0) == 0
            total = tl.where(known, own, 0.0)
            count = known.to(tl.int32)
        for i in tl.static_range(-1, 2):
            for j in tl.static_range(-1, 2):
                if i != 0 or j != 0:
                    inside = (y + i >= 0) & (y + i < h) & (x + j >= 0) & (x + j < w) & ok
                    other = NO_DIFFERENCE if MOVING else 0.0
                    difference = tl.load(differences + (at + i * w + j), mask=inside, other=other)
                    if MOVING:
                        comparable = (difference < 0.0) == 0
                        total += tl.where(comparable, difference, 0.0)
                        count += comparable.to(tl.int32)
                    else:
                        total += difference
        if not MOVING:
            rows = tl.minimum(y + 2, h) - tl.maximum(y - 1, 0)
            columns = tl.minimum(x + 2, w) - tl.maximum(x - 1, 0)
            count = rows * columns
        mean = total / count.to(tl.float32)
        over = tl.where(threshold == 0.0, own != 0.0, (mean > threshold) | (mean != mean))
        if MOVING:
            over &= known
        over &= ok
        stamp = (y * 0 + now).to(tl.uint8)
        if GRAIN > 1:
            in_cells = y * 0 + (threshold != 0.0).to(tl.int32) != 0
            cell = _cells_of(y, x, slot, down, cells_across, GRAIN)
            tl.store(fine_ptr + cell, stamp, mask=over & in_cells)
            over &= in_cells == 0
        tl.store(hot_ptr + slot * (h * w) + at, stamp, mask=over)
        if tl.max(over.to(tl.int32)) > 0:
            tl.store(hot_tiles_ptr + pid, now.to(tl.uint8))


@triton.jit(do_not_specialize=_GATE_PLAIN)
def publish_input(
    ctl_ptr, frames_ptr, x_ptr, x_slot, h, w, blocks, blocks_by, across, across_by, factor_ptr,
    shift_ptr, hot_ptr,
    hot_tiles_ptr, threshold_ptr, stamp_ptr, touch_ptr, changed_ptr,
    x_ring_ptr, lines_ptr, lines_slot, masked_ptr, valid_ptr, down, cells_across, hot_cells_ptr,
    X_PX: tl.constexpr, C: tl.constexpr, LANES: tl.constexpr, ROOM: tl.constexpr,
    BGR: tl.constexpr, TILE_W: tl.constexpr, BS: tl.constexpr,
    GRAIN: tl.constexpr, CELL_ROWS: tl.constexpr, CELL_COLUMNS: tl.constexpr,
    MOVING: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Publish the hot pixels and those beside them (threshold 0: the hot ones alone).

    With cells: the hot pixels, of slots of threshold 0, and those of cells with a stamp.

    Of a frame with a mask what is valid, and what was never seen: 0 where it is not valid.
    changed_ptr: int32 [slots], published pixels.
    """
    begin(PDL)
    pid = tl.program_id(0)
    slot, row, column = _tile(pid, blocks, blocks_by, across, across_by)
    mode = tl.load(ctl_ptr + MODE + slot)
    now = tl.load(ctl_ptr).to(tl.int32)
    wanted = mode == IS_WHOLE
    if MOVING:
        # what was never seen is published anywhere
        wanted = mode != IS_NOTHING
    elif mode == IS_FRAME:
        wanted = _marked_near(hot_tiles_ptr, slot, row, column, blocks, across, now)
        if GRAIN > 1:
            wanted |= _hot_cell_in(
                hot_cells_ptr, slot, row, column, down, cells_across, now, GRAIN, TILE_W, BS,
                CELL_ROWS, CELL_COLUMNS,
            )  # fmt: skip
    if wanted:
        y, x, ok = _tile_pixels(row, column, h, w, TILE_W, BS)
        at = y * w + x
        hots = hot_ptr + slot * (h * w)
        hot = tl.zeros((BS,), tl.int32)
        if mode == IS_WHOLE:
            hot += 1
        elif GRAIN > 1:
            cell = _cells_of(y, x, slot, down, cells_across, GRAIN)
            stamp = tl.load(hots + at, mask=ok, other=0).to(tl.int32)
            mark = tl.load(hot_cells_ptr + cell, mask=ok, other=0).to(tl.int32)
            hot |= ((stamp == now) | (mark == now)).to(tl.int32)
        else:
            reach = (tl.load(threshold_ptr + slot) != 0.0).to(tl.int32)
            for i in tl.static_range(-1, 2):
                for j in tl.static_range(-1, 2):
                    inside = (y + i >= 0) & (y + i < h) & (x + j >= 0) & (x + j < w) & ok
                    if i != 0 or j != 0:
                        inside &= y * 0 + reach != 0
                    stamp = tl.load(hots + (at + i * w + j), mask=inside, other=0)
                    hot |= (stamp.to(tl.int32) == now).to(tl.int32)
        cell = at
        if MOVING:
            valid, unseen = _standing(
                y, x, slot, h, w, ok, lines_ptr, lines_slot, masked_ptr, valid_ptr
            )
            ring_y, ring_x = on_ring(y, x, slot, h, w, x_ring_ptr, MOVING)
            cell = ring_y * w + ring_x
            if mode != IS_WHOLE:
                hot = tl.where(valid != 0, hot, 0) | unseen
        hot = tl.where(ok, hot, 0)
        total = tl.sum(hot)
        if total > 0:
            tl.atomic_add(changed_ptr + slot, total, sem="relaxed")
            frame = frames_ptr + slot * FRAME_ROW
            address = tl.load(frame)
            stride_c = tl.load(frame + 3).to(tl.int32)
            is_float = tl.load(frame + 4)
            place = y * tl.load(frame + 1).to(tl.int32) + x * tl.load(frame + 2).to(tl.int32)
            stored = x_ptr + slot.to(tl.int64) * x_slot + cell * X_PX
            mask = hot > 0
            for first in range(0, C, LANES):
                new = _values(
                    address, stride_c, is_float, place, mask, factor_ptr, shift_ptr, first, BGR, C,
                    LANES,
                )  # fmt: skip
                if MOVING:
                    new = tl.where(valid[:, None] != 0, new, 0.0)
                lane = first + tl.arange(0, LANES)[None, :]
                numbers, inside = _room(stored, lane, mask, ROOM, LANES)
                tl.store(numbers, new.to(x_ptr.dtype.element_ty), mask=inside)
            tl.store(stamp_ptr + slot * (h * w) + at, (hot * now).to(tl.uint8), mask=mask)
            tl.store(touch_ptr + slot, now.to(tl.uint8))


@triton.jit(do_not_specialize=_GATE_PLAIN)
def check_frames(
    ctl_ptr, frames_ptr, h, w, blocks, factor_ptr, shift_ptr, bad_ptr, x_ptr,
    C: tl.constexpr, LANES: tl.constexpr, BGR: tl.constexpr, BS: tl.constexpr,
):  # fmt: skip
    """Find float frames with values that are not finite once normalised, in the state's dtype.

    bad_ptr: int32 [slots], 1 where there is one.
    """
    pid = tl.program_id(0)
    slot = pid // blocks
    frame = frames_ptr + slot * FRAME_ROW
    is_float = tl.load(frame + 4)
    if (tl.load(ctl_ptr + MODE + slot) != IS_NOTHING) & (is_float != 0):
        address = tl.load(frame)
        stride_c = tl.load(frame + 3)
        at = (pid - slot * blocks) * BS + tl.arange(0, BS)
        ok = at < h * w
        y = at // w
        place = y.to(tl.int64) * tl.load(frame + 1) + (at - y * w).to(tl.int64) * tl.load(frame + 2)
        for first in range(0, C, LANES):
            new = _values(
                address, stride_c, is_float, place, ok, factor_ptr, shift_ptr, first, BGR, C, LANES
            )
            new = new.to(x_ptr.dtype.element_ty).to(tl.float32)
            # infinity minus itself is not a number
            bad = ((new - new) != 0.0).to(tl.int32)
            if tl.max(tl.max(bad, 1)) > 0:
                tl.store(bad_ptr + slot, 1)


@triton.jit
def drop_bad(ctl_ptr, bad_ptr, slots, BS: tl.constexpr):
    """Take the frames that are not finite out of the control block: they publish nothing."""
    at = tl.arange(0, BS)
    bad = tl.load(bad_ptr + at, mask=at < slots, other=0)
    tl.store(
        ctl_ptr + MODE + at, tl.full((BS,), IS_NOTHING, tl.int64), mask=(at < slots) & (bad != 0)
    )
