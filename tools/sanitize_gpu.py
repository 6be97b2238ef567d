"""Run the triton engine on a GPU under NVIDIA's compute-sanitizer.

    python tools/sanitize_gpu.py [--tool memcheck|racecheck] [--part K/N] [CASE ...]

A case is an op case, or one of SESSIONS: networks whose steps share lists, with forced sets, cells,
windows that move, and a CUDA graph. Each runs a few frames, all but the last kernel by kernel, so
that a finding names its kernel, and its last result is compared with the stock operation or the
dense network. PyTorch's cache of memory is off, or a read beyond a buffer would end in another one.
Exits with 1 on any finding. Most of the time goes into compiling kernels: --part 1/12 of all cases
takes some minutes.
"""

from __future__ import annotations

import argparse
import itertools
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TOOLS = ("memcheck", "racecheck")
# what compute-sanitizer exits with where it found something
FINDINGS = 99
KINDS = ("first", "pixel", "same", "patch", "all", "corner")


def sessions() -> dict[str, Callable[[], float]]:
    """Give what single operations do not reach, by name; each returns its last result's error."""
    import numpy as np
    import torch

    import torchdelta
    from chain_nets import NETS, AllSorts, compiled_chain
    from streams import history
    from support import make_engine
    from torchdelta.runtime.measure import forced_step, placed_step
    from torchdelta.runtime.session import Session

    def open_on(fast: torchdelta.CompiledModel, grain: int = 1, timed: bool = True) -> Session:
        engine = make_engine("triton", fast.plan, fast.device, torch.float32)
        gates = torchdelta.Profile({"*": 0.0, "input": 1.0 if grain > 1 else 0.0})
        return Session(engine, 2, 0.02, gates, timed=timed, grain=grain)

    def play(session: Session, model: torch.nn.Module, forced: bool = False) -> float:
        device = session.engine.device
        sizes = [session.plan.values[step.output].size for step in session.plan.steps]
        # one mask for all steps of a size, or they would not share their lists
        masks = {size: torch.arange(size[0] * size[1]).view(size) % 3 == 0 for size in set(sizes)}
        masks = {size: mask.to(device) for size, mask in masks.items()}
        sets = {i: masks[size] for i, size in enumerate(sizes)} if forced else None
        frames = history(("pixel", "same", "patch", "all", "corner"), 1, session.plan.shape)
        for t, x in enumerate(frames):
            given = {"s": x.to(device)} if t % 2 else {"s": x, "t": 1 - x}
            forced_step(session, given, sets if t in (2, 3) else None)
        session.refresh()
        return error(session.step({"s": x})["s"].output, model, x)

    def error(out: torch.Tensor, model: torch.nn.Module, x: torch.Tensor) -> float:
        with torch.no_grad():
            return torchdelta.relative_error(out, model(x))

    def windows(grain: int) -> float:
        torch.manual_seed(0)
        model = AllSorts().eval()
        fast = torchdelta.compile(model, torch.rand(1, 3, 10, 12), input_range=(0, 1))
        session = open_on(fast, grain)
        world = torch.rand(1, 3, 40, 40)
        valid = np.ones((10, 12), bool)
        valid[:, :5] = False
        for t, (y, x) in enumerate([(6, 6), (8, 2), (2, 12), (2, 12), (4, 10)]):
            frame = world[:, :, y : y + 10, x : x + 12].contiguous()
            mask, border = (valid, "keep") if t == 2 else (None, "exact")
            window = torchdelta.Window((y, x), mask, border)
            placed_step(session, {"s": frame.to(session.engine.device)}, {"s": window})
        session.refresh()
        return error(session.step({"s": frame})["s"].output, model, frame)

    def chain(net: str, **how: bool) -> float:
        fast, model = compiled_chain(net)
        forced = how.pop("forced", False)
        return play(open_on(fast, **how), model, forced)

    found = {f"net-{net}": partial(chain, net) for net in NETS}
    for net in ("downsampling", "cat-of-six"):
        found[f"forced-{net}"] = partial(chain, net, forced=True)
    found["cells"] = partial(chain, "downsampling", grain=3)
    found["graph"] = partial(chain, "downsampling", timed=False)
    return found | {"windows": partial(windows, 1), "windows-cells": partial(windows, 3)}


def run_cases(cases: list[str]) -> None:
    """Run cases in this process."""
    sys.path.insert(0, str(ROOT / "tests"))
    import torch

    import torchdelta
    from cases import OP_CASES
    from support import compiled, make_engine, move
    from torchdelta.runtime.session import Session

    limits = {torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 2e-2}
    known = sessions()
    for case in cases:
        if case in known:
            error = known[case]()
            if not error <= limits[torch.float32]:
                raise SystemExit(f"{case}: off by {error:.3g}")
            print(f"ran {case}", flush=True)
            continue
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
            session.stream("t").refresh()
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


def _part(text: str) -> tuple[int, int]:
    first, _, count = text.partition("/")
    if not (first.isdigit() and count.isdigit() and 1 <= int(first) <= int(count)):
        raise argparse.ArgumentTypeError(f"{text!r} is no K/N with K from 1 to N")
    return int(first), int(count)


def main() -> int:
    """Return the exit code."""
    parser = argparse.ArgumentParser(description="the triton engine under compute-sanitizer")
    parser.add_argument("cases", nargs="*", metavar="CASE")
    parser.add_argument("--tool", choices=TOOLS, help="default: one after the other")
    parser.add_argument("--part", type=_part, metavar="K/N", help="every Nth case from the Kth on")
    parser.add_argument("--list", action="store_true", help="name the cases and do nothing")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    cases = args.cases
    if args.inside:
        run_cases(cases)
        return 0
    if not cases:
        sys.path.insert(0, str(ROOT / "tests"))
        from cases import OP_CASES

        cases = [*OP_CASES, *sessions()]
    first, step = args.part or (1, 1)
    cases = list(itertools.islice(cases, first - 1, None, step))
    if args.list:
        print("\n".join(cases))
        return 0
    if shutil.which("compute-sanitizer") is None:
        print("compute-sanitizer is not in PATH: it comes with the CUDA toolkit", file=sys.stderr)
        return 2
    verdicts = [check(tool, cases) for tool in ([args.tool] if args.tool else TOOLS)]
    return 0 if all(verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
