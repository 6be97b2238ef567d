"""Check a stream's state against its definition (design: invariant P3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from torchdelta.ops.gate import group_norm
from torchdelta.plan.ir import GROUP_CHANNELS, Value
from torchdelta.state import State

if TYPE_CHECKING:
    from torchdelta.engines import Engine

# rounding of a stored value against a recomputed one, relative to the value's largest magnitude
ROUNDING = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}


@dataclass(frozen=True)
class ValueAudit:
    """One gated value: is every pixel's channel group within its threshold?

    worst:     largest norm(stored - recomputed) over pixels and groups, in the value's unit
    threshold: the largest in force since everything was last computed anew; allowance: what
               rounding may add
    """

    name: str
    worst: float
    threshold: float
    allowance: float

    @property
    def ok(self) -> bool:
        """Whether the bound holds; NaN never does."""
        return self.worst <= self.threshold + self.allowance


@dataclass(frozen=True)
class Audit:
    """What `Session.audit` found: one entry per step's value, in order."""

    values: tuple[ValueAudit, ...]

    @property
    def ok(self) -> bool:
        """Whether every value is within its bound."""
        return all(v.ok for v in self.values)

    def __str__(self) -> str:
        bad = [v for v in self.values if not v.ok]
        if not bad:
            return f"{len(self.values)} values within their thresholds"
        return "; ".join(
            f"{v.name}: off by {v.worst:.3g}, threshold {v.threshold:.3g}" for v in bad[:5]
        )


def audit_slot(
    engine: Engine, state: State, slot: int, thresholds: np.ndarray, *, edges: bool = True
) -> Audit:
    """Recompute every value from the published values of its inputs, and compare.

    thresholds: by value
    edges: False: leave out each step's edges, where border="keep" has lost what was beyond
    """
    found = []
    for i, step in enumerate(engine.plan.steps):
        value = engine.plan.values[step.output]
        fresh = engine.evaluate(i, [state.window(v, slot) for v in step.inputs])
        stored = state.window(step.output, slot)
        if not edges and not engine.plan.shifts.absolute[step.output]:
            rows, cols = (torch.from_numpy(line) for line in engine.plan.shifts.edges(i))
            lost = (rows[:, None] | cols).to(stored.device)
            fresh = torch.where(lost[:, :, None], stored, fresh)
        found.append(_compare(value, stored, fresh, float(thresholds[value.index]), state.norm))
    return Audit(tuple(found))


def _compare(
    value: Value, stored: Tensor, fresh: Tensor, threshold: float, norm: str
) -> ValueAudit:
    if stored.is_complex():
        stored, fresh = (torch.view_as_real(x).flatten(-2) for x in (stored, fresh))
    if not stored.is_floating_point():
        worst = float((stored != fresh).any())
        return ValueAudit(value.name, worst, 0.0, 0.0)
    a, b = stored.float().flatten(0, 1), fresh.float().flatten(0, 1)
    same = (a == b) | (torch.isnan(a) & torch.isnan(b))
    diff = torch.where(same, 0.0, a - b)
    worst = float(group_norm(diff, norm, GROUP_CHANNELS).max())
    largest = float(torch.nan_to_num(b, 0.0, 0.0, 0.0).abs().max())
    return ValueAudit(value.name, worst, threshold, ROUNDING.get(stored.dtype, 0.0) * largest)
