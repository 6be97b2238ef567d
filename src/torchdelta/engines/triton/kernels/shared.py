"""What all kernels share: lists of active pixels, functions, and the gate with its publishing.

Conventions. A *pixel* is a flat index over all slots of a session: slot * H * W + y * W + x of the
step's output map. `ctl` is the control block that the host sends with every frame: `ctl[0]` is the
frame's number `now` (1..255, what stamps are set to), `ctl[MODE + slot]` says what a slot has
(NOTHING, FRAME, or WHOLE: everything is active and published without comparing). A *stamp* is a
byte per pixel of a value, `now` where it was published in this frame. A *limit* is what a value's
gate compares with in this frame, [slots, values]: its threshold, or NO_LIMIT, which is below 0,
where all that is computed is published (WHOLE slots, forced active sets); the first kernel of a
frame writes them.

A number with a meaning has its name here, once: what the host says too as a plain number, and as a
kernel compares with it (IS_...).

Where windows move (MOVING), a value of slot n begins at (y, x) = ring[n] of its buffer and goes on
at the other side behind its edge; pixels, stamps and lists stay in the window's coordinates.
`lines`, [slots, lines_slot] bytes, hold for an output what a move makes of its rows and then of its
columns (plan/shift.py): the larger of a pixel's two says what it is.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from torchdelta.plan.ir import GROUP_CHANNELS
from torchdelta.plan.shift import KEPT, UNSEEN

# where the modes of the slots begin in the control block, and what they are
MODE = tl.constexpr(8)
NOTHING, FRAME, WHOLE = 0, 1, 2
IS_NOTHING, IS_FRAME = tl.constexpr(NOTHING), tl.constexpr(FRAME)
IS_WHOLE = tl.constexpr(WHOLE)
# what the control block has of a slot's frame: address, strides of rows, columns and channels in
# elements, and whether its values are float32 (else uint8)
FRAME_NUMBERS = 5
FRAME_ROW = tl.constexpr(FRAME_NUMBERS)
# how a source's changes reach the output: at their own place, through a window, all at once, or
# by a table of the inputs that each output row and column reads
IDENTITY, WINDOW, TOUCH, TABLE = 0, 1, 2, 3
IS_IDENTITY, IS_WINDOW = tl.constexpr(IDENTITY), tl.constexpr(WINDOW)
IS_TOUCH = tl.constexpr(TOUCH)
# what a move makes of a line of pixels
IS_KEPT, IS_UNSEEN = tl.constexpr(KEPT), tl.constexpr(UNSEEN)
# below all limits, and below all differences: there is none
NO_LIMIT = tl.constexpr(-1.0)
NO_DIFFERENCE = tl.constexpr(-1.0)
# channels in a gate's group
GROUP = tl.constexpr(GROUP_CHANNELS)


@triton.jit
def begin(PDL: tl.constexpr):
    """Wait until the kernels before this one have finished, and let the next one start.

    PDL: programmatic dependent launch: this kernel was started while its predecessor still ran.
    """
    if PDL:
        gdc_wait()
        gdc_launch_dependents()


@triton.jit
def divide(n, by):
    """Divide numbers 0 .. 2**31 - 1 by what `launch.divider` made of a divisor: three instructions.

    What divisors are is known only while kernels run, and a division by such takes twenty.
    """
    factor = (by & 0xFFFFFFFF).to(tl.uint32).to(tl.uint64)
    high = ((n.to(tl.uint32) * 2).to(tl.uint64) * factor) >> 32
    return (high.to(tl.uint32) >> ((by >> 32) - 1).to(tl.uint32)).to(tl.int32)


@triton.jit
def is_active(listed, pixel, limit, ctl_ptr, filter0_ptr, filter1_ptr, FILTERS: tl.constexpr):
    """Whether listed pixels are active: with FILTERS the list holds more than the active set.

    Then a pixel is active where one of the given stamps is `now`, or its limit is below 0.
    """
    if FILTERS > 0:
        now = tl.load(ctl_ptr).to(tl.int32)
        wanted = tl.load(filter0_ptr + pixel, mask=listed, other=0).to(tl.int32) == now
        if FILTERS > 1:
            wanted |= tl.load(filter1_ptr + pixel, mask=listed, other=0).to(tl.int32) == now
        listed &= wanted | (limit < 0.0)
    return listed


@triton.jit
def take_block(
    list_ptr, count, start, hw_by, limit_ptr, limit_stride, ctl_ptr, filter0_ptr, filter1_ptr,
    FILTERS: tl.constexpr, BM: tl.constexpr,
):  # fmt: skip
    """Take BM pixels from a list: their flat index, slot, and whether they are active."""
    at = start + tl.arange(0, BM)
    listed = at < count
    pixel = tl.load(list_ptr + at, mask=listed, other=0)
    slot = divide(pixel, hw_by)
    limit = tl.load(limit_ptr + slot * limit_stride, mask=listed, other=0.0)
    ok = is_active(listed, pixel, limit, ctl_ptr, filter0_ptr, filter1_ptr, FILTERS)
    return pixel, slot, ok


@triton.jit
def on_ring(y, x, slot, h, w, ring_ptr, MOVING: tl.constexpr):
    """Find where in a value's buffer (h rows, w columns) pixels of a slot's window lie: y and x.

    ring_ptr: int32 [slots, 2], where the windows begin, y and x
    """
    if MOVING:
        y += tl.load(ring_ptr + slot * 2)
        x += tl.load(ring_ptr + slot * 2 + 1)
        y = tl.where(y >= h, y - h, y)
        x = tl.where(x >= w, x - w, x)
    return y, x


@triton.jit
def place_of(pixel, slot, hw, w, w_by, ring_ptr, MOVING: tl.constexpr):
    """Find where in a buffer of the map's size listed pixels lie: y * w + x."""
    place = pixel - slot * hw
    if MOVING:
        y = divide(place, w_by)
        y, x = on_ring(y, place - y * w, slot, hw // w, w, ring_ptr, MOVING)
        place = y * w + x
    return place


@triton.jit
def moved_level(y, x, slot, h, ok, lines_ptr, lines_slot):
    """Say what the move of a slot's window makes of pixels (plan/shift.py): int32 [BM]."""
    lines_ptr += slot * lines_slot
    row = tl.load(lines_ptr + y, mask=ok, other=0).to(tl.int32)
    column = tl.load(lines_ptr + h + x, mask=ok, other=0).to(tl.int32)
    return tl.maximum(row, column)


@triton.jit
def row_facts(
    ok, pixel, slot, out_ptr, out_slot, out_px, hw, out_w, out_w_by, out_ring_ptr, lines_ptr,
    lines_slot, limit_ptr, limit_stride, MOVING: tl.constexpr,
):  # fmt: skip
    """Give a block's places in the state, and its limits: below 0 where it is published anyway."""
    place = place_of(pixel, slot, hw, out_w, out_w_by, out_ring_ptr, MOVING)
    rows_ptr = out_ptr + slot.to(tl.int64) * out_slot + place.to(tl.int64) * out_px
    limit = tl.load(limit_ptr + slot * limit_stride, mask=ok, other=0.0)
    if MOVING:
        place = pixel - slot * hw
        y = divide(place, out_w_by)
        level = moved_level(y, place - y * out_w, slot, hw // out_w, ok, lines_ptr, lines_slot)
        limit = tl.where(level == IS_UNSEEN, NO_LIMIT, limit)
    return rows_ptr, limit


@triton.jit
def load_stored(rows_ptr, ok, cols, channels, EVEN: tl.constexpr):
    """Read what is stored at a block's pixels and channels."""
    if EVEN:
        mask = ok[:, None]
    else:
        mask = ok[:, None] & (cols[None, :] < channels)
    return tl.load(rows_ptr[:, None] + cols[None, :], mask=mask, other=0)


@triton.jit
def publish(
    new, ok, pixel, slot, cols,
    out_ptr, out_slot, out_px, hw, channels, out_w, out_w_by, out_ring_ptr, lines_ptr, lines_slot,
    limit_ptr, limit_stride, ctl_ptr, stamp_ptr, touch_ptr,
    BM: tl.constexpr, BN: tl.constexpr, NORM_MAX: tl.constexpr, STAMP: tl.constexpr,
    TOUCH: tl.constexpr, MOVING: tl.constexpr, EVEN: tl.constexpr = False,
):  # fmt: skip
    """Gate and publish a block (see `publish_over`)."""
    rows_ptr, limit = row_facts(
        ok, pixel, slot, out_ptr, out_slot, out_px, hw, out_w, out_w_by, out_ring_ptr, lines_ptr,
        lines_slot, limit_ptr, limit_stride, MOVING,
    )  # fmt: skip
    old = load_stored(rows_ptr, ok, cols, channels, EVEN)
    publish_over(
        new, old, rows_ptr, limit, ok, pixel, slot, cols, channels, ctl_ptr, stamp_ptr,
        touch_ptr, BM, BN, NORM_MAX, STAMP, TOUCH, EVEN,
    )  # fmt: skip


@triton.jit
def publish_over(
    new, old, rows_ptr, limit, ok, pixel, slot, cols, channels, ctl_ptr, stamp_ptr,
    touch_ptr,
    BM: tl.constexpr, BN: tl.constexpr, NORM_MAX: tl.constexpr, STAMP: tl.constexpr,
    TOUCH: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """Gate and publish a block (design: gates): a pixel's channel group where it moved.

    new: [BM, BN], rounded to the state's dtype here; old: what is stored there (`load_stored`);
    cols: [BN] its channels, whole groups; BN is a multiple of 64, or covers all channels; EVEN: it
    divides them. stamp_ptr: of the output; touch_ptr: a byte per slot.
    """
    new = new.to(old.dtype)
    now = tl.load(ctl_ptr).to(tl.int32)
    at = rows_ptr[:, None] + cols[None, :]
    inside = cols[None, :] < channels
    if EVEN:
        mask = ok[:, None]
    else:
        mask = ok[:, None] & inside
    difference = new.to(tl.float32) - old.to(tl.float32)
    if not EVEN:
        difference = tl.where(inside, difference, 0.0)
    if BN > GROUP:
        # one flag per group of the block
        G: tl.constexpr = BN // GROUP
        size = GROUP
        if not EVEN:
            size = tl.sum(tl.reshape(tl.where(inside, 1.0, 0.0), (1, G, GROUP)), 2)
        difference = tl.reshape(difference, (BM, G, GROUP))
        hit = _moved(difference, size, limit[:, None], 2, NORM_MAX, old.dtype.is_fp16())
    else:
        size = BN
        if not EVEN:
            size = tl.sum(tl.where(inside, 1.0, 0.0), 1)
        hit = _moved(difference, size, limit, 1, NORM_MAX, old.dtype.is_fp16())
    if not old.dtype.is_floating() or old.dtype.is_fp64():
        # float32 would hide small differences; such values are never gated by a norm
        exact = tl.where(mask & (new != old), 1, 0)
        if BN > GROUP:
            hit |= tl.max(tl.reshape(exact, (BM, BN // GROUP, GROUP)), 2) > 0
        else:
            hit |= tl.max(exact, 1) > 0
    if BN > GROUP:
        wide = tl.broadcast_to(hit[:, :, None], (BM, BN // GROUP, GROUP))
        tl.store(at, new, mask=mask & tl.reshape(wide, (BM, BN)))
        row = (tl.max(hit.to(tl.int32), 1) > 0) & ok
    else:
        tl.store(at, new, mask=mask & hit[:, None])
        row = hit & ok
    if STAMP:
        tl.store(stamp_ptr + pixel, (row.to(tl.int32) * now).to(tl.uint8), mask=row)
    if TOUCH:
        tl.store(touch_ptr + slot, (row.to(tl.int32) * now).to(tl.uint8), mask=row)


@triton.jit
def _moved(
    difference, size, limit, AXIS: tl.constexpr, NORM_MAX: tl.constexpr, COARSE: tl.constexpr
):
    """Whether a group is published: its norm is not <= limit; at 0, whether any value differs.

    Below 0 all are. Written this way round a NaN publishes. size: numbers of a group; COARSE: no
    difference is so small that its square is 0.
    """
    square = tl.sum(difference * difference, AXIS)
    largest = square
    if NORM_MAX or not COARSE:
        largest = tl.max(tl.abs(difference), AXIS)
    if NORM_MAX:
        norm = largest
    else:
        norm = tl.sqrt(square / tl.maximum(size, 1.0))
    # the sum keeps a NaN, which a maximum may lose
    return tl.where(limit == 0.0, largest > 0.0, norm > limit) | (square != square)


@triton.jit
def sigmoid(x):
    """Give 1 / (1 + exp(-x)) without overflow."""
    e = tl.exp(-tl.abs(x))
    return tl.where(x >= 0, 1.0, e) / (1.0 + e)


@triton.jit
def log1p(x):
    """Give log(1 + x), precise for small x (a correction of the rounded sum)."""
    u = 1.0 + x
    return tl.where(u == 1.0, x, tl.log(u) * x / tl.where(u == 1.0, 1.0, u - 1.0))


@triton.jit
def expm1(x):
    """Give exp(x) - 1, precise for small x (Kahan's correction of the rounded exponential)."""
    u = tl.exp(x)
    low = u - 1.0
    safe = (u != 1.0) & (low != -1.0) & (u < 1e30)
    exact = low * x / tl.where(safe, tl.log(tl.where(safe, u, 2.0)), 1.0)
    return tl.where(u == 1.0, x, tl.where(safe, exact, low))


@triton.jit
def tanh(x):
    """Give tanh(x) through expm1."""
    e = expm1(-2.0 * tl.abs(x))
    y = -e / (2.0 + e)
    return tl.where(x < 0, -y, y)


@triton.jit
def softplus(x):
    """Give log(1 + exp(x)) without overflow."""
    return tl.where(x > 0, x, 0.0) + log1p(tl.exp(-tl.abs(x)))


# what `apply_function` and `combine` have, and a PReLU, whose slopes are weights (`functions`)
FUNCTIONS = frozenset(
    "relu clamp leaky_relu elu threshold hardshrink softshrink abs neg square sqrt rsqrt "
    "reciprocal sign floor ceil hardsigmoid hardswish sigmoid silu tanh gelu_erf gelu_tanh mish "
    "softplus log_sigmoid exp expm1 log log1p log2 log10 erf sin cos prelu".split()
)
JOINS = frozenset("add sub mul div maximum minimum".split())


@triton.jit
def apply_function(
    x, FN: tl.constexpr, A: tl.constexpr, B: tl.constexpr, C: tl.constexpr
):  # fmt: skip
    """Compute an elementwise function (`functions.Function`) in float32; NaN stays NaN."""
    if FN == "relu":
        x = tl.where(x <= 0.0, 0.0, x)
    elif FN == "clamp":
        x = tl.where(x < A, A, tl.where(x > B, B, x))
    elif FN == "leaky_relu":
        x = tl.where(x >= 0.0, x, x * A)
    elif FN == "elu":
        x = tl.where(x > 0.0, x * B, expm1(tl.where(x > 0.0, 0.0, x) * C) * (A * B))
    elif FN == "threshold":
        x = tl.where(x <= A, B, x)
    elif FN == "hardshrink":
        x = tl.where((x >= -A) & (x <= A), 0.0, x)
    elif FN == "softshrink":
        x = tl.where(x > A, x - A, tl.where(x < -A, x + A, x * 0.0))
    elif FN == "abs":
        x = tl.abs(x)
    elif FN == "neg":
        x = -x
    elif FN == "square":
        x = x * x
    elif FN == "sqrt":
        x = tl.sqrt(x)
    elif FN == "rsqrt":
        x = 1.0 / tl.sqrt(x)
    elif FN == "reciprocal":
        x = 1.0 / x
    elif FN == "sign":
        x = tl.where(x > 0.0, 1.0, tl.where(x < 0.0, -1.0, x))
    elif FN == "floor":
        x = tl.floor(x)
    elif FN == "ceil":
        x = tl.ceil(x)
    elif FN == "hardsigmoid":
        y = x / 6.0 + 0.5
        x = tl.where(y < 0.0, 0.0, tl.where(y > 1.0, 1.0, y))
    elif FN == "hardswish":
        y = x / 6.0 + 0.5
        x = x * tl.where(y < 0.0, 0.0, tl.where(y > 1.0, 1.0, y))
    elif FN == "sigmoid":
        x = sigmoid(x)
    elif FN == "silu":
        x = x * sigmoid(x)
    elif FN == "tanh":
        x = tanh(x)
    elif FN == "gelu_erf":
        x = 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    elif FN == "gelu_tanh":
        x = 0.5 * x * (1.0 + tanh(0.7978845608028654 * (x + 0.044715 * x * x * x)))
    elif FN == "mish":
        x = x * tanh(softplus(x))
    elif FN == "softplus":
        x = tl.where(x * A > B, x, softplus(x * A) / A)
    elif FN == "log_sigmoid":
        x = -softplus(-x)
    elif FN == "exp":
        x = tl.exp(x)
    elif FN == "expm1":
        x = expm1(x)
    elif FN == "log":
        x = tl.log(x)
    elif FN == "log1p":
        x = log1p(x)
    elif FN == "log2":
        x = tl.log2(x)
    elif FN == "log10":
        x = tl.log(x) * 0.4342944819032518
    elif FN == "erf":
        x = tl.erf(x)
    elif FN == "sin":
        x = tl.sin(x)
    elif FN == "cos":
        x = tl.cos(x)
    else:
        tl.static_assert(False, "no such function")
    return x


@triton.jit
def combine(a, b, FN: tl.constexpr, ALPHA: tl.constexpr):
    """Compute a function of two operands in float32."""
    if FN == "add":
        a = a + b * ALPHA
    elif FN == "sub":
        a = a - b * ALPHA
    elif FN == "mul":
        a = a * b
    elif FN == "div":
        a = a / b
    elif FN == "maximum":
        a = tl.where((a > b) | (a != a), a, b)
    elif FN == "minimum":
        a = tl.where((a < b) | (a != a), a, b)
    else:
        tl.static_assert(False, "no such function")
    return a
