"""The sizes in a captured graph, for one stream: the batch they are written with becomes 1."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class NotSparse(Exception):
    """This call has no sparse form; the message says why, and it becomes a dense step."""


class Sizes:
    """Reads symbolic sizes for a batch of one; made from the graph's input [N, C, H, W]."""

    def __init__(self, frame: Tensor) -> None:
        batch: Any = frame.shape[0]
        # a size that the model has fixed is an expression without symbols
        self.batch: Any = batch.node.expr if is_free(batch) else None
        # sizes that the exporter took for free, and a constant of the model decides
        self.known: dict[Any, int] = {}

    def number(self, value: Any) -> Any:
        """Evaluate a symbolic number; raises NotSparse where it hangs on the frame's values."""
        if isinstance(value, (torch.SymInt, torch.SymFloat, torch.SymBool)):
            expr = value.node.expr
            expr = expr.subs({self.batch: 1}) if self.batch is not None else expr
            expr = expr.subs(self.known) if self.known else expr
            if expr.free_symbols:
                raise NotSparse(
                    f"its size depends on the frame's values ({expr}), and a plan has fixed sizes; "
                    "multiply by a mask, or use torch.where or topk"
                )
            kind = int if isinstance(value, torch.SymInt) else float
            return kind(expr) if not isinstance(value, torch.SymBool) else bool(expr)
        return value

    def shape(self, value: Tensor) -> tuple[int, ...]:
        """Evaluate a tensor's shape."""
        return tuple(int(self.number(n)) for n in value.shape)

    def learn(self, value: Tensor, shape: Sequence[int]) -> None:
        """Note what the symbols of a tensor's shape stand for."""
        for size, number in zip(value.shape, shape, strict=True):
            expr = size.node.expr if isinstance(size, torch.SymInt) else None
            if expr is not None and expr.is_symbol and expr != self.batch:
                self.known[expr] = number

    def batch_axes(self, value: Tensor) -> tuple[int, ...]:
        """Say which axes of a tensor count the streams.

        A graph that was captured with a batch of 1 does not say: it is the first one, of length 1.
        """
        if self.batch is None:
            return (0,) if self.shape(value)[:1] == (1,) else ()
        return tuple(
            i
            for i, n in enumerate(value.shape)
            if isinstance(n, torch.SymInt) and n.node.expr == self.batch
        )


def is_free(size: Any) -> bool:
    """Whether a size of a captured graph may vary: a number, or one that was fixed, may not."""
    return isinstance(size, torch.SymInt) and bool(size.node.expr.free_symbols)
