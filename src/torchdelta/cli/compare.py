"""The dense network beside ours, on the same frames: its time, and the two errors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torchdelta.api import CompiledModel, relative_error
from torchdelta.bench.measure import timed
from torchdelta.runtime.session import Result, Session


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


class Comparer:
    """Runs the dense network beside a session, on each frame and on what was published of it."""

    def __init__(self, compiled: CompiledModel, session: Session) -> None:
        self._compiled, self._session = compiled, session
        self._on_published: dict[str, Any] = {}

    def __call__(self, frame: Any, result: Result) -> Comparison:
        """Compare one frame [H, W, C] and its result."""
        frame_in = self._compiled.preprocess(frame)
        dense, dense_ms = timed(lambda: self._compiled.dense(frame_in), self._compiled.device)
        stream = result.stream
        if result.stats.changed_input > 0 or stream not in self._on_published:
            published = self._session.published(stream)
            self._on_published[stream] = self._compiled.dense(published)
        return Comparison(
            dense_ms=dense_ms,
            error=relative_error(result.output, dense),
            layer_error=relative_error(result.output, self._on_published[stream]),
        )
