"""From stamps to lists: which pixels of a step are active in this frame."""

from __future__ import annotations

import triton
import triton.language as tl

from torchdelta.engines.triton.kernels.shared import (
    IS_WHOLE,
    MODE,
    begin,
    divide,
    moved_level,
)

# how a source's changes reach the output: at their own place, through a window, all at once, or
# by a table of the inputs that each output row and column reads, or through a window of the
# network's input, whose tiles are marked (kernels/gate.py); WORDS: the same, eight stamps at once
IDENTITY, WINDOW, TOUCH, TABLE, INPUT, WORDS = 0, 1, 2, 3, 4, 5

_SOURCE = (
    "ptr",
    "rows_ptr",
    "cols_ptr",
    "h",
    "w",
    "stride_y",
    "stride_x",
    "pad_y",
    "pad_x",
    "dilation_y",
    "dilation_x",
)
_PLAIN = [
    "h",
    "w",
    "w_by",
    "blocks",
    "blocks_by",
    "capacity",
    "list_ptr",
    "count_ptr",
    "active_ptr",
    "wide_list_ptr",
    "wide_count_ptr",
    "carry_ptr",
    "forced_ptr",
    "never",
    "lines_ptr",
    "lines_slot",
    "tiles_ptr",
] + [f"s{n}_{name}" for n in range(4) for name in _SOURCE]


@triton.jit
def _any_tap(
    slot, y, x, ok, now, ptr, h, w, stride_y, stride_x, pad_y, pad_x, dilation_y, dilation_x,
    KH: tl.constexpr, KW: tl.constexpr,
):  # fmt: skip
    """Whether some pixel of a window was published: int32 [BS]."""
    hit = tl.zeros_like(y)
    for i in tl.static_range(KH):
        for j in tl.static_range(KW):
            at_y = y * stride_y + (i * dilation_y - pad_y)
            at_x = x * stride_x + (j * dilation_x - pad_x)
            inside = (at_y >= 0) & (at_y < h) & (at_x >= 0) & (at_x < w) & ok
            stamp = tl.load(ptr + slot * (h * w) + at_y * w + at_x, mask=inside, other=0)
            hit |= (stamp.to(tl.int32) == now).to(tl.int32)
    return hit


@triton.jit
def _any_word(
    slot, y, x, ok, now, ptr, h, w, stride_y, stride_x, pad_y, pad_x, dilation_y,
    KH: tl.constexpr, KW: tl.constexpr,
):  # fmt: skip
    """Whether some pixel of a window was published: int32 [BS]; eight stamps at once.

    KW <= 8, w is a multiple of 8, no dilation of columns. A word has a byte 0 where
    (word - 0x01..01) & ~word & 0x80..80 is not 0.
    """
    words = ptr.to(tl.pointer_type(tl.uint64))
    across = w // 8
    first = x * stride_x - pad_x
    word = first >> 3
    bits = ((first & 7) * 8).to(tl.uint64)
    WINDOW_BITS: tl.constexpr = (1 << (8 * KW - 1)) * 2 - 1
    low_mask = (y * 0).to(tl.uint64) + WINDOW_BITS
    # a shift by 64 is undefined: by 8 bits less, and by 8 more
    high_mask = (low_mask >> (56 - bits)) >> 8
    low_mask = low_mask << bits
    wanted = (y * 0 + now).to(tl.uint64) * 0x0101010101010101
    found = low_mask * 0
    in_low = ok & (word >= 0) & (word < across)
    in_high = ok & (word + 1 >= 0) & (word + 1 < across) & (high_mask != 0)
    for i in tl.static_range(KH):
        at_y = y * stride_y + (i * dilation_y - pad_y)
        inside = (at_y >= 0) & (at_y < h)
        at = words + (slot * h + at_y) * across + word
        low = tl.load(at, mask=inside & in_low, other=0)
        high = tl.load(at + 1, mask=inside & in_high, other=0)
        low = (low ^ wanted) | ~low_mask
        high = (high ^ wanted) | ~high_mask
        found |= (low - 0x0101010101010101) & ~low
        found |= (high - 0x0101010101010101) & ~high
    return ((found >> 7) & 0x0101010101010101 != 0).to(tl.int32)


