"""The cpu engine alone: bit for bit what it gives on a whole frame, threads, slots, refusals."""

import ctypes
import mmap
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from _pytest.mark import ParameterSet
from torch import Tensor, nn

import torchdelta
from cases import FUNCTIONS, OP_CASES
from random_nets import compiled_net
from support import (
    ENGINE_CASES,
    ENGINE_NAMES,
    ISA_CASES,
    LONG,
    around_threshold,
    assert_active,
    compiled,
    computes_in,
    copies,
    each,
    gate_profile,
    make_engine,
    move,
    new_session,
    same_bits,
    snapshot,
    threads,
)
from torchdelta import EngineError
from torchdelta.engines import choose
from torchdelta.engines.cpu import CpuEngine, bind, blob
from torchdelta.ops import OPS, Pointwise
from torchdelta.runtime.inspect import frame_state

if "cpu" not in ENGINE_NAMES:
    # test_every_engine_is_tested says whether that may be
    pytest.skip(CpuEngine.usable()[1], allow_module_level=True)

BEST = next(case for case in ENGINE_CASES if case.startswith("cpu-"))
CPU_CASES = [BEST, *ISA_CASES]
# the best and the narrowest: those between have the same float32 kernels as the best
FEW_CASES = [BEST, *ISA_CASES[-1:]]
CPU = torch.device("cpu")
# the instruction set that has it
BF16_CASES = [(case, torch.bfloat16) for case in CPU_CASES if computes_in(case, torch.bfloat16)]
NATIVE_CASES = [case for case, (op, _, _) in OP_CASES.items() if op != "dense"]
NATIVE_OPS = sorted(set(OPS) - {"dense"})
KINDS = ("first", "pixel", "patch", "same", "stripes", "all", "corner", "patch")


def in_turns(cases: list[str]) -> list[ParameterSet]:
    """Give the cases to FEW_CASES, one after the other; in a long run to all of them."""
    return [
        pytest.param(engine, case, marks=pytest.mark.xdist_group(case))
        for i, case in enumerate(cases)
        for engine in (FEW_CASES if LONG else [FEW_CASES[i % len(FEW_CASES)]])
    ]


def history(shape: Sequence[int], seed: int, kinds: Sequence[str] = KINDS) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(1, *shape, generator=generator)
    frames = []
    for kind in kinds:
        x = move(x, kind, generator)
        frames.append(x)
    return frames


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


def assert_same(a: Sequence[Tensor], b: Sequence[Tensor]) -> None:
    assert all(bool(same_bits(x, y).all()) for x, y in zip(a, b, strict=True))


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
    alone["a"].refresh("a")
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


@cache
def one_conv(
    shape: tuple[int, int, int], *, input_range: tuple[int, int] = (0, 1), **expected: object
) -> torchdelta.CompiledModel:
    torch.manual_seed(0)
    model = nn.Conv2d(shape[0], 2, 1).eval()
    return torchdelta.compile(model, torch.rand(1, *shape), input_range=input_range, **expected)


@pytest.mark.parametrize("engine", CPU_CASES)
@pytest.mark.parametrize(
    ("shape", "color"),
    [((3, 63, 130), "rgb"), ((1, 7, 63), "rgb"), ((4, 13, 1), "rgb"), ((3, 1, 7), "bgr"),
     ((3, 9, 64), "bgr"), ((4, 9, 17), "bgr")],
)  # fmt: skip
def test_layouts_of_a_frame_give_the_same_state(
    engine: str, shape: tuple[int, int, int], color: str
) -> None:
    """uint8 [H, W, C], a cut-out of a larger picture, [C, H, W], float in any order."""
    c, h, w = shape
    # a range of 0..255 leaves uint8 and float the same numbers
    fast = one_conv(shape, input_range=(0, 255), color=color)
    picture = np.random.default_rng(1).integers(0, 256, (2, h + 3, w + 5, c), dtype=np.uint8)
    first, second = picture[:, 1 : h + 1, 2 : w + 2]
    packed = torch.from_numpy(second.copy())
    layouts: list[object] = [
        np.ascontiguousarray(second), second, packed.permute(2, 0, 1),
        packed.permute(2, 0, 1).contiguous(), packed.permute(2, 0, 1).float(),
        packed.permute(2, 0, 1).float().contiguous(), packed.numpy().astype(np.float32),
    ]  # fmt: skip
    states = []
    for frame in layouts:
        session = new_session(fast, engine, 0.0)
        session.step({"s": first})
        session.step({"s": frame})
        states.append(snapshot(session))
    expected = second[:, :, [2, 1, 0, 3][:c]] if color == "bgr" else second
    published = states[0][fast.plan.values[fast.plan.input].buffer][0]
    assert torch.equal(published, torch.from_numpy(expected.astype(np.float32)))
    for state in states[1:]:
        assert_same(states[0], state)


