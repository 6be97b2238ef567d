"""What sessions refuse: slots and cells, streams, and forced active sets."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

import torch
from torch import Tensor

from torchdelta.errors import StreamError
from torchdelta.plan import Plan

# engines keep a slot's number in 16 bits
MOST_SLOTS = 65535

# a cell of more pixels than that says nothing about any of them
MOST_GRAIN = 256


def check_slots(slots: int) -> None:
    """Refuse what is no number of slots. Raises: StreamError."""
    if not isinstance(slots, int) or not 1 <= slots <= MOST_SLOTS:
        raise StreamError(
            f"a session has 1 to {MOST_SLOTS} slots, got {slots!r}; open another session for "
            "more streams"
        )


def check_grain(grain: int) -> None:
    """Refuse what is no side of a cell. Raises: ValueError."""
    if isinstance(grain, bool) or not isinstance(grain, int) or not 1 <= grain <= MOST_GRAIN:
        raise ValueError(
            f"grain is {grain!r}, expected a whole number of pixels, 1 to {MOST_GRAIN}"
        )


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
