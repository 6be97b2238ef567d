"""The native library: finding it, sharing PyTorch's OpenMP runtime, and its instruction sets.

Who calls it declares its functions: the cpu engine those of programs (`engines/cpu/bind.py`),
`motion/warp.py` the one of windows.
"""

from __future__ import annotations

import ctypes
import os
import platform
import re
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import torch  # its OpenMP runtime must be loaded before ours is looked for

from torchdelta.errors import EngineError

ABI = 8
LIBRARY = "libtorchdelta_native.so"
# in this package: who builds it writes it there
FOLDER = "engines/cpu"
ISA_VARIABLE = "TORCHDELTA_CPU_ISA"
PROCESSORS = ("x86_64", "amd64", "aarch64", "arm64")
COMPILERS = ("c++", "g++", "clang++")


def library_path() -> Path | None:
    """Find the native library; None where it was not built."""
    path = Path(__file__).parent / FOLDER / LIBRARY
    return path if path.exists() else None


def openmp_runtimes() -> list[str]:
    """List the OpenMP runtimes that this process has loaded."""
    try:
        maps = Path("/proc/self/maps").read_text()
    except OSError:
        return []
    return sorted(set(re.findall(r"(/\S*/lib(?:g|i)?omp[^/\s]*\.so\S*)", maps)))


def pytorchs_openmp() -> str | None:
    """Find the OpenMP runtime that PyTorch calls, of those that this process has loaded.

    None where PyTorch has none, or the system does not tell.
    """
    try:
        torch_library = ctypes.CDLL(str(Path(torch.__file__).with_name("lib") / "libtorch_cpu.so"))
        # looked up as PyTorch's own calls are: in the libraries that it names
        address = ctypes.cast(torch_library.omp_get_max_threads, ctypes.c_void_p).value or 0
        maps = Path("/proc/self/maps").read_text()
    except (OSError, AttributeError):
        return None
    for begin, end, path in re.findall(r"^(\w+)-(\w+) .*?(/.*)$", maps, re.M):
        if int(begin, 16) <= address < int(end, 16):
            return str(path)
    return None


def _why() -> str:
    """Guess why the library was not built, from what is here now."""
    machine = platform.machine()
    if machine.lower() not in PROCESSORS:
        return f"there are kernels for x86-64 and AArch64, not for {machine}"
    needs = "that needs a C++17 compiler with OpenMP"
    compiler = os.environ.get("CXX") or next(filter(shutil.which, COMPILERS), None)
    if compiler is None:
        return f"{needs}, and there is none ({', '.join(COMPILERS)}); then install torchdelta again"
    return (
        f"{needs}. {compiler} is here now: install torchdelta again, `pip install -v` shows what "
        "fails"
    )


@cache
def library() -> ctypes.CDLL:
    """Load the native library, once.

    Raises: EngineError where it is missing, does not load, or is another version's.
    """
    path = library_path()
    if path is None:
        raise EngineError(
            f"the native library was not built when torchdelta was installed: {_why()}"
        )
    try:
        # the library names no OpenMP runtime: it uses the one that PyTorch has loaded, because two
        # pools of spinning threads on the same cores slow each other down
        runtime = pytorchs_openmp() or next(iter(openmp_runtimes()), "libgomp.so.1")
        ctypes.CDLL(runtime, mode=ctypes.RTLD_GLOBAL)
        lib = ctypes.CDLL(str(path))
    except OSError as error:
        raise EngineError(f"the native library does not load: {error}") from error
    lib.td_abi.restype = ctypes.c_int32
    if lib.td_abi() != ABI:
        raise EngineError(
            f"the native library has interface {lib.td_abi()}, this version of torchdelta needs "
            f"{ABI}; install torchdelta again"
        )
    return lib


def function(name: str, result: Any, *arguments: Any) -> Any:
    """Give a function of the native library by name, with its types, of ctypes.

    Raises: EngineError as `library` does.
    """
    found = getattr(library(), name)
    found.restype, found.argtypes = result, arguments
    return found


def told() -> dict[str, tuple[str, ...]]:
    """Give what the library tells of itself (`td_names`): words by what they are."""
    lines = function("td_names", ctypes.c_char_p)().decode().splitlines()
    return {what: tuple(words) for what, *words in map(str.split, lines)}


def agree(what: str, ours: int) -> None:
    """Raise EngineError where the library has another number for a thing than Python."""
    theirs = told().get(what)
    if theirs != (str(ours),):
        raise EngineError(
            f"the native library has {what} {' '.join(theirs or ('unknown',))}, this version of "
            f"torchdelta {ours}; install torchdelta again"
        )


def isas() -> list[str]:
    """List the compiled instruction sets that this CPU has, best first."""
    names = function("td_isas", ctypes.c_char_p)().decode()
    return names.split(",") if names else []


def wrong_isa() -> str | None:
    """Say what is wrong with TORCHDELTA_CPU_ISA; None where nothing is, or nothing would use it."""
    wanted = os.environ.get(ISA_VARIABLE)
    if not wanted:
        return None
    try:
        here = isas()
    except EngineError:
        return None
    if not here or wanted in here:
        return None
    return f"{ISA_VARIABLE} is {wanted!r}, this CPU can run {', '.join(here)}"


def choose_isa() -> str:
    """Pick the instruction set: the best one, or what TORCHDELTA_CPU_ISA names.

    Raises: EngineError where the CPU has none, or not the one named.
    """
    here = isas()
    if not here:
        raise EngineError("this CPU has neither AVX-512, AVX2 with FMA, nor NEON")
    wrong = wrong_isa()
    if wrong:
        raise EngineError(wrong)
    return os.environ.get(ISA_VARIABLE) or here[0]
