"""What gates let through is counted: groups of channels, and pixels with any."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch
from torch import nn

import torchdelta
from cases import Fn
from streams import history
from support import (
    ENGINES_THAT_COUNT,
    around_threshold,
    copies,
    gate_profile,
    new_session,
)

pytestmark = pytest.mark.check

KINDS = ("patch", "same", "pixel", "noise", "corner", "all")


@pytest.mark.parametrize("engine", ENGINES_THAT_COUNT)
def test_groups_that_moved(engine: str) -> None:
    fast, _ = copies(150)
    session = new_session(fast, engine, 0.1, profile=gate_profile(fast, "rms"))
    x = torch.full((1, 1, 5, 9), 0.5)
    report = session.step({"s": x})["s"].report()
    assert report.published_px[:2] == [45, 45]
    assert report.published_groups[:2] == [3 * 45, 45]
    x[0, 0, 2, 3] += 0.5
    x[0, 0, 4, 1] -= 0.3
    report = session.step({"s": x})["s"].report()
    assert report.published_px[0] == 2
    assert report.published_groups[0] == 6
    assert session.step({"s": x})["s"].report().published_groups[0] == 0


@pytest.mark.parametrize("engine", ENGINES_THAT_COUNT)
def test_one_group_of_three(engine: str) -> None:
    fast, scale = copies(150)
    still = torch.full((1, 1, 5, 9), 0.5)
    for _, moved, _ in around_threshold(still, scale, "rms", torch.float32):
        session = new_session(fast, engine, 0.1, profile=gate_profile(fast, "rms"))
        session.step({"s": still})
        report = session.step({"s": moved})["s"].report()
        sizes = [float(part.square().mean().sqrt()) for part in scale.split(64)]
        by = float((moved - 0.5).abs().max())
        expected = sum(by * size > 0.1 for size in sizes)
        assert report.published_groups[0] == expected
        assert report.published_px[0] == (expected > 0)


def test_engines_agree() -> None:
    """At gates that rounding does not open; where all is published, at all of them."""
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 150, 3, padding=1), nn.ReLU(), nn.Conv2d(150, 40, 1), nn.Sigmoid()
    model = nn.Sequential(*layers, Fn(lambda x: x.cumsum(1)), nn.Conv2d(40, 8, 3)).eval()
    fast = torchdelta.compile(model, torch.rand(1, 3, 12, 17), input_range=(0, 1))
    plan = fast.plan
    gated = [i for i, step in enumerate(plan.steps) if plan.values[step.output].gated]
    assert any(plan.steps[i].dense for i in gated)
    assert max(plan.values[plan.steps[i].output].channels for i in gated) > 128
    sessions = {engine: new_session(fast, engine, 1e-3, slots=2) for engine in ENGINES_THAT_COUNT}
    frames = [history(KINDS, seed, plan.shape) for seed in (1, 2)]
    for t, (x, y) in enumerate(zip(*frames, strict=True)):
        steps = gated if t else range(len(plan.steps))
        found: dict[str, list[list[tuple[int, int]]]] = {}
        for engine, session in sessions.items():
            reports = [r.report() for r in session.step({"a": x, "b": y}).values()]
            found[engine] = [
                [(r.published_px[i], r.published_groups[i]) for i in steps] for r in reports
            ]
        for one, other in combinations(found, 2):
            assert found[one] == found[other], (t, one, other)
