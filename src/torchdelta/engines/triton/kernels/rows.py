"""Kernels of all steps but convolutions: each gives `new` for a block of active pixels.

Every kernel runs over the same list (`take_block`) and ends in the same gate (`publish`), so it
begins with the same arguments:

list_ptr, count_ptr, filter0_ptr, filter1_ptr: the active pixels (shared.take_block)
out_ptr .. touch_ptr: the output's state and its gate (shared.publish); hw, out_w: pixels and
    columns of its map, hw_by and out_w_by to divide by them (shared.divide)
x_ptr, x_slot, x_px, x_h, x_w, x_ring_ptr: the input's state; pixel (y, x), channel c of slot n lies
    at x_ptr + n * x_slot + (y * x_w + x) * x_px + c, where no window has moved
slope_ptr, POST, A, B, C: an elementwise function of the result (`_activate`)
BM, BN: pixels and channels of a block. They and the number of warps fix the order of every sum, so
    they follow from the plan alone, never from the list.
"""

from __future__ import annotations

import triton
import triton.language as tl

from torchdelta.engines.triton.kernels.shared import (
    apply_function,
    begin,
    combine,
    divide,
    on_ring,
    place_of,
    publish,
    take_block,
)

# fmt: off
# numbers that differ between steps without making other code worth its compilation
PLAIN = [
    "hw", "hw_by", "out_w", "out_w_by", "limit_stride", "x_h", "x_w",
    "lines_slot", "lines_ptr", "out_ring_ptr",
    # their places hang on the number of slots
    "count_ptr", "touch_ptr",
]
# taps that a pool loads at once
UNROLL = tl.constexpr(4)


@triton.jit
def _columns(block, channels, BN: tl.constexpr):
    """Give the first block-row of a block, and its channels [BN]."""
    blocks = tl.cdiv(channels, BN)
    return block // blocks, (block % blocks) * BN + tl.arange(0, BN)


@triton.jit
def _at(ptr, slot, slot_stride, place):
    """Point to places [BM] inside slots [BM]."""
    return ptr + slot.to(tl.int64) * slot_stride + place


@triton.jit
def _activate(
    x, cols, channels, slope_ptr,
    FN: tl.constexpr, A: tl.constexpr, B: tl.constexpr, C: tl.constexpr,
):
    """Compute an elementwise function, "" for none; only "prelu" has slopes [channels]."""
    if FN == "prelu":
        slope = tl.load(slope_ptr + cols, mask=cols < channels, other=0).to(tl.float32)
        x = tl.where(x >= 0, x, x * slope[None, :])
    elif FN != "":
        x = apply_function(x, FN, A, B, C)
    return x


@triton.jit(do_not_specialize=PLAIN)
def pointwise(
    list_ptr, count_ptr, filter0_ptr, filter1_ptr,
    out_ptr, out_slot, out_px, hw, hw_by, channels, out_w, out_w_by, out_ring_ptr,
    lines_ptr, lines_slot,
    limit_ptr, limit_stride, ctl_ptr, stamp_ptr, touch_ptr,
    x_ptr, x_slot, x_px, x_ring_ptr,
    PRE: tl.constexpr, PRE_A: tl.constexpr, PRE_B: tl.constexpr, PRE_C: tl.constexpr,
    slope_ptr, POST: tl.constexpr, A: tl.constexpr, B: tl.constexpr, C: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, FILTERS: tl.constexpr, NORM_MAX: tl.constexpr,
    STAMP: tl.constexpr, TOUCH: tl.constexpr, MOVING: tl.constexpr, PDL: tl.constexpr,
):
    """Compute one elementwise function after the other."""
    begin(PDL)
    count = tl.load(count_ptr)
    total = tl.cdiv(count, BM) * tl.cdiv(channels, BN)
    for block in range(tl.program_id(0), total, tl.num_programs(0)):
        row, cols = _columns(block, channels, BN)
        pixel, slot, ok = take_block(
            list_ptr, count, row * BM, hw_by, limit_ptr, limit_stride, ctl_ptr,
            filter0_ptr, filter1_ptr, FILTERS, BM,
        )
        mask = ok[:, None] & (cols < channels)[None, :]
        place = place_of(pixel, slot, hw, out_w, out_w_by, x_ring_ptr, MOVING)
        start = _at(x_ptr, slot, x_slot, place * x_px)
        x = tl.load(start[:, None] + cols[None, :], mask=mask, other=0).to(tl.float32)
        new = _activate(x, cols, channels, slope_ptr, PRE, PRE_A, PRE_B, PRE_C)
        new = _activate(new, cols, channels, slope_ptr, POST, A, B, C)
        publish(
            new, ok, pixel, slot, cols, out_ptr, out_slot, out_px, hw, channels,
            out_w, out_w_by, out_ring_ptr, lines_ptr, lines_slot,
            limit_ptr, limit_stride, ctl_ptr, stamp_ptr, touch_ptr,
            BM, BN, NORM_MAX, STAMP, TOUCH, MOVING,
        )


