"""Operations that compute each pixel from the pixel at its own place.

pointwise:  out = f(in)                                  (activations)
affine:     out = in * scale[c] + shift[c]               (batch norm that folds into no convolution)
binary:     out = f(a, b), b may be one vector or one channel (add, sub, mul, div, maximum, minimum)
const:      out = f(in, constant) or f(constant, in)
softmax:    over the channels of a pixel
Footprint: the same pixel; all pixels where an operand is one vector for the whole map.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from torchdelta.ops.base import (
    EVERYTHING,
    IDENTITY,
    Axis,
    Footprint,
    Op,
    Pixels,
    Size,
    Weights,
    take_all,
    take_rows,
)
from torchdelta.ops.functions import BINARY, POINTWISE, Function, kernel_function


def _flat(x: Tensor) -> Tensor:
    return x.flatten(0, 1)


@dataclass(frozen=True)
class _Rows(Op):
    def full(self, inputs: Sequence[Tensor], weights: Weights) -> Tensor:
        """Compute all pixels."""
        h, w = max(x.shape[0] for x in inputs), max(x.shape[1] for x in inputs)
        index = torch.arange(h * w, device=inputs[0].device)
        return self.rows(inputs, weights, index, (h, w)).unflatten(0, (h, w))


@dataclass(frozen=True)
class Pointwise(Op):
    """An elementwise function of one value; `args` follow the tensor in ATen's order."""

    name: ClassVar[str] = "pointwise"
    fn: str
    args: tuple[Any, ...] = ()
    kwargs: tuple[tuple[str, Any], ...] = ()

    @property
    def kernel(self) -> Function | None:
        """What a kernel computes for it; None where none could."""
        return kernel_function(self.fn, self.args, dict(self.kwargs))

    def apply(self, x: Tensor, weights: Weights) -> Tensor:
        """Compute f on pixels in the last-but-one axes, channels last."""
        if self.fn == "prelu":
            return torch.where(x >= 0, x, x * weights["slope"])
        return POINTWISE[self.fn](x, *self.args, **dict(self.kwargs))

    def full(self, inputs: Sequence[Tensor], weights: Weights) -> Tensor:
        """Compute all pixels."""
        return self.apply(inputs[0], weights)

    def rows(
        self, inputs: Sequence[Pixels], weights: Weights, active: Tensor, out_size: Size
    ) -> Tensor:
        """Compute the active pixels."""
        return self.apply(take_rows(inputs[0], active), weights)

    def describe(self) -> str:
        """Say the function."""
        return self.fn


@dataclass(frozen=True)
class Affine(Op):
    """A scale and a shift per channel; weights: scale [C], shift [C]."""

    name: ClassVar[str] = "affine"

    def full(self, inputs: Sequence[Tensor], weights: Weights) -> Tensor:
        """Compute all pixels."""
        return torch.addcmul(weights["shift"], inputs[0], weights["scale"])

    def rows(
        self, inputs: Sequence[Pixels], weights: Weights, active: Tensor, out_size: Size
    ) -> Tensor:
        """Compute the active pixels."""
        return torch.addcmul(weights["shift"], take_rows(inputs[0], active), weights["scale"])


def _operand(x: Pixels, active: Tensor, out_size: Size) -> Tensor:
    """Gather the rows of an operand that may have one pixel, one row or one column."""
    h, w = x.shape[:2]
    if (h, w) == out_size:
        return take_rows(x, active)
    if (h, w) == (1, 1):
        return take_all(x)[0]
    oy, ox = active // out_size[1], active % out_size[1]
    return take_rows(x, oy * w if w == 1 else ox + (oy * w if h > 1 else 0))


def _line(n_in: int, n_out: int) -> tuple[list[int], list[int]]:
    at = list(range(n_out)) if n_in == n_out else [0] * n_out
    return at, at


@dataclass(frozen=True)
class Binary(Op):
    """A function of two values; an operand may be broadcast along rows, columns or channels."""

    name: ClassVar[str] = "binary"
    fn: str
    alpha: float = 1.0

    def apply(self, a: Tensor, b: Tensor) -> Tensor:
        """Compute f(a, b), or a +- alpha * b."""
        if self.fn in ("add", "sub") and self.alpha != 1.0:
            return BINARY[self.fn](a, b, alpha=self.alpha)
        return BINARY[self.fn](a, b)

    def footprints(self, in_sizes: Sequence[Size], out_size: Size) -> tuple[Footprint, ...]:
        """Give the same pixel, or all pixels that a broadcast operand reaches."""
        prints = []
        for h, w in in_sizes:
            if (h, w) == out_size:
                prints.append(IDENTITY)
            elif (h, w) == (1, 1):
                prints.append(EVERYTHING)
            else:
                rows = Axis.from_ranges(h, *_line(h, out_size[0]))
                cols = Axis.from_ranges(w, *_line(w, out_size[1]))
                prints.append(Footprint(rows, cols))
        return tuple(prints)

    def full(self, inputs: Sequence[Tensor], weights: Weights) -> Tensor:
        """Compute all pixels."""
        return self.apply(inputs[0], inputs[1])

    def rows(
        self, inputs: Sequence[Pixels], weights: Weights, active: Tensor, out_size: Size
    ) -> Tensor:
        """Compute the active pixels."""
        a, b = (_operand(x, active, out_size) for x in inputs)
        return self.apply(a, b).expand(len(active), -1)

    def describe(self) -> str:
        """Say the function."""
        return self.fn


@dataclass(frozen=True)
class BinaryConst(Op):
    """A function of a value and a constant: `scalar`, or weights: const [H or 1, W or 1, C or 1].

    A scalar keeps float32's range in half precision, as the stock operation's does.
    """

    name: ClassVar[str] = "const"
    fn: str
    scalar: float | None = None
    const_first: bool = False
    per_position: bool = False

    def fixed(self, in_sizes: Sequence[Size]) -> str | None:
        """A constant per position stays where it is."""
        return "a constant per position" if self.per_position else None

    def _apply(self, x: Tensor, const: Tensor | float) -> Tensor:
        if isinstance(const, float):
            # a tensor without axes takes part in its own dtype and leaves the result's alone
            const = torch.tensor(const, dtype=torch.promote_types(x.dtype, torch.float32))
        return BINARY[self.fn](const, x) if self.const_first else BINARY[self.fn](x, const)

    def full(self, inputs: Sequence[Tensor], weights: Weights) -> Tensor:
        """Compute all pixels."""
        const = weights["const"] if self.scalar is None else self.scalar
        return self._apply(inputs[0], const)

    def rows(
        self, inputs: Sequence[Pixels], weights: Weights, active: Tensor, out_size: Size
    ) -> Tensor:
        """Compute the active pixels."""
        rows = take_rows(inputs[0], active)
        if self.scalar is not None:
            return self._apply(rows, self.scalar)
        return self._apply(rows, _operand(weights["const"], active, out_size))

    def describe(self) -> str:
        """Say the function."""
        return self.fn


@dataclass(frozen=True)
class Softmax(Op):
    """Softmax (or its logarithm) over the channels of each pixel."""

    name: ClassVar[str] = "softmax"
    log: bool = False

    def _apply(self, x: Tensor) -> Tensor:
        return x.log_softmax(-1) if self.log else x.softmax(-1)

    def full(self, inputs: Sequence[Tensor], weights: Weights) -> Tensor:
        """Compute all pixels."""
        return self._apply(inputs[0])

    def rows(
        self, inputs: Sequence[Pixels], weights: Weights, active: Tensor, out_size: Size
    ) -> Tensor:
        """Compute the active pixels."""
        return self._apply(take_rows(inputs[0], active))
