"""A frame's result as a picture: what the network says, or where it computed."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from torchdelta.apart import apart
from torchdelta.ops.preprocess import Preprocess
from torchdelta.report.heat import heat_map
from torchdelta.runtime.result import Result
from torchdelta.tasks import Tail
from torchdelta.video import overlay, text
from torchdelta.video.pixels import as_rgb

Picture = NDArray[np.uint8]


@apart
def plot(result: Result, tail: Tail | None, preprocess: Preprocess) -> Picture:
    """Draw a result on its frame: uint8 [H, W, 3] RGB, of the frame's size.

    tail:       what the output means; None: that is not known, and the picture shows where the
                network computed, which takes active sets (`record=True`)
    preprocess: the range of float frames
    Raises: the frame's error where it was refused; ModelError where the output is none of the
    task's; ValueError without active sets, and for a result whose frame was left behind.
    """
    output = result.unwrap()
    if result.frame is None:
        raise ValueError("a result that was pickled or copied has left its frame behind")
    rgb = as_picture(result.frame, preprocess)
    if tail is None:
        picture, note = recomputed(rgb, result)
        return text.box(picture, [note], middle=True) if note else picture
    reading = tail.read(output, result)
    return overlay.labels(reading.draw(rgb), reading.labels)


def as_picture(frame: Any, preprocess: Preprocess) -> Picture:
    """Bring a frame to uint8 [H, W, 3] RGB.

    frame: numpy [H, W, C] or [H, W], or tensor [C, H, W] or [1, C, H, W]; uint8, or float in the
           preprocessing's range. Of 2 or 4 channels the last one is left out
    """
    if isinstance(frame, torch.Tensor):
        frame = frame.detach().reshape(frame.shape[-3:]).permute(1, 2, 0)
        # NumPy has no bfloat16
        frame = (frame.float() if frame.is_floating_point() else frame).cpu().numpy()
    if frame.ndim == 2:
        frame = frame[..., None]
    return as_rgb(frame, (preprocess.lo, preprocess.hi))


def recomputed(rgb: Picture, result: Result) -> tuple[Picture, str | None]:
    """Show where the network computed: the heat map over the frame, and a note where it says all.

    Raises: ValueError where the result holds no active sets.
    """
    stats = result.stats
    if stats.first:
        # all of it in colour would hide the picture and say no more
        nothing = np.zeros(rgb.shape[:2], np.float32)
        return overlay.heat(rgb, nothing), f"{stats.reason}: all computed"
    heat = heat_map(result.plan, result.active or {}, result.plan.size)
    if result.aligned is not None:
        heat = result.to_frame_map(torch.from_numpy(heat)).numpy()
    return overlay.heat(rgb, heat), None
