"""Whether a plan gives what its model gives, and how far apart two results are."""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from torchdelta.apart import apart
from torchdelta.capture.export import Captured, find_batch_mixing
from torchdelta.capture.suited import smaller
from torchdelta.distance import in_float64, squares
from torchdelta.engines.torch_engine import TorchEngine
from torchdelta.errors import CaptureError, first_lines, involved
from torchdelta.plan import Plan, Step
from torchdelta.runtime.profile import Profile
from torchdelta.runtime.session import Session

# the plan may differ from the model by rounding only: folded batch norms, order of sums
MAX_CAPTURE_ERROR = 1e-3
# and of whole numbers (classes …) a few may flip where two candidates were nearly equal
MAX_CAPTURE_FLIPS = 0.02
# two float32 computations of one function may be luckier and unluckier than each other
MAX_UNLUCKY = 4.0


@dataclass(frozen=True)
class ModelResults:
    """What the model itself gives for frames.

    alone:      for the first one
    streams:    how many it takes at a time: 2 stands for any number, else 1
    per_stream: by leaf of a result, whether it has a row per stream; None where that is not known
    mixed:      whether a stream's result hangs on the others' frames, or on its own number
    """

    alone: Any
    streams: int
    per_stream: tuple[bool, ...] | None = None
    mixed: bool = False


@torch.no_grad()
def _run(model: nn.Module, x: Tensor) -> Any:
    # a copy: some models write to their input
    return model(x.clone(memory_format=torch.preserve_format))


def model_results(model: nn.Module, x: Tensor, alone: Any) -> ModelResults:
    """Find out what the model makes of several streams; on small frames where it takes such.

    x: [2, C, H, W], as the model sees frames;  alone: its result for the first of them
    """
    single = ModelResults(alone, 1)
    x, first = _small_pair(model, x, alone)
    try:
        both, second = _run(model, x), _run(model, x[1:])
    except Exception:
        return single
    one, two = (pytree.tree_leaves(out) for out in (first, both))
    if len(one) != len(two) or not all(map(_one_row_each, one, two)):
        # it has written down a batch of 1 somewhere
        return single
    per_stream = tuple(map(_has_rows, one, two))
    rows = [pytree.tree_map(lambda a, b, n=n: _row(a, b, n), first, both) for n in range(2)]
    if difference(rows[0], first) is None and difference(rows[1], second) is None:
        return ModelResults(alone, 2, per_stream)
    if not sees_other_rows(model, x, rows):
        # it does something else with a batch
        return single
    return ModelResults(alone, 2, per_stream, mixed=not _is_rounding(model, x))


def _small_pair(model: nn.Module, x: Tensor, alone: Any) -> tuple[Tensor, Any]:
    small = smaller(x)
    if small is not None:
        with contextlib.suppress(Exception):
            return small, _run(model, small[:1])
    return x, alone


def _is_rounding(model: nn.Module, x: Tensor) -> bool:
    """Whether float64 gives a batch of two what it gives each frame alone: [2, C, H, W]."""
    try:
        exact, x = copy.deepcopy(model).double(), x.double()
        both = _run(exact, x)
        for n in range(2):
            one = _run(exact, x[n : n + 1])
            row = pytree.tree_map(lambda a, b, n=n: _row(a, b, n), one, both)
            if difference(row, one) is not None:
                return False
    except Exception:
        return False
    return True


def sees_other_rows(model: nn.Module, x: Tensor, rows: list[Any]) -> bool:
    """Whether a stream's result hangs on the other rows of the batch, or on its own number there.

    x: [2, C, H, W]; rows: the model's results for them
    """
    low, span = x.min(), x.max() - x.min()
    # other moments than the frame: a mirrored or negated one has the same mean or deviation
    other = low + (x[0] - low).square() / span if span > 0 else x[0] + 1
    try:
        swapped = _run(model, torch.stack([x[1], other]))
    except Exception:
        return False
    again = pytree.tree_map(lambda a, b: b[:1] if _has_rows(a, b) else b, rows[1], swapped)
    return difference(again, rows[1]) is not None


def check_plan(
    model: nn.Module,
    plan: Plan,
    captured: Captured,
    frames: Tensor,
    x: Tensor,
    expected: ModelResults,
    exact_plan: Callable[[], Plan],
) -> None:
    """Compare the plan with the model in float32.

    frames: [2, C, H, W]; x: the same as the model sees them; expected: its `model_results`. The
            first one is compared: a plan computes all streams alike
    exact_plan: makes the same plan with weights in float64, which decides where float32 differs
    Raises: CaptureError where they differ by more than rounding, or the model mixes streams.
    """
    if expected.mixed:
        raise _mixes(captured, x)
    got = _run_plan(plan, frames[0], torch.float32)
    wrong = difference(got, expected.alone)
    if wrong is None:
        return
    again = [_run(model, x[:1]) for _ in range(2)]
    if difference(*again) is not None:
        raise CaptureError(
            f"the plan differs from the model: {wrong}. The model does not give the same "
            "result twice: take what is random, or remembers, out of it"
        )
    judged = _judge(model, plan, exact_plan, frames[0], x[:1], expected.alone)
    if judged is not None:
        raise CaptureError(f"the plan differs from the model: {wrong}. {judged}")


