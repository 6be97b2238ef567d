"""The device that kernels run on: a GPU, or Triton's interpreter on the CPU."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

from torchdelta.errors import EngineError

# of the interpreter, which has none
INTERPRETED_PROCESSORS = 4


@dataclass
class Gpu:
    """What kernels are compiled and launched for.

    interpreted: whether Triton's interpreter runs them on the CPU
    precision:   of products of float32: "tf32" or "ieee"
    pdl:         whether a kernel may start while its predecessor ends (programmatic dependent
                 launch)
    processors:  streaming multiprocessors
    """

    device: torch.device
    dtype: torch.dtype
    interpreted: bool
    precision: str
    pdl: bool
    processors: int

    @classmethod
    def of(cls, device: torch.device, dtype: torch.dtype, tf32: bool) -> Gpu:
        """Ask a device what it can do.

        tf32: multiply float32 in TF32
        Raises: EngineError for another device.
        """
        interpreted = is_interpreted()
        if device.type != ("cpu" if interpreted else "cuda"):
            raise EngineError(f"the triton engine runs on NVIDIA GPUs, the model is on {device}")
        precision = "tf32" if tf32 and dtype == torch.float32 else "ieee"
        if interpreted:
            return cls(device, dtype, interpreted, precision, False, INTERPRETED_PROCESSORS)
        found = torch.cuda.get_device_properties(device)
        pdl = (found.major, found.minor) >= (9, 0)
        return cls(device, dtype, interpreted, precision, pdl, found.multi_processor_count)


def is_interpreted() -> bool:
    """Whether Triton's kernels run in its interpreter, on the CPU."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def too_old(device: torch.device | int) -> str | None:
    """Say why a GPU cannot run the kernels; None where it can."""
    capability = torch.cuda.get_device_capability(device)
    if capability >= (8, 0):
        return None
    return f"the GPU has compute capability {capability[0]}.{capability[1]}, not 8.0"
