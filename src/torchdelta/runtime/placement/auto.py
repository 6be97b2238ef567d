"""Cameras that are followed while that pays (`Watch` decides)."""

from __future__ import annotations

import time

from torchdelta.runtime.placement.base import Arrival, Placed, Placement, Ran
from torchdelta.runtime.placement.fixed import Fixed
from torchdelta.runtime.placement.followed import ESTIMATORS, Followed, check_extras
from torchdelta.runtime.placement.watch import Watch
from torchdelta.runtime.placement.world import World
from torchdelta.runtime.standing import Standing
from torchdelta.runtime.windows import check_mask

THE_CAMERA_MOVES = "the camera moves"


class Auto(Placement):
    """Runs on frames, or on windows while the camera moves and following it pays.

    grains: of the input gate's cells while it stands still and while it is followed, pixels
    """

    def __init__(self, world: World, grains: tuple[int, ...]) -> None:
        self._world, self._fixed = world, Fixed(world.still)
        self._following: Followed | None = None
        self._watch = Watch(ESTIMATORS["auto"](), world.growth, world.value_range, grains)

    @property
    def followed(self) -> bool:
        """Whether the camera is followed now."""
        return self._following is not None

    def begin(self) -> bool:
        """Begin a turn; says whether nothing is to be looked at."""
        if self._following is not None:
            return False
        self._watch.begin()
        return not self._watch.suspicious

    def check(self, stream: Standing, arrival: Arrival) -> Arrival:
        """Check what came; changes nothing."""
        if self._following is not None:
            return self._following.check(stream, arrival)
        check_extras(arrival)
        checked = self._fixed.check(stream, arrival)
        if checked.roi is not None:
            still = self._world.still
            checked.roi = check_mask("roi", checked.roi, still.plan, still.device)
        return checked

    def place(self, stream: Standing, arrival: Arrival) -> Placed:
        """Place a frame; from here on in windows, if its camera turns out to move."""
        look_ms = 0.0 if self._following is not None else self._look(stream, arrival)
        placed = (self._following or self._fixed).place(stream, arrival)
        return placed._replace(spent_ms=placed.spent_ms + look_ms) if look_ms else placed

    def _look(self, stream: Standing, arrival: Arrival) -> float:
        """Follow the camera from this frame on if it moves; returns ms spent looking at it."""
        watch, world = self._watch, self._world
        # a look that begins now would be over too early
        early = world.making is not None and not world.ready() and not watch.looking
        if world.refusal is not None or not watch.suspicious or early:
            return 0.0
        known, begin = watch.slow, time.perf_counter()
        wanted = watch.look(arrival.frame, arrival.vectors)
        look_ms = (time.perf_counter() - begin) * 1e3
        if watch.slow is not None and known is None:
            world.notes.append(
                f"stream {stream.name!r}: its camera moves and is not followed: {watch.slow}"
            )
        if wanted and world.ready():
            self._following = Followed(world, "auto")
            stream.begin_anew(THE_CAMERA_MOVES)
        return look_ms

    def ran(self, stream: Standing, result: Ran) -> None:
        """Take note of what a frame gave; the camera may be followed no longer."""
        if result.error is not None:
            return
        if self._following is None:
            self._watch.saw(result.counted)
            return
        assert result.aligned is not None
        reason = self._watch.rests(self._following.aligner, result.aligned, result.counted)
        if reason is not None:
            self._following = None
            stream.begin_anew(reason)

    def missed(self) -> None:
        """Take note of a frame that was refused."""
        if self._following is not None:
            self._following.missed()
