"""`explain`: the verdict, the total stride, and columns about moves only where a camera moves."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typer.testing import CliRunner

import torchdelta
from torchdelta.cli.app import app
from torchdelta.plan import Plan, explain
from torchdelta.plan.verdict import judge, spread


def plan_of(model: nn.Module, size: tuple[int, int] = (64, 96)) -> Plan:
    torch.manual_seed(0)
    example = torch.rand(1, 3, *size)
    return torchdelta.compile(model.eval(), example, engine="torch", input_range=(0, 1)).plan


def said(plan: Plan) -> str:
    return " ".join("\n".join(judge(plan).lines()).split())


class LayerNorm2d(nn.LayerNorm):
    """Over channels, the way ConvNeXt has it: permuted there and back."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Squeeze(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.reduce, self.expand = nn.Conv2d(channels, 4, 1), nn.Conv2d(4, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.expand(self.reduce(x.mean((2, 3), keepdim=True)).relu()).sigmoid()


class UNet(nn.Module):
    def __init__(self, norm: type[nn.Module] = nn.BatchNorm2d) -> None:
        super().__init__()

        def block(c_in: int, c_out: int, stride: int = 1) -> nn.Module:
            return nn.Sequential(nn.Conv2d(c_in, c_out, 3, stride, 1), norm(c_out), nn.ReLU())

        self.first, self.down, self.bottom = block(3, 16), block(16, 32, 2), block(32, 48, 2)
        self.middle, self.up = block(80, 32), block(48, 4)

    def forward(self, x: Tensor) -> Tensor:
        first = self.first(x)
        down = self.down(first)
        low = F.interpolate(self.bottom(down), scale_factor=2.0)
        middle = self.middle(torch.cat([down, low], 1))
        return self.up(torch.cat([first, F.interpolate(middle, scale_factor=2.0)], 1))


