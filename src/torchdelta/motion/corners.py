"""Corners that can be followed, balanced over a picture."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

# least eigenvalue of the structure around a corner that is worth a look, in OpenCV's units for
# 8-bit pictures
LEAST_CORNER = 1e-5


def cells_of(size: tuple[int, int], cell_px: int) -> tuple[int, int]:
    """Count the whole cells of a picture, down and across."""
    return size[0] // cell_px, size[1] // cell_px


def best_corners(
    grey: NDArray[np.uint8], cell_px: int
) -> tuple[NDArray[np.float32], NDArray[np.intp]]:
    """Find the best corner of each cell: [n, 2] (x, y) and the cells' indices, row by row.

    cell_px: the cells' sides; what is left beyond whole cells is left out, evenly on both sides
    """
    h, w = cells_of(grey.shape, cell_px)
    if not h or not w:
        return np.empty((0, 2), np.float32), np.empty(0, np.intp)
    strength = cv2.cornerMinEigenVal(grey, 3)
    top, left = (grey.shape[0] - h * cell_px) // 2, (grey.shape[1] - w * cell_px) // 2
    part = strength[top : top + h * cell_px, left : left + w * cell_px]
    by_cell = part.reshape(h, cell_px, w, cell_px).swapaxes(1, 2).reshape(h * w, -1)
    best = by_cell.argmax(1)
    cells = np.flatnonzero(by_cell[np.arange(h * w), best] >= LEAST_CORNER)
    y, x = np.divmod(best[cells], cell_px)
    x += left + cells % w * cell_px
    y += top + cells // w * cell_px
    return np.stack([x, y], 1).astype(np.float32), cells