@triton.jit
def _hit(
    slot, y, x, ok, now, ptr, h, w, stride_y, stride_x, pad_y, pad_x, dilation_y, dilation_x,
    rows_ptr, cols_ptr, tiles_ptr, KIND: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr,
    TILE_H: tl.constexpr, TILE_W: tl.constexpr, WIDE: tl.constexpr, BS: tl.constexpr,
):  # fmt: skip
    """Whether some published pixel of a source lies in the outputs' windows: int32 [BS].

    ptr: stamps [slots, h, w], or a byte per slot (TOUCH). KH, KW: taps of a window, or entries per
    output of the tables rows_ptr and cols_ptr (-1: none). tiles_ptr: marks of the input's tiles of
    TILE_H x TILE_W pixels, no smaller than a window (INPUT, WORDS).
    """
    hit = tl.zeros_like(y)
    if KIND == 0:
        stamp = tl.load(ptr + slot * (h * w) + y * w + x, mask=ok, other=0)
        hit = (stamp.to(tl.int32) == now).to(tl.int32)
    elif KIND == 1:
        hit = _any_tap(
            slot, y, x, ok, now, ptr, h, w, stride_y, stride_x, pad_y, pad_x, dilation_y,
            dilation_x, KH, KW,
        )  # fmt: skip
    elif KIND >= 4:
        # a window lies in four tiles at most, those of its corners
        across = tl.cdiv(w, TILE_W)
        marks = tiles_ptr + slot * (tl.cdiv(h, TILE_H) * across)
        for i in tl.static_range(2):
            for j in tl.static_range(2):
                at_y = y * stride_y - pad_y + i * (KH - 1) * dilation_y
                at_x = x * stride_x - pad_x + j * (KW - 1) * dilation_x
                at_y = tl.minimum(tl.maximum(at_y, 0), h - 1) // TILE_H
                at_x = tl.minimum(tl.maximum(at_x, 0), w - 1) // TILE_W
                mark = tl.load(marks + at_y * across + at_x, mask=ok, other=0)
                hit |= (mark.to(tl.int32) == now).to(tl.int32)
        if tl.max(hit) > 0:
            if KIND == 5:
                hit = _any_word(
                    slot, y, x, ok, now, ptr, h, w, stride_y, stride_x, pad_y, pad_x, dilation_y,
                    KH, KW,
                )  # fmt: skip
            else:
                hit = _any_tap(
                    slot, y, x, ok, now, ptr, h, w, stride_y, stride_x, pad_y, pad_x, dilation_y,
                    dilation_x, KH, KW,
                )  # fmt: skip
    elif KIND == 2:
        touched = tl.load(ptr + slot).to(tl.int32) == now
        hit += touched.to(tl.int32)
    else:
        # a row of the window at once
        j = tl.arange(0, WIDE)[None, :]
        at_x = tl.load(cols_ptr + x[:, None] * KW + j, mask=ok[:, None] & (j < KW), other=-1)
        found = tl.zeros((BS, WIDE), tl.int32)
        for i in range(KH):
            at_y = tl.load(rows_ptr + y * KH + i, mask=ok, other=-1)
            inside = (at_y >= 0)[:, None] & (at_x >= 0)
            place = slot * (h * w) + at_y[:, None] * w + at_x
            stamp = tl.load(ptr + place, mask=inside, other=0)
            found |= (stamp.to(tl.int32) == now).to(tl.int32)
        hit = tl.max(found, 1)
    return hit


@triton.jit
def _append(active, pixel, list_ptr, count_ptr):
    """Add the active pixels to a list; returns how many there are."""
    total = tl.sum(active)
    if total > 0:
        first = tl.atomic_add(count_ptr, total)
        place = first + tl.cumsum(active, 0) - 1
        tl.store(list_ptr + place, pixel, mask=active > 0)
    return total


