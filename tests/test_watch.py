"""What `motion="auto"` may spend: looks are rationed, switching must pay, following is measured."""

from __future__ import annotations

import os
import re
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from torchdelta.motion import choice
from torchdelta.motion.aligned import Aligned
from torchdelta.motion.estimate import Motion
from torchdelta.motion.homography import shift
from torchdelta.motion.thumb import Thumb
from torchdelta.motion.vectors import Vectors
from torchdelta.runtime.background import MAKES_WAY, in_background
from torchdelta.runtime.placement import watch
from torchdelta.runtime.placement.watch import Watch

SIZE = (48, 64)
AUTO = Path(__file__).parents[1] / "docs" / "log" / "auto.md"


class Clock:
    """Time that passes only where the test says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = 0.0
        monkeypatch.setattr(watch, "time", SimpleNamespace(perf_counter=lambda: self.now_s))

    def pass_ms(self, ms: float) -> None:
        self.now_s += ms / 1e3


class Doubtful:
    """An estimator that takes its time and is never sure."""

    name = "doubtful"

    def __init__(self, clock: Clock, ms: float, confidence: float = 0.0) -> None:
        self._clock, self._ms, self._confidence = clock, ms, confidence

    def reset(self) -> None:
        pass

    def estimate(self, previous: Thumb, current: Thumb, vectors: Vectors | None = None) -> Motion:
        self._clock.pass_ms(self._ms)
        return Motion(shift(9, 0), self._confidence)


def counted(ms: float, *, first: bool = False, mac_share: float = 0.5, changed: float = 0.5) -> Any:
    stats = SimpleNamespace(first=first, changed_input=changed, mac_share=mac_share, ms=ms)
    return SimpleNamespace(ready=True, stats=stats)


def looked_ms(seen: Watch, clock: Clock, frames: int, frame_ms: float) -> float:
    """Show frames of which each changes much; returns what looking at them took."""
    frame = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8))
    spent_ms = 0.0
    for n in range(frames):
        seen.begin()
        if seen.suspicious:
            seen.look(frame, None)
            spent_ms += seen._look_ms
        # change that doubles now and then ends every pause
        changed = 0.1 if n % 16 < 8 else 0.9
        seen.saw(counted(frame_ms + seen._look_ms, first=n == 0, changed=changed))
    return spent_ms


@pytest.mark.parametrize("confidence", [0.0, 1.0])
@pytest.mark.parametrize("frames", [20, 70, 400])
@pytest.mark.parametrize(("frame_ms", "estimate_ms"), [(20.0, 6.0), (80.0, 6.0), (300.0, 20.0)])
def test_looks_stay_within_their_share_of_the_time(
    monkeypatch: pytest.MonkeyPatch, frame_ms: float, estimate_ms: float, frames: int,
    confidence: float,
) -> None:  # fmt: skip
    clock = Clock(monkeypatch)
    seen = Watch(Doubtful(clock, estimate_ms, confidence), 1.2, (0.0, 1.0))
    spent_ms = looked_ms(seen, clock, frames, frame_ms)
    allowed_ms = watch.LOOKING * frame_ms * (frames + watch.AHEAD)
    # the first look knows an estimate's time only once it has made one
    surprise_ms = watch.DECIDES_AFTER * max(0.0, estimate_ms - watch.FIRST_ESTIMATE_MS)
    assert spent_ms <= allowed_ms + surprise_ms
    if frame_ms >= 80:
        assert spent_ms > 0


def test_a_light_network_is_looked_at_once_that_is_paid_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock(monkeypatch)
    seen = Watch(Doubtful(clock, 6.0), 1.2, (0.0, 1.0))
    assert looked_ms(seen, clock, 40, 20.0) == 0
    assert looked_ms(seen, clock, 100, 20.0) > 0


def test_switching_must_pay_for_its_whole_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = Watch(Doubtful(Clock(monkeypatch), 0.0), 1.2, (0.0, 1.0))
    seen._estimate_ms = 5.0
    for mac_share, pays in ((0.5, True), (0.01, False)):
        seen._frames_ms.extend([60.0] * watch.TIMED)
        seen._mac_share = mac_share
        assert seen._saves_time(0.3) is pays
        assert seen.slow is None
    # a stream that has run for long is expected to go on
    seen._seen = 2000
    assert seen._saves_time(0.3)
    assert not seen._saves_time(0.05)
    assert "would save" in (seen.slow or "")


@pytest.mark.parametrize(("followed_ms", "stops"), [(58.0, True), (40.0, False)])
def test_following_that_takes_as_long_is_given_up(
    monkeypatch: pytest.MonkeyPatch, followed_ms: float, stops: bool
) -> None:
    seen = Watch(Doubtful(Clock(monkeypatch), 0.0), 1.2, (0.0, 1.0))
    seen._frames_ms.extend([60.0] * watch.TIMED)
    aligner: Any = SimpleNamespace(choice=SimpleNamespace(costs=None))
    said = []
    for n in range(watch.CHECKED):
        aligned = Aligned(SIZE, SIZE, motion=Motion(shift(9, 0)))
        # two slow ones, the first one computed whole
        ms = 500.0 if n in (0, 5) else followed_ms
        said.append(seen.rests(aligner, aligned, counted(ms)))
    assert said[:-1] == [None] * (watch.CHECKED - 1)
    assert said[-1] == ("following the camera saves nothing" if stops else None)
    assert (seen._pause == watch.LONGEST_PAUSE) is stops


@pytest.mark.skipif(sys.platform != "linux", reason="priorities of threads are Linux's")
def test_a_window_is_made_behind_the_frames_that_run() -> None:
    def niceness() -> int:
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    before = niceness()
    assert in_background(niceness, "test", makes_way=True).result(60) == max(before, MAKES_WAY)
    assert in_background(niceness, "test").result(60) == before == niceness()


def test_every_number_of_auto_is_in_its_table() -> None:
    _, table = AUTO.read_text().split("## Its numbers")
    named: dict[str, float] = {}
    for row in re.findall(r"^\| (`[^|]*) \| ([^|]*) \|", table.split("\n## ")[0], re.M):
        names = re.findall(r"`(\w+)`", row[0])
        named |= dict(zip(names, map(float, row[1].split(", ")), strict=True))
    for name, value in named.items():
        assert value == getattr(watch, name, getattr(choice, name, None)), name
    found = {
        name
        for module in (watch, choice)
        for name, value in vars(module).items()
        if name.isupper() and isinstance(value, int | float)
    } - {"STILL_PX"}
    assert found == set(named)
