"""Make the tables of docs/log/alignment.md: changed input and times on moving clips.

    OMP_NUM_THREADS=1 python benchmarks/motion_figures.py DATA [--quick] [--pictures FOLDER]

DATA is the folder with clips/. Changed input at 640x384 of all frames after the first, as shares of
the frame's pixels: "signed" with the mean over the 3x3 box and the channels of the signed
difference, dilated by 1; "gate" with the package's own input gate, in pixels; "cells" with its
cells, as sessions of followed cameras have them with a network of a total stride of 32; all at
8/255. A frame that is a new reference counts as 1.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from torchdelta.motion.align import Aligner, Limits
from torchdelta.motion.codec import Codec
from torchdelta.motion.estimate import Estimator
from torchdelta.motion.features import Features
from torchdelta.motion.thumb import Thumb
from torchdelta.motion.translation import Translation
from torchdelta.motion.vectors import Vectors
from torchdelta.ops.gate import input_gate, input_threshold
from torchdelta.runtime.thresholds import default_grain
from torchdelta.video.feed import resized
from torchdelta.video.source import open_source

CLIPS = {
    "rollercoaster": "rollercoaster_pan_960x540.mp4",
    "bag": "bag_handheld_480x360.avi",
    "dashcam": "dashcam_960x540.mp4",
    "bedroom": "bedroom_pan_960x540.mp4",
}
ESTIMATORS: dict[str, type[Estimator]] = {e.name: e for e in (Features, Codec, Translation)}
SIZE, TIMED_SIZE, STRIDE = (384, 640), (540, 960), 32
# name: threshold in grey levels, and the input gate's grain; None: the trial's signed box
Gate = tuple[float, int | None]
GATES: dict[str, Gate] = {
    "signed": (8.0, None),
    "gate": (input_threshold(0.04) * 255, 1),
    "cells": (input_threshold(0.04) * 255, default_grain((STRIDE, STRIDE), followed=True)),
}
TIGHT: dict[str, Gate] = {"8": (8.0, None), "4": (4.0, None)}
FILTERS = {
    "bilinear": cv2.INTER_LINEAR,
    "bicubic": cv2.INTER_CUBIC,
    "Lanczos": cv2.INTER_LANCZOS4,
}
# the design's starting values, and wider ones
LIMITS = {
    "1.1, 1.2, 5": Limits(scale=1.1, stretch=1.2, turn_degrees=5),
    "1.18, 1.33, 8": Limits(scale=1.18, stretch=1.33, turn_degrees=8),
    "1.25, 1.5, 12": Limits(scale=1.25, stretch=1.5, turn_degrees=12),
    "1.35, 1.7, 16": Limits(scale=1.35, stretch=1.7, turn_degrees=16),
}
# over the frames whose times are taken
PASSES = 5
# frames of the short figures, which the design's trial took
SHORT = 24
TABLES = ("share", "limits", "filter", "codec", "time")
Picture = NDArray[np.uint8]


def frames(path: Path, size: tuple[int, int]) -> Iterator[tuple[Picture, Vectors | None]]:
    with open_source(path, vectors=True) as source:
        for frame in source:
            yield resized(frame.picture, size), frame.vectors


def window_of(size: tuple[int, int]) -> tuple[int, int]:
    h, w = (-(-n // STRIDE) * STRIDE + STRIDE for n in size)
    return h, w


class Shown:
    """The world as last published, in the window.

    grain: the input gate's; None: the trial's signed box
    """

    def __init__(self, window: tuple[int, int], threshold: float, grain: int | None) -> None:
        self.world = np.zeros((*window, 3), np.float32)
        self.seen = np.zeros(window, bool)
        self.threshold, self.grain = threshold, grain

    def forget(self) -> None:
        self.seen[:] = False

    def move(self, dy: int, dx: int) -> None:
        for kept in (self.world, self.seen):
            moved = np.zeros_like(kept)
            h, w = kept.shape[:2]
            y0, y1, x0, x1 = max(0, dy), min(h, h + dy), max(0, dx), min(w, w + dx)
            moved[y0 - dy : y1 - dy, x0 - dx : x1 - dx] = kept[y0:y1, x0:x1]
            kept[:] = moved

    def publish(self, frame: Picture, mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
        known = mask & self.seen
        new = frame.astype(np.float32)
        if self.grain is None:
            hot = self._hot(new, known)
        else:
            hot = input_gate(
                torch.from_numpy(new), torch.from_numpy(self.world), self.threshold / 255,
                torch.full((3,), 1 / 255), mask=torch.from_numpy(mask),
                unseen=torch.from_numpy(~self.seen), grain=self.grain,
            ).numpy()  # fmt: skip
        published = (hot | ~self.seen) & mask
        self.world[published] = new[published]
        self.seen |= mask
        return published

    def _hot(self, new: NDArray[np.float32], known: NDArray[np.bool_]) -> NDArray[np.bool_]:
        difference = np.where(known, (new - self.world).mean(-1), 0).astype(np.float32)
        plain = {"ksize": (3, 3), "borderType": cv2.BORDER_CONSTANT}
        count = cv2.blur(known.astype(np.float32), **plain)
        box = cv2.blur(difference, **plain) / np.maximum(count, 1e-6)
        hot = (np.abs(box) > self.threshold).astype(np.uint8)
        return cv2.dilate(hot, np.ones((3, 3), np.uint8)) > 0


def changed_static(
    path: Path, limit: int | None, threshold: float, grain: int | None
) -> list[float]:
    shown = Shown(SIZE, threshold, grain)
    everywhere = np.ones(SIZE, bool)
    shares = [
        float(shown.publish(frame, everywhere).mean())
        for _, (frame, _) in zip(range(limit or 10**9), frames(path, SIZE), strict=False)
    ]
    return shares[1:]


def changed_aligned(
    path: Path,
    limit: int | None,
    name: str,
    how: int,
    thresholds: dict[str, Gate],
    pictures: Path | None = None,
    limits: Limits | None = None,
) -> tuple[dict[str, list[float]], Counter[str]]:
    window = window_of(SIZE)
    aligner = Aligner(SIZE, window, (STRIDE, STRIDE), ESTIMATORS[name](), limits=limits)
    shown = {key: Shown(window, *setting) for key, setting in thresholds.items()}
    shares: dict[str, list[float]] = {key: [] for key in thresholds}
    why: Counter[str] = Counter()
    for index, (frame, vectors) in zip(range(limit or 10**9), frames(path, SIZE), strict=False):
        placement = aligner.place(frame, vectors=vectors)
        warped = resampled(frame, placement, how)
        mask = placement.mask()
        for key, world in shown.items():
            if placement.anchored:
                world.forget()
            elif placement.moved != (0, 0):
                world.move(*placement.moved)
            published = world.publish(warped, mask)
            whole = placement.anchored is not None
            shares[key].append(1.0 if whole else float(published.sum()) / (SIZE[0] * SIZE[1]))
        if index and placement.anchored:
            why[placement.anchored] += 1
        if pictures is not None and index % 10 == 9:
            side = np.hstack([warped * mask[..., None], next(iter(shown.values())).world])
            cv2.imwrite(
                str(pictures / f"{path.stem}-{name}-{index}.png"), side[..., ::-1].astype(np.uint8)
            )
    return {key: found[1:] for key, found in shares.items()}, why


def print_fallbacks(clips: dict[str, Path], limit: int | None) -> None:
    print("\n| clip | frames | by vectors | no vectors | do not agree | pictures differ |")
    print("|---" * 6 + "|")
    for clip, path in clips.items():
        codec, previous, why = Codec(), None, Counter[str]()
        for _, (frame, vectors) in zip(range(limit or 10**9), frames(path, SIZE), strict=False):
            current = Thumb.of(frame)
            if previous is not None:
                why[fallback(codec.estimate(previous, current, vectors).fallback)] += 1
            previous = current
        counts = " | ".join(str(why[key]) for key in ("", "none", "agree", "differ"))
        print(f"| {clip} | {why.total()} | {counts} |", flush=True)


def fallback(reason: str | None) -> str:
    if reason is None:
        return ""
    if "no motion vectors" in reason:
        return "none"
    return "differ" if "pictures differ" in reason else "agree"


def resampled(frame: Picture, placement, how: int) -> Picture:
    if how == cv2.INTER_LINEAR:
        return placement.warp(frame)
    return np.asarray(
        cv2.warpPerspective(
            frame, placement.to_window, placement.window[::-1], flags=how,
            borderMode=cv2.BORDER_REPLICATE,
        )
    )  # fmt: skip


def times_ms(
    shown: list[tuple[Picture, Vectors | None]], name: str
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Time estimation and placement, and the warp with its mask: [PASSES, frames] each.

    The time of the processor in this thread: others that run meanwhile do not count.
    """
    window = window_of(TIMED_SIZE)
    placing, warping = np.empty((2, PASSES, len(shown)))
    for n in range(PASSES):
        aligner = Aligner(TIMED_SIZE, window, (STRIDE, STRIDE), ESTIMATORS[name]())
        for i, (frame, vectors) in enumerate(shown):
            begin = time.thread_time()
            placement = aligner.place(frame, vectors=vectors)
            middle = time.thread_time()
            placement.warp_and_mark(frame)
            placing[n, i] = (middle - begin) * 1e3
            warping[n, i] = (time.thread_time() - middle) * 1e3
    return placing[:, 1:], warping[:, 1:]


