"""On a GPU: networks, streams and sessions; CUDA graphs, threads, devices, memory.

Skipped without a GPU, required by TORCHDELTA_REQUIRE=cuda. `make test-gpu` also runs the op cases
and the properties of random networks there (test_ops.py, test_properties.py, test_networks.py).
"""

import copy
import gc
import random
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import torchdelta
from chain_nets import NETS, SHAPE, Fused, Peek, compiled_chain, conv
from conftest import is_required
from streams import dense, history, play
from support import (
    ENGINE_CASES,
    LONG,
    as_frame,
    assert_active,
    make_engine,
    move,
    new_session,
    same_bits,
    snapshot,
    wrote_only,
)
from test_networks import build

# these run with the fixtures below: the model on the CPU beside a session on the GPU
from test_session import (  # noqa: F401
    H,
    W,
    test_a_bad_first_frame_takes_no_slot,
    test_a_bad_frame_is_refused_and_the_others_run,
    test_a_slot_that_is_taken_over_starts_fresh,
    test_each_stream_has_its_own_first_frame_flag,
    test_every_slot_is_aligned_alike,
    test_frames_need_not_arrive_in_step,
    test_join_leave_and_slots,
    test_one_session_from_several_threads,
    test_reset_and_refresh_touch_one_stream,
    test_stats_and_per_step,
    test_two_sessions_of_one_plan_in_two_threads,
    test_uint8_numpy_frames,
    test_unknown_stream_is_named,
    test_views_and_copies,
)
from torchdelta import EngineError, FrameError
from torchdelta.engines import ENGINES, choose
from torchdelta.engines.torch_engine import ieee_float32
from torchdelta.runtime.inspect import buffers_of, frame_state, uncounted_turns
from torchdelta.runtime.measure import forced_step
from torchdelta.runtime.session import Session
from torchdelta.runtime.uncounted import MOST_UNCOUNTED

if not torch.cuda.is_available():
    if is_required("cuda"):
        pytest.fail("TORCHDELTA_REQUIRE=cuda, and PyTorch finds no GPU", pytrace=False)
    pytest.skip("PyTorch finds no GPU", allow_module_level=True)
if "triton" not in ENGINE_CASES and is_required("cuda"):
    pytest.fail(f"TORCHDELTA_REQUIRE=cuda: {ENGINES['triton'].usable()[1]}", pytrace=False)

CUDA = torch.device("cuda")
ENGINES_HERE = [name for name in ("torch", "triton") if name in ENGINE_CASES]
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
# relative L2 against dense fp32 without TF32; half precision: each of 20 to 50 layers rounds
LIMITS = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 8e-2}
# the same for networks of a few layers
SMALL_LIMITS = {torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 2e-2}
# frames after which all of a session is warm: each kind of frame is captured at its second one, and
# there is a staging buffer for each of the frames that may be on their way
WARM = 12

needs_triton = pytest.mark.skipif("triton" not in ENGINE_CASES, reason="no Triton")
each_dtype = pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)


def open_session(net: str, *, tolerance: float = 0.0, slots: int = 1, **options: bool) -> Session:
    """Open a session of one of NETS on the GPU."""
    fast, _ = compiled_chain(net)
    engine = make_engine("triton", fast.plan, fast.device, torch.float32)
    return Session(engine, slots, tolerance, torchdelta.Profile(), **options)


# networks


@pytest.mark.parametrize("dtype", LIMITS, ids=DTYPES)
@pytest.mark.parametrize("engine", ENGINES_HERE)
@pytest.mark.parametrize("spec", ["torchvision:resnet18", "torchvision:mobilenet_v3_small",
                                  "timm:hrnet_w18_small"])  # fmt: skip
def test_networks_on_the_gpu_equal_dense(spec: str, engine: str, dtype: torch.dtype) -> None:
    size = (64, 96) if spec.startswith("timm") else (65, 97)
    with ieee_float32(CUDA):
        model = build(spec, size).cuda()
        generator = torch.Generator().manual_seed(2)
        x = torch.rand(1, 3, *size, generator=generator)
        fast = torchdelta.compile(
            model, x.cuda(), tolerance=0, input_range=(0, 1), dtype=dtype, engine=engine
        )
        assert fast.device.type == "cuda"
        assert not fast.session().engine.foreign_steps()
        last = None
        for kind in ("first", "patch", "patch", "stripes", "patch", "all", "pixel"):
            x = move(x, kind, generator)
            out = fast(x.cuda())
            assert out.is_cuda
            expected = dense(model, x.cuda())
            assert torchdelta.relative_error(out, expected) <= LIMITS[dtype], kind
            if last is not None and kind != "pixel":
                assert torchdelta.relative_error(last, expected) > 1e-2
            last = expected


@needs_triton
def test_tf32_is_an_option() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(conv(3, 64, 3), nn.ReLU(), conv(64, 64, 3)).eval()
    x = torch.rand(1, 3, 40, 50)
    plan = torchdelta.compile(model, x, input_range=(0, 1)).plan
    engine = ENGINES["triton"](plan, torch.device("cuda", 0), torch.float32, tf32=True)
    session = Session(engine, 1, 0.0, torchdelta.Profile())
    for _ in range(3):
        out = session.step({"s": x})["s"].output
        assert 1e-6 < torchdelta.relative_error(out, dense(model, x)) < 2e-3
        x = 1 - x


