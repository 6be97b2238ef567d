"""Show where a frame's time goes on the triton engine, step by step, from the profiler.

    python benchmarks/gpu_steps.py [OUT.json] [--model timm:resnet50] [--streams 1 16 64] [--all]

Forced activity (design, section 10). The kernels of a frame are launched one behind the other
without programmatic dependent launch, so that none runs while it waits for another; PyTorch's
profiler (CUPTI) says how long each ran, median of some frames. *Launch* is what a frame's CUDA
graph as it is used takes beyond that sum, spread over the launches: below 0 where kernels run side
by side. Steps whose maps are of one size are added up; --all prints each step.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from torchdelta.api import CompiledModel
from torchdelta.bench.forced import changed_inside, disc_mask, forced_masks, made_frame
from torchdelta.capture.load import load_model
from torchdelta.cli.compiled import compile_loaded
from torchdelta.cli.options import Dtype, Engine
from torchdelta.engines.triton.frame import Frame
from torchdelta.engines.triton.launch import Launch
from torchdelta.engines.triton.runner import Runner
from torchdelta.runtime.inspect import frame_state
from torchdelta.runtime.measure import forced_step

SIZE = (512, 768)
FRAMES, REPLAYS = 7, 25
COLUMNS = ("select", "conv", "other")
KINDS = {"select": "select", "convolution": "conv", "depthwise": "conv"}


@dataclass
class Part:
    """What one step costs, us: the kernels of each column, and how many there are."""

    name: str
    size: str
    launches: int = 0
    us: dict[str, float] = field(default_factory=lambda: dict.fromkeys(COLUMNS, 0.0))


@dataclass
class Opened:
    """A session's frame with forced activity, and the pictures that it sees in turns."""

    runner: Runner
    frame: Frame
    shown: list[Tensor]
    pictures: list[tuple[Tensor, Tensor]]
    turn: int = 0

    def change(self) -> None:
        """Show the other picture of each stream: it differs inside the discs."""
        self.turn = 1 - self.turn
        for shown, pictures in zip(self.shown, self.pictures, strict=True):
            shown.copy_(pictures[self.turn])
        torch.cuda.synchronize()


def open_frame(fast: CompiledModel, streams: int, share: float, pdl: bool) -> Opened:
    """Run some frames with forced active sets, so that all kernels are compiled."""
    session = fast.session(slots=streams)
    engine: Any = session.engine
    gpu = engine.program.gpu
    before, gpu.pdl = gpu.pdl, pdl and gpu.pdl
    forced = forced_masks(fast.plan, share, fast.device)
    discs = disc_mask(SIZE, share)
    pictures = []
    for seed in range(streams):
        first = made_frame(SIZE, 3, seed)
        both = [torch.from_numpy(x).to(fast.device) for x in (first, changed_inside(first, discs))]
        pictures.append((both[0], both[1]))
    shown = [first.clone() for first, _ in pictures]
    frames = {str(n): x.permute(2, 0, 1) for n, x in enumerate(shown)}
    for _ in range(2):
        forced_step(session, frames, forced)
    gpu.pdl = before
    runner = engine.runners[frame_state(session)]
    (frame,) = runner._frames.values()
    return Opened(runner, frame, shown, pictures)


def graph_us(opened: Opened) -> float:
    """Time a frame's CUDA graph as it is used."""
    key = next(iter(opened.runner._frames)), False
    opened.runner._replay(opened.frame, *key)
    (graph,) = opened.runner._graphs[key]
    rounds = []
    for _ in range(REPLAYS):
        opened.change()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph()
        end.record()
        end.synchronize()
        rounds.append(start.elapsed_time(end) * 1e3)
    return median(rounds)


def parts_of(fast: CompiledModel, frame: Frame) -> list[tuple[Part, list[Launch]]]:
    """Name the parts of a frame's work, in order."""
    out = []
    for number, (index, work) in enumerate(frame.work):
        launches = [item for item in work if isinstance(item, Launch)]
        if index is None:
            part = Part("counting" if number else "input gate", "")
        else:
            step = fast.plan.steps[index]
            value, source = fast.plan.values[step.output], fast.plan.values[step.inputs[0]]
            size = "x".join(map(str, value.size))
            name = f"{step.op.describe()} {source.channels}->{value.channels} at {size}"
            part = Part(f"{index} {name}", size)
        part.launches = len(launches)
        out.append((part, launches))
    return out


