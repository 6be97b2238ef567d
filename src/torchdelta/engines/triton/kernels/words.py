"""From stamps to lists, eight pixels at once: selections through windows, and counting.

Stamps are bytes; eight of a row make a *word*, whose byte k (from the low end) is pixel x + k of a
block's columns x .. x + 7. *Flags* are words whose bytes are 1 or 0, so a window's taps along a row
are shifts, and its rows are joined by one operation for eight pixels.
"""

from __future__ import annotations

import triton
import triton.language as tl

from torchdelta.engines.triton.kernels.shared import (
    IS_KEPT,
    IS_NOTHING,
    IS_TOUCH,
    IS_WHOLE,
    MODE,
    begin,
    divide,
)

# a flag in each byte, and all bits of a byte but its highest
ONES = tl.constexpr(0x0101010101010101)
LOW_BITS = tl.constexpr(0x7F7F7F7F7F7F7F7F)

_WORD_SOURCE = ("h", "w", "stride", "pad", "dilation")
_WORD_PLAIN = [
    "list_ptr", "count_ptr", "active_ptr", "wide_list_ptr", "wide_count_ptr", "forced_ptr", "never",
    "h", "w", "across", "across_by", "blocks", "blocks_by", "lines_ptr", "lines_slot",
    *(f"s{n}_{name}" for n in range(4) for name in _WORD_SOURCE),
]  # fmt: skip


@triton.jit
def _word(bytes_ptr, at, end, ok, ALIGNED: tl.constexpr):
    """Read the bytes at .. at + 7 of a map that begins on a word; 0 where not ok.

    What lies at `end` and beyond is any number. ALIGNED: `at` is a multiple of 8.
    """
    words = bytes_ptr.to(tl.pointer_type(tl.uint64))
    first = at >> 3
    low = tl.load(words + first, mask=ok, other=0)
    if not ALIGNED:
        bits = ((at & 7) * 8).to(tl.uint64)
        more = ok & (at & 7 != 0) & ((first + 1) * 8 < end)
        high = tl.load(words + first + 1, mask=more, other=0)
        # a shift by 64 is undefined: by 8, and by 8 less
        low = (low >> bits) | ((high << 8) << (56 - bits))
    return low


@triton.jit
def _equal(word, wanted):
    """Flag the bytes in which two words agree."""
    difference = word ^ wanted
    # the highest bit of a byte is set by whatever else is
    differs = ((difference & LOW_BITS) + LOW_BITS) | difference
    # not `~`: with NumPy 2 the interpreter has no word of all ones
    return ((differs >> 7) & ONES) ^ ONES


@triton.jit
def _first_bytes(n):
    """Flag the first n bytes of a word: none below 0, all above 8."""
    bits = ((8 - tl.minimum(tl.maximum(n, 0), 8)) * 4).to(tl.uint64)
    # by half the bits twice, as a shift by 64 is undefined
    return (bits * 0 + ONES) >> bits >> bits


@triton.jit
def _even(flags):
    """Move the flags of a word's bytes 0, 2, 4 and 6 to its bytes 0 .. 3; the others are 0."""
    flags &= 0x0001000100010001
    flags = (flags | (flags >> 8)) & 0x0000010100000101
    return (flags | (flags >> 16)) & 0x01010101


@triton.jit
def _taps(left, own, right, TAPS: tl.constexpr, PAD: tl.constexpr, DILATION: tl.constexpr):
    """Join a row's taps, each at most 7 pixels away: flags of the pixels of `own`.

    left, right: the words beside it
    """
    found = own * 0
    for j in tl.static_range(TAPS):
        if j * DILATION == PAD:
            found |= own
        elif j * DILATION < PAD:
            found |= (own << (8 * (PAD - j * DILATION))) | (left >> (64 - 8 * (PAD - j * DILATION)))
        else:
            found |= (own >> (8 * (j * DILATION - PAD))) | (
                right << (64 - 8 * (j * DILATION - PAD))
            )
    return found


