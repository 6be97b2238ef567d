"""Pictures of known motion for the tests of estimators, warps and alignment."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import cv2
import numpy as np
from hypothesis import strategies as st

from torchdelta.motion.codec import Codec
from torchdelta.motion.estimate import Estimator
from torchdelta.motion.features import Features
from torchdelta.motion.homography import (
    corners,
    inverse,
    scaled,
    shift,
    through,
)
from torchdelta.motion.translation import Translation
from torchdelta.motion.vectors import Vectors

SIZE = (240, 320)
H, W = SIZE
ESTIMATORS: dict[str, Callable[[], Estimator]] = {
    "features": Features,
    "codec": Codec,
    "translation": Translation,
}


@cache
def scene() -> np.ndarray:
    """A large textured picture, [1200, 1600, 3]."""
    rng = np.random.default_rng(1)
    picture = np.zeros((1200, 1600, 3), np.float32)
    for px in (4, 12, 40, 160):
        small = rng.uniform(0, 255, (1200 // px + 1, 1600 // px + 1, 3)).astype(np.float32)
        picture += cv2.resize(small, (1600, 1200), interpolation=cv2.INTER_CUBIC) / 4
    return np.clip(picture, 0, 255).astype(np.uint8)


def view(pose: np.ndarray, size: tuple[int, int] = SIZE) -> np.ndarray:
    """Look at the scene: the pose maps the frame's pixels to the scene's."""
    return cv2.warpPerspective(
        scene(), pose, size[::-1], flags=cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REFLECT,
    )  # fmt: skip


def about_centre(turn_degrees: float = 0, scale: float = 1, size: tuple[int, int] = SIZE):
    middle = ((size[1] - 1) / 2, (size[0] - 1) / 2)
    part = cv2.getRotationMatrix2D(middle, -turn_degrees, scale)
    return np.vstack([part, [0, 0, 1]])


def off_px(found: np.ndarray, true: np.ndarray, size: tuple[int, int] = SIZE) -> float:
    at = corners(size)
    return float(np.linalg.norm(through(found, at) - through(true, at), axis=1).max())


def true_vectors(motion: np.ndarray, size: tuple[int, int] = SIZE) -> Vectors:
    """What a perfect encoder's blocks of 16 would say, in quarters of a pixel."""
    y, x = np.mgrid[8 : size[0] : 16, 8 : size[1] : 16].reshape(2, -1) - 0.5
    at = np.stack([x, y], 1)
    way = np.round((through(motion, at) - at) * 4) / 4
    blocks = np.hstack([at, way, np.full((len(at), 1), 256.0)]).astype(np.float32)
    return Vectors(blocks, size, kept=True)


def noisy(frame: np.ndarray, deviation: float, seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(0, deviation, frame.shape)
    return np.clip(frame + noise, 0, 255).astype(np.uint8)


START = shift(600, 450)

WARPS = {
    "roll": about_centre(turn_degrees=1.5),
    "zoom": about_centre(scale=0.97),
    "roll-zoom-pan": shift(5.5, -3.2) @ about_centre(2, 1.03),
    "perspective": scaled(np.array([[1.01, 0.01, 4], [-0.005, 1, -3], [4e-5, -3e-5, 1]])),
}

BAD = {
    "shape": (np.eye(2), "3x3"),
    "text": ("pan", "3x3"),
    "nan": (np.diag([1, np.nan, 1]), "NaN"),
    "infinite": (shift(np.inf, 0), "NaN or infinite"),
    "singular": (np.diag([1, 0, 1]), "singular"),
    "zeros": (np.zeros((3, 3)), "singular"),
    "mirror": (np.diag([-1, 1, 1]), "mirrors"),
    "folds": (np.array([[1, 0, 0], [0, 1, 0], [-0.01, 0, 1]]), "folds"),
}


def turned(degrees: float, scale: float) -> np.ndarray:
    return np.vstack([cv2.getRotationMatrix2D((0, 0), degrees, scale), [0, 0, 1]])


def sampled(frame: np.ndarray, there: np.ndarray, window: tuple[int, int]) -> np.ndarray:
    """What bilinear sampling means, in double precision; anything beyond the frame."""
    h, w = frame.shape[:2]
    y, x = np.mgrid[: window[0], : window[1]].reshape(2, -1).astype(np.float64)
    at = through(inverse(there), np.stack([x, y], 1)).clip(0, (w - 1, h - 1))
    left, top = np.minimum(np.floor(at), (w - 2, h - 2)).astype(int).T
    right, low = (at - np.stack([left, top], 1)).T[:, :, None]
    rows = [frame[top + n, left] * (1 - right) + frame[top + n, left + 1] * right for n in range(2)]
    return (rows[0] * (1 - low) + rows[1] * low).reshape(*window, 3)


SMALL = (60, 80)
NUMBERS = st.floats(width=32) | st.integers(-90, 90).map(float)


def vectors() -> st.SearchStrategy[Vectors]:
    blocks = st.lists(st.tuples(*[NUMBERS] * 4, st.just(64)), max_size=40).map(
        lambda rows: np.array(rows, np.float32).reshape(-1, 5)
    )
    alike = st.tuples(NUMBERS, NUMBERS).map(
        lambda way: np.array([(x, y, *way, 64) for x in range(4, 80, 8) for y in range(4, 60, 8)])
    )
    return st.builds(Vectors, blocks | alike, st.just(SMALL), st.booleans())
