"""A map of points to points that most of them agree with."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from torchdelta.motion.homography import (
    Homography,
    Size,
    inverse,
    resizing,
    scaled,
    shift,
    stretch,
    through,
    turn_degrees,
)

# of one frame to the next: beyond that a fit is wrong
MOST_SCALE, MOST_TURN_DEGREES = 1.25, 15.0
# fewer points that agree carry only the simpler model
LEAST_FOR_SHIFT, LEAST_FOR_SIMILARITY, LEAST_FOR_HOMOGRAPHY = 6, 12, 24
TRIALS, SURE = 500, 0.995
# a fit from what was known is believed where so many agree: fewer than half, as ahead of a car the
# road and what is beside it agree with nothing
LEAST_KNOWN = 0.35
# by how much points may disagree, round by round, times what they may in the end
NEARING = (3.0, 1.5, 1.0)

Flags = NDArray[np.bool_]
# the six products of x, y and 1 as a matrix
_SYMMETRIC = np.array([[0, 1, 2], [1, 3, 4], [2, 4, 5]])


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
        agree = _agreeing(found, start, end, off_px)
        if int(agree.sum()) >= least:
            return found, agree
    return None


def _agreeing(found: Homography, start: Any, end: Any, off_px: float) -> Flags:
    off = through(found, start.astype(np.float64)) - end
    return np.asarray(off[:, 0] ** 2 + off[:, 1] ** 2 <= off_px**2)


def fit_near(
    start: NDArray[np.float32],
    end: NDArray[np.float32],
    off_px: float,
    size: Size,
    near: Homography,
    upright: float = 0,
) -> tuple[Homography, Flags] | None:
    """Fit a homography of which is known what it is about, by least squares; else as `fit`.

    near:    about the map, but for a shift
    upright: against how many points' word the map is kept from tilting, as noise would tilt it
    returns: None also where fewer than LEAST_KNOWN agree, or than a homography takes
    """
    if len(start) < LEAST_FOR_HOMOGRAPHY:
        return None
    # in numbers from -1 to 1, or the sums lose their digits; 1 is half a picture's pixels
    unit, half = shift(-0.5, -0.5) @ resizing(size, (2, 2)), np.array([[size[1]], [size[0]]]) / 2
    x, y = (start.T.astype(np.float64) + 0.5) / half - 1
    to = (end.T.astype(np.float64) + 0.5) / half - 1
    one = np.ones_like(x)
    points, products = np.stack([x, y, one]), np.stack([x * x, x * y, x, y * y, y, one], 1)
    targets = np.stack([one, *to, ((half * to) ** 2).sum(0)])

    def off_by(homography: Homography) -> NDArray[np.float64]:
        there = homography @ points
        # a wrong map may lead to infinity: what it leads there does not agree
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray(half * (there[:2] / there[2] - to))

    off = off_by(unit @ near @ inverse(unit))
    # cameras speed up and slow down: all points are off by about the same then
    off -= np.partition(off, len(x) // 2, axis=1)[:, len(x) // 2, None]
    (wide,), (high,) = half**2
    for most in NEARING:
        agree = (off**2).sum(0) <= (most * off_px) ** 2
        if np.count_nonzero(agree) < LEAST_FOR_HOMOGRAPHY:
            return None
        plain, by_x, by_y, by_both = ((targets * agree) @ products)[:, _SYMMETRIC]
        # how far the points lie off, squared and added up, is this between a map's nine numbers
        normal = np.zeros((9, 9))
        normal[:3, :3], normal[3:6, 3:6], normal[6:, 6:] = wide * plain, high * plain, by_both
        normal[:3, 6:] = normal[6:, :3] = -wide * by_x
        normal[3:6, 6:] = normal[6:, 3:6] = -high * by_y
        normal[6, 6] += upright * wide
        normal[7, 7] += upright * wide
        try:
            numbers = np.append(np.linalg.solve(normal[:8, :8], -normal[:8, 8]), 1.0)
        except np.linalg.LinAlgError:
            return None
        off = off_by(numbers.reshape(3, 3))
    found = scaled(inverse(unit) @ numbers.reshape(3, 3) @ unit)
    if not _is_sensible(found, size):
        return None
    agree = (off**2).sum(0) <= off_px**2
    least = max(LEAST_FOR_HOMOGRAPHY, LEAST_KNOWN * len(start))
    return (found, agree) if np.count_nonzero(agree) >= least else None


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
