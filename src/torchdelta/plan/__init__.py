"""The frozen plan of a network: lowering, passes, layout, explanation."""

from torchdelta.plan.build import build
from torchdelta.plan.explain import explain
from torchdelta.plan.ir import Activation, Buffer, Plan, Residual, Step, Value

__all__ = ["Activation", "Buffer", "Plan", "Residual", "Step", "Value", "build", "explain"]
