"""Whether a stream's camera moves: looked at no closer than it must be."""

from __future__ import annotations

import math
import time
from collections import deque
from statistics import median_low

from torch import Tensor

from torchdelta.motion.align import Aligner, Limits
from torchdelta.motion.aligned import Aligned
from torchdelta.motion.choice import LEAST_LOOKS, LOOK_EVERY, Choice, Costs
from torchdelta.motion.estimate import STILL_PX, Estimator
from torchdelta.motion.homography import farthest_px
from torchdelta.motion.thumb import Thumb
from torchdelta.motion.vectors import Vectors
from torchdelta.runtime.placement.base import Counted

# a camera is suspected to move where this share of the input is published, averaged over some
# frames with this weight for the newest
SUSPICIOUS, NEWEST = 0.08, 0.3
# frames between two looks at a stream that is suspected wrongly: so many times as many each time
PAUSE, LONGER, LONGEST_PAUSE = 5, 4, 80
# more than that much more change than at the last look ends the pause
MUCH_MORE = 1.6
# pairs of frames of which one must show a motion; sources repeat frames now and then
TRIES = 2
# following must leave so much less to compute than staying still (share of it; of the frame)
CLEARLY_LESS, LEAST_SAVING = 0.75, 0.02
# what a share that changes costs where the input gate counts in cells only while the camera is
# followed: it lies in fewer places
# (docs/log/moving.md, "What `auto` looks at")
IN_CELLS = 0.65
# and stops paying where it leaves nearly as much
HARDLY_LESS = 0.95
# frames for which the camera must have rested
RESTED = 25
# still frames whose times are kept: their median does not see a graph being captured
TIMED = 9
# no estimate is quicker than this: streams whose frames are, are not looked at
QUICKEST_MS = 1.0
# an estimate that takes so many times as long as the whole frame cannot pay; where the time speaks
# against following, this share of a stream's time may go into looking again
HOPELESS, SPENT_LOOKING = 1.0, 0.02
# looks in all may take this share of the time of the frames seen and of those expected; a stream
# is expected to go on for as many frames as it has been seen, and for AHEAD at least. So looks cost
# a clip of 70 frames no more than 3.5 %, and two switches must pay within what is left of it
LOOKING, AHEAD = 0.02, 50
# an estimate of which none was timed yet, ms: corners at 384x640 on one slow core
FIRST_ESTIMATE_MS = 5.0
# frames with which a look decides: the first, and what `Choice` takes
DECIDES_AFTER = 1 + LOOK_EVERY * LEAST_LOOKS
# followed frames whose times are compared with the still ones' before; the slowest, which may
# compile kernels or be new references, are left out
CHECKED, LEFT_OUT = 16, 2


