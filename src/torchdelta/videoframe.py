"""One frame of a source, with what its source knows of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torchdelta.motion.vectors import Vectors


@dataclass(frozen=True, eq=False, slots=True)
class VideoFrame:
    """One frame of a source; sessions take it as they take its picture, and read its vectors.

    picture: [H, W, C]: uint8, or float32 in a range of values; or any other frame that a session
             takes
    pts_s:   when it is shown, seconds from the beginning; None where the source does not know (a
             folder of images)
    vectors: the decoder's motion vectors, where it has them and they were asked for
    """

    picture: Any
    pts_s: float | None = None
    vectors: Vectors | None = None
