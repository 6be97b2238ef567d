"""Cameras that are followed where that pays, and windows that are made meanwhile."""

from __future__ import annotations

import math
import re
import threading
import time
from collections.abc import Callable
from itertools import pairwise
from statistics import median_low
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import torchdelta
from chain_nets import conv
from moving_cameras import ENGINES, PAN_SIZE, SIZE, compiled, dense_on_published, path, view
from torchdelta import CaptureError
from torchdelta.engines import Engine
from torchdelta.motion.aligned import Aligned
from torchdelta.motion.features import Features
from torchdelta.motion.thumb import Thumb
from torchdelta.motion.vectors import Vectors
from torchdelta.runtime.inspect import frame_state, states, window_engine, window_state
from torchdelta.runtime.placement import watch
from torchdelta.runtime.placement.followed import ESTIMATORS
from torchdelta.runtime.profile import Profile
from torchdelta.runtime.session import Session


class Counting(Features):
    """Counts how often it is asked."""

    asked = 0

    def estimate(self, previous: Thumb, current: Thumb, vectors: Vectors | None = None) -> Any:
        type(self).asked += 1
        return super().estimate(previous, current, vectors)


@pytest.fixture
def counting(monkeypatch: pytest.MonkeyPatch) -> type[Counting]:
    monkeypatch.setitem(ESTIMATORS, "auto", Counting)
    Counting.asked = 0
    return Counting


SAVES_TIME, QUICKEST_MS, HOPELESS = watch.Watch._saves_time, watch.QUICKEST_MS, watch.HOPELESS