def profiled_us(opened: Opened, launches: list[Launch]) -> list[float]:
    """Time each kernel of a frame, median over frames."""
    wanted = [launch.kernel.fn.__name__ for launch in launches]
    rounds = []
    for _ in range(FRAMES):
        opened.change()
        with profile(activities=[ProfilerActivity.CUDA]) as found:
            for launch in launches:
                launch()
            torch.cuda.synchronize()
        events = sorted(found.events(), key=lambda e: e.time_range.start)
        seen = [e for e in events if e.name in wanted]
        if [e.name for e in seen] != wanted:
            raise SystemExit(f"the profiler saw {len(seen)} of {len(wanted)} kernels")
        rounds.append([e.time_range.elapsed_us() for e in seen])
    return [median(times) for times in zip(*rounds, strict=True)]


def measure(fast: CompiledModel, streams: int, share: float) -> dict[str, Any]:
    """Take one frame apart."""
    whole_us = graph_us(open_frame(fast, streams, share, pdl=True))
    opened = open_frame(fast, streams, share, pdl=False)
    parts = parts_of(fast, opened.frame)
    launches = [launch for _, part in parts for launch in part]
    times = iter(profiled_us(opened, launches))
    for part, own in parts:
        for launch in own:
            part.us[KINDS.get(launch.kernel.fn.__name__, "other")] += next(times)
    return {
        "streams": streams, "share": share, "graph_us": whole_us,
        "lanes": opened.frame.lanes.count, "parts": [vars(part) for part, _ in parts],
    }  # fmt: skip


def show(found: Mapping[str, Any], every: bool) -> None:
    """Print a frame's parts as a Markdown table."""
    rows: dict[str, Part] = {}
    for number, made in enumerate(found["parts"]):
        part = Part(**made)
        key = part.name if every or not part.size else f"steps at {part.size}"
        if not part.size:
            key = f"{part.name}{number if every else ''}".rstrip("0123456789")
        row = rows.setdefault(key, Part(key, part.size))
        row.launches += part.launches
        for column in COLUMNS:
            row.us[column] += part.us[column]
    total = Part("all", "", sum(r.launches for r in rows.values()))
    total.us = {column: sum(r.us[column] for r in rows.values()) for column in COLUMNS}
    lanes = f", {found['lanes']} lanes" if found["lanes"] > 1 else ""
    each_us = (found["graph_us"] - sum(total.us.values())) / total.launches
    print(f"\n{found['streams']} streams, {found['share']:.0%} active{lanes}: ")
    print(f"graph {found['graph_us']:.0f} us, kernels one by one {sum(total.us.values()):.0f}\n")
    print("| part | launches | launch | " + " | ".join(COLUMNS) + " | all |")
    print("|---" * (len(COLUMNS) + 4) + "|")
    for row in (*rows.values(), total):
        launch_us = each_us * row.launches
        cells = [f"{row.us[column]:.1f}" for column in COLUMNS]
        all_us = sum(row.us.values()) + launch_us
        print(
            f"| {row.name} | {row.launches} | {launch_us:.1f} | "
            + " | ".join(cells) + f" | {all_us:.1f} |"
        )  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description="where a frame's time goes on this GPU")
    parser.add_argument("out", type=Path, nargs="?")
    parser.add_argument("--model", default="timm:resnet50")
    parser.add_argument("--dtype", default="fp16", choices=[d.value for d in Dtype])
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--active", type=float, default=0.05)
    parser.add_argument("--all", action="store_true", help="print every step")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        print("PyTorch finds no GPU", file=sys.stderr)
        return 2
    sys.path.insert(0, str(Path.cwd()))
    loaded = load_model(args.model, None, size=SIZE)
    loaded.model.cuda()
    pictures = np.stack([made_frame(SIZE, 3, seed) for seed in range(2)])
    fast = compile_loaded(
        loaded, pictures, tolerance=0.04, engine=Engine.triton, dtype=Dtype(args.dtype),
        profile=None,
    )  # fmt: skip
    print(f"{loaded.name}, {args.dtype}, {SIZE[0]}x{SIZE[1]}, {torch.cuda.get_device_name()}")
    found = [measure(fast, streams, args.active) for streams in args.streams]
    for record in found:
        show(record, args.all)
    if args.out is not None:
        args.out.write_text(json.dumps(found, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
