"""Run op cases of the triton engine on a GPU under NVIDIA's compute-sanitizer.

    python tools/sanitize_gpu.py [--tool memcheck|racecheck] [--all] [CASE ...]

Each case runs a few frames in each dtype, kernel by kernel (no CUDA graphs, so that a finding names
its kernel), and its last result is compared with the stock operation. PyTorch's cache of memory is
off, or a read beyond a buffer would end in another one. Exits with 1 on any finding.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TOOLS = ("memcheck", "racecheck")
# what compute-sanitizer exits with where it found something
FINDINGS = 99
# of each kernel and each of its branches one; --all runs every case
REPRESENTATIVE = [
    "conv-1x1", "conv-3x3", "conv-3x3-17-65", "conv-3x3-s2-16-130", "conv-1x1-130", "conv-3x3-370",
    "conv-groups-of-40", "conv-depthwise-33-s2", "conv-depthwise-5-130-s2", "conv-of-slice",
    "conv-residual-70", "conv-7x7-s2", "linear", "deconv-4x4-s2", "deconv-17-70", "maxpool-70",
    "maxpool-13-s1", "avgpool-70", "adaptive-avg-70", "global-avg", "squeeze-excite-70", "prelu-70",
    "act-silu-130", "bn-70", "mul-channel", "add-per-position", "rsub-const", "softmax-70",
    "bilinear-70", "nearest-70", "pad-reflect", "channel-shuffle-130", "pixel-shuffle-280",
    "pixel-unshuffle-17", "flatten", "cat-twice-33", "transpose",
]  # fmt: skip
KINDS = ("first", "pixel", "same", "patch", "all", "corner")


def run_cases(cases: list[str]) -> None:
    """Run op cases in this process."""
    sys.path.insert(0, str(ROOT / "tests"))
    import torch

    import torchdelta
    from cases import OP_CASES
    from support import compiled, make_engine, move
    from torchdelta.runtime.session import Session

    limits = {torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 2e-2}
    for case in cases:
        fast, model = compiled(case)
        for dtype, limit in limits.items():
            # measuring each step keeps the engine from capturing graphs
            engine = make_engine("triton", fast.plan, fast.device, dtype)
            session = Session(engine, 2, 0.02, torchdelta.Profile({"*": 0.0}), timed=True)
            generator = torch.Generator().manual_seed(1)
            x = torch.rand(1, *OP_CASES[case][2], generator=generator).to(dtype).float()
            for t, kind in enumerate(KINDS):
                x = move(x, kind, generator).to(dtype).float()
                frames = {"s": x.cuda()} if t % 2 else {"s": x, "t": 1 - x}
                session.step(frames)
            session.refresh("t")
            out = session.step({"s": x, "t": x.cuda()})["t"].output
            with torch.no_grad():
                error = torchdelta.relative_error(out, model(x))
            if not error <= limit:
                raise SystemExit(f"{case} {dtype}: off by {error:.3g}, allowed are {limit:g}")
        print(f"ran {case}", flush=True)
    torch.cuda.synchronize()


def check(tool: str, cases: list[str]) -> bool:
    """Run cases under one tool; prints the verdict and returns whether it is clean."""
    command = [
        "compute-sanitizer", "--tool", tool, "--error-exitcode", str(FINDINGS),
        "--print-limit", "20", sys.executable, str(Path(__file__).resolve()), "--inside", *cases,
    ]  # fmt: skip
    env = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1", "CUDA_LAUNCH_BLOCKING": "1"}
    print(f"{tool}: {len(cases)} cases", flush=True)
    done = subprocess.Popen(
        command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert done.stdout is not None
    summary = ran = ""
    count = 0
    for line in done.stdout:
        print(line, end="", flush=True)
        if re.search(r"(ERROR|RACECHECK) SUMMARY", line):
            summary = line.split("SUMMARY:")[-1].strip()
        if line.startswith("ran "):
            count, ran = count + 1, line.split()[1]
    code = done.wait()
    # without a summary the tool itself did not work
    none_found = re.match(r"0 (errors|hazards)", summary) is not None
    clean = code == 0 and none_found and count == len(cases)
    where = "" if count == len(cases) else f", stopped after {ran or 'nothing'}"
    print(
        f"{tool}: {'CLEAN' if clean else 'FINDINGS'}: {summary or 'no summary'}; {count} of "
        f"{len(cases)} cases ran{where}; exit code {code}",
        flush=True,
    )
    return clean


def main() -> int:
    """Return the exit code."""
    parser = argparse.ArgumentParser(description="op cases under compute-sanitizer")
    parser.add_argument("cases", nargs="*", metavar="CASE")
    parser.add_argument("--tool", choices=TOOLS, help="default: one after the other")
    parser.add_argument("--all", action="store_true", help="every op case (an hour)")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    cases = args.cases or REPRESENTATIVE
    if args.all:
        sys.path.insert(0, str(ROOT / "tests"))
        from cases import OP_CASES

        cases = list(OP_CASES)
    if args.inside:
        run_cases(cases)
        return 0
    if shutil.which("compute-sanitizer") is None:
        print("compute-sanitizer is not in PATH: it comes with the CUDA toolkit", file=sys.stderr)
        return 2
    verdicts = [check(tool, cases) for tool in ([args.tool] if args.tool else TOOLS)]
    return 0 if all(verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
