"""Measure the triton engine for docs/performance.md.

    python benchmarks/gpu_figures.py DATA OUT [--only TEXT] [--seconds N] [--list] [--tables]

DATA is the folder with clips/ and weights/; OUT keeps one JSON file per row, and rows that are
there already are not measured again. Each row is what `torchdelta bench` measures, by the same
code; but one process does all rows of a network, so that it is compiled once and its peers are
prepared once for each number of streams. `--only` takes the rows whose file name holds the text,
`--seconds` begins no row later than that, `--list` names the rows that are missing, `--tables`
only prints.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from torchdelta.api import CompiledModel
from torchdelta.bench.peers import Lineup, parse_peers
from torchdelta.bench.report import write_json
from torchdelta.capture.load import LoadedModel, load_model
from torchdelta.cli.bench import BenchOptions, measure
from torchdelta.cli.clip import Clip, Made, Material
from torchdelta.cli.compiled import compile_loaded
from torchdelta.cli.options import Dtype, Engine

ROOT = Path(__file__).resolve().parents[1]
SIZE = (512, 768)
TOLERANCE = 0.04
# at which the denoiser's image keeps 45 dB against dense
TOLERANCES = {
    ("DnCNN-17", "room"): 0.0275,
    ("DnCNN-17", "pedestrians"): 0.0215,
    ("DnCNN-17", "road"): 0.024,
}
CLIPS = {
    "room": "room_768x432.mp4",
    "lab": "lab_1920x1080.mp4",
    "pedestrians": "pedestrians_768x576.avi",
    "juggle": "juggle_1280x720.mp4",
    "road": "road_640x352.mp4",
}
# spec, weights, size of the frames (None: the clip's own)
NETWORKS: dict[str, tuple[str, str | None, tuple[int, int] | None]] = {
    "ResNet-50": ("timm:resnet50", None, SIZE),
    "MobileNetV2": ("timm:mobilenetv2_100", None, SIZE),
    "HRNet-W32": ("timm:hrnet_w32", None, SIZE),
    "DnCNN-17": ("examples.denoise:dncnn", "weights/dncnn17_gray_sigma25.pth", None),
}
# the goals: speedup over the best dense peer by network, share and streams
GOALS = {
    "ResNet-50": {0.05: {1: 3.5, 16: 10, 64: 14}, 0.15: {1: 3, 16: 5.5, 64: 6}},
    "HRNet-W32": {0.05: {1: 2.5, 16: 8, 64: 10}},
    "MobileNetV2": {0.05: {1: 1.5, 16: 4, 64: 6}},
}
CLIP_STREAMS, CLIP_FRAMES = 16, 60
CALIBRATION_FRAMES = 2
OPENING_STREAMS = 16
# opening is done when the kernels have run once and the graph has been captured and run
OPENING_FRAMES = 2


@dataclass(frozen=True)
class Row:
    """One measurement; `active` or `clip` says of what, neither: opening a session."""

    table: str
    network: str
    streams: int
    frames: int = 0
    active: float | None = None
    clip: str | None = None

    @property
    def name(self) -> str:
        """Name of its JSON file."""
        share = None if self.active is None else f"{self.active:.0%}".replace("%", "pct")
        parts = (self.table, self.network, str(self.streams), self.clip, share)
        return "-".join(part for part in parts if part) + ".json"

    @property
    def tolerance(self) -> float:
        """Give the tolerance that it is measured with."""
        return TOLERANCES.get((self.network, self.clip or ""), TOLERANCE)


def rows() -> list[Row]:
    """All rows; those of one network and number of streams stand together."""
    out = []
    for network in ("ResNet-50", "MobileNetV2", "HRNet-W32"):
        for streams in (16, 1, 64):
            # with 64 streams a frame of the reference takes a third of a second
            frames = 9 if streams == 64 else 21
            forced = [Row("forced", network, streams, frames, share) for share in (0.05, 0.15)]
            whole = Row("all", network, streams, frames, 1.0)
            idle = Row("idle", network, streams, frames, 0.0)
            clips = [Row("clips", network, CLIP_STREAMS, CLIP_FRAMES, clip=clip) for clip in CLIPS]
            out += forced
            if network != "MobileNetV2" and streams != 64:
                out.append(whole)
            if network == "ResNet-50" and streams == 16:
                out.append(idle)
            if network != "MobileNetV2" and streams == CLIP_STREAMS:
                out += clips
        if network == "ResNet-50":
            out.append(Row("opening", network, OPENING_STREAMS))
    return out + [Row("clips", "DnCNN-17", CLIP_STREAMS, CLIP_FRAMES, clip=clip) for clip in CLIPS]


@dataclass(frozen=True)
class Setup:
    """Where everything is, and what the command line asks for."""

    data: Path
    out: Path
    engine: Engine
    dtype: Dtype
    size: tuple[int, int] | None
    peers: str | None

    def clip(self, name: str) -> str:
        """Give the file of a clip."""
        return str(self.data / "clips" / "static" / CLIPS[name])

    def load(self, network: str) -> LoadedModel:
        """Build a network, on the device."""
        spec, weights, size = NETWORKS[network]
        file = self.data / weights if weights else None
        loaded = load_model(spec, file, size=self.size or size)
        loaded.model.to(device())
        return loaded

    def material(self, row: Row, loaded: LoadedModel) -> Material:
        """Give the frames of a row."""
        size = self.size or NETWORKS[row.network][2]
        if row.clip is not None:
            return Clip(
                self.clip(row.clip), channels=loaded.channels, size=size, streams=row.streams,
                frames=row.frames,
            )  # fmt: skip
        assert size is not None
        assert row.active is not None
        return Made(
            channels=loaded.channels, size=size, streams=row.streams, share=row.active,
            frames=row.frames,
        )  # fmt: skip

    def calibration(self, material: Material, loaded: LoadedModel) -> np.ndarray:
        """Give frames of all clips, so that a network without weights is the same in all rows."""
        if loaded.has_weights or not (self.data / "clips").is_dir():
            return material.peek(CALIBRATION_FRAMES * len(CLIPS))
        clips = [
            Clip(
                self.clip(name), channels=loaded.channels, size=material.size, streams=1,
                frames=CALIBRATION_FRAMES,
            )
            for name in CLIPS
        ]  # fmt: skip
        return np.concatenate([clip.peek(CALIBRATION_FRAMES) for clip in clips])

    def compile(self, loaded: LoadedModel, frames: np.ndarray, tolerance: float) -> CompiledModel:
        """Compile a network for the size of the frames."""
        return compile_loaded(
            loaded, frames, tolerance=tolerance, engine=self.engine, dtype=self.dtype, profile=None
        )


def device() -> torch.device:
    """Give the device that everything runs on."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def measure_network(wanted: Sequence[Row], setup: Setup, stop_s: float) -> None:
    """Measure the rows of one network and write their files."""
    log = Console(stderr=True)

    def say(text: str) -> None:
        print(f"  {text}", flush=True)

    loaded = setup.load(wanted[0].network)
    kinds, asked = parse_peers(setup.peers, device(), float32=setup.dtype is Dtype.fp32)
    compiled: CompiledModel | None = None
    lineup = Lineup(kinds, asked, say)
    made_for: tuple[tuple[int, int], float] | None = None
    for row in wanted:
        if time.monotonic() > stop_s:
            print("time is up", flush=True)
            return
        print(row.name, flush=True)
        start = time.monotonic()
        material = setup.material(row, loaded)
        if compiled is None or made_for != (material.size, row.tolerance):
            made_for = material.size, row.tolerance
            # what ran at the other size gives its memory back
            compiled = None
            lineup.forget()
            clear()
            compiled = setup.compile(loaded, setup.calibration(material, loaded), row.tolerance)
            say(f"compiled after {time.monotonic() - start:.0f} s")
        spec, weights, _ = NETWORKS[row.network]
        options = BenchOptions(
            model=spec, weights=Path(weights) if weights else None, size=material.size,
            source=row.clip, active=row.active, streams=row.streams, engine=setup.engine,
            dtype=setup.dtype, tolerance=row.tolerance, frames=row.frames,
        )  # fmt: skip
        try:
            record = measure(options, loaded, compiled, material, lineup, log)
        except Exception:
            # the other rows may still run; this one is tried again next time
            traceback.print_exc()
            continue
        finally:
            # sessions whose state is in a cycle of references
            clear()
        write_json(setup.out / row.name, record)
        best = f" {record['best_peer']} {number(record['speedup'])}x" if record["speedup"] else ""
        say(f"{number(record['ours_ms'])} ms{best}; {time.monotonic() - start:.0f} s")


