"""Whether frames follow the camera's whole motion, or only its shift."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from torchdelta.motion.homography import Homography, Size, scale_of, shift, through, turn_degrees
from torchdelta.motion.thumb import Thumb, differing_share

# looked at every so many frames, averaged with this weight for the newest
LOOK_EVERY, NEWEST = 3, 0.3
# before so many looks nothing is known
LEAST_LOOKS = 3
# the other way must be cheaper by this factor
CLEARLY_CHEAPER = 0.9


@dataclass
class Costs:
    """Shares of the frame that are computed anew, on average.

    followed: with the whole motion;  shifted: with its shift alone;  still: with none
    anchors:  share of the frames that become references, with the whole motion: each costs a frame
    """

    followed: float = 0.0
    shifted: float = 0.0
    still: float = 0.0
    anchors: float = 0.0

    @property
    def least(self) -> float:
        """The cost of the better way to align."""
        return min(self.followed + self.anchors, self.shifted)


class Choice:
    """Weighs, for one stream, new references against what a mere shift leaves changed.

    A camera that drives forward zooms without end: frames that follow it leave the limits of scale
    every few frames, and each new reference costs a whole frame.

    shift_only: whether the shift alone is cheaper;  costs: None before there is enough to tell
    """

    def __init__(self, scale: float, turn: float) -> None:
        """Take the limits of a pose: the greatest scale, and rotation in degrees."""
        self._limits = math.log(scale), turn
        self.reset()

    def reset(self) -> None:
        """Forget what was seen."""
        self.shift_only = False
        self._costs, self._looks, self._frames = Costs(), 0, 0
        # per frame, averaged: of swings that cancel little remains
        self._zoom = self._turn = 0.0

    @property
    def costs(self) -> Costs | None:
        """What either way costs, once there is enough to tell."""
        return self._costs if self._looks >= LEAST_LOOKS else None

    def look(self, previous: Thumb, current: Thumb, homography: Homography) -> None:
        """Take a frame's motion into account."""
        size = current.size
        self._zoom = _mean(self._zoom, math.log(scale_of(homography, size)), self._frames)
        self._turn = _mean(self._turn, turn_degrees(homography, size), self._frames)
        self._frames += 1
        if self._frames % LOOK_EVERY:
            return
        costs = self._costs
        for name, motion in (
            ("followed", homography),
            ("shifted", only_shift(homography, size)),
            ("still", np.eye(3)),
        ):
            share = differing_share(previous, current, motion)
            setattr(costs, name, _mean(getattr(costs, name), share, self._looks))
        scale, turn = self._limits
        costs.anchors = max(abs(self._zoom) / scale, abs(self._turn) / turn)
        self._looks += 1
        if self._looks < LEAST_LOOKS:
            return
        followed = costs.followed + costs.anchors
        if self.shift_only:
            self.shift_only = followed > CLEARLY_CHEAPER * costs.shifted
        else:
            self.shift_only = costs.shifted < CLEARLY_CHEAPER * followed


def _mean(so_far: Any, new: Any, count: int) -> Any:
    weight = max(NEWEST, 1 / (count + 1))
    return (1 - weight) * so_far + weight * new


def only_shift(homography: Homography, size: Size) -> Homography:
    """Take of a motion how far the frame's centre moves."""
    h, w = size
    centre = np.array([[(w - 1) / 2, (h - 1) / 2]])
    dx, dy = (through(homography, centre) - centre)[0]
    return shift(float(dx), float(dy))
