"""What the tests of engines and sessions share."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from _pytest.mark import ParameterSet
from torch import Tensor, nn

import torchdelta
from cases import OP_CASES, Fn, Shape
from torchdelta import native_lib
from torchdelta.engines import ENGINES, Engine
from torchdelta.engines.cpu import CpuEngine
from torchdelta.plan import Plan
from torchdelta.runtime.inspect import frame_state
from torchdelta.runtime.session import Session

# `make test-long`: wider ranges
LONG = bool(os.environ.get("TORCHDELTA_LONG"))


CPU = torch.device("cpu")
# engines that run models on the CPU here; a test checks that none is missing
ENGINE_NAMES = [
    name
    for name, engine in ENGINES.items()
    if engine.usable()[0] and engine.refuses(CPU, torch.float32) is None
]
# those that run on a GPU: tests hand them plans and frames of the CPU all the same
GPU_NAMES = [n for n in ENGINES if n not in ENGINE_NAMES and ENGINES[n].usable()[0]]
# an engine each, with the instruction set where it has several
ENGINE_CASES = [
    f"cpu-{native_lib.choose_isa()}" if n == "cpu" else n for n in (*ENGINE_NAMES, *GPU_NAMES)
]
# those that count what gates publish
ENGINES_THAT_COUNT = [case for case in ENGINE_CASES if case != "triton"]
# the same kernels in other instruction sets, for the tests of single operations
ISA_CASES = [
    f"cpu-{isa}"
    for isa in (native_lib.isas() if "cpu" in ENGINE_NAMES else ())
    if f"cpu-{isa}" not in ENGINE_CASES
]
HALF_DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}


def load_file(path: Path) -> ModuleType:
    """Import a Python file that lies outside the package, such as a tool."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # its dataclasses look their own module up
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def enter_with_module(
    monkeypatch: pytest.MonkeyPatch, folder: Path, name: str, source: str
) -> None:
    """Make a folder the current one, with a module in it that imports find."""
    # one of this folder would be found instead, by tests that run after those that import it
    assert not Path(__file__).with_name(f"{name}.py").exists()
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    (folder / f"{name}.py").write_text(source)