@pytest.fixture(autouse=True)
def _whatever_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks as small as these are quicker computed than a motion is estimated."""
    monkeypatch.setattr(watch.Watch, "_saves_time", lambda self, share: True)
    monkeypatch.setattr(watch, "QUICKEST_MS", 0.0)
    monkeypatch.setattr(watch, "HOPELESS", math.inf)
    monkeypatch.setattr(watch.Watch, "_may_look", lambda self: True)
    monkeypatch.setattr(watch.Watch, "_saves_nothing", lambda self: False)


@pytest.mark.parametrize("engine", ENGINES)
def test_auto_follows_a_pan_and_rests(engine: str, counting: type[Counting]) -> None:
    size = (120, 160)
    fast = compiled(engine, 0.04)
    session = fast.session(motion="auto", size=size)
    session.waits = True
    still = [(150, 100)] * 12
    pan = path((150, 100), (1, 5), 26)
    rest = [pan[-1]] * (watch.RESTED + 12)
    followed, outputs = [], []
    for here in (*still, *pan, *rest):
        result = session.step({"a": view(*here, size)})["a"]
        # a GPU has counted it then
        assert result.stats.ms > 0
        followed.append(result.aligned is not None)
        outputs.append(result.output[1].shape[-2:])
    assert not any(followed[:12])
    assert counting.asked > 0
    moving = followed.index(True)
    assert 12 < moving < 12 + 14
    assert all(followed[moving:38])
    assert not any(followed[-8:])
    # twice: no flapping
    assert sum(a != b for a, b in pairwise(followed)) == 2
    assert outputs[moving] == session.window
    assert outputs[-1] == size
    stats = session.stream("a").stats
    assert stats.frames == len(followed) == session.stats.frames
    assert stats.reasons["the camera moves"] == stats.reasons["the camera rests"] == 1
    assert stats.moves > 0
    assert session.notes
    # the windows' memory has been given back
    assert window_state(session) is None
    assert states(session) == [frame_state(session)]


def test_auto_never_estimates_where_nothing_moves(counting: type[Counting]) -> None:
    fast = compiled("torch", 0.04)
    session = fast.session(2, motion="auto")
    rng = np.random.default_rng(0)
    for n in range(40):
        quiet = view(40, 40)
        busy = view(40, 40)
        # an object that crosses the picture, and sensor noise
        busy[20:30, 2 * n % 70 : 2 * n % 70 + 8] = 255
        noisy = busy + rng.normal(0, 1.5, busy.shape)
        results = session.step({"a": quiet, "b": np.clip(noisy, 0, 255).astype(np.uint8)})
        assert all(result.aligned is None for result in results.values())
    assert counting.asked == 0
    assert window_state(session) is None


def test_auto_soon_gives_up_on_a_busy_still_picture(counting: type[Counting]) -> None:
    """Half of the picture flickers: looked at now and then, and never followed."""
    fast = compiled("torch", 0.04)
    session = fast.session(motion="auto")
    rng = np.random.default_rng(0)
    for _ in range(120):
        frame = view(40, 40)
        frame[:, 42:] = rng.integers(0, 255, (SIZE[0], 42, 3))
        assert session.step({"a": frame})["a"].aligned is None
    assert 0 < counting.asked < 30


@pytest.mark.parametrize("engine", ENGINES)
def test_memory_grows_with_the_window_only(engine: str, counting: type[Counting]) -> None:
    """Nothing is kept twice of a followed stream; "auto" has both kinds while both are needed."""
    fast = compiled(engine, 0.04)
    still = fast.session(2, size=PAN_SIZE)
    still.step({"a": view(90, 90, PAN_SIZE)})
    for motion in ("features", "auto"):
        session = fast.session(2, motion=motion, size=PAN_SIZE)
        session.waits = True
        ratio = np.prod(session.window) / np.prod(PAN_SIZE)
        for n in range(20):
            session.step({"a": view(90, 60 + 5 * n, PAN_SIZE), "b": view(30, 40, PAN_SIZE)})
        assert session.followed == (["a"] if motion == "auto" else ["a", "b"])
        # all slots of both kinds: b has not moved
        wanted = ratio + (motion == "auto")
        assert wanted * still.state_bytes * 0.98 < session.state_bytes
        assert session.state_bytes <= 1.05 * wanted * still.state_bytes
        session.stream("a").leave()
        alone = 1.0 if motion == "auto" else ratio
        assert session.state_bytes <= 1.05 * alone * still.state_bytes


@pytest.mark.parametrize("engine", ENGINES)
def test_reset_of_a_followed_stream_begins_still(engine: str, counting: type[Counting]) -> None:
    size = (120, 160)
    session = compiled(engine, 0.04).session(2, motion="auto", size=size)
    session.waits = True
    places = path((150, 60), (0, 5), 30)
    for n, here in enumerate(places):
        if n == 24:
            assert session.followed == ["a"]
            session.stream("a").reset()
        results = session.step({"a": view(*here, size), "b": view(10, 10, size)})
        if n == 24:
            assert results["a"].aligned is None
            assert results["a"].stats.reason == "reset"
    assert session.stream("b").stats.reasons == {"first frame": 1}


def pan(session: Session, first: int, count: int) -> list[torchdelta.Result]:
    """Show what a panning camera sees; it turns round before it reaches the world's end."""
    results = []
    for n in range(first, first + count):
        x = 5 * (n % 100) if n % 100 < 50 else 5 * (100 - n % 100)
        results.append(session.step({"a": view(150, x, PAN_SIZE)})["a"])
    return results


def auto_session(engine_at: Callable[[tuple[int, int]], Engine]) -> Session:
    return Session(engine_at(PAN_SIZE), 1, 0.04, Profile(), engine_at=engine_at, motion="auto")


def other_stride() -> Engine:
    """Give an engine of a network that moves by 8 pixels at a time."""
    layers = nn.Sequential(conv(3, 4, 3, 2), conv(4, 4, 3, 2), conv(4, 4, 3, 2)).eval()
    example = torch.zeros(1, 3, 124, 164, dtype=torch.uint8)
    return torchdelta.compile(layers, example, engine="torch", input_range=(0, 1)).session().engine