@pytest.mark.parametrize("engine", CPU_CASES)
@pytest.mark.parametrize("size", [(1, 1), (7, 63), (13, 64), (9, 130), (63, 1), (2, 65)])
@pytest.mark.parametrize("channels", [1, 3, 5])
@pytest.mark.parametrize("grain", [1, 2, 5, 16])
def test_input_gate_is_the_torch_engines(
    engine: str, size: tuple[int, int], channels: int, grain: int
) -> None:
    """On changes that are far from the threshold both publish the same pixels."""
    h, w = size
    fast = one_conv((channels, h, w), mean=(0.4,) * channels, std=(0.2,) * channels)
    sessions = [new_session(fast, case, 0.04, grain=grain) for case in ("torch", engine)]
    generator = torch.Generator().manual_seed(2)
    x = 0.2 + 0.2 * torch.rand(1, channels, h, w, generator=generator)
    # 62 and 65: the gate's box reaches to the end of a mask's word, its dilation beyond
    columns = sorted({0, w // 2, min(62, w - 1), min(65, w - 1), w - 1})
    pixels = [((0, h - 1, h // 2, h // 3)[n % 4], column) for n, column in enumerate(columns)]
    for y0, x0 in pixels:
        x = x + 1e-4
        x[0, :, y0, x0] += 0.5 * (1 if x[0, 0, y0, x0] < 0.5 else -1)
        results = [session.step({"s": x})["s"] for session in sessions]
        assert torch.equal(results[0].changed, results[1].changed), (y0, x0)
        with threads(3):
            again = sessions[1].step({"s": x})["s"]
        assert not again.changed.any()


# of every size and sign, at the edges of ranges and beyond them; no number below float32's smallest
# normal one, which PyTorch may take for 0
NUMBERS = torch.tensor([
    *(s * x for s in (1, -1) for x in (
        0.0, 1.2e-38, 1e-20, 1e-7, 1e-4, 0.01, 0.1, 0.25, 0.3, 0.49999, 0.5, 0.7, 0.95, 1.0, 1.0001,
        1.4142, 1.5, 2.0, 2.5, 2.718, 3.0, 3.5, 5.0, 6.0, 7.3, 10.0, 20.0, 20.5, 30.0, 87.0, 88.5,
        89.5, 103.0, 105.0, 1000.25, 8388607.5, 1e10, 3e38, float("inf"),
    )), float("nan"),
])  # fmt: skip
# with the arguments of a step that the exporter does not make today
MORE_FUNCTIONS = {"hardshrink": F.hardshrink, "softshrink": F.softshrink}
# functions whose result hangs on more digits of a large number than float32 has: up to which one
NARROW = {"sin": 1e4, "cos": 1e4, "tan": 1e4}


class OfEachNumber(nn.Module):
    """Elementwise functions of the same numbers, side by side; the frame is 0."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("numbers", NUMBERS[None, None])

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.numbers
        # the last ones are replaced in the plan
        functions = [f for f, _, _ in FUNCTIONS.values()] + [torch.abs] * len(MORE_FUNCTIONS)
        return torch.cat([f(x) for f in functions], 1)


@cache
def of_each_number() -> torchdelta.CompiledModel:
    zeros = torch.zeros(1, 1, 1, len(NUMBERS))
    fast = torchdelta.compile(OfEachNumber().eval(), zeros, input_range=(0, 1))
    steps = list(fast.plan.steps)
    for k, name in enumerate(MORE_FUNCTIONS, len(steps) - len(MORE_FUNCTIONS)):
        steps[k] = replace(steps[k], op=Pointwise(name, (0.3,)))
    fast.plan = replace(fast.plan, steps=tuple(steps))
    return fast


@pytest.mark.parametrize("engine", CPU_CASES)
def test_functions_number_by_number(engine: str) -> None:
    fast = of_each_number()
    session = new_session(fast, engine, 0.0)
    found = session.step({"s": torch.zeros(1, 1, 1, len(NUMBERS))})["s"].output[0, :, 0]
    functions = {name: f for name, (f, _, _) in FUNCTIONS.items()}
    functions |= {name: lambda x, f=f: f(x, 0.3) for name, f in MORE_FUNCTIONS.items()}
    wrong = []
    for (name, f), mine in zip(functions.items(), found, strict=True):
        expected = f(NUMBERS.double()).float()
        # ours, and what PyTorch's float32 gives
        near = (mine - expected).abs() <= 4e-6 * expected.abs() + 1e-7
        good = near | same_bits(mine, expected) | same_bits(mine, f(NUMBERS))
        good |= NUMBERS.abs() > NARROW.get(name, float("inf"))
        wrong += [
            (name, x.item(), got.item(), want.item())
            for x, got, want in zip(NUMBERS[~good], mine[~good], expected[~good], strict=True)
        ]
    assert not wrong


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


def test_a_map_too_large_for_a_list_of_pixels_is_left_to_pytorch() -> None:
    class Long(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 2, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x).reshape(x.shape[0], 1, 2, 300 * 220)

    model, x = Long().eval(), torch.rand(1, 1, 300, 220)
    fast = torchdelta.compile(model, x, tolerance=0, input_range=(0, 1), engine="cpu")
    (reason,) = fast.session().engine.foreign_steps().values()
    assert reason == "its map is larger than 65535 px"
    for _ in range(2):
        x[0, 0, 290:, 200:] = torch.rand(10, 20)
        with torch.no_grad():
            assert torchdelta.relative_error(fast(x), model(x)) < 1e-5


def test_unknown_instruction_sets_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    here = ", ".join(bind.isas())
    monkeypatch.setenv(bind.ISA_VARIABLE, "avx9")
    usable, why = CpuEngine.usable()
    assert not usable
    assert why == f"TORCHDELTA_CPU_ISA is 'avx9', this CPU can run {here}"
    conv, x = nn.Conv2d(3, 2, 1).eval(), torch.rand(1, 3, 8, 8)
    with pytest.raises(EngineError, match=rf"avx9.*{here}"):
        torchdelta.compile(conv, x, engine="cpu")
    # the native warp goes by the variable whatever the engine
    for engine in ("auto", "torch"):
        with pytest.raises(EngineError, match=rf"avx9.*{here}"):
            torchdelta.compile(conv, x, engine=engine)
    monkeypatch.delenv(bind.ISA_VARIABLE)
    fast = torchdelta.compile(conv, x)
    assert fast.engine == "cpu"
    with pytest.raises(EngineError, match="unknown instruction set avx9"):
        CpuEngine(fast.plan, CPU, torch.float32, isa="avx9")


@pytest.mark.parametrize("isa", bind.isas())
def test_the_variable_picks_the_instruction_set(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(bind.ISA_VARIABLE, isa)
    fast = torchdelta.compile(nn.Conv2d(3, 2, 1).eval(), torch.rand(1, 3, 8, 8), engine="cpu")
    assert fast.session().engine.isa == isa
    if isa != "avx512_bf16":
        with pytest.raises(EngineError, match=f"bf16 needs a CPU with AVX512-BF16.*{isa}"):
            choose("cpu", CPU, torch.bfloat16)


def test_half_precision_and_other_devices_are_refused() -> None:
    conv, x = nn.Conv2d(3, 2, 1).eval(), torch.rand(1, 3, 8, 8)
    with pytest.raises(EngineError, match="computes in fp32 and bf16, not in"):
        torchdelta.compile(conv, x, engine="cpu", dtype="fp16")
    assert torchdelta.compile(conv, x, dtype="fp16").engine == "torch"
    with pytest.raises(EngineError, match="runs on the CPU, the model is on cuda"):
        choose("cpu", torch.device("cuda"))


@pytest.fixture
def other_library(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Let a test put another library in place of the one that is loaded."""
    bind.library.cache_clear()
    yield monkeypatch
    monkeypatch.undo()
    bind.library.cache_clear()


def test_without_the_library_auto_takes_the_torch_engine(
    other_library: pytest.MonkeyPatch,
) -> None:
    other_library.setattr(bind, "library_path", lambda: None)
    usable, why = CpuEngine.usable()
    assert not usable
    assert "compiler" in why
    conv, x = nn.Conv2d(3, 2, 1).eval(), torch.rand(1, 3, 8, 8)
    fast = torchdelta.compile(conv, x)
    assert fast.engine == "torch"
    assert "was not built" in fast.engine_reason
    # nothing would use it
    other_library.setenv(bind.ISA_VARIABLE, "avx9")
    assert torchdelta.compile(conv, x).engine == "torch"
    with pytest.raises(EngineError, match="was not built"):
        torchdelta.compile(conv, x, engine="cpu")


def test_why_the_library_may_be_missing(other_library: pytest.MonkeyPatch) -> None:
    other_library.setattr(bind, "library_path", lambda: None)
    other_library.delenv("CXX", raising=False)
    other_library.setattr(bind.shutil, "which", lambda name: "/" if name == "clang++" else None)
    assert "clang++ is here now: install torchdelta again" in CpuEngine.usable()[1]
    other_library.setattr(bind.shutil, "which", lambda name: None)
    assert "there is none (c++, g++, clang++)" in CpuEngine.usable()[1]
    other_library.setattr(bind.platform, "machine", lambda: "riscv64")
    assert "not for riscv64" in CpuEngine.usable()[1]


def test_a_library_that_does_not_load_or_fit_is_refused(
    other_library: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / bind.LIBRARY
    path.write_bytes(b"no library")
    with other_library.context() as patch:
        patch.setattr(bind, "library_path", lambda: path)
        assert "does not load" in CpuEngine.usable()[1]
    other_library.setattr(bind, "ABI", -1)
    assert "this version of torchdelta needs -1" in CpuEngine.usable()[1]


def test_a_damaged_program_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from torchdelta.engines.cpu.blob import write_program

    plan = compiled("conv-3x3")[0].plan
    program = write_program(plan, torch.float32, [plan.input])
    isa = bind.isas()[0]
    bind.NativeProgram(program, isa)
    for wrong, message in (
        (program[:-8], "cut off or damaged"),
        (program[:100], "cut off or damaged"),
        (b"\1" + program[1:], "no program of this version"),
        (program + bytes(8), "more bytes than steps"),
    ):
        with pytest.raises(EngineError, match=message):
            bind.NativeProgram(wrong, isa)


class TwoScales(nn.Module):
    """A map as large as the frame, and one of a quarter."""

    def __init__(self) -> None:
        super().__init__()
        self.fine, self.coarse = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 5, 2, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        fine = self.fine(x)
        return fine, self.coarse(fine)


@pytest.mark.parametrize("engine", FEW_CASES)
def test_masks_of_several_outputs_are_the_torch_engines(engine: str) -> None:
    """Masks wider and narrower than a word, read after the next frame, of two slots."""
    fast = torchdelta.compile(TwoScales().eval(), torch.rand(1, 3, 10, 140), input_range=(0, 1))
    mine, theirs = (new_session(fast, name, 0.0, slots=2) for name in (engine, "torch"))
    found: list[list[Tensor]] = [[], []]
    for x in history((3, 10, 140), 5):
        for session, masks in zip((mine, theirs), found, strict=True):
            results = session.step({"a": x, "b": x.flip(3)}).values()
            masks += [m for r in results for m in (r.changed, *r.output_changed)]
    assert all(map(torch.equal, *found))
    assert any(bool(m.any()) and not bool(m.all()) for m in found[0][2::3])


@pytest.mark.parametrize("case", each(["maxpool-3-s2-p1", "conv-3x3-s2"]))
def test_masks_of_very_wide_maps(case: str) -> None:
    """A stride of 2 is taken in pieces of 4096 outputs: changes at the end of the first."""
    fast, model = compiled(case, (2, 8300))
    session = new_session(fast, BEST, 0.0)
    x = torch.rand(1, *fast.plan.shape, generator=torch.Generator().manual_seed(1))
    session.step({"s": x})
    for column in (4095, 8189, 8190, 8191, 8192, 8193, 8299):
        x = x.clone()
        x[..., column] = 1 - x[..., column]
        before = snapshot(session)
        result = session.step({"s": x}, record=True)["s"]
        assert_active(session, before, result, 0)
        with torch.no_grad():
            assert torchdelta.relative_error(result.output, model(x)) < 1e-5


def test_state_is_one_piece_of_memory_on_huge_pages() -> None:
    """The kernel is asked for them (it need not have any); nothing is rounded up to whole ones."""
    fast = torchdelta.compile(
        nn.Conv2d(3, 64, 3, padding=1).eval(), torch.rand(1, 3, 130, 130), input_range=(0, 1)
    )
    session = fast.session(slots=2)
    plan = fast.plan
    assert session.state_bytes == 2 * plan.state_bytes(torch.float32)
    buffers = frame_state(session).buffers
    first = min(b.data_ptr() for b in buffers)
    span = max(b.data_ptr() + b.numel() * b.element_size() for b in buffers) - first
    assert span <= session.state_bytes + 2 * 64 * len(plan.buffers)
    wanted = hasattr(mmap, "MADV_HUGEPAGE") and Path("/sys/kernel/mm/transparent_hugepage").exists()
    if not wanted:
        pytest.skip("this system has no transparent huge pages")
    assert "hg" in mapping_flags(first)


def mapping_flags(address: int) -> list[str]:
    """Flags of the mapping that holds an address, as /proc/self/smaps has them."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        head = line.split()
        if "-" in head[0] and not head[0].endswith(":"):
            begin, end = (int(x, 16) for x in head[0].split("-"))
            inside = begin <= address < end
        elif inside and head[0] == "VmFlags:":
            return head[1:]
    raise AssertionError("no mapping holds the address")


def test_weight_and_scratch_bytes() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 64, 3, padding=1), nn.Conv2d(64, 128, 3, padding=1)).eval()
    fast = torchdelta.compile(model, torch.rand(1, 3, 30, 40), input_range=(0, 1), engine="cpu")
    engine = make_engine(BEST, fast.plan, CPU, torch.float32)
    weights = sum(p.numel() * 4 for p in model.parameters())
    # whole vectors of channels, and a cache line to align to
    assert weights <= engine.weight_bytes <= 1.1 * weights + 4096
    assert engine.scratch_bytes == 0
    session = torchdelta.Session(engine, 1, 0.0, torchdelta.Profile())
    frames = history((3, 30, 40), 5, [*KINDS, "all", "all"])
    sizes = []
    for x in frames:
        session.step({"s": x})
        sizes.append(engine.scratch_bytes)
    # masks and lists of a whole frame are there from the first on, and nearly nothing beside them
    assert session.state_bytes == fast.plan.state_bytes(torch.float32)
    assert 0 < sizes[0] < 0.2 * session.state_bytes
    assert sizes[-1] == sizes[0]
    # the plan's weights and the packed ones are all that there is
    assert not engine._oracle._steps


def test_only_foreign_steps_have_weights_in_pytorch() -> None:
    fast, _ = compiled("topk")
    engine = make_engine(BEST, fast.plan, CPU, torch.float32)
    names = [fast.plan.steps[i].name for i in engine._oracle._steps]
    assert names
    assert names == list(engine.foreign_steps())


MEMORY_LIMITED = """
import ctypes, resource
from pathlib import Path
import numpy as np, torch, torchdelta
from torchdelta.engines.cpu import bind
from torchdelta.motion.warp import warp

torch.set_num_threads(2)
small = torch.rand(1, 1, 40, 50)
torchdelta.compile(torch.nn.Conv2d(1, 1, 1).eval(), small, engine="cpu")(small)
warp(np.zeros((40, 50, 3), np.uint8), np.diag([1, 1.1, 1]), (40, 50))


libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p


def limited(function):
    # no new memory from the system, and no piece of 64 KiB left in the heap
    def call(*args, **options):
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize(), -1))
        taken = []
        while piece := libc.malloc(1 << 16):
            taken.append(ctypes.c_void_p(piece))
        try:
            return function(*args, **options)
        finally:
            for piece in taken:
                libc.free(piece)
            resource.setrlimit(resource.RLIMIT_AS, (-1, -1))

    return call


def out_of_memory(function, error):
    # the first thread may take all the work, and it has its memory
    for _ in range(100):
        try:
            function()
        except error as raised:
            return str(raised)
    raise AssertionError("memory for everything")


wide = torch.nn.Conv2d(1, 1, 1).eval()
x = torch.rand(1, 1, 96, 20000)
fast = torchdelta.compile(wide, x, engine="cpu", tolerance=0, input_range=(0, 1))
session = fast.session()
torch.set_num_threads(1)
session.step({"s": x})
torch.set_num_threads(2)
program = session.engine._program
step = program.step
program.step = limited(step)
x = 1 - x
print(out_of_memory(lambda: session.step({"s": x}), MemoryError))
program.step = step
print(torchdelta.relative_error(session.step({"s": x})["s"].output, wide(x).detach()) < 1e-5)

bind.warp = limited(bind.warp)
picture, size = np.zeros((2, 2, 3), np.uint8), (64, 200000)
print(out_of_memory(lambda: warp(picture, np.diag([1, 1.1, 1]), size), torchdelta.EngineError))
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="no /proc")
def test_memory_that_runs_out_in_a_thread_is_an_error() -> None:
    """It must not end the process; the stream starts anew."""
    env = {**os.environ, "MALLOC_ARENA_MAX": "1"}
    done = subprocess.run(
        [sys.executable, "-c", MEMORY_LIMITED], capture_output=True, text=True, env=env
    )
    assert done.returncode == 0, done.stderr[-2000:]
    step, right, warped = done.stdout.splitlines()
    assert step == "the native engine ran out of memory"
    assert right == "True"
    assert warped.endswith("memory")


@pytest.mark.parametrize("norm", ["rms", "max"])
@pytest.mark.parametrize(
    ("engine", "dtype"),
    [*((engine, torch.float32) for engine in (*ENGINE_CASES, *ISA_CASES)), *BF16_CASES],
)
@pytest.mark.parametrize("channels", [1, 5, 16, 63, 64, 65, 130])
def test_a_group_is_published_from_its_threshold_on(
    engine: str, dtype: torch.dtype, channels: int, norm: str
) -> None:
    """Every group of a value moves by a little less than the threshold, then by more."""
    fast, scale = copies(channels)
    x = torch.rand(1, 1, 5, 9, generator=torch.Generator().manual_seed(1))
    value = fast.plan.steps[0].output
    session = new_session(fast, engine, 0.1, profile=gate_profile(fast, norm), dtype=dtype)
    session.step({"s": x})
    assert frame_state(session).thresholds[0, value] == pytest.approx(0.1)
    before = frame_state(session).view(value, 0).clone()
    for g, y, moves in around_threshold(x, scale, norm, dtype):
        session.reset("s")
        session.step({"s": x})
        session.step({"s": y})
        after = frame_state(session).view(value, 0)
        moved = after != before
        # one group of one pixel
        assert bool(moved[2, 3, 64 * g]) == moves
        moved[2, 3] = False
        assert not moved.any()


SHARED_RUNTIME = """
import ctypes, os, sys
import torch

for other in sys.argv[1:]:
    ctypes.CDLL(other)
import torchdelta
from torchdelta.engines.cpu import bind

frame = torch.rand(1, 3, 40, 50)
torch.set_num_threads(2)
fast = torchdelta.compile(torch.nn.Conv2d(3, 8, 3).eval(), frame, engine="cpu")
torch.rand(1 << 20).exp()
before = len(os.listdir("/proc/self/task"))
fast(frame)
more = len(os.listdir("/proc/self/task")) - before
torch.set_num_threads(4)
fast(1 - frame)
four = len(os.listdir("/proc/self/task")) - before
print(len(bind.openmp_runtimes()), more, four, bind.pytorchs_openmp())
"""


@pytest.mark.parametrize("others", [0, 1] if LONG else [1])
def test_the_library_shares_the_openmp_runtime_of_pytorch(others: int, tmp_path: Path) -> None:
    """No second runtime is loaded; one of another package, whatever it is called, is not used.

    A frame runs on as many threads as PyTorch has been told to use.
    """
    own = bind.pytorchs_openmp()
    assert own in bind.openmp_runtimes()
    other = tmp_path / "0_libs" / "libgomp-of-another.so.1"
    other.parent.mkdir()
    shutil.copy(own, other)
    done = subprocess.run(
        [sys.executable, "-c", SHARED_RUNTIME, *[str(other)] * others],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    # PyTorch's two threads are there before, and no others come until there may be four
    assert done.stdout.split() == [str(1 + others), "0", "2", own]


def test_pytorchs_runtime_is_taken_of_several(other_library: pytest.MonkeyPatch) -> None:
    """Whatever the order of their paths."""
    own = bind.pytorchs_openmp()
    load, opened = ctypes.CDLL, list[str]()

    def spy(name: str, *args: Any, **options: Any) -> ctypes.CDLL:
        opened.append(name)
        return load(name, *args, **options)

    other_library.setattr(bind, "openmp_runtimes", lambda: ["/0/libgomp.so.1", own])
    other_library.setattr(bind.ctypes, "CDLL", spy)
    bind.library()
    assert own in opened
    assert "/0/libgomp.so.1" not in opened
