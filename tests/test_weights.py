"""Weights are held once, counted all, and an audit copies no more of them than one step's."""

from __future__ import annotations

import weakref

import pytest
import torch
from torch import Tensor, nn

import torchdelta
from support import ENGINE_CASES, make_engine
from torchdelta.engines import Engine
from torchdelta.engines.weights import Weights
from torchdelta.plan.ir import Activation, Step
from torchdelta.runtime.inspect import frame_state
from torchdelta.runtime.session import Session

SHAPE = (3, 5, 6)
each_engine = pytest.mark.parametrize("case", ENGINE_CASES)


class Net(nn.Module):
    """Convolutions and a PReLU that every engine has, and steps left to PyTorch that have weights.

    Its grouped normalisation comes twice, with the same weights.
    """

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 32, 3, padding=1)
        self.slope = nn.PReLU(32)
        self.norm = nn.GroupNorm(2, 32)
        self.second = nn.Conv2d(32, 32, 3, padding=1)
        self.last = nn.Conv2d(32, 2, 3, padding=1)
        with torch.no_grad():
            self.slope.weight.uniform_(0.1, 0.9)
            self.norm.weight.uniform_(0.5, 1.5)

    def forward(self, x: Tensor) -> Tensor:
        """Sum along the rows between the layers: no engine has a kernel for that."""
        x = self.norm(self.slope(self.first(x)).cumsum(2))
        return self.last(self.norm(self.second(x)))


@pytest.fixture(scope="module")
def fast() -> torchdelta.CompiledModel:
    torch.manual_seed(0)
    return torchdelta.compile(Net().eval(), torch.rand(1, *SHAPE), input_range=(0, 1))


def weights_of(step: Step) -> list[Tensor]:
    parts = [part.weights for part in step.epilogue if isinstance(part, Activation)]
    return [w for weights in (step.weights, *parts) for w in weights.values()]


def distinct_bytes(tensors: list[Tensor]) -> int:
    return sum(w.numel() * 4 for w in {w.data_ptr(): w for w in tensors}.values())


def run(engine: Engine) -> Session:
    session = Session(engine, 1, 0.0, torchdelta.Profile())
    session.step({"s": torch.rand(*SHAPE, generator=torch.Generator().manual_seed(1))})
    return session


@each_engine
def test_every_weight_is_counted_once(fast: torchdelta.CompiledModel, case: str) -> None:
    """Neither more than packing pads them to, nor a second copy for PyTorch."""
    engine = make_engine(case, fast.plan, fast.device, torch.float32)
    foreign = engine.foreign_steps()
    assert bool(foreign) == (case != "torch")
    everything = distinct_bytes([w for step in fast.plan.steps for w in weights_of(step)])
    assert everything <= engine.weight_bytes
    # the three channels of the frame are padded, and so are the last two
    assert engine.weight_bytes < 1.6 * everything


@each_engine
def test_a_step_left_to_pytorch_adds_its_own_weights_alone(
    fast: torchdelta.CompiledModel, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is kept for PyTorch: of the steps that it computes, each tensor once."""
    taken: list[Tensor] = []
    take = Weights.take

    def noted(self: Weights, weight: Tensor, **how: bool) -> Tensor:
        taken.append(weight)
        return take(self, weight, **how)

    monkeypatch.setattr(Weights, "take", noted)
    engine = make_engine(case, fast.plan, fast.device, torch.float32)
    names = engine.foreign_steps()
    if case == "torch":
        names = {step.name: "" for step in fast.plan.steps}
    wanted = [w for step in fast.plan.steps if step.name in names for w in weights_of(step)]
    convolutions = [s.weights["weight"] for s in fast.plan.steps if s.op.name == "conv2d"]
    assert {id(w) for w in wanted} <= {id(w) for w in taken}
    if case != "torch":
        assert wanted
        assert not {id(w) for w in convolutions} & {id(w) for w in taken}
    assert len({id(w) for w in wanted}) > len({w.data_ptr() for w in wanted}), "a layer comes twice"
    held = Weights(torch.device("cpu"), torch.float64)
    copies = {w.data_ptr(): held.take(w) for w in wanted}
    assert all(held.take(w) is copies[w.data_ptr()] for w in wanted)
    assert held.bytes == 2 * distinct_bytes(wanted)


@each_engine
def test_an_audit_holds_one_steps_weights_at_a_time(
    fast: torchdelta.CompiledModel, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = run(make_engine(case, fast.plan, fast.device, torch.float32))
    before = session.engine.weight_bytes
    copies: list[weakref.ref[Tensor]] = []
    most = 0
    take = Weights.take

    def counted(self: Weights, weight: Tensor, **how: bool) -> Tensor:
        nonlocal most
        found = take(self, weight, **how)
        if found.data_ptr() != weight.data_ptr():
            copies.append(weakref.ref(found))
        alive = {id(w): w for ref in copies if (w := ref()) is not None}
        most = max(most, sum(w.numel() * 4 for w in alive.values()))
        return found

    monkeypatch.setattr(Weights, "take", counted)
    assert session.stream("s").audit().ok
    assert bool(copies) == (case != "torch"), "what an engine has is not copied"
    assert most <= max(distinct_bytes(weights_of(step)) for step in fast.plan.steps)
    assert [ref() for ref in copies if ref() is not None] == []
    assert session.engine.weight_bytes == before


def test_an_audit_finds_what_is_wrong(fast: torchdelta.CompiledModel) -> None:
    """With weights brought along as with those that are kept."""
    session = run(make_engine(ENGINE_CASES[0], fast.plan, fast.device, torch.float32))
    assert session.stream("s").audit().ok
    for step in fast.plan.steps:
        stored = frame_state(session).window(step.output, 0)
        kept = stored.clone()
        stored += 1
        assert not session.stream("s").audit().ok, step.name
        stored.copy_(kept)
