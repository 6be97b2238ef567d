"""What a session knows of one stream."""

from __future__ import annotations

from dataclasses import dataclass

from torchdelta.errors import FrameError
from torchdelta.runtime.canvas import Canvas
from torchdelta.runtime.placement import Motion, Placement
from torchdelta.runtime.standing import Standing
from torchdelta.runtime.stats import StreamStats


@dataclass(eq=False, slots=True)
class Stream(Standing):
    """One stream of a session, from its first frame or its last reset on (see `Standing`, too).

    motion: the name of its placement, as it was asked for
    placement: how its frames lie in its window
    stats:  its statistics;  frames: how many it has had
    tolerance: of its gates, from its next frame on
    canvas: what its last frame ran on
    late:   what a device has said of an earlier frame, which nobody has been told yet
    """

    motion: Motion
    placement: Placement
    stats: StreamStats
    tolerance: float
    canvas: Canvas | None = None
    frames: int = 0
    late: FrameError | None = None
