"""Cameras that stand still, or whose windows the caller places: the network runs on the frame."""

from __future__ import annotations

from torchdelta.engines import Engine
from torchdelta.runtime.frames import check_frame
from torchdelta.runtime.placement.base import Arrival, Placed, Placement
from torchdelta.runtime.standing import Standing
from torchdelta.runtime.windows import place


class Fixed(Placement):
    """Frames lie in the window as they are; where that lies the caller may say."""

    followed = False

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def begin(self) -> bool:
        """Begin a turn: nothing is to be done."""
        return True

    def check(self, stream: Standing, arrival: Arrival) -> Arrival:
        """Check a frame, its region of interest and its window; changes nothing."""
        engine, full = self._engine, stream.full is not None
        if full or arrival.window is not None or arrival.roi is not None:
            at = place(
                engine.plan, engine.device, stream.rest.origin, arrival.window, arrival.roi,
                whole=full,
            )  # fmt: skip
        else:
            at = stream.rest
        # where everything is computed anew, or the window moved, the frame is looked at in any
        # case: there is no state to fall back to
        stays = not full and at.move is None and at.jump is None
        frame = check_frame(
            arrival.frame, engine.plan, engine.device, engine.dtype,
            trust_device=engine.asynchronous and stays,
        )  # fmt: skip
        arrival.frame, arrival.position = frame, at
        return arrival

    def place(self, stream: Standing, arrival: Arrival) -> Placed:
        """Bring a frame to where the engine takes it."""
        assert arrival.position is not None
        frame = arrival.frame.permute(2, 0, 1)
        on_device = frame if self._engine.asynchronous else frame.to(self._engine.device)
        return Placed(on_device, arrival.position)
