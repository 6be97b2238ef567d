"""A frame's first kernel: what the host says of the frame, taken from the host's memory."""

from __future__ import annotations

import triton
import triton.language as tl

# where a control block holds its serial number (see `kernels.shared`)
SERIAL = tl.constexpr(1)


@triton.jit
def take_control(ctl_ptr, sent_ptr, numbers, TURNS: tl.constexpr, BS: tl.constexpr):
    """Take the oldest control block that was not taken yet; where there is none, keep the last.

    sent_ptr: int64 [TURNS, numbers] in the host's memory; a block whose serial number is larger
    than the one taken last waits to be taken.
    """
    turn = tl.arange(0, TURNS)
    serials = tl.load(sent_ptr + turn * numbers + SERIAL, volatile=True)
    taken = tl.load(ctl_ptr + SERIAL)
    waits = serials > taken
    oldest = tl.min(tl.where(waits, serials, 0x7FFFFFFFFFFFFFFF))
    chosen = waits & (serials == oldest)
    found = tl.max(chosen.to(tl.int32))
    for first in range(0, numbers, BS):
        at = first + tl.arange(0, BS)
        inside = at < numbers
        # all turns' at once: one way to the host's memory and back instead of two
        blocks = tl.load(
            sent_ptr + turn[:, None] * numbers + at[None, :], mask=inside[None, :], other=0,
            volatile=True,
        )  # fmt: skip
        block = tl.sum(tl.where(chosen[:, None], blocks, 0), axis=0)
        tl.store(ctl_ptr + at, block, mask=inside & (at * 0 + found != 0))