def clear() -> None:
    """Give memory back that nobody uses any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def measure_opening(row: Row, setup: Setup) -> None:
    """Open a session in fresh processes: with an empty cache of Triton's, then with a full one."""
    print(row.name, flush=True)
    record: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in ("cold", "warm"):
            result = Path(folder) / f"{name}.json"
            command = [
                sys.executable, str(Path(__file__).resolve()), str(setup.data), str(result),
                "--open", row.network, "--engine", setup.engine.value, "--dtype", setup.dtype.value,
                *(["--size", f"{setup.size[0]}x{setup.size[1]}"] if setup.size else []),
            ]  # fmt: skip
            cache = {"TRITON_CACHE_DIR": str(Path(folder) / "triton")}
            subprocess.run(command, cwd=ROOT, env={**os.environ, **cache}, check=True)
            record[name] = json.loads(result.read_text())
            print(f"  {name}: {record[name]}", flush=True)
    write_json(setup.out / row.name, record)


def open_session(network: str, setup: Setup) -> None:
    """Measure, in this process, compiling a network and opening a session; writes `setup.out`."""
    loaded = setup.load(network)
    row = Row("opening", network, OPENING_STREAMS, OPENING_FRAMES, 0.05)
    material = setup.material(row, loaded)
    times_s = [time.perf_counter()]
    compiled = setup.compile(loaded, material.peek(1), row.tolerance)
    times_s.append(time.perf_counter())
    session = compiled.session(slots=row.streams)
    for moment in material.moments():
        session.step({str(n): frame for n, frame in enumerate(moment.frames)})
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times_s.append(time.perf_counter())
    compile_s, *frames_s = np.diff(times_s).tolist()
    record = {"compile_s": compile_s, "opening_s": sum(frames_s), "frames_s": frames_s}
    write_json(setup.out, record)


