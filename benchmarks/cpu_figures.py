"""Measure the cpu engine for docs/performance.md: one `torchdelta bench` run per row.

    python benchmarks/cpu_figures.py DATA OUT [--only TEXT] [--quick] [--tables]

DATA is the folder with clips/ and weights/; OUT keeps one JSON file per run, and runs that are
there already are not repeated. Run it on a machine that does nothing else. `--tables` only prints.
`--quick` leaves out torch.compile where it takes minutes to get ready, and shows the denoiser the
beginning of each clip: an hour instead of many. Its rows have files of their own.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SIZE = ("--size", "512x768")
RUNTIMES = "onnxruntime,openvino"
ALL_PEERS = f"compile,{RUNTIMES}"
LITE0 = "weights/tf_efficientnet_lite0_imagenet_fp16.pth"
DNCNN = "weights/dncnn17_gray_sigma25.pth"
NETWORKS = {
    "ResNet-50": ("--model", "timm:resnet50", *SIZE),
    "ResNet-18": ("--model", "timm:resnet18", *SIZE),
    "HRNet-W32": ("--model", "timm:hrnet_w32", *SIZE),
    "MobileNetV2": ("--model", "timm:mobilenetv2_100", *SIZE),
    "EfficientNet-Lite0": (
        "--model", "timm:tf_efficientnet_lite0", "--weights", LITE0, *SIZE,
    ),
    "DnCNN-17": ("--model", "examples.denoise:dncnn", "--weights", DNCNN, "--size", "576x768"),
}  # fmt: skip
CLIPS = {
    "room": "room_768x432.mp4",
    "lab": "lab_1920x1080.mp4",
    "pedestrians": "pedestrians_768x576.avi",
    "juggle": "juggle_1280x720.mp4",
    "road": "road_640x352.mp4",
}
# at which the denoiser's image keeps 45 dB against dense
TOLERANCES = {"DnCNN-17": {"room": 0.015, "road": 0.02, "pedestrians": 0.015, "juggle": 0.03}}
# peers that are ready within minutes, where that is not all
LARGE = {("DnCNN-17", "lab"): "onnxruntime"}
# with --quick: the denoiser takes 1 to 14 seconds a frame when dense
QUICK_FRAMES = {
    "DnCNN-17": {"room": 16, "road": 16, "pedestrians": 11, "juggle": 6, "lab": 4},
}
# with --quick: it takes minutes to get ready for the others
QUICKLY_COMPILED = ("ResNet-50", "ResNet-18", "MobileNetV2", "EfficientNet-Lite0")


@dataclass(frozen=True)
class Run:
    """One call of `torchdelta bench`; `table` and `labels` say where its figures go."""

    table: str
    labels: tuple[str, ...]
    options: tuple[str, ...]

    @property
    def file(self) -> str:
        """Name of its JSON file."""
        return "-".join((self.table, *self.labels)).replace(" ", "_").replace("%", "pct") + ".json"


def forced(network: str, share: float, *more: str, frames: int = 13) -> tuple[str, ...]:
    """Options of a run with forced activity."""
    return (*NETWORKS[network], "--active", str(share), "--frames", str(frames), *more)


def clip(network: str, name: str, *, quick: bool) -> tuple[str, ...]:
    """Options of a run on a whole clip; only ResNet-50 has a size of its own."""
    options = NETWORKS[network]
    if network != "ResNet-50":
        options = options[: options.index("--size")]
    options = (*options, "--source", f"clips/static/{CLIPS[name]}")
    tolerance = TOLERANCES.get(network, {}).get(name)
    if tolerance is not None:
        options = (*options, "--tolerance", str(tolerance))
    if network == "DnCNN-17":
        options = (*options, "--peers", LARGE.get((network, name), RUNTIMES))
    else:
        options = (*options, "--peers", RUNTIMES if quick else ALL_PEERS)
    frames = QUICK_FRAMES.get(network, {}).get(name) if quick else None
    return (*options, "--frames", str(frames)) if frames else options


def runs(*, quick: bool) -> list[Run]:
    """All runs, the quick and telling ones first."""
    out = []
    for network in NETWORKS:
        frames = 6 if network == "DnCNN-17" else 13
        for share in (0.05, 0.02, 0.1, 0.25):
            # torch.compile takes a minute or more to get ready: once per network
            once = share == 0.05 and (network in QUICKLY_COMPILED or not quick)
            peers = ALL_PEERS if once else RUNTIMES
            options = forced(network, share, "--peers", peers, frames=frames)
            out.append(Run("forced", (network, f"{share:.0%}"), options))
    for network in ("ResNet-50", "ResNet-18", "DnCNN-17"):
        options = forced(network, 1.0, "--peers", RUNTIMES, frames=6)
        out.append(Run("all", (network,), options))
    # the same frame again and again
    options = forced("ResNet-50", 0.0, "--peers", ALL_PEERS, frames=30)
    out.append(Run("unchanged", ("ResNet-50",), options))
    options = forced("ResNet-50", 0.1, "--dtype", "bf16", "--peers", "openvino")
    out.append(Run("bf16", ("ResNet-50",), options))
    for streams in (1, 16):
        options = forced("ResNet-50", 0.05, "--peers", "none", "--streams", str(streams), frames=8)
        out.append(Run("streams", (f"{streams}",), options))
    for network in ("ResNet-50", "EfficientNet-Lite0", "DnCNN-17"):
        out += [Run("clips", (network, name), clip(network, name, quick=quick)) for name in CLIPS]
    return [replace(run, table=f"{run.table} quick") for run in out] if quick else out


def measure(run: Run, data: Path, folder: Path) -> None:
    """Run the command, unless its figures are there."""
    path = folder / run.file
    if path.exists():
        return
    options = [str(data / o) if o.startswith(("weights/", "clips/")) else o for o in run.options]
    command = [
        sys.executable, "-c", "from torchdelta.cli import main; main()", "bench", *options,
        "--json", str(path),
    ]  # fmt: skip
    print(run.file, flush=True)
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


def number(x: float | None, digits: int = 3) -> str:
    """Write a number with some significant digits."""
    if x is None:
        return ""
    return f"{x:.0f}" if abs(x) >= 10 ** (digits - 1) else f"{x:.{digits}g}"


def peers_text(record: dict) -> str:
    """Write each peer's time."""
    return ", ".join(f"{name} {number(ms)}" for name, ms in record["peers_ms"].items())


