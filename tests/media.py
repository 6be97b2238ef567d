"""Small video files and pictures for tests, made on the spot; and what is in them."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from torchdelta.errors import SourceError
from torchdelta.video import Source, open_source
from torchdelta.video.names import ffmpeg_url

RATE = 10


def picture(index: int, h: int = 48, w: int = 64) -> np.ndarray:
    """A picture that tells its index: a noisy field that moves, and a bar of that length."""
    y, x = np.mgrid[:h, :w]
    field = 90 + 60 * np.sin((x + 2 * index) / 5) * np.cos(y / 7)
    # noise keeps the packets of all frames about equally long
    field += np.random.default_rng(index).normal(0, 8, (h, w))
    rgb = np.repeat(field[..., None], 3, axis=2).clip(0, 255).astype(np.uint8)
    rgb[: h // 4, : 1 + index % w] = (200, 60, 30)
    return rgb


def clip(
    path: Path,
    n: int = 20,
    h: int = 48,
    w: int = 64,
    codec: str = "libx264",
    pix: str = "yuv420p",
    options: dict[str, str] | None = None,
    mux: dict[str, str] | None = None,
    times: Sequence[int] | None = None,
    container: str | None = None,
) -> Path:
    """Write a clip with any codec and container; `times` are time stamps in tenths of a second."""
    if codec == "libx265":
        options = {"x265-params": "log-level=none", **(options or {})}
    with av.open(ffmpeg_url(path), "w", format=container, options=mux or {}) as made:
        stream: Any = made.add_stream(codec, rate=RATE)
        stream.height, stream.width, stream.pix_fmt = h, w, pix
        stream.options = options or {}
        for i in range(n):
            frame = av.VideoFrame.from_ndarray(picture(i, h, w), format="rgb24")
            frame.pts, frame.time_base = times[i] if times else i, Fraction(1, RATE)
            made.mux(stream.encode(frame))
        made.mux(stream.encode(None))
    return path


def packets(path: Path) -> list[tuple[int, int]]:
    """Place and length of each packet, as they lie in the file."""
    with av.open(str(path)) as container:
        return sorted((p.pos, p.size) for p in container.demux(video=0) if p.size)


def times_s(path: Path) -> list[float]:
    """When each frame of a file is shown, seconds from the first one."""
    with av.open(ffmpeg_url(path)) as container:
        shown = [float(frame.time) for frame in container.decode(video=0)]
    return [time - shown[0] for time in shown]


def read(spec: Any, **options: Any) -> tuple[list[np.ndarray], str | None, Source | None]:
    """All frames that a source gives, the message of the error that ended it, and the source."""
    frames: list[np.ndarray] = []
    source = None
    try:
        with open_source(spec, **options) as source:
            frames.extend(frame.picture for frame in source)
    except SourceError as error:
        return frames, str(error), source
    return frames, None, source


def said(source: Source | None, kind: str) -> list[str]:
    """The texts of a source's remarks of one kind."""
    assert source is not None
    return [remark.text for remark in source.remarks if remark.kind == kind]
