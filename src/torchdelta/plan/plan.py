"""The plan: a frozen, device-free list of steps with weights."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property
from math import prod
from typing import Any

import torch
from torch.utils import _pytree as pytree

from torchdelta.ops.base import Size
from torchdelta.ops.preprocess import Preprocess
from torchdelta.plan.ir import Buffer, Step, Value, owners_of
from torchdelta.plan.shift import Shifts


@dataclass(frozen=True)
class Plan:
    """A network for one input size, ready for any engine.

    outputs: leaves of the model's result in order: a value index, or a constant (str, int, None,
             Tensor …) that does not depend on the input; `out_spec` puts them together
    output_shapes: of one stream's result with its batch axis; None for a constant
    repeated: leaves that are constants with one row per stream
    notes:   what the user should know about the capture
    """

    preprocess: Preprocess
    shape: tuple[int, int, int]
    values: tuple[Value, ...]
    buffers: tuple[Buffer, ...]
    steps: tuple[Step, ...]
    input: int
    outputs: tuple[int | Any, ...]
    output_shapes: tuple[tuple[int, ...] | None, ...]
    out_spec: pytree.TreeSpec
    repeated: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def size(self) -> Size:
        """Height and width of a frame."""
        return self.shape[1], self.shape[2]

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one dense frame."""
        return sum(step.macs for step in self.steps)

    @cached_property
    def mac_share_per_px(self) -> tuple[float, ...]:
        """Give for each step what one of its output pixels is of the network's MACs."""
        whole = self.macs or 1
        return tuple(s.macs / prod(self.values[s.output].size) / whole for s in self.steps)

    @cached_property
    def shifts(self) -> Shifts:
        """Say how the values follow a window that moves."""
        kept = zip(self.outputs, self.output_shapes, strict=True)
        outputs = [leaf for leaf, shape in kept if shape is not None]
        return Shifts(self.values, self.steps, self.input, outputs)

    @property
    def total_stride(self) -> Size:
        """Give the least move (y, x) of a window, input pixels; it moves by multiples of it."""
        return self.shifts.total

    @property
    def owners(self) -> tuple[Value, ...]:
        """Values that are written, in order: the input, then one per step."""
        return owners_of(self.values)

    def state_bytes(self, dtype: torch.dtype) -> int:
        """Bytes of one stream's state."""
        return sum(b.h * b.w * b.c * (b.dtype or dtype).itemsize for b in self.buffers)

    def __getstate__(self) -> dict[str, Any]:
        """Give what is pickled: the fields, not what was worked out from them."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def __deepcopy__(self, memo: dict[int, Any]) -> Plan:
        """Return itself: a plan is frozen and shared."""
        return self