def error_text(record: dict) -> str:
    """Write a clip's quality: error against dense, layer error, and PSNR or classes."""
    quality = record.get("quality")
    if not quality:
        return ""
    errors = (number(quality[name]["mean"]) for name in ("error", "layer_error"))
    text = "error {}, layers {}".format(*errors)
    if quality["psnr_db"] is not None:
        psnr_db = quality["psnr_db"]
        text += f", {psnr_db['mean']:.1f} dB (worst {psnr_db['worst']:.1f})"
    if quality["classes"] is not None and quality["classes"]["clear"]:
        text += f", same class {quality['classes']['same']} of {quality['classes']['clear']}"
    return text


def tables(found: dict[Run, dict]) -> None:
    """Print everything that was measured as Markdown."""
    for table in dict.fromkeys(run.table for run in found):
        rows = {run: record for run, record in found.items() if run.table == table}
        first = next(iter(rows.values()))
        print(f"\n### {table}\n\n{first['device']}, {first['threads']} threads, "
              f"{first['versions']}, commit {first['commit']}\n")  # fmt: skip
        print("| | ours ms | median | peers ms | speedup | median | changed input | MAC share "
              "| efficiency | state MiB | frames | quality |\n" + "|---" * 12 + "|")  # fmt: skip
        for run, r in rows.items():
            print(f"| {' '.join(run.labels)} | {number(r['ours_ms'])} "
                  f"| {number(r['ours_ms_median'])} | {peers_text(r)} | {number(r['speedup'])} "
                  f"| {number(r['speedup_median'])} | {r['changed_input']:.1%} "
                  f"| {r['mac_share']:.1%} | {number(r['efficiency'], 2)} "
                  f"| {r['state_bytes'] / 2**20:.0f} | {r['frames']} "
                  f"| {error_text(r)} |")  # fmt: skip
        gains = [r["speedup"] for r in rows.values() if r["speedup"]]
        if gains:
            mean = math.exp(sum(map(math.log, gains)) / len(gains))
            print(f"\ngeometric mean of the speedups: {mean:.2f}")


def main() -> None:
    """Measure what is missing and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--only", default="", help="runs whose file name holds this text")
    parser.add_argument("--quick", action="store_true", help="see above")
    parser.add_argument("--tables", action="store_true")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    wanted = [run for run in runs(quick=options.quick) if options.only in run.file]
    for run in wanted:
        if not options.tables:
            measure(run, options.data.resolve(), options.out.resolve())
    paths = {run: options.out / run.file for run in wanted}
    tables({run: json.loads(path.read_text()) for run, path in paths.items() if path.exists()})


if __name__ == "__main__":
    main()
