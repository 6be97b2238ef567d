"""What the tests of engines and sessions share."""

from __future__ import annotations

import os
from collections.abc import Iterable
from functools import cache

import numpy as np
import pytest
import torch
from _pytest.mark import ParameterSet
from torch import Tensor, nn

import torchdelta
from cases import OP_CASES
from torchdelta.engines import ENGINES, Engine
from torchdelta.engines.cpu import CpuEngine, bind
from torchdelta.plan import Plan
from torchdelta.runtime.session import Session

# `make test-long`: wider ranges
LONG = bool(os.environ.get("TORCHDELTA_LONG"))


# engines that run here; a test checks that none is missing
ENGINE_NAMES = [name for name, engine in ENGINES.items() if engine.usable()[0]]
# an engine each, with the instruction set where it has several
ENGINE_CASES = [f"cpu-{bind.choose_isa()}" if n == "cpu" else n for n in ENGINE_NAMES]
# the same kernels in other instruction sets, for the tests of single operations
ISA_CASES = [
    f"cpu-{isa}"
    for isa in (bind.isas() if "cpu" in ENGINE_NAMES else ())
    if f"cpu-{isa}" not in ENGINE_CASES
]
HALF_DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}


def make_engine(case: str, plan: Plan, device: torch.device, dtype: torch.dtype) -> Engine:
    """Make the engine of a case."""
    name, _, isa = case.partition("-")
    if isa:
        return CpuEngine(plan, device, dtype, isa=isa)
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
def compiled(case: str) -> tuple[torchdelta.CompiledModel, nn.Module]:
    """Compile an op case once per worker."""
    _, make, shape = OP_CASES[case]
    torch.manual_seed(0)
    model = make().eval()
    generator = torch.Generator().manual_seed(0)
    example = torch.rand(1, *shape, generator=generator)
    return torchdelta.compile(model, example, input_range=(0, 1)), model


def new_session(
    fast: torchdelta.CompiledModel,
    engine: str,
    tolerance: float,
    *,
    slots: int = 1,
    profile: torchdelta.Profile | None = None,
    dtype: torch.dtype = torch.float32,
) -> Session:
    """Open a session on the engine of a case; its state starts out as NaN."""
    ready = make_engine(engine, fast.plan, fast.device, dtype)
    session = Session(ready, slots, tolerance, profile or torchdelta.Profile())
    for buffer in session._state.buffers:
        if buffer.is_floating_point():
            buffer.fill_(float("nan"))
    return session


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
    return [b.clone() for b in session._state.buffers]


def same_bits(a: Tensor, b: Tensor) -> Tensor:
    """Compare element by element, NaN equal to NaN."""
    if not a.is_floating_point():
        return a == b
    return (a == b) | (torch.isnan(a) & torch.isnan(b))


def untouched_outside(
    session: Session, before: list[Tensor], result: torchdelta.Result, slot: int = 0
) -> bool:
    """Whether this frame wrote nothing outside its active sets, and nothing of other slots."""
    plan = session.plan
    written = [torch.zeros(b.shape, dtype=torch.bool) for b in before]
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
        for old, new, mask in zip(before, session._state.buffers, written, strict=True)
    )


def as_frame(x: Tensor) -> np.ndarray:
    """Turn [1, C, H, W] in 0..1 into a camera's uint8 [H, W, C]."""
    return (x[0].permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()
