"""Cameras of which it is known how they move: homographies come with their frames."""

from __future__ import annotations

from dataclasses import replace

from torchdelta.motion.homography import check_homography
from torchdelta.runtime.placement.base import Arrival
from torchdelta.runtime.placement.followed import Followed
from torchdelta.runtime.placement.world import World
from torchdelta.runtime.standing import Standing


class Given(Followed):
    """Follows a camera by the homographies that come with its frames."""

    def __init__(self, world: World) -> None:
        super().__init__(world, "given")

    def check(self, stream: Standing, arrival: Arrival) -> Arrival:
        """Check a frame and what came with it; changes nothing."""
        checked = super().check(stream, arrival)
        if arrival.homography is None:
            return checked
        homography = check_homography(arrival.homography, self._world.still.plan.size)
        return replace(checked, homography=homography)
