"""The kernel of bilinear resizing."""

from __future__ import annotations

import triton
import triton.language as tl

from torchdelta.engines.triton.kernels.rows import ROW_PLAIN, activate, address, columns
from torchdelta.engines.triton.kernels.shared import begin, divide, on_ring, publish, take_block

# fmt: off


@triton.jit
def _blend(a, b, part):
    """Blend (1 - part) * a + part * b; where part is 0 it is a, whatever b is (ops/resize.py)."""
    return tl.where(part > 0.0, (1.0 - part) * a + part * b, a)


@triton.jit(do_not_specialize=[*ROW_PLAIN, "out_h"])
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
        row, cols = columns(block, channels, BN)
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
        start = address(x_ptr, slot, x_slot, 0)[:, None] + cols[None, :]
        a = tl.load(start + ((top + left) * x_px)[:, None], mask=mask, other=0).to(tl.float32)
        b = tl.load(start + ((top + right) * x_px)[:, None], mask=mask, other=0).to(tl.float32)
        c = tl.load(start + ((low + left) * x_px)[:, None], mask=mask, other=0).to(tl.float32)
        d = tl.load(start + ((low + right) * x_px)[:, None], mask=mask, other=0).to(tl.float32)
        new = _blend(_blend(a, b, across), _blend(c, d, across), down)
        new = activate(new, cols, channels, slope_ptr, POST, A, B, C)
        publish(
            new, ok, pixel, slot, cols, out_ptr, out_slot, out_px, hw, channels,
            out_w, out_w_by, out_ring_ptr, lines_ptr, lines_slot,
            limit_ptr, limit_stride, ctl_ptr, stamp_ptr, touch_ptr,
            BM, BN, NORM_MAX, STAMP, TOUCH, MOVING,
        )
