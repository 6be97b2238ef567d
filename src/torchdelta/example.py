"""What the example frame of `torchdelta.compile` says: a device, and how frames become input."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from torchdelta.arguments import several
from torchdelta.errors import FrameError
from torchdelta.ops.preprocess import Preprocess, channel_order
from torchdelta.runtime.frames import FRAME_DTYPES


def check_example(model: nn.Module, example: Any) -> tuple[Tensor, torch.device]:
    """Give a model's example frame, and the device that the model is on; raises FrameError."""
    if not isinstance(example, Tensor) or example.ndim != 4 or 0 in example.shape:
        got = list(example.shape) if isinstance(example, Tensor) else type(example).__name__
        raise FrameError(f"example is {got}, expected a tensor [N, C, H, W]")
    if example.dtype not in FRAME_DTYPES:
        names = ", ".join(str(t).removeprefix("torch.") for t in FRAME_DTYPES)
        raise FrameError(f"example has dtype {example.dtype}, expected one of {names}")
    if example.is_floating_point() and not bool(torch.isfinite(example).all()):
        raise FrameError("example has NaN or infinite values")
    tensors = [*model.parameters(), *model.buffers()]
    device = tensors[0].device if tensors else example.device
    return example, device


def make_preprocess(
    example: Tensor,
    input_range: tuple[float, float] | None,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    color: str,
) -> tuple[Preprocess, tuple[str, ...]]:
    """Settle the plan's first step; what was guessed is said in the notes.

    Raises: ValueError for a range, mean, std or colour order that makes no sense.
    """
    channels = example.shape[1]
    notes: tuple[str, ...] = ()
    if mean is not None:
        mean = several("mean", mean, channels, "one per channel")
    if std is not None:
        std = several("std", std, channels, "one per channel", above=0)
    channel_order(color, channels)
    if input_range is not None:
        lo, hi = several("input_range", input_range, 2, "(lo, hi)")
        if not lo < hi:
            raise ValueError(f"input_range is ({lo}, {hi}), expected lo < hi")
    else:
        lo, hi, note = _guess_range(example, mean is not None or std is not None)
        notes = (note,)
    if std is not None and mean is None:
        mean = (0.0,) * channels
    return (
        Preprocess(
            lo, hi, None if mean is None else tuple(mean), None if std is None else tuple(std),
            color,
        ),
        notes,
    )  # fmt: skip


def _guess_range(example: Tensor, normalised: bool) -> tuple[float, float, str]:
    if example.dtype == torch.uint8 or normalised:
        return 0.0, 1.0, "input_range not given: taken as 0..1, uint8 frames are divided by 255"
    low, high = float(example.min()), float(example.max())
    for lo, hi in ((0.0, 1.0), (0.0, 255.0), (-1.0, 1.0)):
        if low >= lo and high <= hi and (hi < 255 or high > 2):
            return lo, hi, f"input_range not given: the example looks like {lo:g}..{hi:g}"
    if not high > low:
        low, high = low - 0.5, low + 0.5
    note = (
        f"input_range not given: taken from the example, {low:.3g}..{high:.3g}; the input gate's "
        "threshold is a share of it, so say it where you know it"
    )
    return low, high, note