def test_auto_goes_on_while_the_window_is_made(counting: type[Counting]) -> None:
    fast = compiled("torch", 0.04)
    may_end, begun = threading.Event(), threading.Event()
    asked = []

    def engine_at(size: tuple[int, int]) -> Engine:
        asked.append((size, threading.current_thread()))
        if size != PAN_SIZE:
            begun.set()
            assert may_end.wait(60)
        return fast._engine_at(size)

    session = auto_session(engine_at)
    early = pan(session, 0, 40)
    assert begun.wait(60)
    assert all(result.aligned is None for result in early)
    assert session.notes == []
    looked = counting.asked
    # nothing is estimated while nothing can come of it
    pan(session, 40, 10)
    assert counting.asked == looked > 0
    may_end.set()
    made = window_engine(session)
    assert made is not None
    made.result(60)
    late = pan(session, 50, 30)
    assert late[-1].aligned is not None
    assert session.stream("a").stats.reasons["the camera moves"] == 1
    assert [size for size, _ in asked] == [PAN_SIZE, session.window]
    assert asked[0][1] is threading.main_thread() is not asked[1][1]
    assert len(session.notes) == 1
    assert "windows of" in session.notes[0]
    error = dense_on_published(fast, session, late[-1])
    assert error < 0.2


@pytest.mark.parametrize("waits", [True, False])
@pytest.mark.parametrize("why", ["stride", "capture"])
def test_windows_that_cannot_be(counting: type[Counting], why: str, waits: bool) -> None:
    said = {"stride": r"moves by \(8, 8\) pixels on the window", "capture": "the net is baked"}[why]
    fast = compiled("torch", 0.04)
    asked = []

    def engine_at(size: tuple[int, int]) -> Engine:
        asked.append(size)
        if size == PAN_SIZE:
            return fast._engine_at(size)
        if why == "stride":
            return other_stride()
        raise CaptureError("the net is baked")

    with pytest.raises(CaptureError, match=said):
        Session(engine_at(PAN_SIZE), 1, 0.04, Profile(), engine_at=engine_at, motion="features")
    asked.clear()
    session = auto_session(engine_at)
    session.waits = waits
    results = pan(session, 0, 30)
    if not waits:
        made = window_engine(session)
        assert made is not None
        assert made.exception(60) is not None
    looked = counting.asked
    results += pan(session, 30, 30)
    assert all(result.aligned is None and result.error is None for result in results)
    assert asked == [PAN_SIZE, session.window]
    assert len(session.notes) == 1
    assert re.search(f"^cameras are not followed: .*{said}", session.notes[0])
    # nobody looks any more
    assert counting.asked == looked > 0


def test_networks_that_only_fit_the_frame(counting: type[Counting]) -> None:
    """A linear layer on a flattened map: no window can be larger than the frame."""
    torch.manual_seed(0)
    flat = nn.Sequential(conv(3, 4, 3, 2), nn.Flatten(), nn.Linear(4 * 60 * 80, 5)).eval()
    example = torch.zeros(1, 3, *PAN_SIZE, dtype=torch.uint8)
    fast = torchdelta.compile(flat, example, engine="torch", tolerance=0.04, input_range=(0, 1))
    with pytest.raises(CaptureError):
        fast.session(motion="features")
    session = fast.session(motion="auto")
    session.waits = True
    assert all(result.aligned is None for result in pan(session, 0, 40))
    assert len(session.notes) == 1
    assert session.notes[0].startswith("cameras are not followed: ")


def test_a_defect_met_in_the_background_is_raised_once(counting: type[Counting]) -> None:
    fast = compiled("torch", 0.04)

    def engine_at(size: tuple[int, int]) -> Engine:
        if size == PAN_SIZE:
            return fast._engine_at(size)
        raise ZeroDivisionError("defect")

    session = auto_session(engine_at)
    session.waits = True
    with pytest.raises(ZeroDivisionError, match="defect"):
        pan(session, 0, 40)
    assert all(result.aligned is None for result in pan(session, 0, 40))


SLOW_S = 0.03


class Slow(Features):
    """An estimator of known slowness."""

    def estimate(self, previous: Thumb, current: Thumb, vectors: Vectors | None = None) -> Any:
        time.sleep(SLOW_S)
        return super().estimate(previous, current, vectors)


