"""The frozen plan of a network: lowering, passes, layout, explanation."""

from torchdelta.plan.build import build
from torchdelta.plan.explain import explain
from torchdelta.plan.ir import Activation, Buffer, Residual, Step, Value
from torchdelta.plan.plan import Plan
from torchdelta.plan.shift import Shifts

__all__ = [
    "Activation",
    "Buffer",
    "Plan",
    "Residual",
    "Shifts",
    "Step",
    "Value",
    "build",
    "explain",
]
