"""One source as the stream of a session: replayed, resized, limited."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from torchdelta.errors import FrameError, SourceError
from torchdelta.motion.vectors import Vectors
from torchdelta.video.source import Source

Picture = NDArray[np.uint8]
Size = tuple[int, int]


class Feed:
    """The frames of one source, one at a time.

    name:  of the stream, unique among the session's
    size:  (h, w) that all frames are resized to; None: as they come, `size` is the first one's
    limit: frames to deliver at most
    vectors: the decoder's motion vectors of the frame delivered last, where it has them
    """

    def __init__(self, source: Source, name: str, size: Size | None, limit: int | None) -> None:
        self.name = name
        self.size = size or source.size
        self.vectors: Vectors | None = None
        self._resize = size is not None
        self.fps = source.fps
        counts = [n for n in (source.frames, limit) if n is not None]
        self.total = min(counts) if counts else None
        self._source = source
        self._left = limit
        self._ahead: deque[tuple[Picture, Vectors | None]] = deque()
        self._damage: SourceError | None = None

    def peek(self, count: int) -> list[Picture]:
        """Read up to `count` frames ahead, at one size; they are still delivered afterwards."""
        while len(self._ahead) < count and self._damage is None:
            try:
                picture = next(self._source)
                self._ahead.append((picture, self._source.vectors))
            except StopIteration:
                break
            except SourceError as damage:
                # told when its turn comes, after the frames before it
                self._damage = damage
        return [resized(frame, self.size) for frame, _ in list(self._ahead)[:count]]

    def next(self) -> Picture | None:
        """The next frame, uint8 [H, W, C]; None at the end. Raises SourceError at damage."""
        if self._left == 0:
            return None
        if self._ahead:
            frame, self.vectors = self._ahead.popleft()
        elif self._damage is not None:
            damage, self._damage, self._left = self._damage, None, 0
            raise damage
        else:
            try:
                frame = next(self._source)
            except StopIteration:
                return None
            self.vectors = self._source.vectors
        if self._left is not None:
            self._left -= 1
        return resized(frame, self.size) if self._resize else frame


def feeds_of(sources: Sequence[Source], size: Size | None, limit: int | None) -> list[Feed]:
    """Make a feed of each source; raises FrameError where their sizes differ."""
    feeds: list[Feed] = []
    for source in sources:
        taken = {feed.name for feed in feeds}
        name, number = source.name, 2
        while name in taken:
            name, number = f"{source.name}-{number}", number + 1
        feeds.append(Feed(source, name, size, limit))
    if len({feed.size for feed in feeds}) > 1:
        sizes = ", ".join(f"{feed.name} is {feed.size[0]}x{feed.size[1]}" for feed in feeds)
        raise FrameError(
            f"the streams of one session have one size, but {sizes} (height x width); "
            "give --size HxW to resize them all"
        )
    return feeds


def resized(frame: Picture, size: Size) -> Picture:
    """The frame at (h, w): averaged where it shrinks, bilinear where it grows."""
    h, w = size
    if frame.shape[:2] == (h, w):
        return frame
    shrinks = h * w < frame.shape[0] * frame.shape[1]
    how = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    picture = np.asarray(cv2.resize(frame, (w, h), interpolation=how), dtype=np.uint8)
    return picture.reshape(h, w, frame.shape[2])
