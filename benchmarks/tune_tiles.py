"""Look for better tiles of the triton engine's convolutions on this GPU.

    python benchmarks/tune_tiles.py [--model timm:resnet50] [--dtype fp16] [--seconds 300]

`choose_blocks` (engines/triton/pack.py) gives each convolution the lengths of lists up to which it
takes its small and its middle tiles. For each number of streams and active share, this moves one of
the two lengths of all convolutions of a kind at a time, and prints what the frame's CUDA graph
gains or loses by it, µs per convolution (below 0: faster). A kind whose numbers are below 0 in
several rows by more than the graph's own spread asks for another rule in `choose_blocks`.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from pathlib import Path

import numpy as np
import torch

from torchdelta.api import CompiledModel
from torchdelta.bench.forced import forced_masks, made_frame
from torchdelta.capture.load import load_model
from torchdelta.cli.compiled import compile_loaded
from torchdelta.cli.options import Dtype, Engine
from torchdelta.engines.triton import pack
from torchdelta.engines.triton.frame import Frame
from torchdelta.engines.triton.gpu import Gpu
from torchdelta.engines.triton.launch import Launch
from torchdelta.engines.triton.runner import Runner
from torchdelta.runtime.inspect import frame_state
from torchdelta.runtime.measure import forced_step

SIZE = (512, 768)
CONDITIONS = ((1, 0.05), (16, 0.05), (16, 0.15), (64, 0.05))
FACTORS = {"small_rows": (0.25, 0.5, 2, 4, 8), "middle_rows": (0.25, 0.5, 2, 4, 8)}
# room for partial sums is made for the longest lists that are tried
MOST = 8
REPLAYS, ROUNDS = 12, 3


def open_frame(fast: CompiledModel, streams: int, share: float) -> tuple[Runner, Frame]:
    """Run some frames with forced active sets; gives what launches them."""
    plain = pack.choose_blocks

    def roomy(gpu: Gpu, packed: pack.Packed, channels: int) -> pack.Blocks:
        blocks = plain(gpu, packed, channels)
        lengths = {name: MOST * getattr(blocks, name) for name in FACTORS}
        return dataclasses.replace(blocks, **lengths)

    session = fast.session(slots=streams)
    frames = {
        str(n): torch.from_numpy(made_frame(SIZE, 3, n)).permute(2, 0, 1).to(fast.device)
        for n in range(streams)
    }
    forced = forced_masks(fast.plan, share, fast.device)
    pack.choose_blocks = roomy
    try:
        forced_step(session, frames, forced)
    finally:
        pack.choose_blocks = plain
    # these two hold all memory that the launches name, also when the session is gone
    runner = session.engine.runners[frame_state(session)]
    (frame,) = runner._frames.values()
    for launch in convolutions(frame):
        for name in FACTORS:
            launch.args[name] //= MOST
    for _ in range(3):
        forced_step(session, frames, forced)
    return runner, frame


def convolutions(frame: Frame) -> list[Launch]:
    """List the launches that choose among tiles."""
    launches = [item for _, part in frame.work for item in part if isinstance(item, Launch)]
    return [launch for launch in launches if "small_rows" in launch.args]


def graph_us(runner: Runner, frame: Frame) -> float:
    """Capture a frame as it would run now, and time it: the fastest of some rounds."""
    replay = runner._graph([item for _, part in frame.work for item in part])
    replay()
    rounds = []
    for _ in range(ROUNDS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(REPLAYS):
            replay()
        end.record()
        end.synchronize()
        rounds.append(start.elapsed_time(end) / REPLAYS * 1e3)
    return min(rounds)


def kinds(fast: CompiledModel, frame: Frame) -> dict[str, list[Launch]]:
    """Group convolutions that are alike."""
    found: dict[str, list[Launch]] = {}
    for launch in convolutions(frame):
        assert launch.step is not None
        step = fast.plan.steps[launch.step]
        out, source = fast.plan.values[step.output], fast.plan.values[step.inputs[0]]
        h, w = out.size
        name = (
            f"{step.op.describe()} {source.channels}->{out.channels} at {h}x{w}, sum in "
            f"{launch.args['SPLITS']}, lists up to {launch.args['small_rows']} and "
            f"{launch.args['middle_rows']}"
        )
        found.setdefault(name, []).append(launch)
    return found


def try_factor(
    runner: Runner, frame: Frame, launches: list[Launch], name: str, factor: float
) -> float:
    """Time a frame with one length of some convolutions changed."""
    before = [dict(launch.args) for launch in launches]
    for launch in launches:
        args = launch.args
        args[name] = int(args[name] * factor)
        args["middle_rows"] = max(args["small_rows"], args["middle_rows"])
    try:
        return graph_us(runner, frame)
    finally:
        for launch, args in zip(launches, before, strict=True):
            launch.args.update(args)


def main() -> int:
    parser = argparse.ArgumentParser(description="tiles of convolutions on this GPU")
    parser.add_argument("--model", default="timm:resnet50")
    parser.add_argument("--dtype", default="fp16", choices=[d.value for d in Dtype])
    parser.add_argument("--seconds", type=float, default=300, help="begin nothing later")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        print("PyTorch finds no GPU", file=sys.stderr)
        return 2
    stop_s = time.monotonic() + args.seconds
    sys.path.insert(0, str(Path.cwd()))
    loaded = load_model(args.model, None, size=SIZE)
    pictures = np.stack([made_frame(SIZE, 3, seed) for seed in range(2)])
    fast = compile_loaded(
        loaded, pictures, tolerance=0.04, engine=Engine.triton, dtype=Dtype(args.dtype),
        profile=None,
    )  # fmt: skip
    print(f"{loaded.name}, {args.dtype}, {SIZE[0]}x{SIZE[1]}, {torch.cuda.get_device_name()}")
    for streams, share in CONDITIONS:
        runner, frame = open_frame(fast, streams, share)
        base, again = graph_us(runner, frame), graph_us(runner, frame)
        print(f"\n{streams} streams, {share:.0%} active: graph {base:.1f} us, again {again:.1f}")
        for kind, launches in kinds(fast, frame).items():
            if time.monotonic() > stop_s:
                return 0
            print(f"  {len(launches)} x {kind}")
            for name, factors in FACTORS.items():
                gains = [
                    (try_factor(runner, frame, launches, name, f) - base) / len(launches)
                    for f in factors
                ]
                cells = (f"x{f:g} {gain:+.1f}" for f, gain in zip(factors, gains, strict=True))
                print(f"    {name}: " + ", ".join(cells), flush=True)
        del runner, frame
    return 0


if __name__ == "__main__":
    sys.exit(main())
