"""Windows that move: streams side by side, bad windows, jumps."""

import numpy as np
import pytest
import torch
from torch.utils import _pytree as pytree

import torchdelta
from ring_worlds import ENGINES, PAN, SHAPE, World, compiled, same_output, step, walk
from support import make_engine, new_session, same_bits, snapshot
from torchdelta import FrameError, StreamError
from torchdelta.runtime.inspect import buffers_of, frame_state
from torchdelta.runtime.measure import placed_step
from torchdelta.runtime.session import Session
from torchdelta.runtime.windows import Window


def same_state(a: Session, b: Session, stream: str) -> bool:
    """Whether a stream has the same bits in the same places of two sessions' buffers."""
    pairs = zip(buffers_of(a, stream), buffers_of(b, stream), strict=True)
    return all(bool(same_bits(x, y).all()) for x, y in pairs)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("tolerance", [0.0, 0.05])
@pytest.mark.parametrize("net", ["strides", "unet", "excite"])
def test_streams_that_move_apart_do_not_meet(engine: str, net: str, tolerance: float) -> None:
    """Three streams in one session, one of them static, give bit for bit what they give alone."""
    fast, _ = compiled(net)
    stride, size = fast.plan.total_stride, fast.plan.size
    together = new_session(fast, engine, tolerance, slots=3)
    alone = {s: new_session(fast, engine, tolerance) for s in "abs"}
    world = World()
    calls = {5: ("reset", "a"), 8: ("refresh", "b"), 11: ("leave", "a"), 14: ("reset", "s")}
    for t in range(18):
        if t in calls:
            call, stream = calls[t]
            getattr(together.stream(stream), call)()
            getattr(alone[stream].stream(stream), call)()
        world.change((0, 0), (40, 40))
        at = {"a": (t * stride[0], -t * stride[1]), "b": (-2 * t * stride[0], t * stride[1])}
        border = "exact" if t % 3 == 2 else "keep"
        windows = {s: Window(o, border=border) for s, o in at.items() if (t + len(s)) % 7}
        frames = {s: world.show(at.get(s, (0, 0)), size) for s in "abs" if s in windows or s == "s"}
        results = placed_step(together, frames, windows)
        for s, result in results.items():
            given = {s: windows[s]} if s in windows else {}
            expected = placed_step(alone[s], {s: frames[s]}, given)[s]
            for x, y in zip(
                *map(pytree.tree_leaves, (result.output, expected.output)), strict=True
            ):
                assert torch.equal(x, y), (t, s)
            assert torch.equal(result.changed.cpu(), expected.changed.cpu())
            assert result.report().active_px == expected.report().active_px
            assert result.stats.reason == expected.stats.reason
    for s in together.streams:
        assert same_state(together, alone[s], s)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_window_may_begin_and_end_anywhere(engine: str) -> None:
    """First frames, resets and refreshes put windows anywhere; a reset begins at (0, 0) again."""
    fast, model = compiled("strides")
    sy, sx = fast.plan.total_stride
    session, world = new_session(fast, engine, 0.0, slots=2), World()
    for call, origin in (
        (None, (-3 * sy, 7 * sx)), ("refresh", (50 * sy, sx)), ("reset", (sy, -sx)),
        ("leave", (9 * sy, 9 * sx)),
    ):  # fmt: skip
        if call:
            getattr(session.stream("s"), call)()
        result = step(session, world, origin)
        assert result.stats.first
        assert result.stats.reason == {None: "first frame", "leave": "first frame"}.get(call, call)
        assert same_output(result, model, world.show(origin, fast.plan.size))
        # without a word about it the window stays
        world.change(origin, fast.plan.size)
        frame = world.show(origin, fast.plan.size)
        result = session.step({"s": frame})["s"]
        assert result.origin == origin
        assert not result.stats.first
        assert same_output(result, model, frame)
    session.stream("s").reset()
    assert session.step({"s": frame})["s"].origin == (0, 0)
    session.stream("s").refresh(reason="zoomed out")
    assert step(session, world, (sy, sx)).stats.reason == "zoomed out"
    assert session.stats.reasons == {"first frame": 2, "refresh": 1, "reset": 2, "zoomed out": 1}


