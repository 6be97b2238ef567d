"""What one stream's frame gave."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from torchdelta.apart import apart
from torchdelta.engines import Reports, SlotReport
from torchdelta.errors import TorchdeltaError
from torchdelta.motion.aligned import Aligned, Array
from torchdelta.motion.homography import Points
from torchdelta.motion.warp import Scratch
from torchdelta.ops.base import Size
from torchdelta.plan import Plan
from torchdelta.runtime.frames import picture_of
from torchdelta.runtime.outputs import Together
from torchdelta.runtime.stats import FrameStats
from torchdelta.runtime.uncounted import Counted, CountedStep
from torchdelta.videoframe import VideoFrame


class StepFrames(NamedTuple):
    """What the results of one step share.

    record: whether active sets were asked for;  draw: turns one of them into a picture
    """

    counted: CountedStep
    reports: Reports
    device: torch.device
    record: bool
    draw: Callable[[Result], Any] | None


class Result:
    """What one stream's frame gave.

    Of a refused frame all but `stream`, `frame`, `pts_s` and `error` is None; `unwrap` raises the
    error. A result can be pickled and copied; what comes out has all but `frame`, `plan` and
    `counted`.

    stream:         its name
    frame:          its picture, as it was given and no copy of it: numpy [H, W, C] or tensor
                    [C, H, W]
    pts_s:          when it is shown in its source, seconds; None where nothing is known of that
    error:          why the frame was refused, else None; the stream's state is then as it was. At
                    the end of a damaged source `CompiledModel.run` says so here (SourceError)
    ok:             whether it was not refused
    changed:        bool [H, W], the input pixels that were published
    output_changed: like `output`, a bool [Ho, Wo] mask per tensor ([1, 1] for what is no map)
    active:         bool [Ho, Wo] per step name, where `record=True` asked for it, else None
    origin:         (y, x), the corner of the stream's window in the world; masks and outputs are in
                    the window's coordinates; `to_frame_points` and its like lead back. None of a
                    refused frame, like all else
    aligned:        where the frame lies in the window; None where the camera is not followed
    stats:          changed input, MAC share and time of this frame
    """

    __slots__ = (
        "__weakref__", "_frames", "_kept", "_output", "_slot", "aligned", "error", "given",
        "origin", "stream",
    )  # fmt: skip

    def __init__(
        self,
        stream: str,
        slot: int = 0,
        frames: StepFrames | None = None,
        output: Any = None,
        origin: Size | None = None,
        *,
        error: TorchdeltaError | None = None,
    ) -> None:
        """Take what a step gave for a slot; all of it is put together when it is read."""
        self.stream, self.error, self.origin = stream, error, origin
        self.aligned: Aligned | None = None
        # what the session was given
        self.given: Any = None
        self._slot, self._frames, self._output = slot, frames, output
        # of a result that was pickled: what it held, by name
        self._kept: dict[str, Any] | None = None

    @property
    def ok(self) -> bool:
        """Whether the frame was not refused."""
        return self.error is None

    @property
    def frame(self) -> Any:
        """The frame's picture, as it was given; None once pickled."""
        return picture_of(self.given)

    @property
    def pts_s(self) -> float | None:
        """When the frame is shown in its source, seconds; None where nothing is known of that."""
        return self.given.pts_s if isinstance(self.given, VideoFrame) else None

    def unwrap(self) -> Any:
        """Give the output. Raises: the error where the frame was refused."""
        if self.error is not None:
            raise self.error
        return self.output

    def _step(self) -> StepFrames:
        if self.error is not None:
            raise self.error
        if self._frames is None:
            raise TypeError(
                "a result that was pickled or copied has left its session's plan behind"
            )
        return self._frames

    @apart
    def report(self) -> SlotReport:
        """Give the engine's report; waits for the device. Raises FrameError for a refused frame."""
        return self._step().reports.get(self._slot)

    def _get(self, name: str, make: Callable[[], Any]) -> Any:
        """Give what a property holds: None of a refused frame, what was pickled, or what it is."""
        if self.error is not None:
            return None
        return make() if self._kept is None else self._kept[name]

    @property
    @apart
    def output(self) -> Any:
        """The network's result, same structure as model(frame) with a batch of 1."""
        return self._get("output", self._make_output)

    def _make_output(self) -> Any:
        if isinstance(self._output, Together):
            self._output = self._output.of(self._slot)
        return self._output

    @property
    @apart
    def changed(self) -> Tensor | Any:
        """Published input pixels, bool [H, W]."""
        return self._get("changed", lambda: self._mask(self._plan.input))

    @property
    @apart
    def output_changed(self) -> Any:
        """Published output pixels, like `output`."""
        return self._get("output_changed", self._make_output_changed)

    def _make_output_changed(self) -> Any:
        plan = self._plan
        leaves: list[Any] = []
        for out, whole in zip(plan.outputs, plan.output_shapes, strict=True):
            leaves.append(self._mask(out) if whole is not None else out)
        return pytree.tree_unflatten(leaves, plan.out_spec)

    @property
    @apart
    def active(self) -> dict[str, Tensor] | None:
        """Active sets by step name, where they were asked for."""
        found: dict[str, Tensor] | None = self._get("active", self._make_active)
        return found

    def _make_active(self) -> dict[str, Tensor] | None:
        if not self._step().record:
            return None
        found, plan = self.report().active, self._plan
        active = {}
        for i, step in enumerate(plan.steps):
            size = plan.values[step.output].size
            active[step.name] = found[i] if i in found else self._none(size)
        return active

    @property
    def plan(self) -> Plan | Any:
        """The network as it ran, a `Plan` of the frame or of a window; None once pickled."""
        return None if self._frames is None else self._plan

    @property
    def _plan(self) -> Plan:
        return self._step().counted.plan

    def _mask(self, value: int) -> Tensor:
        """Unite the change masks of a value's owners: bool [H, W]."""
        v, changed = self._plan.values[value], self.report().changed
        masks = [changed[owner] for owner in v.owners if owner in changed]
        if not masks:
            return self._none(v.size)
        return functools.reduce(torch.logical_or, masks).expand(v.size)

    def _none(self, size: tuple[int, int]) -> Tensor:
        # numpy's zeros cost nothing until they are read
        return torch.from_numpy(np.zeros(size, np.bool_)).to(self._step().device)

    def plot(self) -> np.ndarray:
        """Draw the result on its frame: uint8 [H, W, 3] RGB, of the frame's size.

        Where the network's task is known (`compile(task=…)`) that is what it says: names of
        classes, colours of pixels, a picture. Else it is where the network computed, as colours
        over the grey frame, which takes `record=True`. Of a camera that is followed all is brought
        back into the frame.
        Raises: the frame's error where it was refused; ModelError where the output is none of the
        task's; ValueError where active sets are missing.
        """
        draw = self._step().draw
        if draw is None:
            raise ValueError("this session knows no network to draw for; open it with fast.session")
        picture: np.ndarray = draw(self)
        return picture

    def _placed(self) -> Aligned:
        if self.error is not None:
            raise self.error
        size: Size = self._get("size", lambda: self._plan.size)
        return self.aligned or Aligned(size, size)

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
    def counted(self) -> Counted | Any:
        """What statistics are made of, a `Counted`; None once pickled."""
        return None if self._frames is None else Counted(self._frames.counted, self.stream)

    @property
    @apart
    def stats(self) -> FrameStats | Any:
        """Counts of this frame, a `FrameStats`."""
        return self._get("stats", lambda: self._step().counted.of(self.stream))

    @apart
    def __getstate__(self) -> dict[str, Any]:
        aligned, kept = self.aligned, None
        if aligned is not None:
            aligned = replace(aligned, scratch=Scratch())
        if self.error is None:
            kept = {name: _compact(getattr(self, name)) for name in KEPT}
            kept["size"] = self._get("size", lambda: self._plan.size)
        return {
            "stream": self.stream, "error": self.error, "origin": self.origin, "aligned": aligned,
            "_kept": kept, "given": VideoFrame(None, self.pts_s),
        }  # fmt: skip

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self._slot, self._frames, self._output = 0, None, None
        for name, value in state.items():
            setattr(self, name, value)

    def __repr__(self) -> str:
        return f"Result({self.stream!r}, {self.error or self.stats})"


# what is left of a result that is pickled, beside `size`, of what ran
KEPT = ("output", "changed", "output_changed", "active", "stats")


def _compact(tree: Any) -> Any:
    """Copy the tensors of a tree: pickled views bring along all that they look at."""
    return pytree.tree_map(
        lambda leaf: (
            leaf.clone(memory_format=torch.contiguous_format) if isinstance(leaf, Tensor) else leaf
        ),
        tree,
    )