@contextmanager
def threads(n: int) -> Iterator[None]:
    """Let PyTorch and the native engine use n threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def make_engine(case: str, plan: Plan, device: torch.device, dtype: torch.dtype) -> Engine:
    """Make the engine of a case."""
    name, _, isa = case.partition("-")
    if isa:
        return CpuEngine(plan, device, dtype, isa=isa)
    if name in GPU_NAMES and device.type == "cpu":
        device = torch.device("cuda", torch.cuda.current_device())
    return ENGINES[name](plan, device, dtype)


def computes_in(case: str, dtype: torch.dtype) -> bool:
    """Say whether an engine has a dtype; what it refuses is no case."""
    name, _, isa = case.partition("-")
    return name != "cpu" or dtype == torch.float32 or (
        dtype == torch.bfloat16 and isa == "avx512_bf16"
    )  # fmt: skip


# (engine, dtype), with ids
HALF_CASES = [
    pytest.param(case, dtype, id=f"{case}-{name}")
    for case in (*ENGINE_CASES, *ISA_CASES)
    for name, dtype in HALF_DTYPES.items()
    if computes_in(case, dtype)
]


def each(cases: Iterable[str]) -> list[ParameterSet]:
    """Make parameters of op cases; one worker runs all tests of a case, which it compiles once."""
    return [pytest.param(case, marks=pytest.mark.xdist_group(case)) for case in cases]


@cache
def compiled(
    case: str, size: tuple[int, int] | None = None
) -> tuple[torchdelta.CompiledModel, nn.Module]:
    """Compile an op case once per worker; size: other height and width than its own."""
    _, make, shape = OP_CASES[case]
    torch.manual_seed(0)
    model = make().eval()
    generator = torch.Generator().manual_seed(0)
    example = torch.rand(1, shape[0], *(size or shape[1:]), generator=generator)
    return torchdelta.compile(model, example, input_range=(0, 1)), model


@cache
def copies(
    channels: int, size: tuple[int, int] = (5, 9)
) -> tuple[torchdelta.CompiledModel, Tensor]:
    """Compile a network whose first value holds multiples of the frame."""
    first, tail = nn.Conv2d(1, channels, 1, bias=False), nn.Conv2d(channels, 1, 1)
    # rms and max differ; the largest stands at the end of each group
    scale = torch.ones(channels)
    scale[63::64] = scale[-1] = 2.0
    with torch.no_grad():
        first.weight.copy_(scale[:, None, None, None])
    model = nn.Sequential(first, tail).eval()
    return torchdelta.compile(model, torch.rand(1, 1, *size), input_range=(0, 1)), scale


def around_threshold(
    x: Tensor, scale: Tensor, norm: str, dtype: torch.dtype
) -> Iterator[tuple[int, Tensor, bool]]:
    """Move one pixel of a frame of `copies` so that a group moves by less than 0.1, then by more.

    Gives (group, frame, whether the group is to be published where the threshold is 0.1).
    """
    # rounding of what is stored moves the difference
    off = 0.02 if dtype == torch.float32 else 0.1
    for g, part in enumerate(scale.split(64)):
        size = part.max() if norm == "max" else part.square().mean().sqrt()
        for factor, moves in ((1 - off, False), (1 + off, True)):
            y = x.clone()
            y[0, 0, 2, 3] += factor * 0.1 / size
            yield g, y, moves


def gate_profile(fast: torchdelta.CompiledModel, norm: str) -> torchdelta.Profile:
    """Give a profile with which the first value's threshold is the tolerance, the input's 0."""
    name = fast.plan.values[fast.plan.steps[0].output].name
    return torchdelta.Profile({"input": 0.0}, rms={name: 1.0}, norm=norm)


def new_session(
    fast: torchdelta.CompiledModel,
    engine: str,
    tolerance: float,
    *,
    slots: int = 1,
    profile: torchdelta.Profile | None = None,
    dtype: torch.dtype = torch.float32,
    grain: int = 1,
) -> Session:
    """Open a session on the engine of a case; its state starts out as NaN."""
    ready = make_engine(engine, fast.plan, fast.device, dtype)
    session = Session(ready, slots, tolerance, profile or torchdelta.Profile(), grain=grain)
    for buffer in frame_state(session).buffers:
        if buffer.is_floating_point():
            buffer.fill_(float("nan"))
    return session


def run_infinite_resize(engine: str) -> None:
    """Resize what is infinite at one place: it does not reach where its weight is 0, nor stay."""
    model = Fn(
        lambda x: F.interpolate(x.log(), (9, 13), mode="bilinear", align_corners=True)
    ).eval()
    fast = torchdelta.compile(model, torch.rand(1, 3, 5, 7) + 0.1, input_range=(0, 1))
    session = new_session(fast, engine, 0.0)
    x = torch.ones(1, 3, 5, 7)
    x[..., 2, 3] = 0
    endless = session.step({"s": x})["s"].output.isinf().cpu()
    # every second output is an input, those between blend two
    expected = torch.zeros(9, 13, dtype=torch.bool)
    expected[3:6, 5:8] = True
    assert torch.equal(endless, expected.expand_as(endless))
    assert bool((session.step({"s": torch.ones_like(x)})["s"].output == 0).all())


def move(x: Tensor, kind: str, generator: torch.Generator) -> Tensor:
    """Change a frame [1, C, H, W] with values 0..1."""
    c, h, w = x.shape[1:]
    x = x.clone()

    def rand(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator)

    def randint(n: int) -> int:
        return int(torch.randint(0, n, (), generator=generator))

    if kind == "pixel":
        x[0, :, randint(h), randint(w)] = rand(c)
    elif kind == "corner":
        x[0, :, h - 1, w - 1] = rand(c)
    elif kind == "origin":
        x[0, :, 0, 0] = rand(c)
    elif kind == "patch":
        y0, x0 = randint(max(1, h // 2)), randint(max(1, w // 2))
        part = x[:, :, y0 : y0 + h // 3 + 1, x0 : x0 + w // 3 + 1]
        part.copy_(rand(*part.shape))
    elif kind == "stripes":
        # rows that change by +d and -d: their sum does not change
        d = 0.2 * rand(1).item()
        x[:, :, 0::2] += d
        x[:, :, 1::2] -= d
        x.clamp_(0, 1)
    elif kind == "all":
        # another brightness too, so that maxima move
        x = rand(*x.shape) * (0.1 + 0.9 * rand(1))
    elif kind == "black":
        x.zero_()
    elif kind == "noise":
        x = (x + 0.004 * torch.randn(x.shape, generator=generator)).clamp(0, 1)
    elif kind == "nan":
        x[0, 0, randint(h), randint(w)] = float("nan")
    else:
        assert kind in ("first", "same"), kind
    return x


def snapshot(session: Session) -> list[Tensor]:
    """Copy a session's buffers."""
    return [b.clone() for b in frame_state(session).buffers]


def same_bits(a: Tensor, b: Tensor) -> Tensor:
    """Compare element by element, NaN equal to NaN."""
    if not a.is_floating_point():
        return a == b
    return (a == b) | (torch.isnan(a) & torch.isnan(b))


def untouched_outside(
    session: Session, before: list[Tensor], result: torchdelta.Result, slot: int = 0
) -> bool:
    """Whether this frame wrote nothing outside its active sets, and nothing of other slots."""
    return wrote_only(session, before, {slot: result})


