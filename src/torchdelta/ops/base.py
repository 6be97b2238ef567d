"""The shape of an operation, and footprints: which outputs a changed input can touch.

All tensors here are one slot of a state buffer, [H, W, C]; a value that is no map has H = W = 1.
An *active* list holds flat indices into [Ho, Wo], int64, ascending. Where a stream's window has
moved, its pixels lie on a `Ring`, which `take_rows` and `put_rows` read and write in the window's
reading order.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

Weights = Mapping[str, Tensor]
Size = tuple[int, int]


def nchw(x: Tensor) -> Tensor:
    """View [H, W, C] as [1, C, H, W]."""
    return x.permute(2, 0, 1).unsqueeze(0)


def hwc(y: Tensor) -> Tensor:
    """View [1, C, H, W] as [H, W, C]."""
    return y[0].permute(1, 2, 0)


@dataclass(frozen=True, eq=False)
class Ring:
    """One slot of a value whose window begins inside its buffer.

    cells:  [H, W, C], the slot's slice of the buffer
    origin: (oy, ox): pixel (y, x) of the window lies at ((y + oy) mod H, (x + ox) mod W)
    """

    cells: Tensor
    origin: Size

    @property
    def shape(self) -> torch.Size:
        """Height, width and channels."""
        return self.cells.shape

    @property
    def device(self) -> torch.device:
        """Where the cells lie."""
        return self.cells.device

    @property
    def dtype(self) -> torch.dtype:
        """What the cells hold."""
        return self.cells.dtype

    def places(self, index: Tensor) -> Tensor:
        """Turn flat indices into the window into flat indices into the cells."""
        h, w = self.cells.shape[:2]
        return (index // w + self.origin[0]) % h * w + (index % w + self.origin[1]) % w


Pixels = Tensor | Ring


def take_rows(x: Pixels, index: Tensor) -> Tensor:
    """Gather pixels: x [H, W, C] at flat indices [M] gives [M, C]."""
    if isinstance(x, Ring):
        index, x = x.places(index), x.cells
    return x.flatten(0, 1).index_select(0, index)


def wide(x: Tensor) -> Tensor:
    """Give numbers in float32, in which sums of half precision do not overflow, or in float64."""
    return x if x.dtype == torch.float64 else x.float()


def put_rows(x: Pixels, index: Tensor, rows: Tensor) -> None:
    """Write rows [M, C] to the pixels of x [H, W, C] at flat indices [M]."""
    if isinstance(x, Ring):
        index, x = x.places(index), x.cells
    x.flatten(0, 1).index_copy_(0, index, rows)


def take_all(x: Pixels) -> Tensor:
    """Give all pixels in reading order, [H, W, C]: a view, or a copy of a ring."""
    if isinstance(x, Ring):
        return x.cells.roll((-x.origin[0], -x.origin[1]), (0, 1))
    return x


def put_all(x: Pixels, new: Tensor) -> None:
    """Write all pixels, given in reading order, [H, W, C]."""
    if isinstance(x, Ring):
        x.cells.copy_(new.roll(x.origin, (0, 1)))
    else:
        x.copy_(new)


@dataclass(frozen=True)
class Axis:
    """One axis of a separable footprint: which inputs an output coordinate reads.

    A window reads `o * stride - pad + t * dilation` for t < kernel; `table` [n_out, T] lists the
    inputs where they follow no such rule (-1: none). Coordinates outside [0, n_in) are padding.
    """

    n_in: int
    n_out: int
    kernel: int = 1
    stride: int = 1
    dilation: int = 1
    pad: int = 0
    table: tuple[tuple[int, ...], ...] | None = None

    @classmethod
    def from_ranges(cls, n_in: int, lo: Sequence[int], hi: Sequence[int]) -> Axis:
        """Make an axis whose output o reads the inputs lo[o] .. hi[o], both included."""
        width = max(1, max(h - a + 1 for a, h in zip(lo, hi, strict=True)))
        table = tuple(
            tuple(a + t if a + t <= h else -1 for t in range(width))
            for a, h in zip(lo, hi, strict=True)
        )
        return cls(n_in, len(lo), table=table)

    @cached_property
    def taps(self) -> np.ndarray:
        """All inputs that each output reads: [n_out, T] int64, -1 where there is none."""
        if self.table is not None:
            return np.asarray(self.table, dtype=np.int64).reshape(self.n_out, -1)
        first = np.arange(self.n_out)[:, None] * self.stride - self.pad
        taps = first + np.arange(self.kernel)[None, :] * self.dilation
        return np.where((taps >= 0) & (taps < self.n_in), taps, -1)

    def spread(self, mask: Tensor, dim: int) -> Tensor:
        """Mark the outputs along `dim` that read a marked input; mask is bool [H, W]."""
        one_to_one = self.kernel == 1 and self.stride == 1 and self.pad == 0
        if self.table is None and one_to_one and self.n_in == self.n_out:
            return mask
        # a line of False at the end stands for "no input"
        shape = list(mask.shape)
        if self.table is None:
            reach = (self.n_out - 1) * self.stride + (self.kernel - 1) * self.dilation + 1
            shape[dim] = max(reach, self.pad + self.n_in)
            padded = mask.new_zeros(shape)
            padded.narrow(dim, self.pad, self.n_in).copy_(mask)
            span = (self.n_out - 1) * self.stride + 1
            out = None
            for t in range(self.kernel):
                line = padded.narrow(dim, t * self.dilation, span)
                line = line[:: self.stride] if dim == 0 else line[:, :: self.stride]
                out = line if out is None else out | line
            assert out is not None
            return out
        shape[dim] = self.n_in + 1
        padded = mask.new_zeros(shape)
        padded.narrow(dim, 0, self.n_in).copy_(mask)
        taps = torch.from_numpy(self.taps % (self.n_in + 1)).to(mask.device)
        out = padded.index_select(dim, taps[:, 0])
        for t in range(1, taps.shape[1]):
            out = out | padded.index_select(dim, taps[:, t])
        return out


@dataclass(frozen=True)
class Footprint:
    """Map from the changed pixels of one input to the active pixels of the output.

    `rows`/`cols` None: every output pixel reads the input pixel at its own place ("identity").
    `everything`: any change of the input makes all outputs active.
    """

    rows: Axis | None = None
    cols: Axis | None = None
    everything: bool = False

    @classmethod
    def separable(cls, axes: Iterable[Axis]) -> Footprint:
        """Make a footprint of one axis for rows and one for columns."""
        rows, cols = axes
        return cls(rows, cols)

    @property
    def identity(self) -> bool:
        """Whether an output pixel reads exactly the input pixel at its own place."""
        return self.rows is None and not self.everything

    def active(self, changed: Tensor, out_size: Size) -> Tensor:
        """Spread a change mask bool [H, W] to the active set, bool [Ho, Wo]."""
        if self.everything:
            return changed.any().expand(out_size)
        if self.rows is None or self.cols is None:
            return changed
        return self.cols.spread(self.rows.spread(changed, 0), 1)


IDENTITY = Footprint()
EVERYTHING = Footprint(everything=True)


@dataclass(frozen=True)
class Op:
    """One operation with its parameters, frozen.

    kind:   "rows": computed pixel by pixel through `rows`; "window": through `tile` on gathered
            windows; "whole": only `full` exists, `whole_reason` says why
    gated:  False: the gate behind it compares values, its threshold is 0, because the operation
            only moves numbers or is one half of a larger one
    gives_sums, takes_sums: whether its result, or its input, are partial sums in float32, whatever
            the session's dtype
    """

    name: ClassVar[str]
    kind: ClassVar[Literal["rows", "window", "whole"]] = "rows"
    whole_reason: ClassVar[str] = ""
    gated: ClassVar[bool] = True
    gives_sums: ClassVar[bool] = False
    takes_sums: ClassVar[bool] = False

    def fixed(self, in_sizes: Sequence[Size]) -> str | None:
        """Say why moving the input by whole strides does more than move the output, or None.

        What the footprints show need not be said: outputs that read other places than a shift
        takes them to.
        """
        return None

    def footprints(self, in_sizes: Sequence[Size], out_size: Size) -> tuple[Footprint, ...]:
        """Give one footprint per input."""
        return (IDENTITY,) * len(in_sizes)

    def full(self, inputs: Sequence[Tensor], weights: Weights) -> Tensor:
        """Compute all outputs: inputs [H, W, C] each, in reading order; returns [Ho, Wo, Co]."""
        # every operation defines it; the op cases run each one
        raise NotImplementedError

    def rows(
        self, inputs: Sequence[Pixels], weights: Weights, active: Tensor, out_size: Size
    ) -> Tensor:
        """Compute the outputs at the active pixels: active [M] int64, returns [M, Co]."""
        # asked for only where `kind` is "rows" (or a convolution is pointwise)
        raise NotImplementedError

    def macs(self, weights: Weights, out_size: Size) -> int:
        """Count multiply-accumulates of the whole map."""
        return 0

    def describe(self) -> str:
        """Say the parameters in a few characters, for explain()."""
        return ""


@dataclass(frozen=True)
class WindowOp(Op):
    """An operation on windows of one input, computed on gathered tiles.

    The engine cuts tiles of `tile_out` outputs, gathers the inputs that they read (filling with
    `fill` outside the map) and calls `tile`; then `finish` on the rows of the active pixels.
    """

    kind: ClassVar[Literal["rows", "window", "whole"]] = "window"

    @property
    def fill(self) -> float:
        """What stands outside the map."""
        return 0.0

    @property
    def pitch(self) -> Size:
        """Tile sizes and origins, in output pixels, must be multiples of this (h, w)."""
        return (1, 1)

    def reach(self, axis: int, length: int) -> tuple[int, int, int]:
        """Input span of `length` outputs along an axis (0: rows, 1: columns).

        Returns (num, offset, extent): outputs from o on read the `extent` inputs from
        o * num // pitch + offset on.
        """
        # every windowed operation defines it, and `tile`; the op cases run each one
        raise NotImplementedError

    def tile(self, x: Tensor, weights: Weights, out: Size) -> Tensor:
        """Compute gathered tiles: x [T, C, ih, iw] gives [T, Co, out h, out w]."""
        raise NotImplementedError

    def finish(self, rows: Tensor, active: Tensor, in_size: Size, out_size: Size) -> Tensor:
        """Complete rows [M, Co] with what depends on the place in the map."""
        return rows
