"""The publish rule (design: gates).

A pixel's channel group is published unless norm(new - stored) <= threshold: written this way
round, a NaN publishes and heals later. Threshold 0 compares values instead of norms. The rule is
DeltaCNN's truncation (CVPR 2022, section 3.2) on values instead of accumulated deltas.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from torchdelta.ops.base import Axis

# a change below this many 8-bit steps is noise at the default tolerance (design, section 5)
INPUT_STEPS, DEFAULT_TOLERANCE = 8.0, 0.04


def input_threshold(tolerance: float, multiplier: float = 1.0) -> float:
    """Give the input gate's threshold as a share of full scale."""
    return INPUT_STEPS / 255 * tolerance / DEFAULT_TOLERANCE * multiplier


def input_gate(
    new: Tensor,
    stored: Tensor,
    threshold: float,
    to_full_scale: Tensor,
    *,
    mask: Tensor | None = None,
    unseen: Tensor | None = None,
    grain: int = 1,
) -> Tensor:
    """Mark the input pixels to publish.

    new, stored: [H, W, C], the network's input now and as last published
    threshold:   share of full scale; the mean of |new - stored| over the 3x3 box (of pixels inside
                 the frame) and the channels must exceed it; the result is dilated by 1.
                 0: every pixel that differs at all, without box and dilation
    to_full_scale: [C] float32, factor from input units to shares of full scale
    mask:        bool [H, W], where `new` is valid; nothing else is published, and the mean is over
                 the box's valid pixels
    unseen:      bool [H, W], where `stored` is of another place: no difference exists there, for
                 the mean neither; all are published (outside the mask as 0, by whoever writes)
    grain:       side in pixels of the cells that the box and the dilation are counted in: cells lie
                 side by side from the first pixel on, those at the end are cut off, and the mean is
                 over all pixels of the 3x3 cells. Threshold 0 knows no cells
    returns:     bool [H, W]
    """
    known = _known(mask, unseen)
    if threshold == 0:
        return _confine((new != stored).any(-1), known, unseen)
    diff = (new.float() - stored.float()).abs_() @ (to_full_scale / new.shape[-1])
    if grain > 1:
        return _confine(_changed_cells(diff, threshold, known, grain), mask, unseen)
    if known is None:
        box = F.avg_pool2d(diff[None, None], 3, 1, 1, count_include_pad=False)[0, 0]
    else:
        parts = torch.stack([torch.where(known, diff, 0.0), known.float()])
        total, count = F.avg_pool2d(parts, 3, 1, 1, divisor_override=1)
        box = torch.where(known, total / count, 0.0)
    return _confine(_dilated(~(box <= threshold)), mask, unseen)


def _changed_cells(diff: Tensor, threshold: float, known: Tensor | None, grain: int) -> Tensor:
    """Mark the pixels of cells of grain x grain pixels whose 3x3 cells changed, dilated by a cell.

    diff: float32 [H, W], shares of full scale;  known: bool [H, W], pixels that count; None: all
    """
    h, w = diff.shape
    known = torch.ones_like(diff, dtype=torch.bool) if known is None else known
    parts = torch.stack([torch.where(known, diff, 0.0), known.float()])
    parts = F.pad(parts, (0, -w % grain, 0, -h % grain))
    cells = F.avg_pool2d(parts, grain, divisor_override=1)
    total, count = F.avg_pool2d(cells, 3, 1, 1, divisor_override=1)
    # a cell without pixels that count is not hot by itself
    hot = ~(total / count <= threshold) & (cells[1] > 0)
    return _dilated(hot).repeat_interleave(grain, 0).repeat_interleave(grain, 1)[:h, :w]


def _dilated(hot: Tensor) -> Tensor:
    """Grow marks [H, W] by one in all directions."""
    h, w = hot.shape
    return Axis(w, w, 3, pad=1).spread(Axis(h, h, 3, pad=1).spread(hot, 0), 1)


def _known(mask: Tensor | None, unseen: Tensor | None) -> Tensor | None:
    """Mark the pixels that can be compared; None: all."""
    if unseen is None:
        return mask
    return ~unseen if mask is None else mask & ~unseen


def _confine(hot: Tensor, mask: Tensor | None, unseen: Tensor | None) -> Tensor:
    """Leave marks inside the mask, and all that is unseen."""
    hot = hot if mask is None else hot & mask
    return hot if unseen is None else hot | unseen


def group_count(channels: int, group: int) -> int:
    """Count the channel groups of a value."""
    return -(-channels // group)


def value_gate(new: Tensor, stored: Tensor, threshold: float, norm: str, group: int) -> Tensor:
    """Mark the channel groups to publish.

    new, stored: [M, C], same dtype;  threshold: in the value's unit
    norm:        "rms" or "max", over the channels of a group
    group:       channels in a group, the last one may have fewer
    returns:     bool [M, G]
    """
    if threshold == 0:
        return _grouped(new != stored, group).any(-1)
    return ~(group_norm(new.float() - stored.float(), norm, group) <= threshold)


def group_norm(diff: Tensor, norm: str, group: int) -> Tensor:
    """Take the norm ("rms" or "max") over each channel group: [M, C] float32 gives [M, G]."""
    if norm == "max":
        return _grouped(diff.abs(), group).amax(-1)
    channels, groups = diff.shape[1], group_count(diff.shape[1], group)
    counts = diff.new_full((groups,), float(group))
    counts[-1] = channels - (groups - 1) * group
    return (_grouped(diff.square(), group).sum(-1) / counts).sqrt_()


def _grouped(x: Tensor, group: int) -> Tensor:
    """Cut [M, C] into [M, G, group], filling up the last group with 0."""
    groups = group_count(x.shape[1], group)
    if groups == 1:
        return x.unsqueeze(1)
    missing = groups * group - x.shape[1]
    return (F.pad(x, (0, missing)) if missing else x).unflatten(1, (groups, group))