# shared lists and streams


@needs_triton
@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("tolerance", [0.0, 0.1])
def test_active_sets(net: str, tolerance: float) -> None:
    """They are what the gates published, in eager frames and in replayed ones (P3)."""
    fast, model = compiled_chain(net)
    session = new_session(fast, "triton", tolerance)
    for x in history(("pixel", "patch", "noise", "same", "corner", "all", "pixel"), 1):
        before = snapshot(session)
        result = session.step({"s": x.cuda()}, record=True)["s"]
        assert_active(session, before, result, 0)
        assert wrote_only(session, before, {0: result})
        audit = session.audit("s")
        assert audit.ok, str(audit)
        if not tolerance:
            assert torchdelta.relative_error(result.output, dense(model, x)) <= 1e-5


@needs_triton
@pytest.mark.parametrize("net", ["downsampling", "cat-of-six"])
@pytest.mark.parametrize("some", [False, True], ids=["all", "some"])
def test_forced_sets(net: str, some: bool) -> None:
    fast, model = compiled_chain(net)
    plan = fast.plan
    generator = torch.Generator().manual_seed(3)
    masks: dict[tuple[int, int], Tensor] = {}
    for step in plan.steps:
        size = plan.values[step.output].size
        masks.setdefault(size, (torch.rand(size, generator=generator) < 0.2).cuda())
    steps = range(1, len(plan.steps), 2) if some else range(len(plan.steps))
    forced = {i: masks[plan.values[plan.steps[i].output].size] for i in steps}
    session = new_session(fast, "triton", 0.0)
    frames = history(("same", "patch", "all", "pixel", "patch"), 4)
    for t, x in enumerate(frames):
        given = forced if t in (1, 2, 3) else None
        if t == 4:
            # what forced sets left out
            session.refresh()
        before = snapshot(session)
        result = forced_step(session, {"s": x.cuda()}, given, record=True)["s"]
        for i, mask in (given or {}).items():
            assert torch.equal(result.active[plan.steps[i].name], mask), t
        counts = [int(mask.sum()) for mask in result.active.values()]
        assert result.report().active_px == counts
        assert wrote_only(session, before, {0: result})
        if t in (0, 4, 5):
            assert_active(session, before, result, 0)
            assert torchdelta.relative_error(result.output, dense(model, x)) <= 1e-5


@needs_triton
@each_dtype
@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("net", NETS)
def test_streams_at_tolerance_0(net: str, device: str, dtype: torch.dtype) -> None:
    """Joins, leaves, resets, refreshes, uneven arrival: as alone (P4), and dense (P1)."""
    fast, model = compiled_chain(net)

    def check(name: str, result: torchdelta.Result, x: Tensor) -> None:
        error = torchdelta.relative_error(result.output, dense(model, x))
        assert error <= SMALL_LIMITS[dtype], name

    play(fast, 0.0, check, dtype=dtype, device=device)


@needs_triton
@each_dtype
@pytest.mark.parametrize("net", ["bottleneck", "downsampling", "scales", "squeeze-excite"])
def test_streams_with_gates(net: str, dtype: torch.dtype) -> None:
    """As alone (P4), audited (P3), idle on the same frames (P5), and fresh after a refresh (P2)."""
    fast, _ = compiled_chain(net)
    session, last = play(fast, 0.08, lambda *_: None, dtype=dtype, device="cuda")
    for name in session.streams:
        audit = session.audit(name)
        assert audit.ok, str(audit)
    frames = {name: last[name].cuda() for name in session.streams}
    before = snapshot(session)
    for result in session.step(frames, record=True).values():
        assert result.report().active_px == [0] * len(fast.plan.steps)
        assert result.stats.changed_input == result.stats.mac_share == 0.0
        assert not any(mask.any() for mask in result.active.values())
        assert not result.changed.any()
    assert all(same_bits(x, y).all() for x, y in zip(before, snapshot(session), strict=True))
    session.refresh("c")
    assert session.step({"c": frames["c"]})["c"].stats.first
    fresh = new_session(fast, "triton", 0.08, profile=session.profile("c"), dtype=dtype)
    fresh.step({"c": frames["c"]})
    for old, new in zip(buffers_of(session, "c"), buffers_of(fresh, "c"), strict=True):
        assert same_bits(old, new).all()


@needs_triton
@each_dtype
@pytest.mark.parametrize(("channels", "size", "slots"), [(64, (120, 160), 2), (256, (20, 30), 16),
                                                         (20, (90, 111), 6)])  # fmt: skip
