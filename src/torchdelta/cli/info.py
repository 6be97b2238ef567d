"""`torchdelta env` and `torchdelta explain`."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from dataclasses import replace
from pathlib import Path

import torch
from rich.table import Table

import torchdelta
from torchdelta import engines, native_lib
from torchdelta.capture.cards import AskedSize
from torchdelta.capture.load import load_model
from torchdelta.cli.options import Dtype, Motion
from torchdelta.console import PlainConsole, doing
from torchdelta.errors import TorchdeltaError
from torchdelta.runtime.windows import window_size

PACKAGES = ("torch", "numpy", "av", "opencv-python-headless", "timm", "torchvision", "triton")
# what the kernels of a CPU engine would be chosen by
ISA_FLAGS = (
    "sse4_2",
    "avx",
    "avx2",
    "fma",
    "f16c",
    "avx512f",
    "avx512vl",
    "avx512_vnni",
    "avx512_bf16",
    "avx512_fp16",
    "amx_tile",
    "amx_bf16",
    "neon",
    "asimd",
    "fphp",
    "asimddp",
    "bf16",
    "sve",
)
DEFAULT_SIZE = (224, 224)


def explain(
    model: str,
    weights: Path | None,
    size: AskedSize,
    dtype: Dtype,
    motion: Motion,
    out: PlainConsole,
    log: PlainConsole,
) -> None:
    """Print the plan of a model at `size`, else at its own size, else at 224x224.

    motion: with any but none, what concerns cameras that move is printed too
    """
    with doing(log, f"loading {model}"):
        loaded = load_model(model, weights, size=size)
        h, w = loaded.frame_size(size) or loaded.size or DEFAULT_SIZE
        # weights decide nothing about a plan, so what they are is not worth a line here
        notes = loaded.notes if weights is not None else loaded.notes[:-1]
        loaded = replace(loaded, notes=notes)
        # noise: on a black frame a wrong plan may agree with the model
        generator = torch.Generator().manual_seed(0)
        example = torch.randint(
            0, 256, (1, loaded.channels, h, w), dtype=torch.uint8, generator=generator
        )
        compiled = torchdelta.compile(
            loaded.model,
            example,
            dtype=dtype.value,
            input_range=loaded.input_range,
            mean=loaded.mean,
            std=loaded.std,
            color=loaded.color,
        )
    for note in loaded.notes:
        out.say(note)
    out.say(f"{loaded.name} at {h}x{w}, {dtype.value}")
    moves = motion is not Motion.none
    if moves:
        at = "x".join(map(str, window_size((h, w), compiled.plan.total_stride)))
        out.say(f"a camera that is followed runs on windows of {at}")
    out.say(compiled.explain(moves=moves))


def environment(out: PlainConsole) -> None:
    """Print versions, devices and engines."""
    for title, rows in (
        ("versions", _versions()),
        ("devices", _devices()),
        ("engines", _engines()),
        ("native cpu engine", _native()),
    ):
        table = Table(title=title, title_justify="left", show_header=False, expand=False)
        table.add_column(no_wrap=True)
        table.add_column(overflow="fold")
        for row in rows:
            table.add_row(*row)
        out.print(table)


def _versions() -> list[tuple[str, str]]:
    rows = [("torchdelta", torchdelta.__version__), ("python", platform.python_version())]
    for package in PACKAGES:
        try:
            version = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            version = "not installed"
            if package in ("timm", "torchvision"):
                version += ' (pip install "torchdelta[models]")'
        rows.append((package, version))
    rows.append(("system", f"{platform.system()} {platform.release()} {platform.machine()}"))
    return rows


def _devices() -> list[tuple[str, str]]:
    name, flags = cpu()
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count()
    known = [flag for flag in ISA_FLAGS if flag in flags]
    isa = " ".join(known) or torch.backends.cpu.get_cpu_capability()
    rows = [("cpu", f"{name}\n{cores} cores, {torch.get_num_threads()} torch threads\n{isa}")]
    if not torch.cuda.is_available():
        built = f"CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"
        return [*rows, ("cuda", f"no device (this torch is built for {built})")]
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        memory_gib = properties.total_memory / 2**30
        rows.append(
            (
                f"cuda:{index}",
                f"{properties.name}, {memory_gib:.0f} GiB, "
                f"compute capability {properties.major}.{properties.minor}",
            )
        )
    return rows


def cpu() -> tuple[str, set[str]]:
    """Name and instruction set flags, as Linux tells them; the platform's name elsewhere."""
    name, flags = platform.processor() or platform.machine(), set[str]()
    try:
        text = Path("/proc/cpuinfo").read_text(errors="replace")
    except OSError:
        return name, flags
    for line in text.splitlines():
        key, _, value = line.partition(":")
        match key.strip():
            case "model name":
                name = value.strip()
            case "flags" | "Features":
                flags.update(value.split())
        if not line.strip() and flags:
            break
    return name, flags


def _engines() -> list[tuple[str, str]]:
    return [
        (name, f"available ({reason})" if ready and reason else "available" if ready else reason)
        for name, ready, reason in engines.available()
    ]


def _native() -> list[tuple[str, str]]:
    """What the cpu engine was built with, and what it shares the process with."""
    wanted = os.environ.get(native_lib.ISA_VARIABLE)
    try:
        isas = ", ".join(native_lib.isas()) or "none that this CPU has"
    except TorchdeltaError:
        # the table of engines says why
        isas = "none"
    runtimes = native_lib.openmp_runtimes()
    openmp = "\n".join(runtimes) or "none found"
    if len(runtimes) > 1:
        openmp += "\nwarning: several OpenMP runtimes, whose threads take the cores from each other"
    return [
        ("instruction sets", isas),
        (native_lib.ISA_VARIABLE, wanted or "not set: the first one"),
        ("OpenMP", openmp),
    ]