def print_shares(clips: dict[str, Path], limit: int | None, pictures: Path | None) -> None:
    print(f"| clip | estimator | signed | first {SHORT} | gate | cells | new references |")
    print("|---" * 7 + "|")
    for clip, path in clips.items():
        signed, gate = (changed_static(path, limit, *GATES[key]) for key in ("signed", "gate"))
        # fixed cameras have no cells
        print(f"| {clip} | static | {row(signed, gate)} | | |", flush=True)
        for name in ESTIMATORS:
            found, why = changed_aligned(path, limit, name, cv2.INTER_LINEAR, GATES, pictures)
            shares = f"{row(found['signed'], found['gate'])} | {fmean(found['cells']):.3f}"
            print(f"| {clip} | {name} | {shares} | {reasons(why)} |", flush=True)


def print_filters(clips: dict[str, Path], limit: int | None) -> None:
    print("\n| clip | filter | signed 8/255 | signed 4/255 |\n" + "|---" * 4 + "|")
    for clip, path in clips.items():
        for name, how in FILTERS.items():
            found, _ = changed_aligned(path, limit, "features", how, TIGHT)
            shares = " | ".join(f"{fmean(found[key]):.3f}" for key in TIGHT)
            print(f"| {clip} | {name} | {shares} |", flush=True)


