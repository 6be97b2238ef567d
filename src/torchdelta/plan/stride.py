"""How much coarser than the frame each map is, whether or not it follows a window's moves.

A map behind a dense step hangs on its place in the window (`plan.shift`), but it is no finer than
before: a window that moves by less than its stride would be cut otherwise by the layers behind it,
and the input gate counts in cells by the coarsest map. Of a dense step nothing is known but the
size of what it gives: where that is a map's that it was made from, the stride is that map's too
(norms, sums, and a permute once it is undone). Other shapes keep in mind what they were made from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from math import prod

from torchdelta.ops.base import Size
from torchdelta.ops.dense import Dense
from torchdelta.plan.ir import Step, Value
from torchdelta.plan.ratio import Stride, ratio_of


@dataclass(frozen=True)
class _Grid:
    """The map that a value was made from: its size, and input pixels between its pixels (y, x).

    plain: whether the value is such a map itself
    lost:  name of the dense step behind which the value has been no map; None: a known one did it
    """

    size: Size
    stride: Stride
    plain: bool = True
    lost: str | None = None


@dataclass(frozen=True)
class MapStrides:
    """The maps' strides in input pixels, and where they are no longer known.

    of:           by value, (y, x); None: it is no map, or nobody knows
    unknown_from: name of the first step behind which a stride may be longer than is known; None:
                  there is none
    """

    of: tuple[Stride | None, ...]
    unknown_from: str | None


def map_strides(
    values: Sequence[Value], steps: Sequence[Step], input: int, outputs: Sequence[int]
) -> MapStrides:
    """Work out how coarse a plan's maps are, from footprints and from sizes.

    input, outputs: which values come in and go out
    """
    grids: list[_Grid | None] = [None] * len(values)
    grids[input] = _Grid(values[input].size, (Fraction(1), Fraction(1)))
    unknown: list[str] = []
    for step in steps:
        grids[step.output] = _grid_of(values, step, grids, unknown)
    for output in outputs:
        unknown += [grid.lost for grid in _of_view(values[output], grids) if grid.lost]
    order = {step.name: i for i, step in enumerate(steps)}
    return MapStrides(
        tuple(grid.stride if grid and grid.plain else None for grid in grids),
        min(unknown, key=order.__getitem__, default=None),
    )


def _of_view(value: Value, grids: list[_Grid | None]) -> list[_Grid]:
    return [grid for owner in value.owners if (grid := grids[owner]) is not None]


def _grid_of(
    values: Sequence[Value], step: Step, grids: list[_Grid | None], unknown: list[str]
) -> _Grid | None:
    """Give what a step's output was made from; what is lost for good goes to `unknown`."""
    out, size = values[step.output], values[step.output].size
    sizes = [values[v].size for v in step.inputs[: step.arity]]
    found: list[_Grid] = []
    for value, footprint in zip(step.inputs, step.footprints, strict=True):
        for grid in _of_view(values[value], grids):
            ratio = None if isinstance(step.op, Dense) else ratio_of(footprint)
            if ratio != (1, 1) and step.op.fixed(sizes):
                # the tiles of a global pool, and what stretches a map to another one's corners
                ratio = None
            if grid.plain and ratio is not None:
                stride = grid.stride[0] * ratio[0], grid.stride[1] * ratio[1]
                found.append(_Grid(size, stride))
            elif grid.size == size:
                found.append(_Grid(size, grid.stride))
            elif ratio is not None and ratio != (1, 1) and size != (1, 1):
                unknown.append(grid.lost or step.name)
            else:
                made = out.name if grid.plain and isinstance(step.op, Dense) else None
                found.append(replace(grid, plain=False, lost=grid.lost or made))
    if prod(out.shape) == max(out.shape, default=1):
        # one vector of the whole map: what came back from nowhere before it never will
        unknown += [grid.lost for grid in found if grid.lost and grid.lost != out.name]
        return None
    plain = [grid for grid in found if grid.plain]
    return max(plain or found, key=lambda grid: grid.stride, default=None)
