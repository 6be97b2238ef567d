"""Whole networks: at tolerance 0 each frame's result is the dense network's."""

from functools import cache

import pytest
import torch
from torch import nn

import torchdelta
from networks import NETWORKS, build
from support import ENGINE_CASES, move, new_session

# relative L2, float32: folded batch norms and other orders of summation through 100 layers
FP32 = 1e-4


@cache
def compiled(spec: str) -> tuple[torchdelta.CompiledModel, nn.Module]:
    """Compile a network once per worker."""
    size = NETWORKS[spec]
    model = build(spec, size)
    return torchdelta.compile(model, torch.rand(1, 3, *size), input_range=(0, 1)), model


@pytest.mark.parametrize("engine", ENGINE_CASES)
@pytest.mark.parametrize(
    "spec", [pytest.param(spec, marks=pytest.mark.xdist_group(spec)) for spec in NETWORKS]
)
def test_network_equals_dense(engine: str, spec: str) -> None:
    fast, model = compiled(spec)
    generator = torch.Generator().manual_seed(2)
    x = torch.rand(1, 3, *NETWORKS[spec], generator=generator)
    assert not any(step.dense for step in fast.plan.steps), fast.explain()
    session = new_session(fast, engine, tolerance=0.0)
    last = None
    shares = []
    for kind in ("first", "patch", "patch", "stripes", "patch"):
        x = move(x, kind, generator)
        result = session.step({"s": x})["s"]
        with torch.no_grad():
            expected = model(x)
        error = torchdelta.relative_error(result.output, expected)
        assert error <= FP32, (kind, error)
        assert type(result.output) is type(expected)
        if last is not None:
            assert torchdelta.relative_error(last, expected) > 1e-2, "the dense output stands still"
        last = expected
        shares.append(result.stats.mac_share)
    assert shares[0] == 1.0
    assert shares[1] < 1.0