def test_lists_of_any_length_give_the_same_bits(
    channels: int, size: tuple[int, int], slots: int, dtype: torch.dtype
) -> None:
    """Tiles and splits follow a list's length; the order of each sum does not (P1, P4)."""
    torch.manual_seed(0)
    model = nn.Sequential(conv(3, channels, 3), nn.ReLU(), conv(channels, channels, 3)).eval()
    fast = torchdelta.compile(model, torch.rand(1, 3, *size), input_range=(0, 1))
    names = [str(n) for n in range(slots)]
    clips = {n: history(("pixel", "patch", "corner"), int(n), (3, *size)) for n in names}
    together, alone, whole = (
        new_session(fast, "triton", 0.0, slots=k, dtype=dtype) for k in (slots, 1, slots)
    )
    for t in range(4):
        results = together.step({n: clips[n][t].cuda() for n in names})
        out = alone.step({"0": clips["0"][t].cuda()})["0"].output
        assert torch.equal(results["0"].output, out), t
    results = whole.step({n: clips[n][-1].cuda() for n in names})
    for x, y in zip(frame_state(together).buffers, frame_state(whole).buffers, strict=True):
        assert same_bits(x, y).all()
    expected = dense(model, clips["0"][-1])
    assert torchdelta.relative_error(results["0"].output, expected) <= SMALL_LIMITS[dtype]


@needs_triton
def test_stamps_begin_anew() -> None:
    """More frames than a stamp has numbers: an unchanged frame stays idle, another one is exact."""
    fast, model = compiled_chain("chain")
    session = new_session(fast, "triton", 0.0, slots=2)
    generator = torch.Generator().manual_seed(9)
    x = torch.rand(1, *SHAPE, generator=generator)
    session.step({"idle": x.cuda()})
    frozen = x
    for t in range(600):
        kind = ("pixel", "same", "same", "corner", "same")[t % 5]
        x = move(x, kind, generator)
        result = session.step({"s": x.cuda()})["s"]
        active = sum(result.report().active_px)
        assert (active == 0) == (kind == "same"), t
        if t % 50 == 3:
            assert torchdelta.relative_error(result.output, dense(model, x)) <= 1e-5
    frozen = move(frozen, "pixel", generator)
    before = snapshot(session)
    result = session.step({"idle": frozen.cuda()}, record=True)["idle"]
    assert_active(session, before, result, 0)
    assert int(result.changed.sum()) == 1


# sessions: the tests of test_session.py run with these


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(),
        nn.Conv2d(8, 4, 3, padding=1),
    ).eval()  # fmt: skip


@pytest.fixture(scope="module")
def fast(model: nn.Module) -> torchdelta.CompiledModel:
    if "triton" not in ENGINES_HERE:
        pytest.skip("no Triton")
    return torchdelta.compile(
        copy.deepcopy(model).cuda(), torch.rand(1, 3, H, W, device="cuda"), tolerance=0.0,
        input_range=(0, 1), engine="triton",
    )  # fmt: skip


def test_frames_from_the_cpu_are_taken_and_gates_work() -> None:
    model = torch.nn.Conv2d(3, 4, 3, padding=1).eval().cuda()
    fast = torchdelta.compile(model, torch.rand(1, 3, 32, 32), input_range=(0, 1))
    session = fast.session(slots=2)
    frame = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    first = session.step({"a": frame, "b": torch.rand(3, 32, 32, device="cuda")})
    assert first["a"].output.is_cuda
    again = session.step({"a": frame})["a"]
    assert again.stats.changed_input == 0.0
    assert session.audit("a").ok


def test_a_frame_on_the_gpu_is_refused_by_a_session_on_the_cpu() -> None:
    fast = torchdelta.compile(torch.nn.Conv2d(3, 4, 3).eval(), torch.rand(1, 3, 32, 32))
    with pytest.raises(torchdelta.FrameError, match="frame is on cuda"):
        fast(torch.rand(1, 3, 32, 32, device="cuda"))


@needs_triton
def test_auto_takes_triton_on_a_gpu() -> None:
    engine, reason = choose("auto", CUDA)
    assert engine is ENGINES["triton"]
    assert torch.cuda.get_device_name() in reason
    with pytest.raises(EngineError, match="runs on cuda here, the model is on cpu"):
        choose("triton", torch.device("cpu"))


@needs_triton
def test_frames_of_host_and_device_mixed() -> None:
    """The same picture in any form gives the same result, whatever the others are."""
    _, model = compiled_chain("bottleneck")
    pictures = [as_frame(x) for x in history(("patch", "pixel", "same", "all", "patch"), 5)]
    forms: dict[str, Callable[[np.ndarray], object]] = {
        "array": lambda p: p,
        "host tensor": lambda p: torch.from_numpy(p).permute(2, 0, 1),
        "device": lambda p: torch.from_numpy(p).permute(2, 0, 1).cuda(),
        "device planes": lambda p: torch.from_numpy(p).permute(2, 0, 1).cuda().contiguous(),
        "host float": lambda p: torch.from_numpy(p).permute(2, 0, 1) / 255,
        "device float": lambda p: torch.from_numpy(p).permute(2, 0, 1).cuda() / 255,
    }
    session = open_session("bottleneck", slots=len(forms))
    names = list(forms)
    for t, picture in enumerate(pictures):
        # another stream stays away in each step
        frames = {n: forms[n](picture) for n in names if n != names[t] or t in (0, 5)}
        results = session.step(frames)
        x = torch.from_numpy(picture).permute(2, 0, 1)[None] / 255
        for name, result in results.items():
            assert torchdelta.relative_error(result.output, dense(model, x)) <= 1e-5, (t, name)


