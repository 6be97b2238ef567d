"""What one stream's frame gave."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from torchdelta.engines import SlotReport
from torchdelta.errors import FrameError
from torchdelta.motion.aligned import Aligned, Array
from torchdelta.motion.homography import Points
from torchdelta.ops.base import Size
from torchdelta.plan import Plan
from torchdelta.runtime.stats import Counted, FrameStats


class Result:
    """What one stream's frame gave.

    stream:         its name
    error:          why the frame was refused, else None; the stream's state is then as it was
    changed:        bool [H, W], the input pixels that were published
    output_changed: like `output`, a bool [Ho, Wo] mask per tensor ([1, 1] for what is no map)
    active:         bool [Ho, Wo] per step name, where `record=True` asked for it, else None
    origin:         (y, x), the corner of the stream's window in the world; masks and outputs are in
                    the window's coordinates; `to_frame_points` and its like lead back
    aligned:        where the frame lies in the window; None where the camera is not followed
    stats:          changed input, MAC share and time of this frame
    """

    def __init__(
        self,
        stream: str,
        output: Any = None,
        counted: Counted | None = None,
        *,
        error: FrameError | None = None,
        record: bool = False,
        origin: Size = (0, 0),
    ) -> None:
        self.stream, self.error, self.origin = stream, error, origin
        self.aligned: Aligned | None = None
        self._output, self._counted, self._record = output, counted, record

    def _report(self) -> SlotReport:
        return self.counted.report

    def _or_raise(self, what: Any) -> Any:
        if self.error is not None:
            raise self.error
        return what

    @property
    def output(self) -> Any:
        """The network's result, same structure as model(frame) with a batch of 1.

        Raises: FrameError where the frame was refused.
        """
        return self._or_raise(self._output)

    @property
    def changed(self) -> Tensor:
        """Published input pixels, bool [H, W]; raises FrameError for a refused frame."""
        return self._mask(self.plan.input)

    @property
    def output_changed(self) -> Any:
        """Published output pixels, like `output`; raises FrameError for a refused frame."""
        leaves: list[Any] = []
        for out, whole in zip(self.plan.outputs, self.plan.output_shapes, strict=True):
            leaves.append(self._mask(out) if whole is not None else out)
        return pytree.tree_unflatten(leaves, self.plan.out_spec)

    @property
    def active(self) -> dict[str, Tensor] | None:
        """Active sets by step name, where they were asked for; raises FrameError if refused."""
        if not self._record or self.error is not None:
            return None
        found = self._report().active
        active = {}
        for i, step in enumerate(self.plan.steps):
            size = self.plan.values[step.output].size
            active[step.name] = found[i] if i in found else self._none(size)
        return active

    @property
    def plan(self) -> Plan:
        """The network as it ran, on the frame or on a window; raises FrameError if refused."""
        return self.counted.plan

    def _mask(self, value: int) -> Tensor:
        """Unite the change masks of a value's owners: bool [H, W]."""
        v, changed = self.plan.values[value], self._report().changed
        masks = [changed[owner] for owner in v.owners if owner in changed]
        if not masks:
            return self._none(v.size)
        return functools.reduce(torch.logical_or, masks).expand(v.size)

    def _none(self, size: tuple[int, int]) -> Tensor:
        # numpy's zeros cost nothing until they are read
        return torch.from_numpy(np.zeros(size, np.bool_)).to(self.counted.device)

    def _placed(self) -> Aligned:
        return self.aligned or Aligned(self.plan.size, self.plan.size)

    def to_frame_points(self, points: Any, stride: float = 1) -> Points:
        """Bring points of the output into the frame's pixels.

        points: [..., 2] (x, y), pixel centres of a map whose pixels are `stride` input pixels wide
        returns: float64, alike; Raises: FrameError for a refused frame
        """
        return self._placed().to_frame_points(points, stride)

    def to_frame_boxes(self, boxes: Any, stride: float = 1) -> Points:
        """Bring boxes [..., 4] (x0, y0, x1, y1) of the output into the frame's pixels.

        Raises: FrameError for a refused frame.
        """
        return self._placed().to_frame_boxes(boxes, stride)

    def to_frame_map(self, values: Array, stride: float = 1, fill: float = 0) -> Array:
        """Bring a map of the output into the frame.

        values:  [..., h, w] over the whole input; float maps are interpolated, others taken from
                 the nearest pixel
        stride:  width in frame pixels of the result's pixels
        fill:    where the output does not cover the frame
        returns: [..., frame h / stride, frame w / stride]; Raises: FrameError for a refused frame
        """
        return self._placed().to_frame_map(values, stride, fill)

    @property
    def counted(self) -> Counted:
        """The engine's report and what is made of it; raises FrameError for a refused frame."""
        counted: Counted = self._or_raise(self._counted)
        return counted

    @property
    def stats(self) -> FrameStats:
        """Counts of this frame; raises FrameError for a refused frame."""
        return self.counted.stats

    def __repr__(self) -> str:
        return f"Result({self.stream!r}, {self.error or self.stats})"
