"""The triton engine: NVIDIA GPUs, one CUDA graph per session."""

from torchdelta.engines.triton.engine import TritonEngine

__all__ = ["TritonEngine"]
