"""Design invariants P1 to P5 over random networks and random histories, on every engine.

Each registered op has four networks that contain it; each invariant draws histories for all of
them: partial changes, zero-sum stripes, single pixels, NaN frames, scene cuts, resets, refreshes,
joins and leaves, a black first frame.
"""

import zlib
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, seed
from hypothesis import strategies as st
from torch import Tensor
from torch.utils import _pytree as pytree

import torchdelta
from histories import P1_FP32, quick
from random_nets import compiled_net
from streams import dense
from support import (
    ENGINE_CASES,
    HALF_CASES,
    each,
    move,
    new_session,
    same_bits,
    snapshot,
    untouched_outside,
)
from torchdelta.ops import OPS
from torchdelta.runtime.inspect import buffers_of, frame_state, slot_of
from torchdelta.runtime.session import Session

pytestmark = pytest.mark.check

# relative L2 of streams in half precision against the dense network in float32: a
# rounding per layer
HALF = {torch.float16: 5e-3, torch.bfloat16: 2e-2}
NETWORKS_PER_OP = 4
FRAMES = ("pixel", "patch", "stripes", "all", "same", "noise", "black", "nan")
events = st.lists(
    st.tuples(
        st.sampled_from((*FRAMES, "reset", "refresh", "leave")),
        st.sampled_from(("a", "b")),
        st.integers(0, 2**20),
    ),
    min_size=4,
    max_size=10,
)
networks = st.integers(0, NETWORKS_PER_OP - 1)
CASES = [
    pytest.param(engine, op, id=f"{engine}-{op}", marks=pytest.mark.xdist_group(op))
    for engine in ENGINE_CASES
    for op in sorted(OPS)
]


def for_each_op(**strategies: st.SearchStrategy) -> Callable[[Callable], Callable]:
    """Turn check(engine, op, **drawn) into a test of all engines and ops, each with its own seed.

    Without the seed of its own every op would see the same few histories.
    """

    def wrap(check: Callable) -> Callable:
        @pytest.mark.parametrize(("engine", "op"), CASES)
        def test(engine: str, op: str) -> None:
            @seed(zlib.crc32(f"{check.__name__} {op}".encode()))
            @quick
            @given(**strategies)
            def run(**drawn: object) -> None:
                check(engine, op, **drawn)

            run()

        test.__name__, test.__doc__ = check.__name__, check.__doc__
        return test

    return wrap


class History:
    """Drives streams of a session by drawn events and remembers each stream's last frame."""

    def __init__(self, session: Session, size: tuple[int, ...], first: str = "all") -> None:
        self.session, self.size, self.first = session, size, first
        self.frames: dict[str, Tensor] = {}

    def next(self, event: tuple[str, str, int]) -> tuple[str, Tensor] | None:
        """Apply one event; returns the stream and the frame to run, if it is a frame."""
        kind, stream, seed = event
        joined = stream in self.session.streams
        if kind in ("reset", "refresh", "leave"):
            if joined:
                getattr(self.session.stream(stream), kind)()
            return None
        generator = torch.Generator().manual_seed(seed)
        if stream not in self.frames:
            start = torch.zeros(1, *self.size)
            self.frames[stream] = move(start, self.first, generator)
        if kind != "nan":
            self.frames[stream] = move(self.frames[stream], kind, generator)
            return stream, self.frames[stream]
        return stream, move(self.frames[stream], kind, generator)


def with_motion(history: list[tuple[str, str, int]]) -> list[tuple[str, str, int]]:
    """End with frames that move every network's output: standing still must not pass."""
    return [*history, ("all", "a", 1), ("patch", "a", 2), ("all", "a", 3)]


@for_each_op(net=networks, history=events)
def test_p1_exact(engine: str, op: str, net: int, history: list) -> None:
    """All thresholds 0: after any history the output is the dense network's on this frame."""
    fast, model = compiled_net(op, net)
    assert op in {s.op.name for s in fast.plan.steps}
    run = History(new_session(fast, engine, 0.0, slots=2), fast.plan.shape)
    last: dict[str, object] = {}
    moved = 0.0
    for event in with_motion(history):
        frame = run.next(event)
        if frame is None:
            continue
        stream, x = frame
        before = snapshot(run.session)
        result = run.session.step({stream: x})[stream]
        if event[0] == "nan":
            assert isinstance(result.error, torchdelta.FrameError)
            with pytest.raises(torchdelta.FrameError, match="NaN"):
                result.unwrap()
            after = frame_state(run.session).buffers
            assert all(bool(same_bits(a, b).all()) for a, b in zip(before, after, strict=True))
            continue
        expected = dense(model, x)
        assert torchdelta.relative_error(result.output, expected) <= P1_FP32
        if stream in last:
            moved = max(moved, torchdelta.relative_error(last[stream], expected))
        last[stream] = expected
    assert moved > 1e-2


@for_each_op(net=networks, history=events)
def test_p2_refresh_is_a_fresh_start(engine: str, op: str, net: int, history: list) -> None:
    """After refresh() the state is a fresh session's on the same frame with the same thresholds."""
    fast, _ = compiled_net(op, net)
    run = History(new_session(fast, engine, 0.05, slots=2), fast.plan.shape)
    for event in with_motion(history):
        frame = run.next(event)
        if frame is not None:
            run.session.step({frame[0]: frame[1]})
    run.session.stream("a").refresh()
    run.session.step({"a": run.frames["a"]})
    fresh = new_session(fast, engine, 0.05, profile=run.session.stream("a").profile())
    fresh.step({"a": run.frames["a"]})
    slot = slot_of(run.session, "a")
    for old, new in zip(buffers_of(run.session, "a"), buffers_of(fresh, "a"), strict=True):
        assert bool(same_bits(old, new).all())
    ours, theirs = (frame_state(s).thresholds for s in (run.session, fresh))
    assert ours[slot] == pytest.approx(theirs[0])


