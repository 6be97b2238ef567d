"""Kernels of what hangs on a pixel alone: elementwise functions, two operands, softmax."""

from __future__ import annotations

import triton
import triton.language as tl

from torchdelta.engines.triton.kernels.rows import ROW_PLAIN, activate, address, columns
from torchdelta.engines.triton.kernels.shared import (
    begin,
    combine,
    divide,
    on_ring,
    place_of,
    publish,
    take_block,
)

# fmt: off


@triton.jit(do_not_specialize=ROW_PLAIN)
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
        row, cols = columns(block, channels, BN)
        pixel, slot, ok = take_block(
            list_ptr, count, row * BM, hw_by, limit_ptr, limit_stride, ctl_ptr,
            filter0_ptr, filter1_ptr, FILTERS, BM,
        )
        mask = ok[:, None] & (cols < channels)[None, :]
        place = place_of(pixel, slot, hw, out_w, out_w_by, x_ring_ptr, MOVING)
        start = address(x_ptr, slot, x_slot, place * x_px)
        x = tl.load(start[:, None] + cols[None, :], mask=mask, other=0).to(tl.float32)
        new = activate(x, cols, channels, slope_ptr, PRE, PRE_A, PRE_B, PRE_C)
        new = activate(new, cols, channels, slope_ptr, POST, A, B, C)
        publish(
            new, ok, pixel, slot, cols, out_ptr, out_slot, out_px, hw, channels,
            out_w, out_w_by, out_ring_ptr, lines_ptr, lines_slot,
            limit_ptr, limit_stride, ctl_ptr, stamp_ptr, touch_ptr,
            BM, BN, NORM_MAX, STAMP, TOUCH, MOVING,
        )


@triton.jit(do_not_specialize=ROW_PLAIN)
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
        row, cols = columns(block, channels, BN)
        pixel, slot, ok = take_block(
            list_ptr, count, row * BM, hw_by, limit_ptr, limit_stride, ctl_ptr,
            filter0_ptr, filter1_ptr, FILTERS, BM,
        )
        inside = cols < channels
        place = place_of(pixel, slot, hw, out_w, out_w_by, x_ring_ptr, MOVING)
        start = address(x_ptr, slot, x_slot, place * x_px)
        x = tl.load(start[:, None] + cols[None, :], mask=ok[:, None] & inside[None, :], other=0)
        scale = tl.load(scale_ptr + cols, mask=inside, other=0).to(tl.float32)
        shift = tl.load(shift_ptr + cols, mask=inside, other=0).to(tl.float32)
        new = x.to(tl.float32) * scale[None, :] + shift[None, :]
        new = activate(new, cols, channels, slope_ptr, POST, A, B, C)
        publish(
            new, ok, pixel, slot, cols, out_ptr, out_slot, out_px, hw, channels,
            out_w, out_w_by, out_ring_ptr, lines_ptr, lines_slot,
            limit_ptr, limit_stride, ctl_ptr, stamp_ptr, touch_ptr,
            BM, BN, NORM_MAX, STAMP, TOUCH, MOVING,
        )


@triton.jit(do_not_specialize=ROW_PLAIN)
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
        row, cols = columns(block, channels, BN)
        pixel, slot, ok = take_block(
            list_ptr, count, row * BM, hw_by, limit_ptr, limit_stride, ctl_ptr,
            filter0_ptr, filter1_ptr, FILTERS, BM,
        )
        mask = ok[:, None] & (cols < channels)[None, :]
        place = place_of(pixel, slot, hw, out_w, out_w_by, x_ring_ptr, MOVING)
        start = address(x_ptr, slot, x_slot, place * x_px)
        x = tl.load(start[:, None] + cols[None, :], mask=mask, other=0).to(tl.float32)
        other = tl.zeros((BM, BN), tl.float32) + number
        new = combine(other, x, FN, 1.0) if NUMBER_FIRST else combine(x, other, FN, 1.0)
        new = activate(new, cols, channels, slope_ptr, POST, A, B, C)
        publish(
            new, ok, pixel, slot, cols, out_ptr, out_slot, out_px, hw, channels,
            out_w, out_w_by, out_ring_ptr, lines_ptr, lines_slot,
            limit_ptr, limit_stride, ctl_ptr, stamp_ptr, touch_ptr,
            BM, BN, NORM_MAX, STAMP, TOUCH, MOVING,
        )


@triton.jit(do_not_specialize=ROW_PLAIN)
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
        row, cols = columns(block, channels, BN)
        pixel, slot, ok = take_block(
            list_ptr, count, row * BM, hw_by, limit_ptr, limit_stride, ctl_ptr,
            filter0_ptr, filter1_ptr, FILTERS, BM,
        )
        mask = ok[:, None] & (cols < channels)[None, :]
        y = divide(pixel - slot * hw, out_w_by)
        x = pixel - slot * hw - y * out_w
        a_y, a_x = on_ring(y, x, slot, hw // out_w, out_w, a_ring_ptr, MOVING)
        b_y, b_x = on_ring(y, x, slot, hw // out_w, out_w, b_ring_ptr, MOVING)
        start_a = address(a_ptr, slot, a_slot, a_y * a_row + a_x * a_col)
        start_b = address(b_ptr, slot, b_slot, b_y * b_row + b_x * b_col)
        a = tl.load(start_a[:, None] + (cols * a_ch)[None, :], mask=mask, other=0).to(tl.float32)
        b = tl.load(start_b[:, None] + (cols * b_ch)[None, :], mask=mask, other=0).to(tl.float32)
        new = combine(a, b, FN, ALPHA)
        new = activate(new, cols, channels, slope_ptr, POST, A, B, C)
        publish(
            new, ok, pixel, slot, cols, out_ptr, out_slot, out_px, hw, channels,
            out_w, out_w_by, out_ring_ptr, lines_ptr, lines_slot,
            limit_ptr, limit_stride, ctl_ptr, stamp_ptr, touch_ptr,
            BM, BN, NORM_MAX, STAMP, TOUCH, MOVING,
        )


@triton.jit(do_not_specialize=ROW_PLAIN)
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
        start = address(x_ptr, slot, x_slot, place * x_px)
        x = tl.load(start[:, None] + cols[None, :], mask=ok[:, None] & inside, other=0)
        x = tl.where(inside, x.to(tl.float32), float("-inf"))
        # a NaN is not the maximum, but makes the sum NaN
        x = x - tl.max(x, 1)[:, None]
        e = tl.exp(x)
        weight = tl.sum(e, 1)[:, None]
        new = x - tl.log(weight) if LOG else e / weight
        new = activate(new, cols, channels, slope_ptr, POST, A, B, C)
        publish(
            new, ok, pixel, slot, cols, out_ptr, out_slot, out_px, hw, channels,
            out_w, out_w_by, out_ring_ptr, lines_ptr, lines_slot,
            limit_ptr, limit_stride, ctl_ptr, stamp_ptr, touch_ptr,
            BM, BN, NORM_MAX, STAMP, TOUCH, MOVING,
        )
