"""One stream of a session, as its user holds it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from torchdelta.apart import apart
from torchdelta.arguments import finite
from torchdelta.errors import StreamError
from torchdelta.runtime.audit import Audit, audit_slot
from torchdelta.runtime.checks import check_room
from torchdelta.runtime.frames import Frame
from torchdelta.runtime.placement import Motion, check_motion
from torchdelta.runtime.profile import Profile
from torchdelta.runtime.result import Result
from torchdelta.runtime.stats import StreamStats
from torchdelta.runtime.unpicklable import Unpicklable
from torchdelta.runtime.windows import Mask

if TYPE_CHECKING:
    from torchdelta.runtime.canvas import Canvas
    from torchdelta.runtime.stream import Stream


class StreamHandle(Unpicklable):
    """One stream of a session: `session.stream(name)` makes it, and as many as are wanted.

    It holds nothing but the name: all handles of a name are the same stream. All methods but
    `join` and the call raise StreamError while the stream is not in the session.
    """

    instead = "it stands for a stream of a session, which belongs to this process"

    __slots__ = ("_session", "name")

    def __init__(self, session: Any, name: str) -> None:
        # a Session, which imports this file
        self._session, self.name = session, name

    def __repr__(self) -> str:
        return f"StreamHandle({self.name!r})"

    def __call__(
        self,
        frame: Frame,
        *,
        roi: Mask | None = None,
        homography: Any = None,
        relative_to: str = "previous",
        record: bool = False,
    ) -> Result:
        """Run the stream's next frame alone; it joins with its first one.

        frame, roi, homography, relative_to, record: as for `Session.step`, which runs the frames of
        several streams together
        Raises: StreamError where it is new and no slot is free; ValueError for a homography that
        nobody asked for.
        """
        name = self.name
        results = self._session.step(
            {name: frame},
            roi=None if roi is None else {name: roi},
            homographies=None if homography is None else {name: homography},
            relative_to=relative_to,
            record=record,
        )
        return results[name]

    @apart
    def join(self) -> int:
        """Take a free slot now, before the first frame, which is computed whole. Returns the slot.

        Raises: StreamError where it is in already or no slot is free.
        """
        session, name = self._session, self.name
        with session._lock:
            if name in session._streams:
                raise StreamError(f"stream {name!r} has joined already")
            check_room([name], len(session._streams), session.slots)
            made = session._new(name, session.motion, session._tolerance, "first frame")
            return session._join(made).slot

    @apart
    def leave(self) -> None:
        """Free the slot."""
        session = self._session
        with session._lock:
            session._known(self.name)
            del session._streams[self.name]
            session._close_empty()

    @apart
    def reset(self) -> None:
        """Forget everything; the next frame is a first frame, its window at (0, 0).

        Tolerance and motion stay what they were set to.
        """
        session = self._session
        with session._lock:
            known = session._known(self.name)
            session._streams[self.name] = session._new(
                self.name, known.motion, known.tolerance, "reset", known.slot
            )
            session._close_empty()

    @apart
    def refresh(self, *, reason: str = "refresh") -> None:
        """Recompute everything at the next frame, and measure the thresholds' scales again.

        reason: what the statistics name it by
        """
        with self._session._lock:
            known = self._session._known(self.name)
            known.full = known.full or reason

    @apart
    def set_tolerance(self, tolerance: float, *, refresh: bool = False) -> None:
        """Change the tolerance, from the next frame on.

        A higher one holds at once, a lower one where pixels are next gated: what was held back
        before stays until then. With a tolerance of 0, or `refresh`, everything is computed anew
        at the next frame ("tolerance").
        Raises: ValueError for what is no tolerance.
        """
        tolerance = finite("tolerance", tolerance, least=0)
        with self._session._lock:
            known = self._session._known(self.name)
            if refresh or tolerance == 0 < known.tolerance:
                known.full = known.full or "tolerance"
            known.tolerance = tolerance
            if known.full is None:
                assert known.canvas is not None
                known.canvas.thresholds.change(known.canvas.state, known.slot, tolerance)

    @apart
    def set_motion(self, motion: Motion) -> None:
        """Change how frames lie in the stream's window; everything is computed anew ("motion").

        motion: "none": the camera stands still; "features", "codec", "translation": it is followed,
                by this estimator; "given": by homographies that come with the frames; "auto":
                while that pays
        Raises: ValueError for an unknown name; CaptureError where the network does not run on
        windows, the stream stays as it was.
        """
        check_motion(motion)
        session = self._session
        with session._lock:
            known = session._known(self.name)
            known.placement = session._placement(motion)
            known.motion = motion
            known.begin_anew(known.full or "motion")

    @property
    @apart
    def stats(self) -> StreamStats:
        """A copy of the stream's statistics; waits for the device.

        Frames that a device refused after all count as `late_errors`.
        """
        session = self._session
        with session._lock:
            known = session._known(self.name)
            session._uncounted.count(wait=True)
            return known.stats.copy()

    @apart
    def published(self) -> Tensor:
        """Copy what the network has been shown: [1, C, H, W], as the model sees it.

        Of a stream with a window, what the window covers.
        Raises: StreamError where it had no frame yet.
        """
        with self._session._lock:
            known, canvas = self._with_frames()
            x = canvas.state.window(canvas.plan.input, known.slot)
            return x.permute(2, 0, 1).unsqueeze(0).clone(memory_format=torch.contiguous_format)

    @apart
    def audit(self) -> Audit:
        """Check that every value is within its threshold of a fresh recompute.

        Where the tolerance was lowered, that is the largest since everything was computed anew.
        Where a window has moved with border="keep", the edges of each step are left out.
        Raises: StreamError where it had no frame yet.
        """
        with self._session._lock:
            known, canvas = self._with_frames()
            canvas.thresholds.settle(canvas.state)
            largest = canvas.thresholds.largest[known.slot]
            return audit_slot(
                canvas.engine, canvas.state, known.slot, largest, edges=not known.kept
            )

    @apart
    def profile(self) -> Profile:
        """Give the profile in force, with the scales measured on this stream.

        Raises: StreamError where it had no frame yet.
        """
        with self._session._lock:
            known, canvas = self._with_frames()
            canvas.thresholds.settle(canvas.state)
            return canvas.thresholds.export(canvas.state, known.slot)

    def _with_frames(self) -> tuple[Stream, Canvas]:
        known = self._session._known(self.name)
        if known.canvas is None or known.frames == 0:
            raise StreamError(f"stream {self.name!r} has had no frame yet")
        return known, known.canvas