@for_each_op(
    net=networks,
    history=events,
    first=st.sampled_from(("all", "black")),
    norm=st.sampled_from(("rms", "max")),
    tolerance=st.sampled_from((0.02, 0.1, 0.5)),
)
def test_p3_bounded(
    engine: str, op: str, net: int, history: list, first: str, norm: str, tolerance: float
) -> None:
    """Every stored value is within its threshold of a recompute from its inputs' stored values,
    and a frame writes nothing outside its active sets."""
    fast, _ = compiled_net(op, net)
    profile = torchdelta.Profile(norm=norm)
    session = new_session(fast, engine, tolerance, slots=2, profile=profile)
    run = History(session, fast.plan.shape, first)
    gated = False
    for event in with_motion(history):
        frame = run.next(event)
        if frame is None or event[0] == "nan":
            continue
        stream, x = frame
        before = snapshot(session)
        result = session.step({stream: x}, record=True)[stream]
        assert untouched_outside(session, before, result, slot_of(session, stream))
        audit = session.stream(stream).audit()
        assert audit.ok, str(audit)
        gated |= any(v.worst > v.allowance for v in audit.values)
        gated |= any(v.threshold > 0 for v in audit.values)
    assert gated or not any(v.gated for v in fast.plan.values)


@for_each_op(net=networks, history=events, together=st.booleans())
def test_p4_isolated(engine: str, op: str, net: int, history: list, together: bool) -> None:
    """Streams in one session give bit for bit what they give alone."""
    fast, _ = compiled_net(op, net)
    shared = History(new_session(fast, engine, 0.04, slots=2), fast.plan.shape)
    alone = {s: History(new_session(fast, engine, 0.04), fast.plan.shape) for s in "ab"}
    waiting: dict[str, Tensor] = {}
    outputs: dict[str, list] = {"a": [], "b": []}
    expected: dict[str, list] = {"a": [], "b": []}

    def flush() -> None:
        if waiting:
            results = shared.session.step(dict(waiting))
            for stream, result in results.items():
                outputs[stream].append(None if result.error else result.output)
            waiting.clear()

    for event in with_motion(history):
        stream = event[1]
        if not together or stream in waiting or event[0] in ("reset", "refresh", "leave"):
            flush()
        one = alone[stream].next(event)
        both = shared.next(event)
        assert (one is None) == (both is None)
        if one is None or both is None:
            continue
        waiting[stream] = both[1]
        result = alone[stream].session.step({stream: one[1]})[stream]
        expected[stream].append(None if result.error else result.output)
    flush()
    assert expected["a"]
    for stream in "ab":
        got, want = (pytree.tree_leaves(t[stream]) for t in (outputs, expected))
        assert len(got) == len(want)
        for x, y in zip(got, want, strict=True):
            assert (x is None and y is None) or bool(same_bits(x, y).all())


@for_each_op(net=networks, history=events, tolerance=st.sampled_from((0.0, 0.04)))
def test_p5_idle(engine: str, op: str, net: int, history: list, tolerance: float) -> None:
    """An unchanged frame activates no pixel in any step, and changes no bit of the state."""
    fast, _ = compiled_net(op, net)
    run = History(new_session(fast, engine, tolerance, slots=2), fast.plan.shape)
    for event in with_motion(history):
        frame = run.next(event)
        if frame is None or event[0] == "nan":
            continue
        stream, x = frame
        first = run.session.step({stream: x})[stream]
        # twice: what the gate left for later must not wake up by itself
        for _ in range(2):
            before = snapshot(run.session)
            again = run.session.step({stream: x}, record=True)[stream]
            assert again.stats.mac_share == 0.0
            assert again.stats.changed_input == 0.0
            assert not any(bool(mask.any()) for mask in again.active.values())
            assert not bool(again.changed.any())
            after = frame_state(run.session).buffers
            assert all(bool(same_bits(a, b).all()) for a, b in zip(before, after, strict=True))
        assert torchdelta.relative_error(again.output, first.output) == 0.0


@pytest.mark.parametrize(("engine", "dtype"), HALF_CASES)
@pytest.mark.parametrize("op", each(sorted(OPS)))
def test_p1_half_precision(engine: str, op: str, dtype: torch.dtype) -> None:
    """Streams in half precision stay within its rounding of the float32 network."""
    fast, model = compiled_net(op, 0)
    session = new_session(fast, engine, 0.0, dtype=dtype)
    generator = torch.Generator().manual_seed(5)
    x = torch.rand(1, *fast.plan.shape, generator=generator).to(dtype).float()
    last = None
    moved = 0.0
    for kind in ("first", "patch", "pixel", "all", "patch", "stripes"):
        x = move(x, kind, generator).to(dtype).float()
        expected = dense(model, x)
        result = session.step({"s": x})["s"]
        assert torchdelta.relative_error(result.output, expected) <= HALF[dtype], kind
        if last is not None:
            moved = max(moved, torchdelta.relative_error(last, expected))
        last = expected
    assert moved > 1e-2
