"""Where a frame lies in its window of the world, and the way back from the window."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from torchdelta.apart import apart
from torchdelta.arguments import finite
from torchdelta.motion.estimate import Motion
from torchdelta.motion.homography import Homography, Points, Size, inverse, resizing, through
from torchdelta.motion.warp import (
    Array,
    Mask,
    Scratch,
    sampling_grid,
    to_window,
    valid_mask,
    warp,
    warp_and_mark,
)

# why a frame becomes a new reference: its pose starts anew, and everything is computed
ANCHORS = {
    "first frame": "there is nothing to refer to",
    "scene cut": "the frame does not show what the one before showed",
    "low confidence": "the motion is doubtful, and without it most of the frame would be new",
    "no homography": "homographies are given, and none came with the frame",
    "refused frame": "the frame before was refused, and the homography leads to that one",
    "singular pose": "the frame's pose is not finite, or folds the frame",
    "scale": "the frame would be shrunk or enlarged too much",
    "stretch": "the same in one direction, or in a corner",
    "rotation": "the frame would be turned too far",
    "jump": "the frame lies beyond the window, nothing of which would be left",
    "outside the window": "too little of the frame lies in the window",
}


@dataclass(frozen=True)
class Aligned:
    """Where one frame lies.

    frame, window: (h, w) of both
    pose:     the frame's pixel centres (x, y, 1) to the world's; the reference frame's is a shift
    origin:   the window's corner in the world (y, x), a multiple of the plan's total stride
    moved:    what the origin moved by since the last frame (dy, dx); (0, 0) with a new reference
    anchored: why this frame is a new reference, one of ANCHORS' names; None where it is none
    detail:   the numbers behind that
    motion:   the camera's motion since the previous frame
    scratch:  the stream's, for warps
    """

    frame: Size
    window: Size
    pose: Homography = field(default_factory=lambda: np.eye(3))
    origin: tuple[int, int] = (0, 0)
    moved: tuple[int, int] = (0, 0)
    anchored: str | None = None
    detail: str | None = None
    motion: Motion = field(default_factory=Motion)
    scratch: Scratch = field(default_factory=Scratch, repr=False, compare=False)

    def __post_init__(self) -> None:
        assert self.anchored is None or self.anchored in ANCHORS, self.anchored

    @property
    def to_window(self) -> Homography:
        """The frame's pixel centres to the window's."""
        return to_window(self.pose, self.origin)

    @apart
    def mask(self) -> Mask:
        """Mark the window pixels that the frame shows: bool [H, W]."""
        return valid_mask(self.to_window, self.frame, self.window)

    @apart
    def warp(self, frame: Array) -> Array:
        """Bring the frame [h, w, C] into the window: [H, W, C], same kind, dtype and device.

        Pixels beyond the frame are 0.
        """
        return warp(frame, self.to_window, self.window, self.scratch)

    @apart
    def warp_and_mark(self, frame: Array) -> tuple[Array, Mask]:
        """Do what `warp` and `mask` do, at once."""
        return warp_and_mark(frame, self.to_window, self.window, self.scratch)

    def to_frame_points(self, points: Any, stride: float = 1) -> Points:
        """Bring points of the network's output into the frame's pixels.

        points: [..., 2] (x, y), pixel centres of a map whose pixels are `stride` window pixels wide
        """
        given, stride = _numbers(points, 2, "points"), finite("stride", stride, above=0)
        flat = (given.reshape(-1, 2) + 0.5) * stride - 0.5
        return through(inverse(self.to_window), flat).reshape(given.shape)

    def to_frame_boxes(self, boxes: Any, stride: float = 1) -> Points:
        """Bring boxes [..., 4] (x0, y0, x1, y1) into the frame's pixels.

        The middles of the sides are mapped: a box does not grow where the frame is turned.
        """
        given = _numbers(boxes, 4, "boxes")
        x0, y0, x1, y1 = given.reshape(-1, 4).T
        x, y = (x0 + x1) / 2, (y0 + y1) / 2
        left, top, right, bottom = (
            self.to_frame_points(np.stack(p, 1), stride)
            for p in ((x0, y), (x, y0), (x1, y), (x, y1))
        )
        sides = (left[:, 0], top[:, 1], right[:, 0], bottom[:, 1])
        return np.stack(sides, 1).reshape(given.shape)

    @apart
    def to_frame_map(self, values: Array, stride: float = 1, fill: float = 0) -> Array:
        """Bring a dense map of the network's output into the frame.

        values:  [..., h, w] over the whole window, array or tensor; float maps are interpolated,
                 whole numbers and masks taken from the nearest pixel
        stride:  width in frame pixels of the result's pixels
        fill:    where the window does not show the frame
        returns: [..., frame h / stride, frame w / stride], same kind and dtype
        """
        if not isinstance(values, Tensor):
            return self.to_frame_map(torch.as_tensor(values), stride, fill).numpy()
        h, w = values.shape[-2:]
        stride = finite("stride", stride, above=0)
        out = (max(1, round(self.frame[0] / stride)), max(1, round(self.frame[1] / stride)))
        there = resizing(self.window, (h, w)) @ self.to_window @ resizing(out, self.frame)
        grid = sampling_grid(there, (h, w), out, values.device)
        smooth = values.is_floating_point()
        planes = values.reshape(1, -1, h, w)
        planes = planes if smooth else planes.double()
        mode = "bilinear" if smooth else "nearest"
        sampled = F.grid_sample(planes, grid.to(planes.dtype), mode, "border", align_corners=True)
        # half a pixel beyond the outermost centres the map still has something to say
        reach = torch.tensor(
            [1 + 1 / max(1, w - 1), 1 + 1 / max(1, h - 1)], dtype=grid.dtype, device=grid.device
        )
        outside = (grid[0].abs() > reach).any(-1)
        sampled = sampled[0].masked_fill(outside, fill).to(values.dtype)
        return sampled.reshape(*values.shape[:-2], *out)


def _numbers(given: Any, last: int, name: str) -> Points:
    if isinstance(given, Tensor):
        given = given.detach().cpu().double().numpy()
    found = np.asarray(given, np.float64)
    if found.ndim == 0 or found.shape[-1] != last:
        raise ValueError(f"{name} are {list(found.shape)}, expected [..., {last}]")
    return found