# CUDA graphs


class Launches:
    """Count the kernels that are launched one by one."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        from torchdelta.engines.triton.launch import Launch

        self.count = 0
        launch = Launch.__call__

        def counted(this: Launch) -> None:
            self.count += 1
            launch(this)

        patch.setattr(Launch, "__call__", counted)


@needs_triton
@pytest.mark.parametrize("host", [False, True], ids=["device", "host"])
def test_frames_are_replayed(host: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once warm, joins, leaves, resets and uneven arrival launch no kernel by itself."""
    launches = Launches(monkeypatch)
    session = open_session("downsampling", tolerance=0.04, slots=3)
    _, model = compiled_chain("downsampling")
    frames = [as_frame(x) for x in history(["patch"] * 20, 6)]

    def step(t: int, streams: str) -> dict[str, torchdelta.Result]:
        x = frames[t]
        given = x if host else torch.from_numpy(x).permute(2, 0, 1).cuda()
        return session.step(dict.fromkeys(streams, given))

    for t in range(3):
        step(t, "ab")
    assert launches.count > 0
    before = launches.count
    step(3, "c")
    session.leave("a")
    step(4, "bd")
    session.reset("b")
    step(5, "b")
    session.refresh()
    results = step(6, "bcd")
    assert launches.count == before
    x = torch.from_numpy(frames[6]).permute(2, 0, 1)[None] / 255
    for result in results.values():
        assert result.stats.first
        assert torchdelta.relative_error(result.output, dense(model, x)) <= 1e-5


class NoWaiting:
    """While it is on, whatever waits for the device raises; waits for events are counted."""

    def __init__(self) -> None:
        self.events = 0
        self._patch = pytest.MonkeyPatch()

    def __call__(self, on: bool, ring: Session | None = None) -> None:
        """Switch; ring: a session that may wait for the oldest of its frames under way."""
        torch.cuda.set_sync_debug_mode("error" if on else "default")
        self._patch.undo()
        if not on:
            return
        frames = set() if ring is None else {id(e) for pair in runner(ring)._events for e in pair}
        synchronize = torch.cuda.Event.synchronize

        def waits(*args: object, **kwargs: object) -> None:
            raise AssertionError("synchronises with the device")

        def waits_for_event(event: torch.cuda.Event) -> None:
            self.events += id(event) not in frames and not event.query()
            synchronize(event)

        self._patch.setattr(torch.cuda, "synchronize", waits)
        self._patch.setattr(torch.cuda.Stream, "synchronize", waits)
        self._patch.setattr(torch.cuda.Event, "synchronize", waits_for_event)


@pytest.fixture
def no_waiting() -> Iterator[NoWaiting]:
    """Give a switch that is off in the end."""
    switch = NoWaiting()
    yield switch
    switch(False)


def runner(session: Session) -> Any:
    """Give what runs a session's frames."""
    return session.engine.runners[frame_state(session)]


def keep_busy() -> None:
    """Keep the device busy for some 50 ms."""
    torch.cuda._sleep(100_000_000)


@needs_triton
@pytest.mark.parametrize("kind", ["device uint8", "device float", "numpy"])
@pytest.mark.parametrize("net", ["downsampling", "squeeze-excite", "left-to-pytorch"])
@pytest.mark.parametrize("views", [False, True], ids=["copies", "views"])
def test_a_step_does_not_wait_for_the_device(
    net: str, kind: str, views: bool, no_waiting: NoWaiting
) -> None:
    """Once it is warm, a step returns before the device is done."""
    session = open_session(net, tolerance=0.04, slots=2, views=views)
    _, model = compiled_chain(net)
    clip = history(["patch", "pixel", "noise"] * 8, 7)
    forms: dict[str, Callable[[Tensor], object]] = {
        "device uint8": lambda x: torch.from_numpy(as_frame(x)).permute(2, 0, 1).cuda(),
        "device float": lambda x: x.cuda(),
        "numpy": as_frame,
    }
    frames = [forms[kind](x) for x in clip]
    for t in range(WARM):
        session.step({"a": frames[t], "b": frames[t]} if t % 2 else {"a": frames[t]})
    torch.cuda.synchronize()
    results = []
    no_waiting(True, ring=session)
    for t in range(WARM, len(frames)):
        streams = {"a": frames[t]} if t % 3 else {"a": frames[t], "b": frames[t]}
        results.append(session.step(streams)["a"])
    no_waiting(False)
    assert no_waiting.events == 0
    assert max(r.stats.changed_input for r in results) > 0
    assert session.stats("a").frames == len(frames)
    assert session.audit("a").ok
    shown = session.published("a").cpu()
    assert torchdelta.relative_error(results[-1].output, dense(model, shown)) < 0.5


