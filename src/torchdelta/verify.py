"""Whether a plan gives what its model gives, and how far apart two results are."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from torchdelta.apart import apart
from torchdelta.capture.export import Captured, find_batch_mixing, in_float64
from torchdelta.engines.torch_engine import TorchEngine
from torchdelta.errors import CaptureError
from torchdelta.plan import Plan
from torchdelta.runtime.profile import Profile
from torchdelta.runtime.session import Session

# the plan may differ from the model by rounding only: folded batch norms, order of sums
MAX_CAPTURE_ERROR = 1e-3
# and of whole numbers (classes …) a few may flip where two candidates were nearly equal
MAX_CAPTURE_FLIPS = 0.02


@torch.no_grad()
def model_results(model: nn.Module, x: Tensor, alone: Any) -> list[Any]:
    """Run the model itself; returns its results one by one, for as many streams as it takes.

    x: [2, C, H, W], as the model sees frames;  alone: its result for the first of them
    """
    try:
        # a copy: some models write to their input
        both = model(x.clone())
    except Exception:
        return [alone]
    one, two = (pytree.tree_leaves(out) for out in (alone, both))
    if len(one) != len(two) or not all(map(_one_row_each, one, two)):
        # it has written down a batch of 1 somewhere
        return [alone]
    return [pytree.tree_map(lambda a, b, n=n: _row(a, b, n), alone, both) for n in range(len(x))]


def check_plan(
    plan: Plan, captured: Captured, rows: Tensor, x: Tensor, expected: list[Any]
) -> None:
    """Compare the plan with the model, stream by stream, in float32.

    rows: [2, C, H, W] frames; x: the same as the model sees them; expected: its `model_results`
    Raises: CaptureError where they differ by more than rounding, or the model mixes streams.
    """
    engine = TorchEngine(plan, x.device, torch.float32)
    session = Session(engine, 1, 0.0, Profile())
    for row, wanted in zip(rows, expected, strict=False):
        session.refresh()
        mine = session.step({"check": row})["check"].output
        wrong = _difference(mine, wanted)
        if wrong is None:
            continue
        mixing = find_batch_mixing(captured, x)
        if mixing:
            raise CaptureError(
                f"the model mixes the batch axis, first in {mixing}; the rows of a batch "
                "are different streams here and must not see each other"
            )
        raise CaptureError(
            f"the plan differs from the model: {wrong}. The model does not give the same "
            "result twice, or this is a defect of torchdelta; please report it"
        )


def _one_row_each(one: Any, two: Any) -> bool:
    """Whether a result for two streams is that for one with another row, or a constant."""
    if not isinstance(one, Tensor) or not isinstance(two, Tensor):
        return type(one) is type(two)
    return one.shape == two.shape or (1, *one.shape[1:]) == (two.shape[0] - 1, *two.shape[1:])


def _row(one: Any, two: Any, n: int) -> Any:
    """Take stream n's share of a result for two streams; a constant has no share."""
    return two[n : n + 1] if isinstance(one, Tensor) and one.shape != two.shape else two


def _difference(mine: Any, expected: Any) -> str | None:
    """Say how a plan's result differs from the model's by more than rounding, or None."""
    for a, b in zip(pytree.tree_leaves(mine), pytree.tree_leaves(expected), strict=True):
        if not isinstance(b, Tensor):
            continue
        if a.shape != b.shape:
            return f"its result has shape {list(a.shape)}, expected {list(b.shape)}"
        if b.is_complex() != a.is_complex():
            return f"its result is {a.dtype}, expected {b.dtype}"
        if b.is_floating_point() or b.is_complex():
            error = relative_error(a, b)
            if not error <= MAX_CAPTURE_ERROR:
                return f"relative L2 error {error:.2g}, expected <= {MAX_CAPTURE_ERROR}"
        elif b.numel() and float((a != b).float().mean()) > MAX_CAPTURE_FLIPS:
            share = float((a != b).float().mean())
            return f"{share:.1%} of its whole numbers differ"
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
        both_nan = torch.isnan(x) & torch.isnan(y) | (x == y)
        diff += float(torch.where(both_nan, 0.0, x - y).square().sum())
        norm += float(torch.where(torch.isfinite(y), y, 0.0).square().sum())
    return (diff**0.5) / (norm**0.5 or 1.0)
