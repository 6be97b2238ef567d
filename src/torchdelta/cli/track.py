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
from torchdelta.quality.compare import ClassTally
from torchdelta.report.trust import doubts, speedup_of
from torchdelta.runtime.stats import FrameStats
from torchdelta.tasks import Agreement
from torchdelta.video.sink import VideoWriter

Picture = NDArray[np.uint8]


def _floats() -> array[float]:
    return array("d")


@dataclass
class Track:
    """Figures of one stream; a camera may run for days, so a frame costs a few doubles.

    size:    (h, w) that the network ran at, at first
    frames:  frames taken from the source, the refused ones included
    refused: frames that the session did not take
    damage:  why the source broke off
    skipped: damaged pictures and packets that were left out
    missed:  promises that the source did not keep
    moves:   frames with which the window of a followed camera moved
    reasons: why frames after the first were computed whole, and how many
    estimated: frames whose camera's motion was estimated;  by_corners: those of them for which
             "codec" followed corners instead of vectors;  no_vectors: for want of any
    """

    name: str
    writer: VideoWriter | None = None
    size: tuple[int, int] | None = None
    frames: int = 0
    refused: int = 0
    damage: str | None = None
    skipped: int = 0
    missed: int = 0
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
    classes: ClassTally = field(default_factory=ClassTally)
    same_pixels: array[float] = field(default_factory=_floats)
    psnr_db: array[float] = field(default_factory=_floats)

    def failed(self, *, strict: bool) -> bool:
        """Whether something was wrong with the stream; strict: a promise missed counts as well."""
        return bool(self.damage or self.refused or self.skipped or (strict and self.missed))

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
            self._add_agreement(comparison.agreement)

    def _add_agreement(self, agreement: Agreement | None) -> None:
        if agreement is None:
            return
        if agreement.classes is not None:
            self.classes.add(agreement.classes)
        if agreement.pixels is not None:
            self.same_pixels.append(agreement.pixels)
        if agreement.psnr_db is not None:
            self.psnr_db.append(agreement.psnr_db)

    def figures(self) -> dict[str, Any]:
        """Sum the stream up as a JSON object: medians and means are over frames after the first."""
        classes = self.classes
        return {
            "stream": self.name,
            "size": self.size,
            "frames": self.frames,
            "refused": self.refused,
            "damage": self.damage,
            "first_ms": self.first_ms,
            "median_ms": _median(self.ms),
            "total_ms": (self.first_ms or 0.0) + sum(self.ms),
            "changed_input": _mean(self.changed_input),
            "mac_share": _mean(self.mac_share),
            "dense_median_ms": _median(self.dense_ms),
            "speedup": self.speedup,
            "speedup_doubts": speedup_doubts(self),
            "error": _mean(self.error),
            "layer_error": _mean(self.layer_error),
            "same_class": classes.same_share,
            "near_ties": classes.near_ties if classes.frames else None,
            "class_distance": classes.mean_distance,
            "same_pixels": _mean(self.same_pixels),
            "psnr_db": _mean(self.psnr_db),
        }

    @property
    def speedup(self) -> float | None:
        """Median of the dense network's times over the median of ours."""
        return speedup_of(self.ms, self.dense_ms)

    def record(
        self,
        stats: FrameStats | None,
        comparison: Comparison | None,
        result: Any,
        aligned: Aligned | None = None,
        dense_result: Any = None,
        pts_s: float | None = None,
    ) -> dict[str, Any]:
        """The frame's JSON object; what was not measured is None."""
        agreement = comparison.agreement if comparison else None
        return {
            "stream": self.name,
            "frame": self.frames,
            "pts_s": pts_s,
            "ms": stats.ms if stats else None,
            "dense_ms": comparison.dense_ms if comparison else None,
            "changed_input": stats.changed_input if stats else None,
            "mac_share": stats.mac_share if stats else None,
            "error": comparison.error if comparison else None,
            "layer_error": comparison.layer_error if comparison else None,
            "reason": stats.reason if stats else None,
            "motion": _motion(aligned) if aligned else None,
            "result": result,
            "dense_result": dense_result,
            "agreement": agreement.record() if agreement else None,
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
    parts = [f"the window moved with {_frames(track.moves)}"] if track.moves else []
    if track.reasons:
        why = "; ".join(f"{count} x {reason}" for reason, count in track.reasons.most_common())
        parts.append(f"computed whole after the first frame: {why}")
    if track.by_corners:
        missing, unfit = track.no_vectors, track.by_corners - track.no_vectors
        why = " and ".join(
            [f"{missing} came without vectors"] * (missing > 0)
            + [f"the vectors of {unfit} did not fit the picture"] * (unfit > 0)
        )
        parts.append(
            "the camera's motion came from the file's motion vectors with "
            f"{track.estimated - track.by_corners} of {_frames(track.estimated)}, from corners in "
            f"the picture with the other {track.by_corners} ({why})"
        )
    if track.skipped:
        places = "place" if track.skipped == 1 else "places"
        parts.append(f"left out what is damaged in {track.skipped} {places}")
    return f"{track.name}: {'; '.join(parts)}" if parts else None


def _frames(count: int) -> str:
    return f"{count} frame{'s' if count != 1 else ''}"


def agreements(track: Track) -> str | None:
    """Say how a stream's answers agree with the dense network's; None where nothing was counted."""
    if track.classes.frames:
        return f"{track.name}: {track.classes}"
    if track.same_pixels:
        return (
            f"{track.name}: same class as dense on {_mean(track.same_pixels):.1%} of the pixels "
            f"(worst frame {min(track.same_pixels):.1%})"
        )
    if track.psnr_db:
        return (
            f"{track.name}: {_mean(track.psnr_db):.1f} dB PSNR against dense (worst frame "
            f"{min(track.psnr_db):.1f})"
        )
    return None


def speedup_doubts(track: Track) -> str | None:
    """Say why a stream's speed-up is not to be trusted; None where nothing speaks against it.

    Where frames differ much in the work that they take, say what it is over all of them.
    """
    if track.speedup is None:
        return None
    # both are medians: of frames that take very different amounts of work, means are others
    median_share = statistics.median(track.mac_share)
    found = doubts(track.dense_ms, track.speedup, median_share)
    if found:
        return (
            f"{track.name}: the speed-up {track.speedup:.2f}x is not to be trusted: "
            f"{'; '.join(found)}. torchdelta bench measures it, with pauses, against every runtime "
            "that is installed"
        )
    of_totals = statistics.median(track.dense_ms) * len(track.ms) / sum(track.ms)
    if doubts((), track.speedup, _mean(track.mac_share)):
        return (
            f"{track.name}: half of the frames take a MAC share of {median_share:.1%} or less; "
            f"over all frames together the speed-up is {of_totals:.2f}x"
        )
    return None


def summary(tracks: Sequence[Track], compared: bool, *, together: bool = True) -> Table:
    """The closing table, one row per stream: medians and means over the frames after the first.

    The speed-up is of the medians. Streams of one session run in the same turns, whose time they
    share.
    """
    title = None
    if together and len(tracks) > 1:
        title = f"ms: of a turn, which the {len(tracks)} streams share, over their number"
    # ten columns of figures must fit into 80 characters uncut; only names may wrap
    table = Table(
        box=box.SIMPLE, pad_edge=False, collapse_padding=True, title_justify="left", title=title
    )
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
            cells += [
                _number(_median(track.dense_ms), ".1f"),
                _number(track.speedup, ".2f", "x"),
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
