"""What estimators look at: small grey pictures of a frame."""

from __future__ import annotations

from functools import cache, cached_property
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from torchdelta.motion.corners import best_corners
from torchdelta.motion.homography import (
    Homography,
    Size,
    inverse,
    resized,
    resizing,
    through,
)
from torchdelta.motion.warp import valid_mask

Grey = NDArray[np.uint8]

# longest sides of the two small pictures, pixels
FINE_PX, COARSE_PX = 480, 240
# of the smaller one, one pixel in so many is compared with other frames, both ways
SAMPLED = 2
# cells of the smaller one that have a corner each
FEW_CELL_PX = 16
# differences beyond this many grey levels are an object's, and all count the same
CLIPPED = 32
# and of more than this the input gate would publish (8 of 255)
CHANGED = 8
# of 0.299 R + 0.587 G + 0.114 B
LUMA = (0.299, 0.587, 0.114)
STILL = np.eye(3)
# a sample's place among the samples to that in the smaller picture
_EACH_SAMPLE = np.diag([SAMPLED, SAMPLED, 1.0])


class Thumb:
    """Grey pictures of one frame, averaged down.

    size: (h, w) of the frame;  fine: uint8, longest side at most FINE_PX
    coarse: uint8, longest side at most COARSE_PX
    """

    def __init__(self, fine: Grey, size: Size) -> None:
        self.fine, self.size = fine, size

    @classmethod
    def of(cls, frame: NDArray[Any] | Tensor, lo: float = 0.0, hi: float = 1.0) -> Thumb:
        """Make it from a frame [H, W, C]: uint8, or float with values lo..hi; on any device."""
        size: Size = (int(frame.shape[0]), int(frame.shape[1]))
        small = reduced_size(size, FINE_PX)
        if isinstance(frame, Tensor):
            if frame.device.type != "cpu":
                return cls(_reduced_there(frame, small, lo, hi), size)
            frame = frame.numpy()
        grey = _grey(frame, lo, hi)
        return cls(_averaged(grey, small), size)

    @cached_property
    def coarse(self) -> Grey:
        """The smaller one, for checks."""
        return _averaged(self.fine, reduced_size(self.size, COARSE_PX))

    @cached_property
    def few_corners(self) -> NDArray[np.float32]:
        """The best corner of each cell of the smaller one, [n, 2] (x, y) in the finer one."""
        found, _ = best_corners(self.coarse, FEW_CELL_PX)
        larger = resizing(self.coarse.shape, self.fine.shape)
        return through(larger, found.astype(np.float64)).astype(np.float32)

    @cached_property
    def samples(self) -> Grey:
        """Every SAMPLED-th pixel of the smaller one's, both ways: enough to compare frames by."""
        return np.ascontiguousarray(self.coarse[::SAMPLED, ::SAMPLED])

    @cached_property
    def spectrum(self) -> Tensor:
        """The smaller one's, complex64, faded out towards its edges."""
        grey = self.coarse
        # with its mean left in, the fading itself would correlate, at no shift
        faded = (grey - grey.mean(dtype=np.float32)) * _fading(grey.shape)
        return torch.fft.rfft2(torch.from_numpy(faded))


def reduced_size(size: Size, longest_px: int) -> Size:
    """Give the size (h, w) whose longest side is at most longest_px."""
    factor = min(1.0, longest_px / max(size))
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))


def _averaged(grey: Grey, size: Size) -> Grey:
    if grey.shape == size:
        return grey
    return np.asarray(cv2.resize(grey, size[::-1], interpolation=cv2.INTER_AREA), np.uint8)


def _grey(frame: NDArray[Any], lo: float, hi: float) -> Grey:
    channels = frame.shape[2]
    if frame.dtype == np.uint8 and channels == 3:
        return np.asarray(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), np.uint8)
    if frame.dtype == np.uint8 and channels == 1:
        return frame[:, :, 0]
    weights = np.array(LUMA if channels == 3 else (1 / channels,) * channels, np.float32)
    values = frame.astype(np.float32) @ weights
    if frame.dtype != np.uint8:
        values = (values - lo) * (255 / (hi - lo))
    # a frame of NaN is refused elsewhere, and is a grey one here
    return np.rint(np.clip(np.nan_to_num(values, nan=127), 0, 255)).astype(np.uint8)


def _reduced_there(frame: Tensor, size: Size, lo: float, hi: float) -> Grey:
    """Reduce on the frame's device, so that only the small picture travels."""
    channels = frame.shape[2]
    weights = LUMA if channels == 3 else (1 / channels,) * channels
    values = frame.float() @ torch.tensor(weights, dtype=torch.float32, device=frame.device)
    if frame.is_floating_point():
        values = (values - lo) * (255 / (hi - lo))
    small = F.interpolate(values.nan_to_num(127)[None, None], size=size, mode="area")[0, 0]
    return np.asarray(small.clamp_(0, 255).round_().to(torch.uint8).cpu().numpy())


def misfit(previous: Thumb, current: Thumb, homography: Homography) -> float:
    """Measure how badly a motion explains the current frame: mean clipped difference, grey levels.

    homography: pixel centres of the current frame to the previous one, at the frames' size
    Only what both frames show counts; infinity where that is less than a quarter of the frame.
    """
    found, seen = _differences(previous, current, homography)
    if seen is None:
        return float("inf")
    return clipped_mean(found, seen)


def clipped_mean(differences: Grey, seen: Grey | None = None) -> float:
    """Average what differs, no more than CLIPPED at a pixel, where `seen` is not 0."""
    return float(cv2.mean(np.minimum(differences, CLIPPED), mask=seen)[0])


def differing_share(previous: Thumb, current: Thumb, homography: Homography) -> float:
    """Measure which share of what both frames show differs by more than CHANGED levels."""
    found, seen = _differences(previous, current, homography)
    if seen is None:
        return 1.0
    changed = cv2.countNonZero(cv2.copyTo(found, seen) // (CHANGED + 1))
    return float(changed / cv2.countNonZero(seen))


def _differences(
    previous: Thumb, current: Thumb, homography: Homography
) -> tuple[Grey, Grey | None]:
    """Give the absolute differences at the current frame's samples, and where both show something.

    None for the latter where that is less than a quarter of the frame.
    """
    here = current.samples
    h, w = here.shape
    if np.array_equal(homography, STILL):
        return np.asarray(cv2.absdiff(here, previous.samples), np.uint8), _full((h, w))
    coarse = current.coarse.shape
    there = resized(homography, current.size, coarse) @ _EACH_SAMPLE
    how = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    warped = cv2.warpPerspective(previous.coarse, there, (w, h), flags=how)
    seen = valid_mask(inverse(there), coarse, (h, w)).view(np.uint8)
    enough = 4 * cv2.countNonZero(seen) >= h * w
    return np.asarray(cv2.absdiff(here, warped), np.uint8), seen if enough else None


@cache
def _fading(size: Size) -> NDArray[np.float32]:
    return np.asarray(cv2.createHanningWindow(size[::-1], cv2.CV_32F), np.float32)


@cache
def _full(size: Size) -> Grey:
    return np.full(size, 255, np.uint8)
