"""Kernels of windows that are reduced to their maximum or average."""

from __future__ import annotations

import triton
import triton.language as tl

from torchdelta.engines.triton.kernels.rows import ROW_PLAIN, activate, address, columns
from torchdelta.engines.triton.kernels.shared import begin, divide, on_ring, publish, take_block

# fmt: off
# taps that a pool loads at once
UNROLL = tl.constexpr(4)
WINDOWS = [*ROW_PLAIN, "out_h", "kernel_w", "kernel_w_by", "taps", "dilation_h", "dilation_w"]


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
        row, cols = columns(block, channels, BN)
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
        start = address(x_ptr, slot, x_slot, first_place * x_px)[:, None] + cols[None, :]
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
        new = activate(new, cols, channels, slope_ptr, POST, A, B, C)
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
        row, cols = columns(block, channels, BN)
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
        start = address(x_ptr, slot, x_slot, first_place * x_px)[:, None] + cols[None, :]
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
        new = activate(new, cols, channels, slope_ptr, POST, A, B, C)
        publish(
            new, ok, pixel, slot, cols, out_ptr, out_slot, out_px, hw, channels,
            out_w, out_w_by, out_ring_ptr, lines_ptr, lines_slot,
            limit_ptr, limit_stride, ctl_ptr, stamp_ptr, touch_ptr,
            1, BN, NORM_MAX, STAMP, TOUCH, MOVING,
        )
