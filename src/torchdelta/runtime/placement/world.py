"""The windows of a world on which cameras are followed, and the network at their size."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future
from math import prod

from torchdelta.engines import Engine
from torchdelta.errors import CaptureError, FrameError
from torchdelta.motion.align import Aligner
from torchdelta.motion.estimate import Estimator
from torchdelta.ops.base import Size
from torchdelta.runtime.background import in_background
from torchdelta.runtime.windows import Border, snug_size, window_size

# windows with so many times the frame's pixels are worth a word
MUCH_LARGER = 1.25


class World:
    """What streams of one session that are followed share.

    still:     what runs the network on frames
    engine_at: gives the engine of the network at a size (h, w); None: there is no other size
    border:    of the windows, see `Window`
    window:    (h, w) of the windows;  growth: their pixels over the frames'
    engine:    what runs the network on windows, once it was made
    waits:     whether who first needs a window waits until the network is compiled for it
    making:    the same on its way, where it is made in the background
    refusal:   why no camera can be followed
    notes:     what came up on the way
    """

    def __init__(
        self, still: Engine, engine_at: Callable[[Size], Engine] | None, border: Border
    ) -> None:
        self.still, self._engine_at, self.border = still, engine_at, border
        self.window = window_size(still.plan.size, still.plan.total_stride)
        self.growth = prod(self.window) / prod(still.plan.size)
        self.engine: Engine | None = None
        self.waits = False
        self.refusal: str | None = None
        self.notes: list[str] = []
        self.making: Future[Engine] | None = None
        self._making_s = 0.0

    @property
    def value_range(self) -> tuple[float, float]:
        """Of float frames."""
        return self.still.plan.preprocess.lo, self.still.plan.preprocess.hi

    def aligner(self, estimator: Estimator | None) -> Aligner:
        """Make what places one stream's frames; None: homographies come with them."""
        plan = self.still.plan
        return Aligner(
            plan.size, self.window, plan.total_stride, estimator, value_range=self.value_range
        )

    def require(self) -> Engine:
        """Have the network compiled for windows now. Raises: CaptureError."""
        if self.engine is None:
            self.engine = self._make()
            self._note()
        return self.engine

    def ready(self) -> bool:
        """Have the network compiled for windows, in the background; say whether it is by now."""
        if self.engine is not None or self.refusal is not None:
            return self.engine is not None
        if self.making is None:
            self.making = in_background(self._make, "torchdelta window", makes_way=not self.waits)
        if not self.waits and not self.making.done():
            return False
        try:
            self.engine = self.making.result()
        except Exception as error:
            self.refusal = str(error)
            self.notes.append(f"cameras are not followed: {error}")
            if not isinstance(error, (CaptureError, FrameError)):
                raise
            return False
        self._note()
        return True

    def _make(self) -> Engine:
        """Compile the network at the window's size."""
        begin, plan = time.perf_counter(), self.still.plan
        try:
            if self._engine_at is None:
                raise CaptureError("this session has the network at the frames' size alone")
            engine = self._engine_at(self.window)
        except (CaptureError, FrameError) as error:
            (h, w), (own_h, own_w) = self.window, plan.size
            raise CaptureError(
                f"cameras are followed on windows of {h}x{w}, frames of {own_h}x{own_w} with a "
                'margin, and the network does not run at that size (motion="none" follows none): '
                f"{error}"
            ) from error
        self._making_s = time.perf_counter() - begin
        # windows move by multiples of the frame's; those of the window's own plan among them
        ours, theirs = plan.total_stride, engine.plan.total_stride
        if any(mine % own for mine, own in zip(ours, theirs, strict=True)):
            raise CaptureError(
                f"the network moves by {theirs} pixels on the window and by {ours} on the frame; "
                "take frames of another size"
            )
        return engine

    def _note(self) -> None:
        h, w = self.window
        note = f"cameras are followed on windows of {h}x{w}, made in {self._making_s:.1f} s"
        snug = snug_size(self.still.plan.size, self.still.plan.total_stride)
        if self.growth >= MUCH_LARGER and snug is not None:
            own_h, own_w = self.still.plan.size
            note += (
                f"; they have {self.growth - 1:.0%} more pixels than the frames of {own_h}x{own_w}"
                f", and cost as much more: frames of {snug[0]}x{snug[1]} would have windows no "
                "larger than that"
            )
        self.notes.append(note)
