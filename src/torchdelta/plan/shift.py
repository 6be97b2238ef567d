"""What a window that moves over the world means for each value of a plan.

A window moves by whole multiples of the plan's total stride, so that every value that follows the
move does so by whole pixels. A value that does not follow (it hangs on the place in the window) is
*absolute*. Buffers stay where they are: pixel (y, x) of the window of a value of H x W pixels lies
at ((y + oy) mod H, (x + ox) mod W), with (oy, ox) = the window's origin / the value's stride.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from functools import cached_property, lru_cache
from math import lcm

import numpy as np

from torchdelta.ops.base import Axis, Size
from torchdelta.plan.ir import Step, Value, owners_of
from torchdelta.plan.ratio import NONE, Stride, ratio_of, same_taps, shift_ratio, sorted_taps
from torchdelta.plan.stride import map_strides

Lines = tuple[np.ndarray, np.ndarray]

# what a move makes of a line of pixels (see `Shifts.lines`); the larger one of two counts
KEPT, BORDER, UNSEEN = 0, 1, 2
# lines are kept for this many pairs of value and shift
MOST_LINES = 4096


class Shifts:
    """How the values of one plan follow a window that moves.

    strides:  by value: (y, x), input pixels between its neighbouring pixels; None: it is absolute
    reasons:  by index of the steps that are fully active whenever the window moved: why
    total:    (sy, sx), the least move in input pixels that all values follow by whole pixels, and
              that takes no map apart (`plan.stride`), whether or not it follows
    unknown_from: name of the step behind which maps may be coarser than `total` knows; None: none
    """

    def __init__(
        self, values: Sequence[Value], steps: Sequence[Step], input: int, outputs: Sequence[int]
    ) -> None:
        """Follow the steps; input, outputs: which values come in and go out."""
        self._values, self._steps, self._input = values, steps, input
        self.strides: list[Stride | None] = [None] * len(values)
        self.reasons: dict[int, str] = {}
        self._maker = {step.output: i for i, step in enumerate(steps)}
        self._follow()
        maps = map_strides(values, steps, input, outputs)
        self.unknown_from = maps.unknown_from
        self.total = self._total(maps.of)
        self.lines = lru_cache(MOST_LINES)(self._lines)

    def _follow(self) -> None:
        """Work out strides in order, again whenever a value becomes absolute for its neighbours.

        Values side by side in one buffer share its ring: they follow alike or not at all.
        """
        values = self._values
        while True:
            self.strides[self._input] = (Fraction(1), Fraction(1))
            for i, step in enumerate(self._steps):
                if i not in self.reasons:
                    self._stride_of(i, step)
            alone: dict[int, set[Stride | None]] = {}
            for v in owners_of(self._values):
                alone.setdefault(v.buffer, set()).add(self.strides[v.index])
            mixed = {buffer for buffer, strides in alone.items() if len(strides) > 1}
            torn = [
                v for v in owners_of(self._values)
                if v.buffer in mixed and self.strides[v.index] is not None
            ]  # fmt: skip
            if not torn:
                break
            for v in torn:
                assert v.index in self._maker, "the input has a buffer of its own"
                self.reasons[self._maker[v.index]] = "beside values that follow no shift"
            self.strides = [None] * len(values)
        for v in values:
            if v.owners != (v.index,):
                self._stride_of_view(v.index)

    def _stride_of(self, index: int, step: Step) -> None:
        found: set[Stride] = set()
        reason = step.op.fixed([self._values[v].size for v in step.inputs[: step.arity]])
        for value, footprint in zip(step.inputs, step.footprints, strict=True):
            if footprint.everything and self._values[value].size == (1, 1):
                # one pixel for all places
                continue
            stride, ratio = self._stride_of_view(value), ratio_of(footprint)
            if stride is None:
                reason = reason or f"behind {self._fixed_before(value)}"
            elif ratio is None:
                reason = reason or "its windows follow no shift"
            else:
                found.add((stride[0] * ratio[0], stride[1] * ratio[1]))
        if reason is None and len(found) != 1:
            reason = "its inputs follow different shifts" if found else "one vector for all places"
        if reason is not None:
            self.reasons[index] = reason
            return
        self.strides[step.output] = next(iter(found))

    def _stride_of_view(self, value: int) -> Stride | None:
        """Give the stride of a value that may be a view of several."""
        owners = self._values[value].owners
        strides = {self.strides[owner] for owner in owners}
        stride = strides.pop() if len(strides) == 1 else None
        self.strides[value] = stride
        return stride

    def _fixed_before(self, value: int) -> str:
        owners = self._values[value].owners
        fixed = [o for o in owners if self.strides[o] is None]
        return self._values[(fixed or owners)[0]].name

    def _total(self, maps: Sequence[Stride | None]) -> Size:
        """Find the least move that every value, and every step's rule, follows.

        maps: the maps' strides by value
        """
        total = [lcm(*(stride[axis].numerator for stride in maps if stride)) for axis in (0, 1)]
        for step in self._steps:
            stride = self.strides[step.output]
            if stride is None:
                continue
            for value, footprint in zip(step.inputs, step.footprints, strict=True):
                before = self.strides[value]
                if before is None:
                    continue
                for axis, line in enumerate((footprint.rows, footprint.cols)):
                    period = 1 if line is None else (shift_ratio(line) or (1, 1))[0]
                    for least in (stride[axis], before[axis] * period):
                        total[axis] = lcm(total[axis], least.numerator)
        return total[0], total[1]

    @cached_property
    def absolute(self) -> np.ndarray:
        """Say by value whether it is absolute: bool [values]."""
        return np.array([stride is None for stride in self.strides])

    @cached_property
    def _fractions(self) -> tuple[np.ndarray, np.ndarray]:
        """Give strides as numerators and denominators [values, 2] int64; 1 / 0 is absolute."""
        known = [stride or (None, None) for stride in self.strides]
        above = [[f.numerator if f else 1 for f in stride] for stride in known]
        below = [[f.denominator if f else 0 for f in stride] for stride in known]
        return np.array(above, dtype=np.int64), np.array(below, dtype=np.int64)

    def pixels(self, distance: Size) -> np.ndarray:
        """Give a distance in the world in pixels of each value.

        distance: (y, x), input pixels, multiples of `total`
        returns:  [values, 2] int64; 0 where the value is absolute
        """
        above, below = self._fractions
        return np.asarray(distance, dtype=np.int64) * below // above

    def rings(self, origin: Size) -> np.ndarray:
        """Give where in each value's buffer a window with this origin begins.

        origin:  (y, x) of the window's corner in the world, input pixels, multiples of `total`
        returns: [values, 2] int64, pixels, 0 <= y < H and 0 <= x < W of the value
        """
        return self.pixels(origin) % self._sizes

    @cached_property
    def _sizes(self) -> np.ndarray:
        return np.array([v.size for v in self._values], dtype=np.int64)

    def _lines(self, value: int, shift: Size, exact: bool) -> Lines:
        """Say what a move makes active of a written value: uint8 [H] by row, uint8 [W] by column.

        shift:   (dy, dx), how far the window moved in the world, input pixels
        exact:   with BORDER for the pixels whose window crosses the old or the new edge
        A pixel is what the larger of its row and its column says: UNSEEN: active and published
        without comparing (all of an absolute value's pixels; those that the window did not cover
        before the move); BORDER: active, gated as always; KEPT: active where the footprints say.
        Kept for later calls: not to be written to. Call it as `lines`.
        """
        h, w = self._values[value].size
        if self.strides[value] is None:
            return np.full(h, UNSEEN, np.uint8), np.full(w, UNSEEN, np.uint8)
        k = self.pixels(shift)
        step = self._steps[self._maker[value]] if exact and value in self._maker else None
        both = []
        for axis, n in enumerate((h, w)):
            line = np.zeros(n, np.uint8)
            move = int(k[value, axis])
            for source, footprint in zip(step.inputs, step.footprints, strict=True) if step else ():
                reads = (footprint.rows, footprint.cols)[axis]
                if reads is not None:
                    line |= _crossing(reads, move, int(k[source, axis]))
            before = np.arange(n) + move
            line[(before < 0) | (before >= n)] = UNSEEN
            both.append(line)
        return both[0], both[1]

    def edges(self, step: int) -> Lines:
        """Mark the output rows and columns of a step whose windows are not as in the middle.

        Returns bool [H], bool [W]: there a pixel of a window that moved may keep what it was
        computed from before (border="keep").
        """
        output = self._steps[step].output
        both = []
        for axis, n in enumerate(self._values[output].size):
            line = np.zeros(n, dtype=bool)
            for footprint in self._steps[step].footprints:
                reads = (footprint.rows, footprint.cols)[axis]
                if reads is not None and (ratio := shift_ratio(reads)):
                    line |= _unlike_the_middle(reads, *ratio)
            both.append(line)
        return both[0], both[1]


def _crossing(axis: Axis, k_out: int, k_in: int) -> np.ndarray:
    """Mark the outputs whose inputs are not the ones they had before a move: uint8 [n_out].

    What lay outside the window before the move is left out: it is unseen.
    """
    reads = sorted_taps(axis.taps)
    out = np.zeros(axis.n_out, dtype=np.uint8)
    if abs(k_out) >= axis.n_out:
        return out
    if k_out >= 0:
        out[: axis.n_out - k_out] = ~same_taps(reads, k_out, k_in)
    else:
        # o reads now what o - |k| read before: the same comparison, seen from the other side
        out[-k_out:] = ~same_taps(reads, -k_out, -k_in)
    return out


def _unlike_the_middle(axis: Axis, k_in: int, k_out: int) -> np.ndarray:
    """Mark the outputs whose inputs lie elsewhere than the middle's, relative to their place."""
    if axis.table is None:
        return np.any(axis.taps < 0, axis=1)
    reads = sorted_taps(axis.taps)
    middle = (axis.n_out - k_out) // 2
    distance = np.arange(axis.n_out) - middle
    model = reads[middle + distance % k_out]
    moved = model + (distance // k_out * k_in)[:, None]
    return np.any(np.where(model == NONE, NONE, moved) != reads, axis=1)
