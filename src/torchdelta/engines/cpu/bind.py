"""The native library: finding it, sharing PyTorch's OpenMP runtime, and its C interface.

The structures mirror `native/src/torchdelta_native.h`.
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

ABI = 7
LIBRARY = "libtorchdelta_native.so"
ISA_VARIABLE = "TORCHDELTA_CPU_ISA"
MESSAGE_BYTES = 512
PROCESSORS = ("x86_64", "amd64", "aarch64", "arm64")
COMPILERS = ("c++", "g++", "clang++")

# step, slot, active [Ho*Wo], changed [Ho*Wo] -> 0, or a number that stops the frame
ForeignFn = ctypes.CFUNCTYPE(
    ctypes.c_int32, ctypes.c_int32, ctypes.c_int32, ctypes.c_void_p, ctypes.c_void_p
)

# for plans without such steps
NO_FOREIGN = ForeignFn()


class Slot(ctypes.Structure):
    """One slot's part in a frame (td_slot)."""

    _fields_ = (
        ("frame", ctypes.c_void_p),
        ("stride_y", ctypes.c_int64),
        ("stride_x", ctypes.c_int64),
        ("stride_c", ctypes.c_int64),
        ("frame_is_float", ctypes.c_int32),
        ("whole", ctypes.c_int32),
        ("exact", ctypes.c_int32),
        ("buffers", ctypes.c_void_p),
        ("origins", ctypes.c_void_p),
        ("moved", ctypes.c_void_p),
        ("border", ctypes.c_void_p),
        ("valid", ctypes.c_void_p),
        ("thresholds", ctypes.c_void_p),
        ("input_threshold", ctypes.c_double),
        ("input_grain", ctypes.c_int64),
        ("active_px", ctypes.c_void_p),
        ("published_px", ctypes.c_void_p),
        ("published_groups", ctypes.c_void_p),
        ("active", ctypes.c_void_p),
        ("changed", ctypes.c_void_p),
        ("changed_px", ctypes.c_void_p),
        ("forced", ctypes.c_void_p),
    )


class Call(ctypes.Structure):
    """One frame of some slots (td_call)."""

    _fields_ = (
        ("slots", ctypes.POINTER(Slot)),
        ("n_slots", ctypes.c_int32),
        ("threads", ctypes.c_int32),
        ("norm_is_max", ctypes.c_int32),
        ("foreign", ForeignFn),
        ("step_ms", ctypes.c_void_p),
    )


class WarpCall(ctypes.Structure):
    """One frame brought into a window (td_warp_call)."""

    _fields_ = (
        ("frame", ctypes.c_void_p),
        ("stride_y", ctypes.c_int64),
        ("h", ctypes.c_int32),
        ("w", ctypes.c_int32),
        ("out", ctypes.c_void_p),
        ("mask", ctypes.c_void_p),
        ("out_h", ctypes.c_int32),
        ("out_w", ctypes.c_int32),
        ("to_frame", ctypes.c_void_p),
        ("rounding_px", ctypes.c_double),
        ("threads", ctypes.c_int32),
    )


def library_path() -> Path | None:
    """Find the native library beside this file; None where it was not built."""
    path = Path(__file__).with_name(LIBRARY)
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
    lib.td_isas.restype = ctypes.c_char_p
    lib.td_load.restype = ctypes.c_void_p
    lib.td_load.argtypes = (
        ctypes.c_char_p, ctypes.c_uint64, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_uint64,
    )  # fmt: skip
    lib.td_free.argtypes = (ctypes.c_void_p,)
    for name in ("td_weight_bytes", "td_scratch_bytes"):
        getattr(lib, name).restype = ctypes.c_uint64
        getattr(lib, name).argtypes = (ctypes.c_void_p,)
    lib.td_step.restype = ctypes.c_int32
    lib.td_step.argtypes = (ctypes.c_void_p, ctypes.POINTER(Call))
    lib.td_warp.restype = ctypes.c_int32
    lib.td_warp.argtypes = (ctypes.c_char_p, ctypes.POINTER(WarpCall))
    return lib


def isas() -> list[str]:
    """List the compiled instruction sets that this CPU has, best first."""
    names = library().td_isas().decode()
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


def warp(isa: str, **fields: Any) -> None:
    """Bring a frame into a window; releases the GIL meanwhile. Fields: see td_warp_call."""
    failed = library().td_warp(isa.encode(), ctypes.byref(WarpCall(**fields)))
    if failed:
        raise EngineError(f"the native warp failed on {isa}: {'memory' if failed < 0 else 'CPU'}")


class NativeProgram:
    """A program loaded for one instruction set; freed with the object."""

    def __init__(self, blob: bytes, isa: str) -> None:
        self._library = library()
        message = ctypes.create_string_buffer(MESSAGE_BYTES)
        self._handle = self._library.td_load(blob, len(blob), isa.encode(), message, MESSAGE_BYTES)
        if not self._handle:
            raise EngineError(f"the native engine refused the plan: {message.value.decode()}")

    def __del__(self) -> None:
        if getattr(self, "_handle", None):
            self._library.td_free(self._handle)

    @property
    def weight_bytes(self) -> int:
        """Bytes of the packed weights, shared by all sessions."""
        return int(self._library.td_weight_bytes(self._handle))

    @property
    def scratch_bytes(self) -> int:
        """Bytes of masks, lists and partial sums that calls have needed so far."""
        return int(self._library.td_scratch_bytes(self._handle))

    def step(self, slots: Any, count: int, **fields: Any) -> int:
        """Run one frame; releases the GIL meanwhile."""
        call = Call(slots, count, **fields)
        return int(self._library.td_step(self._handle, ctypes.byref(call)))