def print_limits(clips: dict[str, Path], limit: int | None) -> None:
    print(f"\n| clip | scale, stretch, degrees | signed | first {SHORT} | new references |")
    print("|---" * 5 + "|")
    for clip, path in clips.items():
        for name, limits in LIMITS.items():
            found, why = changed_aligned(
                path, limit, "features", cv2.INTER_LINEAR, {"8": TIGHT["8"]}, limits=limits
            )
            share, short = fmean(found["8"]), fmean(found["8"][:SHORT])
            print(f"| {clip} | {name} | {share:.3f} | {short:.3f} | {reasons(why)} |", flush=True)


def reasons(why: Counter[str]) -> str:
    return ", ".join(f"{n} {reason}" for reason, n in why.most_common())


def print_times(clips: dict[str, Path], limit: int | None) -> None:
    """Print means and medians of all passes; "quiet": of each frame the fastest pass, averaged."""
    print(
        "\n| clip | estimator | estimate ms, mean | median | fastest fifth | quiet "
        "| warp and mask, mean | quiet | together, mean | quiet |"
    )
    print("|---" * 10 + "|")
    for clip, path in clips.items():
        shown = list(itertools.islice(frames(path, TIMED_SIZE), limit))
        for name in ESTIMATORS:
            placing, warping = times_ms(shown, name)
            fifth = np.sort(placing, axis=None)[: placing.size // 5].mean()
            quiet, quiet_warp = placing.min(0).mean(), warping.min(0).mean()
            both = placing.mean() + warping.mean(), (placing + warping).min(0).mean()
            print(
                f"| {clip} | {name} | {placing.mean():.2f} | {np.median(placing):.2f} "
                f"| {fifth:.2f} | {quiet:.2f} | {warping.mean():.2f} | {quiet_warp:.2f} "
                f"| {both[0]:.2f} | {both[1]:.2f} |",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--quick", action="store_true", help="25 frames of each clip")
    parser.add_argument("--pictures", type=Path, help="folder for aligned frames and worlds")
    parser.add_argument("--clips", default=",".join(CLIPS))
    parser.add_argument("--only", default=",".join(TABLES))
    options = parser.parse_args()
    for name, known in (("only", TABLES), ("clips", tuple(CLIPS))):
        unknown = set(getattr(options, name).split(",")) - set(known)
        if unknown:
            parser.error(f"--{name}: no {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    if options.pictures is not None:
        options.pictures.mkdir(parents=True, exist_ok=True)
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    limit = 25 if options.quick else None
    folder = options.data / "clips" / "moving"
    clips = {name: folder / CLIPS[name] for name in options.clips.split(",")}
    if "share" in options.only:
        print_shares(clips, limit, options.pictures)
    if "limits" in options.only:
        print_limits(clips, limit)
    if "filter" in options.only:
        print_filters(clips, limit)
    if "codec" in options.only:
        print_fallbacks(clips, limit)
    if "time" in options.only:
        print_times(clips, limit)


def row(signed: list[float], gate: list[float]) -> str:
    return f"{fmean(signed):.3f} | {fmean(signed[:SHORT]):.3f} | {fmean(gate):.3f}"


if __name__ == "__main__":
    main()
