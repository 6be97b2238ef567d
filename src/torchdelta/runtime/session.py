"""Sessions: a network, an engine, and the state of N streams."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor

from torchdelta.apart import apart
from torchdelta.arguments import shown
from torchdelta.engines import NONE, Engine, FrameCall, Move
from torchdelta.errors import FrameError, StreamError
from torchdelta.motion.align import RELATIVE_TO
from torchdelta.ops.base import Size
from torchdelta.plan import Plan, explain
from torchdelta.runtime.canvas import Canvas
from torchdelta.runtime.checks import (
    check_forced,
    check_grain,
    check_known,
    check_named,
    check_room,
    check_slots,
)
from torchdelta.runtime.frames import Fitting, Frame, picture_of, warn_range
from torchdelta.runtime.handle import StreamHandle
from torchdelta.runtime.placement import (
    Arrival,
    Motion,
    Placed,
    Placement,
    World,
    check_motion,
    make_placement,
)
from torchdelta.runtime.profile import Profile
from torchdelta.runtime.result import Result, StepFrames
from torchdelta.runtime.stats import StreamStats
from torchdelta.runtime.stream import Stream
from torchdelta.runtime.uncounted import CountedStep, Uncounted
from torchdelta.runtime.unpicklable import Unpicklable
from torchdelta.runtime.windows import Border, Mask, Window
from torchdelta.videoframe import VideoFrame


class Session(Unpicklable):
    """N slots for streams of one network. All methods may be called from any thread, one at a time.

    A stream whose camera stands still runs on its frames. One whose camera is followed runs on a
    window of the world a little larger than the frame; its frames are aligned and warped into it.

    engine:  what runs the network on frames
    tolerance: of the streams that join, see `StreamHandle.set_tolerance`
    engine_at: gives the engine of the network at a size (h, w); None: no camera can be followed
    motion:  of the streams that join, see `StreamHandle.set_motion`
    border:  of windows of followed cameras, see `Window`
    views:   True hands out outputs as views of the state, valid until the stream's next frame (of a
             stream whose window moved they are copies)
    timed:   measure each step (slower on a GPU: it synchronises)
    grain:   side in pixels of the cells in which the input gate counts, see `ops.gate.input_gate`;
             None: what suits the network, see `default_grain`, for still and followed cameras apart
    grains:  both of these
    draw:    turns a result into a picture, see `Result.plot`
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
        engine_at: Callable[[Size], Engine] | None = None,
        motion: Motion = "none",
        border: Border = "keep",
        views: bool = False,
        timed: bool = False,
        grain: int | None = None,
        draw: Callable[[Result], Any] | None = None,
    ) -> None:
        check_motion(motion, border)
        self.engine, self.slots = engine, check_slots(slots)
        self.motion, self.border, self.views, self._timed = motion, border, views, timed
        self._tolerance, self._profile, self._draw = tolerance, profile, draw
        stride = engine.plan.total_stride
        self.grains: tuple[int, ...] = tuple(
            check_grain(grain, stride, followed=followed) for followed in (False, True)
        )
        self._world = World(engine, engine_at, border)
        # by whether they are of windows
        self._canvases: dict[bool, Canvas] = {}
        self._streams: dict[str, Stream] = {}
        self._all = StreamStats(engine.plan)
        self._uncounted = Uncounted(self._all, asynchronous=engine.asynchronous)
        self._forced: Mapping[int, Tensor] | None = None
        self._fitting = Fitting(engine.plan, engine.device, trust_device=engine.asynchronous)
        self._lock = threading.Lock()
        if motion == "none":
            self._canvas(followed=False)
        elif motion != "auto":
            self._world.require()

    @property
    def plan(self) -> Plan:
        """The network on the frame."""
        return self.engine.plan

    @property
    def streams(self) -> list[str]:
        """Names of the streams that are in."""
        return list(self._streams)

    @property
    def followed(self) -> list[str]:
        """Names of the streams whose cameras are followed."""
        return [name for name, stream in self._streams.items() if stream.placement.followed]

    @property
    def engines(self) -> list[Engine]:
        """What streams run on now: on frames, on windows, or on both."""
        return [canvas.engine for canvas in self._canvases.values()]

    @property
    def window(self) -> Size:
        """The size (h, w) of the windows on which cameras are followed."""
        return self._world.window

    @property
    def notes(self) -> list[str]:
        """What came up on the way."""
        return self._world.notes

    @property
    def waits(self) -> bool:
        """With "auto": whether a stream that first needs a window waits for it.

        That suits recordings. Else it stays still, while the network is compiled for windows in the
        background. May be set at any time.
        """
        return self._world.waits

    @waits.setter
    def waits(self, waits: bool) -> None:
        self._world.waits = waits

    @property
    def grain(self) -> int:
        """Side in pixels of the cells in which the input gate counts, of streams on frames."""
        return self.grains[0]

    @property
    def state_bytes(self) -> int:
        """Bytes of all slots' state, on frames and on windows."""
        return sum(canvas.state.bytes for canvas in self._canvases.values())

    def _canvas(self, *, followed: bool) -> Canvas:
        """Give what streams run on, made when it is first needed."""
        found = self._canvases.get(followed)
        if found is None:
            engine = self._world.require() if followed else self.engine
            found = self._canvases[followed] = Canvas(
                engine, self.slots, self._profile, grain=self.grains[followed], views=self.views
            )
        return found

    def _close_empty(self) -> None:
        """Give memory back that nobody is on; a session of still streams keeps its own."""
        streams = self._streams.values()
        for followed, canvas in list(self._canvases.items()):
            used = any(s.placement.followed == followed or s.canvas is canvas for s in streams)
            if not used and (followed or self.motion != "none"):
                del self._canvases[followed]

    # ---------------------------------------------------------------------------- streams

    def stream(self, name: str) -> StreamHandle:
        """Give a handle of a stream, which joins at its first frame where it is not in yet.

        Raises: StreamError for what is no name.
        """
        if not isinstance(name, str):
            raise StreamError(f"a stream's name is a str, got {shown(name)}")
        return StreamHandle(self, name)

    def _new(
        self, name: str, motion: Motion, tolerance: float, reason: str, slot: int = -1
    ) -> Stream:
        """Make a stream at its beginning; slot: -1: it gets one when it joins."""
        stats = StreamStats(self.plan)
        return Stream(name, slot, reason, motion, self._placement(motion), stats, tolerance)

    def _placement(self, motion: Motion) -> Placement:
        return make_placement(motion, self._world, self.grains)

    def _join(self, stream: Stream) -> Stream:
        taken = {other.slot for other in self._streams.values()}
        stream.slot = min(set(range(self.slots)) - taken)
        self._streams[stream.name] = stream
        return stream

    def _known(self, name: str) -> Stream:
        check_known(name, self._streams)
        return self._streams[name]

    @apart
    def refresh(self, *, reason: str = "refresh") -> None:
        """Recompute everything at the next frame of all streams, and measure their scales again.

        reason: what the statistics name it by
        """
        with self._lock:
            for known in self._streams.values():
                known.full = known.full or reason

    # ----------------------------------------------------------------------------- frames

    @apart
    def step(
        self,
        frames: Mapping[str, Frame],
        *,
        roi: Mapping[str, Mask] | None = None,
        homographies: Mapping[str, Any] | None = None,
        relative_to: str = "previous",
        record: bool = False,
    ) -> dict[str, Result]:
        """Run one frame for each stream that has one; unknown streams join.

        frames:  stream -> numpy [H, W, C] or tensor [C, H, W]; uint8, or float in the input range;
                 or a `VideoFrame` of one, whose motion vectors "codec" and "auto" read
        roi:     stream -> bool [H, W], the region of interest: other pixels of the frame are not
                 looked at, and what returns to the region catches up. Ignored where everything is
                 recomputed: a first frame is published whole
        homographies: with motion="given": stream -> 3x3, pixel centres (x, y, 1) of this frame to
                 those of the stream's previous one. A first frame needs none; any other without
                 one, or with None, becomes a new reference
        relative_to: "previous", or "reference": homographies lead to the last frame whose
                 `result.aligned.anchored` is not None
        record:  keep the active sets of all steps in the results
        returns: stream -> Result, for the streams given. Output and masks of a followed camera are
                 its window's, and `result.to_frame_points` and its like lead back to the frame
        A frame, region or homography that does not fit is refused (`Result.error`), its
        stream stays as it was, and the others run. All are checked before any is run; only whether
        a float frame on a GPU is finite is found out there: then nothing of it is published, and
        the stream's next result says so; its statistics count it (`late_errors`). A homography to a
        frame that was refused leads nowhere: its frame becomes a new reference ("refused frame").
        Raises: StreamError where a new stream finds no free slot, or where a region or
        a homography is of a stream without a frame; ValueError for homographies that
        nobody asked for, or an unknown relative_to; nothing has run then.
        """
        return self._turn(
            frames, roi or NONE, NONE, homographies or NONE, relative_to, record=record
        )

    def _turn(
        self,
        frames: Mapping[str, Frame],
        roi: Mapping[str, Mask] = NONE,
        windows: Mapping[str, Window] = NONE,
        homographies: Mapping[str, Any] = NONE,
        relative_to: str = "previous",
        record: bool = False,
        forced: Mapping[int, Tensor] | None = None,
    ) -> dict[str, Result]:
        """Run frames as `step` does; windows and forced: see `runtime.measure`."""
        if relative_to not in RELATIVE_TO:
            raise ValueError(f"relative_to is {relative_to!r}, expected one of {RELATIVE_TO}")
        with self._lock:
            self._check_forced(forced)
            if roi or windows or homographies:
                check_named(frames, roi=roi, windows=windows, homographies=homographies)
                self._check_asked_for(homographies)
            steady = self._begin(frames)
            plain = steady is not None and not roi and not windows
            tensors = self._fitting.taken(frames) if plain else None
            if steady is not None and tensors is not None:
                canvas = self._canvas(followed=False)
                results = self._run(canvas, steady, tensors, None, record, forced)
                for name, error in self._uncounted.take_late(steady.values()).items():
                    results[name] = Result(name, error=error)
                self._take_note(steady.values(), frames, results)
                return results
            ready: dict[str, tuple[Stream, Arrival]] = {}
            refused: dict[str, FrameError] = {}
            for name, frame in frames.items():
                known = self._streams.get(name)
                stream = known or self._new(name, self.motion, self._tolerance, "first frame")
                arrival = Arrival(
                    picture_of(frame), roi.get(name), windows.get(name), homographies.get(name),
                    relative_to, frame.vectors if isinstance(frame, VideoFrame) else None,
                )  # fmt: skip
                try:
                    ready[name] = stream, stream.placement.check(stream, arrival)
                except FrameError as error:
                    refused[name] = FrameError(f"stream {name!r}: {error}")
            newcomers = [name for name in ready if name not in self._streams]
            check_room(newcomers, len(self._streams), self.slots)
            for name in newcomers:
                stream, arrival = ready[name]
                self._join(stream)
                if arrival.frame.is_floating_point():
                    warn_range(arrival.frame, self.plan.preprocess)
            results = self._place_and_run(ready, record, forced)
            streams = [stream for stream, _ in ready.values()]
            refused |= self._uncounted.take_late(streams)
            for name in refused:
                results.pop(name, None)
                if name in self._streams and name not in ready:
                    self._streams[name].placement.missed()
            results = {
                n: results[n] if n in results else Result(n, error=refused[n]) for n in frames
            }
            self._take_note(streams, frames, results)
            if len(self._canvases) > 1:
                self._close_empty()
            return results

    def _check_asked_for(self, homographies: Mapping[str, Any]) -> None:
        for name in homographies:
            known = self._streams.get(name)
            motion = self.motion if known is None else known.motion
            if motion != "given":
                raise ValueError(
                    f'homographies are for motion="given", stream {name!r} has motion="{motion}"'
                )

    def _begin(self, frames: Mapping[str, Any]) -> dict[str, Stream] | None:
        """Begin a turn; gives the streams where all go on as before, on their frames."""
        streams, steady = {}, True
        for name in frames:
            stream = self._streams.get(name)
            if stream is None:
                steady = False
                continue
            # all of them begin it
            if not stream.placement.begin() or stream.full is not None:
                steady = False
            streams[name] = stream
        return streams if steady else None

    def _place_and_run(
        self,
        ready: Mapping[str, tuple[Stream, Arrival]],
        record: bool,
        forced: Mapping[int, Tensor] | None,
    ) -> dict[str, Result]:
        """Place frames, and run those on frames, then those on windows."""
        placed: dict[bool, dict[str, Placed]] = {False: {}, True: {}}
        for name, (stream, arrival) in ready.items():
            one = stream.placement.place(stream, arrival)
            placed[stream.placement.followed][name] = one
        results: dict[str, Result] = {}
        for followed, some in placed.items():
            if some:
                streams = {name: ready[name][0] for name in some}
                frames = {name: one.frame for name, one in some.items()}
                canvas = self._canvas(followed=followed)
                sets = None if followed else forced
                results |= self._run(canvas, streams, frames, some, record, sets)
                for name, one in some.items():
                    results[name].aligned = one.aligned
        return results

    def _take_note(
        self,
        streams: Iterable[Stream],
        frames: Mapping[str, Frame],
        results: Mapping[str, Result],
    ) -> None:
        for name, result in results.items():
            result.given = frames[name]
        for stream in streams:
            stream.placement.ran(stream, results[stream.name])

    def _check_forced(self, forced: Mapping[int, Tensor] | None) -> None:
        # the same masks come with every frame that is timed: one look at them will do
        if forced is None or forced is self._forced:
            return
        check_forced(forced, self.plan, self.engine.device)
        self._forced = forced

    def _run(
        self,
        canvas: Canvas,
        streams: Mapping[str, Stream],
        frames: Mapping[str, Tensor],
        placed: Mapping[str, Placed] | None,
        record: bool,
        forced: Mapping[int, Tensor] | None,
    ) -> dict[str, Result]:
        """Run frames; placed: where the streams' windows lie with them, None: they all rest."""
        begin = time.perf_counter()
        engine, state, thresholds = canvas.engine, canvas.state, canvas.thresholds
        # of streams that had their first frame in the last step
        thresholds.settle(state)
        by_slot = {stream.slot: frames[name] for name, stream in streams.items()}
        moved: dict[int, Move] = {}
        masks: dict[int, Tensor] = {}
        full: dict[str, str] = {}
        spent_ms: dict[str, float] = {}
        for name, one in placed.items() if placed is not None else ():
            stream, at = streams[name], one.position
            spent_ms[name] = one.spent_ms
            stream.canvas = canvas
            canvas.settle(stream, at)
            if at.move is not None:
                moved[stream.slot] = at.move
            if at.mask is not None:
                masks[stream.slot] = at.mask
            if stream.full is not None:
                full[name] = stream.full
                thresholds.start(state, stream.slot, stream.tolerance)
        try:
            call = FrameCall(
                by_slot, frozenset(streams[name].slot for name in full), moved, masks, record,
                self._timed, forced or NONE,
            )  # fmt: skip
            reports = engine.step(state, call)
        except BaseException:
            # it may have failed half-way: these streams start from scratch
            for stream in streams.values():
                stream.full = stream.full or "the engine failed"
            raise
        # the device is at work: all that is below costs its time only where it is idle
        for name in full:
            streams[name].full = None
        thresholds.measure(state, by_slot, canvas.to_full_scale)
        if not engine.asynchronous:
            thresholds.settle(state)
        outputs = canvas.outputs.take(list(by_slot))
        shared_ms = 0.0
        if frames and not engine.asynchronous:
            canvas.synchronize()
            # what the engine does not attribute to a slot is shared equally
            own_ms = sum(reports.get(slot).ms for slot in by_slot)
            shared_ms = ((time.perf_counter() - begin) * 1e3 - own_ms) / len(frames)
        counted = CountedStep(
            engine.plan, self.plan, reports.numbers(), streams,
            [stream.frames for stream in streams.values()], full,
            [name for name, s in streams.items() if s.slot in moved] if moved else (), shared_ms,
            spent_ms,
        )  # fmt: skip
        for stream in streams.values():
            stream.frames += 1
        self._uncounted.add(counted)
        shared = StepFrames(counted, reports, engine.device, record, self._draw)
        return {
            name: Result(name, s.slot, shared, outputs[s.slot], s.rest.origin)
            for name, s in streams.items()
        }

    # -------------------------------------------------------------------------- questions

    @property
    @apart
    def stats(self) -> StreamStats:
        """A copy of the statistics of all streams together; waits for the device.

        Frames that a device refused after all count as `late_errors`.
        """
        with self._lock:
            self._uncounted.count(wait=True)
            return self._all.copy()

    @apart
    def explain(self) -> str:
        """Return the plans that streams run now as tables, with the engine and dtype that run them.

        Of sessions that follow cameras: on frames, on windows, or both, and what came up.
        """
        with self._lock:
            moves = self.motion != "none" or True in self._canvases
            tables = [
                explain(
                    engine.plan, engine.dtype, engine.name, engine.foreign_steps(),
                    engine.whole_steps(), engine.notes(), moves=moves,
                )
                for engine in self.engines or [self.engine]
            ]  # fmt: skip
            return "\n\n".join([*tables, *self.notes])