@triton.jit(do_not_specialize=PLAIN)
def affine(
    list_ptr, count_ptr, filter0_ptr, filter1_ptr,
    out_ptr, out_slot, out_px, hw, hw_by, channels, out_w, out_w_by, out_ring_ptr,
    lines_ptr, lines_slot,
    limit_ptr, limit_stride, ctl_ptr, stamp_ptr, touch_ptr,
    x_ptr, x_slot, x_px, x_ring_ptr, scale_ptr, shift_ptr,
    slope_ptr, POST: tl.constexpr, A: tl.constexpr, B: tl.constexpr, C: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, FILTERS: tl.constexpr, NORM_MAX: tl.constexpr,
    STAMP: tl.constexpr, TOUCH: tl.constexpr, MOVING: tl.constexpr, PDL: tl.constexpr,
):
    """Compute x * scale + shift, both [channels]."""
    begin(PDL)
    count = tl.load(count_ptr)
    total = tl.cdiv(count, BM) * tl.cdiv(channels, BN)
    for block in range(tl.program_id(0), total, tl.num_programs(0)):
        row, cols = _columns(block, channels, BN)
        pixel, slot, ok = take_block(
            list_ptr, count, row * BM, hw_by, limit_ptr, limit_stride, ctl_ptr,
            filter0_ptr, filter1_ptr, FILTERS, BM,
        )
        inside = cols < channels
        place = place_of(pixel, slot, hw, out_w, out_w_by, x_ring_ptr, MOVING)
        start = _at(x_ptr, slot, x_slot, place * x_px)
        x = tl.load(start[:, None] + cols[None, :], mask=ok[:, None] & inside[None, :], other=0)
        scale = tl.load(scale_ptr + cols, mask=inside, other=0).to(tl.float32)
        shift = tl.load(shift_ptr + cols, mask=inside, other=0).to(tl.float32)
        new = x.to(tl.float32) * scale[None, :] + shift[None, :]
        new = _activate(new, cols, channels, slope_ptr, POST, A, B, C)
        publish(
            new, ok, pixel, slot, cols, out_ptr, out_slot, out_px, hw, channels,
            out_w, out_w_by, out_ring_ptr, lines_ptr, lines_slot,
            limit_ptr, limit_stride, ctl_ptr, stamp_ptr, touch_ptr,
            BM, BN, NORM_MAX, STAMP, TOUCH, MOVING,
        )


