"""A plan is frozen data: no live operation, no function of the model; it can be pickled."""

from __future__ import annotations

import dataclasses
import operator
import pickle
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torchdelta
from cases import Fn
from support import make_engine, run_op_case
from torchdelta.ops.dense import Dense, name_of, operation

pytestmark = pytest.mark.check

MODEL = nn.Sequential(
    nn.Conv2d(3, 8, 3, padding=1), nn.Hardswish(), Fn(lambda x: x.cumsum(1)),
    Fn(lambda x: x.topk(3, 1)[0] * 2), nn.MaxPool2d(2),
).eval()  # fmt: skip


def parts(thing: Any) -> Iterator[Any]:
    """Walk over everything that a plan is made of."""
    yield thing
    if dataclasses.is_dataclass(thing):
        inner: Any = [getattr(thing, field.name) for field in dataclasses.fields(thing)]
    elif isinstance(thing, Mapping):
        inner = [*thing.keys(), *thing.values()]
    elif isinstance(thing, (tuple, list, set, frozenset)):
        inner = list(thing)
    else:
        return
    for part in inner:
        yield from parts(part)


def test_nothing_in_a_plan_is_alive() -> None:
    plan = torchdelta.compile(MODEL, torch.rand(1, 3, 12, 16), input_range=(0, 1)).plan
    assert any(isinstance(step.op, Dense) for step in plan.steps)
    alive = [part for part in parts(plan) if callable(part) and not isinstance(part, Tensor)]
    # PyTorch's description of nested results is one, and a class
    assert not [part for part in alive if "TreeSpec" not in type(part).__name__]


def test_a_plan_that_was_pickled_gives_the_same() -> None:
    fast = torchdelta.compile(MODEL, torch.rand(1, 3, 12, 16), input_range=(0, 1))
    assert fast.plan.total_stride == (2, 2)
    again = pickle.loads(pickle.dumps(fast.plan))
    x = torch.rand(12, 16, 3)
    for index, step in enumerate(fast.plan.steps):
        assert str(again.steps[index].op) == str(step.op)
        if isinstance(step.op, Dense):
            state = torch.rand(*fast.plan.values[step.inputs[0]].size, 8)
            expected = step.op.full([state], step.weights)
            assert torch.equal(again.steps[index].op.full([state], step.weights), expected)
    first = make_engine("torch", fast.plan, torch.device("cpu"), torch.float32)
    other = make_engine("torch", again, torch.device("cpu"), torch.float32)
    assert torch.equal(first.evaluate(0, [x]), other.evaluate(0, [x]))


@pytest.mark.parametrize(
    "target", [torch.ops.aten.cumsum.default, torch.ops.aten.max.dim, operator.add]
)
def test_operations_are_found_by_their_names(target: Any) -> None:
    assert operation(name_of(target)) is target


def test_what_is_not_registered_has_no_name() -> None:
    with pytest.raises(ValueError, match="no operation that PyTorch has registered"):
        name_of(lambda x: x)


def test_the_dense_case_runs() -> None:
    run_op_case("torch", "topk", 1e-5)
