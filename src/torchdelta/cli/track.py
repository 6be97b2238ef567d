"""What a run keeps of one stream: figures, JSON lines, the video."""

from __future__ import annotations

import statistics
from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich import box
from rich.table import Table

from torchdelta.cli.compare import Comparison
from torchdelta.motion.aligned import Aligned
from torchdelta.motion.codec import NO_VECTORS
from torchdelta.runtime.stats import FrameStats
from torchdelta.video.sink import VideoWriter

Picture = NDArray[np.uint8]


def _floats() -> array[float]:
    return array("d")


@dataclass
class Track:
    """Figures of one stream; a camera may run for days, so a frame costs a few doubles.

    frames:  frames taken from the source, the refused ones included
    refused: frames that the session did not take
    damage:  why the source broke off
    moves:   frames with which the window of a followed camera moved
    reasons: why frames after the first were computed whole, and how many
    estimated: frames whose camera's motion was estimated;  by_corners: those of them for which
             "codec" followed corners instead of vectors;  no_vectors: for want of any
    """

    name: str
    writer: VideoWriter | None = None
    frames: int = 0
    refused: int = 0
    damage: str | None = None
    moves: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    estimated: int = 0
    by_corners: int = 0
    no_vectors: int = 0
    first_ms: float | None = None
    ms: array[float] = field(default_factory=_floats)
    dense_ms: array[float] = field(default_factory=_floats)
    changed_input: array[float] = field(default_factory=_floats)
    mac_share: array[float] = field(default_factory=_floats)
    error: array[float] = field(default_factory=_floats)
    layer_error: array[float] = field(default_factory=_floats)

    def add(
        self, stats: FrameStats, comparison: Comparison | None, aligned: Aligned | None = None
    ) -> None:
        """Count one frame; the stream's first one is kept apart, later new references are not."""
        self.moves += stats.moved
        if aligned is not None:
            motion = aligned.motion
            self.estimated += motion.estimator is not None
            self.by_corners += motion.fallback is not None
            self.no_vectors += motion.fallback == NO_VECTORS
        if self.first_ms is None:
            self.first_ms = stats.ms
            return
        if stats.first:
            self.reasons[stats.reason or ""] += 1
        self.ms.append(stats.ms)
        self.changed_input.append(stats.changed_input)
        self.mac_share.append(stats.mac_share)
        if comparison is not None:
            self.dense_ms.append(comparison.dense_ms)
            self.error.append(comparison.error)
            self.layer_error.append(comparison.layer_error)

    def record(
        self,
        stats: FrameStats | None,
        comparison: Comparison | None,
        result: Any,
        aligned: Aligned | None = None,
    ) -> dict[str, Any]:
        """The frame's JSON object; what was not measured is None."""
        return {
            "stream": self.name,
            "frame": self.frames,
            "ms": stats.ms if stats else None,
            "dense_ms": comparison.dense_ms if comparison else None,
            "changed_input": stats.changed_input if stats else None,
            "mac_share": stats.mac_share if stats else None,
            "error": comparison.error if comparison else None,
            "layer_error": comparison.layer_error if comparison else None,
            "reason": stats.reason if stats else None,
            "motion": _motion(aligned) if aligned else None,
            "result": result,
        }


def _motion(aligned: Aligned) -> dict[str, Any]:
    return {
        "origin": aligned.origin,
        "to_window": aligned.to_window,
        "homography": aligned.motion.homography,
        "confidence": aligned.motion.confidence,
        "doubt": aligned.motion.reason,
        "estimator": aligned.motion.estimator,
        "fallback": aligned.motion.fallback,
        "detail": aligned.detail,
    }


def movements(track: Track) -> str | None:
    """Say how often a stream's window moved, what was computed whole, what came without vectors.

    None where there is nothing to say.
    """
    parts = [f"the window moved with {track.moves} frames"] if track.moves else []
    if track.reasons:
        why = "; ".join(f"{count} x {reason}" for reason, count in track.reasons.most_common())
        parts.append(f"computed whole after the first frame: {why}")
    if track.by_corners:
        parts.append(
            f"corners followed instead of motion vectors in {track.by_corners} of "
            f"{track.estimated} frames ({track.no_vectors} of them had no vectors)"
        )
    return f"{track.name}: {'; '.join(parts)}" if parts else None


def summary(tracks: Sequence[Track], compared: bool) -> Table:
    """The closing table, one row per stream: medians and means over the frames after the first.

    The speed-up is the dense network's total time over ours.
    """
    # ten columns of figures must fit into 80 characters uncut; only names may wrap
    table = Table(box=box.SIMPLE, pad_edge=False, collapse_padding=True)
    columns = ["frames", "first\nms", "median\nms", "changed\ninput", "MAC\nshare"]
    if compared:
        columns += ["dense\nms", "speed-\nup", "error", "layer\nerror"]
    table.add_column("stream", overflow="fold", min_width=8)
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    for track in tracks:
        cells = [
            _count(track),
            _number(track.first_ms, ".1f"),
            _number(_median(track.ms), ".1f"),
            _number(_mean(track.changed_input), ".1%"),
            _number(_mean(track.mac_share), ".1%"),
        ]
        if compared:
            total_ms = sum(track.ms)
            speedup = sum(track.dense_ms) / total_ms if total_ms else None
            cells += [
                _number(_median(track.dense_ms), ".1f"),
                _number(speedup, ".2f", "x"),
                _number(_mean(track.error), ".4f"),
                _number(_mean(track.layer_error), ".4f"),
            ]
        table.add_row(track.name, *cells)
    return table


def _count(track: Track) -> str:
    return f"{track.frames}\n({track.refused} refused)" if track.refused else str(track.frames)


def _median(values: array[float]) -> float | None:
    return statistics.median(values) if values else None


def _mean(values: array[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _number(value: float | None, form: str, unit: str = "") -> str:
    return "-" if value is None else f"{value:{form}}{unit}"