class Watch:
    """Decides for one stream when its camera is followed, and when no longer.

    Each switch costs a frame computed whole, so both decisions take several frames. Following must
    save more time than estimating the motion takes: where a small network runs on a fast GPU it
    never does. What looks may take is rationed from the first frame on, switching must pay for its
    whole frames, and frames that are followed and take as long as still ones are so no longer.

    growth: the window's pixels over the frame's: what following costs more
    grains: sides of the input gate's cells while the camera stays still and while it is followed,
            pixels
    value_range: of float frames
    suspicious: whether the frame that has begun is to be looked at
    slow:   why a camera that moves is not followed where the time alone speaks against it
    """

    def __init__(
        self,
        estimator: Estimator,
        growth: float,
        value_range: tuple[float, float],
        grains: tuple[int, ...] = (1, 1),
    ) -> None:
        self._estimator, self._range = estimator, value_range
        self._price_px = growth
        self._price = growth * (IN_CELLS if grains[1] > grains[0] == 1 else 1.0)
        self._limits = Limits()
        self._choice = Choice(self._limits.scale, self._limits.turn_degrees)
        # frames, and the time that looking at them took
        self._counted: deque[tuple[Counted, float]] = deque()
        self._frames_ms: deque[float] = deque(maxlen=TIMED)
        # frames of a followed camera, and the times of the last ones
        self._followed: deque[Counted] = deque()
        self._followed_ms: deque[float] = deque(maxlen=CHECKED)
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self._changed, self._pause, self._next_pause, self._at_pause = 0.0, 0, PAUSE, 0.0
        self._frames_ms.clear()
        self._estimate_ms, self._estimates = 0.0, 0
        self._seen, self._seen_ms, self._spent_ms = 0, 0.0, 0.0
        self._expected_ms, self._mac_share = FIRST_ESTIMATE_MS, 1.0
        self._followed.clear()
        self._followed_ms.clear()
        self.slow: str | None = None
        self._counted.clear()
        self._look_ms, self.suspicious = 0.0, False
        self._stop_looking()
        self._idle = 0

    def _stop_looking(self) -> None:
        self._previous: Thumb | None = None

    def saw(self, counted: Counted) -> None:
        """Take what a frame changed into account; a device may still be at it."""
        self._counted.append((counted, self._look_ms))

    def begin(self) -> None:
        """Begin a frame of a still stream: is it to be looked at (`suspicious`)?"""
        self._look_ms = 0.0
        while self._counted and self._counted[0][0].ready:
            counted, look_ms = self._counted.popleft()
            stats = counted.stats
            if not stats.first:
                self._changed += NEWEST * (stats.changed_input - self._changed)
                self._mac_share += NEWEST * (stats.mac_share - self._mac_share)
                self._frames_ms.append(stats.ms - look_ms)
                self._seen += 1
                self._seen_ms += stats.ms - look_ms
        self.suspicious = self.looking or self._is_suspicious()

    def _is_suspicious(self) -> bool:
        self._pause -= 1
        if self._changed < SUSPICIOUS or self._frame_ms < QUICKEST_MS:
            return False
        if self._pause > 0 and self._changed <= MUCH_MORE * self._at_pause:
            return False
        return self._may_look()

    def _may_look(self) -> bool:
        """Say whether the time of frames, seen and expected, pays for one more look."""
        wanted_ms = self._spent_ms + DECIDES_AFTER * self._expected_ms
        # once a graph was captured, frames are quicker than on average
        seen_ms = min(self._seen_ms, self._seen * self._frame_ms)
        return wanted_ms <= LOOKING * (seen_ms + AHEAD * self._frame_ms)

    @property
    def _frame_ms(self) -> float:
        """What a still frame takes."""
        return median_low(self._frames_ms) if self._frames_ms else math.inf

    @property
    def looking(self) -> bool:
        """Whether a look has begun and is not over."""
        return self._previous is not None

    def look(self, frame: Tensor, vectors: Vectors | None) -> bool:
        """Look at a suspicious frame [h, w, C]; True: the camera is to be followed from here on."""
        begin = time.perf_counter()
        try:
            return self._look(frame, vectors)
        finally:
            self._look_ms = (time.perf_counter() - begin) * 1e3
            self._spent_ms += self._look_ms

    def _look(self, frame: Tensor, vectors: Vectors | None) -> bool:
        begin = time.perf_counter()
        current = Thumb.of(frame, *self._range)
        previous, self._previous = self._previous, current
        if previous is None:
            self._estimator.reset()
            self._choice.reset()
            self._confirmed, self._tries = False, TRIES
            self._estimate_ms, self._estimates = math.inf, 0
            return False
        motion = self._estimator.estimate(previous, current, vectors)
        self._estimates += 1
        # the fastest: the first one may have something to prepare
        self._estimate_ms = min(self._estimate_ms, (time.perf_counter() - begin) * 1e3)
        self._expected_ms = self._estimate_ms
        moves = farthest_px(motion.homography, current.size) >= STILL_PX
        if not self._confirmed:
            self._confirmed = moves and motion.confidence >= self._limits.confidence
            self._tries -= 1
            if not (self._confirmed or self._tries):
                self._give_up()
            if not self._confirmed:
                return False
        if self._estimates > 1 and self._estimate_ms > HOPELESS * self._frame_ms:
            self.slow = (
                f"estimating its motion takes {self._estimate_ms:.2g} ms a frame, all else "
                f"{self._frame_ms:.2g} ms"
            )
            self._give_up()
            return False
        self._choice.look(previous, current, motion.homography)
        costs = self._choice.costs
        if costs is None:
            return False
        if not self._pays(costs):
            self._give_up()
            return False
        self._stop_looking()
        self._idle = 0
        # what comes before it is done says nothing of frames that are followed
        self._followed.clear()
        self._followed_ms.clear()
        return True

    def _give_up(self) -> None:
        self._stop_looking()
        self._pause, self._at_pause = self._next_pause, self._changed
        self._next_pause = min(LONGER * self._next_pause, LONGEST_PAUSE)
        if self.slow is not None:
            # more change would not change that
            look_ms = self._estimates * self._estimate_ms
            paid_for = math.ceil(look_ms / (SPENT_LOOKING * self._frame_ms))
            self._pause, self._at_pause = max(self._pause, paid_for), 1.0

    def _pays(self, costs: Costs) -> bool:
        least = self._price * costs.least
        less = least < CLEARLY_LESS * costs.still and costs.still - least > LEAST_SAVING
        return less and self._saves_time(1 - least / costs.still)

    def _saves_time(self, share: float) -> bool:
        """Whether a share of a still frame's time is more than estimating its motion takes."""
        saved_ms = share * self._frame_ms - self._estimate_ms
        if saved_ms > 0:
            self.slow = None
            return saved_ms * max(self._seen, AHEAD) > self._switching_ms
        self.slow = (
            f"estimating its motion takes {self._estimate_ms:.2g} ms a frame, and would save "
            f"{share:.0%} of {self._frame_ms:.2g} ms"
        )
        return False

    @property
    def _switching_ms(self) -> float:
        """What two switches cost: a window and, when the camera rests, a frame computed whole."""
        whole_ms = self._frame_ms / max(self._mac_share, 0.01)
        return (self._price_px + 1) * max(0.0, whole_ms - self._frame_ms)

    def _saves_nothing(self) -> bool:
        """Say whether followed frames have taken as long as still ones did before them."""
        if len(self._followed_ms) < CHECKED or not self._frames_ms:
            return False
        usual = sorted(self._followed_ms)[:-LEFT_OUT]
        return sum(usual) / len(usual) > HARDLY_LESS * self._frame_ms

    def rests(self, aligner: Aligner, aligned: Aligned, counted: Counted) -> str | None:
        """Take a followed frame into account; says why the camera need not be followed any more."""
        self._followed.append(counted)
        while self._followed and self._followed[0].ready:
            stats = self._followed.popleft().stats
            self._seen += 1
            self._seen_ms += min(stats.ms, self._frame_ms)
            self._followed_ms.append(stats.ms)
        if self._saves_nothing():
            self._leave(LONGEST_PAUSE)
            return "following the camera saves nothing"
        still = farthest_px(aligned.motion.homography, aligned.frame) < STILL_PX
        costs = aligner.choice.costs
        useless = costs is not None and self._price * costs.least > HARDLY_LESS * costs.still
        self._idle = self._idle + 1 if (still or useless) and not aligned.anchored else 0
        if self._idle < RESTED:
            return None
        self._leave(self._next_pause)
        return "the camera rests" if still else "following the camera saves nothing"

    def _leave(self, pause: int) -> None:
        """Follow no longer, and do not look for some frames."""
        self._changed, self._pause, self._at_pause = 0.0, pause, 1.0
        self._next_pause = min(LONGER * self._next_pause, LONGEST_PAUSE)
        self._counted.clear()
        self._followed.clear()
        self._followed_ms.clear()
