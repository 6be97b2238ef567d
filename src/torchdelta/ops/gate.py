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
# where the input gate counts in cells: a box of 3x3 pixels that differs by so many thresholds is
# no matter of the camera's motion, and its cell changes whatever the rest of it does
FINE = 4.0


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
    grain:       1: as above. More: the side in pixels of cells, which lie side by side from the
                 first pixel on, the last ones cut off. A cell is hot where the mean over the pixels
                 of 3x3 cells exceeds the threshold, or the mean over any 3x3 pixels around one of
                 its own FINE times the threshold; hot cells and the eight around each are published
    returns:     bool [H, W]
    """
    known = _known(mask, unseen)
    if threshold == 0:
        return _confine((new != stored).any(-1), known, unseen)
    diff = (new.float() - stored.float()).abs_() @ (to_full_scale / new.shape[-1])
    if grain == 1:
        return _confine(_dilated(_boxes_beyond(diff, threshold, known)), mask, unseen)
    hot = _cells(_boxes_beyond(diff, FINE * threshold, known).float()[None], grain)[0] > 0
    counts = torch.ones_like(diff) if known is None else known.float()
    diff = diff if known is None else torch.where(known, diff, 0.0)
    cells = _cells(torch.stack([diff, counts]), grain)
    total, count = F.avg_pool2d(cells, 3, 1, 1, divisor_override=1)
    # a cell without pixels that can be compared is not hot
    hot |= ~(total / count <= threshold) & (cells[1] > 0)
    wide = _dilated(hot).repeat_interleave(grain, 0).repeat_interleave(grain, 1)
    return _confine(wide[: diff.shape[0], : diff.shape[1]], mask, unseen)


def _boxes_beyond(diff: Tensor, threshold: float, known: Tensor | None) -> Tensor:
    """Mark the pixels whose 3x3 box differs by more, in the mean over its known pixels."""
    if known is None:
        box = F.avg_pool2d(diff[None, None], 3, 1, 1, count_include_pad=False)[0, 0]
    else:
        parts = torch.stack([torch.where(known, diff, 0.0), known.float()])
        total, count = F.avg_pool2d(parts, 3, 1, 1, divisor_override=1)
        box = torch.where(known, total / count, 0.0)
    return ~(box <= threshold)


def _cells(x: Tensor, grain: int) -> Tensor:
    """Add up [C, H, W] in cells of grain x grain pixels, the last ones cut off."""
    h, w = x.shape[1:]
    return F.avg_pool2d(F.pad(x, (0, -w % grain, 0, -h % grain)), grain, divisor_override=1)


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
