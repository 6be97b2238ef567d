"""A map of points to points that most of them agree with."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from torchdelta.motion.homography import Homography, Size, shift, stretch, through, turn_degrees

# of one frame to the next: beyond that a fit is wrong
MOST_SCALE, MOST_TURN_DEGREES = 1.25, 15.0
# fewer points that agree carry only the simpler model
LEAST_FOR_SHIFT, LEAST_FOR_SIMILARITY, LEAST_FOR_HOMOGRAPHY = 6, 12, 24
TRIALS, SURE = 500, 0.995

Flags = NDArray[np.bool_]


def fit(
    start: NDArray[np.float32], end: NDArray[np.float32], off_px: float, size: Size
) -> tuple[Homography, Flags] | None:
    """Fit the richest map that the points carry: homography, similarity or shift.

    start, end: [n, 2] (x, y);  off_px: how far a point that agrees may lie off
    size:       of the picture, for what is too much of scale and rotation
    returns:    the map and which points agree with it; None where no map is sensible
    """
    if len(start) < LEAST_FOR_SHIFT:
        return None
    start, end = np.ascontiguousarray(start), np.ascontiguousarray(end)
    for least, model in MODELS:
        if len(start) < least:
            continue
        found = model(start, end, off_px)
        if found is None or not _is_sensible(found, size):
            continue
        agree = np.linalg.norm(through(found, start.astype(np.float64)) - end, axis=1) <= off_px
        if int(agree.sum()) >= least:
            return found, agree
    return None


def _homography(start: Any, end: Any, off_px: float) -> Homography | None:
    # on real clips USAC_MAGSAC found 2 to 10 of 100 agreeing corners fewer than this, more slowly
    found, _ = cv2.findHomography(start, end, cv2.USAC_FAST, off_px, None, TRIALS, SURE)
    return None if found is None else np.asarray(found, np.float64)


def _similarity(start: Any, end: Any, off_px: float) -> Homography | None:
    found, _ = cv2.estimateAffinePartial2D(
        start, end, method=cv2.RANSAC, ransacReprojThreshold=off_px, maxIters=TRIALS
    )
    return None if found is None else np.vstack([found, [0, 0, 1]]).astype(np.float64)


def _shift(start: Any, end: Any, off_px: float) -> Homography | None:
    ways = (end - start).astype(np.float64)
    # the way that most others agree with, then the mean of those
    votes = (np.linalg.norm(ways[:, None] - ways[None], axis=2) <= off_px).sum(1)
    best = ways[int(votes.argmax())]
    dx, dy = ways[np.linalg.norm(ways - best, axis=1) <= off_px].mean(0)
    return shift(float(dx), float(dy))


MODELS = (
    (LEAST_FOR_HOMOGRAPHY, _homography),
    (LEAST_FOR_SIMILARITY, _similarity),
    (LEAST_FOR_SHIFT, _shift),
)


def _is_sensible(found: Homography, size: Size) -> bool:
    if not np.isfinite(found).all() or abs(np.linalg.det(found)) < 1e-6:
        return False
    least, most = stretch(found, size)
    return (
        least >= 1 / MOST_SCALE
        and most <= MOST_SCALE
        and abs(turn_degrees(found, size)) <= MOST_TURN_DEGREES
    )
