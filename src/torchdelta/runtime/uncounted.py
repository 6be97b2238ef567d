"""Frames that have run and are not in the statistics yet: devices say later what they did."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping

from torchdelta.errors import FrameError
from torchdelta.runtime.stats import CountedStep, StreamStats, count_steps

# steps whose statistics may wait
MOST_UNCOUNTED = 64
# and frames where nothing has to be waited for: with cold caches several cost little more than one
COUNT_TOGETHER = 8


class Uncounted:
    """A session's steps that are not in the statistics yet, and what devices refused after all.

    stats: of the streams that are in, as the session keeps them; total: of all streams together
    asynchronous: whether a device runs the frames
    """

    def __init__(
        self, stats: Mapping[str, StreamStats], total: StreamStats, *, asynchronous: bool
    ) -> None:
        self._stats, self._total, self._asynchronous = stats, total, asynchronous
        self._steps: deque[CountedStep] = deque()
        # frames in them, and those of which a device may still refuse some
        self._waiting = 0
        self._in_doubt: deque[CountedStep] = deque()
        # errors that nobody has been told yet
        self._late: dict[str, FrameError] = {}

    def __len__(self) -> int:
        return len(self._steps)

    def add(self, step: CountedStep) -> None:
        """Remember that frames have run."""
        self._steps.append(step)
        self._waiting += len(step.slots)
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
            self._waiting -= len(steps[-1].slots)
        count_steps(steps, self._total)

    def _note_refused(self, *, wait: bool) -> None:
        """Note which frames a device has refused after all."""
        while self._in_doubt and (wait or self._in_doubt[0].ready):
            step = self._in_doubt.popleft()
            for stream, error in step.errors().items():
                k = list(step.slots).index(stream)
                for stats in (step.stats[k], self._total):
                    stats.late_errors += 1
                    stats.late_error = f"stream {stream!r}: frame {step.frames[k]}: {error}"
                if self._stats.get(stream) is step.stats[k]:
                    text = f"stream {stream!r}: frame {step.frames[k]}: {error}; it was left out"
                    self._late[stream] = FrameError(text)

    def take_late(self, streams: Iterable[str]) -> dict[str, FrameError]:
        """Take the errors of earlier frames that have become known by now."""
        # what a device has counted can wait until it is read: together it is cheaper
        if not self._asynchronous and self._waiting >= COUNT_TOGETHER:
            self.count(wait=False)
        self._note_refused(wait=False)
        return {s: self._late.pop(s) for s in streams if s in self._late} if self._late else {}

    def forget(self, stream: str) -> None:
        """Drop what is known of a stream that begins anew, or is gone."""
        self._late.pop(stream, None)

    def hand_over(self, stream: str, to: Uncounted) -> None:
        """Let another session say what was refused of a stream."""
        if stream in self._late:
            to._late[stream] = self._late[stream]
