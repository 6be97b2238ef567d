"""A plan on a device: what all sessions of a triton engine share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from torchdelta.engines.torch_engine import TorchEngine
from torchdelta.engines.triton.gpu import Gpu
from torchdelta.engines.triton.pack import Packed
from torchdelta.engines.triton.schedule import Schedule
from torchdelta.engines.weights import Weights
from torchdelta.plan import Plan


@dataclass(eq=False)
class Program:
    """A plan with its weights on a device, and what is decided once for all frames.

    foreign:    steps left to PyTorch, each with the reason;  oracle: what computes them
    packed:     weights of convolutions, by step;  weights: of the other steps with a kernel
    taken:      all weights that are not packed, with those of steps left to PyTorch
    normalise:  factors and shifts [2, C] that make the network's input of uint8 and float frames
    to_full_scale: float32 [C], what a difference of the input is of full scale
    reported:   values whose masks a result may ask for
    stamped:    values with stamps;  touched: those with a mark for a whole slot
    shared:     which list each step walks over where no active set is forced
    most_lanes: of a frame's graph
    uncaptured: steps of `foreign` that PyTorch cannot capture, with its words; found out when it
                tries
    """

    plan: Plan
    gpu: Gpu
    foreign: Mapping[int, str]
    oracle: TorchEngine
    packed: Mapping[int, Packed]
    weights: Mapping[int, Mapping[str, Tensor]]
    taken: Weights
    normalise: tuple[Tensor, Tensor]
    to_full_scale: Tensor
    reported: list[int]
    stamped: set[int]
    touched: set[int]
    shared: Schedule
    most_lanes: int
    uncaptured: dict[int, str] = field(default_factory=dict)

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights, packed and not."""
        return self.taken.bytes + sum(packed.bytes for packed in self.packed.values())
