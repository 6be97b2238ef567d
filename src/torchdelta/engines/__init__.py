"""Engines execute plans. `choose` picks one, once, and says why."""

from __future__ import annotations

import torch

from torchdelta.engines.base import NONE, Engine, FrameCall, Move, Reports, SlotReport
from torchdelta.engines.cpu import CpuEngine
from torchdelta.engines.torch_engine import TorchEngine
from torchdelta.engines.triton import TritonEngine
from torchdelta.errors import EngineError
from torchdelta.native_lib import wrong_isa
from torchdelta.plan import Plan

ENGINES: dict[str, type[Engine]] = {
    "torch": TorchEngine,
    "cpu": CpuEngine,
    "triton": TritonEngine,
}
# what "auto" tries, in order
PREFERENCE = ("triton", "cpu", "torch")
# which engines can multiply float32 in TF32
TF32 = ("triton",)


def available() -> list[tuple[str, bool, str]]:
    """List each engine with whether it can run here, and why (or why not)."""
    return [(name, *engine.usable()) for name, engine in ENGINES.items()]


def choose(
    name: str, device: torch.device, dtype: torch.dtype = torch.float32, *, tf32: bool = False
) -> tuple[type[Engine], str]:
    """Pick the engine for a device and dtype; returns it with the reason.

    tf32: float32 is to be multiplied in TF32
    Raises: EngineError for an unknown engine, or one that cannot run here, or not so; for a wrong
    TORCHDELTA_CPU_ISA whatever the engine, because the native warp serves them all.
    """
    wrong = wrong_isa()
    if wrong:
        raise EngineError(wrong)
    if name == "auto":
        return _best(device, dtype, tf32)
    if name not in ENGINES:
        raise EngineError(f"engine {name!r} is unknown; choose auto or one of {', '.join(ENGINES)}")
    refusal = _refusal(name, device, dtype, tf32)
    if refusal:
        raise EngineError(f"engine {name!r} cannot run here: {refusal}")
    return ENGINES[name], "as asked"


def make(
    kind: type[Engine], plan: Plan, device: torch.device, dtype: torch.dtype, *, tf32: bool = False
) -> Engine:
    """Make an engine that `choose` gave for the same device and dtype."""
    if tf32:
        assert issubclass(kind, TritonEngine), "choose refuses the others"
        return kind(plan, device, dtype, tf32=True)
    return kind(plan, device, dtype)


def _refusal(name: str, device: torch.device, dtype: torch.dtype, tf32: bool) -> str | None:
    if tf32 and name not in TF32:
        return f"it has no tf32, which the {' and the '.join(TF32)} engine has; take fp32"
    usable, reason = ENGINES[name].usable()
    return ENGINES[name].refuses(device, dtype) if usable else reason


def _best(device: torch.device, dtype: torch.dtype, tf32: bool) -> tuple[type[Engine], str]:
    refusals: list[tuple[str, str]] = []
    for name in PREFERENCE:
        refusal = _refusal(name, device, dtype, tf32) or ENGINES[name].reluctance()
        if refusal is None:
            others = "".join(f"; not {other}: {reason}" for other, reason in refusals)
            return ENGINES[name], f"auto: {ENGINES[name].usable()[1]}{others}"
        refusals.append((name, refusal))
    asked = " in tf32" if tf32 else ""
    reasons = "; ".join(f"{name}: {reason}" for name, reason in refusals)
    raise EngineError(f"no engine can run here{asked}: {reasons}")


__all__ = [
    "ENGINES", "NONE", "Engine", "FrameCall", "Move", "Reports", "SlotReport", "available",
    "choose", "make",
]  # fmt: skip
