"""Dense steps: any ATen operation that has no sparse form, run as it is.

It runs for a stream only when an input of it changed, on that stream's whole inputs, and its
result is gated like any other: everything behind it stays sparse.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from torchdelta.apart import default_float32
from torchdelta.ops.base import EVERYTHING, Footprint, Op, Size, Weights
from torchdelta.ops.move import to_model_layout, to_state_layout


@cache
def operation(name: str) -> Callable[..., Any]:
    """Look an operation up by its name: namespace, name, overload; or a function of `operator`."""
    namespace, _, rest = name.partition(".")
    found: Any = operator if namespace == "operator" else getattr(torch.ops, namespace)
    for part in rest.split("."):
        found = getattr(found, part)
    assert callable(found)
    return found


def name_of(target: Callable[..., Any]) -> str:
    """Name an operation so that `operation` finds it again.

    Raises: ValueError for a function that is no registered operation.
    """
    if isinstance(target, torch._ops.OpOverload):
        return str(target)
    name = f"operator.{getattr(target, '__name__', target)}"
    if getattr(operator, name.partition(".")[2], None) is not target:
        raise ValueError(f"{target} is no operation that PyTorch has registered")
    return name


@dataclass(frozen=True)
class Arg:
    """Stands in the argument tree for the input with this number."""

    index: int


@dataclass(frozen=True)
class Const:
    """Stands in the argument tree for the weight with this name."""

    name: str


@dataclass(frozen=True)
class Dense(Op):
    """An ATen call on whole inputs.

    target: its name with its overload ("aten.cumsum.default"), looked up when it runs. args and
    kwargs are trees with `Arg`, `Const` and plain values; `item` picks one of several results. The
    batch size is 1. `shapes` are whole shapes, a leading batch of 1 included.
    by_default: it makes floating point of whole numbers, in what PyTorch's default dtype says
    """

    name: ClassVar[str] = "dense"
    kind: ClassVar[Literal["rows", "window", "whole"]] = "whole"
    target: str
    args: tuple[Any, ...]
    kwargs: tuple[tuple[str, Any], ...]
    shapes: tuple[tuple[int, ...], ...]
    flops_macs: int = 0
    item: int | None = None
    by_default: bool = False

    def fixed(self, in_sizes: Sequence[Size]) -> str | None:
        """Nothing is known about it."""
        return "dense"

    def footprints(self, in_sizes: Sequence[Size], out_size: Size) -> tuple[Footprint, ...]:
        """Any change counts for all."""
        return (EVERYTHING,) * len(in_sizes)

    def full(self, inputs: Sequence[Tensor], weights: Weights) -> Tensor:
        """Call the operation on a batch of one."""
        ready = [
            to_model_layout(x, s[1:]).reshape(s) if s[:1] == (1,) else x.reshape(s)
            for x, s in zip(inputs, self.shapes, strict=True)
        ]

        def fill(leaf: Any) -> Any:
            if isinstance(leaf, Arg):
                return ready[leaf.index]
            if isinstance(leaf, Const):
                return weights[leaf.name]
            return leaf

        args, kwargs = pytree.tree_map(fill, (list(self.args), dict(self.kwargs)))
        with default_float32() if self.by_default else nullcontext():
            out = operation(self.target)(*args, **kwargs)
        if self.item is not None:
            out = out[self.item]
        assert isinstance(out, torch.Tensor)
        # engines read its memory, where a pending negation or conjugation does not show
        out = out.resolve_conj().resolve_neg()
        if out.ndim and out.shape[0] == 1:
            return to_state_layout(out[0])
        return out.reshape(1, 1, -1)

    def macs(self, weights: Weights, out_size: Size) -> int:
        """Give what PyTorch's own counter counted when the plan was made."""
        return self.flops_macs

    def describe(self) -> str:
        """Say the ATen name."""
        return self.target.partition(".")[2]