def _mixes(captured: Captured, x: Tensor) -> CaptureError:
    first = find_batch_mixing(captured, x)
    return CaptureError(
        f"the model mixes the batch axis{f', first in {first}' if first else ''}: a row's result "
        "hangs on the other rows, or on its number; the rows of a batch are different streams here "
        "and must not see each other"
    )


def _run_plan(plan: Plan, frame: Tensor, dtype: torch.dtype) -> Any:
    session = Session(TorchEngine(plan, frame.device, dtype), 1, 0.0, Profile())
    try:
        return session.step({"check": frame})["check"].unwrap()
    except Exception as error:
        step = involved(error, Step)
        raise CaptureError(
            f"the plan does not run{f', at {step.name}' if step else ''}: "
            f"{first_lines(error)}. This is a defect of torchdelta; please report it"
        ) from error


def _judge(
    model: nn.Module,
    plan: Plan,
    exact_plan: Callable[[], Plan],
    frame: Tensor,
    x: Tensor,
    in_float32: Any,
) -> str | None:
    """Let float64 decide whether a plan is wrong or float32 is; says what is wrong, or None.

    frame: [C, H, W]; x: the same as the model sees it, [1, C, H, W]; in_float32: what that gives
    The plan is right where in float64 it gives what the model gives there, and in float32 is about
    as far from that as the model is.
    """
    defect = "This is a defect of torchdelta; please report it"
    try:
        exact = _run(copy.deepcopy(model).double(), x.double())
        precise = _run_plan(exact_plan(), frame, torch.float64)
    except Exception as error:
        return f"{defect} (in float64, which could decide, it does not run: {first_lines(error)})"
    wrong = difference(precise, exact)
    if wrong is not None:
        return f"In float64 too: {wrong}. {defect}"
    ours = _run_plan(plan, frame, torch.float32)
    theirs = distances(in_float32, exact)
    for (mine, limit), (other, _) in zip(distances(ours, exact), theirs, strict=True):
        if not mine <= max(limit, MAX_UNLUCKY * other):
            return (
                f"Of float64's result the plan in float32 is {mine:.2g} off, the model in float32 "
                f"{other:.2g}. {defect}"
            )
    return None


def _one_row_each(one: Any, two: Any) -> bool:
    """Whether a result for two streams is that for one with another row, or a constant."""
    if not isinstance(one, Tensor) or not isinstance(two, Tensor):
        return type(one) is type(two)
    return one.shape == two.shape or (1, *one.shape[1:]) == (two.shape[0] - 1, *two.shape[1:])


def _has_rows(one: Any, several: Any) -> bool:
    return isinstance(one, Tensor) and one.shape != several.shape


def _row(one: Any, two: Any, n: int) -> Any:
    """Take stream n's share of a result for two streams; a constant has no share."""
    return two[n : n + 1] if _has_rows(one, two) else two


def distances(mine: Any, expected: Any) -> list[tuple[float, float]]:
    """Give how far each tensor of a result is from what is expected, and how far it may be.

    Relative L2 error, or the share that differs where the numbers are whole; infinite where the
    shape or the kind differs.
    """
    found = []
    for a, b in zip(pytree.tree_leaves(mine), pytree.tree_leaves(expected), strict=True):
        if isinstance(b, Tensor):
            found.append(_distance(a, b))
    return found


def _distance(a: Tensor, b: Tensor) -> tuple[float, float]:
    if a.shape != b.shape or a.is_complex() != b.is_complex():
        return math.inf, 0.0
    if b.is_floating_point() or b.is_complex():
        return relative_error(a, b), MAX_CAPTURE_ERROR
    return float((a != b).float().mean()) if b.numel() else 0.0, MAX_CAPTURE_FLIPS


def difference(mine: Any, expected: Any) -> str | None:
    """Say how a result differs from what is expected by more than rounding, or None."""
    for a, b in zip(pytree.tree_leaves(mine), pytree.tree_leaves(expected), strict=True):
        if not isinstance(b, Tensor):
            continue
        if a.shape != b.shape:
            return f"its result has shape {list(a.shape)}, expected {list(b.shape)}"
        if b.is_complex() != a.is_complex():
            return f"its result is {a.dtype}, expected {b.dtype}"
        error, limit = _distance(a, b)
        if not error <= limit:
            if b.is_floating_point() or b.is_complex():
                return f"relative L2 error {error:.2g}, expected <= {limit}"
            return f"{error:.1%} of its whole numbers differ"
    return None


@apart
def relative_error(a: Any, b: Any) -> float:
    """Give the relative L2 error of a against b over all tensors of two results.

    NaN in the same places counts as equal; b = 0 everywhere gives the absolute norm. A complex
    number counts as two, its real and its imaginary part.
    Raises: ValueError where the results differ in structure or shape, or one alone is complex.
    """
    diff = norm = 0.0
    for x, y in zip(pytree.tree_leaves(a), pytree.tree_leaves(b), strict=True):
        if not isinstance(x, Tensor):
            continue
        if x.shape != y.shape:
            raise ValueError(f"results of shape {list(x.shape)} and {list(y.shape)} differ")
        x, y = in_float64(x.detach().cpu()), in_float64(y.detach().cpu())
        if x.shape != y.shape:
            raise ValueError("one result is complex, the other is not")
        more_diff, more_norm = squares(x, y)
        diff, norm = diff + more_diff, norm + more_norm
    return (diff**0.5) / (norm**0.5 or 1.0)
