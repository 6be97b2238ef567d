"""How far a run is: a bar in a terminal, now and then a line elsewhere."""

from __future__ import annotations

import time
from collections import deque
from types import TracebackType

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from torchdelta.console import PlainConsole
from torchdelta.runtime.stats import FrameStats

LINE_EVERY_S = 5.0
RECENT = 30


class Meter:
    """Shows frames done, frames per second of the whole loop, changed input and MAC share.

    total: frames to come, None where a source does not know
    """

    def __init__(self, console: PlainConsole, total: int | None) -> None:
        self._console = console
        self._total = total
        self._done = 0
        self._times_s: deque[float] = deque(maxlen=RECENT)
        self._shares: deque[tuple[float, float]] = deque(maxlen=RECENT)
        self._next_line_s = time.monotonic() + LINE_EVERY_S
        self._bar: Progress | None = None
        self._task = TaskID(0)
        if console.is_terminal:
            self._bar = Progress(
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[note]}", markup=False),
                TimeRemainingColumn(),
                console=console,
            )
            self._task = self._bar.add_task("", total=total, note="")

    def __enter__(self) -> Meter:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def add(self, stats: FrameStats | None) -> None:
        """Count one frame; None for one that was refused."""
        self._done += 1
        now = time.monotonic()
        self._times_s.append(now)
        # a first frame is all changed and would hide what follows
        if stats is not None and not stats.first:
            self._shares.append((stats.changed_input, stats.mac_share))
        if self._bar is not None:
            self._bar.update(self._task, advance=1, note=self.note())
        elif now >= self._next_line_s:
            self._next_line_s = now + LINE_EVERY_S
            total = f"/{self._total}" if self._total is not None else ""
            self._console.say(f"{self._done}{total} frames  {self.note()}")

    def note(self) -> str:
        """Means over the last frames."""
        if len(self._times_s) < 2 or not self._shares:
            return ""
        seconds = self._times_s[-1] - self._times_s[0]
        fps = (len(self._times_s) - 1) / seconds if seconds else 0.0
        changed, macs = (sum(column) / len(column) for column in zip(*self._shares, strict=True))
        return f"{fps:.1f} FPS  changed {changed:.1%}  MACs {macs:.1%}"
