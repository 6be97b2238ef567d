"""Sessions, streams, bad input, threads."""

import copy
import threading
import warnings

import numpy as np
import pytest
import torch
from torch import nn

import torchdelta
from support import ENGINE_NAMES, GPU_NAMES, as_frame, move, snapshot
from torchdelta import FrameError, StreamError
from torchdelta.engines.cpu import bind
from torchdelta.runtime.inspect import frame_state, slot_of

pytestmark = pytest.mark.check

H, W = 23, 31


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(),
        nn.Conv2d(8, 4, 3, padding=1),
    ).eval()  # fmt: skip


@pytest.fixture(scope="module", params=[*ENGINE_NAMES, *GPU_NAMES])
def fast(model: nn.Module, request: pytest.FixtureRequest) -> torchdelta.CompiledModel:
    """The model on an engine; for one on a GPU a copy there, beside the model on the CPU."""
    device = "cuda" if request.param in GPU_NAMES else "cpu"
    return torchdelta.compile(
        copy.deepcopy(model).to(device), torch.rand(1, 3, H, W, device=device), tolerance=0.0,
        input_range=(0, 1), engine=request.param,
    )  # fmt: skip


# what hangs on frames of the CPU
on_the_cpu = pytest.mark.parametrize("fast", ENGINE_NAMES, indirect=True)


def frame(seed: int) -> torch.Tensor:
    return torch.rand(3, H, W, generator=torch.Generator().manual_seed(seed))


def test_frames_need_not_arrive_in_step(fast: torchdelta.CompiledModel, model: nn.Module) -> None:
    session = fast.session(slots=3)
    last = {}
    for t, streams in enumerate(("abc", "a", "bc", "c", "ab")):
        batch = {s: frame(10 * t + ord(s)) for s in streams}
        results = session.step(batch)
        assert list(results) == list(streams)
        last.update(batch)
        for s in streams:
            with torch.no_grad():
                assert torchdelta.relative_error(results[s].output, model(last[s][None])) < 1e-5
    assert [session.stream(s).stats.frames for s in "abc"] == [3, 3, 3]
    assert session.stats.frames == 9
    assert session.stream("a").stats.last.frame == 2


def test_join_leave_and_slots(fast: torchdelta.CompiledModel) -> None:
    session = fast.session(slots=2)
    assert session.stream("a").join() == 0
    session.step({"b": frame(1)})
    assert session.streams == ["a", "b"]
    with pytest.raises(StreamError, match=r"'c'.*2 of 2"):
        session.stream("c").join()
    before = snapshot(session)
    with pytest.raises(StreamError, match="no free slot"):
        session.step({"a": frame(2), "c": frame(3)})
    assert all(torch.equal(x, y) for x, y in zip(before, frame_state(session).buffers, strict=True))
    with pytest.raises(StreamError, match="joined already"):
        session.stream("a").join()
    session.stream("a").leave()
    assert session.stream("c").join() == 0
    assert session.step({"c": frame(3)})["c"].stats.first


@pytest.mark.parametrize("call", ["leave", "reset", "refresh", "stats", "published", "audit",
                                  "profile"])  # fmt: skip
def test_unknown_stream_is_named(fast: torchdelta.CompiledModel, call: str) -> None:
    session = fast.session(slots=2)
    session.stream("known").join()
    with pytest.raises(StreamError, match="'gone' is unknown; streams in this session: 'known'"):
        getattr(session.stream("gone"), call)()


def test_a_slot_that_is_taken_over_starts_fresh(
    fast: torchdelta.CompiledModel, model: nn.Module
) -> None:
    session = fast.session(slots=1)
    session.step({"old": frame(1)})
    session.stream("old").leave()
    x = frame(1)
    x[:, 0, 0] += 0.5
    result = session.step({"new": x.clamp(0, 1)})["new"]
    assert result.stats.first
    assert result.stats.mac_share == 1.0
    assert bool(result.changed.all())


