"""Frames that have run and are not in the statistics yet: devices say later what they did."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby

import numpy as np

from torchdelta.engines import Reports, SlotReport
from torchdelta.errors import FrameError
from torchdelta.plan import Plan
from torchdelta.runtime.stats import FrameStats, StreamStats, frame_stats
from torchdelta.runtime.stream import Stream

# steps whose statistics may wait
MOST_UNCOUNTED = 64
# and frames where nothing has to be waited for: with cold caches several cost little more than one
COUNT_TOGETHER = 8


@dataclass(eq=False)
class CountedStep:
    """The frames of one step of a session as statistics need them; those are made when read.

    plan:    what ran;  whole: the network on a frame, which shares are relative to
    reports: of the slots, without masks
    streams: that had a frame, by name;  frames: the numbers of these, from 0
    reasons: why everything was recomputed, of streams of which it was
    moved:   streams whose window moved
    shared_ms: each frame's share of the time that the engine attributes to no slot
    spent_ms:  what streams' frames had taken before
    """

    plan: Plan
    whole: Plan
    reports: Reports
    streams: Mapping[str, Stream]
    frames: Sequence[int]
    reasons: Mapping[str, str]
    moved: Collection[str]
    shared_ms: float
    spent_ms: Mapping[str, float]
    _found: dict[str, FrameStats] = field(default_factory=dict)

    @property
    def ready(self) -> bool:
        """Whether nothing has to be waited for."""
        return self.reports.ready

    @property
    def in_doubt(self) -> bool:
        """Whether a frame may be refused after all."""
        return self.reports.in_doubt

    def errors(self) -> dict[str, str]:
        """Say why frames were refused after all, by stream; waits for the device."""
        found = self.reports.errors()
        if not found:
            return {}
        return {n: found[s.slot] for n, s in self.streams.items() if s.slot in found}

    def report(self, stream: str) -> SlotReport:
        """Give what the engine did for a stream; waits for the device."""
        return self.reports.get(self.streams[stream].slot)

    def of(self, stream: str) -> FrameStats:
        """Give a stream's counts; waits for the device."""
        found = self._found.get(stream)
        if found is None:
            report = self.report(stream)
            spent_ms = self.spent_ms.get(stream, 0.0)
            ms = report.ms + self.shared_ms + spent_ms
            frame = self.frames[list(self.streams).index(stream)]
            found = self._found[stream] = frame_stats(
                self.plan, self.whole, report, frame, ms, self.reasons.get(stream),
                stream in self.moved, spent_ms,
            )  # fmt: skip
        return found

    def counts(self) -> tuple[np.ndarray, float] | None:
        """Give the frames' numbers (`Reports.counts`), where all are like any other."""
        return None if self.reasons or self.moved else self.reports.counts()

    def add_each(self, total: StreamStats) -> None:
        """Count frame by frame, those that were not refused."""
        errors = self.errors()
        for name, stream in self.streams.items():
            if name not in errors:
                stream.stats.add(self.of(name), self.report(name))
                total.add(self.of(name), self.report(name))


@dataclass(frozen=True, eq=False)
class Counted:
    """One stream's frame in a step: its statistics, made when they are read."""

    step: CountedStep
    stream: str

    @property
    def ready(self) -> bool:
        """Whether nothing has to be waited for."""
        return self.step.ready

    @property
    def stats(self) -> FrameStats:
        """Counts of the frame; waits for the device."""
        return self.step.of(self.stream)


def count_steps(steps: Iterable[CountedStep], total: StreamStats) -> None:
    """Add steps of a session in order to their streams' statistics, and to those of all streams.

    Together, steps of the same streams cost little more than one.
    """
    for alike, group in groupby(steps, key=_alike):
        if alike is None:
            for step in group:
                step.add_each(total)
        else:
            _add_together(list(group), total)


def _alike(step: CountedStep) -> tuple[int, ...] | None:
    """Say what steps must share to be counted together; None: it is counted by itself."""
    if step.counts() is None:
        return None
    return (id(step.plan), *map(id, step.streams.values()))


def _add_together(steps: Sequence[CountedStep], total: StreamStats) -> None:
    last = steps[-1]
    counts = [found for step in steps if (found := step.counts()) is not None]
    own_ms = sum(ms for _, ms in counts) + sum(step.shared_ms for step in steps)
    sums = np.stack([table for table, _ in counts]).sum(0, dtype=np.int64)
    sums = sums[:, [stream.slot for stream in last.streams.values()]]
    all_ms = 0.0
    for k, (name, stream) in enumerate(last.streams.items()):
        ms = own_ms + sum(step.spent_ms.get(name, 0.0) for step in steps)
        all_ms += ms
        px = sums[:, k].tolist()
        stream.stats.add_like(last.of(name), last.plan, last.whole, px, len(steps), ms)
    of_last = last.of(list(last.streams)[-1])
    px = sums.sum(1).tolist()
    total.add_like(of_last, last.plan, last.whole, px, len(steps) * len(last.streams), all_ms)


class Uncounted:
    """A session's steps that are not in the statistics yet, and what devices refused after all.

    total: statistics of all streams together;  asynchronous: whether a device runs the frames
    """

    def __init__(self, total: StreamStats, *, asynchronous: bool) -> None:
        self._total, self._asynchronous = total, asynchronous
        self._steps: deque[CountedStep] = deque()
        # frames in them, and those of which a device may still refuse some
        self._waiting = 0
        self._in_doubt: deque[CountedStep] = deque()

    def __len__(self) -> int:
        return len(self._steps)

    def add(self, step: CountedStep) -> None:
        """Remember that frames have run."""
        self._steps.append(step)
        self._waiting += len(step.streams)
        if step.in_doubt:
            self._in_doubt.append(step)
        if len(self._steps) > MOST_UNCOUNTED:
            # engines let few frames be under way: nearly all of these are done
            self.count(wait=False)

    def count(self, *, wait: bool) -> None:
        """Add finished frames to the statistics, in order."""
        self._note_refused(wait=wait)
        steps = []
        while self._steps and (wait or self._steps[0].ready):
            steps.append(self._steps.popleft())
            self._waiting -= len(steps[-1].streams)
        count_steps(steps, self._total)

    def _note_refused(self, *, wait: bool) -> None:
        """Note which frames a device has refused after all."""
        while self._in_doubt and (wait or self._in_doubt[0].ready):
            step = self._in_doubt.popleft()
            for name, error in step.errors().items():
                frame = step.frames[list(step.streams).index(name)]
                text = f"stream {name!r}: frame {frame}: {error}"
                stream = step.streams[name]
                stream.late = FrameError(f"{text}; it was left out")
                for stats in (stream.stats, self._total):
                    stats.late_errors += 1
                    stats.late_error = text

    def take_late(self, streams: Iterable[Stream]) -> dict[str, FrameError]:
        """Take the errors of earlier frames that have become known by now."""
        # what a device has counted can wait until it is read: together it is cheaper
        if not self._asynchronous and self._waiting >= COUNT_TOGETHER:
            self.count(wait=False)
        self._note_refused(wait=False)
        told = {}
        for stream in streams:
            if stream.late is not None:
                told[stream.name], stream.late = stream.late, None
        return told