@pytest.mark.parametrize("motion", ["features", "auto"])
def test_ms_holds_estimation_and_warp(monkeypatch: pytest.MonkeyPatch, motion: Any) -> None:
    monkeypatch.setitem(ESTIMATORS, motion, Slow)
    monkeypatch.setitem(ESTIMATORS, "auto", Slow)
    warp = Aligned.warp_and_mark

    def slow_warp(self: Aligned, frame: Any) -> Any:
        time.sleep(SLOW_S)
        return warp(self, frame)

    monkeypatch.setattr(Aligned, "warp_and_mark", slow_warp)
    session = compiled("torch", 0.04).session(2, motion=motion)
    session.waits = True
    for n in range(20):
        result = session.step({"a": view(90, 90 + 4 * n)})["a"]
        least_ms = 0.0
        if result.aligned is not None:
            least_ms = SLOW_S * 1e3 * (1 + (result.aligned.motion.estimator is not None))
        elif 5 <= n <= 8:
            # it is being looked at
            least_ms = SLOW_S * 1e3
        assert result.stats.ms >= least_ms, n
    assert result.aligned is not None


@pytest.mark.parametrize("frame_ms", [0.1, 1e6])
def test_auto_follows_where_that_saves_time(
    monkeypatch: pytest.MonkeyPatch, frame_ms: float
) -> None:
    monkeypatch.setitem(ESTIMATORS, "auto", Slow)

    def saves_time(self: Any, share: float) -> bool:
        assert 0 < share < 1
        # frames have been timed, and looks have
        assert min(self._frames_ms) > 0
        assert self._estimate_ms >= SLOW_S * 1e3
        self._frames_ms.extend([frame_ms] * watch.TIMED)
        return SAVES_TIME(self, share)

    monkeypatch.setattr(watch.Watch, "_saves_time", saves_time)
    session = compiled("torch", 0.04).session(2, motion="auto")
    session.waits = True
    followed = [
        session.step({"a": view(90, 90 + 4 * n)})["a"].aligned is not None for n in range(24)
    ]
    assert any(followed) == (frame_ms == 1e6)
    said = [note for note in session.notes if "is not followed: estimating" in note]
    assert len(said) == (frame_ms == 0.1)


def test_looks_and_first_frames_are_no_part_of_a_still_frames_time() -> None:
    """On a GPU the frames after the first may still compile kernels and capture a graph."""
    looks, seen = 0, watch.Watch(Slow(), 1.0, (0.0, 1.0))
    for ms in (5e4, 2e3, *[1.0] * 38):
        begin = time.perf_counter()
        seen.begin()
        if seen.suspicious:
            looks += 1
            assert not seen.look(torch.from_numpy(view(90, 90)), None)
            ms += (time.perf_counter() - begin) * 1e3
        stats = SimpleNamespace(first=False, changed_input=0.5, mac_share=0.5, ms=ms)
        seen.saw(SimpleNamespace(ready=True, stats=stats))  # type: ignore[arg-type]
        if len(seen._frames_ms) > 4:
            assert 1.0 <= median_low(seen._frames_ms) < SLOW_S * 1e3
    assert looks > 4


@pytest.mark.parametrize(("frame_ms", "looks"), [(QUICKEST_MS / 2, 0), (2.0, 2)])
def test_looks_are_few_where_following_cannot_pay(
    monkeypatch: pytest.MonkeyPatch, frame_ms: float, looks: int
) -> None:
    """Two estimates tell; the next look comes when frames have made up for them."""
    monkeypatch.setattr(watch, "QUICKEST_MS", QUICKEST_MS)
    monkeypatch.setattr(watch, "HOPELESS", HOPELESS)
    begun, seen = 0, watch.Watch(Slow(), 1.0, (0.0, 1.0))
    # an estimate takes SLOW_S and somewhat more
    pays_after = int(3 * SLOW_S * 1e3 / (watch.SPENT_LOOKING * frame_ms))
    for n in range(5 + pays_after):
        seen.begin()
        if seen.suspicious:
            begun += not seen.looking
            assert not seen.look(torch.from_numpy(view(90, 90 + 4 * (n % 40))), None)
        # ten times as much change after a while does not call for a look either
        stats = SimpleNamespace(
            first=n == 0, changed_input=0.09 if n < 20 else 0.9, mac_share=0.5,
            ms=frame_ms + seen._look_ms,
        )  # fmt: skip
        seen.saw(SimpleNamespace(ready=True, stats=stats))  # type: ignore[arg-type]
    assert begun == looks
    assert (seen.slow is not None) == (looks > 0)