@needs_triton
def test_counting_does_not_wait_for_the_device(no_waiting: NoWaiting) -> None:
    """When so many frames wait to be counted that some must be, those in flight go on waiting."""
    session = open_session("downsampling", tolerance=0.04, slots=2)
    frames = [torch.from_numpy(as_frame(x)).permute(2, 0, 1).cuda() for x in history(["all"], 8)]
    limit = MOST_UNCOUNTED // 2 * 2
    for t in range(limit - 1):
        session.step(dict.fromkeys("ab", frames[t % 2]))
    torch.cuda.synchronize()
    assert uncounted_turns(session) == limit - 1
    no_waiting(True)
    keep_busy()
    for t in range(3):
        session.step(dict.fromkeys("ab", frames[t % 2]))
    under_way = not runner(session)._events[runner(session)._turn][1].query()
    no_waiting(False)
    assert under_way, "the device was faster than the test"
    assert no_waiting.events == 0
    assert uncounted_turns(session) < limit
    assert session.stats().frames == 2 * (limit + 2)


@needs_triton
@pytest.mark.parametrize("host", [False, True], ids=["device", "host"])
def test_joins_and_refreshes_wait_once_and_later(host: bool, no_waiting: NoWaiting) -> None:
    """Scales are fetched before the next step, of all streams at once; dark frames have none."""
    session = open_session("downsampling", tolerance=0.04, slots=4)
    pictures = [as_frame(x) for x in history(["patch"] * 30, 9)]
    frames = [x if host else torch.from_numpy(x).permute(2, 0, 1).cuda() for x in pictures]
    dark = frames[0] * 0
    for t in range(WARM):
        # staging buffers of all slots are made here
        session.step(dict.fromkeys("abcd", frames[t]))
    for name in "bcd":
        session.leave(name)
    session.stats()

    def waits(streams: dict[str, object]) -> int:
        """Run a step behind a busy device."""
        torch.cuda.synchronize()
        before = no_waiting.events
        no_waiting(True)
        keep_busy()
        session.step(streams)
        no_waiting(False)
        return no_waiting.events - before

    def waits_behind(streams: dict[str, object]) -> int:
        """Run a step that must settle what the last one began, which is still under way."""
        before = no_waiting.events
        no_waiting(True)
        session.step(streams)
        no_waiting(False)
        return no_waiting.events - before

    t = iter(frames[WARM:])
    assert waits(dict.fromkeys("abcd", next(t))) == 0
    assert waits_behind(dict.fromkeys("abcd", next(t))) == 1
    assert waits_behind(dict.fromkeys("abcd", next(t))) == 0
    assert (frame_state(session).thresholds.max(1) > 0).all()
    session.refresh()
    assert waits(dict.fromkeys("abcd", next(t))) == 0
    assert waits_behind({"a": next(t)}) == 1
    session.reset("b")
    assert waits({"a": next(t), "b": dark}) == 0
    for _ in range(2):
        assert waits_behind({"b": dark}) <= 1
    # a frame that tells something: its scales are looked for when that is known
    session.step({"b": next(t)})
    assert session.profile("b").rms
    assert session.audit("b").ok


@needs_triton
def test_a_capture_holds_no_synchronisation(
    no_waiting: NoWaiting, monkeypatch: pytest.MonkeyPatch
) -> None:
    captures = 0
    enter, leave = torch.cuda.graph.__enter__, torch.cuda.graph.__exit__

    def entered(this: torch.cuda.graph) -> None:
        nonlocal captures
        captures += 1
        enter(this)
        no_waiting(True)

    def left(this: torch.cuda.graph, *error: object) -> None:
        no_waiting(False)
        leave(this, *error)

    monkeypatch.setattr(torch.cuda.graph, "__enter__", entered)
    monkeypatch.setattr(torch.cuda.graph, "__exit__", left)
    for net in NETS:
        session = open_session(net, tolerance=0.04, slots=2)
        x = history((), 10)[0]
        for frame in (as_frame(x), x.cuda(), as_frame(x), x.cuda()):
            session.step({"a": frame})
        # with float frames and without
        assert captures >= 2
        assert not session.engine.uncaptured
        captures = 0
    assert no_waiting.events == 0


@needs_triton
def test_a_step_that_cannot_be_captured_splits_the_graph() -> None:
    """It runs between two graphs, for slots with a frame alone, and `explain` says so."""
    torch.manual_seed(0)
    model = nn.Sequential(conv(3, 6, 3), Peek(), conv(6, 4, 1)).eval()
    fast = torchdelta.compile(model, torch.rand(1, *SHAPE), input_range=(0, 1))
    session = new_session(fast, "triton", 0.0, slots=3)
    ((name, _),) = session.engine.foreign_steps().items()
    computed: list[int] = []
    evaluate = session.engine.oracle.evaluate

    def counted(step: int, inputs: Sequence[Tensor]) -> Tensor:
        computed.append(step)
        return evaluate(step, inputs)

    session.engine.oracle.evaluate = counted  # type: ignore[method-assign]
    for t, x in enumerate(history(["patch", "all", "pixel", "patch"], 14)):
        streams = "ab" if t % 2 == 0 else "a"
        computed.clear()
        results = session.step(dict.fromkeys(streams, x.cuda()))
        for result in results.values():
            assert torchdelta.relative_error(result.output, dense(model, x)) <= 1e-5
        if t != 1:
            # the second frame is captured
            assert len(computed) == len(streams)
    assert fast.plan.steps[next(iter(session.engine.uncaptured))].name == name
    # a row of the table goes over several lines
    assert "between CUDA graphs" in " ".join(session.explain().split())
    (parts,) = runner(session)._graphs.values()
    assert len(parts) == 3


