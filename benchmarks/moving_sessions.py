"""Measure moving cameras: sessions that follow them, and sessions that do not.

    OMP_NUM_THREADS=2 python benchmarks/moving_sessions.py DATA OUT [--networks ResNet-50,DnCNN-17]
        [--clips rollercoaster,bag] [--modes none,features,auto] [--frames N] [--size HxW]
        [--engine triton --dtype fp16]

DATA is the folder with clips/ and weights/; OUT gets a JSON line per network, clip and mode. All
modes run in turns on the same frames, and are compared with the first one; "none@0.08" is a mode
with a tolerance of its own, "features/1" one with a grain of its own. A frame's time includes
estimation and warp, not decoding; the first frame is left out. Errors are those of evenly spaced
frames, against the dense network: layer_error on the published input (what the session's window
shows), error on the frame (of a followed camera warped into the window, with what was published
around it).
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import time
from pathlib import Path
from statistics import fmean, median

import cv2
import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

import torchdelta
from torchdelta.api import CompiledModel, relative_error
from torchdelta.bench.report import commit
from torchdelta.capture.load import load_model
from torchdelta.cli.compiled import CALIBRATION_FRAMES, compile_loaded
from torchdelta.cli.info import cpu
from torchdelta.cli.options import Dtype, Engine
from torchdelta.motion.vectors import Vectors
from torchdelta.runtime.result import Result
from torchdelta.runtime.session import Session
from torchdelta.video.feed import resized
from torchdelta.video.source import open_source
from torchdelta.videoframe import VideoFrame

ROOT = Path(__file__).resolve().parents[1]
NETWORKS = {
    "ResNet-50": ("timm:resnet50", None),
    "EfficientNet-Lite0": (
        "timm:tf_efficientnet_lite0", "weights/tf_efficientnet_lite0_imagenet_fp16.pth",
    ),
    "DnCNN-17": ("examples.denoise:dncnn", "weights/dncnn17_gray_sigma25.pth"),
}  # fmt: skip
CLIPS = {
    "rollercoaster": "moving/rollercoaster_pan_960x540.mp4",
    "bag": "moving/bag_handheld_480x360.avi",
    "dashcam": "moving/dashcam_960x540.mp4",
    "bedroom": "moving/bedroom_pan_960x540.mp4",
    "room": "static/room_768x432.mp4",
    "lab": "static/lab_1920x1080.mp4",
    "pedestrians": "static/pedestrians_768x576.avi",
    "juggle": "static/juggle_1280x720.mp4",
    "road": "static/road_640x352.mp4",
}
SAMPLES = 8
STREAM = "camera"


def frames_of(
    path: Path, size: tuple[int, int], gray: bool, limit: int | None
) -> tuple[list[np.ndarray], list[Vectors | None]]:
    """Decode a clip, resized, with the decoder's motion vectors."""
    frames, vectors = [], []
    with open_source(str(path), gray=gray, vectors=True) as source:
        for frame in itertools.islice(source, limit):
            frames.append(resized(frame.picture, size))
            vectors.append(frame.vectors)
    return frames, vectors


def open_session(fast: CompiledModel, mode: str) -> Session:
    """Open a session for a mode, perhaps with a tolerance and a grain of its own."""
    mode, _, tolerance = mode.partition("@")
    motion, _, grain = mode.partition("/")
    if tolerance:
        fast = copy.copy(fast)
        fast.tolerance = float(tolerance)
    # any name: `session` refuses what is no motion
    return fast.session(motion=motion, grain=int(grain) if grain else None)  # type: ignore[call-overload]


def timed_step(
    fast: CompiledModel, session: Session, frame: np.ndarray,
    vectors: Vectors | None,
) -> tuple[Result, float]:  # fmt: skip
    """Run one frame; gives its result and the milliseconds until a device was done, too."""
    begin = time.perf_counter()
    result = session.step({STREAM: VideoFrame(frame, vectors=vectors)})[STREAM]
    if fast.device.type == "cuda":
        torch.cuda.synchronize()
    return result, (time.perf_counter() - begin) * 1e3


def shown(fast: CompiledModel, result: Result, frame: np.ndarray, published: Tensor) -> Tensor:
    """Give the frame as the network would see all of it."""
    at = result.aligned
    if at is None:
        return fast.preprocess(frame)
    whole = fast.preprocess(at.warp(frame))
    inside = torch.from_numpy(at.mask()).to(published.device)
    return torch.where(inside, whole.to(published), published)