# the tables


def number(x: float | None, digits: int = 3) -> str:
    """Write a number with some significant digits."""
    if x is None:
        return ""
    return f"{x:.0f}" if abs(x) >= 10 ** (digits - 1) else f"{x:.{digits}g}"


def mean(gains: Sequence[float]) -> str:
    """Write a geometric mean."""
    return number(math.exp(sum(map(math.log, gains)) / len(gains)))


def show(title: str, head: Sequence[str], lines: Sequence[Sequence[str]]) -> None:
    """Print one table as Markdown, where it has lines."""
    if lines:
        print(f"\n### {title}\n\n| {' | '.join(head)} |\n" + "|---" * len(head) + "|")
        for line in lines:
            print(f"| {' | '.join(line)} |")


def dense_cells(r: dict[str, Any]) -> list[str]:
    """Write ours (a step over the streams too), the peers, the reference, and the speedups."""
    peers = [number(r["peers_ms"].get(name)) for name in ("torch", "cudagraph", "compile")]
    return [
        number(r["ours_ms"]), number(r["ours_ms"] * r["streams"]), *peers,
        number(r["reference_ms"]), number(r["speedup"]), number(r["reference_speedup"]),
    ]  # fmt: skip


DENSE_HEAD = (
    "ours ms", "ours, step", "eager", "CUDA graph", "torch.compile", "cuDNN fp32", "speedup",
    "over fp32",
)  # fmt: skip


def tables(found: dict[Row, dict[str, Any]]) -> None:
    """Print everything that was measured; times are ms per frame of one stream."""
    records = {row: r for row, r in found.items() if row.table != "opening"}
    for r in list(records.values())[:1]:
        print(f"{r['device']}, {r['dtype']}, {r['versions']}, commit {r['commit']}")
    for commit in sorted({r["commit"] for r in records.values()})[1:]:
        print(f"and commit {commit}")
    lines = []
    for row, r in records.items():
        if row.table == "forced" and row.active is not None:
            goal = GOALS.get(row.network, {}).get(row.active, {}).get(row.streams)
            lines.append(
                [row.network, f"{row.active:.0%}", str(row.streams), *dense_cells(r), number(goal),
                 f"{r['mac_share']:.1%}", number(r["efficiency"], 2)]
            )  # fmt: skip
    head = ["network", "active", "streams", *DENSE_HEAD, "goal", "MAC share", "efficiency"]
    show("Forced activity, medians", head, lines)
    for table, title in (("all", "Every pixel changed"), ("idle", "Unchanged frame")):
        lines = [
            [row.network, str(row.streams), *dense_cells(r),
             f"{1 / r['speedup']:.1%}" if r["speedup"] else ""]
            for row, r in records.items() if row.table == table
        ]  # fmt: skip
        show(f"{title}, medians", ["network", "streams", *DENSE_HEAD, "of best dense"], lines)
    clip_tables({row: r for row, r in records.items() if row.table == "clips"})
    lines = [
        [row.network, str(row.streams), f"{r['values_bytes'] / 2**20:.0f}",
         f"{r['state_bytes'] / 2**20:.0f}", f"{r['state_bytes'] / r['values_bytes']:.3f}"]
        for row, r in records.items() if row.clip or row.active == 0.05
    ]  # fmt: skip
    head = ["network", "streams", "published values MiB", "with stamps, lists, sums MiB", "ratio"]
    show("Memory", head, list(dict.fromkeys(map(tuple, lines))))
    lines = [
        [row.network, str(row.streams), name, f"{r[name]['compile_s']:.1f}",
         f"{r[name]['opening_s']:.1f}", ", ".join(f"{s:.2f}" for s in r[name]["frames_s"])]
        for row, r in found.items() if row.table == "opening" for name in r
    ]  # fmt: skip
    head = ["network", "streams", "Triton's cache", "compile s", "opening s", "first frames s"]
    show("Opening", head, lines)


