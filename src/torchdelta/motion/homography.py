"""Plane-to-plane maps of pixel centres: checks, what they do to a picture, points through them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from torchdelta.errors import FrameError

Homography = NDArray[np.float64]
Points = NDArray[np.float64]
Size = tuple[int, int]

# of the matrix scaled to [2, 2] = 1; a map of pictures has a determinant near 1
SMALLEST_DETERMINANT = 1e-6


def check_homography(given: Any, size: Size) -> Homography:
    """Check a homography for frames of a size (h, w), and scale it to [2, 2] = 1.

    given:   3x3 of finite numbers, array or tensor; pixel centres (x, y, 1) of a frame to (x, y, 1)
    returns: float64 [3, 3]
    Raises: FrameError where it has another shape, is not finite, is singular, mirrors the picture
    or folds it (a pixel of the frame would lie at infinity).
    """
    try:
        matrix = np.array(getattr(given, "tolist", lambda: given)(), np.float64)
    except (TypeError, ValueError, RuntimeError):
        matrix = np.empty(0)
    if matrix.shape != (3, 3):
        got = list(matrix.shape) if matrix.size else type(given).__name__
        raise FrameError(
            f"homography is {got}, expected 3x3 numbers that map pixel centres (x, y, 1)"
        )
    if not np.isfinite(matrix).all():
        raise FrameError(
            "homography has NaN or infinite numbers; give None where the motion is not known"
        )
    if matrix[2, 2] == 0 or not np.isfinite(matrix := matrix / matrix[2, 2]).all():
        raise FrameError("homography is singular: it maps pixel (0, 0) to infinity")
    determinant = float(np.linalg.det(matrix))
    if not abs(determinant) > SMALLEST_DETERMINANT:
        raise FrameError(
            f"homography is singular: its determinant is {determinant:.3g} with [2, 2] scaled to 1"
        )
    depths = corners(size) @ matrix[2, :2] + 1
    if determinant < 0 or not (depths > 0).all():
        raise FrameError(
            "homography mirrors or folds the frame; expected a map of pixel centres (x, y) to the "
            "previous frame (or the reference), x first"
        )
    return matrix


def corners(size: Size) -> Points:
    """Give the centres of a frame's corner pixels in order around it: [4, 2] (x, y)."""
    h, w = size
    return np.array([[0, 0], [w - 1, 0], [w - 1, h - 1], [0, h - 1]], np.float64)


def through(homography: Homography, points: Points) -> Points:
    """Map points [n, 2] (x, y)."""
    flat = points @ homography[:, :2].T + homography[:, 2]
    return np.asarray(flat[:, :2] / flat[:, 2:])


def inverse(homography: Homography) -> Homography:
    """Invert a map, by its cofactors: plain numbers take a fifth of numpy's time.

    Raises: numpy.linalg.LinAlgError where it is singular.
    """
    (a, b, c), (d, e, f), (g, h, i) = homography.tolist()
    columns = (e * i - f * h, f * g - d * i, d * h - e * g)
    determinant = a * columns[0] + b * columns[1] + c * columns[2]
    if determinant == 0:
        raise np.linalg.LinAlgError("singular map")
    adjugate = np.array(
        [
            [columns[0], c * h - b * i, b * f - c * e],
            [columns[1], a * i - c * g, c * d - a * f],
            [columns[2], b * g - a * h, a * e - b * d],
        ]
    )
    return np.asarray(adjugate / determinant)


def scaled(homography: Homography) -> Homography:
    """Scale to [2, 2] = 1."""
    return np.asarray(homography / homography[2, 2])


def shift(dx: float, dy: float) -> Homography:
    """Make the map (x, y) to (x + dx, y + dy)."""
    return np.array([[1, 0, dx], [0, 1, dy], [0, 0, 1]], np.float64)


def resizing(size: Size, to: Size) -> Homography:
    """Map pixel centres of a picture to those of the same picture at another size."""
    sy, sx = to[0] / size[0], to[1] / size[1]
    return np.array([[sx, 0, sx / 2 - 0.5], [0, sy, sy / 2 - 0.5], [0, 0, 1]], np.float64)


def resized(homography: Homography, size: Size, to: Size) -> Homography:
    """Turn a map between pictures of a size into that between the same pictures at another size."""
    if size == to:
        return homography
    change = resizing(size, to)
    return scaled(change @ homography @ inverse(change))


def farthest_px(homography: Homography, size: Size) -> float:
    """Measure how far the corner that moves most moves."""
    at = corners(size)
    return float(np.linalg.norm(through(homography, at) - at, axis=1).max())


def stretch(homography: Homography, size: Size) -> tuple[float, float]:
    """Give the least and the greatest scale in any direction, at the centre and the corners."""
    right, bottom = size[1] - 1, size[0] - 1
    at = ((right / 2, bottom / 2), (0, 0), (right, 0), (right, bottom), (0, bottom))
    scales = [_scales(*_slopes(homography, x, y)) for x, y in at]
    return min(least for least, _ in scales), max(most for _, most in scales)


def scale_of(homography: Homography, size: Size) -> float:
    """Give the scale at the frame's centre, the mean of the directions."""
    xx, xy, yx, yy = _slopes(homography, (size[1] - 1) / 2, (size[0] - 1) / 2)
    return math.sqrt(abs(xx * yy - xy * yx))


def turn_degrees(homography: Homography, size: Size) -> float:
    """Give the rotation at the frame's centre, degrees."""
    xx, xy, yx, yy = _slopes(homography, (size[1] - 1) / 2, (size[0] - 1) / 2)
    return math.degrees(math.atan2(yx - xy, xx + yy))


def _slopes(homography: Homography, x: float, y: float) -> tuple[float, float, float, float]:
    """Give dx'/dx, dx'/dy, dy'/dx, dy'/dy at a point; plain numbers take a tenth of numpy's time.

    Infinite ones where the point is mapped to infinity.
    """
    (a, b, c), (d, e, f), (g, h, i) = homography.tolist()
    depth = g * x + h * y + i
    if depth == 0:
        return math.inf, 0.0, 0.0, math.inf
    to_x, to_y = (a * x + b * y + c) / depth, (d * x + e * y + f) / depth
    along_x = (a - to_x * g) / depth, (b - to_x * h) / depth
    return *along_x, (d - to_y * g) / depth, (e - to_y * h) / depth


def _scales(xx: float, xy: float, yx: float, yy: float) -> tuple[float, float]:
    """Give both singular values of a 2x2 matrix, the smaller first."""
    even, odd = math.hypot(xx + yy, xy - yx) / 2, math.hypot(xx - yy, xy + yx) / 2
    return abs(even - odd), even + odd


def whole_shift(homography: Homography) -> tuple[int, int] | None:
    """Give (dx, dy) where the map is a shift by whole pixels, else None."""
    rest = homography - np.eye(3)
    dx, dy = rest[:2, 2].round()
    rest[:2, 2] -= dx, dy
    return (int(dx), int(dy)) if np.abs(rest).max() < 1e-9 else None
