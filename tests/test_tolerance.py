"""A tolerance for each stream: it may change while the stream runs, and hangs on no other's."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import Tensor, nn

import torchdelta
from streams import history
from support import ENGINE_CASES, copies, gate_profile, new_session, same_bits
from torchdelta import ProfileError, StreamError
from torchdelta.engines.cpu.blob import in_tiles
from torchdelta.runtime.inspect import buffers_of

pytestmark = pytest.mark.check

KINDS = ("patch", "pixel", "noise", "stripes", "patch", "noise")


@cache
def network() -> tuple[torchdelta.CompiledModel, nn.Module]:
    """Compile two 3x3 convolutions; the cpu engine computes the first in tiles where it may."""
    torch.manual_seed(0)
    layers = nn.Conv2d(16, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 8, 3, padding=1)
    model = nn.Sequential(*layers).eval()
    example = torch.rand(1, 16, 13, 17)
    fast = torchdelta.compile(model, example, input_range=(0, 1))
    assert in_tiles(fast.plan, fast.plan.steps[0])
    return fast, model


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(bool(same_bits(x, y).all()) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("engine", ENGINE_CASES)
def test_streams_of_different_tolerance_do_not_meet(engine: str) -> None:
    fast, _ = network()
    together = new_session(fast, engine, 0.0, slots=2)
    alone = {"exact": new_session(fast, engine, 0.0), "gated": new_session(fast, engine, 0.04)}
    for name in alone:
        together.stream(name).join()
    together.stream("gated").set_tolerance(0.04)
    frames = {
        "exact": history(KINDS, 1, fast.plan.shape),
        "gated": history(KINDS, 2, fast.plan.shape),
    }
    for now in zip(*frames.values(), strict=True):
        given = dict(zip(frames, now, strict=True))
        results = together.step(given)
        for name, session in alone.items():
            expected = session.step({name: given[name]})[name]
            assert results[name].report().active_px == expected.report().active_px
            assert same(buffers_of(together, name), buffers_of(session, name)), name
    assert together.stream("exact").stats.mac_share > together.stream("gated").stats.mac_share


@pytest.mark.parametrize("engine", ENGINE_CASES)
def test_lowered_to_0_is_as_if_it_had_always_been(engine: str) -> None:
    fast, model = network()
    session, always = new_session(fast, engine, 0.04), new_session(fast, engine, 0.0)
    frames = history(KINDS, 3, fast.plan.shape)
    for t, x in enumerate(frames):
        if t == 3:
            session.stream("s").set_tolerance(0.0)
        result, expected = session.step({"s": x})["s"], always.step({"s": x})["s"]
        if t >= 3:
            assert result.stats.reason == ("tolerance" if t == 3 else None)
            if engine.startswith("cpu"):
                assert same(buffers_of(session, "s"), buffers_of(always, "s")), t
            assert torchdelta.relative_error(result.output, model(x)) < 1e-5
            assert torchdelta.relative_error(result.output, expected.output) < 1e-5
    assert session.stream("s").audit().ok


@pytest.mark.parametrize("engine", ENGINE_CASES)
def test_higher_and_lower(engine: str) -> None:
    """What moves by less than the tolerance is held back, and is still when that is lowered."""
    fast, _ = copies(64)
    session = new_session(fast, engine, 0.0, profile=gate_profile(fast, "max"))
    first = torch.full((1, 1, 5, 9), 0.5)
    moved = first.clone()
    moved[..., 2, 3] += 0.04  # the value moves by twice that
    session.step({"s": first})
    session.stream("s").set_tolerance(0.1)
    held = session.step({"s": moved})["s"]
    assert held.stats.reason is None
    published = held.report().published_px
    if published is not None:
        assert published[0] == 0
    # pixels that nothing reaches are not gated anew, and the bound is the one that held them back
    session.stream("s").set_tolerance(0.01)
    other = moved.clone()
    other[..., 4, 8] += 0.04
    result = session.step({"s": other})["s"]
    assert result.stats.reason is None
    audit = session.stream("s").audit()
    assert audit.ok
    assert audit.values[0].threshold == pytest.approx(0.1)
    assert audit.values[0].worst == pytest.approx(0.08, rel=1e-3)
    published = result.report().published_px
    if published is not None:
        assert published[0] == 1
    session.stream("s").set_tolerance(0.01, refresh=True)
    assert session.step({"s": other})["s"].stats.reason == "tolerance"
    audit = session.stream("s").audit()
    assert audit.values[0].threshold == pytest.approx(0.01)
    assert audit.values[0].worst < 1e-5


def test_a_reset_keeps_it_and_a_newcomer_gets_the_sessions() -> None:
    fast, _ = network()
    session = fast.session(2, tolerance=0.08)
    session.stream("a").join()
    session.stream("a").set_tolerance(0.02)
    session.stream("a").reset()
    frames = history((), 4, fast.plan.shape)
    session.step({"a": frames[0], "b": frames[0]})
    thresholds = {s: session.stream(s).audit().values[0].threshold for s in "ab"}
    assert thresholds["b"] == pytest.approx(4 * thresholds["a"])


def test_a_profile_for_each_session() -> None:
    fast, _ = network()
    name = next(v.name for v in fast.plan.owners if v.gated)
    profile = torchdelta.Profile(rms={name: 2.0}, norm="max")
    session = fast.session(profile=profile, tolerance=0.5)
    session.step({"s": history((), 5, fast.plan.shape)[0]})
    assert session.stream("s").audit().values[0].threshold == 1.0
    assert session.stream("s").profile().norm == "max"
    with pytest.raises(ProfileError, match="the profile names 1 values"):
        fast.session(profile=torchdelta.Profile({"nothing": 1.0}))


@pytest.mark.parametrize("motion", ["none", "given"])
def test_what_is_refused(motion: str) -> None:
    fast, _ = network()
    session = fast.session(motion=motion)
    with pytest.raises(StreamError, match="stream 's' is unknown"):
        session.stream("s").set_tolerance(0.1)
    session.stream("s").join()
    for bad in (-0.1, float("nan"), "much"):
        with pytest.raises(ValueError, match="tolerance"):
            session.stream("s").set_tolerance(bad)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="tolerance"):
        fast.session(motion=motion, tolerance=-1.0)
    session.stream("s").set_tolerance(0.0)
    x = history((), 6, fast.plan.shape)[0]
    assert session.step({"s": x})["s"].stats.reason == "first frame"
    assert all(v.threshold == 0 for v in session.stream("s").audit().values)


@pytest.mark.parametrize("engine", [case for case in ENGINE_CASES if case.startswith("cpu")])
def test_weights_of_both_kinds_are_counted(engine: str) -> None:
    fast, _ = network()
    session = new_session(fast, engine, 0.0)
    x = history((), 7, fast.plan.shape)[0]
    session.step({"s": x})
    direct = session.engine.weight_bytes
    session.stream("s").set_tolerance(0.04)
    session.step({"s": x})
    # of each 3x3 kernel of the first convolution sixteen numbers, for its tiles
    assert session.engine.weight_bytes >= direct + 16 * 16 * 64 * 4