def wrote_only(
    session: Session, before: list[Tensor], results: Mapping[int, torchdelta.Result]
) -> bool:
    """Whether a frame wrote nothing outside the active sets of these slots."""
    plan = session.plan
    written = [torch.zeros(b.shape, dtype=torch.bool, device=b.device) for b in before]
    for slot, result in results.items():
        assert result.active is not None
        masks = {plan.input: result.changed}
        for step in plan.steps:
            masks[step.output] = result.active[step.name]
        for index, mask in masks.items():
            v = plan.values[index]
            span = slice(v.offset, v.offset + v.channels)
            written[v.buffer][slot, :, :, span] |= mask[:, :, None]
    return all(
        bool((same_bits(old, new) | mask).all())
        for old, new, mask in zip(before, frame_state(session).buffers, written, strict=True)
    )


def expected_active(
    session: Session, before: list[Tensor], result: torchdelta.Result, slot: int
) -> dict[str, Tensor]:
    """Give the active sets that a frame's changes of the state make, by step name.

    What a step publishes differs from what was stored, so the states before and after say where;
    the input gate also publishes neighbours.
    """
    plan = session.plan
    changed = {}
    for v in plan.owners:
        old, new = (
            buffers[v.buffer][slot, :, :, v.offset : v.offset + v.channels]
            for buffers in (before, frame_state(session).buffers)
        )
        changed[v.index] = ~same_bits(old, new).all(-1)
    changed[plan.input] = result.changed
    active = {}
    for step in plan.steps:
        size = plan.values[step.output].size
        found = torch.zeros(size, dtype=torch.bool, device=session.engine.device)
        for value, footprint in zip(step.inputs, step.footprints, strict=True):
            for owner in plan.values[value].owners:
                found |= footprint.active(changed[owner], size)
        active[step.name] = found
    return active


def assert_active(
    session: Session, before: list[Tensor], result: torchdelta.Result, slot: int
) -> None:
    """Active sets are what the changes make of them, no more and no less, and counted rightly."""
    assert result.active is not None
    whole = {name: torch.ones_like(mask) for name, mask in result.active.items()}
    expected = whole if result.stats.first else expected_active(session, before, result, slot)
    for name, mask in result.active.items():
        assert torch.equal(mask, expected[name]), name
    counts = [int(mask.sum()) for mask in result.active.values()]
    assert result.report().active_px == counts


# the kinds of frame that an op case sees
OP_KINDS = ("first", "pixel", "patch", "same", "all", "pixel", "corner", "origin")


def run_op_case(
    engine: str,
    case: str,
    limit: float,
    *,
    dtype: torch.dtype = torch.float32,
    kinds: Sequence[str] = OP_KINDS,
    size: tuple[int, int] | None = None,
    alone: bool = False,
) -> None:
    """Run an op case on an engine: single pixels, patches, all and nothing change.

    Each frame gives what the stock operation gives, activates what the footprints say, writes
    nothing else, and leaves a state that an audit confirms. Buffers are full of NaN before. Two
    streams: the other one joins at the second frame and is idle in every second step.
    limit: relative L2 against the stock operation in float32
    alone: leave the second stream out
    """
    fast, model = compiled(case, size)
    session = new_session(fast, engine, tolerance=0.0, slots=1 if alone else 2, dtype=dtype)
    generator = torch.Generator().manual_seed(1)
    shape: Shape = fast.plan.shape
    last = {name: torch.rand(1, *shape, generator=generator).to(dtype).float() for name in "st"}
    references: dict[str, Tensor] = {}
    moved = 0.0
    for t, kind in enumerate(kinds):
        streams = {"s": kind, **({"t": "patch"} if t % 2 and not alone else {})}
        for name, change in streams.items():
            last[name] = move(last[name], change, generator).to(dtype).float()
        before = snapshot(session)
        results = session.step({name: last[name] for name in streams}, record=True)
        assert wrote_only(session, before, dict(enumerate(results.values()))), kind
        for slot, (name, result) in enumerate(results.items()):
            with torch.no_grad():
                expected = model(last[name])
            error = torchdelta.relative_error(result.output, expected)
            assert error <= limit, (kind, name, error)
            assert result.output.shape == expected.shape
            assert result.output.dtype in (dtype, torch.int64)
            assert session.stream(name).audit().ok, (kind, name, str(session.stream(name).audit()))
            assert_active(session, before, result, slot)
            active = sum(result.report().active_px)
            if streams[name] == "same":
                assert active == 0
            elif name in references and not torch.equal(references[name], expected):
                assert active > 0, kind
            if name in references:
                moved = max(moved, torchdelta.relative_error(references[name], expected))
            references[name] = expected
    assert moved > 1e-2 or "all" not in kinds


def as_frame(x: Tensor) -> np.ndarray:
    """Turn [1, C, H, W] in 0..1 into a camera's uint8 [H, W, C]."""
    return (x[0].permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()
