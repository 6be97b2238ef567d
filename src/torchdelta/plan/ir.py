"""What plans are made of: values and their buffers, steps and what is fused into them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from torchdelta.ops.base import Footprint, Op, Size
from torchdelta.ops.gate import group_count
from torchdelta.ops.move import state_shape
from torchdelta.ops.pointwise import Binary, Pointwise

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


def epilogue_name(epilogue: Epilogue) -> str:
    """Say what is fused into a step: '+add+relu'."""
    return "".join(part.describe() for part in epilogue)


def owners_of(values: Sequence[Value]) -> tuple[Value, ...]:
    """Give the values that are written, in order: the input, then one per step."""
    return tuple(v for v in values if v.owners == (v.index,))