@triton.jit(do_not_specialize=PLAIN)
def scalar(
    list_ptr, count_ptr, filter0_ptr, filter1_ptr,
    out_ptr, out_slot, out_px, hw, hw_by, channels, out_w, out_w_by, out_ring_ptr,
    lines_ptr, lines_slot,
    limit_ptr, limit_stride, ctl_ptr, stamp_ptr, touch_ptr,
    x_ptr, x_slot, x_px, x_ring_ptr, number,
    FN: tl.constexpr, NUMBER_FIRST: tl.constexpr,
    slope_ptr, POST: tl.constexpr, A: tl.constexpr, B: tl.constexpr, C: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, FILTERS: tl.constexpr, NORM_MAX: tl.constexpr,
    STAMP: tl.constexpr, TOUCH: tl.constexpr, MOVING: tl.constexpr, PDL: tl.constexpr,
):
    """Combine each pixel with a number in float32."""
    begin(PDL)
    count = tl.load(count_ptr)
    total = tl.cdiv(count, BM) * tl.cdiv(channels, BN)
    for block in range(tl.program_id(0), total, tl.num_programs(0)):
        row, cols = _columns(block, channels, BN)
        pixel, slot, ok = take_block(
            list_ptr, count, row * BM, hw_by, limit_ptr, limit_stride, ctl_ptr,
            filter0_ptr, filter1_ptr, FILTERS, BM,
        )
        mask = ok[:, None] & (cols < channels)[None, :]
        place = place_of(pixel, slot, hw, out_w, out_w_by, x_ring_ptr, MOVING)
        start = _at(x_ptr, slot, x_slot, place * x_px)
        x = tl.load(start[:, None] + cols[None, :], mask=mask, other=0).to(tl.float32)
        other = tl.zeros((BM, BN), tl.float32) + number
        new = combine(other, x, FN, 1.0) if NUMBER_FIRST else combine(x, other, FN, 1.0)
        new = _activate(new, cols, channels, slope_ptr, POST, A, B, C)
        publish(
            new, ok, pixel, slot, cols, out_ptr, out_slot, out_px, hw, channels,
            out_w, out_w_by, out_ring_ptr, lines_ptr, lines_slot,
            limit_ptr, limit_stride, ctl_ptr, stamp_ptr, touch_ptr,
            BM, BN, NORM_MAX, STAMP, TOUCH, MOVING,
        )


