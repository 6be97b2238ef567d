"""What all kernels but those of convolutions have in common: how they begin, and helpers.

They lie in files named like those of their operations (ops/): pointwise.py, move.py, resize.py and
pool.py. Each gives `new` for a block of active pixels. Every kernel runs over the same list
(`take_block`) and ends in the same gate (`publish`), so it begins with the same arguments:

list_ptr, count_ptr, filter0_ptr, filter1_ptr: the active pixels (shared.take_block)
out_ptr .. touch_ptr: the output's state and its gate (shared.publish); hw, out_w: pixels and
    columns of its map, hw_by and out_w_by to divide by them (shared.divide)
x_ptr, x_slot, x_px, x_h, x_w, x_ring_ptr: the input's state; pixel (y, x), channel c of slot n lies
    at x_ptr + n * x_slot + (y * x_w + x) * x_px + c, where no window has moved
slope_ptr, POST, A, B, C: an elementwise function of the result (`activate`)
BM, BN: pixels and channels of a block. They and the number of warps fix the order of every sum, so
    they follow from the plan alone, never from the list.
"""

from __future__ import annotations

import triton
import triton.language as tl

from torchdelta.engines.triton.kernels.shared import apply_function

# fmt: off
# numbers that differ between steps without making other code worth its compilation
ROW_PLAIN = [
    "hw", "hw_by", "out_w", "out_w_by", "limit_stride", "x_h", "x_w",
    "lines_slot", "lines_ptr", "out_ring_ptr",
    # their places hang on the number of slots
    "count_ptr", "touch_ptr",
]


@triton.jit
def columns(block, channels, BN: tl.constexpr):
    """Give the first block-row of a block, and its channels [BN]."""
    blocks = tl.cdiv(channels, BN)
    return block // blocks, (block % blocks) * BN + tl.arange(0, BN)


@triton.jit
def address(ptr, slot, slot_stride, place):
    """Point to places [BM] inside slots [BM]."""
    return ptr + slot.to(tl.int64) * slot_stride + place


@triton.jit
def activate(
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
