"""On a GPU: frames of host and device, refused ones, views, threads, two devices, memory."""

import copy
import gc
import random
import re
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import torchdelta
from chain_nets import NETS, SHAPE, compiled_chain
from gpu_runs import CUDA, each_dtype, needs_triton, open_session
from streams import dense, history
from support import (
    LONG,
    as_frame,
    make_engine,
    move,
    new_session,
    same_bits,
    snapshot,
)
from torchdelta import EngineError, FrameError
from torchdelta.engines import ENGINES, choose
from torchdelta.runtime.inspect import buffers_of, frame_state
from torchdelta.runtime.session import Session

pytestmark = pytest.mark.gpu


def test_frames_from_the_cpu_are_taken_and_gates_work() -> None:
    model = torch.nn.Conv2d(3, 4, 3, padding=1).eval().cuda()
    fast = torchdelta.compile(model, torch.rand(1, 3, 32, 32), input_range=(0, 1))
    session = fast.session(slots=2)
    frame = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    first = session.step({"a": frame, "b": torch.rand(3, 32, 32, device="cuda")})
    assert first["a"].output.is_cuda
    again = session.step({"a": frame})["a"]
    assert again.stats.changed_input == 0.0
    assert session.stream("a").audit().ok


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
    _ = session.stream("a").stats


@needs_triton
def test_the_statistics_tell_of_a_frame_that_is_not_finite() -> None:
    session = open_session("chain", slots=2)
    x = history((), 10)[0].cuda()
    for _ in range(3):
        session.step({"a": x, "b": x})
    bad = torch.full_like(x, float("nan"))
    results = session.step({"a": bad})
    told = results["a"].error is not None
    for stats in (session.stream("a").stats, session.stats):
        assert stats.late_errors == 1
        assert re.search(r"stream 'a': frame 3: .*NaN or infinite", str(stats.late_error))
    assert session.stream("a").stats.frames == 3
    assert session.stream("b").stats.frames == 3
    assert session.stats.frames == 6
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
    session.stream("a").refresh()
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
@pytest.mark.long
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
            _ = session.stats
            base, host = allocated(), held_on_the_host()
        if session.streams and draw.random() < 0.05:
            call = draw.choice(("leave", "reset", "refresh"))
            getattr(session.stream(draw.choice(session.streams)), call)()
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
                audit = session.stream(n).audit()
                assert audit.ok, (t, n, str(audit))
                shown = session.stream(n).published().float().cpu()
                errors.append(torchdelta.relative_error(result.output, dense(model, shown)))
    del results, given, result
    _ = session.stats
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
        fresh = new_session(fast, "triton", 0.05, profile=session.stream(n).profile(), dtype=dtype)
        fresh.step({n: x})
        for old, new in zip(buffers_of(session, n), buffers_of(fresh, n), strict=True):
            assert same_bits(old, new).all()
