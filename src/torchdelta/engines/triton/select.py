"""Launches of selections: from stamps to lists of active pixels, and their number.

They run the kernels of `kernels/select.py`; which steps have a list, `schedule.py` decides.
"""

from __future__ import annotations

from math import ceil, prod
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from torchdelta.engines.triton.kernels import select as kernels
from torchdelta.engines.triton.launch import Launch, Work, divider
from torchdelta.engines.triton.memory import LEAST_PX, pixels_each
from torchdelta.engines.triton.schedule import (
    MOST_SOURCES,
    MOST_TAPS,
    Selection,
    is_identity,
    is_window,
    phases_of,
)
from torchdelta.ops.base import Footprint

if TYPE_CHECKING:
    from torchdelta.engines.triton.frame import Frame

# columns of the tiles in which who reads the input looks at pixels
READER_TILE_PX = 32
# pixels that a program counts
COUNT_PX = 4096
WORD_BYTES = 8


def launches(frame: Frame, selection: Selection) -> list[Work]:
    """Make the launches that list a step's active pixels: several where sources are many."""
    index = selection.step
    step = frame.plan.steps[index]
    h, w = frame.plan.values[step.output].size
    area = h * w
    across = max((_table_width(footprint) for _, footprint in selection.sources), default=1)
    size = pixels_each(area, frame.slots, frame.processors)
    if across > 1:
        # a program holds whole rows of windows
        size = max(16, size // across)
    blocks, tile_w = ceil(area / size), 0
    if any(value == frame.plan.input for value, _ in selection.sources) and size >= LEAST_PX:
        # what changes in a frame lies together
        tile_w = READER_TILE_PX
        blocks = ceil(h / (size // tile_w)) * ceil(w / tile_w)
    phases = phases_of(frame.plan, index)
    own = frame.new_list(frame.capacity(index), prod(phases))
    frame.lists[index, False] = own
    wide = own
    if selection.extra:
        wide = frame.new_list(frame.capacity(index))
    frame.lists[index, True] = wide
    identity = [(value, None) for value in selection.extra]
    parts = [
        selection.sources[n : n + MOST_SOURCES]
        for n in range(0, len(selection.sources), MOST_SOURCES)
    ] or [[]]
    carry = frame.dummy
    if len(parts) > 1:
        carry = torch.zeros(frame.capacity(index), dtype=torch.uint8, device=frame.device)
        frame.bytes += carry.numel()
        frame.constants.append(carry)
    mask = frame.dummy
    if index in frame.forced:
        mask = torch.zeros(area, dtype=torch.uint8, device=frame.device)
        frame.forced_masks[index] = mask
    out: list[Work] = []
    for number, part in enumerate(parts):
        last = number == len(parts) - 1
        sources: list[tuple[int, Any]] = [*part, *(identity if last else [])]
        args = {
            "list_ptr": own.entries, "count_ptr": own.count,
            "active_ptr": frame.counts[index], "wide_list_ptr": wide.entries,
            "wide_count_ptr": wide.count, "ctl_ptr": frame.memory.ctl, "carry_ptr": carry,
            "forced_ptr": mask, "never": 0, "h": h, "w": w,
            "w_by": divider(w), "blocks_by": divider(blocks), **frame.window_args(step.output),
            "blocks": blocks, "capacity": frame.capacity(index), "OWN": len(part),
            "SOURCES": len(sources), "PHASES_Y": phases[0], "PHASES_X": phases[1],
            "CARRY_IN": number > 0, "CARRY_OUT": not last, "FORCED": index in frame.forced,
            "tiles_ptr": frame.memory.changed_tiles, "IN_H": frame.memory.tile[0],
            "IN_W": frame.memory.tile[1], "TILE_W": tile_w,
            "BS": size, "WIDE": across, "PDL": frame.pdl,
        }  # fmt: skip
        for n in range(MOST_SOURCES):
            args |= _source_args(frame, n, sources[n] if n < len(sources) else None)
        out.append(Launch(kernels.select, blocks * frame.slots, args, stages=1, step=index))
    return out


def _source_args(frame: Frame, n: int, source: tuple[int, Any] | None) -> dict[str, Any]:
    """Give a select kernel's arguments for its source number n."""
    names = ("h", "w", "stride_y", "stride_x", "pad_y", "pad_x", "dilation_y", "dilation_x")
    numbers = [1, 1, 1, 1, 0, 0, 1, 1]
    args: dict[str, Any] = {
        f"s{n}_ptr": frame.memory.touch, f"s{n}_rows_ptr": frame.dummy,
        f"s{n}_cols_ptr": frame.dummy, f"KIND{n}": kernels.IDENTITY, f"KH{n}": 1,
        f"KW{n}": 1,
    }  # fmt: skip
    if source is not None:
        value, footprint = source
        numbers[:2] = frame.plan.values[value].size
        if footprint is not None and footprint.everything:
            args |= {f"s{n}_ptr": frame.memory.touch[value], f"KIND{n}": kernels.TOUCH}
        else:
            args[f"s{n}_ptr"] = frame.memory.stamps[value]
            if footprint is not None and not is_identity(footprint):
                args |= _footprint_args(frame, n, footprint, numbers)
                if value == frame.plan.input and _is_marked(frame, args[f"KIND{n}"], footprint):
                    args[f"KIND{n}"] = _input_kind(frame, footprint)
    return {**args, **{f"s{n}_{k}": v for k, v in zip(names, numbers, strict=True)}}


def _is_marked(frame: Frame, kind: int, footprint: Footprint) -> bool:
    """Whether the tiles of a window's corners say if anything in it may have changed."""
    axes = (footprint.rows, footprint.cols)
    return kind == kernels.WINDOW and all(
        axis is not None and (axis.kernel - 1) * axis.dilation < side
        for axis, side in zip(axes, frame.memory.tile, strict=True)
    )


def _input_kind(frame: Frame, footprint: Footprint) -> int:
    """Choose how windows of the input are looked through: by words where rows are such."""
    cols = footprint.cols
    assert cols is not None
    words = frame.plan.size[1] % WORD_BYTES == 0 and cols.dilation == 1
    return kernels.WORDS if words and cols.kernel <= WORD_BYTES else kernels.INPUT


def _footprint_args(frame: Frame, n: int, footprint: Any, numbers: list[int]) -> dict[str, Any]:
    y, x = footprint.rows, footprint.cols
    if _table_width(footprint) == 1:
        numbers[2:] = [y.stride, x.stride, y.pad, x.pad, y.dilation, x.dilation]
        return {f"KIND{n}": kernels.WINDOW, f"KH{n}": y.kernel, f"KW{n}": x.kernel}
    tables = [
        torch.from_numpy(axis.taps.astype(np.int32)).contiguous().to(frame.device)
        for axis in (y, x)
    ]
    frame.constants += tables
    return {
        f"KIND{n}": kernels.TABLE, f"KH{n}": tables[0].shape[1],
        f"KW{n}": tables[1].shape[1], f"s{n}_rows_ptr": tables[0],
        f"s{n}_cols_ptr": tables[1],
    }  # fmt: skip


def count_launches(frame: Frame) -> list[Work]:
    """Make the launch that counts the active pixels of steps without a list of their own."""
    jobs = []
    for index, use in enumerate(frame.schedule.uses):
        if not use.filters:
            continue
        area = prod(frame.plan.values[frame.plan.steps[index].output].size)
        stamps = [frame.memory.stamps[v].data_ptr() for v in use.filters]
        counter = frame.counts[index].data_ptr()
        for slot in range(frame.slots):
            for first in range(0, area, COUNT_PX):
                at = slot * area + first
                second = stamps[1] + at if len(stamps) > 1 else 0
                length = min(COUNT_PX, area - first)
                jobs.append((stamps[0] + at, second, counter + 4 * slot, length, slot))
    if not jobs:
        return []
    table = torch.tensor(jobs, dtype=torch.int64, device=frame.device)
    frame.bytes += table.numel() * 8
    frame.constants.append(table)
    two = any(len(use.filters) > 1 for use in frame.schedule.uses)
    args = {
        "jobs_ptr": table, "ctl_ptr": frame.memory.ctl, "TWO": two, "BS": COUNT_PX,
        "PDL": frame.pdl,
    }  # fmt: skip
    return [Launch(kernels.count_stamps, len(jobs), args)]


def _table_width(footprint: Footprint) -> int:
    """Give the columns of a window that is read through tables, as a power of 2; 1: it is not."""
    rows, cols = footprint.rows, footprint.cols
    if rows is None or cols is None:
        return 1
    if is_window(rows) and is_window(cols) and rows.kernel * cols.kernel <= MOST_TAPS:
        return 1
    return max(2, 1 << (cols.taps.shape[1] - 1).bit_length())
