"""Pictures and clips for the tests of sources and writers."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from torchdelta.errors import SourceError
from torchdelta.video import open_source

ROOT = Path(__file__).resolve().parents[1]


def scene(index, h=48, w=64):
    """A picture that tells its index: a noisy field that moves, and a bar of that length."""
    y, x = np.mgrid[:h, :w]
    field = 90 + 60 * np.sin((x + 2 * index) / 5) * np.cos(y / 7)
    # noise keeps the packets of all frames about equally long
    field += np.random.default_rng(index).normal(0, 8, (h, w))
    rgb = np.repeat(field[..., None], 3, axis=2).astype(np.uint8)
    rgb[: h // 4, : 1 + index % w] = (200, 60, 30)
    return rgb


def make_clip(
    path, n=30, h=48, w=64, codec="libx264", pix="yuv420p", options=None, mux=None, times=None
):
    """Write a clip with any codec and container; `times` are time stamps in tenths of a second."""
    with av.open(str(path), "w", options=mux or {}) as container:
        stream = container.add_stream(codec, rate=10)
        stream.height, stream.width, stream.pix_fmt = h, w, pix
        stream.options = options or {}
        for i in range(n):
            frame = av.VideoFrame.from_ndarray(scene(i, h, w), format="rgb24")
            frame.pts, frame.time_base = times[i] if times else i, Fraction(1, 10)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def read(path, gray=False):
    """All frames that a source gives, and the message of the error that ended it."""
    frames = []
    try:
        with open_source(path, gray=gray) as source:
            frames.extend(frame.picture for frame in source)
    except SourceError as error:
        return frames, str(error)
    return frames, None
