"""Launches of selections: from stamps to lists of active pixels, and their number.

They run the kernels of `kernels/words.py` where sources reach outputs through windows that step by
one or two columns, else those of `kernels/select.py`; which steps have a list, `schedule.py`
decides.
"""

from __future__ import annotations

from math import ceil, prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from torchdelta.engines.triton.frame import Frame
from torchdelta.engines.triton.kernels import select as kernels
from torchdelta.engines.triton.kernels import words as word_kernels
from torchdelta.engines.triton.kernels.shared import IDENTITY, TABLE, TOUCH, WINDOW
from torchdelta.engines.triton.launch import Launch, Work, divider
from torchdelta.engines.triton.memory import aligned, pixels_each
from torchdelta.engines.triton.schedule import (
    MOST_SOURCES,
    MOST_TAPS,
    Selection,
    Source,
    is_identity,
    is_window,
    phases_of,
)
from torchdelta.ops.base import Footprint

# stamps in a word, and how far beside it a window may reach
WORD_PX, FARTHEST_PX = 8, 7
# words along a row of a program's tile: what changes in a frame lies together
TILE_WORDS = 4
# rows of a window that is looked through by words
MOST_ROWS = 16
# words of a program and its warps: of one warp while a processor has few programs (H200: two and
# four warps take 2 % longer in whole frames, one warp where maps are large nearly twice as long)
FEW_WORDS, MANY_WORDS = (32, 1), (128, 4)
FEW_PROGRAMS = 64
# taps of a window that are read through tables at once
MOST_AT_ONCE = 256
# words that a program counts
COUNT_WORDS = 512
COUNT_PX = COUNT_WORDS * WORD_PX


def launches(frame: Frame, selection: Selection) -> list[Work]:
    """Make the launches that list a step's active pixels: several where sources are many."""
    index = selection.step
    phases = phases_of(frame.plan, index)
    own = frame.new_list(frame.capacity(index), prod(phases))
    frame.lists[index, False] = own
    wide = own
    if selection.extra:
        wide = frame.new_list(frame.capacity(index))
    frame.lists[index, True] = wide
    size = frame.plan.values[frame.plan.steps[index].output].size
    mask = frame.dummy
    if index in frame.forced:
        room = torch.zeros(aligned(prod(size)), dtype=torch.uint8, device=frame.gpu.device)
        frame.forced_masks[index] = mask = room[: prod(size)]
    common = {
        "list_ptr": own.entries, "count_ptr": own.count, "active_ptr": frame.counts[index],
        "wide_list_ptr": wide.entries, "wide_count_ptr": wide.count, "ctl_ptr": frame.memory.ctl,
        "forced_ptr": mask, "never": 0, "h": size[0], "w": size[1],
        **frame.window_args(frame.plan.steps[index].output), "FORCED": index in frame.forced,
        "PDL": frame.gpu.pdl,
    }  # fmt: skip
    sources = [*selection.sources, *((value, Footprint()) for value in selection.extra)]
    if prod(phases) == 1 and len(sources) <= MOST_SOURCES and all(map(_in_words, sources)):
        return [_word_launch(frame, index, len(selection.sources), sources, common)]
    return _pixel_launches(frame, selection, common)


def _in_words(source: Source) -> bool:
    """Whether a source's changes can be looked through eight pixels at a time."""
    _, footprint = source
    rows, cols = footprint.rows, footprint.cols
    if rows is None or cols is None:
        return True
    return (
        is_window(rows) and is_window(cols) and rows.kernel <= MOST_ROWS and cols.stride <= 2
        and -FARTHEST_PX <= cols.pad <= FARTHEST_PX
        and (cols.kernel - 1) * cols.dilation - cols.pad <= FARTHEST_PX
    )  # fmt: skip


