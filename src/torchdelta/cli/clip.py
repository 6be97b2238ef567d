"""What `torchdelta bench` runs on: a clip that is played again and again, or made frames."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from typing import NamedTuple, Protocol

import numpy as np

from torchdelta.bench.forced import changed_inside, disc_mask, made_frame
from torchdelta.bench.measure import Moment
from torchdelta.cli.ranges import common_range, range_note
from torchdelta.errors import SourceError
from torchdelta.video.feed import Size, resized
from torchdelta.video.names import resolve
from torchdelta.video.pixels import Frame, Range
from torchdelta.video.source import Source, open_source
from torchdelta.videoframe import VideoFrame

# several streams play a clip from memory where it takes no more
KEPT_BYTES = 4 * 2**30
# with --active every frame costs alike
MADE_FRAMES = 31


class Material(Protocol):
    """Frames for N streams, the same ones each time.

    name: of the source, None for made frames;  size: (h, w);  count: frames of each stream
    limits: (lo, hi) of the values of float32 frames, None: frames are uint8
    notes:  what the source has said about itself
    """

    name: str | None
    size: Size
    count: int
    limits: Range | None
    notes: tuple[str, ...]

    def peek(self, count: int) -> Frame:
        """Give up to `count` frames of the first stream: [n, H, W, C]."""

    def moments(self) -> Iterator[Moment]:
        """Play all streams from their beginnings, `count` frames of each."""


class Played(NamedTuple):
    """A decoded frame, and what decoding and resizing it took."""

    frame: VideoFrame
    ms: float


class Clip:
    """A video file or a folder of images; stream n of N begins at n/N of it.

    Several streams play it from memory, decoded and resized once, where it fits.
    vectors: with the decoder's motion vectors
    Raises: SourceError where it cannot be read to the end, cannot be played twice (a camera), or
    holds fewer than two frames.
    """

    def __init__(
        self,
        spec: str,
        *,
        channels: int,
        size: Size | None,
        streams: int,
        frames: int | None,
        vectors: bool = False,
        limits: Range | None = None,
        skip_damaged: bool = False,
    ) -> None:
        found = resolve(spec)
        if found.camera is not None or found.is_pipe:
            what = f"camera {found.camera}" if found.camera is not None else f"{spec}, a pipe,"
            raise SourceError(
                f"{what} cannot be played twice; record a clip (run --save) and give that"
            )
        self._spec, self._channels, self._streams = spec, channels, streams
        self._vectors, self._skip_damaged = vectors, skip_damaged
        # the same values each time that the clip is opened
        self.limits: Range | None = None
        with self._opened() as source:
            self.limits = common_range([source], limits)
            self.name: str | None = source.name
            self.size = size or source.size
            # several streams begin all over the clip, so they need its whole length
            end = frames if streams == 1 else None
            self._kept: list[Played] | None = [] if streams > 1 else None
            self._length = self._count(source, end)
            said = (range_note(self.limits, limits), *(remark.text for remark in source.remarks))
            self.notes = tuple(note for note in said if note is not None)
        self.count = min(frames or self._length, self._length)
        if self.count < 2:
            raise SourceError(f"{spec}: one frame only; the first one is computed whole and apart")

    def _opened(self) -> Source:
        return open_source(
            self._spec,
            channels=self._channels,
            vectors=self._vectors,
            value_range=self.limits,
            skip_damaged=self._skip_damaged,
        )

    def _count(self, source: Source, end: int | None) -> int:
        """Count the frames, and keep them where they are wanted and fit."""
        if self._kept is None:
            return sum(1 for _ in islice(source, end))
        count = kept_bytes = 0
        for played in islice(self._decode(source), end):
            count += 1
            kept_bytes += played.frame.picture.nbytes
            if kept_bytes > KEPT_BYTES:
                self._kept = None
            if self._kept is not None:
                self._kept.append(played)
        return count

    def _decode(self, source: Source) -> Iterator[Played]:
        """Give each frame at the wanted size."""
        start = time.perf_counter()
        for frame in source:
            frame = replace(frame, picture=resized(frame.picture, self.size))
            yield Played(frame, (time.perf_counter() - start) * 1e3)
            start = time.perf_counter()

    def _play(self, stream: int) -> Iterator[Played]:
        """Play for ever, from the stream's own beginning; after the last frame comes the first."""
        start = stream * self._length // self._streams
        while True:
            if self._kept is not None:
                yield from self._kept[start:]
            else:
                with self._opened() as source:
                    yield from islice(self._decode(source), start, None)
            start = 0

    def peek(self, count: int) -> Frame:
        """Give the first frames of the clip: [n, H, W, C]."""
        played = islice(self._play(0), min(count, self.count))
        return np.stack([one.frame.picture for one in played])

    def moments(self) -> Iterator[Moment]:
        """Play all streams from their beginnings."""
        players = [self._play(n) for n in range(self._streams)]
        for _ in range(self.count):
            now = [next(player) for player in players]
            # a picture by itself goes the shortest way through a session
            yield Moment(
                [one.frame if self._vectors else one.frame.picture for one in now],
                statistics.fmean(one.ms for one in now),
            )


class Made:
    """Two made frames per stream in turn, which differ inside the discs of the input map.

    share: of the discs; 0: they are the same frame
    """

    def __init__(
        self, *, channels: int, size: Size, streams: int, share: float, frames: int | None
    ) -> None:
        self.name: str | None = None
        self.limits: Range | None = None
        self.notes: tuple[str, ...] = ()
        self.size, self.count = size, frames or MADE_FRAMES
        self._channels = channels
        mask = disc_mask(size, share)
        still = [made_frame(size, channels, n) for n in range(streams)]
        self._turns = (still, [changed_inside(frame, mask) for frame in still])

    def peek(self, count: int) -> Frame:
        """Give different made frames: [n, H, W, C] uint8."""
        return np.stack([made_frame(self.size, self._channels, n) for n in range(count)])

    def moments(self) -> Iterator[Moment]:
        """Give the two frames in turn."""
        for index in range(self.count):
            yield Moment(self._turns[index % 2])
