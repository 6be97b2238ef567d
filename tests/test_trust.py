"""When a speed-up is to be believed."""

from __future__ import annotations

import pytest

from torchdelta.report.trust import doubts, speedup_of

QUIET = [100.0, 101.0, 99.0, 102.0, 100.5, 98.0]


def test_the_speedup_is_of_medians() -> None:
    """Frames on which the machine was busy do not count for either side."""
    assert speedup_of([10, 10, 10, 500], [30, 30, 4000, 30]) == 3
    assert speedup_of([], []) is None
    assert speedup_of([0.0], [1.0]) is None


def test_a_speedup_that_the_work_accounts_for_is_believed() -> None:
    assert doubts(QUIET, 3.0, 0.33) == []
    # kernels may be better, too
    assert doubts(QUIET, 2.4, 0.6) == []
    # nothing was computed, so nothing bounds it
    assert doubts(QUIET, 5000.0, 0.0) == []
    assert doubts(QUIET, 0.4, 1.0) == []
    assert doubts([], None, None) == []


def test_a_speedup_beyond_the_work_saved_is_not() -> None:
    (why,) = doubts(QUIET, 42.77, 0.59)
    assert "MAC share of 59.0% accounts for 1.69x" in why
    assert "42.77x" in why
    assert "busy" in why
    (why,) = doubts(QUIET, 1.6, 1.0, dense="openvino")
    assert "while openvino ran" in why


@pytest.mark.parametrize(("busy_ms", "count"), [(290.0, 0), (310.0, 1)])
def test_a_dense_network_whose_time_varies_is_not(busy_ms: float, count: int) -> None:
    """Two of five frames are slow: the 80th percentile is one of them, the 20th is not."""
    found = doubts([100, 100, 100, busy_ms, busy_ms], 2.0, 0.5)
    assert len(found) == count
    assert all("20% and 80%" in why and "100" in why and "310" in why for why in found)


def test_one_slow_frame_is_no_reason() -> None:
    assert doubts([*QUIET * 3, 5000.0], 2.0, 0.5) == []


def test_both_reasons_are_told() -> None:
    assert len(doubts([100, 100, 4000, 4000, 4000], 42.77, 0.59)) == 2
