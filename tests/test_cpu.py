"""The cpu engine gives the same bits: as on a whole frame, in each slot, on any threads."""

import sys
import threading
from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from _pytest.mark import ParameterSet
from torch import Tensor, nn

import torchdelta
from cases import OP_CASES
from cpu_cases import (
    BEST,
    BF16_CASES,
    CPU,
    CPU_CASES,
    FEW_CASES,
    KINDS,
    NATIVE_CASES,
    assert_same,
    history,
)
from random_nets import compiled_net
from support import ENGINE_NAMES, LONG, compiled, each, make_engine, new_session, snapshot, threads
from torchdelta.engines.cpu import CpuEngine, bind, blob
from torchdelta.ops import OPS

if "cpu" not in ENGINE_NAMES:
    # test_every_engine_is_tested says whether that may be
    pytest.skip(CpuEngine.usable()[1], allow_module_level=True)
NATIVE_OPS = sorted(set(OPS) - {"dense"})


def in_turns(cases: list[str]) -> list[ParameterSet]:
    """Give the cases to FEW_CASES, one after the other; in a long run to all of them."""
    return [
        pytest.param(engine, case, marks=pytest.mark.xdist_group(case))
        for i, case in enumerate(cases)
        for engine in (FEW_CASES if LONG else [FEW_CASES[i % len(FEW_CASES)]])
    ]


def state_after(
    fast: torchdelta.CompiledModel,
    engine: str,
    frames: Sequence[Tensor],
    n: int = 1,
    dtype: torch.dtype = torch.float32,
    tolerance: float = 0.0,
) -> list[Tensor]:
    """Run frames on n threads in a state that begins as NaN; gives the buffers."""
    session = new_session(fast, engine, tolerance, dtype=dtype)
    with threads(n):
        for x in frames:
            session.step({"s": x})
    return snapshot(session)


@pytest.mark.parametrize("case", each(NATIVE_CASES))
def test_p1_bit_for_bit(case: str) -> None:
    """After any history the state is that of a whole run on the last frame, on 1 and 2 threads.

    Instruction sets and bf16 take turns with the long history, the others have a short one.
    """
    fast, _ = compiled(case)
    runs = [*((engine, torch.float32) for engine in CPU_CASES), *BF16_CASES]
    turn = NATIVE_CASES.index(case) % len(runs)
    for n, (engine, dtype) in enumerate(runs):
        assert not make_engine(engine, fast.plan, CPU, dtype).foreign_steps()
        long = LONG or n == turn
        frames = history(OP_CASES[case][2], 11, KINDS if long else ("first", "patch", "pixel"))
        whole = state_after(fast, engine, frames[-1:], dtype=dtype)
        assert_same(state_after(fast, engine, frames, dtype=dtype), whole)
        if long:
            assert_same(state_after(fast, engine, frames, 2, dtype), whole)
            assert_same(state_after(fast, engine, frames[-1:], 2, dtype), whole)


@pytest.mark.parametrize(("engine", "op"), in_turns(NATIVE_OPS))
def test_p1_bit_for_bit_in_networks(engine: str, op: str) -> None:
    """The same through random networks; 5 threads have less than a row each in the small maps."""
    for seed, counts in enumerate(((1, 2), (5,))):
        fast, _ = compiled_net(op, seed)
        dtype = torch.bfloat16 if seed and (engine, torch.bfloat16) in BF16_CASES else torch.float32
        frames = history(fast.plan.shape, 12 + seed)
        foreign = make_engine(engine, fast.plan, CPU, dtype).foreign_steps()
        whole = state_after(fast, engine, frames[-1:], dtype=dtype)
        for n in counts:
            if foreign:
                # PyTorch's own sums may hang on the number of threads
                whole = state_after(fast, engine, frames[-1:], n, dtype)
            assert_same(state_after(fast, engine, frames, n, dtype), whole)


