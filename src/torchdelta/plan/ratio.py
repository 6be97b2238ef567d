"""By how much a footprint makes a map coarser or finer, as a shift of its input shows."""

from __future__ import annotations

from fractions import Fraction
from functools import lru_cache

import numpy as np

from torchdelta.ops.base import Axis, Footprint, Size

Stride = tuple[Fraction, Fraction]

# enlargements and reductions that are looked for in footprints without a rule
MOST_RATIO = 64


def ratio_of(footprint: Footprint) -> Stride | None:
    """Give by how much longer than the input's an output's stride is, (y, x); None: no rule."""
    if footprint.everything:
        return None
    ratios = []
    for axis in (footprint.rows, footprint.cols):
        found = (1, 1) if axis is None else shift_ratio(axis)
        if found is None:
            return None
        ratios.append(Fraction(*found))
    return ratios[0], ratios[1]


@lru_cache(maxsize=4096)
def shift_ratio(axis: Axis) -> Size | None:
    """Find the least shift (k_in, k_out) with taps[o + k_out] == taps[o] + k_in off the edges.

    One of the two is 1: a reduction or an enlargement by a whole number. None: there is no such.
    """
    if axis.table is None:
        return axis.stride, 1
    reads = sorted_taps(axis.taps)
    for more in range(1, MOST_RATIO + 1):
        for k_in, k_out in ((1, more), (more, 1)):
            same = same_taps(reads, k_out, k_in)
            # the edges are where a run around the middle ends
            places = np.flatnonzero(~same)
            middle = len(same) // 2
            low, high = places[places <= middle], places[places >= middle]
            begin, end = (low[-1] + 1 if len(low) else 0), (high[0] if len(high) else len(same))
            if 2 * (end - begin) > len(same):
                return k_in, k_out
    return None


# no input: larger than any coordinate
NONE = np.iinfo(np.int64).max // 2


def sorted_taps(taps: np.ndarray) -> np.ndarray:
    """Sort each output's inputs, what is read twice counts once; the rest is NONE: [n_out, T]."""
    reads = np.sort(np.where(taps < 0, NONE, taps), axis=1)
    reads[:, 1:][reads[:, 1:] == reads[:, :-1]] = NONE
    return np.sort(reads, axis=1)


def same_taps(reads: np.ndarray, k_out: int, k_in: int) -> np.ndarray:
    """Mark the outputs o < n_out - k_out that read what o + k_out reads, moved by k_in."""
    later = reads[k_out:]
    moved = np.where(later == NONE, NONE, later - k_in)
    return (moved == reads[: len(later)]).all(1)
