"""What a stream cost: changed input, MAC share and time, per frame and per step."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import prod
from operator import add, mul

import numpy as np
import torch

from torchdelta.engines import Deferred, Engine, SlotReport
from torchdelta.plan import Plan


@dataclass(frozen=True)
class FrameStats:
    """One frame of one stream.

    frame:         its number in the stream, from 0
    first:         whether everything was recomputed
    changed_input: pixels that were published over the frame's; 1.0 on a first frame
    mac_share:     MACs on the active sets over those of the dense network on the frame; 1.0 on a
                   first frame, more where a window larger than the frame is computed
    work_share:    the same for the pixels that the engine really computed
    ms:            time of the step's share of this stream, milliseconds; of a moving camera with
                   estimation and warp (on a GPU their time on the host)
    reason:        why everything was recomputed ("first frame", "reset", "refresh" or the refresh's
                   own reason, a jump of the window), else None
    moved:         whether the stream's window moved with it
    """

    frame: int
    first: bool
    changed_input: float
    mac_share: float
    work_share: float
    ms: float
    reason: str | None = None
    moved: bool = False


@dataclass(frozen=True)
class StepStats:
    """One step of the plan, over a stream's frames after the first.

    active_share: mean share of its pixels that were active; mac_share: its MACs spent over the
    network's dense MACs; ms: mean time, None unless the session was opened with timed=True
    """

    name: str
    op: str
    shape: tuple[int, ...]
    macs: int
    active_share: float
    mac_share: float
    ms: float | None = None


@dataclass
class StreamStats:
    """Running statistics of one stream (or of all streams of a session together).

    plan:    the network on a frame, which all shares are relative to
    reasons: how often everything was recomputed, by reason;  moves: frames with which its window
    moved
    """

    plan: Plan = field(repr=False)
    frames: int = 0
    last: FrameStats | None = None
    first_ms: float | None = None
    later: int = 0
    reasons: dict[str, int] = field(default_factory=dict, repr=False)
    moves: int = 0
    sums: dict[str, float] = field(default_factory=dict, repr=False)
    active_px: list[int] = field(default_factory=list, repr=False)
    step_ms: list[float] = field(default_factory=list, repr=False)

    def add(self, stats: FrameStats, report: SlotReport) -> None:
        """Count one frame; frames that recompute everything stay out of the means."""
        self.frames += 1
        self.last = stats
        self.moves += stats.moved
        if stats.first:
            reason = stats.reason or ""
            self.reasons[reason] = self.reasons.get(reason, 0) + 1
            if self.first_ms is None:
                self.first_ms = stats.ms
            return
        self.later += 1
        for key in ("changed_input", "mac_share", "work_share", "ms"):
            self.sums[key] = self.sums.get(key, 0.0) + getattr(stats, key)
        self.active_px = _plus(self.active_px, report.active_px)
        if report.step_ms is not None:
            self.step_ms = _plus(self.step_ms, report.step_ms)

    def add_all(self, frames: Sequence[Counted]) -> None:
        """Count frames of one session in order; together they cost little more than one."""
        rows: list[np.ndarray] = []
        ms = 0.0
        for counted in frames:
            counts = counted.counts()
            if counts is None:
                self.add(counted.stats, counted.report)
            else:
                rows.append(counts[0])
                ms += counts[1]
        if not rows:
            return
        plan, whole = frames[-1].plan, frames[-1].whole
        totals: list[int] = np.stack(rows).sum(0, dtype=np.int64).tolist()
        active, changed = totals[:-1], totals[-1]
        share = _larger(plan, whole) * sum(map(mul, plan.mac_share_per_px, active))
        sums = {
            "changed_input": changed / prod(whole.size), "mac_share": share, "work_share": share,
            "ms": ms,
        }  # fmt: skip
        for key, amount in sums.items():
            self.sums[key] = self.sums.get(key, 0.0) + amount
        self.active_px = _plus(self.active_px, active)
        self.frames += len(rows)
        self.later += len(rows)
        self.last = frames[-1].stats

    def copy(self) -> StreamStats:
        """Copy what has been counted so far."""
        return replace(
            self,
            reasons=dict(self.reasons),
            sums=dict(self.sums),
            active_px=list(self.active_px),
            step_ms=list(self.step_ms),
        )

    def _mean(self, key: str) -> float | None:
        return self.sums[key] / self.later if self.later else None

    @property
    def changed_input(self) -> float | None:
        """Mean share of changed input pixels, frames after the first; None before them."""
        return self._mean("changed_input")

    @property
    def mac_share(self) -> float | None:
        """Mean MAC share, frames after the first."""
        return self._mean("mac_share")

    @property
    def work_share(self) -> float | None:
        """Mean share of MACs that the engine really spent, frames after the first."""
        return self._mean("work_share")

    @property
    def ms(self) -> float | None:
        """Mean milliseconds per frame, frames after the first."""
        return self._mean("ms")

    def per_step(self) -> list[StepStats]:
        """List the means per step of the plan."""
        out = []
        for i, step in enumerate(self.plan.steps):
            value = self.plan.values[step.output]
            area = prod(value.size) * max(1, self.later)
            share = self.active_px[i] / area if self.active_px else 0.0
            whole = self.plan.macs or 1
            ms = self.step_ms[i] / max(1, self.later) if self.step_ms else None
            out.append(
                StepStats(
                    step.name, step.op.name, value.shape, step.macs, share,
                    share * step.macs / whole, ms,
                )
            )  # fmt: skip
        return out

    def __str__(self) -> str:
        if self.last is None:
            return "no frame yet"
        text = f"{self.frames} frames, first {self.first_ms:.1f} ms"
        if self.later:
            text += (
                f", then {self.ms:.1f} ms: changed input {self.changed_input:.1%}, "
                f"MAC share {self.mac_share:.1%}"
            )
        return text


class Counted:
    """One frame of one stream: its engine's report and its statistics, made when they are read.

    frame: its number in the stream;  reason: why everything was recomputed, else None
    moved: whether the window moved
    shared_ms: its share of the time that the engine does not attribute to a slot
    whole: the network on a frame, which shares are relative to
    """

    def __init__(
        self, engine: Engine, report: SlotReport | Deferred, frame: int, reason: str | None,
        moved: bool, shared_ms: float, whole: Plan,
    ) -> None:  # fmt: skip
        self.plan, self.frame, self.whole = engine.plan, frame, whole
        self.device: torch.device = engine.device
        self._report, self._shared_ms = report, shared_ms
        self._reason, self._moved = reason, moved
        self._numbers: Counted | None = None
        self._only_numbers = isinstance(report, SlotReport)

    def numbers(self) -> Counted:
        """Give the same without masks, which a device need not keep for the statistics."""
        if self._only_numbers:
            return self
        if self._numbers is None:
            self._numbers = copy(self)
            self._numbers._only_numbers = True
            if not isinstance(self._report, SlotReport):
                self._numbers._report = self._report.numbers()
        return self._numbers

    @property
    def ready(self) -> bool:
        """Whether nothing has to be waited for."""
        return isinstance(self._report, SlotReport) or self._report.ready

    @property
    def in_doubt(self) -> bool:
        """Whether the frame may be refused after all."""
        if isinstance(self._report, SlotReport):
            return self._report.error is not None
        return self._report.in_doubt

    def counts(self) -> tuple[np.ndarray, float] | None:
        """Give the frame's numbers and its time (`Deferred.counts`), where it is like any other."""
        if isinstance(self._report, SlotReport) or self._reason is not None or self._moved:
            return None
        counts = self._report.counts()
        return None if counts is None else (counts[0], counts[1] + self._shared_ms)

    @property
    def report(self) -> SlotReport:
        """What the engine did; waits for the device."""
        if not isinstance(self._report, SlotReport):
            self._report = self._report.get()
        return self._report

    @property
    def stats(self) -> FrameStats:
        """Counts of the frame; waits for the device."""
        return self.numbers()._stats

    @cached_property
    def _stats(self) -> FrameStats:
        ms = self.report.ms + self._shared_ms
        return frame_stats(
            self.plan, self.whole, self.report, self.frame, ms, self._reason, self._moved
        )


def _plus(a: list, b: list) -> list:
    return list(map(add, a, b)) if a else list(b)


def _larger(plan: Plan, whole: Plan) -> float:
    """Say how many times more the network costs on what ran than on a frame."""
    return 1.0 if plan is whole else plan.macs / (whole.macs or 1)


def frame_stats(
    plan: Plan, whole: Plan, report: SlotReport, frame: int, ms: float, reason: str | None,
    moved: bool,
) -> FrameStats:  # fmt: skip
    """Turn an engine's counts into shares.

    plan: what ran, on the frame or on a window;  whole: the network on the frame
    """
    larger = _larger(plan, whole)
    if reason is not None:
        return FrameStats(frame, True, 1.0, larger, larger, ms, reason)
    # plain Python: after another network's run, the first call into a library takes 0.1 ms
    active, work = report.active_px, report.work_px
    spent = worked = larger * sum(map(mul, plan.mac_share_per_px, active))
    if work is not active:
        worked = larger * sum(map(mul, plan.mac_share_per_px, work))
    changed = report.input_px / prod(whole.size)
    return FrameStats(frame, False, changed, spent, worked, ms, moved=moved)
