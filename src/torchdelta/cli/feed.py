"""One source as the stream of a session: replayed, resized, limited."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from itertools import islice

import cv2
import numpy as np

from torchdelta.errors import FrameError, SourceError
from torchdelta.motion.vectors import Vectors
from torchdelta.video.pixels import Frame, Range, stretched
from torchdelta.video.records import Remark
from torchdelta.video.source import Source

Size = tuple[int, int]


class Feed:
    """The frames of one source, one at a time.

    name:  of the stream, unique among the session's
    size:  (h, w) that all frames are resized to; None: as they come, `size` is the first one's
    limit: frames to deliver at most
    limits: (lo, hi) of the values of all frames of the session, which are float32 then; None: uint8
    vectors: the decoder's motion vectors of the frame delivered last, where it has them
    pts_s: when the frame delivered last is shown in its source, where that says so
    """

    def __init__(
        self, source: Source, name: str, size: Size | None, limit: int | None,
        limits: Range | None = None,
    ) -> None:  # fmt: skip
        self.name = name
        self.size = size or source.size
        self.vectors: Vectors | None = None
        self.pts_s: float | None = None
        self._limits = limits
        self._told = 0
        self._resize = size is not None
        self.fps = source.fps
        self.is_live = source.is_live
        counts = [n for n in (source.frames, limit) if n is not None]
        self.total = min(counts) if counts else None
        self._source = source
        self._left = limit
        # frames read ahead, with their vectors and times
        self._ahead: deque[tuple[Frame, Vectors | None, float | None]] = deque()
        self._damage: SourceError | None = None

    def peek(self, count: int) -> list[Frame]:
        """Read up to `count` frames ahead, at one size; they are still delivered afterwards."""
        while len(self._ahead) < count and self._damage is None:
            try:
                frame = self._read()
                self._ahead.append((frame, self._source.vectors, self._source.pts_s))
            except StopIteration:
                break
            except SourceError as damage:
                # told when its turn comes, after the frames before it
                self._damage = damage
        return [resized(frame, self.size) for frame, *_ in islice(self._ahead, count)]

    def _read(self) -> Frame:
        frame = next(self._source)
        return frame if self._limits is None else stretched(frame, self._limits)

    def next(self) -> Frame | None:
        """The next frame, [H, W, C]; None at the end. Raises SourceError at damage."""
        if self._left == 0:
            return None
        if self._ahead:
            frame, self.vectors, self.pts_s = self._ahead.popleft()
        elif self._damage is not None:
            damage, self._damage, self._left = self._damage, None, 0
            raise damage
        else:
            try:
                frame = self._read()
            except StopIteration:
                return None
            self.vectors, self.pts_s = self._source.vectors, self._source.pts_s
        if self._left is not None:
            self._left -= 1
        return resized(frame, self.size) if self._resize else frame

    def remarks(self) -> Iterator[Remark]:
        """What the source has said since this was asked last."""
        while self._told < len(self._source.remarks):
            self._told += 1
            yield self._source.remarks[self._told - 1]


def common_range(sources: Sequence[Source], asked: Range | None) -> Range | None:
    """Give all sources of more than 8 bits one range of values; None where there are none.

    asked: by the user; default: from the least to the largest value of their first frames
    Raises SourceError where a range was asked for and no source has more than 8 bits.
    """
    deep = [source for source in sources if source.value_range is not None]
    if not deep:
        if asked is not None:
            names = ", ".join(source.name for source in sources)
            raise SourceError(
                f"--range is for pictures of more than 8 bits; {names}: 8 bits, which are taken as "
                "0..255; leave it out"
            )
        return None
    ranges = [source.value_range for source in deep if source.value_range is not None]
    limits = asked or (min(low for low, _ in ranges), max(high for _, high in ranges))
    for source in deep:
        source.value_range = limits
    return limits


def range_note(limits: Range | None, asked: Range | None) -> str | None:
    """Say what a range that nobody asked for means; None where there is nothing to say."""
    if limits is None or asked is not None:
        return None
    return (
        f"values {limits[0]:g} to {limits[1]:g}, the least and the largest of the first frame, are "
        "taken as the model's full range; --range LO,HI sets another"
    )


def feeds_of(
    sources: Sequence[Source], size: Size | None, limit: int | None, limits: Range | None = None
) -> list[Feed]:
    """Make a feed of each source; raises FrameError where their sizes differ."""
    feeds: list[Feed] = []
    for source in sources:
        taken = {feed.name for feed in feeds}
        name, number = source.name, 2
        while name in taken:
            name, number = f"{source.name}-{number}", number + 1
        feeds.append(Feed(source, name, size, limit, limits))
    if len({feed.size for feed in feeds}) > 1:
        sizes = ", ".join(f"{feed.name} is {feed.size[0]}x{feed.size[1]}" for feed in feeds)
        raise FrameError(
            f"the streams of one session have one size, but {sizes} (height x width); "
            "give --size HxW to resize them all"
        )
    return feeds


def resized(frame: Frame, size: Size) -> Frame:
    """The frame at (h, w): averaged where it shrinks, bilinear where it grows."""
    h, w = size
    if frame.shape[:2] == (h, w):
        return frame
    shrinks = h * w < frame.shape[0] * frame.shape[1]
    how = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    picture = np.asarray(cv2.resize(frame, (w, h), interpolation=how), dtype=frame.dtype)
    return picture.reshape(h, w, frame.shape[2])
