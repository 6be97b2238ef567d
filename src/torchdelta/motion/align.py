"""Frames of a moving camera, placed one after the other in a window of a fixed world."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from torchdelta.errors import FrameError
from torchdelta.motion.aligned import Aligned
from torchdelta.motion.choice import Choice, only_shift
from torchdelta.motion.estimate import FOREIGN_LEVELS, SLACK, Estimator, Motion, unknown
from torchdelta.motion.features import follow_near
from torchdelta.motion.homography import (
    Homography,
    Points,
    Size,
    check_homography,
    corners,
    farthest_px,
    inverse,
    scale_of,
    scaled,
    shift,
    stretch,
    through,
    turn_degrees,
)
from torchdelta.motion.thumb import Thumb, misfit
from torchdelta.motion.vectors import Vectors
from torchdelta.motion.warp import Scratch

# a motion of less confidence counts where the pictures fit so much better with it
LEAST_DOUBTFUL, CLEARLY_BETTER = 0.25, 0.8
# with this misfit (grey levels) most of the frame is new in any case: a new reference is as cheap
MOSTLY_NEW_LEVELS = 10.0
# the chain is checked against a frame kept for it every so many frames
REGISTER_EVERY = 8
# on so many smaller pictures: the chain is off by a few pixels at most
LEVELS_FROM_CHAIN = 1
# corrections add up, and noise in few corners tilts: against so many of them, see `fit_near`
UPRIGHT = 10.0
# a correction of more is a wrong one
MOST_CORRECTION_PX = 12.0
# another frame is kept when the camera shows less than this of the one before
LEAST_COMMON = 0.6

RELATIVE_TO = ("previous", "reference")
# one of ANCHORS' names, and the numbers behind it
Why = tuple[str, str]


@dataclass(frozen=True)
class Limits:
    """When a frame becomes a new reference; measured in docs/log/alignment.md.

    scale:      at the frame's centre, that much larger or smaller
    stretch:    in any direction, at the centre and the corners, that much longer or shorter
    turn_degrees: rotation either way;  inside: least share of the frame in the window
    confidence: of a motion that is believed without looking further
    """

    scale: float = 1.25
    stretch: float = 1.5
    turn_degrees: float = 12.0
    inside: float = 0.9
    confidence: float = 0.5


@dataclass(frozen=True)
class _Kept:
    """A frame kept to correct the chain by, and where it lies."""

    thumb: Thumb
    pose: Homography


class Aligner:
    """Places one stream's frames.

    frame, window: (h, w) of frames and of the window;  stride: the plan's total stride (y, x)
    estimator:     None: a homography comes with each frame
    value_range:   of float frames
    """

    def __init__(
        self,
        frame: Size,
        window: Size,
        stride: tuple[int, int],
        estimator: Estimator | None,
        *,
        limits: Limits | None = None,
        value_range: tuple[float, float] = (0.0, 1.0),
    ) -> None:
        self._frame, self._window, self._stride = frame, window, stride
        self._estimator, self._limits = estimator, limits or Limits()
        self._range = value_range
        self.choice = Choice(self._limits.scale, self._limits.turn_degrees)
        self._scratch = Scratch()
        self.reset()

    def reset(self) -> None:
        """Forget everything: the next frame is the reference."""
        self._last: Aligned | None = None
        self._thumb: Thumb | None = None
        self._kept: _Kept | None = None
        self._anchor = np.eye(3)
        self._since_registered = 0
        self._trusted: Homography | None = None
        self._missed = False
        self.choice.reset()
        if self._estimator is not None:
            self._estimator.reset()

    def miss(self) -> None:
        """Take note of a frame that was refused: nobody knows where it lies."""
        self._missed = True

    def place(
        self,
        frame: NDArray[Any] | Tensor,
        *,
        vectors: Vectors | None = None,
        homography: Any = None,
        relative_to: str = "previous",
    ) -> Aligned:
        """Place the stream's next frame.

        frame:      [h, w, C], uint8 or float
        vectors:    the decoder's, for the estimator "codec"
        homography: 3x3, pixel centres of this frame to the previous one (or to the reference frame,
                    the last one whose placement was `anchored`); used instead of an estimate.
                    One that leads to a frame that was missed makes a new reference
        Raises: FrameError for a homography that is none, or that has nothing to refer to; all is as
        before then.
        """
        if tuple(frame.shape[:2]) != self._frame:
            raise FrameError(
                f"frame is {frame.shape[0]}x{frame.shape[1]}, this stream is aligned at "
                f"{self._frame[0]}x{self._frame[1]} (height x width)"
            )
        given = self._check_given(homography, relative_to)
        if given is not None or self._estimator is None:
            placement = self._place_given(given, self._missed and relative_to == "previous")
        else:
            # vectors would lead to the frame that was missed
            vectors = None if self._missed else vectors
            placement = self._place_estimated(Thumb.of(frame, *self._range), vectors)
        self._last, self._missed = placement, False
        return placement

    def _check_given(self, homography: Any, relative_to: str) -> Homography | None:
        """Bring a given homography to "relative to the previous frame"."""
        if relative_to not in RELATIVE_TO:
            raise ValueError(f"relative_to is {relative_to!r}, expected one of {RELATIVE_TO}")
        if homography is None:
            return None
        matrix = check_homography(homography, self._frame)
        if self._last is None or relative_to == "previous":
            return matrix
        return scaled(inverse(self._last.pose) @ self._anchor @ matrix)

    def _place_given(self, given: Homography | None, leads_nowhere: bool) -> Aligned:
        # thumbs of earlier frames would be compared across a gap
        self._thumb = self._kept = self._trusted = None
        if self._last is None:
            return self._anchored(Motion(), "first frame")
        if given is None:
            return self._anchored(unknown("none given"), "no homography")
        if leads_nowhere:
            return self._anchored(unknown("it leads to a frame that was refused"), "refused frame")
        return self._moved(Motion(given))

    def _place_estimated(self, thumb: Thumb, vectors: Vectors | None) -> Aligned:
        previous, self._thumb = self._thumb, thumb
        if self._last is None or previous is None:
            placement = self._anchored(Motion(), "first frame")
        else:
            motion, why = self._motion(previous, thumb, vectors)
            self.choice.look(previous, thumb, motion.homography)
            placement = self._anchored(motion, *why) if why else self._moved(motion)
            self._trusted = motion.homography if motion.confidence else None
        if placement.anchored or self._kept is None or self.choice.shift_only:
            self._keep(placement)
        else:
            placement = self._registered(placement, thumb)
        return placement

    def _motion(
        self, previous: Thumb, current: Thumb, vectors: Vectors | None
    ) -> tuple[Motion, Why | None]:
        """Estimate the motion; where it is doubtful, choose what makes the pictures fit.

        returns: the motion to go on with, and why to begin anew instead
        """
        assert self._estimator is not None
        motion = self._estimator.estimate(previous, current, vectors)
        motion = replace(motion, estimator=motion.estimator or self._estimator.name)
        if motion.confidence >= self._limits.confidence:
            return motion, None
        still = misfit(previous, current, np.eye(3))
        candidates = [(still, np.eye(3))]
        if motion.confidence >= LEAST_DOUBTFUL:
            candidates.append((misfit(previous, current, motion.homography), motion.homography))
        if self._trusted is not None:
            candidates.append((misfit(previous, current, self._trusted), self._trusted))
        best, homography = min(candidates, key=lambda candidate: candidate[0])
        if best > CLEARLY_BETTER * still:
            best, homography = still, np.eye(3)
        doubt = replace(motion, homography=homography)
        if best > FOREIGN_LEVELS:
            return doubt, ("scene cut", f"{best:.0f} grey levels differ")
        if best > MOSTLY_NEW_LEVELS:
            return doubt, ("low confidence", f"{motion.confidence:.2f}: {motion.reason}")
        return doubt, None

    def _moved(self, motion: Motion) -> Aligned:
        assert self._last is not None
        followed = motion.homography
        if self.choice.shift_only:
            followed = only_shift(followed, self._frame)
        pose = scaled(self._last.pose @ followed)
        why = self._too_far(pose)
        if why is not None:
            return self._anchored(motion, *why)
        return self._placed(pose, motion)

    def _too_far(self, pose: Homography) -> Why | None:
        """Say why a pose calls for a new reference."""
        depths = corners(self._frame) @ pose[2, :2] + 1
        if not np.isfinite(pose).all() or not (depths > 0).all():
            return "singular pose", f"depths at the corners {depths.round(2).tolist()}"
        limits, scale = self._limits, scale_of(pose, self._frame)
        least, most = stretch(pose, self._frame)
        turn = turn_degrees(pose, self._frame)
        if not 1 / limits.scale <= scale <= limits.scale:
            return "scale", f"{scale:.2f}, kept within {limits.scale:g} either way"
        if not (1 / limits.stretch <= least and most <= limits.stretch):
            said = f"{least:.2f} to {most:.2f}, kept within {limits.stretch:g} either way"
            return "stretch", said
        if abs(turn) > limits.turn_degrees:
            return "rotation", f"{turn:.1f} degrees, kept within {limits.turn_degrees:g}"
        return None

    def _placed(self, pose: Homography, motion: Motion) -> Aligned:
        """Place the frame at a pose, with the window moved where it must."""
        assert self._last is not None
        quad = through(pose, corners(self._frame))
        origin = self._last.origin
        top = _origin(origin[0], quad[:, 1], self._window[0], self._stride[0])
        left = _origin(origin[1], quad[:, 0], self._window[1], self._stride[1])
        moved = (top - origin[0], left - origin[1])
        if abs(moved[0]) >= self._window[0] or abs(moved[1]) >= self._window[1]:
            far_px = farthest_px(motion.homography, self._frame)
            return self._anchored(motion, "jump", f"by {far_px:.0f} px")
        inside = inside_share(quad - (left, top), self._window)
        if inside < self._limits.inside:
            return self._anchored(motion, "outside the window", f"{inside:.0%} of the frame inside")
        return Aligned(
            self._frame, self._window, pose, (top, left), moved, motion=motion,
            scratch=self._scratch,
        )  # fmt: skip

    def _anchored(self, motion: Motion, why: str, detail: str | None = None) -> Aligned:
        """Make the frame the reference, in the middle of a new window."""
        room = [w - f for w, f in zip(self._window, self._frame, strict=True)]
        self._anchor = shift(room[1] // 2, room[0] // 2)
        self._kept = None
        return Aligned(
            self._frame, self._window, self._anchor, anchored=why, detail=detail, motion=motion,
            scratch=self._scratch,
        )  # fmt: skip

    def _keep(self, placement: Aligned) -> None:
        assert self._thumb is not None
        self._kept, self._since_registered = _Kept(self._thumb, placement.pose), 0

    def _registered(self, placement: Aligned, thumb: Thumb) -> Aligned:
        """Correct what the chain has drifted by, against a frame kept for that."""
        assert self._kept is not None
        self._since_registered += 1
        if self._since_registered < REGISTER_EVERY:
            return placement
        self._since_registered = 0
        chained = scaled(inverse(self._kept.pose) @ placement.pose)
        kept = self._kept
        found = follow_near(kept.thumb, thumb, chained, LEVELS_FROM_CHAIN, UPRIGHT)
        if found is not None and misfit(kept.thumb, thumb, found) > SLACK * misfit(
            kept.thumb, thumb, chained
        ):
            found = None
        if found is not None:
            pose = scaled(kept.pose @ found)
            off = scaled(inverse(placement.pose) @ pose)
            if farthest_px(off, self._frame) <= MOST_CORRECTION_PX and self._too_far(pose) is None:
                placement = self._placed(pose, placement.motion)
        common = inside_share(through(chained, corners(self._frame)), self._frame)
        if common < LEAST_COMMON or found is None:
            self._keep(placement)
        return placement


def inside_share(quad: Points, size: Size) -> float:
    """Give the share of a convex quadrilateral [4, 2] (x, y) that lies in a picture of a size."""
    if (quad >= -0.5).all() and (quad <= (size[1] - 0.5, size[0] - 0.5)).all():
        return 1.0
    whole = _area(quad)
    # Sutherland and Hodgman: cut by one edge of the picture after the other
    for axis, edge, sign in ((0, -0.5, 1), (1, -0.5, 1), (0, size[1] - 0.5, -1),
                             (1, size[0] - 0.5, -1)):  # fmt: skip
        beyond = sign * (quad[:, axis] - edge)
        cut: list[NDArray[np.float64]] = []
        for i in range(len(quad)):
            j = (i + 1) % len(quad)
            if beyond[i] >= 0:
                cut.append(quad[i])
            if (beyond[i] >= 0) != (beyond[j] >= 0):
                cut.append(quad[i] + (quad[j] - quad[i]) * beyond[i] / (beyond[i] - beyond[j]))
        if len(cut) < 3:
            return 0.0
        quad = np.array(cut)
    return _area(quad) / whole


def _area(polygon: Points) -> float:
    x, y = polygon.T
    return abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2


def _origin(now: int, along: NDArray[np.float64], window: int, stride: int) -> int:
    """Choose the window's corner on one axis: as it is while the frame fits, else centred anew.

    along: the frame's corners on the axis, world pixels
    """
    low, high = float(along.min()), float(along.max())
    # a hair of the frame may stick out: rounding is no reason to move
    if now - 0.01 <= low and high <= now + window - 1 + 0.01:
        return now
    middle = (low + high + 1 - window) / 2
    if high - low > window - 1:
        # larger than the window: moved only where it shows more of the frame by half a stride
        return now if abs(now - middle) <= stride else round(middle / stride) * stride
    least = int(np.ceil((high - window + 1 - 0.01) / stride)) * stride
    most = int(np.floor((low + 0.01) / stride)) * stride
    return min(max(round(middle / stride) * stride, least), most)
