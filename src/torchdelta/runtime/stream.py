"""What a session knows of one stream."""

from __future__ import annotations

from dataclasses import dataclass

from torchdelta.errors import FrameError
from torchdelta.runtime.stats import StreamStats
from torchdelta.runtime.windows import Placement

AT_REST = Placement((0, 0))


@dataclass(eq=False, slots=True)
class Stream:
    """One stream of a session, from its first frame or its last reset on.

    slot:   where its state is
    stats:  its statistics;  frames: how many it has had
    tolerance: of its gates, from its next frame on
    full:   why everything is computed anew at its next frame; None: it goes on as before
    rest:   where its window lies while nothing is said of it; of a stream that goes on
    kept:   whether its window has moved with border="keep" since everything was computed anew
    late:   what a device has said of an earlier frame, which nobody has been told yet
    """

    name: str
    slot: int
    stats: StreamStats
    tolerance: float
    full: str | None
    frames: int = 0
    rest: Placement = AT_REST
    kept: bool = False
    late: FrameError | None = None
