"""Kernels that bring numbers to other places as they are, in their own dtype."""

from __future__ import annotations

import triton
import triton.language as tl

from torchdelta.engines.triton.kernels.rows import ROW_PLAIN, address, columns
from torchdelta.engines.triton.kernels.shared import (
    begin,
    divide,
    on_ring,
    place_of,
    publish,
    take_block,
)

# fmt: off


@triton.jit(do_not_specialize=ROW_PLAIN)
def remap(
    list_ptr, count_ptr, filter0_ptr, filter1_ptr,
    out_ptr, out_slot, out_px, hw, hw_by, channels, out_w, out_w_by, out_ring_ptr,
    lines_ptr, lines_slot,
    limit_ptr, limit_stride, ctl_ptr, stamp_ptr, touch_ptr,
    x_ptr, x_slot, x_px, x_h, x_w, x_ring_ptr, rows_ptr, cols_ptr, channels_ptr, fill,
    PLACES: tl.constexpr, CHANNELS: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, FILTERS: tl.constexpr, NORM_MAX: tl.constexpr,
    STAMP: tl.constexpr, TOUCH: tl.constexpr, MOVING: tl.constexpr, PDL: tl.constexpr,
):
    """Move each number from one place, in its own dtype.

    PLACES:   rows_ptr, cols_ptr [H], [W] int32: the input row and column, -1 for `fill`; else the
              pixel at the same place
    CHANNELS: channels_ptr [channels] int32: the input channel; else the same
    """
    begin(PDL)
    count = tl.load(count_ptr)
    total = tl.cdiv(count, BM) * tl.cdiv(channels, BN)
    for block in range(tl.program_id(0), total, tl.num_programs(0)):
        row, cols = columns(block, channels, BN)
        pixel, slot, ok = take_block(
            list_ptr, count, row * BM, hw_by, limit_ptr, limit_stride, ctl_ptr,
            filter0_ptr, filter1_ptr, FILTERS, BM,
        )
        source = cols
        if CHANNELS:
            source = tl.load(channels_ptr + cols, mask=cols < channels, other=0)
        mask = ok[:, None] & (cols < channels)[None, :]
        place = pixel - slot * hw
        if PLACES:
            y = divide(place, out_w_by)
            x = tl.load(cols_ptr + place - y * out_w)
            y = tl.load(rows_ptr + y)
            found = (y >= 0) & (x >= 0)
            y, x = on_ring(y, x, slot, x_h, x_w, x_ring_ptr, MOVING)
            start = address(x_ptr, slot, x_slot, tl.where(found, y * x_w + x, 0) * x_px)
            moved = tl.load(start[:, None] + source[None, :], mask=mask & found[:, None], other=0)
            filling = tl.full((BM, BN), fill, tl.float32).to(moved.dtype)
            new = tl.where(found[:, None], moved, filling)
        else:
            place = place_of(pixel, slot, hw, out_w, out_w_by, x_ring_ptr, MOVING)
            start = address(x_ptr, slot, x_slot, place * x_px)
            new = tl.load(start[:, None] + source[None, :], mask=mask, other=0)
        publish(
            new, ok, pixel, slot, cols, out_ptr, out_slot, out_px, hw, channels,
            out_w, out_w_by, out_ring_ptr, lines_ptr, lines_slot,
            limit_ptr, limit_stride, ctl_ptr, stamp_ptr, touch_ptr,
            BM, BN, NORM_MAX, STAMP, TOUCH, MOVING,
        )