@pytest.mark.parametrize("case", each(NATIVE_CASES))
def test_p4_slots_bit_for_bit(case: str) -> None:
    """Three slots in one step give what three sessions give; one without a frame stays as it is.

    After a refresh a state is that of a fresh session (P2). Every second case runs in bf16.
    """
    fast, _ = compiled(case)
    dtype = torch.float32
    if NATIVE_CASES.index(case) % 2 and BF16_CASES:
        dtype = torch.bfloat16
    engine = BF16_CASES[0][0] if dtype == torch.bfloat16 else BEST
    histories = {s: history(OP_CASES[case][2], 20 + n) for n, s in enumerate("abc")}
    shared = new_session(fast, engine, 0.04, slots=3, dtype=dtype)
    alone = {s: new_session(fast, engine, 0.04, dtype=dtype) for s in "abc"}
    with threads(2):
        for t in range(len(KINDS)):
            absent = "abc"[t % 3] if t else ""
            frames = {s: histories[s][t] for s in "abc" if s != absent}
            shared.step(frames)
            for s, x in frames.items():
                alone[s].step({s: x})
    for slot, s in enumerate("abc"):
        assert_same([b[slot] for b in snapshot(shared)], [b[0] for b in snapshot(alone[s])])
    last = histories["a"][-1]
    alone["a"].stream("a").refresh()
    alone["a"].step({"a": last})
    fresh = state_after(fast, engine, [last], dtype=dtype, tolerance=0.04)
    assert_same(snapshot(alone["a"]), fresh)


class Tiled(nn.Module):
    """Convolutions that may be computed in tiles: of views, with residuals, ends of vectors."""

    def __init__(self, channels: int, out: int, padding: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 2 * channels, 1)
        self.conv = nn.Conv2d(channels, out, 3, padding=padding)
        self.again = nn.Conv2d(out, out, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.conv(self.first(x).chunk(2, 1)[1]))
        return F.relu6(self.again(y) + y)


# channels in and out, padding, height and width
TILED = {
    "one pixel": (16, 16, 1, (1, 1)), "no padding": (20, 18, 0, (7, 12)),
    "padding 2": (16, 40, 2, (5, 7)), "two groups": (24, 70, 1, (17, 63)),
    "two chunks": (300, 64, 1, (19, 20)), "wide": (16, 64, 1, (9, 130)),
}  # fmt: skip


@pytest.mark.parametrize("engine", FEW_CASES)
@pytest.mark.parametrize("name", TILED)
def test_tiles(monkeypatch: pytest.MonkeyPatch, engine: str, name: str) -> None:
    """Sums of tiles are those of windows but for rounding, on the same active sets.

    They do not depend on threads and other slots, and are used with a tolerance only.
    """
    monkeypatch.setattr(blob, "WEIGHTS_PER_PX", 10**6)
    channels, out, padding, size = TILED[name]
    torch.manual_seed(3)
    fast = torchdelta.compile(
        Tiled(channels, out, padding).eval(), torch.rand(1, 3, *size), input_range=(0, 1)
    )
    # nothing that moves is kept back, and the input gate does not hang on rounding
    tiny, profile = 1e-9, torchdelta.Profile({"input": 0.0})
    frames = history((3, *size), 4)
    sessions = {
        "windows": new_session(fast, engine, 0.0),
        "tiles": new_session(fast, engine, tiny, profile=profile),
        "threads": new_session(fast, engine, tiny, profile=profile, slots=2),
    }
    differs = False
    for t, x in enumerate(frames):
        results = {}
        for kind, session in sessions.items():
            with threads(2 if kind == "threads" else 1):
                given = {"s": x} if kind != "threads" else {"r": frames[-1 - t], "s": x}
                results[kind] = session.step(given, record=True)["s"]
        expected, got = (snapshot(sessions[kind]) for kind in ("windows", "tiles"))
        for want, value in zip(expected, got, strict=True):
            assert torchdelta.relative_error(value, want) < 3e-6
            differs |= not torch.equal(value, want)
        assert_same([b[1] for b in snapshot(sessions["threads"])], [b[0] for b in got])
        first_conv = fast.plan.steps[1].name
        masks = [r.active[first_conv] for r in results.values() if r.active is not None]
        assert len(masks) == len(sessions)
        assert all(torch.equal(mask, masks[0]) for mask in masks)
        counts = {r.report().active_px[1] for r in results.values()}
        assert counts == {int(masks[0].sum())}
    assert differs
    weights = [session.engine.weight_bytes for session in sessions.values()]
    assert weights[0] < weights[1] == weights[2]
    assert "2 convolutions run in tiles" in fast.session().explain()


@pytest.mark.parametrize("op", ["conv2d", "dense"])
def test_sessions_in_several_threads_bit_for_bit(op: str) -> None:
    """Frames of several sessions overlap in one native program, each on two threads.

    Those of the dense network call PyTorch from within.
    """
    fast, _ = compiled_net(op, 0)
    engine = make_engine(BEST, fast.plan, fast.device, torch.float32)
    assert bool(engine.foreign_steps()) == (op == "dense")
    kinds = [*KINDS, *["patch", "pixel", "all"] * 8]

    def run(seed: int) -> list[Tensor]:
        session = torchdelta.Session(engine, 1, 0.02, torchdelta.Profile())
        frames = history(fast.plan.shape, seed, kinds)
        return [session.step({"s": x})["s"].output["out"] for x in frames]

    with threads(2):
        alone = [run(seed) for seed in range(4)]
        together: list[list[Tensor]] = [[] for _ in alone]

        def work(seed: int) -> None:
            # the number of threads is each Python thread's own
            torch.set_num_threads(2)
            together[seed] = run(seed)

        workers = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    for a, b in zip(alone, together, strict=True):
        assert len(b) == len(kinds)
        assert_same(a, b)


