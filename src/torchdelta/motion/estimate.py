"""How the camera moved between two frames: the interface, and the choice of an estimator."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from torchdelta.motion.homography import Homography, farthest_px
from torchdelta.motion.thumb import Thumb, misfit
from torchdelta.motion.vectors import Vectors

# a motion is believed where it explains the frame better than none does: grey levels, factor
SLACK_LEVELS, SLACK = 0.1, 1.02
# what moves less is called standing still
STILL_PX = 0.3
# misfit, in grey levels, beyond which one frame does not show what the other does
FOREIGN_LEVELS = 20.0


@dataclass(frozen=True)
class Motion:
    """How the camera moved since the previous frame.

    homography: float64 [3, 3], pixel centres (x, y, 1) of this frame to those of the previous one
    confidence: 0..1; 0 comes with the identity
    reason:     why the confidence is what it is, where it is low or the estimate was not used
    estimator:  what estimated it ("features", "codec", "translation"); None where nothing did
    fallback:   why "codec" followed corners instead of the decoder's vectors, None where it did not
    """

    homography: Homography = field(default_factory=lambda: np.eye(3))
    confidence: float = 1.0
    reason: str | None = None
    estimator: str | None = None
    fallback: str | None = None


def unknown(reason: str) -> Motion:
    """Say that nothing is known about the motion."""
    return Motion(np.eye(3), 0.0, reason)


class Estimator(ABC):
    """Estimates the motion of one stream's camera, frame by frame; keeps what helps the next."""

    name: ClassVar[str]

    @abstractmethod
    def estimate(self, previous: Thumb, current: Thumb, vectors: Vectors | None = None) -> Motion:
        """Estimate the motion from the current frame back to the previous one.

        vectors: the decoder's motion vectors of the current frame, where the source has them
        """

    def reset(self) -> None:  # noqa: B027 (most have nothing to forget)
        """Forget earlier frames."""


def verified(motion: Motion, previous: Thumb, current: Thumb) -> Motion:
    """Believe a motion only where the pictures agree: better than with none, and at all."""
    if motion.confidence == 0 or farthest_px(motion.homography, current.size) < STILL_PX:
        return motion
    moved = misfit(previous, current, motion.homography)
    return judged(motion, moved, misfit(previous, current, np.eye(3)))


def judged(motion: Motion, moved: float, still: float) -> Motion:
    """Do what `verified` does, with the misfits (grey levels) of the motion and of none."""
    if moved > SLACK * still + SLACK_LEVELS:
        return unknown(
            f"the pictures differ by {moved:.1f} grey levels with the motion found, by {still:.1f} "
            "without"
        )
    if moved > FOREIGN_LEVELS:
        return unknown(f"the pictures differ by {moved:.1f} grey levels with the motion found")
    return motion
