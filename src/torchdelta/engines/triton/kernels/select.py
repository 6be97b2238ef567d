"""From stamps to lists: which pixels of a step are active in this frame."""

from __future__ import annotations

import triton
import triton.language as tl

from torchdelta.engines.triton.kernels.shared import (
    IS_IDENTITY,
    IS_KEPT,
    IS_NOTHING,
    IS_TOUCH,
    IS_WHOLE,
    IS_WINDOW,
    MODE,
    begin,
    divide,
    moved_level,
)

_SELECT_SOURCE = (
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
_SELECT_PLAIN = [
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
] + [f"s{n}_{name}" for n in range(4) for name in _SELECT_SOURCE]


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
def _hit(
    slot, y, x, ok, now, ptr, h, w, stride_y, stride_x, pad_y, pad_x, dilation_y, dilation_x,
    rows_ptr, cols_ptr, KIND: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr,
    WIDE: tl.constexpr, BS: tl.constexpr,
):  # fmt: skip
    """Whether some published pixel of a source lies in the outputs' windows: int32 [BS].

    ptr: stamps [slots, h, w], or a byte per slot (TOUCH). KH, KW: taps of a window, or entries per
    output of the tables rows_ptr and cols_ptr (-1: none).
    """
    hit = tl.zeros_like(y)
    if KIND == IS_IDENTITY:
        stamp = tl.load(ptr + slot * (h * w) + y * w + x, mask=ok, other=0)
        hit = (stamp.to(tl.int32) == now).to(tl.int32)
    elif KIND == IS_WINDOW:
        hit = _any_tap(
            slot, y, x, ok, now, ptr, h, w, stride_y, stride_x, pad_y, pad_x, dilation_y,
            dilation_x, KH, KW,
        )  # fmt: skip
    elif KIND == IS_TOUCH:
        touched = tl.load(ptr + slot).to(tl.int32) == now
        hit += touched.to(tl.int32)
    else:
        # WIDE taps at once: one by one, each would wait for the memory
        found = tl.zeros((BS, WIDE), tl.int32)
        for first in range(0, KH * KW, WIDE):
            tap = first + tl.arange(0, WIDE)[None, :]
            wanted = ok[:, None] & (tap < KH * KW)
            at_y = tl.load(rows_ptr + y[:, None] * KH + tap // KW, mask=wanted, other=-1)
            at_x = tl.load(cols_ptr + x[:, None] * KW + tap % KW, mask=wanted, other=-1)
            inside = (at_y >= 0) & (at_x >= 0)
            stamp = tl.load(ptr + slot * (h * w) + at_y * w + at_x, mask=inside, other=0)
            found |= (stamp.to(tl.int32) == now).to(tl.int32)
        hit = tl.max(found, 1)
    return hit


@triton.jit
def _append(active, pixel, list_ptr, count_ptr):
    """Add the active pixels to a list; returns how many there are."""
    total = tl.sum(active)
    if total > 0:
        first = tl.atomic_add(count_ptr, total, sem="relaxed")
        place = first + tl.cumsum(active, 0) - 1
        tl.store(list_ptr + place, pixel, mask=active > 0)
    return total


@triton.jit(do_not_specialize=_SELECT_PLAIN)
def select(
    list_ptr, count_ptr, active_ptr, wide_list_ptr, wide_count_ptr, ctl_ptr, carry_ptr, forced_ptr,
    never, h, w, w_by, blocks, blocks_by, capacity, lines_ptr, lines_slot,
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
    CARRY_IN: tl.constexpr, CARRY_OUT: tl.constexpr, FORCED: tl.constexpr, BS: tl.constexpr,
    WIDE: tl.constexpr, MOVING: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """List the pixels of a map [slots, h, w] that a change of the sources makes active.

    The first OWN sources are the step's: they give its list (one per phase of the output,
    `capacity` entries apart) and the number of active pixels per slot, active_ptr [slots]. All
    SOURCES together give the wide list, for the steps that follow with the same pixels, where
    there are more.
    CARRY_*: the mask of more sources than one launch takes. FORCED: forced_ptr [h, w] replaces what
    was found; `never` is 0. A program looks at BS pixels of one slot, in reading order; there are
    `blocks` programs per slot.
    """
    begin(PDL)
    pid = tl.program_id(0)
    slot = divide(pid, blocks_by)
    mode = tl.load(ctl_ptr + MODE + slot)
    now = tl.load(ctl_ptr).to(tl.int32)
    n = tl.arange(0, BS)
    block = pid - slot * blocks
    at = block * BS + n
    ok = at < h * w
    y = divide(at, w_by)
    x = at - y * w
    pixel = slot * (h * w) + at
    active = _hit(
        slot, y, x, ok, now, s0_ptr, s0_h, s0_w, s0_stride_y, s0_stride_x, s0_pad_y, s0_pad_x,
        s0_dilation_y, s0_dilation_x, s0_rows_ptr, s0_cols_ptr,
        KIND0, KH0, KW0, WIDE, BS,
    )  # fmt: skip
    if OWN > 1:
        active |= _hit(
            slot, y, x, ok, now, s1_ptr, s1_h, s1_w, s1_stride_y, s1_stride_x, s1_pad_y,
            s1_pad_x, s1_dilation_y, s1_dilation_x, s1_rows_ptr, s1_cols_ptr,
            KIND1, KH1, KW1, WIDE, BS,
        )  # fmt: skip
    if OWN > 2:
        active |= _hit(
            slot, y, x, ok, now, s2_ptr, s2_h, s2_w, s2_stride_y, s2_stride_x, s2_pad_y,
            s2_pad_x, s2_dilation_y, s2_dilation_x, s2_rows_ptr, s2_cols_ptr,
            KIND2, KH2, KW2, WIDE, BS,
        )  # fmt: skip
    if OWN > 3:
        active |= _hit(
            slot, y, x, ok, now, s3_ptr, s3_h, s3_w, s3_stride_y, s3_stride_x, s3_pad_y,
            s3_pad_x, s3_dilation_y, s3_dilation_x, s3_rows_ptr, s3_cols_ptr,
            KIND3, KH3, KW3, WIDE, BS,
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
                KIND1, KH1, KW1, WIDE, BS,
            )  # fmt: skip
        if SOURCES > 2 and OWN < 3:
            wide |= _hit(
                slot, y, x, ok, now, s2_ptr, s2_h, s2_w, s2_stride_y, s2_stride_x, s2_pad_y,
                s2_pad_x, s2_dilation_y, s2_dilation_x, s2_rows_ptr, s2_cols_ptr,
                KIND2, KH2, KW2, WIDE, BS,
            )  # fmt: skip
        if SOURCES > 3 and OWN < 4:
            wide |= _hit(
                slot, y, x, ok, now, s3_ptr, s3_h, s3_w, s3_stride_y, s3_stride_x, s3_pad_y,
                s3_pad_x, s3_dilation_y, s3_dilation_x, s3_rows_ptr, s3_cols_ptr,
                KIND3, KH3, KW3, WIDE, BS,
            )  # fmt: skip
        if MOVING:
            level = moved_level(y, x, slot, h, ok, lines_ptr, lines_slot)
            active |= (level != IS_KEPT).to(tl.int32)
            wide |= active
        if FORCED:
            # `never` is 0: without what was found the compiler would leave the search away
            active = tl.load(forced_ptr + at, mask=ok, other=0).to(tl.int32) | (wide & never)
            wide = active
        # a slot without a frame: what its stamps say is older
        whole = (mode == IS_WHOLE).to(tl.int32)
        ok &= at * 0 + mode != IS_NOTHING
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
            tl.atomic_add(active_ptr + slot, total, sem="relaxed")
        if SOURCES > OWN:
            _append(tl.where(ok, wide | whole, 0), pixel, wide_list_ptr, wide_count_ptr)
