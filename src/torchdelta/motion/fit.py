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
    # in numbers from -1 to 1, or the sums lose their digits
    unit = shift(-0.5, -0.5) @ resizing(size, (2, 2))
    x, y = through(unit, start.astype(np.float64)).T
    to = through(unit, end.astype(np.float64)).T
    # times a map's nine numbers: how far each point lies off, pixels, x and y
    rows = np.zeros((2, len(x), 9))
    for axis, (row, at) in enumerate(zip(rows, to, strict=True)):
        row[:, 3 * axis : 3 * axis + 3] = np.stack([x, y, np.ones_like(x)], 1)
        row[:, 6:] = np.stack([-x * at, -y * at, -at], 1)
        row *= size[1 - axis] / 2
    off = (through(near, start.astype(np.float64)) - end).T
    # cameras speed up and slow down: all points are off by about the same then
    off -= np.median(off, axis=1, keepdims=True)
    for most in NEARING:
        agree = off[0] ** 2 + off[1] ** 2 <= (most * off_px) ** 2
        if np.count_nonzero(agree) < LEAST_FOR_HOMOGRAPHY:
            return None
        used = (rows * agree[:, None]).reshape(-1, 9)
        products = used.T @ used
        left, right = products[:8, :8], -products[:8, 8]
        left[(6, 7), (6, 7)] += upright * (size[1] / 2) ** 2
        try:
            numbers = np.append(np.linalg.solve(left, right), 1.0)
        except np.linalg.LinAlgError:
            return None
        off = rows @ numbers
    found = scaled(inverse(unit) @ numbers.reshape(3, 3) @ unit)
    if not _is_sensible(found, size):
        return None
    agree = _agreeing(found, start, end, off_px)
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
