"""Measure the torch engine: `torchdelta run --compare` on real clips.

    python benchmarks/core_figures.py DATA [--quick] > figures.md

DATA is the folder with clips/ and weights/. Ours and the dense network alternate on each frame.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
NETWORKS = {
    "EfficientNet-Lite0": [
        "--model", "timm:tf_efficientnet_lite0", "--task", "classify",
        "--weights", "weights/tf_efficientnet_lite0_imagenet_fp16.pth",
    ],
    "DnCNN-17": [
        "--model", "examples.denoise:dncnn", "--task", "image",
        "--weights", "weights/dncnn17_gray_sigma25.pth",
    ],
}  # fmt: skip
CLIPS = ("room_768x432.mp4", "road_640x352.mp4", "pedestrians_768x576.avi")
# frames per clip: the denoiser takes seconds a frame when dense
LIMITS = {"EfficientNet-Lite0": None, "DnCNN-17": 90}


def run(data: Path, network: str, clip: str, limit: int | None) -> list[dict]:
    """Run one network on one clip and return its JSON lines."""
    options = [str(data / o) if o.startswith("weights/") else o for o in NETWORKS[network]]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.jsonl"
        command = [
            sys.executable, "-c", "from torchdelta.cli import main; main()", "run",
            str(data / "clips" / "static" / clip), *options, "--compare", "--json", str(path),
        ]  # fmt: skip
        if limit is not None:
            command += ["--limit", str(limit)]
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        return [json.loads(line) for line in path.read_text().splitlines()]


def row(network: str, clip: str, lines: list[dict]) -> str:
    """Sum one run up as a row of the table; the first frame stays apart."""
    first, later = lines[0], lines[1:]

    def median(key: str) -> float:
        return statistics.median(line[key] for line in later)

    def mean(key: str) -> float:
        return statistics.fmean(line[key] for line in later)

    totals = sum(line["dense_ms"] for line in later) / sum(line["ms"] for line in later)
    medians = median("dense_ms") / median("ms")
    return (
        f"| {network} | {clip.split('_')[0]} | {len(lines)} | {first['ms']:.0f} "
        f"| {median('dense_ms'):.1f} | {median('ms'):.1f} | {totals:.2f} | {medians:.2f} "
        f"| {mean('changed_input'):.1%} | {mean('mac_share'):.1%} "
        f"| {totals * mean('mac_share'):.2f} | {mean('error'):.4f} | {mean('layer_error'):.4f} |"
    )


def cpu_name() -> str:
    """Name the processor."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()


def main() -> None:
    """Run all and print the table with its conditions."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--quick", action="store_true", help="5 frames each, to try it out")
    options = parser.parse_args()
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True
    ).stdout.strip()
    print(
        f"{cpu_name()}, {torch.get_num_threads()} threads, PyTorch {torch.__version__}, Python "
        f"{platform.python_version()}, float32, tolerance 0.04, torch engine, commit {commit}\n"
    )
    print(
        "| network | clip | frames | first ms | dense ms | delta ms | speed-up | of medians "
        "| changed input | MAC share | efficiency | error | layer error |\n" + "|---" * 13 + "|"
    )
    for network, limit in LIMITS.items():
        for clip in CLIPS:
            frames = 5 if options.quick else limit
            print(
                row(network, clip, run(options.data.resolve(), network, clip, frames)), flush=True
            )


if __name__ == "__main__":
    main()
