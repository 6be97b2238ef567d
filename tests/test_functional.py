"""Graphs without writes in place: what is rewritten at a look gives the plan of a second trace."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchdelta.capture import export as capture
from torchdelta.capture.functional import make_functional
from torchdelta.ops.preprocess import Preprocess
from torchdelta.plan import Plan, build, explain


class Net(nn.Module):
    """Two convolutions and what a case does between them."""

    def __init__(self, body: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 1)
        self.norm, self.gain = nn.BatchNorm2d(4), nn.Parameter(torch.ones(4, 1, 1))
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self, x)


def residual(net: nn.Module, x: Tensor) -> Tensor:
    x = F.relu_(net.norm(net.a(x)))
    return F.relu_(net.b(x).add_(x))


def twice(net: nn.Module, x: Tensor) -> Tensor:
    x = net.a(x)
    before = x * 2
    x.mul_(3).clamp_(-1, 1)
    return before + x


def old_name(net: nn.Module, x: Tensor) -> Tensor:
    x = net.a(x)
    y = F.hardtanh_(x, 0.0, 6.0)
    return net.b(x) + y


def classes(net: nn.Module, x: Tensor) -> Tensor:
    x = F.adaptive_avg_pool2d(F.hardswish(net.a(x), inplace=True), 1).flatten(1)
    return F.dropout(x, 0.5, training=False)


def through_a_view(net: nn.Module, x: Tensor) -> Tensor:
    x = net.a(x)
    x[:, :2].mul_(2.0)
    return net.b(x)


def under_a_view(net: nn.Module, x: Tensor) -> Tensor:
    x = net.a(x)
    half = x[:, :2]
    x.add_(1.0)
    return torch.cat([half, net.b(x)], 1)


def behind_dropout(net: nn.Module, x: Tensor) -> Tensor:
    x = net.a(x)
    y = F.dropout(x, 0.5, training=False)
    y.mul_(2.0)
    return x + net.b(y)


def one_channel(net: nn.Module, x: Tensor) -> Tensor:
    x = net.a(x)
    x[:, 0] = 0.0
    return net.b(x)


def the_parameter(net: nn.Module, x: Tensor) -> Tensor:
    return net.a(x) * net.gain.detach().clone().mul_(2.0)


def steps(plan: Plan) -> str:
    """Give the plan as text; only how a trace counts operations outside modules is its own."""
    return re.sub(r"[ ─]+", " ", re.sub(r"_\d+\b", "", explain(plan)))


LOOKED_AT = [residual, twice, old_name, classes, the_parameter, behind_dropout]
TRACED = [through_a_view, under_a_view, one_channel]


@pytest.mark.parametrize("body", LOOKED_AT + TRACED)
def test_plans_are_those_of_a_second_trace(
    body: Callable[[nn.Module, Tensor], Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    net = Net(body).eval().requires_grad_(False)
    x = torch.rand(2, 3, 8, 8)
    answers: list[bool] = []

    def noted(program: torch.export.ExportedProgram) -> bool:
        answers.append(make_functional(program))
        return answers[-1]

    monkeypatch.setattr(capture, "make_functional", noted)
    mine = capture.export(net, x)
    monkeypatch.setattr(capture, "make_functional", lambda program: False)
    traced = capture.export(net, x)
    assert answers == [body in LOOKED_AT]
    preprocess = Preprocess(0.0, 1.0, None, None, "rgb")
    plans = [build(one.program, preprocess) for one in (mine, traced)]
    assert steps(plans[0]) == steps(plans[1])
    for one in (mine, traced):
        results = capture._run_nodes(one.program, x)
        assert torch.allclose(list(results.values())[-1], net(x), atol=1e-6)