@triton.jit
def _published(
    slot, y, x, ok, wanted, ptr, h, w, stride, pad, dilation,
    KIND: tl.constexpr, TAPS_H: tl.constexpr, TAPS_W: tl.constexpr, STRIDE: tl.constexpr,
    PAD: tl.constexpr, DILATION: tl.constexpr, ALIGNED: tl.constexpr,
):  # fmt: skip
    """Flag the outputs (y, x .. x + 7) in whose windows something was published: uint64 [BW].

    ptr: stamps [slots, h, w], or a byte per slot (TOUCH); wanted: the frame's number in each byte.
    stride, pad, dilation: along y; STRIDE (1 or 2), PAD, DILATION: along x.
    """
    own = wanted * 0
    if KIND == IS_TOUCH:
        touched = (tl.load(ptr + slot) ^ wanted) & 255 == 0
        own = tl.where(touched, own + ONES, own)
    else:
        REACH: tl.constexpr = (TAPS_W - 1) * DILATION - PAD
        left, right, far = own, own, own
        column = x * STRIDE
        end = (slot + 1) * (h * w)
        for i in tl.static_range(TAPS_H):
            row = y * stride + (i * dilation - pad)
            inside = ok & (row >= 0) & (row < h)
            at = (slot * h + row) * w + column
            if PAD > 0:
                near = inside & (column >= 8) & (column < w + 8)
                left |= _equal(_word(ptr, at - 8, end, near, ALIGNED), wanted)
            own |= _equal(_word(ptr, at, end, inside & (column < w), ALIGNED), wanted)
            if STRIDE == 2 or REACH > 0:
                near = inside & (column + 8 < w)
                right |= _equal(_word(ptr, at + 8, end, near, ALIGNED), wanted)
            if STRIDE == 2 and REACH > 0:
                near = inside & (column + 16 < w)
                far |= _equal(_word(ptr, at + 16, end, near, ALIGNED), wanted)
        # behind a row's end lies the next row
        left &= _first_bytes(w - column + 8)
        own &= _first_bytes(w - column)
        right &= _first_bytes(w - column - 8)
        far &= _first_bytes(w - column - 16)
        if STRIDE == 2:
            second = _taps(own, right, far, TAPS_W, PAD, DILATION)
            own = _even(_taps(left, own, right, TAPS_W, PAD, DILATION)) | (_even(second) << 32)
        else:
            own = _taps(left, own, right, TAPS_W, PAD, DILATION)
    return own


@triton.jit
def _moved(slot, y, x, h, w, ok, lines_ptr, lines_slot):
    """Flag the pixels that a move of the slot's window makes active (plan/shift.py)."""
    lines_ptr += slot * lines_slot
    k = tl.arange(0, 8)[None, :]
    column = x[:, None] + k
    moved = tl.load(lines_ptr + y, mask=ok, other=0)[:, None]
    moved = moved | tl.load(lines_ptr + h + column, mask=ok[:, None] & (column < w), other=0)
    return tl.sum((moved != IS_KEPT).to(tl.uint64) << (k * 8).to(tl.uint64), 1)


@triton.jit
def _append(flags, first_pixel, list_ptr, count_ptr):
    """Add the flagged pixels to a list; returns how many there are."""
    # byte k: how many of the first k + 1 bytes are flagged
    upto = flags * ONES
    count = (upto >> 56).to(tl.int32)
    total = tl.sum(count)
    if total > 0:
        first = tl.atomic_add(count_ptr, total, sem="relaxed") + tl.cumsum(count, 0) - count
        k = tl.arange(0, 8)[None, :]
        bits = (k * 8).to(tl.uint64)
        place = first[:, None] + ((upto[:, None] >> bits) & 255).to(tl.int32) - 1
        wanted = (flags[:, None] >> bits) & 1 != 0
        tl.store(list_ptr + place, first_pixel[:, None] + k, mask=wanted)
    return total


