"""Sessions whose cameras may move: frames are brought into windows of a fixed world."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor

from torchdelta.apart import apart
from torchdelta.engines import Engine
from torchdelta.errors import CaptureError, FrameError, StreamError
from torchdelta.motion.align import RELATIVE_TO, Aligner
from torchdelta.motion.aligned import Aligned
from torchdelta.motion.codec import Codec
from torchdelta.motion.homography import check_homography
from torchdelta.motion.vectors import Vectors
from torchdelta.ops.base import Size
from torchdelta.plan import Plan, explain
from torchdelta.runtime.audit import Audit
from torchdelta.runtime.background import in_background
from torchdelta.runtime.camera import ESTIMATORS, MISSES_VECTORS, Camera, Motion, check_motion
from torchdelta.runtime.checks import (
    check_grain,
    check_known,
    check_named,
    check_room,
    check_slots,
)
from torchdelta.runtime.frames import Frame, check_frame
from torchdelta.runtime.profile import Profile
from torchdelta.runtime.result import Result
from torchdelta.runtime.session import Session
from torchdelta.runtime.stats import StreamStats
from torchdelta.runtime.unpicklable import Unpicklable
from torchdelta.runtime.watch import Watch
from torchdelta.runtime.windows import Border, Mask, Window, check_mask, snug_size, window_size

# windows with so many times the frame's pixels are worth a word
MUCH_LARGER = 1.25
THE_CAMERA_MOVES = "the camera moves"


@dataclass
class _Ready:
    """A frame that has been checked: [h, w, C], and what came with it."""

    frame: Tensor
    region: Tensor | None
    homography: Any
    vectors: Vectors | None


class MovingSession(Unpicklable):
    """N slots for streams whose cameras may move.

    A stream whose camera is followed runs on a window of the world a little larger than the frame;
    its frames are aligned and warped into it. The others run on the frame, as in `Session`.

    engine_at: gives the engine of the network at a size (h, w)
    size:      (h, w) of the frames
    motion:    "features", "codec", "translation": cameras are followed, by this estimator; "given":
               by the homographies that come with the frames; "auto": while that pays
    border:    see `Window`
    grain:     side in pixels of the cells in which the input gate counts, see
               `ops.gate.input_gate`; None: `default_grain`, for still and followed cameras apart
    views, timed: see `Session`
    notes:     what came up on the way
    waits:     with "auto": whether the stream that first needs a window waits until the network is
               compiled for it, as suits recordings. Default: it stays still meanwhile, and the
               network is compiled in the background. May be set at any time
    """

    instead = (
        "it holds the state of its streams; its results and statistics can be, and another session "
        "of the model begins with a first frame"
    )

    def __init__(
        self,
        engine_at: Callable[[Size], Engine],
        size: Size,
        slots: int,
        tolerance: float,
        profile: Profile,
        *,
        motion: Motion,
        border: Border = "keep",
        grain: int | None = None,
        views: bool = False,
        timed: bool = False,
    ) -> None:
        check_motion(motion, border)
        slots = check_slots(slots)
        self.motion, self.border, self.slots = motion, border, slots
        self._engine_at = engine_at
        self._still_engine = engine_at(size)
        stride = self.plan.total_stride
        self.window = window_size(size, stride)
        self._growth = prod(self.window) / prod(size)
        self._total = StreamStats(self.plan)
        self._session_of: Callable[[Engine, int], Session] = lambda engine, cells: Session(
            engine, slots, tolerance, profile, views=views, timed=timed, total=self._total,
            grain=cells,
        )  # fmt: skip
        self._cameras: dict[str, Camera] = {}
        self._still: Session | None = None
        self._moving: Session | None = None
        self._moving_engine: Engine | None = None
        self._making: Future[Engine] | None = None
        self.waits = False
        # why no camera can be followed
        self._only_still: str | None = None
        self.notes: list[str] = []
        # of cameras that stay still, and of those that are followed
        self.grains: tuple[int, ...] = tuple(
            check_grain(grain, stride, followed=followed) for followed in (False, True)
        )
        self._lock = threading.Lock()
        if motion != "auto":
            self._moving_engine = self._make_window()
            self._note_window()

    @property
    def plan(self) -> Plan:
        """The network on the frame."""
        return self._still_engine.plan

    @property
    def engine(self) -> Engine:
        """What runs the network on the frame."""
        return self._still_engine

    @property
    def streams(self) -> list[str]:
        """Names of the streams that are in."""
        return list(self._cameras)

    @property
    def followed(self) -> list[str]:
        """Names of the streams whose cameras are followed."""
        return [name for name, camera in self._cameras.items() if camera.aligner is not None]

    @property
    def engines(self) -> list[Engine]:
        """What streams run on now: on frames, on windows, or on both."""
        return [session.engine for session in self._open()]

    @property
    def state_bytes(self) -> int:
        """Bytes of all slots' state, on frames and on windows."""
        return sum(session.state_bytes for session in self._open())

    def _open(self) -> list[Session]:
        return [session for session in (self._still, self._moving) if session is not None]

    def _make_window(self) -> Engine:
        """Compile the network at the window's size."""
        begin = time.perf_counter()
        try:
            engine = self._engine_at(self.window)
        except (CaptureError, FrameError) as error:
            (h, w), (own_h, own_w) = self.window, self.plan.size
            raise CaptureError(
                f"cameras are followed on windows of {h}x{w}, frames of {own_h}x{own_w} with a "
                'margin, and the network does not run at that size (motion="none" follows none): '
                f"{error}"
            ) from error
        self._making_s = time.perf_counter() - begin
        # windows move by multiples of the frame's; those of the window's own plan among them
        if any(
            mine % own
            for mine, own in zip(self.plan.total_stride, engine.plan.total_stride, strict=True)
        ):
            raise CaptureError(
                f"the network moves by {engine.plan.total_stride} pixels on the window and by "
                f"{self.plan.total_stride} on the frame; take frames of another size"
            )
        return engine

    def _note_window(self) -> None:
        h, w = self.window
        note = f"cameras are followed on windows of {h}x{w}, made in {self._making_s:.1f} s"
        snug = snug_size(self.plan.size, self.plan.total_stride)
        if self._growth >= MUCH_LARGER and snug is not None:
            own_h, own_w = self.plan.size
            note += (
                f"; they have {self._growth - 1:.0%} more pixels than the frames of {own_h}x{own_w}"
                f", and cost as much more: frames of {snug[0]}x{snug[1]} would have windows no "
                "larger than that"
            )
        self.notes.append(note)

    def _window_ready(self) -> bool:
        """Have the network compiled for windows, in the background; say whether it is by now."""
        if self._moving_engine is not None or self._only_still is not None:
            return self._moving_engine is not None
        if self._making is None:
            self._making = in_background(
                self._make_window, "torchdelta window", makes_way=not self.waits
            )
        if not self.waits and not self._making.done():
            return False
        try:
            self._moving_engine = self._making.result()
        except Exception as error:
            self._only_still = str(error)
            self.notes.append(f"cameras are not followed: {error}")
            if not isinstance(error, (CaptureError, FrameError)):
                raise
            return False
        self._note_window()
        return True

    # ---------------------------------------------------------------------------- streams

    @apart
    def join(self, stream: str) -> int:
        """Take a free slot for a stream; its first frame is computed whole. Returns the slot.

        Raises: StreamError where the stream is in already or no slot is free.
        """
        with self._lock:
            if stream in self._cameras:
                raise StreamError(f"stream {stream!r} has joined already")
            check_room([stream], len(self._cameras), self.slots)
            return self._join(stream)

    def _join(self, stream: str) -> int:
        camera = Camera(None, None)
        if self.motion == "auto":
            estimator = Codec()
            camera.watch = Watch(estimator, self._growth, self._value_range, self.grains)
        else:
            camera.aligner = self._new_aligner()
        self._cameras[stream] = camera
        return self._session(camera).join(stream)

    @property
    def _value_range(self) -> tuple[float, float]:
        return self.plan.preprocess.lo, self.plan.preprocess.hi

    def _new_aligner(self) -> Aligner:
        kind = ESTIMATORS[self.motion]
        return Aligner(
            self.plan.size, self.window, self.plan.total_stride, kind() if kind else None,
            value_range=self._value_range,
        )  # fmt: skip

    def _session(self, camera: Camera) -> Session:
        """Give the session that runs a camera's frames, opened where nobody was in it."""
        if camera.aligner is None:
            self._still = self._still or self._session_of(self._still_engine, self.grains[0])
            return self._still
        if self._moving is None:
            assert self._moving_engine is not None
            self._moving = self._session_of(self._moving_engine, self.grains[1])
        return self._moving

    def _known(self, stream: str) -> Camera:
        check_known(stream, self._cameras)
        return self._cameras[stream]

    def _close_empty(self) -> None:
        """Give the memory of a session back that nobody is in."""
        if self._still is not None and not self._still.streams:
            self._still = None
        if self._moving is not None and not self._moving.streams:
            self._moving = None

    @apart
    def leave(self, stream: str) -> None:
        """Free a stream's slot. Raises: StreamError for an unknown stream."""
        with self._lock:
            self._session(self._known(stream)).leave(stream)
            del self._cameras[stream]
            self._close_empty()

    @apart
    def reset(self, stream: str) -> None:
        """Forget everything about a stream; its next frame is a first frame.

        Raises: StreamError for an unknown stream.
        """
        with self._lock:
            camera = self._known(stream)
            if camera.watch is not None:
                camera.watch.reset()
                self._switch(stream, None, "reset")
            elif camera.aligner is not None:
                camera.aligner.reset()
            self._session(camera).reset(stream)

    @apart
    def refresh(self, stream: str | None = None, *, reason: str = "refresh") -> None:
        """Recompute everything at the next frame of a stream (or of all), where it is placed then.

        reason: what the statistics name it by
        Raises: StreamError for an unknown stream.
        """
        with self._lock:
            for name in list(self._cameras) if stream is None else [stream]:
                self._session(self._known(name)).refresh(name, reason=reason)

    @apart
    def set_tolerance(self, stream: str, tolerance: float, *, refresh: bool = False) -> None:
        """Change a stream's tolerance, from its next frame on; see `Session.set_tolerance`."""
        with self._lock:
            session = self._session(self._known(stream))
            session.set_tolerance(stream, tolerance, refresh=refresh)

    # ----------------------------------------------------------------------------- frames

    @apart
    def step(
        self,
        frames: Mapping[str, Frame],
        *,
        roi: Mapping[str, Mask] | None = None,
        homographies: Mapping[str, Any] | None = None,
        relative_to: str = "previous",
        vectors: Mapping[str, Vectors | None] | None = None,
        record: bool = False,
    ) -> dict[str, Result]:
        """Run one frame for each stream that has one; unknown streams join.

        frames:       stream -> as in `Session.step`
        roi:          stream -> bool [h, w], the frame's region of interest
        homographies: with motion="given": stream -> 3x3, pixel centres (x, y, 1) of this frame to
                      those of the stream's previous one. A first frame needs none; any other
                      without one, or with None, becomes a new reference
        relative_to:  "previous", or "reference": homographies lead to the last frame whose
                      `result.aligned.anchored` is not None
        vectors:      stream -> the decoder's motion vectors (`Source.vectors`), for "codec", "auto"
        record:       keep the active sets of all steps in the results
        returns: stream -> Result; output and masks of a followed camera are its window's, and
                 `result.to_frame_points` and its like lead back to the frame
        A frame, region or homography that does not fit is refused (`Result.error`), its stream
        stays as it was, and the others run. A homography to the previous frame leads nowhere after
        that: its frame becomes a new reference ("refused frame").
        Raises: StreamError where a new stream finds no free slot, or where a region, a homography
        or vectors are of a stream without a frame; ValueError for homographies that nobody asked
        for, or an unknown relative_to; nothing has run then.
        """
        roi, homographies, vectors = roi or {}, homographies or {}, vectors or {}
        if homographies and self.motion != "given":
            raise ValueError(
                f'homographies are for motion="given", this session has motion="{self.motion}"'
            )
        if relative_to not in RELATIVE_TO:
            raise ValueError(f"relative_to is {relative_to!r}, expected one of {RELATIVE_TO}")
        with self._lock:
            check_named(frames, roi=roi, homographies=homographies, vectors=vectors)
            watches = self._watches(frames)
            if watches is not None and not roi and not any(w.suspicious for w in watches):
                assert self._still is not None
                results = self._still.step(frames, record=record)
                for stream, result in results.items():
                    self._watch(stream, result)
                return results
            ready: dict[str, _Ready] = {}
            refused: dict[str, FrameError] = {}
            for stream, frame in frames.items():
                try:
                    ready[stream] = _Ready(
                        self._check(stream, frame), self._region(roi.get(stream)),
                        self._homography(homographies.get(stream)), _vectors(vectors.get(stream)),
                    )  # fmt: skip
                except FrameError as error:
                    refused[stream] = FrameError(f"stream {stream!r}: {error}")
            newcomers = [stream for stream in ready if stream not in self._cameras]
            check_room(newcomers, len(self._cameras), self.slots)
            for stream in newcomers:
                self._join(stream)
            results = self._run(ready, relative_to, record)
            for stream in refused:
                camera = self._cameras.get(stream)
                if camera is not None and camera.aligner is not None:
                    camera.aligner.miss()
            return {s: results[s] if s in results else Result(s, error=refused[s]) for s in frames}

    def _watches(self, frames: Mapping[str, Frame]) -> list[Watch] | None:
        """Begin a frame: what watches the streams, where all of them are known and stand still."""
        cameras = [self._cameras.get(stream) for stream in frames]
        watches = [c.watch for c in cameras if c is not None and c.aligner is None and c.watch]
        for watch in watches:
            watch.begin()
        return watches if watches and len(watches) == len(cameras) else None

    def _check(self, stream: str, frame: Frame) -> Tensor:
        """Check a frame: [h, w, C], where it is."""
        engine, camera = self._still_engine, self._cameras.get(stream)
        # the session of still streams checks it once more
        waits = camera is None or camera.aligner is not None or not engine.asynchronous
        return check_frame(frame, self.plan, engine.device, engine.dtype, trust_device=not waits)

    def _region(self, roi: Mask | None) -> Tensor | None:
        return None if roi is None else check_mask("roi", roi, self.plan, self._still_engine.device)

    def _homography(self, given: Any) -> Any:
        return None if given is None else check_homography(given, self.plan.size)

    def _run(
        self, ready: Mapping[str, _Ready], relative_to: str, record: bool
    ) -> dict[str, Result]:
        results: dict[str, Result] = {}
        spent_ms: dict[str, float] = {}
        still: dict[str, _Ready] = {}
        placed: dict[str, Aligned] = {}
        warped: dict[str, Tensor] = {}
        shown: dict[str, Mask] = {}
        for stream, given in ready.items():
            begin, camera = time.perf_counter(), self._cameras[stream]
            if camera.aligner is None:
                begin += self._look(stream, camera, given)
            if camera.aligner is None:
                still[stream] = given
            else:
                placed[stream] = self._place(stream, camera.aligner, given, relative_to)
                frame = given.frame.to(self._still_engine.device)
                window, shown[stream] = placed[stream].warp_and_mark(frame)
                warped[stream] = window.permute(2, 0, 1)
            spent_ms[stream] = (time.perf_counter() - begin) * 1e3
        if still:
            assert self._still is not None
            regions = {s: given.region for s, given in still.items() if given.region is not None}
            inputs = {s: given.frame.permute(2, 0, 1) for s, given in still.items()}
            results |= self._still._turn(inputs, roi=regions, record=record, spent_ms=spent_ms)
        if placed:
            assert self._moving is not None
            regions = {
                s: _moved(region, placed[s])
                for s, given in ready.items()
                if s in placed and (region := given.region) is not None
            }
            windows = {s: Window(a.origin, shown[s], self.border) for s, a in placed.items()}
            results |= self._moving._turn(
                warped, roi=regions, windows=windows, record=record, spent_ms=spent_ms
            )
        for stream, result in results.items():
            result.aligned = placed.get(stream)
            self._watch(stream, result)
        return results

    def _look(self, stream: str, camera: Camera, given: _Ready) -> float:
        """Follow a camera from this frame on if it moves; returns seconds waited for the window."""
        watch = camera.watch
        assert watch is not None
        begin = time.perf_counter()
        # a look that begins now would be over too early
        early = self._making is not None and not self._window_ready() and not watch.looking
        spent_s = time.perf_counter() - begin
        if self._only_still is not None or not watch.suspicious or early:
            return spent_s
        known = watch.slow
        wanted = watch.look(given.frame, given.vectors)
        if watch.slow is not None and known is None:
            self.notes.append(
                f"stream {stream!r}: its camera moves and is not followed: {watch.slow}"
            )
        begin = time.perf_counter()
        ready = wanted and self._window_ready()
        spent_s += time.perf_counter() - begin
        if wanted and ready:
            self._switch(stream, self._new_aligner(), THE_CAMERA_MOVES)
        return spent_s

    def _switch(self, stream: str, aligner: Aligner | None, reason: str) -> None:
        """Follow a stream's camera, or no longer; its next frame is computed whole."""
        camera = self._cameras[stream]
        if (camera.aligner is None) == (aligner is None):
            return
        before = self._session(camera)
        camera.aligner = aligner
        before.hand_over(stream, self._session(camera), reason)
        self._close_empty()

    def _place(self, stream: str, aligner: Aligner, given: _Ready, relative_to: str) -> Aligned:
        aligned = aligner.place(
            given.frame, vectors=given.vectors, homography=given.homography, relative_to=relative_to
        )
        if aligned.anchored is not None:
            # of a stream that is computed whole in any case, that reason stays
            assert self._moving is not None
            self._moving.refresh(stream, reason=aligned.anchored)
        if self.motion == "codec" and self._cameras[stream].misses_vectors(aligned):
            self.notes.append(
                f"stream {stream!r}: no motion vectors came with its first {MISSES_VECTORS} "
                "frames; corners are followed instead, which takes more time"
            )
        return aligned

    def _watch(self, stream: str, result: Result) -> None:
        camera = self._cameras[stream]
        if camera.watch is None or result.error is not None:
            return
        if camera.aligner is None:
            camera.watch.saw(result.counted)
            return
        assert result.aligned is not None
        reason = camera.watch.rests(camera.aligner, result.aligned, result.counted)
        if reason is not None:
            self._switch(stream, None, reason)

    # -------------------------------------------------------------------------- questions

    @apart
    def stats(self, stream: str | None = None) -> StreamStats:
        """Copy a stream's statistics, or those of all streams together; see `Session.stats`."""
        with self._lock:
            if stream is not None:
                return self._session(self._known(stream)).stats(stream)
            for session in self._open():
                session.stats()
            return self._total.copy()

    @apart
    def published(self, stream: str) -> Tensor:
        """Copy what the network has been shown of a stream; see `Session.published`."""
        with self._lock:
            return self._session(self._known(stream)).published(stream)

    @apart
    def audit(self, stream: str) -> Audit:
        """Check a stream's state; see `Session.audit`."""
        with self._lock:
            return self._session(self._known(stream)).audit(stream)

    @apart
    def profile(self, stream: str) -> Profile:
        """Give the profile in force, with the scales measured on this stream."""
        with self._lock:
            return self._session(self._known(stream)).profile(stream)

    @apart
    def explain(self) -> str:
        """Return the plans that streams run now as tables: on frames, on windows, or both."""
        with self._lock:
            engines = [session.engine for session in self._open()] or [self._still_engine]
            tables = [
                explain(
                    e.plan,
                    e.dtype,
                    e.name,
                    e.foreign_steps(),
                    e.whole_steps(),
                    e.notes(),
                    moves=True,
                )
                for e in engines
            ]
            return "\n\n".join([*tables, *self.notes])


def _vectors(given: Any) -> Vectors | None:
    if given is not None and not isinstance(given, Vectors):
        raise FrameError(
            f"vectors are a {type(given).__name__}, expected `Source.vectors` of the frame, or None"
        )
    return given


def _moved(region: Tensor, aligned: Aligned) -> Tensor:
    """Bring a region [h, w] of the frame into the window, bool [H, W]."""
    grey = region.to(torch.uint8).mul(255)[:, :, None]
    return aligned.warp(grey)[:, :, 0] >= 128
