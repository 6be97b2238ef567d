"""Operations that only move numbers; the gate behind them compares values.

remap:          out[y, x, c] = in[rows[y], cols[x], channels[c]], or `fill` where an index is -1
                (crop and stride, padding of any mode, nearest resize, flip, channel shuffle)
pixel_shuffle:  out[y*r + i, x*r + j, c] = in[y, x, (c*r + i)*r + j], and its inverse
reshape:        the same numbers in the model's order [C, H, W], cut otherwise
copy:           a value that stands in a second concatenation
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from torchdelta.ops.base import (
    EVERYTHING,
    Axis,
    Footprint,
    Op,
    Pixels,
    Size,
    Weights,
    hwc,
    nchw,
    take_rows,
)

Index = tuple[int, ...]


@dataclass(frozen=True)
class Remap(Op):
    """Read each output from one input place, by an index per row, column and channel.

    None stands for the identity along that axis, -1 in an index for `fill`.
    """

    name: ClassVar[str] = "remap"
    gated: ClassVar[bool] = False
    rows_from: Index | None = None
    cols_from: Index | None = None
    channels_from: Index | None = None
    fill: float = 0.0
    what: str = "remap"

    @cached_property
    def _given(self) -> tuple[np.ndarray | None, np.ndarray | None]:
        rows, cols = (
            None if index is None else np.asarray(index, dtype=np.int64)
            for index in (self.rows_from, self.cols_from)
        )
        return rows, cols

    def _index(self, axis: int, n: int) -> np.ndarray:
        index = self._given[axis]
        return np.arange(n) if index is None else index

    def footprints(self, in_sizes: Sequence[Size], out_size: Size) -> tuple[Footprint, ...]:
        """Mark the outputs that read a changed pixel."""
        if self.rows_from is None and self.cols_from is None:
            return (Footprint(),)
        axes = []
        for a in (0, 1):
            index = self._index(a, in_sizes[0][a])
            axes.append(Axis(in_sizes[0][a], out_size[a], table=tuple((int(i),) for i in index)))
        return (Footprint.separable(axes),)

    @cached_property
    def _channels(self) -> Tensor | None:
        return (
            None
            if self.channels_from is None
            else torch.tensor(self.channels_from, dtype=torch.int64)
        )

    def full(self, inputs: Sequence[Tensor], weights: Weights) -> Tensor:
        """Move all pixels."""
        x = inputs[0]
        for dim, index in enumerate(self._given):
            if index is not None:
                at = torch.from_numpy(index).to(x.device)
                x = x.index_select(dim, at.clamp(min=0))
                x.index_fill_(dim, (at < 0).nonzero()[:, 0], self.fill)
        if self._channels is not None:
            x = x.index_select(2, self._channels.to(x.device))
        return x

    def rows(
        self, inputs: Sequence[Pixels], weights: Weights, active: Tensor, out_size: Size
    ) -> Tensor:
        """Move the active pixels."""
        x = inputs[0]
        if self.rows_from is None and self.cols_from is None:
            out = take_rows(x, active)
        else:
            h, w = x.shape[:2]
            rows = torch.from_numpy(self._index(0, h)).to(x.device)[active // out_size[1]]
            cols = torch.from_numpy(self._index(1, w)).to(x.device)[active % out_size[1]]
            out = take_rows(x, rows.clamp(min=0) * w + cols.clamp(min=0))
            out.masked_fill_(((rows < 0) | (cols < 0)).unsqueeze(1), self.fill)
        return out if self._channels is None else out.index_select(1, self._channels.to(x.device))

    def describe(self) -> str:
        """Say what it stands for."""
        return self.what


@dataclass(frozen=True)
class PixelShuffle(Op):
    """Move channels to space: [H, W, C*r*r] to [H*r, W*r, C]."""

    name: ClassVar[str] = "pixel_shuffle"
    gated: ClassVar[bool] = False
    factor: int

    def footprints(self, in_sizes: Sequence[Size], out_size: Size) -> tuple[Footprint, ...]:
        """Each input pixel gives a block of r x r outputs."""
        axes = [
            Axis(n, m, table=tuple((o // self.factor,) for o in range(m)))
            for n, m in zip(in_sizes[0], out_size, strict=True)
        ]
        return (Footprint.separable(axes),)

    def full(self, inputs: Sequence[Tensor], weights: Weights) -> Tensor:
        """Move all pixels."""
        return hwc(F.pixel_shuffle(nchw(inputs[0]), self.factor))

    def rows(
        self, inputs: Sequence[Pixels], weights: Weights, active: Tensor, out_size: Size
    ) -> Tensor:
        """Move the active pixels."""
        r, x = self.factor, inputs[0]
        oy, ox = active // out_size[1], active % out_size[1]
        block = take_rows(x, (oy // r) * x.shape[1] + ox // r).unflatten(1, (-1, r * r))
        place = ((oy % r) * r + ox % r)[:, None, None].expand(-1, block.shape[1], 1)
        return block.gather(2, place)[:, :, 0]

    def describe(self) -> str:
        """Say the factor."""
        return f"x{self.factor}"


@dataclass(frozen=True)
class PixelUnshuffle(Op):
    """Move space to channels: [H*r, W*r, C] to [H, W, C*r*r]."""

    name: ClassVar[str] = "pixel_unshuffle"
    gated: ClassVar[bool] = False
    factor: int

    def footprints(self, in_sizes: Sequence[Size], out_size: Size) -> tuple[Footprint, ...]:
        """Each output reads a block of r x r inputs."""
        axes = [
            Axis(n, m, self.factor, self.factor) for n, m in zip(in_sizes[0], out_size, strict=True)
        ]
        return (Footprint.separable(axes),)

    def full(self, inputs: Sequence[Tensor], weights: Weights) -> Tensor:
        """Move all pixels."""
        return hwc(F.pixel_unshuffle(nchw(inputs[0]), self.factor))

    def rows(
        self, inputs: Sequence[Pixels], weights: Weights, active: Tensor, out_size: Size
    ) -> Tensor:
        """Move the active pixels."""
        r, x = self.factor, inputs[0]
        width = x.shape[1]
        corner = (active // out_size[1]) * (r * width) + (active % out_size[1]) * r
        parts = [take_rows(x, corner + i * width + j) for i in range(r) for j in range(r)]
        return torch.stack(parts, 2).flatten(1)

    def describe(self) -> str:
        """Say the factor."""
        return f"/{self.factor}"


@dataclass(frozen=True)
class Reshape(Op):
    """The numbers of `shape_in` (model's order) cut as `shape_out`: flatten, unflatten, view."""

    name: ClassVar[str] = "reshape"
    whole_reason: ClassVar[str] = "every number moves"
    kind: ClassVar[Literal["rows", "window", "whole"]] = "whole"
    gated: ClassVar[bool] = False
    shape_in: tuple[int, ...]
    shape_out: tuple[int, ...]

    def fixed(self, in_sizes: Sequence[Size]) -> str | None:
        """Flattening fixes every pixel's place."""
        return "every number has its place"

    def footprints(self, in_sizes: Sequence[Size], out_size: Size) -> tuple[Footprint, ...]:
        """Any change counts for all."""
        return (EVERYTHING,)

    def full(self, inputs: Sequence[Tensor], weights: Weights) -> Tensor:
        """Put the numbers into the model's order and cut anew."""
        return to_state_layout(to_model_layout(inputs[0], self.shape_in).reshape(self.shape_out))

    def describe(self) -> str:
        """Say the shapes."""
        return f"{list(self.shape_in)} to {list(self.shape_out)}"


@dataclass(frozen=True)
class Copy(Op):
    """The same value again, where it stands in a second concatenation."""

    name: ClassVar[str] = "copy"
    gated: ClassVar[bool] = False

    def full(self, inputs: Sequence[Tensor], weights: Weights) -> Tensor:
        """Copy all pixels."""
        return inputs[0]

    def rows(
        self, inputs: Sequence[Pixels], weights: Weights, active: Tensor, out_size: Size
    ) -> Tensor:
        """Copy the active pixels."""
        return take_rows(inputs[0], active)


def state_shape(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Give (H, W, C) of the state of a value with this shape (model's order, no batch)."""
    if len(shape) == 3:
        return shape[1], shape[2], shape[0]
    return 1, 1, prod(shape)


def to_model_layout(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """View or copy a state slice [H, W, C] in the model's order, without a batch axis."""
    return x.permute(2, 0, 1) if len(shape) == 3 else x.reshape(shape)


def to_state_layout(y: Tensor) -> Tensor:
    """View or copy one stream's tensor (model's order, no batch axis) as [H, W, C]."""
    return y.permute(1, 2, 0) if y.ndim == 3 else y.reshape(1, 1, -1)
