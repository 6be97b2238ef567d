"""What a stream cost: changed input, MAC share and time, per frame and per step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from math import prod
from operator import add, mul
from typing import Any, NamedTuple

from torchdelta.engines import SlotReport
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
    align_ms:      of ms, what estimating a camera's motion and warping the frame took
    """

    frame: int
    first: bool
    changed_input: float
    mac_share: float
    work_share: float
    ms: float
    reason: str | None = None
    moved: bool = False
    align_ms: float = 0.0


@dataclass(frozen=True)
class StepStats:
    """One step of the plan, over a stream's frames after the first.

    active_share: mean share of its pixels that were active; mac_share: its MACs spent over the
    network's dense MACs; ms: mean time, None unless the session was opened with timed=True
    dense: whether it has no sparse form;  kind: its operation, of a dense step the ATen call's name
    """

    name: str
    op: str
    shape: tuple[int, ...]
    macs: int
    active_share: float
    mac_share: float
    ms: float | None
    dense: bool
    kind: str


class StepFacts(NamedTuple):
    """What statistics know of a step of the plan, without its weights; px: pixels of its result."""

    name: str
    op: str
    shape: tuple[int, ...]
    macs: int
    px: int
    dense: bool
    kind: str


@dataclass
class StreamStats:
    """Running statistics of one stream (or of all streams of a session together).

    plan:    the network on a frame, which all shares are relative to; None once pickled
    reasons: how often everything was recomputed, by reason;  moves: frames with which its window
    moved
    late_errors: frames that a device refused after `step` had returned; late_error: the last one's
    """

    plan: Plan | None = field(repr=False, compare=False)
    frames: int = 0
    last: FrameStats | None = None
    first_ms: float | None = None
    later: int = 0
    reasons: dict[str, int] = field(default_factory=dict, repr=False)
    moves: int = 0
    sums: dict[str, float] = field(default_factory=dict, repr=False)
    active_px: list[int] = field(default_factory=list, repr=False)
    step_ms: list[float] = field(default_factory=list, repr=False)
    late_errors: int = 0
    late_error: str | None = None
    # what remains of the plan once pickled, for `per_step`
    _steps: tuple[StepFacts, ...] = field(default=(), repr=False, compare=False)

    def __getstate__(self) -> dict[str, Any]:
        # a plan holds all weights
        return {**self.__dict__, "plan": None, "_steps": self._each_step()}

    def _each_step(self) -> tuple[StepFacts, ...]:
        if self.plan is None:
            return self._steps
        outputs = [self.plan.values[step.output] for step in self.plan.steps]
        return tuple(
            StepFacts(
                step.name, step.op.name, out.shape, step.macs, prod(out.size), step.dense,
                step.op.describe().split(".")[0] if step.dense else step.op.name,
            )
            for step, out in zip(self.plan.steps, outputs, strict=True)
        )  # fmt: skip

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

    def add_like(self, last: FrameStats, plan: Plan, whole: Plan, px: Sequence[int], frames: int,
                 ms: float) -> None:  # fmt: skip
        """Count frames that are like any other all at once; last: the last one of them.

        px: sums over them, active pixels by step, then published input pixels;  ms: their time
        """
        *active, changed = px
        share = _larger(plan, whole) * sum(map(mul, plan.mac_share_per_px, active))
        sums = {
            "changed_input": changed / prod(whole.size), "mac_share": share, "work_share": share,
            "ms": ms,
        }  # fmt: skip
        for key, amount in sums.items():
            self.sums[key] = self.sums.get(key, 0.0) + amount
        self.active_px = _plus(self.active_px, active)
        self.frames += frames
        self.later += frames
        self.last = last

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
        out, steps = [], self._each_step()
        whole = sum(step.macs for step in steps) or 1
        for i, step in enumerate(steps):
            area = step.px * max(1, self.later)
            share = self.active_px[i] / area if self.active_px else 0.0
            ms = self.step_ms[i] / max(1, self.later) if self.step_ms else None
            out.append(
                StepStats(
                    step.name, step.op, step.shape, step.macs, share, share * step.macs / whole,
                    ms, step.dense, step.kind,
                )
            )  # fmt: skip
        return out

    def to_dict(self) -> dict[str, Any]:
        """Give the figures as a JSON object: means, counts, and the last frame's own."""
        return {
            "frames": self.frames,
            "first_ms": self.first_ms,
            "ms": self.ms,
            "changed_input": self.changed_input,
            "mac_share": self.mac_share,
            "work_share": self.work_share,
            "reasons": dict(self.reasons),
            "moves": self.moves,
            "late_errors": self.late_errors,
            "late_error": self.late_error,
            "last": None if self.last is None else asdict(self.last),
        }

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


def _plus(a: list, b: list) -> list:
    return list(map(add, a, b)) if a else list(b)


def _larger(plan: Plan, whole: Plan) -> float:
    """Say how many times more the network costs on what ran than on a frame."""
    return 1.0 if plan is whole else plan.macs / (whole.macs or 1)


def frame_stats(
    plan: Plan, whole: Plan, report: SlotReport, frame: int, ms: float, reason: str | None,
    moved: bool, align_ms: float = 0.0,
) -> FrameStats:  # fmt: skip
    """Turn an engine's counts into shares.

    plan: what ran, on the frame or on a window;  whole: the network on the frame
    """
    larger = _larger(plan, whole)
    if reason is not None:
        return FrameStats(frame, True, 1.0, larger, larger, ms, reason, align_ms=align_ms)
    # plain Python: after another network's run, the first call into a library takes 0.1 ms
    active, work = report.active_px, report.work_px
    spent = worked = larger * sum(map(mul, plan.mac_share_per_px, active))
    if work is not active:
        worked = larger * sum(map(mul, plan.mac_share_per_px, work))
    changed = report.input_px / prod(whole.size)
    return FrameStats(frame, False, changed, spent, worked, ms, moved=moved, align_ms=align_ms)
