"""Motion vectors of a video decoder."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from torchdelta.motion.homography import Size


@dataclass(frozen=True)
class Vectors:
    """What a decoder knows about one frame's blocks, from an earlier frame that it was made of.

    blocks: float32 [n, 5]: centre (x, y), way to the same content in the earlier frame (dx, dy),
            area; pixels of the coded picture
    size:   (h, w) of the coded picture, which the frame may have been resized from
    kept:   whether later frames may be made of this one (not so for most B-frames)
    """

    blocks: NDArray[np.float32]
    size: Size
    kept: bool