def test_reset_and_refresh_touch_one_stream(fast: torchdelta.CompiledModel) -> None:
    session = fast.session(slots=2)
    session.step({"a": frame(1), "b": frame(2)})
    session.stream("a").refresh()
    results = session.step({"a": frame(1), "b": frame(2)})
    assert results["a"].stats.first
    assert not results["b"].stats.first
    session.stream("b").reset()
    assert session.stream("b").stats.frames == 0
    assert session.step({"b": frame(2)})["b"].stats.first
    session.refresh()
    results = session.step({"a": frame(1), "b": frame(2)})
    assert all(r.stats.first for r in results.values())


BAD_FRAMES = {
    "size": (torch.rand(3, H, W + 1), "frame is 23x32, this session runs 23x31"),
    "channels": (torch.rand(1, H, W), "1 channels, the network takes 3"),
    "dtype": (torch.zeros(3, H, W, dtype=torch.int64), "dtype int64"),
    "float64": (np.zeros((H, W, 3)), "dtype float64"),
    "batch": (torch.rand(2, 3, H, W), r"shape \[2, 3, 23, 31\]"),
    "layout": (np.zeros((3, H, W), np.uint8), "numpy frames are|31 channels"),
    "nan": (torch.full((3, H, W), float("nan")), "NaN or infinite values at 713 of 713"),
    "inf": (np.full((H, W, 3), np.inf, np.float32), "infinite"),
    "type": ([1, 2, 3], "list, expected a numpy array"),
    "none": (None, "NoneType"),
    "device": (torch.empty(3, H, W, device="meta"), "frame is on meta"),
    # bytes of the right shape and place are looked at together with the other streams'
    "bytes-size": (torch.zeros(3, H + 1, W, dtype=torch.uint8), "frame is 24x31"),
    "bytes-device": (torch.zeros(3, H, W, dtype=torch.uint8, device="meta"), "frame is on meta"),
    "bytes-type": (np.zeros((H, W + 1, 3), np.uint8), "frame is 23x32"),
}


@pytest.mark.parametrize("kind", BAD_FRAMES)
def test_a_bad_frame_is_refused_and_the_others_run(
    fast: torchdelta.CompiledModel, model: nn.Module, kind: str
) -> None:
    bad, message = BAD_FRAMES[kind]
    session = fast.session(slots=2)
    session.step({"good": frame(1), "bad": frame(2)})
    before = snapshot(session)
    good = frame(3).mul(255).to(torch.uint8)
    results = session.step({"bad": bad, "good": good})
    with torch.no_grad():
        assert torchdelta.relative_error(results["good"].output, model(good[None] / 255)) < 1e-5
    assert isinstance(results["bad"].error, FrameError)
    with pytest.raises(FrameError, match=message):
        results["bad"].unwrap()
    slot = slot_of(session, "bad")
    for x, y in zip(before, frame_state(session).buffers, strict=True):
        assert torch.equal(x[slot], y[slot])
    assert session.stream("bad").stats.frames == 1
    # and it goes on as if nothing had been
    again = session.step({"bad": frame(2)})["bad"]
    assert not again.stats.first
    assert again.stats.changed_input == 0.0


def test_a_bad_first_frame_takes_no_slot(fast: torchdelta.CompiledModel) -> None:
    session = fast.session(slots=1)
    assert session.step({"x": torch.rand(3, 5, 5)})["x"].error is not None
    assert session.streams == []
    assert session.step({"y": frame(1)})["y"].error is None


