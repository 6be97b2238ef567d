"""Whether frames follow the camera's whole motion, or only its shift."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from torchdelta.motion.homography import (
    Homography,
    Size,
    scale_of,
    scaled,
    shift,
    through,
    turn_degrees,
)
from torchdelta.motion.thumb import Thumb, differing_share

# looked at every so many frames, averaged with this weight for the newest
LOOK_EVERY, NEWEST = 4, 0.3
# of scale and rotation, frame by frame: long enough for swings to cancel
NEWEST_RATE = 0.08
# before so many looks nothing is known
LEAST_LOOKS = 2
# the other way must be cheaper by this share of the frame
CLEARLY_CHEAPER = 0.01


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
        self._begin()

    def _begin(self, earlier: Thumb | None = None) -> None:
        """Chain motions from here on, to compare with this frame at the next look."""
        self._earlier = earlier
        self._chains = {"followed": np.eye(3), "shifted": np.eye(3)}

    @property
    def costs(self) -> Costs | None:
        """What either way costs, once there is enough to tell."""
        return self._costs if self._looks >= LEAST_LOOKS else None

    def look(self, previous: Thumb, current: Thumb, homography: Homography) -> None:
        """Take a frame's motion into account."""
        size = current.size
        self._zoom = _mean(
            self._zoom, math.log(scale_of(homography, size)), self._frames, NEWEST_RATE
        )
        self._turn = _mean(self._turn, turn_degrees(homography, size), self._frames, NEWEST_RATE)
        self._frames += 1
        ways = {"followed": homography, "shifted": only_shift(homography, size)}
        if self._earlier is None:
            self._begin(previous)
        for name, way in ways.items():
            self._chains[name] = scaled(self._chains[name] @ way)
        if self._frames % LOOK_EVERY:
            return
        costs, earlier = self._costs, self._earlier
        assert earlier is not None
        for name, way in ways.items():
            # what a way misses may be little in a frame, and add up over several
            share = max(
                differing_share(previous, current, way),
                differing_share(earlier, current, self._chains[name]) / LOOK_EVERY,
            )
            setattr(costs, name, _mean(getattr(costs, name), share, self._looks))
        still = differing_share(previous, current, np.eye(3))
        costs.still = _mean(costs.still, still, self._looks)
        self._begin(current)
        scale, turn = self._limits
        costs.anchors = max(abs(self._zoom) / scale, abs(self._turn) / turn)
        self._looks += 1
        if self._looks < LEAST_LOOKS:
            return
        followed = costs.followed + costs.anchors
        slack = CLEARLY_CHEAPER if self.shift_only else -CLEARLY_CHEAPER
        self.shift_only = costs.shifted < followed + slack


def _mean(so_far: float, new: float, count: int, newest: float = NEWEST) -> float:
    weight = max(newest, 1 / (count + 1))
    return (1 - weight) * so_far + weight * new


def only_shift(homography: Homography, size: Size) -> Homography:
    """Take of a motion how far the frame's centre moves."""
    h, w = size
    centre = np.array([[(w - 1) / 2, (h - 1) / 2]])
    dx, dy = (through(homography, centre) - centre)[0]
    return shift(float(dx), float(dy))