def test_an_error_within_reaches_its_own_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two sessions that call PyTorch from native code at the same time one fails."""
    fast, model = compiled_net("dense", 0)
    engine = make_engine(BEST, fast.plan, fast.device, torch.float32)
    assert isinstance(engine, CpuEngine)
    run_step, both = engine._oracle.run_step, threading.Barrier(2, timeout=60)
    frame = history(fast.plan.shape, 1, ("first",))[0]
    errors: dict[str, Exception] = {}
    outputs: dict[str, Tensor] = {}

    def together(*args: Any, **options: Any) -> Any:
        both.wait()
        if threading.current_thread().name == "fails":
            raise Fails("from within")
        return run_step(*args, **options)

    def work() -> None:
        name = threading.current_thread().name
        session = torchdelta.Session(engine, 1, 0.0, torchdelta.Profile())
        try:
            outputs[name] = session.step({"s": frame})["s"].output["out"]
        except Fails as error:
            errors[name] = error

    monkeypatch.setattr(engine._oracle, "run_step", together)
    workers = [threading.Thread(target=work, name=name) for name in ("fails", "works")]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert list(errors) == ["fails"]
    with torch.no_grad():
        assert torchdelta.relative_error(outputs["works"], model(frame)["out"]) < 1e-5


def test_other_python_threads_run_during_a_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    """The native call gives the interpreter's lock away."""
    shape = (16, 200, 200)
    torch.manual_seed(0)
    conv = nn.Conv2d(16, 64, 5, padding=2).eval()
    fast = torchdelta.compile(conv, torch.rand(1, *shape), input_range=(0, 1), engine="cpu")
    session = fast.session()
    step, ticks, most, done = bind.NativeProgram.step, [0], [0], threading.Event()

    def counted(self: bind.NativeProgram, *args: Any, **options: Any) -> int:
        before = ticks[0]
        failed = step(self, *args, **options)
        most[0] = max(most[0], ticks[0] - before)
        return failed

    def tick() -> None:
        while not done.wait(5e-4):
            ticks[0] += 1

    monkeypatch.setattr(bind.NativeProgram, "step", counted)
    ticker = threading.Thread(target=tick)
    ticker.start()
    before = sys.getswitchinterval()
    # the interpreter itself does not change threads: the lock is given away or it is not
    sys.setswitchinterval(1000)
    try:
        # whatever else the machine does: some frame is long enough
        for x in history(shape, 1, ("first", *["all"] * 30)):
            session.step({"s": x})
            if most[0] >= 5:
                break
    finally:
        sys.setswitchinterval(before)
        done.set()
        ticker.join()
    assert most[0] >= 5


class Fails(Exception):
    pass


def test_foreign_steps_run_and_their_errors_arrive(monkeypatch: pytest.MonkeyPatch) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.first(x).cumsum(3) / 8)

    torch.manual_seed(0)
    model = Net().eval()
    fast = torchdelta.compile(model, torch.rand(1, 3, 17, 19), tolerance=0, input_range=(0, 1),
                              engine="cpu")  # fmt: skip
    session = fast.session(slots=2)
    (name,) = session.engine.foreign_steps()
    assert "cumsum" in name
    frames = history((3, 17, 19), 3)
    oracle = session.engine._oracle

    def fail(*args: object, **kwargs: object) -> None:
        raise Fails("from within")

    for t, x in enumerate(frames):
        if t == 4:
            with monkeypatch.context() as patch:
                patch.setattr(oracle, "run_step", fail)
                with pytest.raises(Fails, match="from within"):
                    session.step({"a": x, "b": x})
        results = session.step({"a": x, "b": 1 - x})
        for stream, frame in (("a", x), ("b", 1 - x)):
            result = results[stream]
            # a stream whose frame failed starts anew
            assert result.stats.first == (t in (0, 4))
            with torch.no_grad():
                assert torchdelta.relative_error(result.output, model(frame)) < 1e-5
    assert session.step({"a": frames[-1]}, record=True)["a"].active[name].sum() == 0
