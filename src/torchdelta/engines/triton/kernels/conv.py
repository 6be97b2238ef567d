"""Convolutions of the active pixels.

A convolution is a product of gathered rows and packed weights: a program takes a block of active
pixels and a block of output channels and walks over taps and chunks of input channels, reading
each pixel's input straight from the state. Which pixels a program takes together never changes how
a pixel's sum is formed: chunks of BK channels in order, in SPLITS parts that are added in order.
"""

from __future__ import annotations

import triton
import triton.language as tl

from torchdelta.engines.triton.kernels.shared import (
    apply_function,
    begin,
    combine,
    publish,
    take_block,
)

# arguments whose value should not make another variant of a kernel
_PLAIN = [
    "x_h", "x_w", "out_w", "hw", "threshold_stride", "steps", "chunks",
    "taps_w", "num_y", "num_x", "den_y", "den_x", "bias_y", "bias_x", "first_y", "first_x",
    "step_y", "step_x", "small_rows", "out_group", "in_group", "last_channel", "channels",
    "threshold_ptr", "forced_ptr", "touch_ptr", "stamp_ptr", "count_ptr",
    "filter0_ptr", "filter1_ptr", "list_ptr", "slope_ptr",
]  # fmt: skip


@triton.jit
def _first_input(pixel, slot, hw, out_w, num_y, num_x, den_y, den_x, bias_y, bias_x):
    """Place of a pixel's first tap in the input, before the taps' own offsets."""
    place = pixel - slot * hw
    y = place // out_w
    x = place - y * out_w
    y = (y * num_y + bias_y) // den_y
    x = (x * num_x + bias_x) // den_x
    return y, x


