"""Where streams' windows lie, and which pixels of a frame count: checked at the public boundary."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor

from torchdelta.arguments import pair
from torchdelta.engines import Move
from torchdelta.errors import FrameError
from torchdelta.ops.base import Size
from torchdelta.plan import Plan
from torchdelta.plan.shift import UNSEEN
from torchdelta.runtime.frames import plain_tensor

Mask = np.ndarray | Tensor
Border = Literal["keep", "exact"]

# coordinates stay far from where int64 ends
FARTHEST_PX = 2**48


@dataclass(frozen=True)
class Window:
    """What part of the world a stream's frame shows; the network runs on it.

    origin: (y, x) of its corner in the world, input pixels, multiples of `plan.total_stride`
    valid:  bool [H, W], where the frame shows anything (a warped one does not everywhere); None:
            everywhere. Elsewhere the network keeps what it saw last, or sees 0 if it never did
    border: "keep": what lies at the window's edges keeps the context that it was computed from
            until it is computed again; "exact": it is computed anew whenever the window moves
    """

    origin: Size
    valid: Mask | None = None
    border: Border = "keep"


class Position(NamedTuple):
    """What a stream's window and region of interest come to, for one frame.

    origin: the window's corner from now on
    move:   how it got there, None where it stays or everything is computed anew
    mask:   bool [H, W] on the engine's device, pixels that may be published; None: all
    jump:   why everything is computed anew because of the window, else None
    """

    origin: Size
    move: Move | None = None
    mask: Tensor | None = None
    jump: str | None = None


def window_size(size: Size, stride: Size) -> Size:
    """Give the size of the windows for frames of a size: whole strides, and one of margin."""
    h, w = (ceil(n / s) * s + s for n, s in zip(size, stride, strict=True))
    return h, w


def snug_size(size: Size, stride: Size) -> Size | None:
    """Give the largest size of frames whose windows have no more pixels each way than these have.

    None where no such frames are left.
    """
    h, w = (n // s * s - s for n, s in zip(size, stride, strict=True))
    return (h, w) if min(h, w) > 0 else None


def place(
    plan: Plan, device: torch.device, before: Size, window: Window | None, roi: Mask | None,
    *, whole: bool,
) -> Position:  # fmt: skip
    """Work out how a stream's window moves, and which of the frame's pixels count.

    before: the window's corner so far;  window: None: it stays where it is
    whole:  everything is computed anew in any case; the region of interest is ignored then
    Raises: FrameError for a window or a mask that does not fit.
    """
    region = None if roi is None else check_mask("roi", roi, plan, device)
    if window is None:
        return Position(before, None, None if whole else region)
    origin = _check_window(window, plan)
    valid = window.valid
    mask = None if valid is None else check_mask("window.valid", valid, plan, device)
    if whole:
        return Position(origin, None, mask)
    shift = origin[0] - before[0], origin[1] - before[1]
    if shift == (0, 0):
        return Position(origin, None, _both(mask, region))
    if abs(shift[0]) >= plan.size[0] or abs(shift[1]) >= plan.size[1]:
        return Position(origin, None, mask, "the window jumped by more than its size")
    if region is not None:
        # like a first frame, a new strip is published whole
        rows, cols = plan.shifts.lines(plan.input, shift, False)
        region = region | torch.from_numpy(np.maximum(rows[:, None], cols) == UNSEEN).to(device)
    return Position(origin, Move(shift, window.border == "exact"), _both(mask, region))


def _both(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    if a is None or b is None:
        return b if a is None else a
    return a & b


def _check_window(window: Any, plan: Plan) -> Size:
    """Give the origin of a window that fits. Raises: FrameError."""
    if not isinstance(window, Window):
        raise FrameError(f"window is a {type(window).__name__}, expected a torchdelta Window")
    if window.border not in get_args(Border):
        raise FrameError(f'border is {window.border!r}, expected "keep" or "exact"')
    try:
        origin = pair(
            "the window's origin", window.origin, "(y, x)", least=-FARTHEST_PX, most=FARTHEST_PX
        )
    except ValueError as error:
        raise FrameError(str(error)) from None
    stride = plan.total_stride
    if any(v % s for v, s in zip(origin, stride, strict=True)):
        raise FrameError(
            f"the window's origin is {origin}, expected multiples of the network's total stride "
            f"{stride}; round it to them and leave the rest to the warp"
        )
    return origin


def check_mask(name: str, mask: Any, plan: Plan, device: torch.device) -> Tensor:
    """Check a mask [H, W] and bring it to a device. Raises: FrameError."""
    if isinstance(mask, np.ndarray) and mask.dtype == np.bool_:
        mask = torch.from_numpy(np.require(mask, requirements=["C", "W"]))
    elif isinstance(mask, Tensor):
        mask = plain_tensor(name, mask)
    elif isinstance(mask, np.ndarray):
        raise FrameError(
            f"{name} is {mask.dtype} {list(mask.shape)}, expected bool {list(plan.size)}, like "
            "the frame"
        )
    else:
        raise FrameError(
            f"{name} is a {type(mask).__name__}, expected a bool numpy array or tensor [H, W]"
        )
    if mask.dtype != torch.bool or tuple(mask.shape) != plan.size:
        raise FrameError(
            f"{name} is {str(mask.dtype).removeprefix('torch.')} {list(mask.shape)}, expected "
            f"bool {list(plan.size)}, like the frame"
        )
    if mask.device.type not in ("cpu", device.type):
        raise FrameError(f"{name} is on {mask.device}, this session runs on {device}; move it")
    return mask.to(device)
