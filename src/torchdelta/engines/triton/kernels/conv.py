"""Convolutions of the active pixels; those of each channel alone are in depthwise.py.

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
    divide,
    is_active,
    load_stored,
    place_of,
    publish_over,
    row_facts,
)

# arguments whose value should not make another variant of a kernel
CONV_PLAIN = [
    "x_px", "out_px", "residual_px", "x_h", "x_w", "out_w", "out_w_by", "hw", "hw_by",
    "limit_stride", "steps", "num_y", "num_x", "bias_y", "bias_x", "first_y", "first_x",
    "step_y", "step_x", "capacity", "small_rows", "middle_rows", "out_group", "in_group",
    "last_channel",
    "channels",
    "limit_ptr", "touch_ptr", "stamp_ptr", "count_ptr",
    "filter0_ptr", "filter1_ptr", "list_ptr", "slope_ptr", "lines_ptr", "lines_slot",
    "x_ring_ptr", "out_ring_ptr", "residual_ring_ptr",
]  # fmt: skip


@triton.jit
def first_input(
    place, out_w, out_w_by, num_y, num_x, bias_y, bias_x, DEN_Y: tl.constexpr, DEN_X: tl.constexpr
):
    """Place of a pixel's first tap in the input, before the taps' own offsets."""
    y = divide(place, out_w_by)
    x = place - y * out_w
    y = (y * num_y + bias_y) // DEN_Y
    x = (x * num_x + bias_x) // DEN_X
    return y, x


@triton.jit
def _inside(first, step, ok, size, TAPS: tl.constexpr):
    """Say which taps along an axis lie inside the input: a bit each, int32 [BM] (int64 beyond 31).

    first: [BM] place of the first tap; step: from tap to tap.
    """
    if TAPS > 31:
        bits = first.to(tl.int64) * 0
    else:
        bits = first * 0
    for i in tl.static_range(TAPS):
        at = (first + i * step).to(tl.uint32)
        # what lies before 0 is beyond any size without its sign
        bits |= ((at < size.to(tl.uint32)) & ok).to(bits.dtype) << i
    return bits


@triton.jit
def _wrapped(y, x, h, w):
    """Find the place in a ring, y * w + x, of what lies at most one turn beyond its end."""
    y = tl.where(y >= h, y - h, y)
    x = tl.where(x >= w, x - w, x)
    return y * w + x


@triton.jit
def _multiply(
    begin_step, end_step, x_ptr, row, y, x, ok, weight_ptr, cols, first_channel, depth,
    x_px, x_h, x_w, first_y, first_x, step_y, step_x, slot, x_ring_ptr,
    BM: tl.constexpr, BN: tl.constexpr, CHANNELS: tl.constexpr, BK: tl.constexpr,
    WN: tl.constexpr, TAPS_H: tl.constexpr, TAPS_W: tl.constexpr, PART_STEPS: tl.constexpr,
    GATHER: tl.constexpr, PRECISION: tl.constexpr, CAST: tl.constexpr, MOVING: tl.constexpr,
    SAME: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Sum the products of the steps begin_step .. end_step - 1: [BM, BN].

    What a step takes, GATHER says: "channels": BK channels of one tap; "row": a row of taps, whose
    TAPS_W * CHANNELS numbers lie side by side in the state; "each": BK pairs of tap and channel.
    PART_STEPS: so many steps make a part, and the parts are added; 0: all make one.
    SAME: one tap, at the output's own place, which `x` holds.
    cols: [BN] output channels; depth: weights of one of them.
    """
    k = tl.arange(0, BK)
    # all that does not change from step to step comes first: a program is alone on its scheduler,
    # and each instruction of the loop is waited for
    if SAME:
        base = x_ptr + row + x.to(tl.int64) * x_px
    else:
        y += first_y
        x += first_x
        base = x_ptr + row + (y * x_w + x).to(tl.int64) * x_px
    if GATHER == "row":
        in_x = x[:, None] + (k // CHANNELS)[None, :]
        wanted = (in_x >= 0) & (in_x < x_w) & (k < TAPS_W * CHANNELS)[None, :]
        row_bits = _inside(y, step_y, ok, x_h, TAPS_H)
    elif GATHER == "channels":
        if not SAME:
            row_bits = _inside(y, step_y, ok, x_h, TAPS_H)
            col_bits = _inside(x, step_x, ok, x_w, TAPS_W)
        base += first_channel
    pointers = base[:, None] + k[None, :]
    if MOVING:
        # where the tap at (0, 0) lies, but for the ring's end
        ring_y = y + tl.load(x_ring_ptr + slot * 2)
        ring_x = x + tl.load(x_ring_ptr + slot * 2 + 1)
        slot_ptr = x_ptr + row + (first_channel if GATHER != "row" else 0)
    weights = weight_ptr + ((cols // WN).to(tl.int64) * depth * WN + cols % WN)[None, :]
    weights = weights + (k * WN)[:, None]
    acc = tl.zeros((BM, BN), tl.float32)
    if PART_STEPS > 0:
        total = tl.zeros((BM, BN), tl.float32)
    CHUNKS: tl.constexpr = (CHANNELS + BK - 1) // BK
    for step in tl.range(begin_step, end_step, num_stages=STAGES):
        if GATHER == "channels":
            if SAME:
                chunk = step
                inside = ok
            elif TAPS_H * TAPS_W == 1:
                chunk = step
                inside = row_bits & col_bits != 0
            else:
                tap = step // CHUNKS
                chunk = step - tap * CHUNKS
                tap_y = tap // TAPS_W
                tap_x = tap - tap_y * TAPS_W
                inside = (row_bits >> tap_y) & (col_bits >> tap_x) & 1 != 0
            at = chunk * BK
            if TAPS_H * TAPS_W > 1:
                at += (tap_y * step_y * x_w + tap_x * step_x) * x_px
            mask = inside[:, None]
            if CHANNELS % BK != 0:
                mask = mask & (k < CHANNELS - chunk * BK)[None, :]
            if MOVING:
                in_y = ring_y
                in_x = ring_x
                if TAPS_H * TAPS_W > 1:
                    in_y += tap_y * step_y
                    in_x += tap_x * step_x
                place = _wrapped(in_y, in_x, x_h, x_w) * x_px + chunk * BK
                a = tl.load((slot_ptr + place)[:, None] + k[None, :], mask=mask, other=0.0)
            else:
                a = tl.load(pointers + at, mask=mask, other=0.0)
        elif GATHER == "row":
            mask = wanted & ((row_bits >> step) & 1 != 0)[:, None]
            if MOVING:
                place = _wrapped(
                    (ring_y + step * step_y)[:, None], ring_x[:, None] + (k // CHANNELS)[None, :],
                    x_h, x_w,
                )  # fmt: skip
                place = place * x_px + (k % CHANNELS)[None, :]
                a = tl.load(slot_ptr[:, None] + place, mask=mask, other=0.0)
            else:
                a = tl.load(pointers + step * step_y * x_w * x_px, mask=mask, other=0.0)
        else:
            at = step * BK + k
            tap = at // CHANNELS
            tap_y = tap // TAPS_W * step_y
            tap_x = tap % TAPS_W * step_x
            in_y = y[:, None] + tap_y[None, :]
            in_x = x[:, None] + tap_x[None, :]
            mask = (in_y >= 0) & (in_y < x_h) & (in_x >= 0) & (in_x < x_w)
            mask &= ok[:, None] & (tap < TAPS_H * TAPS_W)[None, :]
            if MOVING:
                place = _wrapped(
                    ring_y[:, None] + tap_y[None, :], ring_x[:, None] + tap_x[None, :], x_h, x_w
                )
                place = place * x_px + (at % CHANNELS)[None, :]
                a = tl.load(slot_ptr[:, None] + place, mask=mask, other=0.0)
            else:
                place = (tap_y * x_w + tap_x) * x_px + at % CHANNELS + first_channel
                a = tl.load(base[:, None] + place[None, :], mask=mask, other=0.0)
        b = tl.load(weights + step * (BK * WN))
        if CAST:
            a, b = a.to(tl.float32), b.to(tl.float32)
        acc = tl.dot(a, b, acc, input_precision=PRECISION)
        if PART_STEPS > 0:  # noqa: SIM102 - decided by the compiler, the other while it runs
            if (step + 1 == end_step) | ((step + 1) % PART_STEPS == 0):
                total += acc
                acc = tl.zeros((BM, BN), tl.float32)
    if PART_STEPS > 0:
        acc = total
    return acc


@triton.jit
def load_residual(
    ok, pixel, slot, cols, hw, channels, out_w, out_w_by, residual_ptr, residual_slot,
    residual_px, residual_ring_ptr, EVEN: tl.constexpr, MOVING: tl.constexpr,
):  # fmt: skip
    """Read the residual's values of a block."""
    place = place_of(pixel, slot, hw, out_w, out_w_by, residual_ring_ptr, MOVING)
    row = slot.to(tl.int64) * residual_slot + place.to(tl.int64) * residual_px
    return load_stored(residual_ptr + row, ok, cols, channels, EVEN)


@triton.jit
def finish(
    acc, old, other, rows_ptr, limit, ok, pixel, slot, cols, channels, bias_ptr,
    slope_ptr, ctl_ptr, stamp_ptr, touch_ptr,
    BM: tl.constexpr, BN: tl.constexpr, NORM_MAX: tl.constexpr, STAMP: tl.constexpr,
    TOUCH: tl.constexpr, BIAS: tl.constexpr, PRE: tl.constexpr, PRE_A: tl.constexpr,
    PRE_B: tl.constexpr, PRE_C: tl.constexpr, JOIN: tl.constexpr, ALPHA: tl.constexpr,
    JOIN_FIRST: tl.constexpr, POST: tl.constexpr, POST_A: tl.constexpr, POST_B: tl.constexpr,
    POST_C: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """Bias, activation, residual (`other`), activation; then gate and publish."""
    inside = cols < channels
    if BIAS:
        acc += tl.load(bias_ptr + cols, mask=inside, other=0.0).to(tl.float32)[None, :]
    if PRE == "prelu":
        slope = tl.load(slope_ptr + cols, mask=inside, other=0.0).to(tl.float32)
        acc = tl.where(acc >= 0, acc, acc * slope[None, :])
    elif PRE != "":
        acc = apply_function(acc, PRE, PRE_A, PRE_B, PRE_C)
    if JOIN != "":
        if JOIN_FIRST:
            acc = combine(other.to(tl.float32), acc, JOIN, ALPHA)
        else:
            acc = combine(acc, other.to(tl.float32), JOIN, ALPHA)
    if POST == "prelu":
        slope = tl.load(slope_ptr + cols, mask=inside, other=0.0).to(tl.float32)
        acc = tl.where(acc >= 0, acc, acc * slope[None, :])
    elif POST != "":
        acc = apply_function(acc, POST, POST_A, POST_B, POST_C)
    publish_over(
        acc, old, rows_ptr, limit, ok, pixel, slot, cols, channels, ctl_ptr, stamp_ptr,
        touch_ptr, BM, BN, NORM_MAX, STAMP, TOUCH, EVEN,
    )  # fmt: skip


@triton.jit
def _prefetch(
    weight_ptr, steps, blocks_n, SPLITS: tl.constexpr, SPLIT_STEPS: tl.constexpr,
    BK: tl.constexpr, WN: tl.constexpr,
):  # fmt: skip
    """Bring the weights of this program's first tile into the second-level cache.

    The first SPLITS * blocks_n programs take all weights among themselves.
    """
    pid = tl.program_id(0)
    if pid < blocks_n * SPLITS:
        first = (pid // blocks_n) * SPLIT_STEPS
        numbers = tl.minimum(SPLIT_STEPS, steps - first) * (BK * WN)
        base = weight_ptr + ((pid % blocks_n).to(tl.int64) * steps + first) * (BK * WN)
        # a line of the cache per thread
        line: tl.constexpr = 1024 // weight_ptr.dtype.element_ty.primitive_bitwidth
        for begin_at in range(0, numbers, 128 * line):
            at = tl.minimum(begin_at + tl.arange(0, 128) * line, numbers - 1)
            tl.inline_asm_elementwise(
                "prefetch.global.L2 [$1]; mov.u32 $0, 0;", "=r,l", [base + at], dtype=tl.int32,
                is_pure=False, pack=1,
            )  # fmt: skip


@triton.jit
def _walk(
    count, x_ptr, x_slot, x_px, x_h, x_w, x_ring_ptr, weight_ptr, bias_ptr, residual_ptr,
    residual_slot, residual_px, residual_ring_ptr, slope_ptr, out_ptr, out_slot, out_px, out_w,
    out_w_by,
    out_ring_ptr, lines_ptr, lines_slot, hw, hw_by, channels, list_ptr, filter0_ptr, filter1_ptr,
    limit_ptr, limit_stride, ctl_ptr, stamp_ptr, touch_ptr,
    partial_ptr, arrived_ptr, steps, num_y, num_x, bias_y, bias_x,
    first_y, first_x, step_y, step_x, out_group, in_group, last_channel, early_pixel,
    BM: tl.constexpr, BN: tl.constexpr, STAGES: tl.constexpr, PARTS: tl.constexpr,
    EARLY: tl.constexpr, HAS_PIXEL: tl.constexpr,
    CHANNELS: tl.constexpr, BK: tl.constexpr, WN: tl.constexpr, SPLITS: tl.constexpr,
    SPLIT_STEPS: tl.constexpr, GATHER: tl.constexpr, TAPS_H: tl.constexpr, TAPS_W: tl.constexpr,
    GROUPED: tl.constexpr, SAME: tl.constexpr, DEN_Y: tl.constexpr, DEN_X: tl.constexpr,
    PRECISION: tl.constexpr, CAST: tl.constexpr, FILTERS: tl.constexpr, NORM_MAX: tl.constexpr,
    STAMP: tl.constexpr, TOUCH: tl.constexpr, BIAS: tl.constexpr, PRE: tl.constexpr,
    PRE_A: tl.constexpr, PRE_B: tl.constexpr, PRE_C: tl.constexpr, JOIN: tl.constexpr,
    ALPHA: tl.constexpr, JOIN_FIRST: tl.constexpr, POST: tl.constexpr, POST_A: tl.constexpr,
    POST_B: tl.constexpr, POST_C: tl.constexpr, EVEN: tl.constexpr, MOVING: tl.constexpr,
):  # fmt: skip
    """Work through this program's share of the tiles, BM pixels by BN output channels each.

    PARTS: SPLITS where the parts of a sum go to programs of their own, the last one of which adds
    them up; 1 where a program forms them one after the other. Both add the same parts in the same
    order. EARLY: ask for what is stored before the sum is formed: short lists wait for memory.
    early_pixel: [BM] the list's entries of this program's first tile, where HAS_PIXEL.
    """
    blocks_n = tl.cdiv(channels, BN)
    total = tl.cdiv(count, BM) * (blocks_n * PARTS)
    depth = steps * BK
    for work in tl.range(tl.program_id(0), total, tl.num_programs(0), num_stages=1):
        block_n = work % blocks_n
        tile = work // blocks_n
        part = tile % PARTS
        tile = tile // PARTS
        cols = block_n * BN + tl.arange(0, BN)
        at = tile * BM + tl.arange(0, BM)
        listed = at < count
        if HAS_PIXEL:
            pixel = early_pixel
            if work != tl.program_id(0):
                pixel = tl.load(list_ptr + at, mask=listed, other=0)
        else:
            pixel = tl.load(list_ptr + at, mask=listed, other=0)
        slot = divide(pixel, hw_by)
        rows_ptr, limit = row_facts(
            listed, pixel, slot, out_ptr, out_slot, out_px, hw, out_w, out_w_by, out_ring_ptr,
            lines_ptr, lines_slot, limit_ptr, limit_stride, MOVING,
        )  # fmt: skip
        ok = is_active(listed, pixel, limit, ctl_ptr, filter0_ptr, filter1_ptr, FILTERS)
        if EARLY and PARTS == 1:
            old = load_stored(rows_ptr, listed, cols, channels, EVEN)
            if JOIN != "":
                other = load_residual(
                    listed, pixel, slot, cols, hw, channels, out_w, out_w_by, residual_ptr,
                    residual_slot,
                    residual_px, residual_ring_ptr, EVEN, MOVING,
                )  # fmt: skip
        place = pixel - slot * hw
        y = place * 0
        x = place
        if not SAME:
            y, x = first_input(place, out_w, out_w_by, num_y, num_x, bias_y, bias_x, DEN_Y, DEN_X)
        first_channel = 0
        if GROUPED:
            first_channel = tl.minimum((block_n * BN // out_group) * in_group, last_channel)
        row = slot.to(tl.int64) * x_slot
        if PARTS > 1:
            first_step = part * SPLIT_STEPS
            end_step = tl.minimum(first_step + SPLIT_STEPS, steps)
        else:
            first_step = 0
            end_step = steps
        # the product takes all that is listed, not to wait for the filters' stamps
        acc = _multiply(
            first_step, end_step, x_ptr, row, y, x, listed, weight_ptr, cols, first_channel, depth,
            x_px, x_h, x_w, first_y, first_x, step_y, step_x, slot, x_ring_ptr, BM, BN, CHANNELS,
            BK, WN, TAPS_H, TAPS_W, SPLIT_STEPS if SPLITS > PARTS else 0, GATHER, PRECISION, CAST,
            MOVING, SAME, STAGES,
        )  # fmt: skip
        last = True
        if PARTS > 1:
            own = tl.arange(0, BM)[:, None] * BN + tl.arange(0, BN)[None, :]
            number = tile * blocks_n + block_n
            base = partial_ptr + number.to(tl.int64) * (PARTS * BM * BN) + own
            tl.store(base + part * (BM * BN), acc)
            # all threads' stores come before the count
            tl.debug_barrier()
            last = tl.atomic_add(arrived_ptr + number, 1) == PARTS - 1
            if last:
                tl.store(arrived_ptr + number, 0)
                acc = tl.load(base, cache_modifier=".cg")
                for other_part in tl.static_range(1, PARTS):
                    acc += tl.load(base + other_part * (BM * BN), cache_modifier=".cg")
        if last:
            if not (EARLY and PARTS == 1):
                old = load_stored(rows_ptr, ok, cols, channels, EVEN)
                if JOIN != "":
                    other = load_residual(
                        ok, pixel, slot, cols, hw, channels, out_w, out_w_by, residual_ptr,
                        residual_slot,
                        residual_px, residual_ring_ptr, EVEN, MOVING,
                    )  # fmt: skip
            if JOIN == "":
                other = old
            finish(
                acc, old, other, rows_ptr, limit, ok, pixel, slot, cols, channels,
                bias_ptr, slope_ptr, ctl_ptr, stamp_ptr, touch_ptr, BM, BN, NORM_MAX, STAMP,
                TOUCH, BIAS, PRE, PRE_A, PRE_B, PRE_C, JOIN, ALPHA, JOIN_FIRST, POST, POST_A,
                POST_B, POST_C, EVEN,
            )  # fmt: skip


@triton.jit(do_not_specialize=CONV_PLAIN)
def convolution(
    x_ptr, x_slot, x_px, x_h, x_w, x_ring_ptr, weight_ptr, bias_ptr, residual_ptr, residual_slot,
    residual_px, residual_ring_ptr, slope_ptr, out_ptr, out_slot, out_px, out_w, out_w_by,
    out_ring_ptr,
    lines_ptr, lines_slot, hw, hw_by, channels, list_ptr, count_ptr, filter0_ptr, filter1_ptr,
    limit_ptr, limit_stride, ctl_ptr, stamp_ptr, touch_ptr,
    partial_ptr, arrived_ptr, steps, num_y, num_x, bias_y, bias_x,
    first_y, first_x, step_y, step_x, capacity, small_rows, middle_rows, out_group, in_group,
    last_channel,
    CHANNELS: tl.constexpr, BK: tl.constexpr, WN: tl.constexpr, SPLITS: tl.constexpr,
    SPLIT_STEPS: tl.constexpr, GATHER: tl.constexpr, TAPS_H: tl.constexpr, TAPS_W: tl.constexpr,
    GROUPED: tl.constexpr, SAME: tl.constexpr, DEN_Y: tl.constexpr, DEN_X: tl.constexpr,
    SMALL_M: tl.constexpr, MIDDLE_M: tl.constexpr, LARGE_M: tl.constexpr, BN: tl.constexpr,
    SMALL_STAGES: tl.constexpr, MIDDLE_STAGES: tl.constexpr, LARGE_STAGES: tl.constexpr,
    MIDDLE_PARTS: tl.constexpr, LARGE_EARLY: tl.constexpr,
    PRECISION: tl.constexpr, CAST: tl.constexpr,
    FILTERS: tl.constexpr, NORM_MAX: tl.constexpr, STAMP: tl.constexpr, TOUCH: tl.constexpr,
    BIAS: tl.constexpr, PRE: tl.constexpr, PRE_A: tl.constexpr, PRE_B: tl.constexpr,
    PRE_C: tl.constexpr, JOIN: tl.constexpr, ALPHA: tl.constexpr, JOIN_FIRST: tl.constexpr,
    POST: tl.constexpr, POST_A: tl.constexpr, POST_B: tl.constexpr, POST_C: tl.constexpr,
    EVEN: tl.constexpr, X_UNIT: tl.constexpr, OUT_UNIT: tl.constexpr, RESIDUAL_UNIT: tl.constexpr,
    MOVING: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Convolve the active pixels of all slots, gate, publish.

    Input place of tap (i, j): ((y * num_y + bias_y) // den_y + first_y + i * step_y, same for x).
    A tile has SMALL_M pixels in lists up to `small_rows`, MIDDLE_M up to `middle_rows`, LARGE_M
    beyond, where the parts of a sum stay in one program.
    weight_ptr: [channels / WN, steps * BK, WN]. A block of output channels reads the CHANNELS input
    channels from its first group on (out_group, in_group: channels of a group), but not beyond
    last_channel + CHANNELS.
    """
    if PDL:
        # weights do not depend on the kernels before
        _prefetch(weight_ptr, steps, tl.cdiv(channels, BN), SPLITS, SPLIT_STEPS, BK, WN)
    # strides of pixels come divided by what all addresses are multiples of
    x_px = x_px * X_UNIT
    out_px = out_px * OUT_UNIT
    residual_px = residual_px * RESIDUAL_UNIT
    begin(PDL)
    # the list's length and its first entries are asked for at once: short lists wait for memory
    tile = tl.program_id(0) // tl.cdiv(channels, BN) // SPLITS
    at = tile * SMALL_M + tl.arange(0, SMALL_M)
    early_pixel = tl.load(list_ptr + at, mask=at < capacity, other=0)
    count = tl.load(count_ptr)
    if count <= small_rows:
        _walk(
            count, x_ptr, x_slot, x_px, x_h, x_w, x_ring_ptr, weight_ptr, bias_ptr, residual_ptr,
            residual_slot, residual_px, residual_ring_ptr, slope_ptr, out_ptr, out_slot, out_px,
            out_w, out_w_by, out_ring_ptr, lines_ptr, lines_slot, hw, hw_by, channels, list_ptr,
            filter0_ptr, filter1_ptr, limit_ptr, limit_stride, ctl_ptr, stamp_ptr,
            touch_ptr, partial_ptr, arrived_ptr, steps, num_y, num_x,
            bias_y, bias_x, first_y, first_x, step_y, step_x, out_group, in_group,
            last_channel, early_pixel, SMALL_M, BN, SMALL_STAGES, SPLITS, True, True, CHANNELS, BK,
            WN, SPLITS, SPLIT_STEPS,
            GATHER, TAPS_H, TAPS_W, GROUPED, SAME, DEN_Y, DEN_X, PRECISION, CAST, FILTERS, NORM_MAX,
            STAMP, TOUCH,
            BIAS, PRE, PRE_A, PRE_B,
            PRE_C, JOIN, ALPHA, JOIN_FIRST, POST, POST_A, POST_B, POST_C, EVEN, MOVING,
        )  # fmt: skip
    elif count <= middle_rows:
        _walk(
            count, x_ptr, x_slot, x_px, x_h, x_w, x_ring_ptr, weight_ptr, bias_ptr, residual_ptr,
            residual_slot, residual_px, residual_ring_ptr, slope_ptr, out_ptr, out_slot, out_px,
            out_w, out_w_by, out_ring_ptr, lines_ptr, lines_slot, hw, hw_by, channels, list_ptr,
            filter0_ptr, filter1_ptr, limit_ptr, limit_stride, ctl_ptr, stamp_ptr,
            touch_ptr, partial_ptr, arrived_ptr, steps, num_y, num_x,
            bias_y, bias_x, first_y, first_x, step_y, step_x, out_group, in_group,
            last_channel, early_pixel, MIDDLE_M, BN, MIDDLE_STAGES, SPLITS if MIDDLE_PARTS else 1,
            True, False, CHANNELS, BK, WN, SPLITS,
            SPLIT_STEPS, GATHER, TAPS_H, TAPS_W, GROUPED, SAME, DEN_Y, DEN_X, PRECISION, CAST,
            FILTERS, NORM_MAX,
            STAMP, TOUCH, BIAS, PRE, PRE_A, PRE_B,
            PRE_C, JOIN, ALPHA, JOIN_FIRST, POST, POST_A, POST_B, POST_C, EVEN, MOVING,
        )  # fmt: skip
    else:
        _walk(
            count, x_ptr, x_slot, x_px, x_h, x_w, x_ring_ptr, weight_ptr, bias_ptr, residual_ptr,
            residual_slot, residual_px, residual_ring_ptr, slope_ptr, out_ptr, out_slot, out_px,
            out_w, out_w_by, out_ring_ptr, lines_ptr, lines_slot, hw, hw_by, channels, list_ptr,
            filter0_ptr, filter1_ptr, limit_ptr, limit_stride, ctl_ptr, stamp_ptr,
            touch_ptr, partial_ptr, arrived_ptr, steps, num_y, num_x,
            bias_y, bias_x, first_y, first_x, step_y, step_x, out_group, in_group,
            last_channel, early_pixel, LARGE_M, BN, LARGE_STAGES, 1, LARGE_EARLY, False, CHANNELS,
            BK,
            WN, SPLITS, SPLIT_STEPS,
            GATHER, TAPS_H, TAPS_W, GROUPED, SAME, DEN_Y, DEN_X, PRECISION, CAST, FILTERS, NORM_MAX,
            STAMP, TOUCH,
            BIAS, PRE, PRE_A, PRE_B,
            PRE_C, JOIN, ALPHA, JOIN_FIRST, POST, POST_A, POST_B, POST_C, EVEN, MOVING,
        )  # fmt: skip