@triton.jit
def _multiply(
    acc, begin_step, end_step, x_ptr, row, y, x, ok, weights, first_channel,
    x_px, x_h, x_w, chunks, taps_w, first_y, first_x, step_y, step_x,
    CHANNELS: tl.constexpr, BK: tl.constexpr, WN: tl.constexpr, FLAT: tl.constexpr,
    PRECISION: tl.constexpr, CAST: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Add the products of the steps begin_step .. end_step - 1 to acc [BM, BN].

    A step is one tap and BK channels; FLAT: BK pairs of tap and channel, for few channels.
    weights: [BN] offsets of the output channels in the packed weights; WN channels lie together.
    """
    k = tl.arange(0, BK)
    for step in tl.range(begin_step, end_step, num_stages=STAGES):
        if FLAT:
            at = step * BK + k
            tap = at // CHANNELS
            channel = at - tap * CHANNELS
            tap_y = tap // taps_w
            input_y = y[:, None] + (first_y + tap_y * step_y)[None, :]
            input_x = x[:, None] + (first_x + (tap - tap_y * taps_w) * step_x)[None, :]
            # chunks: taps in all; those of the last step's rest read nothing
            inside = (input_y >= 0) & (input_y < x_h) & (input_x >= 0) & (input_x < x_w)
            inside &= ok[:, None] & (tap < chunks)[None, :]
            place = (input_y * x_w + input_x) * x_px + (first_channel + channel)[None, :]
            a = tl.load(x_ptr + row[:, None] + place, mask=inside, other=0.0)
        else:
            tap = step // chunks
            channel = (step - tap * chunks) * BK + k
            tap_y = tap // taps_w
            input_y = y + (first_y + tap_y * step_y)
            input_x = x + (first_x + (tap - tap_y * taps_w) * step_x)
            inside = (input_y >= 0) & (input_y < x_h) & (input_x >= 0) & (input_x < x_w) & ok
            place = row + (input_y * x_w + input_x) * x_px
            pointers = x_ptr + place[:, None] + (first_channel + channel)[None, :]
            if CHANNELS % BK == 0:
                a = tl.load(pointers, mask=inside[:, None], other=0.0)
            else:
                mask = inside[:, None] & (channel < CHANNELS)[None, :]
                a = tl.load(pointers, mask=mask, other=0.0)
        b = tl.load(weights[None, :] + (step * BK + k)[:, None] * WN)
        if CAST:
            a, b = a.to(tl.float32), b.to(tl.float32)
        acc = tl.dot(a, b, acc, input_precision=PRECISION)
    return acc


@triton.jit
def _finish(
    acc, ok, pixel, slot, cols, bias_ptr, residual_ptr, residual_slot, residual_px,
    out_ptr, out_slot, out_px, hw, channels, threshold_ptr, threshold_stride, ctl_ptr, forced_ptr,
    stamp_ptr, touch_ptr,
    BM: tl.constexpr, BN: tl.constexpr, NORM_MAX: tl.constexpr, STAMP: tl.constexpr,
    TOUCH: tl.constexpr, BIAS: tl.constexpr, PRE: tl.constexpr, PRE_A: tl.constexpr,
    PRE_B: tl.constexpr, PRE_C: tl.constexpr, JOIN: tl.constexpr, ALPHA: tl.constexpr,
    JOIN_FIRST: tl.constexpr, POST: tl.constexpr, POST_A: tl.constexpr, POST_B: tl.constexpr,
    POST_C: tl.constexpr, EVEN: tl.constexpr, slope_ptr,
):  # fmt: skip
    """Bias, activation, residual, activation; then gate and publish."""
    inside = cols < channels
    if BIAS:
        acc += tl.load(bias_ptr + cols, mask=inside, other=0.0).to(tl.float32)[None, :]
    if PRE == "prelu":
        slope = tl.load(slope_ptr + cols, mask=inside, other=0.0).to(tl.float32)
        acc = tl.where(acc >= 0, acc, acc * slope[None, :])
    elif PRE != "":
        acc = apply_function(acc, PRE, PRE_A, PRE_B, PRE_C)
    if JOIN != "":
        row = slot.to(tl.int64) * residual_slot + (pixel - slot * hw).to(tl.int64) * residual_px
        other = tl.load(
            residual_ptr + row[:, None] + cols[None, :],
            mask=ok[:, None] & inside[None, :],
            other=0.0,
        ).to(tl.float32)
        if JOIN_FIRST:
            acc = combine(other, acc, JOIN, ALPHA)
        else:
            acc = combine(acc, other, JOIN, ALPHA)
    if POST == "prelu":
        slope = tl.load(slope_ptr + cols, mask=inside, other=0.0).to(tl.float32)
        acc = tl.where(acc >= 0, acc, acc * slope[None, :])
    elif POST != "":
        acc = apply_function(acc, POST, POST_A, POST_B, POST_C)
    publish(
        acc, ok, pixel, slot, cols, out_ptr, out_slot, out_px, hw, channels, threshold_ptr,
        threshold_stride, ctl_ptr, forced_ptr, stamp_ptr, touch_ptr, BM, BN, NORM_MAX, STAMP,
        TOUCH, EVEN,
    )  # fmt: skip


@triton.jit(do_not_specialize=_PLAIN)
def convolution(
    x_ptr, x_slot, x_px, x_h, x_w, weight_ptr, bias_ptr, residual_ptr, residual_slot, residual_px,
    slope_ptr, out_ptr, out_slot, out_px, out_w, hw, channels, list_ptr, count_ptr, filter0_ptr,
    filter1_ptr, threshold_ptr, threshold_stride, ctl_ptr, forced_ptr, stamp_ptr, touch_ptr,
    partial_ptr, arrived_ptr, steps, chunks, taps_w, num_y, num_x, den_y, den_x, bias_y, bias_x,
    first_y, first_x, step_y, step_x, small_rows, out_group, in_group,
    last_channel,
    CHANNELS: tl.constexpr, BK: tl.constexpr, WN: tl.constexpr, SPLITS: tl.constexpr,
    SPLIT_STEPS: tl.constexpr, FLAT: tl.constexpr, GROUPED: tl.constexpr, SMALL_M: tl.constexpr, SMALL_N: tl.constexpr,
    LARGE_M: tl.constexpr, LARGE_N: tl.constexpr, SMALL_STAGES: tl.constexpr,
    LARGE_STAGES: tl.constexpr, PRECISION: tl.constexpr, CAST: tl.constexpr,
    FILTERS: tl.constexpr, NORM_MAX: tl.constexpr, STAMP: tl.constexpr, TOUCH: tl.constexpr,
    BIAS: tl.constexpr, PRE: tl.constexpr, PRE_A: tl.constexpr, PRE_B: tl.constexpr,
    PRE_C: tl.constexpr, JOIN: tl.constexpr, ALPHA: tl.constexpr, JOIN_FIRST: tl.constexpr,
    POST: tl.constexpr, POST_A: tl.constexpr, POST_B: tl.constexpr, POST_C: tl.constexpr,
    EVEN: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Convolve the active pixels of all slots, gate, publish.

    Input place of tap (i, j): ((y * num_y + bias_y) // den_y + first_y + i * step_y, same for x).
    Up to `small_rows` pixels a tile is SMALL_M x SMALL_N and the SPLITS parts of its sum go to
    programs of their own, the last one of which adds them up; beyond, tiles are LARGE_M x LARGE_N.
    weight_ptr: [channels / WN, steps * BK, WN]. A block of output channels reads the CHANNELS input
    channels from its first group on (out_group, in_group: channels of a group), but not beyond
    last_channel + CHANNELS.
    """
    begin(PDL)
    count = tl.load(count_ptr)
    pid = tl.program_id(0)
    programs = tl.num_programs(0)
    depth = steps * BK
    if count <= small_rows:
        blocks_small = tl.cdiv(channels, SMALL_N)
        tiles = tl.cdiv(count, SMALL_M) * blocks_small
        for work in range(pid, tiles * SPLITS, programs):
            part = work // tiles
            tile = work - part * tiles
            block_m = tile // blocks_small
            block_n = tile - block_m * blocks_small
            cols = block_n * SMALL_N + tl.arange(0, SMALL_N)
            pixel, slot, ok = take_block(
                list_ptr, count, block_m * SMALL_M, hw, ctl_ptr, forced_ptr, filter0_ptr,
                filter1_ptr, FILTERS, SMALL_M,
            )  # fmt: skip
            y, x = _first_input(pixel, slot, hw, out_w, num_y, num_x, den_y, den_x, bias_y, bias_x)
            first_channel = 0
            if GROUPED:
                first = (block_n * SMALL_N // out_group) * in_group
                first_channel = tl.minimum(first, last_channel)
            weights = weight_ptr + (cols // WN).to(tl.int64) * depth * WN + cols % WN
            acc = _multiply(
                tl.zeros((SMALL_M, SMALL_N), tl.float32), part * SPLIT_STEPS,
                tl.minimum((part + 1) * SPLIT_STEPS, steps), x_ptr, slot.to(tl.int64) * x_slot, y,
                x, ok, weights, first_channel, x_px, x_h, x_w, chunks, taps_w, first_y, first_x,
                step_y, step_x, CHANNELS, BK, WN, FLAT, PRECISION, CAST, SMALL_STAGES,
            )  # fmt: skip
            last = True
            if SPLITS > 1:
                own = tl.arange(0, SMALL_M)[:, None] * SMALL_N + tl.arange(0, SMALL_N)[None, :]
                base = partial_ptr + tile.to(tl.int64) * (SPLITS * SMALL_M * SMALL_N) + own
                tl.store(base + part * (SMALL_M * SMALL_N), acc)
                # all threads' stores come before the count
                tl.debug_barrier()
                last = tl.atomic_add(arrived_ptr + tile, 1) == SPLITS - 1
                if last:
                    tl.store(arrived_ptr + tile, 0)
                    acc = tl.load(base, cache_modifier=".cg")
                    for other in tl.static_range(1, SPLITS):
                        acc += tl.load(base + other * (SMALL_M * SMALL_N), cache_modifier=".cg")
            if last:
                _finish(
                    acc, ok, pixel, slot, cols, bias_ptr, residual_ptr, residual_slot,
                    residual_px, out_ptr, out_slot, out_px, hw, channels, threshold_ptr,
                    threshold_stride, ctl_ptr, forced_ptr, stamp_ptr, touch_ptr, SMALL_M, SMALL_N,
                    NORM_MAX, STAMP, TOUCH, BIAS, PRE, PRE_A, PRE_B, PRE_C, JOIN, ALPHA,
                    JOIN_FIRST, POST, POST_A, POST_B, POST_C, EVEN, slope_ptr,
                )  # fmt: skip
    else:
        blocks_large = tl.cdiv(channels, LARGE_N)
        tiles = tl.cdiv(count, LARGE_M) * blocks_large
        for tile in range(pid, tiles, programs):
            block_m = tile // blocks_large
            block_n = tile - block_m * blocks_large
            cols = block_n * LARGE_N + tl.arange(0, LARGE_N)
            pixel, slot, ok = take_block(
                list_ptr, count, block_m * LARGE_M, hw, ctl_ptr, forced_ptr, filter0_ptr,
                filter1_ptr, FILTERS, LARGE_M,
            )  # fmt: skip
            y, x = _first_input(pixel, slot, hw, out_w, num_y, num_x, den_y, den_x, bias_y, bias_x)
            first_channel = 0
            if GROUPED:
                first = (block_n * LARGE_N // out_group) * in_group
                first_channel = tl.minimum(first, last_channel)
            weights = weight_ptr + (cols // WN).to(tl.int64) * depth * WN + cols % WN
            row = slot.to(tl.int64) * x_slot
            acc = _multiply(
                tl.zeros((LARGE_M, LARGE_N), tl.float32), 0, tl.minimum(SPLIT_STEPS, steps),
                x_ptr, row, y, x, ok, weights, first_channel, x_px, x_h, x_w, chunks, taps_w,
                first_y, first_x, step_y, step_x, CHANNELS, BK, WN, FLAT, PRECISION, CAST,
                LARGE_STAGES,
            )  # fmt: skip
            for part in range(1, SPLITS):
                acc += _multiply(
                    tl.zeros((LARGE_M, LARGE_N), tl.float32), part * SPLIT_STEPS,
                    tl.minimum((part + 1) * SPLIT_STEPS, steps), x_ptr, row, y, x, ok, weights,
                    first_channel, x_px, x_h, x_w, chunks, taps_w, first_y, first_x, step_y,
                    step_x, CHANNELS, BK, WN, FLAT, PRECISION, CAST, LARGE_STAGES,
                )  # fmt: skip
            _finish(
                acc, ok, pixel, slot, cols, bias_ptr, residual_ptr, residual_slot, residual_px,
                out_ptr, out_slot, out_px, hw, channels, threshold_ptr, threshold_stride, ctl_ptr,
                forced_ptr, stamp_ptr, touch_ptr, LARGE_M, LARGE_N, NORM_MAX, STAMP, TOUCH, BIAS,
                PRE, PRE_A, PRE_B, PRE_C, JOIN, ALPHA, JOIN_FIRST, POST, POST_A, POST_B, POST_C,
                EVEN, slope_ptr,
            )  # fmt: skip


@triton.jit(do_not_specialize=_PLAIN)
def depthwise(
    x_ptr, x_slot, x_px, x_h, x_w, weight_ptr, bias_ptr, residual_ptr, residual_slot, residual_px,
    slope_ptr, out_ptr, out_slot, out_px, out_w, hw, channels, list_ptr, count_ptr, filter0_ptr,
    filter1_ptr, threshold_ptr, threshold_stride, ctl_ptr, forced_ptr, stamp_ptr, touch_ptr,
    num_y, num_x, den_y, den_x, bias_y, bias_x, first_y, first_x, step_y, step_x,
    TAPS_H: tl.constexpr, TAPS_W: tl.constexpr, MULTIPLIER: tl.constexpr, BM: tl.constexpr,
    BN: tl.constexpr, FILTERS: tl.constexpr, NORM_MAX: tl.constexpr, STAMP: tl.constexpr,
    TOUCH: tl.constexpr, BIAS: tl.constexpr, PRE: tl.constexpr, PRE_A: tl.constexpr,
    PRE_B: tl.constexpr, PRE_C: tl.constexpr, JOIN: tl.constexpr, ALPHA: tl.constexpr,
    JOIN_FIRST: tl.constexpr, POST: tl.constexpr, POST_A: tl.constexpr, POST_B: tl.constexpr,
    POST_C: tl.constexpr, EVEN: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Convolve each channel alone: output channel c reads input channel c // MULTIPLIER.

    weight_ptr: [taps, channels]; the rest as in `convolution`.
    """
    begin(PDL)
    count = tl.load(count_ptr)
    blocks_n = tl.cdiv(channels, BN)
    for block in range(tl.program_id(0), tl.cdiv(count, BM) * blocks_n, tl.num_programs(0)):
        block_m = block // blocks_n
        cols = (block - block_m * blocks_n) * BN + tl.arange(0, BN)
        inside_n = cols < channels
        pixel, slot, ok = take_block(
            list_ptr, count, block_m * BM, hw, ctl_ptr, forced_ptr, filter0_ptr, filter1_ptr,
            FILTERS, BM,
        )  # fmt: skip
        y, x = _first_input(pixel, slot, hw, out_w, num_y, num_x, den_y, den_x, bias_y, bias_x)
        source = x_ptr + (slot.to(tl.int64) * x_slot)[:, None] + (cols // MULTIPLIER)[None, :]
        acc = tl.zeros((BM, BN), tl.float32)
        for tap_y in tl.static_range(TAPS_H):
            for tap_x in tl.static_range(TAPS_W):
                input_y = y + (first_y + tap_y * step_y)
                input_x = x + (first_x + tap_x * step_x)
                inside = (input_y >= 0) & (input_y < x_h) & (input_x >= 0) & (input_x < x_w) & ok
                value = tl.load(
                    source + ((input_y * x_w + input_x) * x_px)[:, None],
                    mask=inside[:, None] & inside_n[None, :], other=0.0,
                )  # fmt: skip
                weight = tl.load(
                    weight_ptr + (tap_y * TAPS_W + tap_x) * channels + cols, mask=inside_n,
                    other=0.0,
                )  # fmt: skip
                acc += value.to(tl.float32) * weight.to(tl.float32)[None, :]
        _finish(
            acc, ok, pixel, slot, cols, bias_ptr, residual_ptr, residual_slot, residual_px,
            out_ptr, out_slot, out_px, hw, channels, threshold_ptr, threshold_stride, ctl_ptr,
            forced_ptr, stamp_ptr, touch_ptr, BM, BN, NORM_MAX, STAMP, TOUCH, BIAS, PRE, PRE_A,
            PRE_B, PRE_C, JOIN, ALPHA, JOIN_FIRST, POST, POST_A, POST_B, POST_C, EVEN, slope_ptr,
        )  # fmt: skip
