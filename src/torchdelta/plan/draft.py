"""The plan in the making: a mutable list of operations, before buffers are laid out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from torchdelta.ops.base import Op
from torchdelta.plan.ir import Epilogue


@dataclass(eq=False)
class Draft:
    """One operation whose result may become a value.

    kind:   "op" is computed; "cat" and "slice" (from channel `start` on) are views of channels
    shape:  of the result as the model has it, without batch; whole: with the batch of 1
    inputs: the first `arity` feed the operation, the others the epilogue
    pads:   (top, bottom, left, right) where the operation is a zero padding
    reason: why the step is dense
    """

    name: str
    kind: Literal["input", "op", "cat", "slice"]
    shape: tuple[int, ...]
    whole: tuple[int, ...]
    inputs: list[Draft] = field(default_factory=list)
    op: Op | None = None
    weights: dict[str, Tensor] = field(default_factory=dict)
    dtype: torch.dtype | None = None
    epilogue: Epilogue = ()
    arity: int = 0
    start: int = 0
    pads: tuple[int, int, int, int] | None = None
    reason: str | None = None

    def __post_init__(self) -> None:
        if not self.arity:
            self.arity = len(self.inputs)


@dataclass
class DraftGraph:
    """Operations in order of execution, the input first, and the results by leaf.

    weight_dtype: float32, or float64 in a plan that is to decide whether float32 is precise enough
    """

    drafts: list[Draft]
    outputs: list[Any]
    notes: list[str] = field(default_factory=list)
    weight_dtype: torch.dtype = torch.float32

    def uses(self, draft: Draft) -> int:
        """Count how often a result is read, by operations and by the caller."""
        inner = sum(d.inputs.count(draft) for d in self.drafts)
        return inner + sum(1 for out in self.outputs if out is draft)

    def users(self, draft: Draft) -> list[Draft]:
        """List the operations that read a result."""
        return [d for d in self.drafts if draft in d.inputs]

    def replace(self, old: Draft, new: Draft) -> None:
        """Let everybody who reads `old` read `new`, and drop `old`."""
        for draft in self.drafts:
            if draft is not new:
                draft.inputs = [new if i is old else i for i in draft.inputs]
        self.outputs = [new if out is old else out for out in self.outputs]
        self.drafts.remove(old)

    def merge_into_consumer(self, producer: Draft, consumer: Draft) -> None:
        """Let `producer` take the place of `consumer`, its only reader."""
        at = self.drafts.index(consumer)
        self.drafts.remove(producer)
        self.drafts.insert(at, producer)
        self.replace(consumer, producer)

    def of(self, op: type[Op]) -> Iterator[Draft]:
        """Iterate over a snapshot of the operations of one type."""
        yield from [d for d in self.drafts if isinstance(d.op, op)]