@triton.jit(do_not_specialize=_WORD_PLAIN)
def select_words(
    list_ptr, count_ptr, active_ptr, wide_list_ptr, wide_count_ptr, ctl_ptr, forced_ptr, never,
    h, w, across, across_by, blocks, blocks_by, lines_ptr, lines_slot,
    s0_ptr, s0_h, s0_w, s0_stride, s0_pad, s0_dilation,
    s1_ptr, s1_h, s1_w, s1_stride, s1_pad, s1_dilation,
    s2_ptr, s2_h, s2_w, s2_stride, s2_pad, s2_dilation,
    s3_ptr, s3_h, s3_w, s3_stride, s3_pad, s3_dilation,
    X0: tl.constexpr, X1: tl.constexpr, X2: tl.constexpr, X3: tl.constexpr,
    OWN: tl.constexpr, SOURCES: tl.constexpr, FORCED: tl.constexpr, ALIGNED: tl.constexpr,
    BW: tl.constexpr, TILE_W: tl.constexpr, MOVING: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """List the pixels of a map [slots, h, w] that a change of the sources makes active.

    As `select.select` does it, for a step with one list. Xn: of source n its kind, taps along y and
    x, stride, padding and dilation along x, and whether its rows are whole words (`_published`).
    ALIGNED: those of the map are. A program looks at BW words of one slot, in a tile of TILE_W
    words a row; there are `across` of them side by side, and `blocks` in a slot.
    """
    begin(PDL)
    pid = tl.program_id(0)
    slot = divide(pid, blocks_by)
    block = pid - slot * blocks
    mode = tl.load(ctl_ptr + MODE + slot)
    now = tl.load(ctl_ptr)
    n = tl.arange(0, BW)
    row = divide(block, across_by)
    y = row * (BW // TILE_W) + n // TILE_W
    x = ((block - row * across) * TILE_W + n % TILE_W) * 8
    ok = (y < h) & (x < w)
    wanted = (n * 0 + now).to(tl.uint64) * ONES
    active = _published(
        slot, y, x, ok, wanted, s0_ptr, s0_h, s0_w, s0_stride, s0_pad, s0_dilation,
        X0[0], X0[1], X0[2], X0[3], X0[4], X0[5], X0[6],
    )  # fmt: skip
    wide = active
    if SOURCES > 1:
        wide |= _published(
            slot, y, x, ok, wanted, s1_ptr, s1_h, s1_w, s1_stride, s1_pad, s1_dilation,
            X1[0], X1[1], X1[2], X1[3], X1[4], X1[5], X1[6],
        )  # fmt: skip
    if OWN == 2:
        active = wide
    if SOURCES > 2:
        wide |= _published(
            slot, y, x, ok, wanted, s2_ptr, s2_h, s2_w, s2_stride, s2_pad, s2_dilation,
            X2[0], X2[1], X2[2], X2[3], X2[4], X2[5], X2[6],
        )  # fmt: skip
    if OWN == 3:
        active = wide
    if SOURCES > 3:
        wide |= _published(
            slot, y, x, ok, wanted, s3_ptr, s3_h, s3_w, s3_stride, s3_pad, s3_dilation,
            X3[0], X3[1], X3[2], X3[3], X3[4], X3[5], X3[6],
        )  # fmt: skip
    if OWN == 4:
        active = wide
    if MOVING:
        moved = _moved(slot, y, x, h, w, ok, lines_ptr, lines_slot)
        active |= moved
        wide |= moved
    at = y * w + x
    if FORCED:
        # `never` is 0: without what was found the compiler would leave the search away
        active = _word(forced_ptr, at, h * w, ok, ALIGNED) | (wide & (n * 0 + never).to(tl.uint64))
        wide = active
    # a slot without a frame: what its stamps say is older
    some = _first_bytes(tl.where(ok & (n * 0 + mode != IS_NOTHING), w - x, 0))
    whole = n * 0 + mode == IS_WHOLE
    active = tl.where(whole, some, active & some)
    pixel = slot * (h * w) + at
    total = _append(active, pixel, list_ptr, count_ptr)
    if total > 0:
        tl.atomic_add(active_ptr + slot, total, sem="relaxed")
    if SOURCES > OWN:
        _append(tl.where(whole, some, wide & some), pixel, wide_list_ptr, wide_count_ptr)


@triton.jit
def count_stamps(jobs_ptr, ctl_ptr, TWO: tl.constexpr, BW: tl.constexpr, PDL: tl.constexpr):
    """Count the pixels of a program's run at which one of two values was published.

    jobs_ptr: [programs, 5] int64: address of the first stamp, of the second (0: none), of the int32
    counter, how many stamps there are (8 * BW at most), and the slot.
    """
    begin(PDL)
    job = jobs_ptr + tl.program_id(0) * 5
    address = tl.load(job)
    counter = tl.load(job + 2).to(tl.pointer_type(tl.int32))
    length = tl.load(job + 3)
    if tl.load(ctl_ptr + MODE + tl.load(job + 4)) != IS_NOTHING:
        at = tl.arange(0, BW) * 8
        wanted = (at * 0 + tl.load(ctl_ptr)).to(tl.uint64) * ONES
        found = _equal(_run(address, at, length), wanted)
        if TWO:
            second = tl.load(job + 1)
            if second != 0:
                found |= _equal(_run(second, at, length), wanted)
        found &= _first_bytes(length - at)
        total = tl.sum(((found * ONES) >> 56).to(tl.int32))
        if total > 0:
            tl.atomic_add(counter, total, sem="relaxed")


@triton.jit
def _run(address, at, length):
    """Read words of a run of bytes that begins anywhere."""
    skipped = address & 7
    begin_ptr = (address - skipped).to(tl.pointer_type(tl.uint8))
    return _word(begin_ptr, skipped + at, skipped + length, at < length, False)
