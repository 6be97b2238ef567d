"""The plan: a frozen, device-free list of steps with weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from torchdelta.ops.base import Footprint, Op, Size
from torchdelta.ops.gate import group_count
from torchdelta.ops.move import state_shape
from torchdelta.ops.pointwise import Binary, Pointwise
from torchdelta.ops.preprocess import Preprocess

if TYPE_CHECKING:
    from torchdelta.plan.shift import Shifts

# channels in a gate's group; a value with at most as many has one group
GROUP_CHANNELS = 64


@dataclass(frozen=True)
class Buffer:
    """Storage of one or several values that lie side by side in the channels."""

    h: int
    w: int
    c: int
    dtype: torch.dtype | None


@dataclass(frozen=True)
class Value:
    """What a step produces, or a view of channels of another value's buffer.

    shape:  as the model has it, without batch: (C, H, W) for a map
    buffer: index of its buffer; offset: its first channel there
    dtype:  None stands for the session's compute dtype
    owners: the values that are written into its channels (itself, unless it is a view); its change
            mask is the union of theirs
    gated:  False: its threshold is 0 always (only the caller reads it, it is only moved, or it is
            a vector on which little depends)
    """

    index: int
    name: str
    shape: tuple[int, ...]
    buffer: int
    offset: int
    dtype: torch.dtype | None
    owners: tuple[int, ...]
    gated: bool

    @property
    def size(self) -> Size:
        """Height and width of its state."""
        h, w, _ = state_shape(self.shape)
        return h, w

    @property
    def channels(self) -> int:
        """Channels of its state."""
        return state_shape(self.shape)[2]

    @property
    def groups(self) -> int:
        """Channel groups that its gate publishes one by one."""
        return group_count(self.channels, GROUP_CHANNELS)


@dataclass(frozen=True)
class Residual:
    """Epilogue: combine the new pixel with another value's pixel at the same place.

    index: which of the step's inputs; first: whether that value is the left operand
    """

    op: Binary
    index: int
    first: bool = False

    def describe(self) -> str:
        """Say the function."""
        return f"+{self.op.fn}"


@dataclass(frozen=True)
class Activation:
    """Epilogue: an elementwise function of the new pixel."""

    op: Pointwise
    weights: Mapping[str, Tensor] = field(default_factory=dict)

    def describe(self) -> str:
        """Say the function."""
        return f"+{self.op.fn}"


Epilogue = tuple[Residual | Activation, ...]


@dataclass(frozen=True)
class Step:
    """One fused operation: `op` on `inputs`, then the epilogue, gated into `output`.

    inputs:     value indices; the first `arity` feed the op, the others the epilogue's residuals
    footprints: one per input
    macs:       multiply-accumulates of the whole map, one stream
    """

    name: str
    op: Op
    inputs: tuple[int, ...]
    arity: int
    output: int
    weights: Mapping[str, Tensor]
    epilogue: Epilogue
    footprints: tuple[Footprint, ...]
    macs: int
    reason: str | None = None

    @property
    def dense(self) -> bool:
        """Whether the step runs whole because it has no sparse form."""
        return self.reason is not None


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
        from torchdelta.plan.shift import Shifts

        return Shifts(self)

    @property
    def total_stride(self) -> Size:
        """Give the least move (y, x) of a window, input pixels; it moves by multiples of it."""
        return self.shifts.total

    @property
    def owners(self) -> tuple[Value, ...]:
        """Values that are written, in order: the input, then one per step."""
        return tuple(v for v in self.values if v.owners == (v.index,))

    def state_bytes(self, dtype: torch.dtype) -> int:
        """Bytes of one stream's state."""
        return sum(b.h * b.w * b.c * (b.dtype or dtype).itemsize for b in self.buffers)

    def explain(self, dtype: torch.dtype = torch.float32, *, moves: bool = False) -> str:
        """Return the plan as a table: step, shape, MACs, state, how it runs and why.

        moves: with what each step does when a moving camera's window moves
        """
        from torchdelta.plan.explain import explain

        return explain(self, dtype, moves=moves)

    def __deepcopy__(self, memo: dict[int, Any]) -> Plan:
        """Return itself: a plan is frozen and shared."""
        return self


def epilogue_name(epilogue: Epilogue) -> str:
    """Say what is fused into a step: '+add+relu'."""
    return "".join(part.describe() for part in epilogue)
