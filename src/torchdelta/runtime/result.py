"""What one stream's frame gave."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from torchdelta.apart import apart
from torchdelta.engines import Deferred, SlotReport
from torchdelta.errors import FrameError
from torchdelta.motion.aligned import Aligned, Array
from torchdelta.motion.homography import Points
from torchdelta.ops.base import Size
from torchdelta.plan import Plan
from torchdelta.runtime.outputs import Together
from torchdelta.runtime.stats import Counted, CountedStep, FrameStats


class StepFrames(NamedTuple):
    """What the results of one step share; record: whether active sets were asked for."""

    counted: CountedStep
    device: torch.device
    record: bool


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

    __slots__ = (
        "__weakref__", "_frames", "_output", "_report", "_slot", "aligned", "error", "origin",
        "stream",
    )  # fmt: skip

    def __init__(
        self,
        stream: str,
        slot: int = 0,
        frames: StepFrames | None = None,
        report: SlotReport | Deferred | None = None,
        output: Any = None,
        origin: Size = (0, 0),
        *,
        error: FrameError | None = None,
    ) -> None:
        """Take what a step gave for a slot; all of it is put together when it is read."""
        self.stream, self.error, self.origin = stream, error, origin
        self.aligned: Aligned | None = None
        self._slot, self._frames, self._report, self._output = slot, frames, report, output

    def _step(self) -> StepFrames:
        frames: StepFrames = self._or_raise(self._frames)
        return frames

    @apart
    def report(self) -> SlotReport:
        """Give the engine's report; waits for the device. Raises FrameError for a refused frame."""
        if isinstance(self._report, Deferred):
            self._report = self._report.get(self._slot)
        report: SlotReport = self._or_raise(self._report)
        return report

    def _or_raise(self, what: Any) -> Any:
        if self.error is not None:
            raise self.error
        return what

    @property
    @apart
    def output(self) -> Any:
        """The network's result, same structure as model(frame) with a batch of 1.

        Raises: FrameError where the frame was refused.
        """
        if isinstance(self._output, Together):
            self._output = self._output.of(self._slot)
        return self._or_raise(self._output)

    @property
    @apart
    def changed(self) -> Tensor:
        """Published input pixels, bool [H, W]; raises FrameError for a refused frame."""
        return self._mask(self.plan.input)

    @property
    @apart
    def output_changed(self) -> Any:
        """Published output pixels, like `output`; raises FrameError for a refused frame."""
        leaves: list[Any] = []
        for out, whole in zip(self.plan.outputs, self.plan.output_shapes, strict=True):
            leaves.append(self._mask(out) if whole is not None else out)
        return pytree.tree_unflatten(leaves, self.plan.out_spec)

    @property
    @apart
    def active(self) -> dict[str, Tensor] | None:
        """Active sets by step name, where they were asked for; raises FrameError if refused."""
        if self.error is not None or not self._step().record:
            return None
        found = self.report().active
        active = {}
        for i, step in enumerate(self.plan.steps):
            size = self.plan.values[step.output].size
            active[step.name] = found[i] if i in found else self._none(size)
        return active

    @property
    def plan(self) -> Plan:
        """The network as it ran, on the frame or on a window; raises FrameError if refused."""
        return self._step().counted.plan

    def _mask(self, value: int) -> Tensor:
        """Unite the change masks of a value's owners: bool [H, W]."""
        v, changed = self.plan.values[value], self.report().changed
        masks = [changed[owner] for owner in v.owners if owner in changed]
        if not masks:
            return self._none(v.size)
        return functools.reduce(torch.logical_or, masks).expand(v.size)

    def _none(self, size: tuple[int, int]) -> Tensor:
        # numpy's zeros cost nothing until they are read
        return torch.from_numpy(np.zeros(size, np.bool_)).to(self._step().device)

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
        """What statistics are made of; raises FrameError for a refused frame."""
        return Counted(self._step().counted, self.stream)

    @property
    @apart
    def stats(self) -> FrameStats:
        """Counts of this frame; raises FrameError for a refused frame."""
        return self._step().counted.of(self.stream)

    def __repr__(self) -> str:
        return f"Result({self.stream!r}, {self.error or self.stats})"
