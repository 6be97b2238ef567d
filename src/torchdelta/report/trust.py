"""How much faster one side was, and what speaks against believing it."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import numpy as np

# p80 / p20 of the dense network's times; on a quiet machine they lie within a few percent
MOST_SPREAD = 3.0
# a speed-up beyond 1 / MAC share does not come from work that was left out; some of it may come
# from better kernels
MOST_BEYOND = 1.5


def speedup_of(ours_ms: Sequence[float], dense_ms: Sequence[float]) -> float | None:
    """Give the median of dense's times over the median of ours; None without times.

    ours_ms, dense_ms: of the same frames, measured in turns
    """
    if not ours_ms or not dense_ms:
        return None
    ours = statistics.median(ours_ms)
    return statistics.median(dense_ms) / ours if ours > 0 else None


def doubts(
    dense_ms: Sequence[float], speedup: float | None, mac_share: float | None, dense: str = "dense"
) -> list[str]:
    """Say why a speed-up is not to be trusted, one clause for each reason; none: nothing does.

    dense_ms:  the dense network's times of single frames
    speedup:   dense's time over ours;  mac_share: share of the MACs that ours took, 0..1, as the
               speed-up a median or a mean
    dense:     what the other side is called
    """
    found = []
    if dense_ms:
        p20, p80 = (float(p) for p in np.percentile(dense_ms, (20, 80)))
        if p80 > MOST_SPREAD * p20:
            found.append(
                f"{dense} took between {p20:.3g} and {p80:.3g} ms a frame (20% and 80%), for the "
                "same work: the machine was busy with something else"
            )
    if speedup and mac_share and speedup > MOST_BEYOND / mac_share:
        found.append(
            f"a MAC share of {mac_share:.1%} accounts for {1 / mac_share:.2f}x: the rest of "
            f"{speedup:.2f}x is a machine that was busy while {dense} ran, or {dense} that is slow "
            "here"
        )
    return found
