"""What a session knows of one stream."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torchdelta.errors import FrameError
from torchdelta.runtime.stats import StreamStats
from torchdelta.runtime.windows import Position

if TYPE_CHECKING:
    from torchdelta.runtime.canvas import Canvas
    from torchdelta.runtime.placement import Motion, Placement

AT_REST = Position((0, 0))


@dataclass(eq=False, slots=True)
class Stream:
    """One stream of a session, from its first frame or its last reset on.

    slot:   where its state is, on either canvas
    motion: the name of its placement, as it was asked for
    placement: how its frames lie in its window
    stats:  its statistics;  frames: how many it has had
    tolerance: of its gates, from its next frame on
    full:   why everything is computed anew at its next frame; None: it goes on as before
    canvas: what its last frame ran on
    rest:   where its window lies while nothing is said of it; of a stream that goes on
    kept:   whether its window has moved with border="keep" since everything was computed anew
    late:   what a device has said of an earlier frame, which nobody has been told yet
    """

    name: str
    slot: int
    motion: Motion
    placement: Placement
    stats: StreamStats
    tolerance: float
    full: str | None
    canvas: Canvas | None = None
    frames: int = 0
    rest: Position = AT_REST
    kept: bool = False
    late: FrameError | None = None

    def begin_anew(self, reason: str) -> None:
        """Have everything computed anew at the next frame, in a window at the world's corner."""
        self.full, self.rest = reason, AT_REST
