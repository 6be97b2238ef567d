"""Sources as a caller gives them: by name, open, or as frames at hand."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sized
from contextlib import ExitStack
from typing import Any

from torchdelta.arguments import shown
from torchdelta.errors import SourceError
from torchdelta.video.feed import Readable, size_of
from torchdelta.video.reader import DEFAULT_FPS
from torchdelta.video.records import Remark
from torchdelta.video.source import Source, open_source
from torchdelta.videoframe import VideoFrame

EXPECTED = (
    "a source is a file's, a folder's or a camera's name, a `Source`, or frames: a numpy array "
    "[T, H, W, C], a tensor [T, C, H, W], or whatever gives one frame after the other"
)
FRAME = "a numpy array [H, W, C], a tensor [C, H, W] or a `VideoFrame` of one"


class GivenFrames:
    """Frames that are at hand, or that somebody else makes; a `Readable`.

    frames: numpy arrays [H, W, C], tensors [C, H, W] or `VideoFrame`s
    Raises: SourceError where there is none, or the first one is no picture.
    """

    def __init__(self, name: str, frames: Iterable[Any]) -> None:
        self.name, self.fps, self.is_live = name, DEFAULT_FPS, False
        self.frames = len(frames) if isinstance(frames, Sized) else None
        self.remarks: list[Remark] = []
        self._left: Iterator[Any] = iter(frames)
        self._ahead = list[VideoFrame]()
        try:
            self._ahead.append(_as_frame(next(self._left)))
        except StopIteration:
            raise SourceError(f"{name}: holds no frame") from None
        size = size_of(self._ahead[0].picture)
        if size is None:
            first = _kind(self._ahead[0].picture)
            raise SourceError(f"{name}: its first frame is {first}, expected {FRAME}")
        self.size = size

    def __next__(self) -> VideoFrame:
        return self._ahead.pop() if self._ahead else _as_frame(next(self._left))

    def close(self) -> None:
        """End; who made the frames closes what is open."""
        self._ahead.clear()
        self._left = iter(())


def _as_frame(given: Any) -> VideoFrame:
    return given if isinstance(given, VideoFrame) else VideoFrame(given)


def _kind(given: Any) -> str:
    shape = getattr(given, "shape", None)
    return f"a {type(given).__name__}" + ("" if shape is None else f" of shape {list(shape)}")


def is_frame(given: Any) -> bool:
    """Whether something is one frame, and no source of frames."""
    return isinstance(given, VideoFrame) or getattr(given, "ndim", 4) < 4


def is_several(given: Any) -> bool:
    """Whether these are several sources: a dict of them, or a list of what are no frames."""
    if isinstance(given, Mapping):
        return True
    return isinstance(given, (list, tuple)) and not (given and is_frame(given[0]))


def named_sources(given: Any, stack: ExitStack, **options: Any) -> list[tuple[str, Readable]]:
    """Open what a caller gives; what is opened here closes with the stack.

    given:   a source, or several as a list or as a dict by name
    options: of `open_source`, for those that are named
    returns: (name, source)
    Raises: SourceError.
    """
    if isinstance(given, Mapping):
        bad = [name for name in given if not isinstance(name, str)]
        if bad:
            raise SourceError(f"sources are named by a str, got {shown(bad[0])}")
        several = list(given.items())
    else:
        several = [(None, one) for one in given] if is_several(given) else [(None, given)]
    if not several:
        raise SourceError(f"no source was given; {EXPECTED}")
    opened = [(name, _opened(one, stack, options)) for name, one in several]
    return [(name or source.name, source) for name, source in opened]


def _opened(given: Any, stack: ExitStack, options: dict[str, Any]) -> Readable:
    if isinstance(given, Source):
        return given
    if isinstance(given, (str, os.PathLike)) or (
        isinstance(given, int) and not isinstance(given, bool)
    ):
        return stack.enter_context(open_source(given, **options))
    if is_frame(given):
        raise SourceError(f"a source is {_kind(given)}, a single frame; {EXPECTED}")
    if not isinstance(given, Iterable) or isinstance(given, (Mapping, bytes, set, frozenset)):
        raise SourceError(f"a source is {_kind(given)}; {EXPECTED}")
    return GivenFrames("frames", given)