@triton.jit(do_not_specialize=[*ROW_PLAIN, "factor"])
def pixel_shuffle(
    list_ptr, count_ptr, filter0_ptr, filter1_ptr,
    out_ptr, out_slot, out_px, hw, hw_by, channels, out_w, out_w_by, out_ring_ptr,
    lines_ptr, lines_slot,
    limit_ptr, limit_stride, ctl_ptr, stamp_ptr, touch_ptr,
    x_ptr, x_slot, x_px, x_h, x_w, x_ring_ptr, factor,
    UNSHUFFLE: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, FILTERS: tl.constexpr, NORM_MAX: tl.constexpr,
    STAMP: tl.constexpr, TOUCH: tl.constexpr, MOVING: tl.constexpr, PDL: tl.constexpr,
):
    """Move channels to space, or back.

    shuffle:   out[y, x, c] = in[y // r, x // r, (c * r + y % r) * r + x % r]
    UNSHUFFLE: out[y, x, (c * r + i) * r + j] = in[y * r + i, x * r + j, c]
    """
    begin(PDL)
    count = tl.load(count_ptr)
    total = tl.cdiv(count, BM) * tl.cdiv(channels, BN)
    for block in range(tl.program_id(0), total, tl.num_programs(0)):
        row, cols = columns(block, channels, BN)
        pixel, slot, ok = take_block(
            list_ptr, count, row * BM, hw_by, limit_ptr, limit_stride, ctl_ptr,
            filter0_ptr, filter1_ptr, FILTERS, BM,
        )
        mask = ok[:, None] & (cols < channels)[None, :]
        y = divide(pixel - slot * hw, out_w_by)
        x = pixel - slot * hw - y * out_w
        if UNSHUFFLE:
            i = cols // factor % factor
            j = cols % factor
            in_y, in_x = on_ring(
                (y * factor)[:, None] + i[None, :], (x * factor)[:, None] + j[None, :],
                slot[:, None], x_h, x_w, x_ring_ptr, MOVING,
            )
            inner = (in_y * x_w + in_x) * x_px + (cols // (factor * factor))[None, :]
        else:
            in_y, in_x = on_ring(y // factor, x // factor, slot, x_h, x_w, x_ring_ptr, MOVING)
            place = in_y * x_w + in_x
            part = (y % factor) * factor + x % factor
            inner = (place * x_px + part)[:, None] + (cols * factor * factor)[None, :]
        start = address(x_ptr, slot, x_slot, 0)
        new = tl.load(start[:, None] + inner, mask=mask, other=0)
        publish(
            new, ok, pixel, slot, cols, out_ptr, out_slot, out_px, hw, channels,
            out_w, out_w_by, out_ring_ptr, lines_ptr, lines_slot,
            limit_ptr, limit_stride, ctl_ptr, stamp_ptr, touch_ptr,
            BM, BN, NORM_MAX, STAMP, TOUCH, MOVING,
        )


@triton.jit(do_not_specialize=[*ROW_PLAIN, "x_hw"])
def reshape(
    list_ptr, count_ptr, filter0_ptr, filter1_ptr,
    out_ptr, out_slot, out_px, hw, hw_by, channels, out_w, out_w_by, out_ring_ptr,
    lines_ptr, lines_slot,
    limit_ptr, limit_stride, ctl_ptr, stamp_ptr, touch_ptr,
    x_ptr, x_slot, x_px, x_w, x_ring_ptr, x_hw,
    BM: tl.constexpr, BN: tl.constexpr, FILTERS: tl.constexpr, NORM_MAX: tl.constexpr,
    STAMP: tl.constexpr, TOUCH: tl.constexpr, MOVING: tl.constexpr, PDL: tl.constexpr,
):
    """Cut the numbers anew: number i in the model's order [C, H, W] is c = i // HW, pixel i % HW.

    What is no map has H = W = 1 and the model's order in its channels.
    """
    begin(PDL)
    count = tl.load(count_ptr)
    total = tl.cdiv(count, BM) * tl.cdiv(channels, BN)
    for block in range(tl.program_id(0), total, tl.num_programs(0)):
        row, cols = columns(block, channels, BN)
        pixel, slot, ok = take_block(
            list_ptr, count, row * BM, hw_by, limit_ptr, limit_stride, ctl_ptr,
            filter0_ptr, filter1_ptr, FILTERS, BM,
        )
        mask = ok[:, None] & (cols < channels)[None, :]
        number = (cols * hw)[None, :] + (pixel - slot * hw)[:, None]
        channel = number // x_hw
        start = address(x_ptr, slot, x_slot, 0)
        place = number - channel * x_hw
        if MOVING:
            y, x = on_ring(
                place // x_w, place % x_w, slot[:, None], x_hw // x_w, x_w, x_ring_ptr, MOVING
            )
            place = y * x_w + x
        inner = place * x_px + channel
        new = tl.load(start[:, None] + inner, mask=mask, other=0)
        publish(
            new, ok, pixel, slot, cols, out_ptr, out_slot, out_px, hw, channels,
            out_w, out_w_by, out_ring_ptr, lines_ptr, lines_slot,
            limit_ptr, limit_stride, ctl_ptr, stamp_ptr, touch_ptr,
            BM, BN, NORM_MAX, STAMP, TOUCH, MOVING,
        )
