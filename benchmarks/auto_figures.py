"""Measure what `motion="auto"` costs and gains: none, auto and features in turns, on nine clips.

    OMP_NUM_THREADS=2 python benchmarks/auto_figures.py DATA OUT.jsonl [--networks ResNet-50]
        [--clips room,bag] [--frames 70,0] [--size 384x640] [--modes none,auto,features]

DATA is the folder with clips/ and weights/; OUT.jsonl gets a line per network, clip, length and
mode, and what it has already is not measured again. A length of 0 is the whole clip. Every mode has
a session of its own, and each frame runs in all of them, in changing order: so whatever else the
machine does falls on all alike. A time is that of `step`, estimation and warp included, decoding
not; sums are over all frames, the first one included, which is measured apart. ResNet-50 has no
weights here: its batch norms are set on the clip's first frames (`prepare_untrained`).

The network is compiled for windows beforehand, as it is for recordings, where the wait for it is in
no frame's time; how long it took is printed. `ratio` is the sum of times without following over
that of the mode: the goal for auto is at least .95 on every clip and length.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from pathlib import Path
from statistics import median
from typing import Any

import cv2
import numpy as np
import torch
from moving_sessions import CLIPS, NETWORKS, STREAM, frames_of, open_session, timed_step
from rich.console import Console
from rich.progress import track

import torchdelta
from torchdelta.api import CompiledModel
from torchdelta.bench import report
from torchdelta.capture.load import load_model
from torchdelta.cli.compiled import CALIBRATION_FRAMES, compile_loaded
from torchdelta.cli.options import Dtype, Engine
from torchdelta.motion.vectors import Vectors
from torchdelta.runtime.session import Session

# of the frames without following over those with auto
GOAL = 0.95
SETTLE_S = 0.002
FIRST_TURNS = 5


def open_patient(fast: CompiledModel, mode: str) -> Session:
    session = open_session(fast, mode)
    session.waits = True
    return session


def first_frames(
    fast: CompiledModel, modes: list[str], frame: np.ndarray, vectors: Vectors | None
) -> dict[str, float]:
    """Measure each mode's first frame, in a session that is there alone.

    Which of several sessions gets memory that was in use before decides over their first frames.
    """
    times: dict[str, list[float]] = {mode: [] for mode in modes}
    for _ in range(FIRST_TURNS):
        for mode in modes:
            times[mode].append(timed_step(fast, open_patient(fast, mode), frame, vectors)[1])
    return {mode: median(found) for mode, found in times.items()}


def in_turns(
    fast: CompiledModel, modes: list[str], frames: list[np.ndarray], vectors: list[Vectors | None]
) -> dict[str, dict[str, Any]]:
    """Run a session per mode on the same frames; gives sums of times and what was done."""
    first_ms = first_frames(fast, modes, frames[0], vectors[0])
    sessions = {mode: open_patient(fast, mode) for mode in modes}
    times: dict[str, list[float]] = {mode: [] for mode in modes}
    followed = dict.fromkeys(modes, 0)
    for n, frame in enumerate(track(frames, console=Console(stderr=True), transient=True)):
        start = n % len(modes)
        for mode in modes[start:] + modes[:start]:
            # OpenMP's threads of the one before go on spinning for a while
            time.sleep(SETTLE_S)
            result, ms = timed_step(fast, sessions[mode], frame, vectors[n])
            times[mode].append(ms if n else first_ms[mode])
            followed[mode] += result.aligned is not None
    found = {}
    for mode, session in sessions.items():
        stats = session.stream(STREAM).stats
        found[mode] = {
            "mode": mode, "ran": len(frames), "total_ms": sum(times[mode]),
            "ms_median": median(times[mode]), "first_ms": times[mode][0],
            "followed": followed[mode], "mac_share": stats.mac_share, "moves": stats.moves,
            "reasons": stats.reasons,
        }  # fmt: skip
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--networks", default="ResNet-50,EfficientNet-Lite0")
    parser.add_argument("--clips", default=",".join(CLIPS))
    parser.add_argument("--frames", default="70,0", help="lengths; 0: the whole clip")
    parser.add_argument("--modes", default="none,auto,features", help="the first is the base")
    parser.add_argument("--size", default="384x640")
    options = parser.parse_args()
    cv2.setNumThreads(1)
    h, w = (int(n) for n in options.size.split("x"))
    modes = options.modes.split(",")
    done = set()
    if options.out.exists():
        lines = map(json.loads, options.out.read_text().splitlines())
        done = {(line["network"], line["clip"], line["frames"], line["size"]) for line in lines}
    missed = []
    for network, clip in itertools.product(options.networks.split(","), options.clips.split(",")):
        wanted = [
            length for length in map(int, options.frames.split(","))
            if (network, clip, length, options.size) not in done
        ]  # fmt: skip
        if not wanted:
            continue
        model, weights = NETWORKS[network]
        loaded = load_model(model, options.data / weights if weights else None, size=(h, w))
        longest = None if 0 in wanted else max(wanted)
        frames, vectors = frames_of(
            options.data / "clips" / CLIPS[clip], (h, w), loaded.channels == 1, longest
        )
        fast = compile_loaded(
            loaded, np.stack(frames[:CALIBRATION_FRAMES]), tolerance=0.04, engine=Engine.auto,
            dtype=Dtype.fp32, profile=None,
        )  # fmt: skip
        begin = time.perf_counter()
        open_session(fast, "features")
        window_s = time.perf_counter() - begin
        # kernels and memory are touched for the first time before anything counts
        in_turns(fast, modes, frames[:3], vectors[:3])
        for length in wanted:
            found = in_turns(fast, modes, frames[: length or None], vectors[: length or None])
            base_ms = found[modes[0]]["total_ms"]
            for mode, figures in found.items():
                ratio = base_ms / figures["total_ms"]
                line = {
                    "network": network, "clip": clip, "frames": length, "size": options.size,
                    **figures, "ratio": ratio, "window_s": window_s, "engine": fast.engine,
                    "threads": torch.get_num_threads(),
                    "commit": report.commit() or torchdelta.__version__,
                }  # fmt: skip
                with options.out.open("a") as out:
                    print(json.dumps(line), file=out)
                if mode == "auto" and ratio < GOAL:
                    missed.append(f"{network} {clip} {length or 'whole'}: {ratio:.3f}")
                print(
                    f"{network:18} {clip:14} {figures['ran']:5} frames {mode:9} "
                    f"{figures['total_ms'] / figures['ran']:7.1f} ms  ratio {ratio:.3f}  "
                    f"followed {figures['followed']}  {figures['reasons']}  "
                    f"window {window_s:.1f} s",
                    flush=True,
                )
    print(f"auto below {GOAL}: {'; '.join(missed) or 'nowhere'}")


if __name__ == "__main__":
    main()
