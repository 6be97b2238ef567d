"""Motion from the vectors that a video decoder has at hand."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import cv2
import numpy as np
from numpy.typing import NDArray

from torchdelta.motion.estimate import STILL_PX, Estimator, Motion, judged, unknown, verified
from torchdelta.motion.features import Features, follow_near, without_still
from torchdelta.motion.fit import Flags, fit, fit_near
from torchdelta.motion.homography import (
    Homography,
    Size,
    farthest_px,
    inverse,
    resized,
    scaled,
)
from torchdelta.motion.thumb import Grey, Thumb, misfit
from torchdelta.motion.vectors import Vectors

# blocks that are fitted, the ones with the most texture in each cell of the picture
CELLS, BLOCKS_PER_CELL = (9, 16), 3
# of the mean gradient, grey levels per pixel; flat blocks' vectors mean nothing
LEAST_GRADIENT = 3.0
# how far a vector that agrees may lie off, pixels of the coded picture; they are quarters
OFF_PX = 1.0
LEAST_AGREEING = 0.5
# the road and the roadside move as no homography says, and are most of the picture ahead of a car:
# so few will do where the pictures fit so much better than with no motion
LEAST_BACKED, BACKED = 0.25, 0.95
# so often a fit does not begin with the last motion: that may have been an object's
SEARCH_EVERY = 8
# where the vectors do not help, corners are followed from the last motion, on so many smaller
# pictures
LEVELS_FROM_LAST = 2
# an encoder finds something alike in another scene too: where pictures that differ by as much (grey
# levels) do not fit better with the motion, its vectors say nothing
LEAST_FOREIGN = 10.0
# why corners are followed in I-frames, and in all of a source without vectors
NO_VECTORS = "the frame has no motion vectors"


class Codec(Estimator):
    """A homography fitted to the decoder's vectors; corners where there are none that fit.

    `Motion.estimator` and `Motion.fallback` say which of them a frame's motion comes from.
    """

    name: ClassVar[str] = "codec"

    def __init__(self) -> None:
        self._features = Features()
        # from the previous frame to the last one that later frames may be made of
        self._to_kept: Homography | None = None
        self._last: Homography | None = None
        self._fits = 0

    def reset(self) -> None:
        """Forget earlier frames."""
        self._features.reset()
        self._to_kept = self._last = None
        self._fits = 0

    def estimate(self, previous: Thumb, current: Thumb, vectors: Vectors | None = None) -> Motion:
        """Estimate the motion from the current frame back to the previous one."""
        motion = unknown(NO_VECTORS)
        if vectors is not None and len(vectors.blocks):
            motion = self._from_vectors(previous, current, vectors)
        if motion.confidence >= LEAST_AGREEING:
            self._features.reset()
            motion = replace(motion, estimator=self.name)
        else:
            corners = self._by_corners(previous, current)
            motion = replace(corners, estimator=Features.name, fallback=motion.reason)
        self._last = motion.homography if motion.confidence >= LEAST_AGREEING else None
        self._chain(motion, vectors)
        return motion

    def _by_corners(self, previous: Thumb, current: Thumb) -> Motion:
        if self._last is not None:
            near = follow_near(previous, current, self._last, LEVELS_FROM_LAST)
            motion = Motion() if near is None else verified(Motion(near), previous, current)
            if near is not None and motion.confidence:
                return motion
        return self._features.estimate(previous, current)

    def _chain(self, motion: Motion, vectors: Vectors | None) -> None:
        """Keep the way from this frame to the last one that later frames may be made of."""
        if vectors is None or vectors.kept or motion.confidence == 0:
            self._to_kept = np.eye(3)
        elif self._to_kept is not None:
            self._to_kept = scaled(self._to_kept @ motion.homography)

    def _from_vectors(self, previous: Thumb, current: Thumb, vectors: Vectors) -> Motion:
        blocks = chosen_blocks(vectors, current.coarse)
        start = blocks[:, :2]
        end = start + blocks[:, 2:4]
        # the frame was made of the one before it, or of the last one kept
        ways = [np.eye(3)]
        if self._to_kept is not None and np.abs(self._to_kept - np.eye(3)).max() > 1e-8:
            ways.append(self._to_kept)
        self._fits += 1
        if self._last is None or self._fits % SEARCH_EVERY == 0:
            found = fit(start, end, OFF_PX, vectors.size)
        else:
            near = resized(self._last, current.size, vectors.size)
            found = fit_near(start, end, OFF_PX, vectors.size, near)
        if found is None:
            return unknown(f"no map fits {len(blocks)} motion vectors")
        homography, agree = without_still(start, end, found, OFF_PX, vectors.size)
        homography = resized(homography, vectors.size, current.size)
        options = [scaled(inverse(way) @ homography) for way in ways]
        return _chosen(options, agree, previous, current)


def _chosen(options: list[Homography], agree: Flags, previous: Thumb, current: Thumb) -> Motion:
    """Choose what makes the pictures fit, and say how far it is to be believed.

    agree: which of the blocks agree with the fit that all options come from
    """
    moved, homography = min(
        ((misfit(previous, current, option), option) for option in options), key=lambda o: o[0]
    )
    confidence, said = float(agree.mean()), None
    if confidence < LEAST_AGREEING:
        said = f"{int(agree.sum())} of {len(agree)} motion vectors agree"
    if farthest_px(homography, current.size) < STILL_PX:
        return Motion(homography, confidence, said)
    still = misfit(previous, current, np.eye(3))
    if moved > LEAST_FOREIGN and moved > BACKED * still:
        return unknown(
            f"the pictures differ by {moved:.1f} grey levels with the vectors' motion, by "
            f"{still:.1f} without"
        )
    if LEAST_BACKED <= confidence < LEAST_AGREEING and moved < BACKED * still:
        confidence, said = LEAST_AGREEING, None
    return judged(Motion(homography, confidence, said), moved, still)


def chosen_blocks(vectors: Vectors, grey: Grey) -> NDArray[np.float32]:
    """Choose the blocks whose vectors mean something: textured, balanced over the picture.

    Raises nothing: returns [n, 5] like `Vectors.blocks`, possibly empty
    """
    h, w = grey.shape
    # nothing sensible lies farther away than the picture is long; NaN does not either
    blocks, far = vectors.blocks, np.abs(vectors.blocks[:, :4])
    if not far.max(initial=0) <= max(vectors.size):
        blocks = blocks[(far <= max(vectors.size)).all(1)]
    # four times the gradient, in whole numbers
    dx, dy = cv2.spatialGradient(grey)
    gradient = cv2.blur(cv2.add(np.abs(dx), np.abs(dy)), (3, 3))
    texture = gradient[_indices(blocks, vectors.size, (h, w))]
    textured = np.flatnonzero(texture >= 4 * LEAST_GRADIENT)
    blocks = blocks.take(textured, 0)
    worth = texture.take(textured) * blocks[:, 4]
    cells = _indices(blocks, vectors.size, CELLS)
    # best first within each cell, then the first few of each
    least = 2 * float(worth.max(initial=1))
    key = (cells[0] * CELLS[1] + cells[1]) * least - worth
    order = np.argsort(key)
    cell, place = np.ceil(key[order] / least), np.arange(len(order))
    first = np.where(np.diff(cell, prepend=-1) > 0, place, 0)
    rank = place - np.maximum.accumulate(first)
    return np.ascontiguousarray(blocks.take(order[rank < BLOCKS_PER_CELL], 0))


def _indices(
    blocks: NDArray[np.float32], size: Size, to: Size
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Find the pixels of a picture of size `to` in which the blocks' centres lie."""
    y = ((blocks[:, 1] + 0.5) * (to[0] / size[0])).astype(np.intp)
    x = ((blocks[:, 0] + 0.5) * (to[1] / size[1])).astype(np.intp)
    return y.clip(0, to[0] - 1), x.clip(0, to[1] - 1)
