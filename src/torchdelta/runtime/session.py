"""Sessions: a plan, an engine, and the state of N streams."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import Any, TypeGuard

import torch
from torch import Tensor

from torchdelta.apart import apart
from torchdelta.arguments import finite
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
from torchdelta.runtime.stats import StreamStats
from torchdelta.runtime.stream import Stream
from torchdelta.runtime.uncounted import CountedStep, Uncounted
from torchdelta.runtime.unpicklable import Unpicklable
from torchdelta.runtime.windows import Mask, Placement, Window, place


class Session(Unpicklable):
    """N slots for streams of one plan. All methods may be called from any thread, one at a time.

    views: True hands out outputs as views of the state, valid until the stream's next frame (of a
           stream whose window moved they are copies)
    tolerance: of the streams that join, see `set_tolerance`
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
            grain,
        )  # fmt: skip
        self._thresholds = Thresholds(engine.plan, slots, profile)
        self._tolerance = tolerance
        self._to_full_scale = torch.tensor(
            engine.plan.preprocess.per_full_scale(engine.plan.shape[0]),
            dtype=torch.float32,
            device=engine.device,
        )
        self._streams: dict[str, Stream] = {}
        self._all = StreamStats(engine.plan) if total is None else total
        # what shares are relative to
        self._network = self._all.plan or engine.plan
        self._uncounted = Uncounted(self._all, asynchronous=engine.asynchronous)
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
        return list(self._streams)

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
            if stream in self._streams:
                raise StreamError(f"stream {stream!r} has joined already")
            check_room([stream], len(self._streams), self.slots)
            return self._join(stream).slot

    def _join(self, name: str) -> Stream:
        taken = {stream.slot for stream in self._streams.values()}
        slot = min(set(range(self.slots)) - taken)
        return self._start(name, slot, self._tolerance, "first frame")

    def _start(self, name: str, slot: int, tolerance: float, reason: str) -> Stream:
        self._state.place(slot, (0, 0))
        stream = Stream(name, slot, StreamStats(self._network), tolerance, reason)
        self._streams[name] = stream
        return stream

    def _known(self, name: str) -> Stream:
        check_known(name, self._streams)
        return self._streams[name]

    @apart
    def leave(self, stream: str) -> None:
        """Free a stream's slot. Raises: StreamError for an unknown stream."""
        with self._lock:
            self._known(stream)
            del self._streams[stream]

    @apart
    def hand_over(self, stream: str, to: Session, reason: str) -> None:
        """Let a stream go on in another session of the same network, with its statistics.

        reason: why its next frame is computed whole there
        Raises: StreamError for an unknown stream, or where the other session has it or is full.
        """
        with self._lock:
            before = self._known(stream)
            to.join(stream)
            self._uncounted.count(wait=True)
            with to._lock:
                now = to._streams[stream]
                now.full, now.stats, now.frames = reason, before.stats, before.frames
                now.late, now.tolerance = before.late, before.tolerance
            del self._streams[stream]

    @apart
    def reset(self, stream: str) -> None:
        """Forget everything about a stream; its next frame is a first frame, its window at (0, 0).

        Raises: StreamError for an unknown stream.
        """
        with self._lock:
            known = self._known(stream)
            self._start(stream, known.slot, known.tolerance, "reset")

    @apart
    def refresh(self, stream: str | None = None, *, reason: str = "refresh") -> None:
        """Recompute everything at the next frame of a stream (or of all), and measure its scales.

        reason: what the statistics name it by
        Raises: StreamError for an unknown stream.
        """
        with self._lock:
            for name in list(self._streams) if stream is None else [stream]:
                known = self._known(name)
                known.full = known.full or reason

    @apart
    def set_tolerance(self, stream: str, tolerance: float, *, refresh: bool = False) -> None:
        """Change a stream's tolerance, from its next frame on.

        A higher one holds at once, a lower one where pixels are next gated: what was held back
        before stays until then. With a tolerance of 0, or `refresh`, everything is computed anew
        at the next frame ("tolerance").
        Raises: StreamError for an unknown stream, ValueError for what is no tolerance.
        """
        tolerance = finite("tolerance", tolerance, least=0)
        with self._lock:
            known = self._known(stream)
            if refresh or tolerance == 0 < known.tolerance:
                known.full = known.full or "tolerance"
            known.tolerance = tolerance
            if known.full is None:
                self._thresholds.change(self._state, known.slot, tolerance)

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
                streams = {name: self._streams[name] for name in frames}
                results = self._run(streams, frames, None, record, forced, spent_ms or {})
                for name, error in self._uncounted.take_late(streams.values()).items():
                    results[name] = Result(name, error=error)
                return results
            ready: dict[str, Tensor] = {}
            placed: dict[str, Placement] = {}
            refused: dict[str, FrameError] = {}
            for name, frame in frames.items():
                stream = self._streams.get(name)
                try:
                    at = self._place(stream, windows.get(name), roi.get(name))
                    ready[name], placed[name] = self._check(stream, frame, at), at
                except FrameError as error:
                    refused[name] = FrameError(f"stream {name!r}: {error}")
            newcomers = [name for name in ready if name not in self._streams]
            check_room(newcomers, len(self._streams), self.slots)
            for name in newcomers:
                self._join(name)
                if ready[name].is_floating_point():
                    warn_range(ready[name], self.plan.preprocess)
            streams = {name: self._streams[name] for name in ready}
            results = self._run(streams, ready, placed, record, forced, spent_ms or {})
            refused |= self._uncounted.take_late(streams.values())
            for name in refused:
                results.pop(name, None)
            return {n: results[n] if n in results else Result(n, error=refused[n]) for n in frames}

    def _go_on(self, frames: Mapping[str, Any]) -> TypeGuard[Mapping[str, Tensor]]:
        """Whether all streams go on as before, with frames about which there is nothing to say."""
        known = self._streams
        for name in frames:
            if name not in known or known[name].full is not None:
                return False
        return self._fitting.all(frames.values())

    def _place(self, stream: Stream | None, window: Window | None, roi: Mask | None) -> Placement:
        """Work out how a stream's window moves, and which of the frame's pixels count."""
        full = stream is None or stream.full is not None
        if stream is not None and not full and window is None and roi is None:
            return stream.rest
        y, x = (0, 0) if stream is None else self._state.origin[stream.slot].tolist()
        return place(self.plan, self.engine.device, (y, x), window, roi, whole=full)

    def _check(self, stream: Stream | None, frame: Frame, at: Placement) -> Tensor:
        """Check a frame and bring it to where the engine takes it: [C, H, W]."""
        engine = self.engine
        # where everything is computed anew, or the window moved, the frame is looked at in any
        # case: there is no state to fall back to
        goes_on = stream is not None and stream.full is None
        stays = goes_on and at.move is None and at.jump is None
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
        streams: Mapping[str, Stream],
        frames: Mapping[str, Tensor],
        placed: Mapping[str, Placement] | None,
        record: bool,
        forced: Mapping[int, Tensor] | None,
        spent_ms: Mapping[str, float],
    ) -> dict[str, Result]:
        """Run frames; placed: where the streams' windows lie with them, None: they all rest."""
        begin = time.perf_counter()
        # of streams that had their first frame in the last step
        self._thresholds.settle(self._state)
        by_slot = {stream.slot: frames[name] for name, stream in streams.items()}
        moved: dict[int, Move] = {}
        masks: dict[int, Tensor] = {}
        full: dict[str, str] = {}
        for name, at in placed.items() if placed is not None else ():
            stream = streams[name]
            self._settle(stream, at)
            if at.move is not None:
                moved[stream.slot] = at.move
            if at.mask is not None:
                masks[stream.slot] = at.mask
            if stream.full is not None:
                full[name] = stream.full
                self._thresholds.start(self._state, stream.slot, stream.tolerance)
        try:
            call = FrameCall(
                by_slot, frozenset(streams[name].slot for name in full), moved, masks, record,
                self._timed, forced or NONE,
            )  # fmt: skip
            reports = self.engine.step(self._state, call)
        except BaseException:
            # it may have failed half-way: these streams start from scratch
            for stream in streams.values():
                stream.full = stream.full or "the engine failed"
            raise
        # the device is at work: all that is below costs its time only where it is idle
        for name in full:
            streams[name].full = None
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
            self.plan, self._network, reports.numbers(), streams,
            [stream.frames for stream in streams.values()], full,
            [name for name, s in streams.items() if s.slot in moved] if moved else (), shared_ms,
            spent_ms,
        )  # fmt: skip
        for stream in streams.values():
            stream.frames += 1
        self._uncounted.add(counted)
        shared = StepFrames(counted, reports, self.engine.device, record)
        return {
            name: Result(name, s.slot, shared, outputs[s.slot], s.rest.origin)
            for name, s in streams.items()
        }

    def _settle(self, stream: Stream, at: Placement) -> None:
        """Let a stream's window lie where its frame says."""
        if at is stream.rest:
            return
        if at.jump is not None:
            stream.full = at.jump
        if stream.full is not None:
            stream.kept = False
        elif at.move is not None and not at.move.exact:
            stream.kept = True
        if (at.move is not None or stream.full is not None) and (
            tuple(self._state.origin[stream.slot]) != at.origin
        ):
            self._state.place(stream.slot, at.origin)
        stream.rest = Placement(at.origin)

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
            return (self._all if stream is None else self._streams[stream].stats).copy()

    @apart
    def published(self, stream: str) -> Tensor:
        """Copy what the network has been shown of a stream: [1, C, H, W], as the model sees it.

        Of a stream with a window, what the window covers.

        Raises: StreamError for an unknown stream, or one that had no frame yet.
        """
        with self._lock:
            x = self._state.window(self.plan.input, self._with_frames(stream).slot)
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

        Where the tolerance was lowered, that is the largest since everything was computed anew.

        Where a window has moved with border="keep", the edges of each step are left out.
        Raises: StreamError for an unknown stream, or one that had no frame yet.
        """
        with self._lock:
            known = self._with_frames(stream)
            self._thresholds.settle(self._state)
            largest = self._thresholds.largest[known.slot]
            return audit_slot(self.engine, self._state, known.slot, largest, edges=not known.kept)

    def _with_frames(self, name: str) -> Stream:
        stream = self._known(name)
        if stream.frames == 0:
            raise StreamError(f"stream {name!r} has had no frame yet")
        return stream

    @apart
    def profile(self, stream: str) -> Profile:
        """Give the profile in force, with the scales measured on this stream.

        Raises: StreamError for an unknown stream.
        """
        with self._lock:
            known = self._with_frames(stream)
            self._thresholds.settle(self._state)
            return self._thresholds.export(self._state, known.slot)
