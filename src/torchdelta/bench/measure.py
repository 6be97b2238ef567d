"""The race: ours on every frame, the peers on sampled ones right after it, each with cold hands.

Peers' time does not depend on a frame's content, ours does: so ours runs on all frames of a clip
and the peers on some of them (design, section 10).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from torchdelta.bench.peers import Peer, peer_settings
from torchdelta.bench.quality import Quality, Reference
from torchdelta.errors import FrameError
from torchdelta.runtime.frames import Frame
from torchdelta.runtime.measure import forced_step
from torchdelta.runtime.session import Result, Session
from torchdelta.runtime.stats import FrameStats, StepStats
from torchdelta.videoframe import VideoFrame

SAMPLES = 20
# a reference takes many times as long as ours, and runs at every fourth sample
REFERENCE_EVERY = 4
# OpenMP's threads wait for more work in a loop before they sleep: some 300,000 rounds in libgomp,
# up to 15 ms; whoever is timed meanwhile shares the cores with them
SETTLE_S = 0.02


@dataclass(frozen=True)
class Moment:
    """One frame of each stream, in order of the slots, and what decoding it took (per frame)."""

    frames: Sequence[Frame]
    decode_ms: float | None = None


@dataclass
class Times:
    """What was measured; a time is per frame, that of a step over the number of streams.

    ours_ms … changed_input: one entry per step after the first
    peers_ms, reference_ms: one entry per sampled step
    align_ms: of ours, what estimating the cameras' motion and warping took
    followed: frames of all streams whose camera was followed
    """

    first_ms: float = 0.0
    ours_ms: list[float] = field(default_factory=list)
    mac_share: list[float] = field(default_factory=list)
    changed_input: list[float] = field(default_factory=list)
    decode_ms: list[float] = field(default_factory=list)
    peers_ms: dict[str, list[float]] = field(default_factory=dict)
    reference_ms: list[float] = field(default_factory=list)
    align_ms: list[float] = field(default_factory=list)
    followed: int = 0


def timed(call: Callable[[], Any], device: torch.device) -> tuple[Any, float]:
    """What a call returns, and its ms until the device has finished it."""
    synchronize(device)
    start = time.perf_counter()
    result = call()
    synchronize(device)
    return result, (time.perf_counter() - start) * 1e3


def synchronize(device: torch.device) -> None:
    """Wait until the device has nothing more to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def sampled_steps(count: int, samples: int = SAMPLES) -> list[int]:
    """Choose evenly spaced steps out of 1 .. count - 1; all of them where they are few."""
    if count - 1 <= samples:
        return list(range(1, count))
    return [int(i) for i in np.linspace(1, count - 1, samples).round()]


class Race:
    """One session of ours and the peers (none at first), on the same frames.

    Peers run on frames; where ours follows a camera, its results are compared with the dense
    network on the window.

    quality: gathers errors at the sampled steps; None: they would say nothing
    forced:  active sets by step, see `forced_step`
    """

    def __init__(
        self,
        session: Session,
        reference: Reference,
        *,
        quality: Quality | None = None,
        forced: dict[int, Tensor] | None = None,
    ) -> None:
        self.session, self.reference, self.quality = session, reference, quality
        self.peers: list[Peer] = []
        self._forced = forced
        self._device = session.engine.device
        self._samples = 0
        self.streams = [str(n) for n in range(session.slots)]

    def step(self, session: Session, frames: Sequence[Frame]) -> dict[str, Result]:
        """Run one frame of each stream; raises FrameError for one that is refused."""
        given = dict(zip(self.streams, frames, strict=True))
        if self._forced is None:
            results = session.step(given)
        else:
            results = forced_step(session, given, self._forced)
        for result in results.values():
            if result.error is not None:
                raise FrameError(str(result.error))
        return results

    def place(self, frames: Sequence[Frame]) -> list[Frame]:
        """Put frames where they are timed from: on a GPU, for all contestants, in its memory."""
        if self._device.type != "cuda":
            return list(frames)
        return list(map(self._on_device, frames))

    def _on_device(self, frame: Frame) -> Frame:
        if isinstance(frame, VideoFrame):
            return replace(frame, picture=self._on_device(frame.picture))
        if isinstance(frame, np.ndarray):
            return torch.from_numpy(frame).to(self._device).permute(2, 0, 1)
        return frame.to(self._device)

    def _settle(self) -> None:
        """Let the threads of whoever ran last go to sleep; a GPU would only lose its clock."""
        if self._device.type == "cpu":
            time.sleep(SETTLE_S)

    def run(
        self,
        moments: Iterable[Moment],
        sampled: Container[int],
        progress: Callable[[FrameStats], None],
    ) -> Times:
        """Time all moments; the first one, which is computed whole, stays apart."""
        times = Times(peers_ms={peer.name: [] for peer in self.peers if not peer.reference})
        others_ran = True
        self._samples = 0
        for index, moment in enumerate(moments):
            frames = self.place(moment.frames)
            if others_ran:
                self._settle()
            step = partial(self.step, self.session, frames)
            results, ms = timed(step, self._device)
            # may wait for the device, and is not timed
            stats = [result.stats for result in results.values()]
            others_ran = False
            if index == 0:
                times.first_ms = ms / len(frames)
            else:
                times.ours_ms.append(ms / len(frames))
                times.mac_share.append(sum(s.mac_share for s in stats) / len(stats))
                times.changed_input.append(sum(s.changed_input for s in stats) / len(stats))
                times.align_ms.append(sum(s.align_ms for s in stats) / len(stats))
                times.followed += sum(r.aligned is not None for r in results.values())
                if moment.decode_ms is not None:
                    times.decode_ms.append(moment.decode_ms)
                if index in sampled:
                    self._sample(index, frames, results, times)
                    others_ran = True
            # results that live on have their change masks kept when the next frame comes
            del results
            progress(stats[0])
        return times

    def _sample(
        self, index: int, frames: Sequence[Frame], results: dict[str, Result], times: Times
    ) -> None:
        """Run the peers on the frames that ours has just had, then compare with dense."""
        x = self.reference.input(frames)
        # in turn, so that nobody always follows the same one
        start = index % max(1, len(self.peers))
        for peer in self.peers[start:] + self.peers[:start]:
            if peer.reference and self._samples % REFERENCE_EVERY:
                continue
            feed = peer.load(x)
            self._settle()
            with peer_settings(self._device, self.reference.tf32):
                _, ms = timed(partial(peer.run, feed), self._device)
            column = times.reference_ms if peer.reference else times.peers_ms[peer.name]
            column.append(ms / len(frames))
        self._samples += 1
        if self.quality is not None:
            # one stream at a time: the streams are alike, the dense network is slow
            row = index % len(frames)
            result = results[self.streams[row]]
            published = self.session.stream(self.streams[row]).published()
            shown = x[row : row + 1]
            if result.aligned is not None:
                shown = self.reference.shown(frames[row], result.aligned, published)
            self.quality.add(
                result.output,
                self.reference.dense(shown),
                self.reference.dense(published),
                (published.shape[2], published.shape[3]),
            )

    def slowest_steps(
        self,
        session: Session,
        moments: Iterable[Moment],
        progress: Callable[[FrameStats], None],
    ) -> list[StepStats]:
        """Run ours again in a session that times its steps; returns them, the slowest first."""
        for moment in moments:
            results = self.step(session, self.place(moment.frames))
            progress(results[self.streams[0]].stats)
            del results
        return sorted(session.stats.per_step(), key=lambda step: -(step.ms or 0.0))
