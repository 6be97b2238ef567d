"""Sessions: a plan, an engine, and the state of N streams."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import Any, TypeGuard

import torch
from torch import Tensor

from torchdelta.apart import apart
from torchdelta.engines import NONE, Engine, FrameCall, Move
from torchdelta.errors import FrameError, StreamError
from torchdelta.plan import Plan, explain
from torchdelta.runtime.audit import Audit, audit_slot
from torchdelta.runtime.checks import (
    check_forced,
    check_grain,
    check_known,
    check_named,
    check_room,
    check_slots,
)
from torchdelta.runtime.frames import Fitting, Frame, check_frame, warn_range
from torchdelta.runtime.gate import Thresholds
from torchdelta.runtime.outputs import Outputs
from torchdelta.runtime.profile import Profile
from torchdelta.runtime.result import Result, StepFrames
from torchdelta.runtime.state import State
from torchdelta.runtime.stats import CountedStep, StreamStats
from torchdelta.runtime.uncounted import Uncounted
from torchdelta.runtime.unpicklable import Unpicklable
from torchdelta.runtime.windows import Mask, Placement, Window, place


class Session(Unpicklable):
    """N slots for streams of one plan. All methods may be called from any thread, one at a time.

    views: True hands out outputs as views of the state, valid until the stream's next frame (of a
           stream whose window moved they are copies)
    timed: measure each step (slower on a GPU: it synchronises)
    total: where the statistics of all streams are kept, if not here; its plan, the network on a
           frame, is what shares are relative to
    grain: side in pixels of the cells in which the input gate counts, see `ops.gate.input_gate`;
           None: what suits the network, see `default_grain`
    """

    instead = (
        "it holds the state of its streams; its results and statistics can be, and another session "
        "of the model begins with a first frame"
    )

    def __init__(
        self,
        engine: Engine,
        slots: int,
        tolerance: float,
        profile: Profile,
        *,
        views: bool = False,
        timed: bool = False,
        total: StreamStats | None = None,
        grain: int | None = None,
    ) -> None:
        slots = check_slots(slots)
        grain = check_grain(grain, engine.plan.total_stride, followed=False)
        self.engine, self.views, self._timed = engine, views, timed
        self._state = State(
            engine.plan, slots, engine.dtype, engine.device, profile.norm, engine.channel_room(),
            grain, exact=tolerance == 0,
        )  # fmt: skip
        self._thresholds = Thresholds(engine.plan, tolerance, profile)
        self._to_full_scale = torch.tensor(
            engine.plan.preprocess.per_full_scale(engine.plan.shape[0]),
            dtype=torch.float32,
            device=engine.device,
        )
        self._slots: dict[str, int] = {}
        self._stats: dict[str, StreamStats] = {}
        self._frames: dict[str, int] = {}
        # streams whose next frame is computed whole, and why
        self._whole: dict[str, str] = {}
        # where streams' windows lie while nothing is said of them
        self._resting: dict[str, Placement] = {}
        # streams whose window has moved with border="keep" since they were last computed whole
        self._kept: set[str] = set()
        self._all = StreamStats(engine.plan) if total is None else total
        # what shares are relative to
        self._network = self._all.plan or engine.plan
        self._uncounted = Uncounted(self._stats, self._all, asynchronous=engine.asynchronous)
        self._forced: Mapping[int, Tensor] | None = None
        self._outputs = Outputs(self._state, views=views)
        self._fitting = Fitting(engine.plan, engine.device, trust_device=engine.asynchronous)
        self._lock = threading.Lock()

    @property
    def plan(self) -> Plan:
        """The plan that all streams run."""
        return self.engine.plan

    @property
    def slots(self) -> int:
        """How many streams fit."""
        return len(self._state.input_threshold)

    @property
    def streams(self) -> list[str]:
        """Names of the streams that are in."""
        return list(self._slots)

    @property
    def grain(self) -> int:
        """Side in pixels of the cells in which the input gate counts."""
        return self._state.input_grain

    @property
    def state_bytes(self) -> int:
        """Bytes of all slots' state."""
        return self._state.bytes

    @apart
    def join(self, stream: str) -> int:
        """Take a free slot for a stream; its first frame is computed whole. Returns the slot.

        Raises: StreamError where the stream is in already or no slot is free.
        """
        with self._lock:
            if stream in self._slots:
                raise StreamError(f"stream {stream!r} has joined already")
            check_room([stream], len(self._slots), self.slots)
            return self._join(stream)

    def _join(self, stream: str) -> int:
        slot = min(set(range(self.slots)) - set(self._slots.values()))
        self._slots[stream] = slot
        self._start(stream, "first frame")
        return slot

    def _start(self, stream: str, reason: str) -> None:
        self._state.place(self._slots[stream], (0, 0))
        self._whole[stream] = reason
        self._resting.pop(stream, None)
        self._uncounted.forget(stream)
        self._stats[stream] = StreamStats(self._network)
        self._frames[stream] = 0

    def _known(self, stream: str) -> int:
        check_known(stream, self._slots)
        return self._slots[stream]

    @apart
    def leave(self, stream: str) -> None:
        """Free a stream's slot. Raises: StreamError for an unknown stream."""
        with self._lock:
            self._leave(stream)

    def _leave(self, stream: str) -> None:
        self._known(stream)
        del self._slots[stream], self._stats[stream], self._frames[stream]
        self._whole.pop(stream, None)
        self._resting.pop(stream, None)
        self._uncounted.forget(stream)

    @apart
    def hand_over(self, stream: str, to: Session, reason: str) -> None:
        """Let a stream go on in another session of the same network, with its statistics.

        reason: why its next frame is computed whole there
        Raises: StreamError for an unknown stream, or where the other session has it or is full.
        """
        with self._lock:
            self._known(stream)
            to.join(stream)
            self._uncounted.count(wait=True)
            with to._lock:
                to._whole[stream] = reason
                to._stats[stream], to._frames[stream] = self._stats[stream], self._frames[stream]
                self._uncounted.hand_over(stream, to._uncounted)
            self._leave(stream)

    @apart
    def reset(self, stream: str) -> None:
        """Forget everything about a stream; its next frame is a first frame, its window at (0, 0).

        Raises: StreamError for an unknown stream.
        """
        with self._lock:
            self._known(stream)
            self._start(stream, "reset")

    @apart
    def refresh(self, stream: str | None = None, *, reason: str = "refresh") -> None:
        """Recompute everything at the next frame of a stream (or of all), and measure its scales.

        reason: what the statistics name it by
        Raises: StreamError for an unknown stream.
        """
        with self._lock:
            names = list(self._slots) if stream is None else [stream]
            for name in names:
                self._known(name)
                self._whole.setdefault(name, reason)

    @apart
    def step(
        self,
        frames: Mapping[str, Frame],
        *,
        roi: Mapping[str, Mask] | None = None,
        windows: Mapping[str, Window] | None = None,
        record: bool = False,
    ) -> dict[str, Result]:
        """Run one frame for each stream that has one; unknown streams join.

        frames:  stream -> numpy [H, W, C] or tensor [C, H, W]; uint8, or float in the input range
        roi:     stream -> bool [H, W], the region of interest: other pixels of the frame are not
                 looked at, and what returns to the region catches up. Ignored where everything is
                 recomputed: a first frame is published whole
        windows: stream -> where its window lies with this frame; the others' stay where they are.
                 The frame shows what the window covers. A jump by more than the window recomputes
                 everything, and the statistics say so
        record:  keep the active sets of all steps in the results
        returns: stream -> Result, for the streams given
        A frame, region or window that does not fit is refused (`Result.error`), its stream stays as
        it was, and the others run. All are checked before any is run; only whether a float frame on
        a GPU is finite is found out there: then nothing of it is published, and the stream's next
        result says so; its statistics count it (`late_errors`).
        Raises: StreamError where a new stream finds no free slot, or where a region or a window
        is of a stream without a frame; nothing has run then.
        """
        return self._turn(frames, roi=roi, windows=windows, record=record)

    def _turn(
        self,
        frames: Mapping[str, Frame],
        *,
        roi: Mapping[str, Mask] | None = None,
        windows: Mapping[str, Window] | None = None,
        record: bool = False,
        forced: Mapping[int, Tensor] | None = None,
        spent_ms: Mapping[str, float] | None = None,
    ) -> dict[str, Result]:
        """Run frames as `step` does, with what its callers have no use for.

        forced:   see `runtime.measure`
        spent_ms: stream -> time that its frame has taken already, for the statistics
        """
        roi, windows = roi or {}, windows or {}
        with self._lock:
            self._check_forced(forced)
            if roi or windows:
                check_named(frames, roi=roi, windows=windows)
            if not roi and not windows and self._go_on(frames):
                results = self._run(frames, self._resting, record, forced, spent_ms or {})
                for stream, error in self._uncounted.take_late(frames).items():
                    results[stream] = Result(stream, error=error)
                return results
            ready: dict[str, Tensor] = {}
            placed: dict[str, Placement] = {}
            refused: dict[str, FrameError] = {}
            for stream, frame in frames.items():
                try:
                    at = self._place(stream, windows.get(stream), roi.get(stream))
                    ready[stream], placed[stream] = self._check(stream, frame, at), at
                except FrameError as error:
                    refused[stream] = FrameError(f"stream {stream!r}: {error}")
            newcomers = [s for s in ready if s not in self._slots]
            check_room(newcomers, len(self._slots), self.slots)
            for stream in newcomers:
                self._join(stream)
                if ready[stream].is_floating_point():
                    warn_range(ready[stream], self.plan.preprocess)
            results = self._run(ready, placed, record, forced, spent_ms or {})
            refused |= self._uncounted.take_late(ready)
            for stream in refused:
                results.pop(stream, None)
            return {s: results[s] if s in results else Result(s, error=refused[s]) for s in frames}

    def _go_on(self, frames: Mapping[str, Any]) -> TypeGuard[Mapping[str, Tensor]]:
        """Whether all streams go on as before, with frames about which there is nothing to say."""
        return (
            self._resting.keys() >= frames.keys()
            and self._whole.keys().isdisjoint(frames)
            and self._fitting.all(frames.values())
        )

    def _place(self, stream: str, window: Window | None, roi: Mask | None) -> Placement:
        """Work out how a stream's window moves, and which of the frame's pixels count."""
        if window is None and roi is None and stream in self._resting:
            return self._resting[stream]
        slot = self._slots.get(stream)
        y, x = (0, 0) if slot is None else self._state.origin[slot].tolist()
        whole = slot is None or stream in self._whole
        return place(self.plan, self.engine.device, (y, x), window, roi, whole=whole)

    def _check(self, stream: str, frame: Frame, at: Placement) -> Tensor:
        """Check a frame and bring it to where the engine takes it: [C, H, W]."""
        engine = self.engine
        # where everything is computed anew, or the window moved, the frame is looked at in any
        # case: there is no state to fall back to
        known = stream in self._slots and stream not in self._whole
        stays = known and at.move is None and at.jump is None
        ready = check_frame(
            frame, self.plan, engine.device, engine.dtype,
            trust_device=engine.asynchronous and stays,
        ).permute(2, 0, 1)  # fmt: skip
        return ready if engine.asynchronous else ready.to(engine.device)

    def _check_forced(self, forced: Mapping[int, Tensor] | None) -> None:
        # the same masks come with every frame that is timed: one look at them will do
        if forced is None or forced is self._forced:
            return
        check_forced(forced, self.plan, self.engine.device)
        self._forced = forced

    def _run(
        self,
        frames: Mapping[str, Tensor],
        placed: Mapping[str, Placement],
        record: bool,
        forced: Mapping[int, Tensor] | None,
        spent_ms: Mapping[str, float],
    ) -> dict[str, Result]:
        begin = time.perf_counter()
        # of streams that had their first frame in the last step
        self._thresholds.settle(self._state)
        slots = {stream: self._slots[stream] for stream in frames}
        by_slot = dict(zip(slots.values(), frames.values(), strict=True))
        moved: dict[int, Move] = {}
        masks: dict[int, Tensor] = {}
        whole: dict[str, str] = {}
        for stream, slot in slots.items() if placed is not self._resting else ():
            at = placed[stream]
            self._settle(stream, at)
            if at.move is not None:
                moved[slot] = at.move
            if at.mask is not None:
                masks[slot] = at.mask
            if stream in self._whole:
                whole[stream] = self._whole[stream]
                self._thresholds.start(self._state, slot)
        try:
            call = FrameCall(
                by_slot, frozenset(slots[s] for s in whole), moved, masks, record, self._timed,
                forced or NONE,
            )  # fmt: skip
            reports = self.engine.step(self._state, call)
        except BaseException:
            # it may have failed half-way: these streams start from scratch
            for stream in frames:
                self._whole.setdefault(stream, "the engine failed")
            raise
        # the device is at work: all that is below costs its time only where it is idle
        for stream in whole:
            del self._whole[stream]
        self._thresholds.measure(self._state, by_slot, self._to_full_scale)
        if not self.engine.asynchronous:
            self._thresholds.settle(self._state)
        outputs = self._outputs.take(list(by_slot))
        shared_ms = 0.0
        if frames and not self.engine.asynchronous:
            self._synchronize()
            # what the engine does not attribute to a slot is shared equally
            own_ms = sum(reports.get(slot).ms for slot in by_slot)
            shared_ms = ((time.perf_counter() - begin) * 1e3 - own_ms) / len(frames)
        counted = CountedStep(
            self.plan, self._network, reports.numbers(), slots,
            [self._stats[s] for s in slots], [self._frames[s] for s in slots], whole,
            [s for s, slot in slots.items() if slot in moved] if moved else (), shared_ms, spent_ms,
        )  # fmt: skip
        for stream in slots:
            self._frames[stream] += 1
        self._uncounted.add(counted)
        shared = StepFrames(counted, reports, self.engine.device, record)
        return {
            s: Result(s, slot, shared, outputs[slot], placed[s].origin) for s, slot in slots.items()
        }

    def _settle(self, stream: str, at: Placement) -> None:
        """Let a stream's window lie where its frame says."""
        if at is self._resting.get(stream) and stream not in self._whole:
            return
        slot = self._slots[stream]
        if at.jump is not None:
            self._whole[stream] = at.jump
        if stream in self._whole:
            self._kept.discard(stream)
        elif at.move is not None and not at.move.exact:
            self._kept.add(stream)
        if (at.move is not None or stream in self._whole) and (
            tuple(self._state.origin[slot]) != at.origin
        ):
            self._state.place(slot, at.origin)
        self._resting[stream] = Placement(at.origin, None, None)

    def _synchronize(self) -> None:
        if self.engine.device.type == "cuda":
            torch.cuda.synchronize(self.engine.device)

    @apart
    def stats(self, stream: str | None = None) -> StreamStats:
        """Copy a stream's statistics, or those of all streams together.

        Frames that a device refused after all count as `late_errors`.
        Raises: StreamError for a stream that is not in.
        """
        with self._lock:
            if stream is not None:
                self._known(stream)
            self._uncounted.count(wait=True)
            return (self._all if stream is None else self._stats[stream]).copy()

    @apart
    def published(self, stream: str) -> Tensor:
        """Copy what the network has been shown of a stream: [1, C, H, W], as the model sees it.

        Of a stream with a window, what the window covers.

        Raises: StreamError for an unknown stream, or one that had no frame yet.
        """
        with self._lock:
            x = self._state.window(self.plan.input, self._with_frames(stream))
            return x.permute(2, 0, 1).unsqueeze(0).clone(memory_format=torch.contiguous_format)

    @apart
    def explain(self) -> str:
        """Return the plan as a table, with the engine and dtype that run it."""
        engine = self.engine
        return explain(
            self.plan, engine.dtype, engine.name, engine.foreign_steps(), engine.whole_steps(),
            engine.notes(),
        )  # fmt: skip

    @apart
    def audit(self, stream: str) -> Audit:
        """Check that every value of a stream is within its threshold of a fresh recompute.

        Where a window has moved with border="keep", the edges of each step are left out.
        Raises: StreamError for an unknown stream, or one that had no frame yet.
        """
        with self._lock:
            slot = self._with_frames(stream)
            self._thresholds.settle(self._state)
            return audit_slot(self.engine, self._state, slot, edges=stream not in self._kept)

    def _with_frames(self, stream: str) -> int:
        slot = self._known(stream)
        if self._frames[stream] == 0:
            raise StreamError(f"stream {stream!r} has had no frame yet")
        return slot

    @apart
    def profile(self, stream: str) -> Profile:
        """Give the profile in force, with the scales measured on this stream.

        Raises: StreamError for an unknown stream.
        """
        with self._lock:
            slot = self._with_frames(stream)
            self._thresholds.settle(self._state)
            return self._thresholds.export(self._state, slot)
