"""Sources through sessions, turn by turn, to their ends."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from torchdelta.arguments import pair, whole
from torchdelta.console import console, doing
from torchdelta.errors import FrameError, SourceError
from torchdelta.report.progress import Meter
from torchdelta.runtime.result import Result
from torchdelta.runtime.session import Session
from torchdelta.video.feed import Feed, feeds_of, size_of
from torchdelta.video.given import is_several, named_sources
from torchdelta.video.records import Remark
from torchdelta.video.source import Source
from torchdelta.videoframe import VideoFrame

Size = tuple[int, int]
Several = Mapping[str, Any] | list[Any] | tuple[Any, ...]
WITH_VECTORS = ("auto", "codec")


class Sessions:
    """Runs streams whose frames may change their size; a stream begins anew when they do.

    open_at: opens a session for frames of a size (h, w)
    live:    frames come when they come: nothing may keep them waiting
    warn:    is told what the user should know
    """

    def __init__(
        self, open_at: Callable[[Size], Session], warn: Callable[[str], None], *, live: bool
    ) -> None:
        self._open_at, self._warn, self._live = open_at, warn, live
        self._open: dict[Size, Session] = {}
        # sizes that each stream has had; the last one is in force
        self._sizes: dict[str, list[Size]] = {}

    def of(self, stream: str) -> Session:
        """Give the session that a stream is in."""
        return self._open[self._sizes[stream][-1]]

    def step(self, frames: Mapping[str, VideoFrame], *, record: bool) -> dict[str, Result]:
        """Run one frame of each stream that has one."""
        by_size: dict[Size, dict[str, VideoFrame]] = {}
        for stream, frame in frames.items():
            size = self._settle(stream, size_of(frame.picture))
            by_size.setdefault(size, {})[stream] = frame
        results: dict[str, Result] = {}
        for size, some in by_size.items():
            session = self._open[size]
            noted = len(session.notes)
            results |= session.step(some, record=record)
            for note in session.notes[noted:]:
                self._warn(note)
        return results

    def open(self, size: Size) -> Session:
        """Give the session for frames of a size, opened when it is first needed."""
        if size not in self._open:
            session = self._open[size] = self._open_at(size)
            session.waits = not self._live
            for note in session.notes:
                self._warn(note)
        return self._open[size]

    def _settle(self, stream: str, size: Size | None) -> Size:
        """Have a session for frames of a size, and take the stream out of the one it was in.

        size: None: this is no picture, and whatever session refuses it
        """
        known = self._sizes.setdefault(stream, [])
        if size is None:
            size = known[-1] if known else next(iter(self._open))
        if known and known[-1] != size:
            if size not in known:
                h, w = known[-1]
                self._warn(
                    f"{stream}: frames are {size[0]}x{size[1]} from here on, no longer {h}x{w}; "
                    "the network is made ready for them and begins anew"
                )
            self.leave(stream)
        if size in known:
            known.remove(size)
        known.append(size)
        self.open(size)
        return size

    def leave(self, stream: str) -> None:
        """Let a stream leave its session; one that nobody is in gives its memory back."""
        known = self._sizes.get(stream)
        session = self._open.get(known[-1]) if known else None
        if session is None or not known:
            return
        if stream in session.streams:
            session.stream(stream).leave()
        if not session.streams:
            del self._open[known[-1]]


def run_feeds(
    feeds: Sequence[Feed],
    sessions: Sessions,
    *,
    record: bool,
    tell: Callable[[Feed, Remark], None],
    stopped: Callable[[], bool] = lambda: False,
) -> Iterator[Result]:
    """Run feeds together until all have ended: in each turn one frame of each.

    record:  keep the active sets of all steps in the results
    tell:    is given what sources say of themselves
    stopped: asked before each turn; True: that was the last one
    returns: the results of a turn in the order of the feeds. What goes wrong with one stream is in
             its result's `error`, and the others go on: a frame that does not fit is refused
             (FrameError), a damaged source ends (SourceError, after the frames before the damage)
    """
    live = list(feeds)
    while live and not stopped():
        frames: dict[str, VideoFrame] = {}
        refused: dict[str, Result] = {}
        for feed in list(live):
            try:
                frame = feed.next()
            except FrameError as error:
                refused[feed.name] = Result(feed.name, error=error)
                continue
            except SourceError as damage:
                frame, refused[feed.name] = None, Result(feed.name, error=damage)
            finally:
                for remark in feed.remarks():
                    tell(feed, remark)
            if frame is not None:
                frames[feed.name] = frame
                continue
            live.remove(feed)
            sessions.leave(feed.name)
        results = (sessions.step(frames, record=record) if frames else {}) | refused
        yield from (results[feed.name] for feed in feeds if feed.name in results)


def play(
    fast: Any,
    given: Any,
    *,
    size: Size | None,
    limit: int | None,
    record: bool | None,
    progress: bool,
    skip_damaged: bool,
    options: dict[str, Any],
) -> Iterator[Any]:
    """Open sources and run them, as `CompiledModel.run` says; fast: the `CompiledModel`."""
    if size is not None:
        size = pair("size", size, "(h, w)", least=1)
    elif fast.fixed_size:
        size = fast.plan.size
    if limit is not None:
        limit = whole("limit", limit, least=1)
    if options.get("motion") == "given":
        raise ValueError(
            'motion="given" takes homographies, which sources do not have; give them with each '
            "frame: session.stream(name)(frame, homography=H)"
        )
    log = console(stderr=True)
    tell = log.say if progress else _warn
    with ExitStack() as stack:
        sources = named_sources(
            given, stack, channels=fast.plan.shape[0], skip_damaged=skip_damaged,
            vectors=options.get("motion") in WITH_VECTORS,
        )  # fmt: skip
        for _, source in sources:
            if isinstance(source, Source) and source.value_range is not None:
                source.value_range = fast.plan.preprocess.lo, fast.plan.preprocess.hi
        feeds = feeds_of(sources, size, limit)

        def open_at(size: Size) -> Session:
            if not progress:
                return fast.session(len(feeds), size=size, **options)
            with doing(log):
                return fast.session(len(feeds), size=size, **options)

        sessions = Sessions(open_at, tell, live=any(feed.is_live for feed in feeds))
        sessions.open(feeds[0].size)
        totals = [feed.total for feed in feeds]
        meter = None
        if progress:
            meter = Meter(log, sum(n or 0 for n in totals) if None not in totals else None)
        results = run_feeds(
            feeds, sessions, record=fast.tail is None if record is None else record,
            tell=lambda _, remark: tell(remark.text),
        )  # fmt: skip
        # open as long as the results are read
        return _counted(results, is_several(given), meter, stack.pop_all())


def _counted(
    results: Iterator[Result], several: bool, meter: Meter | None, stack: ExitStack
) -> Iterator[Any]:
    with stack:
        if meter is not None:
            stack.enter_context(meter)
        for result in results:
            if meter is not None and not isinstance(result.error, SourceError):
                meter.add(result.stats if result.ok else None)
            yield (result.stream, result) if several else result


def _warn(text: str) -> None:
    warnings.warn(text, stacklevel=4)
