"""One source as a stream: replayed, resized, limited."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any, Protocol

import cv2
import numpy as np

from torchdelta.errors import FrameError, SourceError
from torchdelta.video.pixels import Frame, Range, stretched
from torchdelta.video.records import Remark
from torchdelta.videoframe import VideoFrame

Size = tuple[int, int]


class Readable(Protocol):
    """What is read of a source: a `Source` has it, and what stands for frames at hand."""

    @property
    def name(self) -> str:
        """What it is called in messages and results."""

    @property
    def size(self) -> Size:
        """The size (h, w) of the first frame."""

    @property
    def fps(self) -> float:
        """Frames per second."""

    @property
    def frames(self) -> int | None:
        """How many there are to come, where that is known."""

    @property
    def is_live(self) -> bool:
        """Whether frames come when they come."""

    @property
    def remarks(self) -> list[Remark]:
        """What there was to say so far."""

    def __next__(self) -> VideoFrame:
        """Give the next frame."""

    def close(self) -> None:
        """Give back what is open."""


class Feed:
    """The frames of one source, one at a time.

    name:  of the stream, unique among the session's
    size:  (h, w) that all frames are resized to; None: as they come, `size` is the first one's
    limit: frames to deliver at most
    limits: (lo, hi) of the values of all frames of the session, which are float32 then; None: as
            they come
    """

    def __init__(
        self, source: Readable, name: str, size: Size | None, limit: int | None,
        limits: Range | None = None,
    ) -> None:  # fmt: skip
        self.name = name
        self.size = size or source.size
        self._limits = limits
        self._told = 0
        self._resize = size is not None
        self.fps = source.fps
        self.is_live = source.is_live
        counts = [n for n in (source.frames, limit) if n is not None]
        self.total = min(counts) if counts else None
        self._source = source
        self._left = limit
        self._ahead: deque[VideoFrame] = deque()
        self._damage: SourceError | None = None

    def peek(self, count: int) -> list[Frame]:
        """Read up to `count` pictures ahead, at one size; they are still delivered afterwards."""
        while len(self._ahead) < count and self._damage is None:
            try:
                self._ahead.append(self._read())
            except StopIteration:
                break
            except SourceError as damage:
                # told when its turn comes, after the frames before it
                self._damage = damage
        return [resized(frame.picture, self.size) for frame in islice(self._ahead, count)]

    def _read(self) -> VideoFrame:
        frame = next(self._source)
        if self._limits is None:
            return frame
        return replace(frame, picture=stretched(frame.picture, self._limits))

    def next(self) -> VideoFrame | None:
        """The next frame; None at the end. Raises SourceError at damage."""
        if self._left == 0:
            return None
        if self._ahead:
            frame = self._ahead.popleft()
        elif self._damage is not None:
            damage, self._damage, self._left = self._damage, None, 0
            raise damage
        else:
            try:
                frame = self._read()
            except StopIteration:
                return None
        if self._left is not None:
            self._left -= 1
        if not self._resize:
            return frame
        return replace(frame, picture=resized(frame.picture, self.size))

    def remarks(self) -> Iterator[Remark]:
        """What the source has said since this was asked last."""
        while self._told < len(self._source.remarks):
            self._told += 1
            yield self._source.remarks[self._told - 1]


def feeds_of(
    sources: Sequence[tuple[str, Readable]], size: Size | None, limit: int | None,
    limits: Range | None = None,
) -> list[Feed]:  # fmt: skip
    """Make a feed of each source; names that come again get numbers.

    Raises: FrameError where their sizes differ.
    """
    feeds: list[Feed] = []
    for wanted, source in sources:
        taken = {feed.name for feed in feeds}
        name, number = wanted, 2
        while name in taken:
            name, number = f"{wanted}-{number}", number + 1
        feeds.append(Feed(source, name, size, limit, limits))
    if len({feed.size for feed in feeds}) > 1:
        sizes = ", ".join(f"{feed.name} is {feed.size[0]}x{feed.size[1]}" for feed in feeds)
        raise FrameError(
            f"the streams of one session have one size, but {sizes} (height x width); "
            "give one for all of them: --size HxW, or size=(h, w)"
        )
    return feeds


def size_of(picture: Any) -> Size | None:
    """Give the size (h, w) of numpy [H, W, C] or a tensor [C, H, W]; None: it is no picture."""
    shape: Sequence[int] = getattr(picture, "shape", ())
    is_numpy = isinstance(picture, np.ndarray)
    if not (2 if is_numpy else 3) <= len(shape) <= 4 or 0 in shape:
        return None
    return (int(shape[0]), int(shape[1])) if is_numpy else (int(shape[-2]), int(shape[-1]))


def resized(frame: Any, size: Size) -> Frame:
    """The picture at (h, w): averaged where it shrinks, bilinear where it grows.

    frame:   numpy [H, W, C] or [H, W], or a tensor [C, H, W] on any device
    returns: the frame itself where it has that size, else numpy [H, W, C]
    Raises: FrameError for what is no picture, or of a dtype that cannot be resized.
    """
    found = size_of(frame)
    if found == size:
        return frame
    if found is None:
        raise FrameError(f"frame is a {type(frame).__name__} and no picture; it cannot be resized")
    try:
        pixels = frame if isinstance(frame, np.ndarray) else frame.movedim(-3, -1).cpu().numpy()
        pixels = pixels.reshape(*found, -1)
        h, w = size
        shrinks = h * w < found[0] * found[1]
        how = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
        picture = np.asarray(cv2.resize(pixels, (w, h), interpolation=how), dtype=pixels.dtype)
        return picture.reshape(h, w, pixels.shape[2])
    except (cv2.error, TypeError, RuntimeError) as error:
        raise FrameError(
            f"frame of {frame.dtype} {list(frame.shape)} cannot be resized to {size[0]}x{size[1]}; "
            "uint8 and float32 can"
        ) from error
