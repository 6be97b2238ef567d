"""The dense network beside ours, on the same frames: its time, and the two errors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from torchdelta.api import CompiledModel
from torchdelta.bench.measure import timed
from torchdelta.motion.aligned import Aligned
from torchdelta.runtime.result import Result
from torchdelta.runtime.session import Session
from torchdelta.tasks import Agreement
from torchdelta.verify import relative_error


@dataclass(frozen=True)
class Comparison:
    """One frame, dense.

    dense_ms:    time of the original network, without preprocessing
    error:       relative L2 of our output against dense on the frame; of a camera that is followed,
                 on the window: the warped frame, around it what was published earlier
    layer_error: against dense on the published input: what the layers' gates cost
    dense:       the dense network's output, that `error` is against
    agreement:   how the answers agree, where the task has answers that mean something
    """

    dense_ms: float
    error: float
    layer_error: float
    dense: Any = None
    agreement: Agreement | None = None


class Comparer:
    """Runs the dense network beside sessions, on each frame and on what was published of it.

    Dense runs right after ours on every frame, so that both see the same state of the machine.

    trained: whether answers mean something. With random weights classes are names of nothing, and
             the best two lie so close that rounding chooses between them
    """

    def __init__(self, compiled: CompiledModel, *, trained: bool) -> None:
        self._compiled, self._tail = compiled, compiled.tail if trained else None
        self._on_published: dict[str, Any] = {}

    def __call__(self, frame: Any, result: Result, session: Session) -> Comparison:
        """Compare one frame [H, W, C] and its result."""
        frame_in = self._compiled.preprocess(frame)
        dense, dense_ms = timed(lambda: self._compiled.dense(frame_in), self._compiled.device)
        stream, stats = result.stream, result.stats
        if result.aligned is not None:
            dense = self._compiled.dense(self._shown(frame, result.aligned, session, stream))
        if stats.changed_input > 0 or stats.moved or stream not in self._on_published:
            self._on_published[stream] = self._compiled.dense(session.stream(stream).published())
        return Comparison(
            dense_ms=dense_ms,
            error=relative_error(result.output, dense),
            layer_error=relative_error(result.output, self._on_published[stream]),
            dense=dense,
            agreement=self._tail.agree(result, dense) if self._tail else None,
        )

    def _shown(self, frame: Any, aligned: Aligned, session: Session, stream: str) -> Tensor:
        """Give what a window shows without gates, as the model sees it: [1, C, H, W]."""
        warped = self._compiled.preprocess(aligned.warp(frame))
        there = torch.from_numpy(aligned.mask()).to(warped.device)
        return torch.where(there, warped, session.stream(stream).published().to(warped.dtype))
