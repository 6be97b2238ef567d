"""The sessions of a run: one for each size of frames that is on its way."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torchdelta.api import CompiledModel
from torchdelta.cli.options import Border, Motion
from torchdelta.motion.vectors import Vectors
from torchdelta.runtime.result import Result
from torchdelta.runtime.session import Session
from torchdelta.video.pixels import Frame

Size = tuple[int, int]


class Sessions:
    """Runs streams whose frames may change their size; a stream begins anew when they do.

    slots: of each session
    live:  frames come when they come: nothing may keep them waiting
    warn:  is told what the user should know
    """

    def __init__(
        self,
        compiled: CompiledModel,
        slots: int,
        motion: Motion,
        border: Border,
        grain: int | None,
        live: bool,
        warn: Callable[[str], None],
    ) -> None:
        self._compiled, self._slots = compiled, slots
        # names that `CompiledModel.session` knows
        self._motion: Any = motion.value
        self._border: Any = border.value
        self._grain = grain
        self._live, self._warn = live, warn
        self._open: dict[Size, Session] = {}
        # sizes that each stream has had; the last one is in force
        self._sizes: dict[str, list[Size]] = {}

    def of(self, stream: str) -> Session:
        """Give the session that a stream is in."""
        return self._open[self._sizes[stream][-1]]

    def step(
        self,
        frames: Mapping[str, Frame],
        vectors: Mapping[str, Vectors | None],
        *,
        record: bool,
    ) -> dict[str, Result]:
        """Run one frame [H, W, C] of each stream that has one."""
        by_size: dict[Size, dict[str, Frame]] = {}
        for stream, frame in frames.items():
            size = (frame.shape[0], frame.shape[1])
            self._settle(stream, size)
            by_size.setdefault(size, {})[stream] = frame
        results: dict[str, Result] = {}
        for size, some in by_size.items():
            session = self._open[size]
            noted = len(session.notes)
            known = {stream: vectors[stream] for stream in some}
            results |= session.step(some, vectors=known, record=record)
            for note in session.notes[noted:]:
                self._warn(note)
        return results

    def _settle(self, stream: str, size: Size) -> None:
        """Open a session for frames of a size, and take the stream out of the one it was in."""
        known = self._sizes.setdefault(stream, [])
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
        if size not in self._open:
            session = self._compiled.session(
                self._slots,
                size=size,
                motion=self._motion,
                border=self._border,
                grain=self._grain,
            )
            session.waits = not self._live
            for note in session.notes:
                self._warn(note)
            self._open[size] = session

    def leave(self, stream: str) -> None:
        """Let a stream leave its session; one that nobody is in gives its memory back."""
        known = self._sizes.get(stream)
        session = self._open.get(known[-1]) if known else None
        if session is None or not known:
            return
        if stream in session.streams:
            session.leave(stream)
        if not session.streams:
            del self._open[known[-1]]
