"""Each stream has a placement of its own, which may change while it runs."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import torchdelta
from support import ENGINE_NAMES, same_bits
from torchdelta import CaptureError, StreamError
from torchdelta.motion.homography import shift
from torchdelta.runtime.inspect import frame_state
from torchdelta.runtime.measure import placed_step
from torchdelta.runtime.session import Session
from torchdelta.runtime.windows import Window

SIZE = (40, 56)


@pytest.fixture(scope="module", params=ENGINE_NAMES)
def fast(request: pytest.FixtureRequest) -> torchdelta.CompiledModel:
    """Compile a network of total stride 2."""
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 4, 3, 1, 1)
    example = torch.zeros(1, 3, *SIZE, dtype=torch.uint8)
    return torchdelta.compile(
        nn.Sequential(*layers).eval(), example, engine=request.param, tolerance=0.0,
        input_range=(0, 1),
    )  # fmt: skip


def picture(y: int, x: int) -> np.ndarray:
    """Give what a camera sees of a noisy world, uint8 [h, w, 3]."""
    world = np.random.default_rng(0).integers(0, 256, (200, 200, 3), np.uint8)
    return world[y : y + SIZE[0], x : x + SIZE[1]].copy()


# a pan, and a camera that stands still
PAN = [picture(50, 50 + 2 * t) for t in range(8)]
STILL = [picture(10, 10) for _ in range(8)]
LEFT = shift(2, 0)


def exact(fast: torchdelta.CompiledModel, session: Session, result: torchdelta.Result) -> bool:
    """Whether a result is the dense network's on what it was shown."""
    expected = fast.dense(session.stream(result.stream).published())
    return torchdelta.relative_error(result.output, expected) < 1e-5


def test_still_and_followed_cameras_share_a_session(fast: torchdelta.CompiledModel) -> None:
    both = fast.session(2, border="exact")
    alone = {"still": fast.session(), "pan": fast.session(motion="given", border="exact")}
    both.stream("pan").join()
    both.stream("pan").set_motion("given")
    assert both.engines == alone["still"].engines
    for t in range(6):
        frames = {"pan": PAN[t], "still": STILL[t]}
        results = both.step(frames, homographies={"pan": LEFT})
        assert list(results) == ["pan", "still"]
        for name, session in alone.items():
            given = {"pan": LEFT} if name == "pan" else {}
            expected = session.step({name: frames[name]}, homographies=given)[name]
            assert torch.equal(results[name].output, expected.output), (t, name)
            assert results[name].stats.mac_share == expected.stats.mac_share
            assert results[name].stats.reason == expected.stats.reason
            assert results[name].origin == expected.origin
        assert (results["pan"].aligned is None, results["still"].aligned is None) == (False, True)
    assert both.followed == ["pan"]
    assert [engine.plan.size for engine in both.engines] == [SIZE, both.window]
    assert both.state_bytes > sum(session.state_bytes for session in alone.values())
    assert both.stats.frames == 12
    # either state is given back when nobody is on it
    both.stream("pan").leave()
    assert both.state_bytes == fast.session(2).state_bytes


def test_a_placement_changes_while_a_stream_runs(fast: torchdelta.CompiledModel) -> None:
    session = fast.session(border="exact")
    reasons: list[str | None] = []
    for t, frame in enumerate(PAN):
        if t == 2:
            session.stream("s").set_motion("given")
        if t == 5:
            session.stream("s").set_motion("none")
        given = {"s": LEFT} if 2 <= t < 5 else {}
        result = session.step({"s": frame}, homographies=given)["s"]
        assert (result.aligned is not None) == (2 <= t < 5)
        assert exact(fast, session, result), t
        assert session.stream("s").audit().ok
        reasons.append(result.stats.reason)
    assert reasons == ["first frame", None, "motion", None, None, "motion", None, None]
    stats = session.stream("s").stats
    assert (stats.frames, stats.reasons) == (8, {"first frame": 1, "motion": 2})
    assert session.engines == [session.engine]
    # what it was set to outlives a reset
    session.stream("s").set_motion("given")
    session.stream("s").reset()
    assert session.step({"s": PAN[0]})["s"].aligned is not None


def test_windows_and_homographies_are_for_streams_that_take_them(
    fast: torchdelta.CompiledModel,
) -> None:
    session = fast.session(2)
    frames = {"still": STILL[0], "pan": PAN[0]}
    session.stream("pan").join()
    for motion in ("given", "auto"):
        session.stream("pan").set_motion(motion)  # type: ignore[arg-type]
        window = Window((2, 0))
        results = placed_step(session, frames, {"still": window, "pan": window})
        assert results["still"].origin == (2, 0)
        assert "windows are for streams" in str(results["pan"].error)
    with pytest.raises(ValueError, match="stream 'still' has motion=\"none\""):
        session.step(frames, homographies={"still": LEFT})


def refuses_windows(fast: torchdelta.CompiledModel) -> Callable[[tuple[int, int]], object]:
    def engine_at(size: tuple[int, int]) -> object:
        raise CaptureError(f"not at {size}")

    return engine_at


def test_what_cannot_be_followed_stays_as_it_was(fast: torchdelta.CompiledModel) -> None:
    engine = fast.session().engine
    for engine_at in (None, refuses_windows(fast)):
        session = Session(
            engine, 1, 0.0, torchdelta.Profile(), engine_at=engine_at,  # type: ignore[arg-type]
        )  # fmt: skip
        session.step({"s": STILL[0]})
        before = [b.clone() for b in frame_state(session).buffers]
        with pytest.raises(CaptureError, match="the network does not run at that size"):
            session.stream("s").set_motion("features")
        with pytest.raises(ValueError, match="motion is 'sideways'"):
            session.stream("s").set_motion("sideways")  # type: ignore[arg-type]
        with pytest.raises(StreamError, match="'t' is unknown"):
            session.stream("t").set_motion("none")
        result = session.step({"s": STILL[1]})["s"]
        assert (result.stats.reason, result.stats.mac_share) == (None, 0.0)
        after: list[Tensor] = frame_state(session).buffers
        assert all(bool(same_bits(x, y).all()) for x, y in zip(before, after, strict=True))


def test_tolerance_goes_with_the_stream(fast: torchdelta.CompiledModel) -> None:
    session = fast.session()
    session.step({"s": PAN[0]})
    session.stream("s").set_tolerance(0.5)
    session.stream("s").set_motion("given")
    session.step({"s": PAN[0]})
    assert session.stream("s").audit().values[0].threshold > 0
