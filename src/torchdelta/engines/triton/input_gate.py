"""Launches of the input gate: from a frame as it comes to the published input.

They run the kernels of `kernels/input_gate.py`, and of `kernels/cells.py` where the gate counts in
cells.
"""

from __future__ import annotations

from math import ceil

from torchdelta.engines.triton.frame import Frame
from torchdelta.engines.triton.kernels import cells as cell_kernels
from torchdelta.engines.triton.kernels import input_gate as kernels
from torchdelta.engines.triton.launch import Launch, Work, divider
from torchdelta.engines.triton.memory import LEAST_PX, MOST_PX, Cells, pixels_each
from torchdelta.engines.triton.pack import padded_channels

# channels of the input that a thread reads as a word
WORDS_OF_CHANNELS = (1, 2, 4)
# there each pass takes long, and threads there are none
INTERPRETED_CHANNELS = 16


def launches(frame: Frame) -> list[Work]:
    """Make the launches of the input gate."""
    plan, memory = frame.plan, frame.memory
    h, w = plan.size
    place = frame.in_args(plan.input, "x")
    factor, shift = frame.program.normalise
    windows = frame.windows
    moving = {
        **frame.window_args(plan.input), "x_ring_ptr": place["x_ring_ptr"],
        "masked_ptr": frame.dummy if windows is None else windows.masked,
        "valid_ptr": frame.dummy if windows is None else windows.valid,
    }  # fmt: skip
    across = ceil(w / memory.tile[1])
    tiles = {
        "blocks": memory.tiles, "blocks_by": divider(memory.tiles), "across": across,
        "across_by": divider(across),
    }  # fmt: skip
    common = {
        **moving,
        "ctl_ptr": memory.ctl, "frames_ptr": memory.frames, "x_ptr": place["x_ptr"],
        "x_slot": place["x_slot"], "X_PX": place["x_px"], "h": h, "w": w,
        **tiles, "factor_ptr": factor, "shift_ptr": shift, **_lanes(frame),
        "BGR": plan.preprocess.color == "bgr", "TILE_W": memory.tile[1],
        "BS": memory.input_px,
    }  # fmt: skip
    cells = memory.cells
    of_cells = {
        "GRAIN": cells.grain, "down": cells.size[0], "cells_across": cells.size[1],
    }  # fmt: skip
    compare = Launch(
        kernels.compare_input, memory.tiles * frame.slots,
        {**common, **of_cells, "excess_ptr": memory.excess, "known_ptr": memory.known,
         "SUMS": cells.summed, "scale_ptr": frame.program.to_full_scale,
         "zeros": frame.zeros.numel(),
         "difference_ptr": memory.difference, "threshold_ptr": memory.input_threshold,
         "over_tiles_ptr": memory.over_tiles, "zeros_ptr": frame.zeros,
         "thresholds_ptr": memory.thresholds, "forced_ptr": memory.forced,
         "limits_ptr": memory.limits, "values": len(plan.values),
         "limits": memory.limits.numel()},
    )  # fmt: skip
    find = Launch(
        kernels.find_hot, memory.tiles * frame.slots,
        {"ctl_ptr": memory.ctl, "h": h, "w": w, **tiles, **of_cells,
         "difference_ptr": memory.difference, "threshold_ptr": memory.input_threshold,
         "fine_ptr": memory.fine_cells,
         "over_tiles_ptr": memory.over_tiles, "hot_ptr": memory.hot,
         "hot_tiles_ptr": memory.hot_tiles, "TILE_W": memory.tile[1], "BS": memory.input_px,
         "MOVING": moving["MOVING"], "PDL": frame.gpu.pdl}, warps=2,
    )  # fmt: skip
    rows, columns = cells.covered(memory.tile)
    publish = Launch(
        kernels.publish_input, memory.tiles * frame.slots,
        {**common, **of_cells, "CELL_ROWS": rows, "CELL_COLUMNS": columns,
         "hot_cells_ptr": memory.hot_cells, "hot_ptr": memory.hot,
         "hot_tiles_ptr": memory.hot_tiles,
         "threshold_ptr": memory.input_threshold,
         "stamp_ptr": memory.stamps[plan.input],
         "touch_ptr": memory.touch[plan.input], "changed_ptr": frame.changed,
         "PDL": frame.gpu.pdl},
    )  # fmt: skip
    return [compare, find, *_in_cells(frame, cells), publish]


