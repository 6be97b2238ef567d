"""The saved picture of a frame: with the result, in its world, and what was recomputed of it."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from torchdelta.cli.tasks import Reading
from torchdelta.motion.aligned import Aligned
from torchdelta.report import heat_map
from torchdelta.runtime.result import Result
from torchdelta.video import overlay

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


def panels(
    frame: Picture, result: Result, reading: Reading, size: Size, mosaic: Mosaic | None
) -> Picture:
    """Left the picture with the result, right what was recomputed; a mosaic between them.

    size: (h, w) of each panel;  returns: uint8 [h, 2 w or 3 w, 3]
    """
    rgb = frame if frame.shape[2] == 3 else np.repeat(frame, 3, axis=2)
    parts = [rgb, rgb]
    if result.error is not None:
        parts = [overlay.caption(rgb, "refused")] * 2
    else:
        parts = [reading.draw(rgb), _recomputed(rgb, result)]
    shown = [overlay.fitted(part, size) for part in parts]
    if mosaic is not None:
        shown.insert(1, _in_world(rgb, result, size, mosaic))
    return np.hstack(shown)


def _recomputed(rgb: Picture, result: Result) -> Picture:
    active: dict[str, Any] = result.active or {}
    heat = heat_map(result.plan, active, result.plan.size)
    if result.aligned is not None:
        heat = result.to_frame_map(torch.from_numpy(heat)).numpy()
    stats = result.stats
    note = f"{stats.ms:.1f} ms  changed {stats.changed_input:.1%}  MACs {stats.mac_share:.1%}"
    return overlay.caption(overlay.heat(rgb, heat), note)


def _in_world(rgb: Picture, result: Result, size: Size, mosaic: Mosaic) -> Picture:
    here: Size = (rgb.shape[0], rgb.shape[1])
    aligned = result.aligned if result.error is None else None
    if result.error is None:
        mosaic.add(aligned or Aligned(here, here), rgb)
    picture = mosaic.draw(size)
    if aligned is None:
        return overlay.caption(picture, "the camera is not followed")
    y, x = aligned.origin
    why = aligned.anchored
    return overlay.caption(picture, f"new reference: {why}" if why else f"window at {y}, {x}")
