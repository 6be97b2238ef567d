"""What a stream's next frame must do, and where its window lies."""

from __future__ import annotations

from dataclasses import dataclass, field

from torchdelta.runtime.windows import Position

AT_REST = Position((0, 0))


@dataclass(eq=False, slots=True)
class Standing:
    """How a stream stands before its next frame; placements read and change it.

    slot:   where its state is, on either canvas
    full:   why everything is computed anew at its next frame; None: it goes on as before
    rest:   where its window lies while nothing is said of it; of a stream that goes on
    kept:   whether its window has moved with border="keep" since everything was computed anew
    """

    name: str
    slot: int
    full: str | None
    rest: Position = field(default=AT_REST, kw_only=True)
    kept: bool = field(default=False, kw_only=True)

    def begin_anew(self, reason: str) -> None:
        """Have everything computed anew at the next frame, in a window at the world's corner."""
        self.full, self.rest = reason, AT_REST
