"""Engines execute plans. `choose` picks one, once, and says why."""

from __future__ import annotations

import torch

from torchdelta.engines.base import Engine, SlotReport
from torchdelta.engines.torch_engine import TorchEngine
from torchdelta.errors import EngineError

ENGINES: dict[str, type[Engine]] = {"torch": TorchEngine}


def available() -> list[tuple[str, bool, str]]:
    """List each engine with whether it can run here, and why (or why not)."""
    return [(name, *engine.usable()) for name, engine in ENGINES.items()]


def choose(name: str, device: torch.device) -> tuple[type[Engine], str]:
    """Pick the engine for a device; returns it with the reason.

    Raises: EngineError for an unknown engine, or one that cannot run here.
    """
    if name == "auto":
        return TorchEngine, f"auto: the torch engine runs on any device, here {device.type}"
    if name not in ENGINES:
        raise EngineError(f"engine {name!r} is unknown; choose auto or one of {', '.join(ENGINES)}")
    usable, reason = ENGINES[name].usable()
    if not usable:
        raise EngineError(f"engine {name!r} cannot run here: {reason}")
    return ENGINES[name], "as asked"


__all__ = ["ENGINES", "Engine", "SlotReport", "available", "choose"]