def run(
    fast: CompiledModel,
    modes: list[str],
    frames: list[np.ndarray],
    vectors: list[Vectors | None],
    samples: int,
) -> dict[str, dict[str, object]]:
    """Run a session per mode in turns, each compared with the first; gives the figures."""
    if any(mode.startswith("auto") for mode in modes):
        # compiles the network for windows: `auto` would while its frames are timed
        open_session(fast, "features").step({STREAM: frames[0]})
    sessions = {mode: open_session(fast, mode) for mode in modes}
    for session in sessions.values():
        session.waits = True
    times: dict[str, list[float]] = {mode: [] for mode in modes}
    layers: dict[str, list[float]] = {mode: [] for mode in modes}
    errors: dict[str, list[float]] = {mode: [] for mode in modes}
    sampled = set(np.linspace(1, len(frames) - 1, min(samples, len(frames) - 1)).astype(int))
    for n, frame in enumerate(track(frames, console=Console(stderr=True), transient=True)):
        order = modes if n % 2 else modes[::-1]
        for mode in order:
            session = sessions[mode]
            result, ms = timed_step(fast, session, frame, vectors[n])
            times[mode].append(ms)
            if n in sampled:
                seen = session.stream(STREAM).published()
                layers[mode].append(relative_error(result.output, fast.dense(seen)))
                whole = fast.dense(shown(fast, result, frame, seen))
                errors[mode].append(relative_error(result.output, whole))
    found = {}
    for mode, session in sessions.items():
        stats = session.stream(STREAM).stats
        found[mode] = {
            "mode": mode, "frames": len(frames), "ms_mean": fmean(times[mode][1:]),
            "ms_median": median(times[mode][1:]), "mac_share": stats.mac_share,
            "changed_input": stats.changed_input, "layer_error": fmean(layers[mode]),
            "error": fmean(errors[mode]), "moves": stats.moves, "reasons": stats.reasons,
            "state_bytes": session.state_bytes,
        }  # fmt: skip
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--networks", default="ResNet-50,DnCNN-17")
    parser.add_argument("--clips", default="rollercoaster,bag,dashcam,bedroom")
    parser.add_argument("--modes", default="none,features,auto")
    parser.add_argument("--frames", type=int)
    parser.add_argument("--size", default="384x640")
    parser.add_argument("--samples", type=int, default=SAMPLES)
    parser.add_argument("--tolerance", type=float, default=0.04)
    parser.add_argument("--engine", type=Engine, default=Engine.auto)
    parser.add_argument("--dtype", type=Dtype, default=Dtype.fp32)
    options = parser.parse_args()
    cv2.setNumThreads(1)
    size = tuple(int(n) for n in options.size.split("x"))
    modes = options.modes.split(",")
    on_gpu = options.engine is Engine.triton
    device = torch.cuda.get_device_name() if on_gpu else cpu()[0]
    for network, clip in itertools.product(options.networks.split(","), options.clips.split(",")):
        model, weights = NETWORKS[network]
        loaded = load_model(model, options.data / weights if weights else None, size=size)
        if on_gpu:
            loaded.model.cuda()
        frames, vectors = frames_of(
            options.data / "clips" / CLIPS[clip], size, loaded.channels == 1, options.frames
        )
        fast = compile_loaded(
            loaded, np.stack(frames[:CALIBRATION_FRAMES]), tolerance=options.tolerance,
            engine=options.engine, dtype=options.dtype, profile=None,
        )  # fmt: skip
        found = run(fast, modes, frames, vectors, options.samples)
        base = found[modes[0]]["ms_mean"]
        for mode, figures in found.items():
            line = {
                "network": network, "clip": clip, "size": options.size,
                "tolerance": options.tolerance, "threads": torch.get_num_threads(),
                "engine": fast.engine, "dtype": options.dtype.value, "device": device,
                "versions": {"torchdelta": torchdelta.__version__, "torch": torch.__version__},
                "commit": commit(), **figures, "faster": base / figures["ms_mean"],
            }  # fmt: skip
            with options.out.open("a") as lines:
                print(json.dumps(line), file=lines)
            print(
                f"{network:18} {clip:14} {mode:12} {figures['ms_mean']:7.1f} ms "
                f"({line['faster']:.2f}x)  MACs {figures['mac_share']:.3f}  "
                f"input {figures['changed_input']:.3f}  layer error {figures['layer_error']:.4f}  "
                f"error {figures['error']:.4f}  "
                f"{figures['moves']} moves  {figures['reasons']}",
                flush=True,
            )


if __name__ == "__main__":
    main()