@pytest.mark.parametrize("engine", ENGINES)
def test_a_refresh_after_a_walk_is_a_fresh_start(engine: str) -> None:
    """P2, and P5: a frame that repeats itself in a window that stays activates nothing."""
    fast, _ = compiled("unet")
    session, world = new_session(fast, engine, 0.05), World()
    for origin in walk(fast.plan.total_stride, PAN):
        step(session, world, origin, "keep")
    idle = step(session, world, origin, "keep")
    assert idle.stats.mac_share == 0.0
    assert not idle.changed.any()
    session.stream("s").refresh()
    step(session, world, origin)
    fresh = new_session(fast, engine, 0.05, profile=session.stream("s").profile())
    step(fresh, world, origin)
    assert same_state(session, fresh, "s")


@pytest.mark.parametrize("engine", ENGINES)
def test_thresholds_hold_while_moving(engine: str) -> None:
    """P3 with exact borders everywhere, with kept ones off the edges; and something is saved."""
    fast, _ = compiled("unet")
    for border in ("exact", "keep"):
        session, world = new_session(fast, engine, 0.1), World()
        shares = []
        for t, origin in enumerate(walk(fast.plan.total_stride, PAN)):
            if t % 3 == 2:
                world.change(origin, fast.plan.size)
            shares.append(step(session, world, origin, border).stats.mac_share)
            audit = session.stream("s").audit()
            assert audit.ok, (border, t, str(audit))
        assert any(v.worst > v.allowance for v in audit.values)
        assert min(shares[1:]) < 0.9


@pytest.mark.parametrize("engine", ENGINES)
def test_streams_without_windows_have_no_rings(engine: str) -> None:
    fast, _ = compiled("unet")
    session, world = new_session(fast, engine, 0.0, slots=2), World()
    session.step({"still": world.show((0, 0), fast.plan.size)})
    step(session, world, fast.plan.total_stride)
    state = frame_state(session)
    for v in fast.plan.values:
        assert state.pixels(v.index, 0) is state.view(v.index, 0)
        assert state.window(v.index, 0) is state.view(v.index, 0)
    assert state.origin.tolist() == [[0, 0], list(fast.plan.total_stride)]
    assert not state.rings[0].any()
    assert state.rings[1].any()


@pytest.mark.parametrize("engine", ENGINES)
def test_results_are_in_reading_order_as_views_too(engine: str) -> None:
    fast, model = compiled("strides")
    ready = make_engine(engine, fast.plan, fast.device, torch.float32)
    session, world = Session(ready, 1, 0.0, torchdelta.Profile(), views=True), World()
    for origin in walk(fast.plan.total_stride, PAN[:6]):
        result = step(session, world, origin)
        frame = world.show(origin, fast.plan.size)
        assert same_output(result, model, frame)
        assert torch.equal(session.stream("s").published().cpu(), frame)


