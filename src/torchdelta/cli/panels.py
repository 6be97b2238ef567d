"""The saved picture of a frame: with the result, in its world, and what was recomputed of it."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from torchdelta.motion.aligned import Aligned
from torchdelta.report.plot import recomputed
from torchdelta.runtime.result import Result
from torchdelta.tasks import Reading
from torchdelta.video import overlay
from torchdelta.video.board import Panel

Picture = NDArray[np.uint8]
Size = tuple[int, int]

OUTLINE_RGB = (255, 200, 0)


class Mosaic:
    """What a camera has shown of the world around its window, half a window further each way."""

    def __init__(self) -> None:
        self._window: Size = (0, 0)
        self._origin: Size = (0, 0)
        self._canvas: Picture = np.zeros((0, 0, 3), np.uint8)

    def add(self, aligned: Aligned, rgb: Picture) -> None:
        """Paste a frame where it lies; a new reference begins a new world."""
        h, w = aligned.window
        if aligned.anchored is not None or aligned.window != self._window:
            self._window, self._origin = aligned.window, aligned.origin
            self._canvas = np.zeros((2 * h, 2 * w, 3), np.uint8)
        dy, dx = (to - at for to, at in zip(aligned.origin, self._origin, strict=True))
        if (dy, dx) != (0, 0):
            self._canvas, self._origin = _scrolled(self._canvas, dy, dx), aligned.origin
        inside = self._canvas[h // 2 : h // 2 + h, w // 2 : w // 2 + w]
        mask = aligned.mask()
        inside[mask] = aligned.warp(rgb)[mask]

    def draw(self, size: Size) -> Picture:
        """Show it at a size (h, w), with the window's outline."""
        if not self._canvas.size:
            return np.zeros((*size, 3), np.uint8)
        h, w = self._window
        picture = self._canvas.copy()
        corner, other = (w // 2, h // 2), (w // 2 + w - 1, h // 2 + h - 1)
        thick = max(2, min(h, w) // 120)
        cv2.rectangle(picture, corner, other, OUTLINE_RGB, thick)
        return overlay.fitted(picture, size)


def _scrolled(canvas: Picture, dy: int, dx: int) -> Picture:
    """Move a canvas over the world: what it newly covers is black."""
    out = np.zeros_like(canvas)
    h, w = canvas.shape[:2]
    if abs(dy) < h and abs(dx) < w:
        out[max(0, -dy) : h - max(0, dy), max(0, -dx) : w - max(0, dx)] = canvas[
            max(0, dy) : h - max(0, -dy), max(0, dx) : w - max(0, -dx)
        ]
    return out


@dataclass(frozen=True)
class Shown:
    """What a board shows of one frame.

    frame:      as it came, uint8 [H, W, 1, 3 or more]
    reading:    what the network says of it;  dense: what the dense network says, None where it
                did not run or has nothing to draw
    agreement:  how the two agree, in words
    """

    frame: Picture
    result: Result
    reading: Reading
    dense: Reading | None = None
    agreement: str | None = None

    @property
    def rgb(self) -> Picture:
        """The frame in colour."""
        frame = self.frame
        if frame.shape[2] < 3:
            frame = frame[..., :1]
        return np.repeat(frame, 3, axis=2) if frame.shape[2] == 1 else frame[..., :3]


def panels(shown: Shown, *, compared: bool, mosaic: Mosaic | None) -> list[Panel]:
    """Show the picture with the result, dense's beside it, the world, and what was recomputed.

    compared: dense has a panel;  mosaic: the world, None where cameras are not followed
    """
    rgb, result = shown.rgb, shown.result
    world = [] if mosaic is None else [_in_world(rgb, result, mosaic)]
    if result.error is not None:
        refused = Panel(rgb, "this frame was refused", note="refused")
        return [*[refused] * (1 + compared), *world, refused]
    parts = [_answer(rgb, shown.reading, "torchdelta")]
    if compared:
        says = f"dense network: {shown.agreement}" if shown.agreement else "dense network"
        parts.append(_answer(rgb, shown.dense or Reading(None), says))
    return [*parts, *world, _recomputed(rgb, result)]


def _answer(rgb: Picture, reading: Reading, caption: str) -> Panel:
    return Panel(reading.draw(rgb), caption, labels=reading.labels, legend=reading.legend)


def _recomputed(rgb: Picture, result: Result) -> Panel:
    picture, note = recomputed(rgb, result)
    stats = result.stats
    caption = f"computed again: {stats.mac_share:.1%} of the work; changed: "
    caption += f"{stats.changed_input:.1%} of the picture"
    return Panel(picture, "computed: everything" if note else caption, note=note, is_heat=True)


def _in_world(rgb: Picture, result: Result, mosaic: Mosaic) -> Panel:
    here: Size = (rgb.shape[0], rgb.shape[1])
    aligned = result.aligned if result.error is None else None
    if result.error is None:
        mosaic.add(aligned or Aligned(here, here), rgb)
    picture = mosaic.draw(here)
    if aligned is None:
        return Panel(picture, "the camera is not followed")
    if aligned.anchored:
        return Panel(picture, f"the camera's world begins here ({aligned.anchored})")
    return Panel(picture, f"the camera's world; {whereabouts(aligned.origin)}")


def whereabouts(origin: tuple[int, int]) -> str:
    """Say where a window lies, (y, x) from where it was when its world began."""
    y, x = origin
    ways = [
        f"{abs(px)} px {more if px > 0 else less}"
        for px, more, less in ((x, "right", "left"), (y, "down", "up"))
        if px
    ]
    return (
        f"the window lies {' and '.join(ways)} of its start"
        if ways
        else ("the window lies where it began")
    )
