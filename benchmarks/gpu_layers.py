"""Time single 3x3 layers on the triton engine: convolution and selection, against cuDNN in fp16.

    python benchmarks/gpu_layers.py [OUT.json]

A layer's time is what a CUDA graph of ten of them takes longer than one of two, over eight. The
goals come from a trial kernel, conv and select, on an H200: no slower than it; with 16 streams and
256 or 512 channels 1.5 times faster.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from torch import nn

import torchdelta
from torchdelta.bench.forced import forced_masks
from torchdelta.engines.triton.engine import TritonEngine
from torchdelta.runtime.inspect import frame_state
from torchdelta.runtime.measure import forced_step

# streams, channels, rows, columns, us of the trial kernel at 5 and 20 % active
LAYERS = (
    (1, 64, 160, 240, 4.3, 5.1),
    (1, 256, 40, 60, 5.8, 9.2),
    (1, 512, 20, 30, 6.4, 8.1),
    (16, 64, 160, 240, 11.4, 36.5),
    (16, 256, 40, 60, 11.5, 21.5),
    (16, 512, 20, 30, 14.6, 26.7),
    (64, 128, 80, 120, 21.1, 88.0),
)
SHARES = (0.05, 0.2)
FEW, MANY = 2, 10
ROUNDS, REPLAYS = 9, 20


def replays_us(run: Callable[[], object]) -> float:
    """Time one replay of what is on the device, median over rounds."""
    out = []
    for _ in range(ROUNDS):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        begin.record()
        for _ in range(REPLAYS):
            run()
        end.record()
        torch.cuda.synchronize()
        out.append(begin.elapsed_time(end) / REPLAYS * 1e3)
    return median(out)


def chain(channels: int, layers: int) -> nn.Sequential:
    """Make a network of 3x3 convolutions behind a first one."""
    torch.manual_seed(0)
    parts: list[nn.Module] = [nn.Conv2d(3, channels, 1)]
    for _ in range(layers):
        parts += [nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*parts).eval().cuda()


def ours_us(streams: int, channels: int, size: tuple[int, int], layers: int, share: float) -> float:
    """Time the graph of a forced frame."""
    fast = torchdelta.compile(
        chain(channels, layers), torch.rand(1, 3, *size, device="cuda"), input_range=(0, 1),
        engine="triton", dtype=torch.float16, tolerance=0.04,
    )  # fmt: skip
    session = fast.session(slots=streams)
    assert isinstance(session.engine, TritonEngine)
    frames = [
        {str(n): torch.randint(0, 256, (3, *size), dtype=torch.uint8, device="cuda")
         for n in range(streams)}
        for _ in range(2)
    ]  # fmt: skip
    forced = forced_masks(fast.plan, share, fast.device)
    for turn in range(4):
        forced_step(session, frames[turn % 2], forced)
    torch.cuda.synchronize()
    # the session's last graph: that of forced frames
    runner = session.engine.runners[frame_state(session)]
    (graph,) = list(runner._graphs.values())[-1]
    return replays_us(graph)


def cudnn_us(streams: int, channels: int, size: tuple[int, int]) -> float:
    """Time one dense layer: a CUDA graph of eight in fp16, channels last."""
    torch.backends.cudnn.benchmark = True
    model = chain(channels, MANY - FEW)[1:].half().to(memory_format=torch.channels_last)
    x = torch.rand(streams, channels, *size, device="cuda", dtype=torch.float16)
    x = x.to(memory_format=torch.channels_last)
    with torch.no_grad():
        for _ in range(3):
            model(x)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            model(x)
    return replays_us(graph.replay) / (MANY - FEW)


def main() -> int:
    """Measure all layers and print them as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, nargs="?")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("PyTorch finds no GPU", file=sys.stderr)
        return 2
    print(torch.cuda.get_device_name(), torch.__version__)
    print("| streams | layer | cuDNN us | active | ours us | trial us | trial / ours |")
    print("|---|---|---|---|---|---|---|")
    found = []
    for streams, channels, h, w, *trials in LAYERS:
        dense = cudnn_us(streams, channels, (h, w))
        for share, trial in zip(SHARES, trials, strict=True):
            few, many = (ours_us(streams, channels, (h, w), n, share) for n in (FEW, MANY))
            ours = (many - few) / (MANY - FEW)
            found.append(
                {"streams": streams, "channels": channels, "size": (h, w), "share": share,
                 "cudnn_us": dense, "ours_us": ours, "trial_us": trial}
            )  # fmt: skip
            print(
                f"| {streams} | {channels} channels, {h}x{w} | {dense:.1f} | {share:.0%} | "
                f"{ours:.1f} | {trial} | {trial / ours:.2f} |",
                flush=True,
            )
    if options.out is not None:
        options.out.write_text(json.dumps(found, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