@triton.jit(do_not_specialize=PLAIN)
def binary(
    list_ptr, count_ptr, filter0_ptr, filter1_ptr,
    out_ptr, out_slot, out_px, hw, hw_by, channels, out_w, out_w_by, out_ring_ptr,
    lines_ptr, lines_slot,
    limit_ptr, limit_stride, ctl_ptr, stamp_ptr, touch_ptr,
    a_ptr, a_slot, a_row, a_col, a_ch, a_ring_ptr,
    b_ptr, b_slot, b_row, b_col, b_ch, b_ring_ptr,
    FN: tl.constexpr, ALPHA: tl.constexpr,
    slope_ptr, POST: tl.constexpr, A: tl.constexpr, B: tl.constexpr, C: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, FILTERS: tl.constexpr, NORM_MAX: tl.constexpr,
    STAMP: tl.constexpr, TOUCH: tl.constexpr, MOVING: tl.constexpr, PDL: tl.constexpr,
):
    """Combine two operands; the stride of an axis along which one is broadcast is 0."""
    begin(PDL)
    count = tl.load(count_ptr)
    total = tl.cdiv(count, BM) * tl.cdiv(channels, BN)
    for block in range(tl.program_id(0), total, tl.num_programs(0)):
        row, cols = _columns(block, channels, BN)
        pixel, slot, ok = take_block(
            list_ptr, count, row * BM, hw_by, limit_ptr, limit_stride, ctl_ptr,
            filter0_ptr, filter1_ptr, FILTERS, BM,
        )
        mask = ok[:, None] & (cols < channels)[None, :]
        y = divide(pixel - slot * hw, out_w_by)
        x = pixel - slot * hw - y * out_w
        a_y, a_x = on_ring(y, x, slot, hw // out_w, out_w, a_ring_ptr, MOVING)
        b_y, b_x = on_ring(y, x, slot, hw // out_w, out_w, b_ring_ptr, MOVING)
        start_a = _at(a_ptr, slot, a_slot, a_y * a_row + a_x * a_col)
        start_b = _at(b_ptr, slot, b_slot, b_y * b_row + b_x * b_col)
        a = tl.load(start_a[:, None] + (cols * a_ch)[None, :], mask=mask, other=0).to(tl.float32)
        b = tl.load(start_b[:, None] + (cols * b_ch)[None, :], mask=mask, other=0).to(tl.float32)
        new = combine(a, b, FN, ALPHA)
        new = _activate(new, cols, channels, slope_ptr, POST, A, B, C)
        publish(
            new, ok, pixel, slot, cols, out_ptr, out_slot, out_px, hw, channels,
            out_w, out_w_by, out_ring_ptr, lines_ptr, lines_slot,
            limit_ptr, limit_stride, ctl_ptr, stamp_ptr, touch_ptr,
            BM, BN, NORM_MAX, STAMP, TOUCH, MOVING,
        )


@triton.jit(do_not_specialize=PLAIN)
def softmax(
    list_ptr, count_ptr, filter0_ptr, filter1_ptr,
    out_ptr, out_slot, out_px, hw, hw_by, channels, out_w, out_w_by, out_ring_ptr,
    lines_ptr, lines_slot,
    limit_ptr, limit_stride, ctl_ptr, stamp_ptr, touch_ptr,
    x_ptr, x_slot, x_px, x_ring_ptr,
    LOG: tl.constexpr,
    slope_ptr, POST: tl.constexpr, A: tl.constexpr, B: tl.constexpr, C: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, FILTERS: tl.constexpr, NORM_MAX: tl.constexpr,
    STAMP: tl.constexpr, TOUCH: tl.constexpr, MOVING: tl.constexpr, PDL: tl.constexpr,
):
    """Compute the softmax (or its logarithm) of each pixel; BN covers all channels."""
    begin(PDL)
    count = tl.load(count_ptr)
    cols = tl.arange(0, BN)
    inside = (cols < channels)[None, :]
    for block in range(tl.program_id(0), tl.cdiv(count, BM), tl.num_programs(0)):
        pixel, slot, ok = take_block(
            list_ptr, count, block * BM, hw_by, limit_ptr, limit_stride, ctl_ptr,
            filter0_ptr, filter1_ptr, FILTERS, BM,
        )
        place = place_of(pixel, slot, hw, out_w, out_w_by, x_ring_ptr, MOVING)
        start = _at(x_ptr, slot, x_slot, place * x_px)
        x = tl.load(start[:, None] + cols[None, :], mask=ok[:, None] & inside, other=0)
        x = tl.where(inside, x.to(tl.float32), float("-inf"))
        # a NaN is not the maximum, but makes the sum NaN
        x = x - tl.max(x, 1)[:, None]
        e = tl.exp(x)
        weight = tl.sum(e, 1)[:, None]
        new = x - tl.log(weight) if LOG else e / weight
        new = _activate(new, cols, channels, slope_ptr, POST, A, B, C)
        publish(
            new, ok, pixel, slot, cols, out_ptr, out_slot, out_px, hw, channels,
            out_w, out_w_by, out_ring_ptr, lines_ptr, lines_slot,
            limit_ptr, limit_stride, ctl_ptr, stamp_ptr, touch_ptr,
            BM, BN, NORM_MAX, STAMP, TOUCH, MOVING,
        )


@triton.jit
def _lerp(a, b, weight):
    """Go from a to b by a weight, as torch.lerp does."""
    return tl.where(weight < 0.5, a + weight * (b - a), b - (b - a) * (1.0 - weight))


@triton.jit(do_not_specialize=[*PLAIN, "out_h"])
def bilinear(
    list_ptr, count_ptr, filter0_ptr, filter1_ptr,
    out_ptr, out_slot, out_px, hw, hw_by, channels, out_w, out_w_by, out_ring_ptr,
    lines_ptr, lines_slot,
    limit_ptr, limit_stride, ctl_ptr, stamp_ptr, touch_ptr,
    x_ptr, x_slot, x_px, x_h, x_w, x_ring_ptr, rows_ptr, cols_ptr, row_parts_ptr, col_parts_ptr,
    out_h,
    slope_ptr, POST: tl.constexpr, A: tl.constexpr, B: tl.constexpr, C: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, FILTERS: tl.constexpr, NORM_MAX: tl.constexpr,
    STAMP: tl.constexpr, TOUCH: tl.constexpr, MOVING: tl.constexpr, PDL: tl.constexpr,
):
    """Blend four pixels.

    rows_ptr:      [2, out_h] int32, the lower and the upper row of each output row
    row_parts_ptr: [out_h] float32, the upper one's weight; cols_ptr, col_parts_ptr alike
    """
    begin(PDL)
    count = tl.load(count_ptr)
    total = tl.cdiv(count, BM) * tl.cdiv(channels, BN)
    for block in range(tl.program_id(0), total, tl.num_programs(0)):
        row, cols = _columns(block, channels, BN)
        pixel, slot, ok = take_block(
            list_ptr, count, row * BM, hw_by, limit_ptr, limit_stride, ctl_ptr,
            filter0_ptr, filter1_ptr, FILTERS, BM,
        )
        mask = ok[:, None] & (cols < channels)[None, :]
        y = divide(pixel - slot * hw, out_w_by)
        x = pixel - slot * hw - y * out_w
        top, left = on_ring(
            tl.load(rows_ptr + y), tl.load(cols_ptr + x), slot, x_h, x_w, x_ring_ptr, MOVING
        )
        low, right = on_ring(
            tl.load(rows_ptr + out_h + y), tl.load(cols_ptr + out_w + x), slot, x_h, x_w,
            x_ring_ptr, MOVING,
        )
        top *= x_w
        low *= x_w
        down = tl.load(row_parts_ptr + y)[:, None]
        across = tl.load(col_parts_ptr + x)[:, None]
        start = _at(x_ptr, slot, x_slot, 0)[:, None] + cols[None, :]
        a = tl.load(start + ((top + left) * x_px)[:, None], mask=mask, other=0).to(tl.float32)
        b = tl.load(start + ((top + right) * x_px)[:, None], mask=mask, other=0).to(tl.float32)
        c = tl.load(start + ((low + left) * x_px)[:, None], mask=mask, other=0).to(tl.float32)
        d = tl.load(start + ((low + right) * x_px)[:, None], mask=mask, other=0).to(tl.float32)
        new = _lerp(_lerp(a, b, across), _lerp(c, d, across), down)
        new = _activate(new, cols, channels, slope_ptr, POST, A, B, C)
        publish(
            new, ok, pixel, slot, cols, out_ptr, out_slot, out_px, hw, channels,
            out_w, out_w_by, out_ring_ptr, lines_ptr, lines_slot,
            limit_ptr, limit_stride, ctl_ptr, stamp_ptr, touch_ptr,
            BM, BN, NORM_MAX, STAMP, TOUCH, MOVING,
        )


@triton.jit(do_not_specialize=PLAIN)
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
        row, cols = _columns(block, channels, BN)
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
            start = _at(x_ptr, slot, x_slot, tl.where(found, y * x_w + x, 0) * x_px)
            moved = tl.load(start[:, None] + source[None, :], mask=mask & found[:, None], other=0)
            filling = tl.full((BM, BN), fill, tl.float32).to(moved.dtype)
            new = tl.where(found[:, None], moved, filling)
        else:
            place = place_of(pixel, slot, hw, out_w, out_w_by, x_ring_ptr, MOVING)
            start = _at(x_ptr, slot, x_slot, place * x_px)
            new = tl.load(start[:, None] + source[None, :], mask=mask, other=0)
        publish(
            new, ok, pixel, slot, cols, out_ptr, out_slot, out_px, hw, channels,
            out_w, out_w_by, out_ring_ptr, lines_ptr, lines_slot,
            limit_ptr, limit_stride, ctl_ptr, stamp_ptr, touch_ptr,
            BM, BN, NORM_MAX, STAMP, TOUCH, MOVING,
        )


@triton.jit(do_not_specialize=[*PLAIN, "factor"])
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
        row, cols = _columns(block, channels, BN)
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
        start = _at(x_ptr, slot, x_slot, 0)
        new = tl.load(start[:, None] + inner, mask=mask, other=0)
        publish(
            new, ok, pixel, slot, cols, out_ptr, out_slot, out_px, hw, channels,
            out_w, out_w_by, out_ring_ptr, lines_ptr, lines_slot,
            limit_ptr, limit_stride, ctl_ptr, stamp_ptr, touch_ptr,
            BM, BN, NORM_MAX, STAMP, TOUCH, MOVING,
        )


@triton.jit(do_not_specialize=[*PLAIN, "x_hw"])
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
        row, cols = _columns(block, channels, BN)
        pixel, slot, ok = take_block(
            list_ptr, count, row * BM, hw_by, limit_ptr, limit_stride, ctl_ptr,
            filter0_ptr, filter1_ptr, FILTERS, BM,
        )
        mask = ok[:, None] & (cols < channels)[None, :]
        number = (cols * hw)[None, :] + (pixel - slot * hw)[:, None]
        channel = number // x_hw
        start = _at(x_ptr, slot, x_slot, 0)
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


WINDOWS = [*PLAIN, "out_h", "kernel_w", "kernel_w_by", "taps", "dilation_h", "dilation_w"]


@triton.jit
def _window(table_ptr, n_out, o):
    """Read first input, number of inputs, and what counts as their number."""
    first = tl.load(table_ptr + o)
    size = tl.load(table_ptr + n_out + o)
    return first, size, tl.load(table_ptr + 2 * n_out + o).to(tl.float32)


@triton.jit(do_not_specialize=WINDOWS)
def pool(
    list_ptr, count_ptr, filter0_ptr, filter1_ptr,
    out_ptr, out_slot, out_px, hw, hw_by, channels, out_w, out_w_by, out_ring_ptr,
    lines_ptr, lines_slot,
    limit_ptr, limit_stride, ctl_ptr, stamp_ptr, touch_ptr,
    x_ptr, x_slot, x_px, x_h, x_w, x_ring_ptr, rows_ptr, cols_ptr, out_h,
    kernel_w, taps, dilation_h, dilation_w,
    MAX: tl.constexpr,
    slope_ptr, POST: tl.constexpr, A: tl.constexpr, B: tl.constexpr, C: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, FILTERS: tl.constexpr, NORM_MAX: tl.constexpr,
    STAMP: tl.constexpr, TOUCH: tl.constexpr, MOVING: tl.constexpr, PDL: tl.constexpr,
):
    """Reduce windows of few pixels, tap by tap.

    rows_ptr: [3, out_h] int32: a window's first row, its rows, and the divisor's factor of rows;
              cols_ptr [3, out_w] alike: windows are cut off at the edges of the map
    taps:     of the largest window, which is kernel_w wide
    """
    begin(PDL)
    count = tl.load(count_ptr)
    total = tl.cdiv(count, BM) * tl.cdiv(channels, BN)
    for block in range(tl.program_id(0), total, tl.num_programs(0)):
        row, cols = _columns(block, channels, BN)
        pixel, slot, ok = take_block(
            list_ptr, count, row * BM, hw_by, limit_ptr, limit_stride, ctl_ptr,
            filter0_ptr, filter1_ptr, FILTERS, BM,
        )
        mask = ok[:, None] & (cols < channels)[None, :]
        y = divide(pixel - slot * hw, out_w_by)
        x = pixel - slot * hw - y * out_w
        top, height, divisor_h = _window(rows_ptr, out_h, y)
        left, width, divisor_w = _window(cols_ptr, out_w, x)
        first_place = top * x_w + left
        if MOVING:
            # the places of the taps say all
            first_place = top * 0
        start = _at(x_ptr, slot, x_slot, first_place * x_px)[:, None] + cols[None, :]
        if MAX:
            new = tl.full((BM, BN), float("-inf"), tl.float32)
        else:
            new = tl.zeros((BM, BN), tl.float32)
        ky = kernel_w * 0
        kx = kernel_w * 0
        for _ in range(0, taps, UNROLL):
            for _ in tl.static_range(UNROLL):
                found = mask & ((ky < height) & (kx < width))[:, None]
                if MOVING:
                    in_y, in_x = on_ring(
                        top + ky * dilation_h, left + kx * dilation_w, slot, x_h, x_w, x_ring_ptr,
                        MOVING,
                    )
                    step = ((in_y * x_w + in_x) * x_px)[:, None]
                else:
                    step = (ky * dilation_h * x_w + kx * dilation_w) * x_px
                if MAX:
                    v = tl.load(start + step, mask=found, other=float("-inf")).to(tl.float32)
                    new = tl.where((v > new) | (v != v), v, new)
                else:
                    new += tl.load(start + step, mask=found, other=0).to(tl.float32)
                kx += 1
                end = (kx >= kernel_w).to(tl.int32)
                ky += end
                kx -= end * kernel_w
        if not MAX:
            new = new / (divisor_h * divisor_w)[:, None]
        new = _activate(new, cols, channels, slope_ptr, POST, A, B, C)
        publish(
            new, ok, pixel, slot, cols, out_ptr, out_slot, out_px, hw, channels,
            out_w, out_w_by, out_ring_ptr, lines_ptr, lines_slot,
            limit_ptr, limit_stride, ctl_ptr, stamp_ptr, touch_ptr,
            BM, BN, NORM_MAX, STAMP, TOUCH, MOVING,
        )


@triton.jit(do_not_specialize=WINDOWS)
def reduce(
    list_ptr, count_ptr, filter0_ptr, filter1_ptr,
    out_ptr, out_slot, out_px, hw, hw_by, channels, out_w, out_w_by, out_ring_ptr,
    lines_ptr, lines_slot,
    limit_ptr, limit_stride, ctl_ptr, stamp_ptr, touch_ptr,
    x_ptr, x_slot, x_px, x_h, x_w, x_ring_ptr, rows_ptr, cols_ptr, out_h,
    kernel_w, kernel_w_by, taps, dilation_h, dilation_w,
    MAX: tl.constexpr,
    slope_ptr, POST: tl.constexpr, A: tl.constexpr, B: tl.constexpr, C: tl.constexpr,
    BT: tl.constexpr, BN: tl.constexpr, FILTERS: tl.constexpr, NORM_MAX: tl.constexpr,
    STAMP: tl.constexpr, TOUCH: tl.constexpr, MOVING: tl.constexpr, PDL: tl.constexpr,
):
    """Reduce windows of many pixels (see `pool`), one window and BT taps of it at a time.

    Tap t is added to partial sum t % BT; the partial sums are added in an order fixed by BT.
    """
    begin(PDL)
    count = tl.load(count_ptr)
    for block in range(tl.program_id(0), count * tl.cdiv(channels, BN), tl.num_programs(0)):
        row, cols = _columns(block, channels, BN)
        pixel, slot, ok = take_block(
            list_ptr, count, row, hw_by, limit_ptr, limit_stride, ctl_ptr,
            filter0_ptr, filter1_ptr, FILTERS, 1,
        )
        mask = ok[:, None] & (cols < channels)[None, :]
        y = divide(pixel - slot * hw, out_w_by)
        x = pixel - slot * hw - y * out_w
        top, height, divisor_h = _window(rows_ptr, out_h, y)
        left, width, divisor_w = _window(cols_ptr, out_w, x)
        first_place = top * x_w + left
        if MOVING:
            # the places of the taps say all
            first_place = top * 0
        start = _at(x_ptr, slot, x_slot, first_place * x_px)[:, None] + cols[None, :]
        if MAX:
            parts = tl.full((BT, BN), float("-inf"), tl.float32)
        else:
            parts = tl.zeros((BT, BN), tl.float32)
        for first in range(0, taps, BT):
            tap = first + tl.arange(0, BT)
            ky = divide(tap, kernel_w_by)
            kx = tap - ky * kernel_w
            found = ((ky < height) & (kx < width))[:, None] & mask
            in_y = ky * dilation_h
            in_x = kx * dilation_w
            if MOVING:
                # one window, one slot
                in_y, in_x = on_ring(in_y + top, in_x + left, slot, x_h, x_w, x_ring_ptr, MOVING)
            step = ((in_y * x_w + in_x) * x_px)[:, None]
            if MAX:
                v = tl.load(start + step, mask=found, other=float("-inf")).to(tl.float32)
                parts = tl.where((v > parts) | (v != v), v, parts)
            else:
                parts += tl.load(start + step, mask=found, other=0).to(tl.float32)
        if MAX:
            bad = tl.max((parts != parts).to(tl.int32), 0) > 0
            most = tl.max(tl.where(parts != parts, float("-inf"), parts), 0)
            new = tl.where(bad, float("nan"), most)[None, :]
        else:
            new = tl.sum(parts, 0)[None, :] / (divisor_h * divisor_w)[:, None]
        new = _activate(new, cols, channels, slope_ptr, POST, A, B, C)
        publish(
            new, ok, pixel, slot, cols, out_ptr, out_slot, out_px, hw, channels,
            out_w, out_w_by, out_ring_ptr, lines_ptr, lines_slot,
            limit_ptr, limit_stride, ctl_ptr, stamp_ptr, touch_ptr,
            1, BN, NORM_MAX, STAMP, TOUCH, MOVING,
        )
