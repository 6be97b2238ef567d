"""Motion from corners followed by optical flow (Shi-Tomasi corners, pyramidal Lucas-Kanade)."""

from __future__ import annotations

from typing import ClassVar

import cv2
import numpy as np
from numpy.typing import NDArray

from torchdelta.motion.corners import best_corners, cells_of
from torchdelta.motion.estimate import Estimator, Motion, unknown, verified
from torchdelta.motion.fit import Flags, fit, fit_near
from torchdelta.motion.homography import Homography, farthest_px, inverse, resized, through
from torchdelta.motion.thumb import Grey, Thumb
from torchdelta.motion.vectors import Vectors

# one corner per cell, so that no part of the picture outvotes the others; pixels of the small one
CELL_PX = 24
# least eigenvalue of the structure around a corner that is believed, in OpenCV's units for 8-bit
# pictures: noise of 1.5 grey levels stays below, on an even slope as well
LEAST_TEXTURE = 4e-4
WINDOW, LEVELS = (17, 17), 3
STOP = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 12, 0.02)
# a corner followed there and back must end where it began
BACK_PX = 0.5
# how far a corner that agrees may lie off
OFF_PX = 0.75
# corners that do not move are left out where the others agree on a motion
STILL_CORNER_PX = 0.25
# cells that did not fit stay out for some frames, unless most did not
KEPT, LEAST_KEPT = 0.7, 0.3
LEAST_AGREEING = 0.5

Cells = NDArray[np.float32]


class Features(Estimator):
    """Corners balanced over the picture, followed there and back, and a homography of them."""

    name: ClassVar[str] = "features"

    def __init__(self) -> None:
        self._last: Homography | None = None
        self._unfit: Cells | None = None

    def reset(self) -> None:
        """Forget the last motion and the cells that did not fit."""
        self._last = self._unfit = None

    def estimate(self, previous: Thumb, current: Thumb, vectors: Vectors | None = None) -> Motion:
        """Estimate the motion from the current frame back to the previous one."""
        start, cells = self._corners(previous.fine)
        end, back, texture = self._follow(previous.fine, current.fine, start)
        tried = int(np.count_nonzero(texture >= LEAST_TEXTURE))
        if tried == 0:
            return self._lost("no texture to follow")
        good = (np.linalg.norm(back - start, axis=1) <= BACK_PX) & (texture >= LEAST_TEXTURE)
        start, end, cells = start[good], end[good], cells[good]
        size = current.fine.shape
        found = fit(end, start, OFF_PX, size)
        if found is None:
            return self._lost(f"{len(start)} of {tried} corners could be followed")
        homography, agree = without_still(end, start, found, OFF_PX, size)
        self._remember(cells, agree)
        share = float(agree.mean())
        # where most corners were lost, those that are left say little
        confidence = share * min(1.0, 2 * len(start) / tried)
        said = None
        if confidence < LEAST_AGREEING:
            said = f"{int(agree.sum())} of {tried} corners agree"
        motion = Motion(resized(homography, size, current.size), confidence, said)
        motion = verified(motion, previous, current)
        self._last = homography if motion.confidence else None
        return motion

    def _lost(self, reason: str) -> Motion:
        self.reset()
        return unknown(reason)

    def _corners(self, grey: Grey) -> tuple[NDArray[np.float32], NDArray[np.intp]]:
        """Find the best corner of each cell that fitted: [n, 2] (x, y) and the cells' indices."""
        points, cells = best_corners(grey, CELL_PX)
        h, w = cells_of(grey.shape, CELL_PX)
        if self._unfit is None or len(self._unfit) != h * w:
            self._unfit = np.zeros(h * w, np.float32)
        fitted = self._unfit[cells] < LEAST_KEPT
        return points[fitted], cells[fitted]

    def _follow(
        self, previous: Grey, current: Grey, start: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
        """Follow corners to the current picture and back, from where the last motion takes them.

        returns: their places there, back here, and how much texture there is around them
        """
        if len(start) == 0:
            return start, start, np.empty(0, np.float32)
        ahead = np.eye(3) if self._last is None else inverse(self._last)
        guess = through(ahead, start.astype(np.float64)).astype(np.float32)
        end, found, texture = _flow(previous, current, start, guess)
        guess = through(inverse(ahead), end.astype(np.float64)).astype(np.float32)
        back, found_back, _ = _flow(current, previous, end, guess)
        back[~(found & found_back)] = np.inf
        return end, back, texture

    def _remember(self, cells: NDArray[np.intp], agree: Flags) -> None:
        assert self._unfit is not None
        self._unfit *= KEPT
        if agree.mean() > LEAST_AGREEING:
            self._unfit[cells[~agree]] = 1.0


def follow_near(
    previous: Thumb, current: Thumb, near: Homography, levels: int, upright: float = 0
) -> Homography | None:
    """Estimate a motion that is about known: few corners, followed one way from where it leads.

    near:    pixel centres of the current frame to the previous one, as is the result
    levels:  of smaller pictures for what is not known of it; each doubles how far off it may be
    upright: see `fit_near`
    returns: None where too few corners agree; whether it explains the pictures is not looked at
    """
    start, size = previous.few_corners, current.fine.shape
    if not len(start):
        return None
    known = resized(near, current.size, size)
    guess = through(inverse(known), start.astype(np.float64)).astype(np.float32)
    end, followed, texture = _flow(previous.fine, current.fine, start, guess, levels)
    good = followed & (texture >= LEAST_TEXTURE)
    start, end = start[good], end[good]
    found = fit_near(end, start, OFF_PX, size, known, upright)
    if found is None:
        return None
    return resized(without_still(end, start, found, OFF_PX, size)[0], size, current.size)


def _flow(
    a: Grey, b: Grey, start: NDArray[np.float32], guess: NDArray[np.float32], levels: int = LEVELS
) -> tuple[NDArray[np.float32], Flags, NDArray[np.float32]]:
    end, status, texture = cv2.calcOpticalFlowPyrLK(
        a, b, start[:, None], guess[:, None].copy(), winSize=WINDOW, maxLevel=levels,
        criteria=STOP, flags=cv2.OPTFLOW_USE_INITIAL_FLOW | cv2.OPTFLOW_LK_GET_MIN_EIGENVALS,
    )  # fmt: skip
    end, texture = (np.asarray(found[:, 0], np.float32) for found in (end, texture))
    return end, np.asarray(status[:, 0] > 0), texture


def without_still(
    start: NDArray[np.float32], end: NDArray[np.float32], found: tuple[Homography, Flags],
    off_px: float, size: tuple[int, int],
) -> tuple[Homography, Flags]:  # fmt: skip
    """Leave points out that stay where they are, where the others agree on a motion.

    Burnt-in text (clocks, logos) and a picture's frame stay while the world moves. Where the fit
    is a motion, points that stay disagree with it anyway; where it is none, it may be theirs.

    returns: the map, and which points agree with it; those left out do not
    """
    homography, _ = found
    if farthest_px(homography, size) > 2 * STILL_CORNER_PX:
        return found
    moving = np.linalg.norm(end - start, axis=1) > STILL_CORNER_PX
    other = fit(start[moving], end[moving], off_px, size)
    if other is None:
        return found
    agree = np.zeros(len(start), np.bool_)
    agree[moving] = other[1]
    # text covers little of the picture; more than that stands still because the camera does
    return (other[0], agree) if 2 * agree.sum() > len(start) else found
