"""What passes between the readers of sources and a `Source`: decoded frames, and remarks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from numpy.typing import NDArray

from torchdelta.motion.vectors import Vectors


@dataclass(frozen=True)
class Decoded:
    """One frame as its file has it.

    pixels:  [H, W, C], C from 1 to 4: grey, grey and alpha, RGB, RGBA; uint8, or where the file
             has more: uint16, float32
    origin:  file that it comes from, for messages
    full:    largest value that the file can hold: 255, 1023 of ten bits, 1.0 of floats
    pts_s:   when it is shown, seconds from the beginning; None where its file says no time
    vectors: the decoder's motion vectors, where it has them and they were asked for
    """

    pixels: NDArray[Any]
    origin: str
    full: float = 255
    pts_s: float | None = None
    vectors: Vectors | None = None


@dataclass(frozen=True)
class Remark:
    """Something that a source has to say besides its frames.

    kind: "note": nothing is wrong;  "missed": the file keeps less than it promises, what there is
          is good;  "damage": frames were left out
    """

    kind: Literal["note", "missed", "damage"]
    text: str