def _word_launch(
    frame: Frame, index: int, own: int, sources: list[Source], common: dict[str, Any]
) -> Work:
    h, w = common["h"], common["w"]
    row_words = ceil(w / WORD_PX)
    few = frame.slots * h * row_words <= FEW_WORDS[0] * FEW_PROGRAMS * frame.gpu.processors
    words, warps = FEW_WORDS if few else MANY_WORDS
    tile_w = min(TILE_WORDS, 1 << (row_words - 1).bit_length())
    across = ceil(row_words / tile_w)
    blocks = ceil(h / (words // tile_w)) * across
    args = {
        **common, "across": across, "across_by": divider(across), "blocks": blocks,
        "blocks_by": divider(blocks), "OWN": own, "SOURCES": len(sources),
        "ALIGNED": w % WORD_PX == 0, "BW": words, "TILE_W": tile_w,
    }  # fmt: skip
    for n in range(MOST_SOURCES):
        args |= _word_source(frame, n, sources[n] if n < len(sources) else None)
    return Launch(
        word_kernels.select_words, blocks * frame.slots, args, warps=warps, stages=1, step=index
    )


def _word_source(frame: Frame, n: int, source: Source | None) -> dict[str, Any]:
    """Give the word kernel's arguments for its source number n."""
    h, w, y = 1, 1, (1, 0, 1)
    x: tuple[int | bool, ...] = (WINDOW, 1, 1, 1, 0, 1)
    stamps: Tensor = frame.memory.touch
    if source is not None:
        value, footprint = source
        h, w = frame.plan.values[value].size
        if footprint.everything:
            stamps = frame.memory.touch[value]
            x = (TOUCH, *x[1:])
        else:
            stamps = frame.memory.stamps[value]
            if footprint.rows is not None and footprint.cols is not None:
                rows, cols = footprint.rows, footprint.cols
                y = (rows.stride, rows.pad, rows.dilation)
                x = (
                    WINDOW, rows.kernel, cols.kernel, cols.stride, cols.pad,
                    cols.dilation,
                )  # fmt: skip
    numbers = zip(("h", "w", "stride", "pad", "dilation"), (h, w, *y), strict=True)
    return {
        f"s{n}_ptr": stamps, **{f"s{n}_{name}": number for name, number in numbers},
        f"X{n}": (*x, w % WORD_PX == 0),
    }  # fmt: skip


def _pixel_launches(frame: Frame, selection: Selection, common: dict[str, Any]) -> list[Work]:
    """Make the launches that look at each output's window by itself."""
    index, area = selection.step, common["h"] * common["w"]
    phases = phases_of(frame.plan, index)
    across = max((_table_width(footprint) for _, footprint in selection.sources), default=1)
    size = pixels_each(area, frame.slots, frame.gpu.processors)
    if across > 1:
        # a program holds many taps of each of its windows
        size = max(4, size // across)
    blocks = ceil(area / size)
    identity = [(value, None) for value in selection.extra]
    parts = [
        selection.sources[n : n + MOST_SOURCES]
        for n in range(0, len(selection.sources), MOST_SOURCES)
    ] or [[]]
    carry = frame.dummy
    if len(parts) > 1:
        carry = torch.zeros(frame.capacity(index), dtype=torch.uint8, device=frame.gpu.device)
        frame.bytes += carry.numel()
        frame.constants.append(carry)
    out: list[Work] = []
    for number, part in enumerate(parts):
        last = number == len(parts) - 1
        sources: list[tuple[int, Any]] = [*part, *(identity if last else [])]
        args = {
            **common, "carry_ptr": carry, "w_by": divider(common["w"]),
            "blocks_by": divider(blocks), "blocks": blocks, "capacity": frame.capacity(index),
            "OWN": len(part), "SOURCES": len(sources), "PHASES_Y": phases[0],
            "PHASES_X": phases[1], "CARRY_IN": number > 0, "CARRY_OUT": not last, "BS": size,
            "WIDE": across,
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
        f"s{n}_cols_ptr": frame.dummy, f"KIND{n}": IDENTITY, f"KH{n}": 1,
        f"KW{n}": 1,
    }  # fmt: skip
    if source is not None:
        value, footprint = source
        numbers[:2] = frame.plan.values[value].size
        if footprint is not None and footprint.everything:
            args |= {f"s{n}_ptr": frame.memory.touch[value], f"KIND{n}": TOUCH}
        else:
            args[f"s{n}_ptr"] = frame.memory.stamps[value]
            if footprint is not None and not is_identity(footprint):
                args |= _footprint_args(frame, n, footprint, numbers)
    return {**args, **{f"s{n}_{k}": v for k, v in zip(names, numbers, strict=True)}}


def _footprint_args(frame: Frame, n: int, footprint: Any, numbers: list[int]) -> dict[str, Any]:
    y, x = footprint.rows, footprint.cols
    if _table_width(footprint) == 1:
        numbers[2:] = [y.stride, x.stride, y.pad, x.pad, y.dilation, x.dilation]
        return {f"KIND{n}": WINDOW, f"KH{n}": y.kernel, f"KW{n}": x.kernel}
    tables = [
        torch.from_numpy(axis.taps.astype(np.int32)).contiguous().to(frame.gpu.device)
        for axis in (y, x)
    ]
    frame.constants += tables
    return {
        f"KIND{n}": TABLE, f"KH{n}": tables[0].shape[1],
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
    table = torch.tensor(jobs, dtype=torch.int64, device=frame.gpu.device)
    frame.bytes += table.numel() * 8
    frame.constants.append(table)
    two = any(len(use.filters) > 1 for use in frame.schedule.uses)
    args = {
        "jobs_ptr": table, "ctl_ptr": frame.memory.ctl, "TWO": two, "BW": COUNT_WORDS,
        "PDL": frame.gpu.pdl,
    }  # fmt: skip
    return [Launch(word_kernels.count_stamps, len(jobs), args)]


def _table_width(footprint: Footprint) -> int:
    """Give the taps at once of a window read through tables, a power of 2; 1: it is not."""
    rows, cols = footprint.rows, footprint.cols
    if rows is None or cols is None:
        return 1
    if is_window(rows) and is_window(cols) and rows.kernel * cols.kernel <= MOST_TAPS:
        return 1
    taps = rows.taps.shape[1] * cols.taps.shape[1]
    return max(2, min(MOST_AT_ONCE, 1 << (taps - 1).bit_length()))
