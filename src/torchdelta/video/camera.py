"""Frames from a camera, by OpenCV."""

from __future__ import annotations

from collections.abc import Iterator
from time import monotonic as now_s

import cv2
import numpy as np

from torchdelta.errors import SourceError
from torchdelta.video.images import quiet_opencv
from torchdelta.video.records import Decoded


def open_camera(index: int) -> tuple[str, Iterator[Decoded], float]:
    """Open a camera: its name, its frames without end, frames per second.

    A frame's time is when it arrived, counted from the first one. Raises SourceError where there is
    no such camera.
    """
    with quiet_opencv():
        camera = cv2.VideoCapture(index)
        opened = camera.isOpened()
    if not opened:
        camera.release()
        raise SourceError(
            f"camera {index} cannot be opened; is it connected, free, and may this user read it?"
        )
    name = f"camera {index}"
    return name, _frames(name, camera), float(camera.get(cv2.CAP_PROP_FPS))


def _frames(name: str, camera: cv2.VideoCapture) -> Iterator[Decoded]:
    try:
        delivered, start_s = 0, None
        while True:
            good, picture = camera.read()
            if not good or picture is None:
                raise SourceError(f"{name}: stopped delivering after {delivered} frames")
            arrived_s = now_s()
            start_s = arrived_s if start_s is None else start_s
            rgb = cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)
            yield Decoded(np.asarray(rgb), name, pts_s=arrived_s - start_s)
            delivered += 1
    finally:
        camera.release()