@needs_triton
def test_lanes_give_what_a_chain_gives() -> None:
    """Bit for bit, frame by frame, all state: also where lists are short and kernels overlap."""
    torch.manual_seed(0)
    size = (3, 96, 128)
    fast = torchdelta.compile(Fused().eval(), torch.rand(1, *size), input_range=(0, 1))
    sessions = [new_session(fast, "triton", 0.0, slots=2) for _ in range(2)]
    sessions[1].engine.most_lanes = 1
    kinds = ["patch", "pixel", "all", "stripes", "corner", "same"] * 6
    clips = [history(kinds, seed, size) for seed in (1, 2)]
    for frames in zip(*clips, strict=True):
        given = dict(zip("ab", (x.cuda() for x in frames), strict=True))
        for session in sessions:
            session.step(given)
        for mine, other in zip(*map(snapshot, sessions), strict=True):
            assert same_bits(mine, other).all()
    counts = [next(iter(runner(session)._frames.values())).lanes.count for session in sessions]
    assert counts == [4, 1]
    assert all(len(parts) == 1 for s in sessions for parts in runner(s)._graphs.values())


@needs_triton
def test_running_out_of_memory_is_no_reason_to_split_the_graph(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    session = open_session("left-to-pytorch")
    x = history((), 15)[0].cuda()
    session.step({"s": x})

    def evaluate(*args: object) -> Tensor:
        raise torch.OutOfMemoryError("none left")

    with monkeypatch.context() as patch:
        patch.setattr(session.engine.oracle, "evaluate", evaluate)
        with pytest.raises(RuntimeError):
            session.step({"s": x})
    assert not session.engine.uncaptured
    _, model = compiled_chain("left-to-pytorch")
    for _ in range(2):
        out = session.step({"s": x})["s"].output
        assert torchdelta.relative_error(out, dense(model, x.cpu())) <= 1e-5


@needs_triton
def test_frames_take_no_new_pinned_memory() -> None:
    """Once it is warm, also while nothing is counted or read."""
    session = open_session("downsampling", slots=2)
    frames = history(["patch"] * (WARM + 60), 16)
    allocations = 0
    for t, x in enumerate(frames):
        if t == WARM:
            allocations = torch.cuda.host_memory_stats()["num_host_alloc"]
        session.step({"a": as_frame(x), "b": torch.from_numpy(as_frame(x)).permute(2, 0, 1).cuda()})
    assert allocations > 0
    assert torch.cuda.host_memory_stats()["num_host_alloc"] == allocations


@needs_triton
def test_numbers_of_old_frames_are_their_own() -> None:
    """Results that are read many frames later say what their own frame did."""
    session = open_session("downsampling", slots=2)
    frames = [as_frame(x) for x in history(["pixel", "patch", "all", "same"] * 5, 17)]
    results = [session.step(dict.fromkeys("ab", x)) for x in frames]
    other = open_session("downsampling", slots=2)
    for x, result in zip(frames, results, strict=True):
        now = other.step(dict.fromkeys("ab", x))
        for name in "ab":
            assert result[name].report().active_px == now[name].report().active_px
            assert result[name].stats.ms > 0


@needs_triton
def test_outputs_are_views_until_the_next_step() -> None:
    frames = [x.cuda() for x in history(["all"] * 5, 8)]
    copies, views = (open_session("chain", views=v) for v in (False, True))
    pointers = set()
    for x in frames:
        copied = copies.step({"s": x})["s"].output
        view = views.step({"s": x})["s"].output
        assert torch.equal(copied, view)
        pointers.add(view.data_ptr())
        kept = copied
    assert len(pointers) == 1
    before = view.clone()
    copies.step({"s": frames[0]})
    views.step({"s": frames[0]})
    assert torch.equal(kept, before)
    assert not torch.equal(view, before)


# frames that are not finite


@needs_triton
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("warm", [1, 4], ids=["captured", "replayed"])
def test_a_frame_that_is_not_finite_publishes_nothing(value: float, warm: int) -> None:
    """The device finds out: the stream stays as it was, and a later result or the stats say so."""
    session = open_session("downsampling", slots=2)
    _, model = compiled_chain("downsampling")
    frames = history(["patch"] * (warm + 3), 9)
    for x in frames[:warm]:
        session.step({"a": x.cuda(), "b": x.cuda()})
    before = snapshot(session)
    bad = frames[warm].cuda().clone()
    bad[0, 1, SHAPE[1] - 1, SHAPE[2] // 2] = value
    good = frames[warm]
    results = session.step({"a": bad, "b": good.cuda()})
    torch.cuda.synchronize()
    assert torchdelta.relative_error(results["b"].output, dense(model, good)) <= 1e-5
    for x, y in zip(before, frame_state(session).buffers, strict=True):
        assert same_bits(x[0], y[0]).all()
    error = results["a"].error or session.step({"a": good.cuda()})["a"].error
    assert isinstance(error, FrameError)
    assert "stream 'a'" in str(error)
    assert "NaN or infinite" in str(error)
    # once; the stream goes on
    for x in frames[warm + 1 :]:
        result = session.step({"a": x.cuda()})["a"]
        assert result.error is None
        assert torchdelta.relative_error(result.output, dense(model, x)) <= 1e-5
    session.stats("a")


@needs_triton
def test_the_statistics_tell_of_a_frame_that_is_not_finite() -> None:
    session = open_session("chain", slots=2)
    x = history((), 10)[0].cuda()
    for _ in range(3):
        session.step({"a": x, "b": x})
    bad = torch.full_like(x, float("nan"))
    results = session.step({"a": bad})
    told = results["a"].error is not None
    for stats in (session.stats("a"), session.stats()):
        assert stats.late_errors == 1
        assert re.search(r"stream 'a': frame 3: .*NaN or infinite", str(stats.late_error))
    assert session.stats("a").frames == 3
    assert session.stats("b").frames == 3
    assert session.stats().frames == 6
    assert told or isinstance(session.step({"a": x})["a"].error, FrameError)
    assert session.step({"a": x})["a"].stats.changed_input == 0.0


@needs_triton
def test_a_first_frame_on_the_device_is_looked_at_at_once() -> None:
    session = open_session("chain")
    bad = torch.full((1, *SHAPE), float("nan"), device="cuda")
    assert isinstance(session.step({"a": bad})["a"].error, FrameError)
    assert session.streams == []
    x = history((), 10)[0].cuda()
    session.step({"a": x})
    session.refresh("a")
    assert isinstance(session.step({"a": bad})["a"].error, FrameError)
    assert session.step({"a": x})["a"].stats.first


@needs_triton
def test_values_beyond_fp16_are_refused_on_the_device() -> None:
    fast, _ = compiled_chain("chain")
    session = new_session(fast, "triton", 0.0, dtype=torch.float16)
    x = history((), 10)[0].cuda()
    session.step({"a": x})
    before = snapshot(session)
    results = [session.step({"a": x * 1e6})["a"]]
    torch.cuda.synchronize()
    results.append(session.step({"a": x})["a"])
    assert [r.error is None for r in results].count(False) == 1
    for old, new in zip(before, frame_state(session).buffers, strict=True):
        assert torch.equal(old, new)


# streams of CUDA, threads, devices


@needs_triton
def test_the_current_stream_is_used() -> None:
    """A frame that a stream has yet to write is read after that, and the output is there then."""
    session = open_session("downsampling")
    _, model = compiled_chain("downsampling")
    clip = history(["all"] * 6, 11)
    ready = [x.cuda() for x in clip]
    session.step({"s": ready[0]})
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        buffer = torch.zeros_like(ready[0])
        for x, on_device in zip(clip[1:4], ready[1:4], strict=True):
            # some 10 ms
            torch.cuda._sleep(20_000_000)
            buffer.copy_(on_device)
            out = session.step({"s": buffer})["s"].output
            assert torchdelta.relative_error(out, dense(model, x)) <= 1e-5
    # and back on the default stream
    torch.cuda.current_stream().wait_stream(stream)
    for x, on_device in zip(clip[4:], ready[4:], strict=True):
        out = session.step({"s": on_device})["s"].output
        assert torchdelta.relative_error(out, dense(model, x)) <= 1e-5


@needs_triton
@pytest.mark.parametrize("streams", [False, True], ids=["one stream", "own streams"])
def test_sessions_in_several_threads(streams: bool) -> None:
    """They warm up, capture and replay at the same time, and give what they give alone."""
    fast, _ = compiled_chain("downsampling")
    engine = make_engine("triton", fast.plan, fast.device, torch.float32)
    clips = [[x.cuda() for x in history(["patch", "all", "pixel"] * 10, k)] for k in range(4)]
    clips[-1] = [x.cpu() for x in clips[-1]]

    def run(clip: list[Tensor]) -> list[Tensor]:
        session = Session(engine, 1, 0.02, torchdelta.Profile())
        return [session.step({"s": x})["s"].output for x in clip]

    alone = [run(clip) for clip in clips]
    torch.cuda.synchronize()
    together: list[list[Tensor]] = [[] for _ in clips]
    failures: list[BaseException] = []

    def work(k: int) -> None:
        try:
            stream = torch.cuda.Stream() if streams else torch.cuda.current_stream()
            with torch.cuda.stream(stream):
                together[k] = run(clips[k])
            stream.synchronize()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(len(clips))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    for a, b in zip(alone, together, strict=True):
        assert len(a) == len(b)
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@needs_triton
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there is one GPU")
@pytest.mark.parametrize("host", [False, True], ids=["device", "host"])
def test_two_gpus(host: bool) -> None:
    """Sessions on two devices at once; the current device is left as it is."""
    _, model = compiled_chain("downsampling")
    sessions = []
    for n in (0, 1):
        device = torch.device("cuda", n)
        fast = torchdelta.compile(
            copy.deepcopy(model).to(device), torch.rand(1, *SHAPE, device=device), tolerance=0,
            input_range=(0, 1), engine="triton",
        )  # fmt: skip
        sessions.append(fast.session())
    for t, x in enumerate(history(["patch", "all", "pixel"] * 3, 12)):
        # each is captured while the other's device is the current one, or its own
        current = (t + host) % 2
        torch.cuda.set_device(current)
        for n, session in enumerate(sessions):
            out = session.step({"s": x if host else x.to(f"cuda:{n}")})["s"].output
            assert out.device == torch.device("cuda", n)
            assert torchdelta.relative_error(out, dense(model, x)) <= 1e-5, (t, n)
        assert torch.cuda.current_device() == current
    torch.cuda.set_device(0)


# memory


def allocated() -> int:
    torch.cuda.synchronize()
    gc.collect()
    return torch.cuda.memory_allocated()


def held_on_the_host() -> dict[str, int]:
    """Give what grows with anything that is kept for each frame, and by how much it may grow."""
    (resident,) = re.findall(r"^VmRSS:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.M)
    pinned = torch.cuda.host_memory_stats()["allocated_bytes.current"]
    return {"objects": len(gc.get_objects()), "pinned": pinned, "resident": 1024 * int(resident)}


# libraries keep something now and then, frames nothing
MAY_GROW = {"objects": 2_000, "pinned": 1 << 20, "resident": 64 << 20}


@needs_triton
def test_a_session_gives_its_memory_back() -> None:
    frames = [x.cuda() for x in history(["patch"] * 4, 13)]
    # the engine's and the libraries' own memory first
    for _ in range(2):
        session = open_session("downsampling", slots=8)
        for x in frames:
            session.step({"s": x})
        del session
    before = allocated()
    for _ in range(3):
        session = open_session("downsampling", slots=8)
        for x in frames:
            session.step({"s": x})
        assert allocated() > before
        del session
    assert allocated() <= before


@needs_triton
@each_dtype
def test_a_long_run(dtype: torch.dtype) -> None:
    """Joins, leaves, scene cuts, resets: memory does not grow, nothing drifts (P2, P3).

    `make test-gpu-long` and TORCHDELTA_LONG: 20,000 frames, else 600.
    """
    frames, warm = (20_000, 2_000) if LONG else (600, 200)
    shape = (3, 48, 64)
    torch.manual_seed(0)
    model = NETS["downsampling"]().eval()
    fast = torchdelta.compile(model, torch.rand(1, *shape), input_range=(0, 1))
    session = new_session(fast, "triton", 0.05, slots=4, dtype=dtype)
    draw, generator = random.Random(0), torch.Generator().manual_seed(0)
    names = "abcdef"
    last = {n: torch.rand(1, *shape, generator=generator) for n in names}
    kinds = ["pixel", "patch", "noise", "same", "stripes"] * 4 + ["all"]
    base, host = 0, dict.fromkeys(MAY_GROW, 0)
    errors: list[float] = []
    for t in range(frames):
        if t == warm:
            # what waits to be counted holds masks
            session.stats()
            base, host = allocated(), held_on_the_host()
        if session.streams and draw.random() < 0.05:
            call = draw.choice(("leave", "reset", "refresh"))
            getattr(session, call)(draw.choice(session.streams))
        room = session.slots - len(session.streams)
        absent = [n for n in names if n not in session.streams]
        joining = draw.sample(absent, min(room, len(absent))) if draw.random() < 0.2 else []
        here = [n for n in session.streams if draw.random() < 0.7] + joining
        if not here:
            continue
        given: dict[str, object] = {}
        for n in here:
            last[n] = move(last[n], draw.choice(kinds), generator)
            picture = as_frame(last[n])
            given[n] = draw.choice((picture, last[n].cuda(), last[n]))
        results = session.step(given)
        if t % (frames // 200) == 0:
            for n, result in results.items():
                audit = session.audit(n)
                assert audit.ok, (t, n, str(audit))
                shown = session.published(n).float().cpu()
                errors.append(torchdelta.relative_error(result.output, dense(model, shown)))
    del results, given, result
    session.stats()
    # what the results of one frame may hold
    assert allocated() <= base + (1 << 20)
    for what, now in held_on_the_host().items():
        assert now <= host[what] + MAY_GROW[what], what
    assert max(errors) < 0.5
    # frames, and so errors, are drawn alike before and after; the first quarter has fresh streams
    quarter = len(errors) // 4
    early, late = (sum(part) / quarter for part in (errors[quarter:][:quarter], errors[-quarter:]))
    assert late < 1.5 * early
    # P2: a refresh leaves nothing of all that
    final = {n: last[n].cuda() for n in session.streams}
    session.refresh()
    session.step(final)
    for n, x in final.items():
        fresh = new_session(fast, "triton", 0.05, profile=session.profile(n), dtype=dtype)
        fresh.step({n: x})
        for old, new in zip(buffers_of(session, n), buffers_of(fresh, n), strict=True):
            assert same_bits(old, new).all()