@triton.jit(do_not_specialize=_PLAIN)
def select(
    list_ptr, count_ptr, active_ptr, wide_list_ptr, wide_count_ptr, ctl_ptr, carry_ptr, forced_ptr,
    never, h, w, w_by, blocks, blocks_by, capacity, lines_ptr, lines_slot, tiles_ptr,
    s0_ptr, s0_h, s0_w, s0_stride_y, s0_stride_x, s0_pad_y, s0_pad_x, s0_dilation_y,
    s0_dilation_x, s0_rows_ptr, s0_cols_ptr,
    s1_ptr, s1_h, s1_w, s1_stride_y, s1_stride_x, s1_pad_y, s1_pad_x, s1_dilation_y,
    s1_dilation_x, s1_rows_ptr, s1_cols_ptr,
    s2_ptr, s2_h, s2_w, s2_stride_y, s2_stride_x, s2_pad_y, s2_pad_x, s2_dilation_y,
    s2_dilation_x, s2_rows_ptr, s2_cols_ptr,
    s3_ptr, s3_h, s3_w, s3_stride_y, s3_stride_x, s3_pad_y, s3_pad_x, s3_dilation_y,
    s3_dilation_x, s3_rows_ptr, s3_cols_ptr,
    KIND0: tl.constexpr, KH0: tl.constexpr, KW0: tl.constexpr,
    KIND1: tl.constexpr, KH1: tl.constexpr, KW1: tl.constexpr,
    KIND2: tl.constexpr, KH2: tl.constexpr, KW2: tl.constexpr,
    KIND3: tl.constexpr, KH3: tl.constexpr, KW3: tl.constexpr,
    OWN: tl.constexpr, SOURCES: tl.constexpr, PHASES_Y: tl.constexpr, PHASES_X: tl.constexpr,
    CARRY_IN: tl.constexpr, CARRY_OUT: tl.constexpr, FORCED: tl.constexpr, IN_H: tl.constexpr,
    IN_W: tl.constexpr, TILE_W: tl.constexpr, BS: tl.constexpr,
    WIDE: tl.constexpr, MOVING: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """List the pixels of a map [slots, h, w] that a change of the sources makes active.

    The first OWN sources are the step's: they give its list (one per phase of the output,
    `capacity` entries apart) and the number of active pixels per slot, active_ptr [slots]. All
    SOURCES together give the wide list, for the steps that follow with the same pixels, where
    there are more.
    CARRY_*: the mask of more sources than one launch takes. FORCED: forced_ptr [h, w] replaces what
    was found; `never` is 0. A program looks at BS pixels of one slot, in reading order or (TILE_W)
    in a tile of so many columns; there are `blocks` programs per slot. IN_H, IN_W: tiles of the
    input.
    """
    begin(PDL)
    pid = tl.program_id(0)
    slot = divide(pid, blocks_by)
    mode = tl.load(ctl_ptr + MODE + slot)
    now = tl.load(ctl_ptr).to(tl.int32)
    n = tl.arange(0, BS)
    block = pid - slot * blocks
    if TILE_W > 0:
        across = tl.cdiv(w, TILE_W)
        row = block // across
        y = row * (BS // TILE_W) + n // TILE_W
        x = (block - row * across) * TILE_W + n % TILE_W
        at = y * w + x
        ok = (y < h) & (x < w)
    else:
        at = block * BS + n
        ok = at < h * w
        y = divide(at, w_by)
        x = at - y * w
    pixel = slot * (h * w) + at
    active = _hit(
        slot, y, x, ok, now, s0_ptr, s0_h, s0_w, s0_stride_y, s0_stride_x, s0_pad_y, s0_pad_x,
        s0_dilation_y, s0_dilation_x, s0_rows_ptr, s0_cols_ptr,
        tiles_ptr, KIND0, KH0, KW0, IN_H, IN_W, WIDE, BS,
    )  # fmt: skip
    if OWN > 1:
        active |= _hit(
            slot, y, x, ok, now, s1_ptr, s1_h, s1_w, s1_stride_y, s1_stride_x, s1_pad_y,
            s1_pad_x, s1_dilation_y, s1_dilation_x, s1_rows_ptr, s1_cols_ptr,
            tiles_ptr, KIND1, KH1, KW1, IN_H, IN_W, WIDE, BS,
        )  # fmt: skip
    if OWN > 2:
        active |= _hit(
            slot, y, x, ok, now, s2_ptr, s2_h, s2_w, s2_stride_y, s2_stride_x, s2_pad_y,
            s2_pad_x, s2_dilation_y, s2_dilation_x, s2_rows_ptr, s2_cols_ptr,
            tiles_ptr, KIND2, KH2, KW2, IN_H, IN_W, WIDE, BS,
        )  # fmt: skip
    if OWN > 3:
        active |= _hit(
            slot, y, x, ok, now, s3_ptr, s3_h, s3_w, s3_stride_y, s3_stride_x, s3_pad_y,
            s3_pad_x, s3_dilation_y, s3_dilation_x, s3_rows_ptr, s3_cols_ptr,
            tiles_ptr, KIND3, KH3, KW3, IN_H, IN_W, WIDE, BS,
        )  # fmt: skip
    if CARRY_IN:
        active |= tl.load(carry_ptr + pixel, mask=ok, other=0).to(tl.int32)
    if CARRY_OUT:
        tl.store(carry_ptr + pixel, active.to(tl.uint8), mask=ok)
    else:
        wide = active
        if SOURCES > OWN and OWN < 2:
            wide |= _hit(
                slot, y, x, ok, now, s1_ptr, s1_h, s1_w, s1_stride_y, s1_stride_x, s1_pad_y,
                s1_pad_x, s1_dilation_y, s1_dilation_x, s1_rows_ptr, s1_cols_ptr,
                tiles_ptr, KIND1, KH1, KW1, IN_H, IN_W, WIDE, BS,
            )  # fmt: skip
        if SOURCES > 2 and OWN < 3:
            wide |= _hit(
                slot, y, x, ok, now, s2_ptr, s2_h, s2_w, s2_stride_y, s2_stride_x, s2_pad_y,
                s2_pad_x, s2_dilation_y, s2_dilation_x, s2_rows_ptr, s2_cols_ptr,
                tiles_ptr, KIND2, KH2, KW2, IN_H, IN_W, WIDE, BS,
            )  # fmt: skip
        if SOURCES > 3 and OWN < 4:
            wide |= _hit(
                slot, y, x, ok, now, s3_ptr, s3_h, s3_w, s3_stride_y, s3_stride_x, s3_pad_y,
                s3_pad_x, s3_dilation_y, s3_dilation_x, s3_rows_ptr, s3_cols_ptr,
                tiles_ptr, KIND3, KH3, KW3, IN_H, IN_W, WIDE, BS,
            )  # fmt: skip
        if MOVING:
            level = moved_level(y, x, slot, h, ok, lines_ptr, lines_slot)
            active |= (level > 0).to(tl.int32)
            wide |= active
        if FORCED:
            # `never` is 0: without what was found the compiler would leave the search away
            active = tl.load(forced_ptr + at, mask=ok, other=0).to(tl.int32) | (wide & never)
            wide = active
        # a slot without a frame: what its stamps say is older
        whole = (mode == IS_WHOLE).to(tl.int32)
        ok &= at * 0 + mode != 0
        active = tl.where(ok, active | whole, 0)
        if PHASES_Y * PHASES_X == 1:
            total = _append(active, pixel, list_ptr, count_ptr)
        else:
            total = tl.sum(active)
            for phase in tl.static_range(PHASES_Y * PHASES_X):
                own = (y % PHASES_Y == phase // PHASES_X) & (x % PHASES_X == phase % PHASES_X)
                _append(
                    tl.where(own, active, 0), pixel, list_ptr + phase * capacity,
                    count_ptr + phase,
                )  # fmt: skip
        if total > 0:
            tl.atomic_add(active_ptr + slot, total)
        if SOURCES > OWN:
            _append(tl.where(ok, wide | whole, 0), pixel, wide_list_ptr, wide_count_ptr)


@triton.jit
def count_stamps(jobs_ptr, ctl_ptr, TWO: tl.constexpr, BS: tl.constexpr, PDL: tl.constexpr):
    """Count a program's BS pixels at which one of two values was published.

    jobs_ptr: [programs, 5] int64: address of the first stamp, of the second (0: none), of the int32
    counter, how many stamps there are, and the slot.
    """
    begin(PDL)
    job = jobs_ptr + tl.program_id(0) * 5
    first = tl.load(job).to(tl.pointer_type(tl.uint8))
    second_address = tl.load(job + 1)
    counter = tl.load(job + 2).to(tl.pointer_type(tl.int32))
    length = tl.load(job + 3)
    slot = tl.load(job + 4)
    if tl.load(ctl_ptr + MODE + slot) != 0:
        now = tl.load(ctl_ptr).to(tl.int32)
        at = tl.arange(0, BS)
        hit = tl.load(first + at, mask=at < length, other=0).to(tl.int32) == now
        if TWO:
            second = second_address.to(tl.pointer_type(tl.uint8))
            # the interpreter cannot splat a scalar truth value
            mask = (at < length) & (at * 0 + second_address != 0)
            hit |= tl.load(second + at, mask=mask, other=0).to(tl.int32) == now
        total = tl.sum(hit.to(tl.int32))
        if total > 0:
            tl.atomic_add(counter, total)
