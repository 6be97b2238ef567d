"""The native library: instruction sets, refusals, where it is missing, whose threads it takes."""

import ctypes
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import torchdelta
from cpu_cases import CPU
from support import (
    ENGINE_NAMES,
    LONG,
    compiled,
)
from torchdelta import EngineError, native_lib
from torchdelta.engines import choose
from torchdelta.engines.cpu import CpuEngine, bind

if "cpu" not in ENGINE_NAMES:
    # test_every_engine_is_tested says whether that may be
    pytest.skip(CpuEngine.usable()[1], allow_module_level=True)


def test_unknown_instruction_sets_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    here = ", ".join(native_lib.isas())
    monkeypatch.setenv(native_lib.ISA_VARIABLE, "avx9")
    usable, why = CpuEngine.usable()
    assert not usable
    assert why == f"TORCHDELTA_CPU_ISA is 'avx9', this CPU can run {here}"
    conv, x = nn.Conv2d(3, 2, 1).eval(), torch.rand(1, 3, 8, 8)
    with pytest.raises(EngineError, match=rf"avx9.*{here}"):
        torchdelta.compile(conv, x, engine="cpu")
    # the native warp goes by the variable whatever the engine
    for engine in ("auto", "torch"):
        with pytest.raises(EngineError, match=rf"avx9.*{here}"):
            torchdelta.compile(conv, x, engine=engine)
    monkeypatch.delenv(native_lib.ISA_VARIABLE)
    fast = torchdelta.compile(conv, x)
    assert fast.engine == "cpu"
    with pytest.raises(EngineError, match="unknown instruction set avx9"):
        CpuEngine(fast.plan, CPU, torch.float32, isa="avx9")


