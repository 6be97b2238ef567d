"""Each operation on each engine: footprint, recompute, publish, and nothing else written."""

from typing import Any

import pytest
import torch
from torch import Tensor

from cases import OP_CASES
from conftest import is_required
from support import (
    ENGINE_CASES,
    ENGINE_NAMES,
    GPU_NAMES,
    HALF_CASES,
    ISA_CASES,
    LONG,
    compiled,
    computes_in,
    each,
    move,
    new_session,
    run_infinite_resize,
    run_op_case,
)
from torchdelta import native_lib
from torchdelta.engines import ENGINES
from torchdelta.engines.cpu import bind
from torchdelta.engines.torch_engine import TorchEngine
from torchdelta.ops import OPS, Binary, Dense, Pointwise
from torchdelta.ops.functions import BINARY, POINTWISE

# relative L2 against the stock operation in float32; other orders of summation, nothing else
FP32 = 1e-5
# half precision: one rounding of the result, and of each intermediate of a composed case
HALF = {torch.float16: 5e-3, torch.bfloat16: 2e-2}
# what PyTorch 2.15's exporter makes comparisons of (tests/test_cpu_numbers.py computes them)
REWRITTEN = {"hardshrink", "softshrink"}
SPARSE_CASES = [case for case, (op, _, _) in OP_CASES.items() if op != "dense"]


# on the CPU a third of them, or all of them in the long tests
HALF_RUNS = [
    pytest.param(*half.values, case, id=f"{half.id}-{case}", marks=pytest.mark.xdist_group(case))
    for half in HALF_CASES
    for case in SPARSE_CASES[:: 1 if LONG or half.values[0] in GPU_NAMES else 3]
]


@pytest.mark.parametrize("engine", [*ENGINE_CASES, *ISA_CASES])
@pytest.mark.parametrize("case", each(OP_CASES))
def test_op(engine: str, case: str) -> None:
    """Each frame's result is the stock operation's (`run_op_case`)."""
    op, _, _ = OP_CASES[case]
    fast, _ = compiled(case)
    steps = {step.op.name for step in fast.plan.steps}
    assert op in steps, f"{case} became {steps}"
    assert any(s.dense for s in fast.plan.steps) == (op == "dense")
    run_op_case(engine, case, FP32)


# every operation on single pixels, on rows that end a word of a mask early and late; 3 px for what
# takes them together
SMALL, WORD, WORDS = (1, 1), (7, 63), (2, 130)
SIZED = {
    "conv-3x3-s2": (SMALL, WORD, WORDS), "deconv-3x3-s2-out1": (SMALL, WORD, WORDS),
    "maxpool-3-s2-p1": (SMALL, WORD, WORDS), "maxpool-13-s1": (SMALL, WORD, WORDS),
    "avgpool-ceil": (SMALL, WORD, WORDS), "adaptive-avg": (SMALL, WORD, WORDS),
    "adaptive-max": (SMALL, WORD, WORDS), "global-avg-of-slice": ((1, 3), (17, 63), (2, 130)),
    "global-mean": (SMALL, (17, 63), (2, 130)), "global-avg": ((65, 5), (1, 130)),
    "gelu-tanh-alone": (SMALL, WORD, WORDS), "bn": (SMALL, WORD, WORDS),
    "squeeze-excite": (SMALL, WORD, WORDS), "mul-channel": (SMALL, WORD, WORDS),
    "rsub-const": (SMALL, WORD, WORDS), "softmax": (SMALL, WORD, WORDS),
    "bilinear-x2-noalign": (SMALL, WORD, WORDS), "bilinear-down": (SMALL, WORD, WORDS),
    "nearest-size": (SMALL, WORD, WORDS), "pad-reflect": ((4, 4), WORD, (4, 130)),
    "flip": (SMALL, WORD, WORDS), "channel-shuffle": (SMALL, WORD, WORDS),
    "pixel-shuffle": (SMALL, WORD, WORDS), "pixel-unshuffle": ((3, 3), (6, 63), (3, 195)),
    "flatten-rows": (SMALL, WORD, WORDS), "split-chunk-slice-cat": (SMALL, WORD, WORDS),
}  # fmt: skip
SIZED_KINDS = ("first", "pixel", "corner", "same", "all", "patch")


@pytest.mark.versions
@pytest.mark.skipif("cpu" not in ENGINE_NAMES, reason="the native library was not built")
@pytest.mark.parametrize("case", each(SIZED))
def test_op_in_other_sizes(case: str) -> None:
    """The instruction sets take turns: their masks are the same code."""
    natives = [name for name in (*ENGINE_CASES, *ISA_CASES) if name.startswith("cpu-")]
    for n, size in enumerate(SIZED[case], list(SIZED).index(case)):
        run_op_case(natives[n % len(natives)], case, FP32, size=size, kinds=SIZED_KINDS)


def test_every_operation_is_run_in_other_sizes() -> None:
    assert {OP_CASES[case][0] for case in SIZED} == set(OPS) - {"dense"}


@pytest.mark.parametrize(("engine", "dtype", "case"), HALF_RUNS)
def test_op_half(engine: str, dtype: torch.dtype, case: str) -> None:
    """The half dtypes stay within a rounding of the float32 result."""
    run_op_case(engine, case, HALF[dtype], dtype=dtype, kinds=("first", "patch", "same", "pixel"))