def _in_cells(frame: Frame, cells: Cells) -> list[Work]:
    """Make the launches of an input gate that counts in cells."""
    if cells.grain == 1:
        return []
    memory, (h, w), (down, across) = frame.memory, frame.plan.size, cells.size
    common = {
        "ctl_ptr": memory.ctl, "down": down, "across": across, "excess_ptr": memory.excess,
        "known_ptr": memory.known, "threshold_ptr": memory.input_threshold,
        "MOVING": frame.windows is not None, "PDL": frame.gpu.pdl,
    }  # fmt: skip
    wide = 1 << (cells.grain - 1).bit_length()
    side_by_side = max(1, MOST_PX // wide)
    row_blocks = ceil(across / side_by_side)
    add_up = Launch(
        cell_kernels.sum_cells, row_blocks * down * frame.slots,
        {**common, "h": h, "w": w, "blocks": row_blocks * down,
         "blocks_by": divider(row_blocks * down), "row_blocks": row_blocks,
         "row_blocks_by": divider(row_blocks), "difference_ptr": memory.difference,
         "GRAIN": cells.grain, "WIDE": wide, "CELLS": side_by_side},
    )  # fmt: skip
    blocks = ceil(down * across / LEAST_PX)
    find = Launch(
        cell_kernels.find_cells, blocks * frame.slots,
        {**common, "across_by": divider(across), "blocks": blocks,
         "blocks_by": divider(blocks), "fine_ptr": memory.fine_cells,
         "hot_ptr": memory.hot_cells, "BS": LEAST_PX},
    )  # fmt: skip
    return [find] if cells.summed else [add_up, find]


def _lanes(frame: Frame) -> dict[str, int]:
    """Give the input's channels, how many of them kernels take at once, and their room."""
    value = frame.plan.values[frame.plan.input]
    channels = value.channels
    alone = frame.plan.buffers[value.buffer].c == channels
    # what lies between the pixels of a buffer of its own may be written: with 0
    room = padded_channels(channels) if alone else channels
    # a word of the state is one thread's; sums that cross threads would be written by all of
    # them, the same number, but racecheck calls that a race
    lanes = room if alone and room in WORDS_OF_CHANNELS else 1
    if frame.gpu.interpreted and channels > INTERPRETED_CHANNELS:
        lanes = INTERPRETED_CHANNELS
    return {"C": channels, "LANES": lanes, "ROOM": room}


def check_launches(frame: Frame) -> list[Work]:
    """Make the launches that refuse float frames with values that are not finite."""
    plan, memory = frame.plan, frame.memory
    h, w = plan.size
    place = frame.in_args(plan.input, "x")
    factor, shift = frame.program.normalise
    size = pixels_each(h * w, frame.slots, frame.gpu.processors)
    blocks = ceil(h * w / size)
    check = Launch(
        kernels.check_frames, blocks * frame.slots,
        {"ctl_ptr": memory.ctl, "frames_ptr": memory.frames, "h": h, "w": w,
         "blocks": blocks, "factor_ptr": factor, "shift_ptr": shift, "bad_ptr": memory.bad,
         "x_ptr": place["x_ptr"], "C": plan.shape[0], "LANES": _lanes(frame)["LANES"],
         "BGR": plan.preprocess.color == "bgr", "BS": size},
    )  # fmt: skip
    most = 1 << (frame.slots - 1).bit_length()
    drop = Launch(
        kernels.drop_bad, 1,
        {"ctl_ptr": memory.ctl, "bad_ptr": memory.bad, "slots": frame.slots, "BS": most},
    )  # fmt: skip

    def forget() -> None:
        memory.bad.zero_()

    return [forget, check, drop]
