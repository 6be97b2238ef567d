"""Motion as a shift, by phase correlation: for pans on slow machines."""

from __future__ import annotations

from typing import ClassVar

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from torchdelta.motion.estimate import Estimator, Motion, unknown, verified
from torchdelta.motion.homography import resized, shift
from torchdelta.motion.thumb import CLIPPED, Grey, Thumb, clipped_mean

# of grey levels; below, there is nothing to correlate
LEAST_DEVIATION = 2.0
# share of the correlation's energy around its peak: chance, and what a clean pan gives
NO_PEAK, CLEAR_PEAK = 0.02, 0.1
# peaks that are tried
PEAKS = 3
# refinement at both sizes: differences beyond these grey levels are objects' or text's, round by
# round, until a round moves less than this
COARSE_ROUNDS, FINE_ROUNDS = (CLIPPED, CLIPPED, 8, 8, 8, 8, 8, 8), (8,)
SETTLED_PX = 0.02


class Translation(Estimator):
    """Phase correlation of the coarse pictures, refined by least squares on the fine ones."""

    name: ClassVar[str] = "translation"

    def estimate(self, previous: Thumb, current: Thumb, vectors: object = None) -> Motion:
        """Estimate the shift from the current frame back to the previous one."""
        a, b = previous.coarse, current.coarse
        if min(float(cv2.meanStdDev(grey)[1][0, 0]) for grey in (a, b)) < LEAST_DEVIATION:
            return unknown("no texture to correlate")
        peaks = _peaks(previous, current)
        size, coarse = current.size, b.shape
        # an object may be sharper than the world behind it: what makes the pictures fit is right
        *by, height = min(peaks, key=lambda peak: _misfit(a, b, int(peak[0]), int(peak[1])))
        confidence = float(np.clip((height - NO_PEAK) / (CLEAR_PEAK - NO_PEAK), 0, 1))
        if confidence == 0:
            return unknown(f"no clear peak in the correlation ({height:.3f} of its energy)")
        dx, dy = _refined(a, b, by[0], by[1], COARSE_ROUNDS)
        fine = current.fine.shape
        dx, dy = map(float, resized(shift(dx, dy), coarse, fine)[:2, 2])
        dx, dy = _refined(previous.fine, current.fine, dx, dy, FINE_ROUNDS)
        said = f"a weak peak in the correlation ({height:.3f} of its energy)"
        homography = resized(shift(dx, dy), fine, size)
        motion = Motion(homography, confidence, said if confidence < 0.5 else None)
        return verified(motion, previous, current)


def _peaks(previous: Thumb, current: Thumb) -> list[tuple[float, float, float]]:
    """Correlate by phase: (dx, dy) of the current pixels to the previous ones, and the height.

    The height is the correlation's sum over the 3x3 around a peak, 1 for a picture and itself.
    """
    h, w = current.coarse.shape
    cross = (previous.spectrum * current.spectrum.conj()).resolve_conj().numpy()
    # a third of the time that `abs` takes
    cross /= np.sqrt(np.maximum(cross.real**2 + cross.imag**2, 1e-18))
    surface = torch.fft.irfft2(torch.from_numpy(cross), s=(h, w)).numpy()
    found, left = [], surface.copy()
    for _ in range(PEAKS):
        y, x = divmod(int(left.argmax()), w)
        around = surface[_around(y, 1, h)[:, None], _around(x, 1, w)]
        found.append(
            (float(x - w if 2 * x > w else x), float(y - h if 2 * y > h else y),
             float(around.sum()))
        )  # fmt: skip
        left[_around(y, 2, h)[:, None], _around(x, 2, w)] = -1
    return found


def _around(place: int, reach: int, length: int) -> NDArray[np.intp]:
    return np.arange(place - reach, place + reach + 1) % length


def _misfit(previous: Grey, current: Grey, dx: int, dy: int) -> float:
    """Measure what differs where both pictures show something; infinity where that is little."""
    h, w = current.shape
    (x0, x1), (y0, y1) = (max(0, -dx), min(w, w - dx)), (max(0, -dy), min(h, h - dy))
    if 4 * (x1 - x0) * (y1 - y0) < h * w:
        return float("inf")
    there = previous[y0 + dy : y1 + dy, x0 + dx : x1 + dx]
    return clipped_mean(np.asarray(cv2.absdiff(current[y0:y1, x0:x1], there), np.uint8))


def _refined(
    previous: Grey, current: Grey, dx: float, dy: float, rounds: tuple[int, ...]
) -> tuple[float, float]:
    """Move the shift (dx, dy) to where the squared differences are least, objects left out."""
    h, w = current.shape
    here = current.astype(np.float32)
    # the slopes of the current picture: once, not of the other one in each round
    slopes = [cv2.Scharr(here, cv2.CV_32F, *axis, scale=1 / 32) for axis in ((1, 0), (0, 1))]
    for most in rounds:
        (x0, x1), (y0, y1) = _overlap(w, dx), _overlap(h, dy)
        if x1 - x0 < 8 or y1 - y0 < 8:
            break
        middle = (w - 1) / 2 + dx, (h - 1) / 2 + dy
        # ten times as fast as OpenCV's warps
        there = cv2.getRectSubPix(previous, (w, h), middle, patchType=cv2.CV_32F)
        difference = cv2.subtract(here, there)
        # whole arrays with zeros, not parts of them: parts would be copied for each product
        world = np.zeros((h, w), np.uint8)
        part = slice(y0, y1), slice(x0, x1)
        world[part] = cv2.absdiff(here[part], there[part]) <= most
        gx, gy = (cv2.copyTo(slope, world) for slope in slopes)
        xx, xy, yy = (float(np.vdot(p, q)) for p, q in ((gx, gx), (gx, gy), (gy, gy)))
        # two equations in plain numbers: numpy's solver takes longer than all products
        determinant = xx * yy - xy * xy
        if determinant < 1e-3 * max(1.0, xx * yy):
            break
        along_x, along_y = (float(np.vdot(slope, difference)) for slope in (gx, gy))
        step_x = (yy * along_x - xy * along_y) / determinant
        step_y = (xx * along_y - xy * along_x) / determinant
        step = max(abs(step_x), abs(step_y))
        # the shift is about right already; more is not what this is for
        if step > 2:
            break
        dx, dy = dx + step_x, dy + step_y
        if most < CLIPPED and step < SETTLED_PX:
            break
    return dx, dy


def _overlap(length: int, by: float) -> tuple[int, int]:
    """Give the range of pixels that lie inside the picture when shifted."""
    return max(0, int(np.ceil(-by)) + 1), min(length, int(np.floor(length - by)) - 1)
