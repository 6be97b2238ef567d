"""How long commands take until they answer: `startup.py CLIP LITE0_WEIGHTS [RESNET50_WEIGHTS]`.

Runs the floor (`import torch, timm, torch.export`) and the commands in turns, so that a machine
that gets slower slows all of them, and prints medians with their spread. The first turn fills the
caches (also of compiled modules, in a folder of its own) and does not count. CLIP: from a fixed
camera; without weights for ResNet-50 some are drawn. To be run on an idle machine.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HELP_TURNS, RUN_TURNS = 10, 5
HELP_GOAL_S, LITE0_GOAL_S, RESNET_GOAL_S = 0.5, 2.5, 4.0
TORCHDELTA = [sys.executable, "-m", "torchdelta"]
FLOOR = [sys.executable, "-c", "import torch, timm, torch.export"]
DRAW = """
import sys, timm, torch
from torchdelta.capture.prepare import prepare_untrained
torch.manual_seed(0)
net = prepare_untrained(timm.create_model("resnet50"), (2, 3, 224, 224))
torch.save(net.state_dict(), sys.argv[1])
"""


def seconds(command: list[str], folder: Path, code: int) -> float:
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    environment["PYTHONPYCACHEPREFIX"] = str(folder / "compiled")
    start = time.perf_counter()
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    took_s = time.perf_counter() - start
    if done.returncode != code:
        sys.exit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr}")
    return took_s


def in_turns(
    commands: dict[str, tuple[list[str], int]], turns: int, folder: Path
) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in commands}
    for turn in range(turns + 1):
        for name, (command, code) in commands.items():
            took_s = seconds(command, folder, code)
            if turn:
                times[name].append(took_s)
    return times


def show(name: str, times_s: list[float], goal_s: float | None) -> None:
    median_s = statistics.median(times_s)
    goal = (
        ""
        if goal_s is None
        else f"   goal {goal_s:.2f} {'met' if median_s <= goal_s else 'MISSED'}"
    )
    spread = f"{min(times_s):.2f} to {max(times_s):.2f}"
    print(f"{name:24} {median_s:6.2f} s   ({spread}, {len(times_s)} runs){goal}", flush=True)


def main() -> None:
    clip, lite0, *resnet = (Path(arg).resolve() for arg in sys.argv[1:])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        weights = resnet[0] if resnet else folder / "resnet50.pth"
        if not resnet:
            seconds([sys.executable, "-c", DRAW, str(weights)], folder, 0)
        spec = ["--model", "timm:resnet50"]
        short = {
            "torchdelta --help": ([*TORCHDELTA, "--help"], 0),
            "run --help": ([*TORCHDELTA, "run", "--help"], 0),
            "bench --help": ([*TORCHDELTA, "bench", "--help"], 0),
            "usage error": ([*TORCHDELTA, "run", str(clip)], 2),
            "missing source": ([*TORCHDELTA, "run", "none.mp4", *spec], 1),
            "missing weights": ([*TORCHDELTA, "run", str(clip), *spec, "--weights", "none.pth"], 1),
            "missing profile": (
                [*TORCHDELTA, "run", str(clip), *spec, "--profile", "none.json"], 1,
            ),
            "missing model": ([*TORCHDELTA, "run", str(clip), "--model", "none.pt2"], 1),
        }  # fmt: skip
        for name, times_s in in_turns(short, HELP_TURNS, folder).items():
            show(name, times_s, HELP_GOAL_S)
        run = [*TORCHDELTA, "run", str(clip), "--size", "512x768", "--limit", "1"]
        out = ["--json", "first.jsonl"]
        long = {
            "floor": (FLOOR, 0),
            "EfficientNet-Lite0": (
                [*run, *out, "--model", "timm:tf_efficientnet_lite0", "--weights", str(lite0)], 0,
            ),
            "ResNet-50": ([*run, *out, *spec, "--weights", str(weights)], 0),
        }  # fmt: skip
        times = in_turns(long, RUN_TURNS, folder)
        floor_s = statistics.median(times["floor"])
        show("floor", times["floor"], None)
        show("EfficientNet-Lite0", times["EfficientNet-Lite0"], floor_s + LITE0_GOAL_S)
        show("ResNet-50", times["ResNet-50"], floor_s + RESNET_GOAL_S)


if __name__ == "__main__":
    main()
