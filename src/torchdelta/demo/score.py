"""How well class maps agree with the truth: intersection over union, summed over frames."""

import numpy as np
from numpy.typing import NDArray


class Agreement:
    """Counts of pixels by true and by found class, over all frames added.

    classes: number of classes, background (0) included
    """

    def __init__(self, classes: int) -> None:
        self._pairs = np.zeros((classes, classes), np.int64)

    def add(self, truth: NDArray[np.integer], found: NDArray[np.integer]) -> None:
        """Count one frame; both [H, W], class of each pixel."""
        classes = len(self._pairs)
        pair = truth.astype(np.int64).ravel() * classes + found.astype(np.int64).ravel()
        self._pairs += np.bincount(pair, minlength=classes**2).reshape(classes, classes)

    def iou(self) -> list[float]:
        """Return intersection / union of each class; NaN where neither side has a pixel of it."""
        both = np.diag(self._pairs).astype(float)
        either = self._pairs.sum(0) + self._pairs.sum(1) - both
        return [float(b / e) if e else float("nan") for b, e in zip(both, either, strict=True)]

    def mean_iou(self) -> float:
        """Return the mean over the classes of things (background left out) that occurred."""
        known = [value for value in self.iou()[1:] if value == value]
        return sum(known) / len(known) if known else float("nan")
