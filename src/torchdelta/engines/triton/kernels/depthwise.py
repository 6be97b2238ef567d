"""Convolutions of the active pixels, of each channel alone.

There is no product of matrices here: a program takes a block of active pixels and a block of
channels, and adds up tap after tap. How it begins, and bias, activations and residual are those of
conv.py.
"""

from __future__ import annotations

import triton
import triton.language as tl

from torchdelta.engines.triton.kernels.conv import CONV_PLAIN, finish, first_input, load_residual
from torchdelta.engines.triton.kernels.shared import (
    begin,
    load_stored,
    on_ring,
    row_facts,
    take_block,
)


@triton.jit(do_not_specialize=CONV_PLAIN)
def depthwise(
    x_ptr, x_slot, x_px, x_h, x_w, x_ring_ptr, weight_ptr, bias_ptr, residual_ptr, residual_slot,
    residual_px, residual_ring_ptr, slope_ptr, out_ptr, out_slot, out_px, out_w, out_w_by,
    out_ring_ptr,
    lines_ptr, lines_slot, hw, hw_by, channels, list_ptr, count_ptr, filter0_ptr, filter1_ptr,
    limit_ptr, limit_stride, ctl_ptr, stamp_ptr, touch_ptr,
    num_y, num_x, bias_y, bias_x, first_y, first_x, step_y, step_x,
    TAPS_H: tl.constexpr, TAPS_W: tl.constexpr, DEN_Y: tl.constexpr, DEN_X: tl.constexpr,
    MULTIPLIER: tl.constexpr, BM: tl.constexpr,
    BN: tl.constexpr, FILTERS: tl.constexpr, NORM_MAX: tl.constexpr, STAMP: tl.constexpr,
    TOUCH: tl.constexpr, BIAS: tl.constexpr, PRE: tl.constexpr, PRE_A: tl.constexpr,
    PRE_B: tl.constexpr, PRE_C: tl.constexpr, JOIN: tl.constexpr, ALPHA: tl.constexpr,
    JOIN_FIRST: tl.constexpr, POST: tl.constexpr, POST_A: tl.constexpr, POST_B: tl.constexpr,
    POST_C: tl.constexpr, EVEN: tl.constexpr, X_UNIT: tl.constexpr, OUT_UNIT: tl.constexpr,
    RESIDUAL_UNIT: tl.constexpr,
    MOVING: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Convolve each channel alone: output channel c reads input channel c // MULTIPLIER.

    weight_ptr: [taps, channels]; the rest as in `conv.convolution`.
    """
    # strides of pixels come divided by what all addresses are multiples of
    x_px = x_px * X_UNIT
    out_px = out_px * OUT_UNIT
    residual_px = residual_px * RESIDUAL_UNIT
    begin(PDL)
    count = tl.load(count_ptr)
    blocks_n = tl.cdiv(channels, BN)
    total = tl.cdiv(count, BM) * blocks_n
    for block in tl.range(tl.program_id(0), total, tl.num_programs(0), num_stages=1):
        block_m = block // blocks_n
        cols = (block - block_m * blocks_n) * BN + tl.arange(0, BN)
        inside_n = cols < channels
        pixel, slot, ok = take_block(
            list_ptr, count, block_m * BM, hw_by, limit_ptr, limit_stride, ctl_ptr, filter0_ptr,
            filter1_ptr,
            FILTERS, BM,
        )  # fmt: skip
        y, x = first_input(
            pixel - slot * hw, out_w, out_w_by, num_y, num_x, bias_y, bias_x, DEN_Y, DEN_X
        )
        source = x_ptr + (slot.to(tl.int64) * x_slot)[:, None] + (cols // MULTIPLIER)[None, :]
        acc = tl.zeros((BM, BN), tl.float32)
        for tap_y in tl.static_range(TAPS_H):
            for tap_x in tl.static_range(TAPS_W):
                input_y = y + (first_y + tap_y * step_y)
                input_x = x + (first_x + tap_x * step_x)
                inside = (input_y >= 0) & (input_y < x_h) & (input_x >= 0) & (input_x < x_w) & ok
                input_y, input_x = on_ring(input_y, input_x, slot, x_h, x_w, x_ring_ptr, MOVING)
                value = tl.load(
                    source + ((input_y * x_w + input_x) * x_px)[:, None],
                    mask=inside[:, None] & inside_n[None, :], other=0.0,
                )  # fmt: skip
                weight = tl.load(
                    weight_ptr + (tap_y * TAPS_W + tap_x) * channels + cols, mask=inside_n,
                    other=0.0,
                )  # fmt: skip
                acc += value.to(tl.float32) * weight.to(tl.float32)[None, :]
        rows_ptr, limit = row_facts(
            ok, pixel, slot, out_ptr, out_slot, out_px, hw, out_w, out_w_by, out_ring_ptr,
            lines_ptr, lines_slot, limit_ptr, limit_stride, MOVING,
        )  # fmt: skip
        old = load_stored(rows_ptr, ok, cols, channels, EVEN)
        other = old
        if JOIN != "":
            other = load_residual(
                ok, pixel, slot, cols, hw, channels, out_w, out_w_by, residual_ptr, residual_slot,
                residual_px, residual_ring_ptr, EVEN, MOVING,
            )  # fmt: skip
        finish(
            acc, old, other, rows_ptr, limit, ok, pixel, slot, cols, channels, bias_ptr,
            slope_ptr, ctl_ptr, stamp_ptr, touch_ptr, BM, BN, NORM_MAX, STAMP, TOUCH, BIAS, PRE,
            PRE_A, PRE_B, PRE_C, JOIN, ALPHA, JOIN_FIRST, POST, POST_A, POST_B, POST_C, EVEN,
        )  # fmt: skip
