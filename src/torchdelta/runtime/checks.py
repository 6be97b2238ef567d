"""What sessions refuse: slots and cells, streams, and forced active sets."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from torchdelta.arguments import MOST_GRAIN, MOST_SLOTS, shown, whole
from torchdelta.errors import StreamError
from torchdelta.ops.base import Size
from torchdelta.plan import Plan
from torchdelta.runtime.thresholds import default_grain


def check_slots(slots: Any) -> int:
    """Give a number of slots. Raises: StreamError for what is none."""
    try:
        return whole("slots", slots, least=1, most=MOST_SLOTS)
    except ValueError:
        raise StreamError(
            f"a session has 1 to {MOST_SLOTS} slots, got {shown(slots)}; open another session for "
            "more streams"
        ) from None


def check_grain(grain: Any, stride: Size, *, followed: bool) -> int:
    """Give the side of a cell; None: `default_grain`. Raises: ValueError for what is none."""
    if grain is None:
        return default_grain(stride, followed=followed)
    return whole("grain", grain, least=1, most=MOST_GRAIN, unit="pixels")


def check_known(stream: str, streams: Iterable[str]) -> None:
    """Refuse a stream that is not in. Raises: StreamError."""
    if stream not in streams:
        names = ", ".join(map(repr, streams)) or "none"
        raise StreamError(f"stream {stream!r} is unknown; streams in this session: {names}")


def check_room(newcomers: Collection[str], taken: int, slots: int) -> None:
    """Refuse more streams than slots are free. Raises: StreamError."""
    if len(newcomers) > slots - taken:
        raise StreamError(
            f"no free slot for {', '.join(map(repr, newcomers))}: {taken} of {slots} are taken; "
            "let a stream leave, or open a session with more slots"
        )


def check_named(frames: Collection[str], **given: Iterable[str]) -> None:
    """Refuse what comes for streams without a frame. Raises: StreamError."""
    for name, streams in given.items():
        lost = [stream for stream in streams if stream not in frames]
        if lost:
            raise StreamError(
                f"{name} names {', '.join(map(repr, lost))}, which has no frame in this step"
            )


def check_forced(forced: Mapping[int, Tensor], plan: Plan, device: torch.device) -> None:
    """Refuse active sets that do not fit the steps of a plan. Raises: ValueError."""
    for index, mask in forced.items():
        if not 0 <= index < len(plan.steps):
            raise ValueError(f"forced names step {index} of {len(plan.steps)}")
        size = plan.values[plan.steps[index].output].size
        same_device = mask.device.type == device.type
        if mask.dtype != torch.bool or tuple(mask.shape) != size or not same_device:
            raise ValueError(
                f"forced active set of step {index} is {mask.dtype} {list(mask.shape)} on "
                f"{mask.device}, expected torch.bool {list(size)} on {device}"
            )