@pytest.mark.parametrize("isa", native_lib.isas())
def test_the_variable_picks_the_instruction_set(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(native_lib.ISA_VARIABLE, isa)
    fast = torchdelta.compile(nn.Conv2d(3, 2, 1).eval(), torch.rand(1, 3, 8, 8), engine="cpu")
    assert fast.session().engine.isa == isa
    if isa != "avx512_bf16":
        with pytest.raises(EngineError, match=f"bf16 needs a CPU with AVX512-BF16.*{isa}"):
            choose("cpu", CPU, torch.bfloat16)


def test_half_precision_and_other_devices_are_refused() -> None:
    conv, x = nn.Conv2d(3, 2, 1).eval(), torch.rand(1, 3, 8, 8)
    with pytest.raises(EngineError, match="computes in fp32 and bf16, not in"):
        torchdelta.compile(conv, x, engine="cpu", dtype="fp16")
    assert torchdelta.compile(conv, x, dtype="fp16").engine == "torch"
    with pytest.raises(EngineError, match="runs on the CPU, the model is on cuda"):
        choose("cpu", torch.device("cuda"))


@pytest.fixture
def other_library(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Let a test put another library in place of the one that is loaded."""
    native_lib.library.cache_clear()
    yield monkeypatch
    monkeypatch.undo()
    native_lib.library.cache_clear()


def test_without_the_library_auto_takes_the_torch_engine(
    other_library: pytest.MonkeyPatch,
) -> None:
    other_library.setattr(native_lib, "library_path", lambda: None)
    usable, why = CpuEngine.usable()
    assert not usable
    assert "compiler" in why
    conv, x = nn.Conv2d(3, 2, 1).eval(), torch.rand(1, 3, 8, 8)
    fast = torchdelta.compile(conv, x)
    assert fast.engine == "torch"
    assert "was not built" in fast.engine_reason
    # nothing would use it
    other_library.setenv(native_lib.ISA_VARIABLE, "avx9")
    assert torchdelta.compile(conv, x).engine == "torch"
    with pytest.raises(EngineError, match="was not built"):
        torchdelta.compile(conv, x, engine="cpu")


def test_why_the_library_may_be_missing(other_library: pytest.MonkeyPatch) -> None:
    other_library.setattr(native_lib, "library_path", lambda: None)
    other_library.delenv("CXX", raising=False)
    other_library.setattr(
        native_lib.shutil, "which", lambda name: "/" if name == "clang++" else None
    )
    assert "clang++ is here now: install torchdelta again" in CpuEngine.usable()[1]
    other_library.setattr(native_lib.shutil, "which", lambda name: None)
    assert "there is none (c++, g++, clang++)" in CpuEngine.usable()[1]
    other_library.setattr(native_lib.platform, "machine", lambda: "riscv64")
    assert "not for riscv64" in CpuEngine.usable()[1]


def test_a_library_that_does_not_load_or_fit_is_refused(
    other_library: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / native_lib.LIBRARY
    path.write_bytes(b"no library")
    with other_library.context() as patch:
        patch.setattr(native_lib, "library_path", lambda: path)
        assert "does not load" in CpuEngine.usable()[1]
    other_library.setattr(native_lib, "ABI", -1)
    assert "this version of torchdelta needs -1" in CpuEngine.usable()[1]


def test_a_damaged_program_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from torchdelta.engines.cpu.blob import write_program

    plan = compiled("conv-3x3")[0].plan
    program = write_program(plan, torch.float32, [plan.input])
    isa = native_lib.isas()[0]
    bind.NativeProgram(program, isa)
    for wrong, message in (
        (program[:-8], "cut off or damaged"),
        (program[:100], "cut off or damaged"),
        (b"\1" + program[1:], "no program of this version"),
        (program + bytes(8), "more bytes than steps"),
    ):
        with pytest.raises(EngineError, match=message):
            bind.NativeProgram(wrong, isa)


SHARED_RUNTIME = """
import ctypes, os, sys
import torch

for other in sys.argv[1:]:
    ctypes.CDLL(other)
import torchdelta
from torchdelta import native_lib

frame = torch.rand(1, 3, 40, 50)
torch.set_num_threads(2)
fast = torchdelta.compile(torch.nn.Conv2d(3, 8, 3).eval(), frame, engine="cpu")
torch.rand(1 << 20).exp()
before = len(os.listdir("/proc/self/task"))
fast(frame)
more = len(os.listdir("/proc/self/task")) - before
torch.set_num_threads(4)
fast(1 - frame)
four = len(os.listdir("/proc/self/task")) - before
print(len(native_lib.openmp_runtimes()), more, four, native_lib.pytorchs_openmp())
"""


@pytest.mark.parametrize("others", [0, 1] if LONG else [1])
def test_the_library_shares_the_openmp_runtime_of_pytorch(others: int, tmp_path: Path) -> None:
    """No second runtime is loaded; one of another package, whatever it is called, is not used.

    A frame runs on as many threads as PyTorch has been told to use.
    """
    own = native_lib.pytorchs_openmp()
    assert own in native_lib.openmp_runtimes()
    other = tmp_path / "0_libs" / "libgomp-of-another.so.1"
    other.parent.mkdir()
    shutil.copy(own, other)
    done = subprocess.run(
        [sys.executable, "-c", SHARED_RUNTIME, *[str(other)] * others],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    # PyTorch's two threads are there before, and no others come until there may be four
    assert done.stdout.split() == [str(1 + others), "0", "2", own]


def test_pytorchs_runtime_is_taken_of_several(other_library: pytest.MonkeyPatch) -> None:
    """Whatever the order of their paths."""
    own = native_lib.pytorchs_openmp()
    load, opened = ctypes.CDLL, list[str]()

    def spy(name: str, *args: Any, **options: Any) -> ctypes.CDLL:
        opened.append(name)
        return load(name, *args, **options)

    other_library.setattr(native_lib, "openmp_runtimes", lambda: ["/0/libgomp.so.1", own])
    other_library.setattr(native_lib.ctypes, "CDLL", spy)
    native_lib.library()
    assert own in opened
    assert "/0/libgomp.so.1" not in opened
