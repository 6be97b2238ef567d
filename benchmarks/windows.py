"""Make the tables of docs/log/moving.md for windows by themselves, without estimated motion.

    OMP_NUM_THREADS=1 python benchmarks/windows.py DATA [--only static,pan] [--size HxW]

"static": a stream of a fixed camera, in turns in three sessions of two slots: none of whose windows
ever moved; whose other slot's window has moved; that may follow cameras (motion="auto"). "pan": a
window moves over a large still picture by whole strides, at tolerance 0.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import cv2
import numpy as np
import torch
from moving_sessions import CLIPS, NETWORKS, frames_of

import torchdelta
from torchdelta.api import CompiledModel, relative_error
from torchdelta.capture.load import load_model
from torchdelta.cli.compiled import CALIBRATION_FRAMES, compile_loaded
from torchdelta.cli.options import Dtype, Engine
from torchdelta.runtime.measure import placed_step
from torchdelta.runtime.windows import Window

Picture = np.ndarray
# right, down, diagonally back, left
PAN = [(0, 1)] * 4 + [(1, 0)] * 4 + [(-1, -1)] * 5 + [(0, -1)] * 4


def compiled(data: Path, name: str, frames: list[Picture], tolerance: float) -> CompiledModel:
    model, weights = NETWORKS[name]
    size = frames[0].shape[:2]
    loaded = load_model(model, data / weights if weights else None, size=size)
    return compile_loaded(
        loaded, np.stack(frames[:CALIBRATION_FRAMES]), tolerance=tolerance, engine=Engine.auto,
        dtype=Dtype.fp32, profile=None,
    )  # fmt: skip


def print_static(data: Path, name: str, clip: str, size: tuple[int, int], count: int) -> None:
    frames, _ = frames_of(data / "clips" / CLIPS[clip], size, False, count)
    fast = compiled(data, name, frames, 0.04)
    plain, moved, auto = fast.session(2), fast.session(2), fast.session(2, motion="auto")
    for session in (plain, moved):
        session.step({"other": frames[0]})
    stride = fast.plan.total_stride
    placed_step(moved, {"other": frames[0]}, {"other": Window(stride)})
    steps: dict[str, Callable[[Picture], object]] = {
        "nothing moves": lambda frame: plain.step({"still": frame})["still"].output,
        "another window has moved": lambda frame: moved.step({"still": frame})["still"].output,
        "auto": lambda frame: auto.step({"still": frame})["still"].output,
    }
    times: dict[str, list[float]] = {key: [] for key in steps}
    for n, frame in enumerate(frames):
        order = list(steps) if n % 2 else list(steps)[::-1]
        for key in order:
            begin = time.perf_counter()
            steps[key](frame)
            times[key].append((time.perf_counter() - begin) * 1e3)
    ratios = {
        key: median(t / base for t, base in zip(found[1:], times["nothing moves"][1:], strict=True))
        for key, found in times.items()
    }
    for key, found in times.items():
        fifth = sorted(found[1:])[: max(1, len(found) // 5)]
        print(
            f"| {name} | {clip} | {key} | {median(found[1:]):.2f} | {sum(fifth) / len(fifth):.2f} "
            f"| {ratios[key]:.3f} |",
            flush=True,
        )


def print_pan(data: Path, name: str, size: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    side = (4 * size[0], 4 * size[1])
    world = np.zeros((*side, 3), np.float32)
    for px in (3, 12, 60):
        small = rng.uniform(0, 255, (side[0] // px + 1, side[1] // px + 1, 3)).astype(np.float32)
        world += cv2.resize(small, side[::-1], interpolation=cv2.INTER_CUBIC) / 3
    world = np.clip(world, 0, 255).astype(np.uint8)
    if name.startswith("DnCNN"):
        world = cv2.cvtColor(world, cv2.COLOR_RGB2GRAY)[..., None]
    start = (size[0], size[1])
    cut = world[start[0] : start[0] + size[0], start[1] : start[1] + size[1]]
    fast = compiled(data, name, [cut], 0.0)
    stride = fast.plan.total_stride
    # of a network of a small stride, steps of a window's eighth or so
    far = [max(1, n // (8 * s)) * s for n, s in zip(size, stride, strict=True)]
    for border in ("exact", "keep"):
        session, worst, shares = fast.session(), 0.0, []
        y, x = 0, 0
        for dy, dx in [(0, 0), *PAN]:
            y, x = y + dy * far[0], x + dx * far[1]
            top, left = start[0] + y, start[1] + x
            frame = world[top : top + size[0], left : left + size[1]]
            window = Window((y, x), border=border)
            result = placed_step(session, {"s": frame}, {"s": window})["s"]
            expected = fast.dense(fast.preprocess(frame))
            worst = max(worst, relative_error(result.output, expected))
            if not result.stats.first:
                shares.append(result.stats.mac_share)
        step, share = f"{far[0]}x{far[1]}", sum(shares) / len(shares)
        print(f"| {name} | {step} | {border} | {worst:.1e} | {share:.3f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--only", default="static,pan")
    parser.add_argument("--size", default="384x640")
    parser.add_argument("--networks", default="ResNet-50,DnCNN-17")
    parser.add_argument("--clips", default="room,pedestrians")
    parser.add_argument("--frames", type=int, default=60)
    options = parser.parse_args()
    cv2.setNumThreads(1)
    h, w = (int(n) for n in options.size.split("x"))
    print(f"torchdelta {torchdelta.__version__}, {torch.get_num_threads()} threads", flush=True)
    for name in options.networks.split(","):
        if "static" in options.only:
            for clip in options.clips.split(","):
                print_static(options.data, name, clip, (h, w), options.frames)
        if "pan" in options.only:
            print_pan(options.data, name, (h, w))


if __name__ == "__main__":
    main()