H, W = SHAPE[1:]
BAD_WINDOWS = {
    "off-stride": (Window((4, 3)), r"origin is \(4, 3\), expected multiples .* \(4, 4\)"),
    "not-whole": (Window((4.0, 0.0)), "expected two whole numbers"),
    "too-few": (Window((4,)), "expected two whole numbers"),
    "too-far": (Window((2**60, 0)), "expected two whole numbers"),
    "no-window": ((4, 4), "window is a tuple, expected a torchdelta Window"),
    "border": (Window((4, 4), border="zero"), "border is 'zero', expected"),
    "small-mask": (Window((4, 4), np.ones((H, W - 1), bool)), r"bool \[17, 21\], expected bool"),
    "float-mask": (Window((4, 4), torch.ones(H, W)), r"window.valid is float32 \[17, 22\]"),
    "list-mask": (Window((4, 4), [[True]]), "window.valid is a list, expected a bool"),
}
BAD_REGIONS = {
    "roi-shape": (np.ones((W, H), bool), r"roi is bool \[22, 17\], expected bool \[17, 22\]"),
    "roi-dtype": (np.ones((H, W), np.uint8), r"roi is uint8 \[17, 22\]"),
    "roi-type": ("all", "roi is a str"),
}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("bad", [*BAD_WINDOWS, *BAD_REGIONS, "nan"])
def test_bad_windows_leave_the_stream_as_it_was(engine: str, bad: str) -> None:
    fast, model = compiled("strides")
    assert fast.plan.total_stride == (4, 4)
    session, world = new_session(fast, engine, 0.0, slots=3), World()
    step(session, world, (8, -4))
    step(session, world, (12, -8))
    before, origin = snapshot(session), frame_state(session).origin.copy()
    frame = world.show((12, -8), fast.plan.size)
    frames = {"s": frame, "other": frame, "new": frame}
    windows, roi = {"s": Window((8, -8)), "new": Window((4, 4))}, {}
    if bad == "nan":
        frames["s"] = torch.full_like(frame, float("nan"))
        message = "NaN"
    elif bad in BAD_WINDOWS:
        windows["s"], message = BAD_WINDOWS[bad]
    else:
        roi["s"], message = BAD_REGIONS[bad]
    results = placed_step(session, frames, windows, roi=roi)
    with pytest.raises(FrameError, match=message):
        results["s"].unwrap()
    assert all(results[s].error is None for s in ("other", "new"))
    assert (frame_state(session).origin[0] == origin[0]).all()
    assert all(
        bool(same_bits(x[0], y[0]).all())
        for x, y in zip(before, frame_state(session).buffers, strict=True)
    )
    assert session.stream("s").stats.frames == 2
    assert same_output(step(session, world, (8, -8)), model, world.show((8, -8), fast.plan.size))


@pytest.mark.parametrize("engine", ENGINES)
def test_a_bad_first_window_takes_no_slot(engine: str) -> None:
    fast, _ = compiled("strides")
    session = new_session(fast, engine, 0.0)
    frame = torch.rand(1, *SHAPE)
    result = placed_step(session, {"s": frame}, {"s": Window((1, 1))})["s"]
    assert isinstance(result.error, FrameError)
    assert session.streams == []


@pytest.mark.parametrize("engine", ENGINES)
def test_windows_and_regions_belong_to_frames(engine: str) -> None:
    fast, _ = compiled("strides")
    session = new_session(fast, engine, 0.0, slots=2)
    frame = torch.rand(1, *SHAPE)
    with pytest.raises(StreamError, match="windows names 't', which has no frame"):
        placed_step(session, {"s": frame}, {"t": Window((4, 4))})
    with pytest.raises(StreamError, match="roi names 't', which has no frame"):
        session.step({"s": frame}, roi={"t": np.ones((H, W), bool)})
    assert session.streams == []


@pytest.mark.parametrize("engine", ENGINES)
def test_a_jump_begins_anew_and_says_so(engine: str) -> None:
    fast, model = compiled("unet")
    session, world = new_session(fast, engine, 0.0), World()
    sy, sx = fast.plan.total_stride
    far_y, far_x = -(-H // sy) * sy, -(-W // sx) * sx
    jumps = 0
    for origin in ((0, 0), (far_y, 0), (far_y - sy, 0), (far_y - sy, -far_x), (0, -far_x)):
        result = step(session, world, origin, "keep")
        jumps += result.stats.reason == "the window jumped by more than its size"
        if result.stats.first:
            assert same_output(result, model, world.show(origin, fast.plan.size))
            assert result.changed.all()
            assert session.stream("s").audit().ok
    assert jumps == 2
    assert session.stream("s").stats.moves == 2
