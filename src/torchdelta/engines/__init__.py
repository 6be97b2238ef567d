"""Engines execute plans. `choose` picks one, once, and says why."""

from __future__ import annotations

import torch

from torchdelta.engines.base import Deferred, Engine, SlotReport
from torchdelta.engines.cpu import CpuEngine
from torchdelta.engines.torch_engine import TorchEngine
from torchdelta.engines.triton import TritonEngine
from torchdelta.errors import EngineError

ENGINES: dict[str, type[Engine]] = {
    "torch": TorchEngine,
    "cpu": CpuEngine,
    "triton": TritonEngine,
}
# what "auto" tries, in order
PREFERENCE = ("triton", "cpu", "torch")


def available() -> list[tuple[str, bool, str]]:
    """List each engine with whether it can run here, and why (or why not)."""
    return [(name, *engine.usable()) for name, engine in ENGINES.items()]


def choose(
    name: str, device: torch.device, dtype: torch.dtype = torch.float32
) -> tuple[type[Engine], str]:
    """Pick the engine for a device and dtype; returns it with the reason.

    Raises: EngineError for an unknown engine, or one that cannot run here, or not so.
    """
    if name == "auto":
        return _best(device, dtype)
    if name not in ENGINES:
        raise EngineError(f"engine {name!r} is unknown; choose auto or one of {', '.join(ENGINES)}")
    refusal = _refusal(name, device, dtype)
    if refusal:
        raise EngineError(f"engine {name!r} cannot run here: {refusal}")
    return ENGINES[name], "as asked"


def _refusal(name: str, device: torch.device, dtype: torch.dtype) -> str | None:
    usable, reason = ENGINES[name].usable()
    return ENGINES[name].refuses(device, dtype) if usable else reason


def _best(device: torch.device, dtype: torch.dtype) -> tuple[type[Engine], str]:
    refusals: list[tuple[str, str]] = []
    for name in PREFERENCE:
        refusal = _refusal(name, device, dtype) or ENGINES[name].reluctance()
        if refusal is None:
            others = "".join(f"; not {other}: {reason}" for other, reason in refusals)
            return ENGINES[name], f"auto: {ENGINES[name].usable()[1]}{others}"
        refusals.append((name, refusal))
    raise EngineError("no engine can run here: " + "; ".join(r for _, r in refusals))


__all__ = ["ENGINES", "Deferred", "Engine", "SlotReport", "available", "choose"]