@on_the_cpu
def test_an_engine_failure_leaves_the_stream_recoverable(
    fast: torchdelta.CompiledModel, model: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = fast.session(slots=1)
    session.step({"a": frame(1)})

    def fail(*args: object, **kwargs: object) -> None:
        raise MemoryError("no memory")

    with monkeypatch.context() as patch:
        # where the engine has written a part of the frame
        if fast.engine == "torch":
            patch.setattr(type(session.engine), "_recompute", fail)
        else:
            patch.setattr(bind.NativeProgram, "step", lambda *args, **fields: -1)
        with pytest.raises(MemoryError):
            session.step({"a": frame(2)})
    result = session.step({"a": frame(2)})["a"]
    assert result.stats.first
    with torch.no_grad():
        assert torchdelta.relative_error(result.output, model(frame(2)[None])) < 1e-5


@on_the_cpu
def test_change_masks_say_where(fast: torchdelta.CompiledModel) -> None:
    session = fast.session()
    x = frame(1)
    session.step({"a": x})
    x = x.clone()
    x[:, 10, 12] = 1 - x[:, 10, 12]
    result = session.step({"a": x}, record=True)["a"]
    assert result.changed.nonzero().tolist() == [[10, 12]]
    # three 3x3 convolutions reach 3 px
    reached = torch.zeros(H, W, dtype=torch.bool)
    reached[7:14, 9:16] = True
    assert bool((result.output_changed <= reached).all())
    assert int(result.output_changed.sum()) > 20
    names = [step.name for step in fast.plan.steps]
    assert list(result.active) == names
    assert [int(m.sum()) for m in result.active.values()] == [9, 25, 49]
    assert result.stats.changed_input == pytest.approx(1 / (H * W))
    macs = [step.macs * n / (H * W) for step, n in zip(fast.plan.steps, (9, 25, 49), strict=True)]
    assert result.stats.mac_share == pytest.approx(sum(macs) / fast.plan.macs)


def test_views_and_copies(fast: torchdelta.CompiledModel) -> None:
    copies, views = fast.session(), fast.session(views=True)
    kept = copies.step({"a": frame(1)})["a"].output
    view = views.step({"a": frame(1)})["a"].output
    assert torch.equal(kept, view)
    copies.step({"a": frame(2)})
    views.step({"a": frame(2)})
    assert not torch.equal(kept, view)
    kept.zero_()
    assert copies.step({"a": frame(2)})["a"].stats.changed_input == 0.0


def test_two_sessions_of_one_plan_in_two_threads(fast: torchdelta.CompiledModel) -> None:
    frames = [[frame(100 * k + t) for t in range(25)] for k in range(2)]
    alone = [fast_run(fast, frames[k]) for k in range(2)]
    outputs: list[list[torch.Tensor]] = [[], []]

    def run(k: int) -> None:
        outputs[k] = fast_run(fast, frames[k])

    threads = [threading.Thread(target=run, args=(k,)) for k in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for k in range(2):
        assert len(outputs[k]) == 25
        assert all(torch.equal(a, b) for a, b in zip(outputs[k], alone[k], strict=True))


def fast_run(fast: torchdelta.CompiledModel, frames: list[torch.Tensor]) -> list[torch.Tensor]:
    session = fast.session()
    return [session.step({"s": x})["s"].output for x in frames]


def test_one_session_from_several_threads(fast: torchdelta.CompiledModel, model: nn.Module) -> None:
    session = fast.session(slots=4)
    wrong: list[str] = []

    def run(stream: str) -> None:
        for t in range(10):
            x = frame(ord(stream) * 100 + t)
            out = session.step({stream: x})[stream].output
            with torch.no_grad():
                if torchdelta.relative_error(out, model(x[None])) > 1e-5:
                    wrong.append(f"{stream}{t}")

    threads = [threading.Thread(target=run, args=(s,)) for s in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert session.stats.frames == 40


def test_uint8_numpy_frames(fast: torchdelta.CompiledModel, model: nn.Module) -> None:
    session = fast.session()
    x = frame(5)
    picture = as_frame(x[None])
    out = session.step({"a": picture})["a"].output
    with torch.no_grad():
        expected = model(torch.from_numpy(picture).permute(2, 0, 1)[None] / 255)
    assert torchdelta.relative_error(out, expected) < 1e-5
    same = torch.from_numpy(picture).permute(2, 0, 1)
    assert session.step({"a": same})["a"].stats.changed_input == 0.0


def test_stats_and_per_step(fast: torchdelta.CompiledModel) -> None:
    session = fast.session(timed=True)
    assert str(session.stats) == "no frame yet"
    generator = torch.Generator().manual_seed(1)
    x = frame(1)[None]
    for kind in ("first", "patch", "same"):
        x = move(x, kind, generator)
        session.step({"a": x})
    stats = session.stream("a").stats
    assert stats.frames == 3
    assert stats.first_ms > 0
    assert 0 < stats.changed_input < 1
    assert 0 < stats.mac_share <= stats.work_share
    rows = stats.per_step()
    assert [r.name for r in rows] == [s.name for s in fast.plan.steps]
    assert sum(r.mac_share for r in rows) == pytest.approx(stats.mac_share)
    assert all(r.ms > 0 for r in rows)
    assert "MAC share" in str(stats)


@pytest.mark.parametrize("slots", [0, 65536, 1.5])
@on_the_cpu
def test_a_session_has_1_to_65535_slots(fast: torchdelta.CompiledModel, slots: int) -> None:
    with pytest.raises(StreamError, match=f"1 to 65535 slots, got {slots}"):
        fast.session(slots=slots)


@on_the_cpu
def test_the_last_frame_of_all_streams_is_the_latest(fast: torchdelta.CompiledModel) -> None:
    """Frames that are counted together are counted in order."""
    session = fast.session(slots=2)
    session.step({"a": frame(0), "b": frame(1)})
    latest = session.step({"a": frame(2)})["a"].stats
    assert session.stats.last == session.stream("a").stats.last == latest
    assert session.stream("b").stats.last.frame == 0
    assert session.stats.frames == 3


@on_the_cpu
def test_masks_and_statistics_of_a_frame_stay(fast: torchdelta.CompiledModel) -> None:
    """They are made when they are read, perhaps after later frames."""
    session = fast.session()
    x = frame(1)
    session.step({"a": x})
    x = x.clone()
    x[:, 3, 5] = 1 - x[:, 3, 5]
    early = session.step({"a": x})["a"]
    x = x.clone()
    x[:, 20, 30] = 1 - x[:, 20, 30]
    session.step({"a": x})
    assert early.changed.nonzero().tolist() == [[3, 5]]
    assert not early.output_changed[..., 15:, :].any()
    assert early.output_changed[..., 3, 5].any()


@on_the_cpu
def test_frames_far_outside_the_range_are_warned_about(
    fast: torchdelta.CompiledModel,
) -> None:
    session = fast.session(slots=2)
    with pytest.warns(UserWarning, match=r"run from 0 to 255.*0\.\.1"):
        session.step({"a": torch.linspace(0, 255, 3 * H * W).reshape(3, H, W)})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        session.step({"b": frame(1)})


def test_each_stream_has_its_own_first_frame_flag(fast: torchdelta.CompiledModel) -> None:
    session = fast.session(slots=3)
    for stream in "abc":
        session.stream(stream).join()
    session.step({"a": frame(1)})
    results = session.step({"a": frame(1), "b": frame(2)})
    assert not results["a"].stats.first
    assert results["b"].stats.first
    assert session.step({"c": frame(3)})["c"].stats.first


def test_every_slot_is_aligned_alike(fast: torchdelta.CompiledModel) -> None:
    """Stock kernels may sum in another order at another alignment: streams must not differ."""
    state, alone = (frame_state(fast.session(slots=n)) for n in (3, 1))
    for value in fast.plan.owners:
        places = [state.view(value.index, slot).data_ptr() % 64 for slot in range(3)]
        assert places[0] == places[1] == places[2]
    # and the number of slots alone must not choose another kernel
    for one, three in zip(alone.buffers, state.buffers, strict=True):
        assert one.stride() == three.stride()
