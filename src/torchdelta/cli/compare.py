"""The dense network beside ours, on the same frames: its time, and the two errors."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from torchdelta.api import CompiledModel, relative_error


@dataclass(frozen=True)
class Comparison:
    """One frame, dense.

    dense_ms:    time of the original network, without preprocessing
    error:       relative L2 of our output against dense on the frame
    layer_error: against dense on the published input: what the layers' gates cost
    """

    dense_ms: float
    error: float
    layer_error: float


def compare(compiled: CompiledModel, frame: Any, output: Any, published: Tensor) -> Comparison:
    """Run the dense network on the frame and on the published input [1, C, H, W]."""
    frame_in = compiled.preprocess(frame)
    dense, dense_ms = timed(lambda: compiled.dense(frame_in), compiled.device)
    on_published = compiled.dense(published)
    return Comparison(
        dense_ms=dense_ms,
        error=relative_error(output, dense),
        layer_error=relative_error(output, on_published),
    )


def timed(call: Callable[[], Any], device: torch.device) -> tuple[Any, float]:
    """What a call returns, and its ms until the device has finished it."""
    _wait(device)
    start = time.perf_counter()
    result = call()
    _wait(device)
    return result, (time.perf_counter() - start) * 1e3


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