def clip_tables(records: dict[Row, dict[str, Any]]) -> None:
    """Print the clips, and the means of their speedups."""
    lines = []
    for row, r in records.items():
        quality = r["quality"]
        psnr = quality["psnr_db"] and f"{quality['psnr_db']['mean']:.1f} dB"
        errors = [f"{quality[name]['mean']:.3f}" for name in ("error", "layer_error")]
        lines.append(
            [row.network, f"{row.clip}, tolerance {r['tolerance']}", *dense_cells(r),
             number(r["speedup_median"]), f"{r['changed_input']:.1%}", f"{r['mac_share']:.1%}",
             number(r["efficiency"], 2), *errors, psnr or ""]
        )  # fmt: skip
    head = ["network", "clip", *DENSE_HEAD, "of medians", "changed input", "MAC share"]
    show(
        f"Clips, {CLIP_STREAMS} streams, {CLIP_FRAMES} frames of each, means",
        [*head, "efficiency", "error", "layer error", "PSNR"], lines,
    )  # fmt: skip
    for name in ("all", *NETWORKS):
        mine = [r for row, r in records.items() if name in ("all", row.network)]
        gains = [r["speedup"] for r in mine if r["speedup"]]
        over = [r["reference_speedup"] for r in mine if r["reference_speedup"]]
        if gains:
            print(f"\n{name}: geometric mean of the speedups {mean(gains)}" +
                  (f", over cuDNN fp32 {mean(over)}" if over else ""))  # fmt: skip


def main() -> None:
    """Measure what is missing and print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--only", default="", help="rows whose file name holds this text")
    parser.add_argument("--seconds", type=float, default=math.inf, help="begin no row after that")
    parser.add_argument("--tables", action="store_true", help="measure nothing")
    parser.add_argument("--list", action="store_true", help="name what is missing")
    parser.add_argument("--engine", type=Engine, default=Engine.triton)
    parser.add_argument("--dtype", type=Dtype, default=Dtype.fp16)
    parser.add_argument("--peers", help="as for torchdelta bench")
    parser.add_argument("--size", help="HxW, to try the script")
    parser.add_argument("--open", metavar="NETWORK", help=argparse.SUPPRESS)
    options = parser.parse_args()
    stop_s = time.monotonic() + options.seconds
    h, w = map(int, options.size.split("x")) if options.size else (0, 0)
    setup = Setup(
        options.data.resolve(), options.out.resolve(), options.engine, options.dtype,
        (h, w) if options.size else None, options.peers,
    )  # fmt: skip
    os.chdir(ROOT)
    # the denoiser is in examples/
    sys.path.insert(0, str(ROOT))
    if options.open:
        open_session(options.open, setup)
        return
    setup.out.mkdir(parents=True, exist_ok=True)
    wanted = [row for row in rows() if options.only in row.name]
    missing = [row for row in wanted if not (setup.out / row.name).exists()]
    if options.list:
        print("\n".join(row.name for row in missing))
        return
    if not options.tables:
        for row in missing:
            if row.table == "opening" and time.monotonic() < stop_s:
                measure_opening(row, setup)
        for network in NETWORKS:
            mine = [row for row in missing if row.network == network and row.table != "opening"]
            if mine and time.monotonic() < stop_s:
                measure_network(mine, setup, stop_s)
    paths = {row: setup.out / row.name for row in wanted}
    tables({row: json.loads(path.read_text()) for row, path in paths.items() if path.exists()})


if __name__ == "__main__":
    main()