class Merging(nn.Module):
    """Patches side by side, in the order height, width, channels, which never comes back."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.merge = nn.Conv2d(3, 8, 4, 4), nn.Linear(32, 16)

    def forward(self, x: Tensor) -> Tensor:
        t = self.embed(x).permute(0, 2, 3, 1)
        t = torch.cat([t[:, i::2, j::2] for i in (0, 1) for j in (0, 1)], -1)
        return self.merge(t).mean((1, 2))


@pytest.fixture(scope="module")
def convnext() -> Plan:
    return plan_of(timm.create_model("convnext_atto", num_classes=10))


def test_dense_steps_that_cost_more_than_the_network_promise_no_gain(convnext: Plan) -> None:
    verdict = judge(convnext)
    assert verdict.macs < 0.01
    assert 0.3 < verdict.elements < 0.6
    text = said(convnext)
    assert text.startswith("verdict: expect no gain: 51 of 94 steps run dense (permute, layer_norm")
    assert explain(convnext).splitlines()[-1] == judge(convnext).lines()[-1]


def test_a_norm_over_each_map_leaves_a_small_gain_at_most() -> None:
    good, bad = plan_of(UNet()), plan_of(UNet(nn.InstanceNorm2d))
    assert "expect a gain where little changes, every step runs sparse" in said(good)
    assert "dense" not in said(good)
    assert "expect no gain" in said(bad)


def test_few_dense_steps_do_not_spoil_a_network() -> None:
    layers: list[nn.Module] = [nn.Conv2d(3, 64, 3, 2, 1), nn.ReLU()]
    for _ in range(4):
        layers += [nn.Conv2d(64, 64, 3, 1, 1), nn.ReLU()]
    plan = plan_of(nn.Sequential(*layers, LayerNorm2d(64), nn.Conv2d(64, 64, 3, 1, 1)))
    verdict = judge(plan)
    assert verdict.dense == 3
    assert 0 < verdict.floor < 0.7
    assert "gain" in said(plan)
    assert "no gain" not in said(plan)
    assert "3 of 9 steps run dense (permute, layer_norm)" in said(plan)


def test_squeeze_and_excitation_spreads_to_the_whole_map() -> None:
    body = [nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), Squeeze(8), nn.Conv2d(8, 16, 3, 2, 1), Squeeze(16)]
    plan = plan_of(nn.Sequential(*body, nn.Conv2d(16, 8, 3, 1, 1)))
    verdict = judge(plan)
    assert verdict.products == 2
    assert verdict.held < 0.5 < verdict.spread
    assert (
        "2 squeeze-and-excitation products make their map active whenever their vector changes"
        in said(plan)
    )
    one = plan_of(nn.Sequential(*body[:3], nn.Conv2d(8, 8, 1)))
    assert "1 squeeze-and-excitation product makes its map active whenever its vector" in said(one)
    assert "squeeze" not in said(plan_of(UNet()))


@pytest.mark.parametrize("share", [0.05, 0.3])
def test_spread_is_what_a_session_computes_without_gates(share: float) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 16, 5, 2, 2), nn.ReLU(),
        nn.Conv2d(16, 8, 3, 1, 1),
    ).eval()  # fmt: skip
    h, w = 64, 96
    fast = torchdelta.compile(
        model, torch.rand(1, 3, h, w), engine="torch", input_range=(0, 1), tolerance=0
    )
    session, frame = fast.session(grain=1), torch.rand(3, h, w)
    session.step({"a": frame})
    changed, side = frame.clone(), round((share * h * w) ** 0.5)
    wide = round(share * h * w / side)
    top, left = (h - side) // 2, (w - wide) // 2
    changed[:, top : top + side, left : left + wide] = 1 - frame[:, top : top + side,
                                                                 left : left + wide]  # fmt: skip
    result = session.step({"a": changed})["a"]
    assert spread(fast.plan, share) == pytest.approx(result.stats.mac_share, abs=0.01)


def test_the_total_stride_goes_on_behind_dense_steps(convnext: Plan) -> None:
    assert convnext.total_stride == (32, 32)
    assert convnext.shifts.unknown_from is None
    assert "total stride 32x32" in explain(convnext)
    # the tiles of global pools are no maps
    assert plan_of(timm.create_model("resnet18"), (256, 320)).total_stride == (32, 32)


def test_where_the_total_stride_is_lost_it_is_said_so() -> None:
    plan = plan_of(Merging())
    assert plan.total_stride == (4, 4)
    assert plan.shifts.unknown_from is not None
    text = " ".join(explain(plan).split())
    assert f"total stride 4x4 as far as {plan.shifts.unknown_from}, unknown beyond" in text


def test_a_session_that_follows_runs_behind_dense_steps() -> None:
    """Windows are multiples of the whole stride, so both sizes give the same one."""
    model = nn.Sequential(
        nn.Conv2d(3, 8, 4, 4), LayerNorm2d(8), nn.Conv2d(8, 8, 2, 2), LayerNorm2d(8),
        nn.Conv2d(8, 4, 3, 1, 1),
    ).eval()  # fmt: skip
    size = (50, 70)
    fast = torchdelta.compile(
        model, torch.rand(1, 3, *size), engine="torch", input_range=(0, 1), tolerance=0
    )
    assert fast.plan.total_stride == (8, 8)
    session = fast.session(motion="translation", border="exact")
    world = torch.rand(3, 90, 110).mul(255).to(torch.uint8)
    for t in range(4):
        frame = world[:, t : t + size[0], 3 * t : 3 * t + size[1]]
        result = session.step({"a": frame})["a"]
        dense = fast.dense(session.stream("a").published())
        assert torchdelta.relative_error(result.output, dense) < 1e-5
    assert session.window == (64, 80)


def call(args: Sequence[str]) -> str:
    result = CliRunner().invoke(app, list(args))
    assert result.exit_code == 0, result.output
    return " ".join(result.output.split())


def test_columns_about_moves_are_for_moving_cameras() -> None:
    model = ["explain", "timm:test_efficientnet", "--size", "64x96"]
    still, moving = call(model), call([*model, "--motion", "auto"])
    assert "at a move" not in still
    assert "windows" not in still
    assert "at a move" in moving
    assert "follows" in moving
    assert "whole: a global pool" in moving
    assert "runs on windows of" in moving
    assert "windows move by multiples of" in moving
    assert "verdict: " in still