# not every function passes a NaN on, nor has numbers for 0..1; they have one footprint
@pytest.mark.parametrize("case", each(c for c in SPARSE_CASES if not c.startswith("functions")))
def test_footprint_is_what_the_stock_operation_reads(case: str) -> None:
    """A NaN at one input pixel reaches exactly the footprint's outputs."""
    fast, _ = compiled(case)
    generator = torch.Generator().manual_seed(3)
    for step in fast.plan.steps:
        if isinstance(step.op, Dense):
            continue
        out = fast.plan.values[step.output]
        sizes = [fast.plan.values[v] for v in step.inputs[: step.arity]]
        clean = [torch.rand(*v.size, v.channels, generator=generator) for v in sizes]
        for n, value in enumerate(sizes):
            h, w = value.size
            for y, x in {(0, 0), (h - 1, w - 1), (h // 2, w // 3), (h // 3, w - 1)}:
                poisoned = [c.clone() for c in clean]
                poisoned[n][y, x] = float("nan")
                touched = torch.isnan(step.op.full(poisoned, step.weights)).any(-1)
                changed = torch.zeros(h, w, dtype=torch.bool)
                changed[y, x] = True
                active = step.footprints[n].active(changed, out.size)
                assert torch.equal(active.expand(out.size), touched), (step.name, y, x)


@pytest.mark.parametrize("engine", ENGINE_CASES)
def test_bilinear_does_not_read_places_of_weight_0(engine: str) -> None:
    run_infinite_resize(engine)


def test_every_registered_op_has_cases() -> None:
    # `test_op` sees to it that a case has the operation that it names
    assert {op for op, _, _ in OP_CASES.values()} == set(OPS)


def test_every_function_has_cases() -> None:
    """As steps of their own, on numbers of both signs where that makes a difference."""
    cases = [case for case, (op, _, _) in OP_CASES.items() if op in ("pointwise", "binary")]
    steps = [step for case in cases for step in compiled(case)[0].plan.steps]
    alone = [step.op for step in steps if isinstance(step.op, Pointwise)]
    assert {op.fn for op in alone} == {*POINTWISE, "prelu"} - REWRITTEN
    native = {function.name for op in alone if (function := op.kernel)}
    assert native == {*bind.names("functions")} - REWRITTEN
    pairs = {step.op.fn for step in steps if isinstance(step.op, Binary)}
    assert pairs == {*BINARY} == {*bind.names("pairs")}


def test_every_engine_is_tested() -> None:
    present = (*ENGINE_NAMES, *GPU_NAMES)
    missing = {name: ENGINES[name].usable()[1] for name in ENGINES if name not in present}
    assert "torch" in ENGINE_CASES
    # the only reasons why an engine may be left out here
    reasons = ("GPU", "compiler", "Triton is not installed")
    assert all(any(r in why for r in reasons) for why in missing.values()), missing
    assert not [name for name in missing if is_required(name)], missing


@pytest.mark.skipif("cpu" not in ENGINE_NAMES, reason="the native library was not built")
def test_every_instruction_set_is_tested() -> None:
    cases = [*ENGINE_CASES, *ISA_CASES]
    assert {case for case in cases if "-" in case} == {f"cpu-{isa}" for isa in native_lib.isas()}
    # and every dtype that one of them has
    halves = [(case, dtype) for case in cases for dtype in HALF if computes_in(case, dtype)]
    assert [tuple(param.values) for param in HALF_CASES] == halves


def test_work_counts_what_the_stock_convolution_receives(monkeypatch: pytest.MonkeyPatch) -> None:
    """`work_share` is measured by PyTorch's own counter of what conv2d was really given."""
    from torch.utils.flop_counter import FlopCounterMode

    fast, _ = compiled("conv-3x3")
    session = new_session(fast, "torch", tolerance=0.0)
    generator = torch.Generator().manual_seed(4)
    x = torch.rand(1, *OP_CASES["conv-3x3"][2], generator=generator)
    session.step({"s": x})
    counter = FlopCounterMode(display=False)
    step = TorchEngine.step

    def counted(*args: Any, **kwargs: Any) -> Any:
        # inside: modes around a session's step are put aside
        with counter:
            return step(*args, **kwargs)

    monkeypatch.setattr(TorchEngine, "step", counted)
    for kind in ("pixel", "patch", "all", "same"):
        x = move(x, kind, generator)
        stats = session.step({"s": x})["s"].stats
        macs = counter.get_total_flops() / 2
        assert macs == pytest.approx(stats.work_share * fast.plan.macs), kind
        assert stats.work_share >= stats.mac_share
        if kind == "pixel":
            assert 0 < stats.mac_share < stats.work_share < 0.05


@pytest.mark.parametrize("engine", [*ENGINE_CASES, *ISA_CASES])
@pytest.mark.filterwarnings("ignore:frame values run")
def test_padding_is_not_read_as_zero_in_max_pools(engine: str) -> None:
    fast, model = compiled("maxpool-3-s2-p1")
    session = new_session(fast, engine, tolerance=0.0)
    x = -1 - torch.rand(1, *OP_CASES["maxpool-3-s2-p1"][2])
    session.step({"s": x})
    x = x.clone()
    x[:, :, 0, 0] -= 1
    out: Tensor = session.step({"s": x})["s"].output
    assert torch.equal(out.cpu(), model(x))
