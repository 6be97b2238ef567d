"""The cpu engine: native kernels on AVX-512, AVX2 or NEON; a whole frame is one native call."""

from torchdelta.engines.cpu.engine import CpuEngine

__all__ = ["CpuEngine"]
