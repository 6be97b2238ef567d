"""Lowering and passes: what becomes of a network."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import torchdelta
from cases import Fn
from torchdelta.plan import Plan
from torchdelta.plan.ir import epilogue_name
from torchdelta.plan.passes import PASSES

pytestmark = pytest.mark.check


def plan_of(model: nn.Module, shape: tuple[int, ...] = (3, 16, 18)) -> Plan:
    torch.manual_seed(0)
    fast = torchdelta.compile(model.eval(), torch.rand(1, *shape), input_range=(0, 1))
    return fast.plan


def steps(plan: Plan) -> list[str]:
    return [step.op.name + epilogue_name(step.epilogue) for step in plan.steps]


def test_batch_norm_activation_and_residual_fuse_into_the_convolution() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 4, 1)
            self.a, self.b = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
            self.bn1, self.bn2 = nn.BatchNorm2d(4), nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            return F.relu(x + self.bn2(self.b(F.hardswish(self.bn1(self.a(x))))))

    plan = plan_of(Block())
    assert steps(plan) == ["conv2d", "conv2d+hardswish", "conv2d+add+relu"]
    assert [step.name for step in plan.steps] == ["stem", "a", "b"]
    assert plan.steps[2].inputs[1] == plan.steps[0].output
    assert plan.steps[2].footprints[1].identity


def test_a_value_with_two_readers_is_not_fused_away() -> None:
    plan = plan_of(Fn(lambda x: (lambda y: torch.cat([y, y.relu()], 1))(F.avg_pool2d(x, 2))))
    assert steps(plan) == ["avg_pool2d", "pointwise"]


def test_two_convolutions_the_later_takes_the_sum() -> None:
    class Down(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(3, 4, 1, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.a(x) - self.b(x)

    plan = plan_of(Down())
    assert steps(plan) == ["conv2d", "conv2d+sub"]
    residual = plan.steps[1].epilogue[0]
    assert residual.first


def test_batch_norm_that_cannot_fold_stays_a_step() -> None:
    assert steps(plan_of(nn.Sequential(nn.BatchNorm2d(3), nn.ReLU()))) == ["affine+relu"]


def test_constants_per_channel_fold() -> None:
    t = torch.rand(1, 4, 1, 1)
    plan = plan_of(nn.Sequential(nn.Conv2d(3, 4, 3), Fn(lambda x: 1 - (x * t + 2) / 3)))
    assert steps(plan) == ["conv2d"]


def test_padding_merges_into_the_convolution() -> None:
    plan = plan_of(nn.Sequential(nn.ZeroPad2d((0, 1, 2, 3)), nn.Conv2d(3, 4, 3, 2)))
    assert steps(plan) == ["conv2d"]
    assert plan.steps[0].op.pad == (2, 3, 0, 1)


def test_concatenation_and_slices_are_views_of_one_buffer() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 6, 1)
            self.c = nn.Conv2d(5, 2, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            both = torch.cat([self.a(x), self.b(x)], 1)
            return self.c(both[:, 2:7])

    plan = plan_of(Net())
    assert steps(plan) == ["conv2d", "conv2d", "conv2d"]
    a, b, c = (plan.values[s.output] for s in plan.steps)
    window = plan.values[plan.steps[2].inputs[0]]
    assert a.buffer == b.buffer == window.buffer != c.buffer
    assert (a.offset, b.offset, window.offset, window.channels) == (0, 4, 2, 5)
    assert set(window.owners) == {a.index, b.index}
    # a slice of one part depends on that part alone
    only = plan_of(Fn(lambda x: torch.cat([x.relu(), x.tanh()], 1)[:, 3:].abs()))
    last = only.steps[-1]
    assert only.values[last.inputs[0]].owners == (only.steps[1].output,)


def test_dense_blocks_share_one_buffer() -> None:
    def grow(x: Tensor) -> Tensor:
        for _ in range(3):
            x = torch.cat([x, F.avg_pool2d(x, 3, 1, 1)[:, :2]], 1)
        return x.relu()

    plan = plan_of(nn.Sequential(nn.Conv2d(3, 4, 1), Fn(grow)))
    assert plan.steps[0].op.name == "conv2d"
    first = plan.values[plan.steps[0].output]
    relu = plan.steps[-1]
    assert plan.values[relu.inputs[0]].buffer == first.buffer


def test_global_pool_is_two_steps_and_squeeze_excite_stays_sparse() -> None:
    from cases import Squeeze

    plan = plan_of(nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), Squeeze(4)), (3, 40, 40))
    assert steps(plan) == ["conv2d", "tile_reduce", "global_reduce", "conv2d+sigmoid", "binary"]
    assert plan.values[plan.steps[1].output].shape == (4, 3, 3)
    assert plan.values[plan.steps[1].output].dtype == torch.float32
    assert not plan.values[plan.steps[1].output].gated
    assert [fp.identity for fp in plan.steps[-1].footprints] == [True, False]


def test_only_what_steps_read_is_gated() -> None:
    plan = plan_of(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1)))
    assert [plan.values[s.output].gated for s in plan.steps] == [True, False]
    moved = plan_of(nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(3, 2, 1)))
    assert [moved.values[s.output].gated for s in moved.steps] == [False, False]


def test_a_vector_is_gated_where_much_depends_on_it() -> None:
    from cases import Squeeze

    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    plan = plan_of(nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), *head), (3, 40, 40))
    assert steps(plan)[:3] == ["conv2d", "tile_reduce", "global_reduce"]
    assert [plan.values[s.output].gated for s in plan.steps][:3] == [True, False, False]
    squeezed = plan_of(
        nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), Squeeze(4), nn.Conv2d(4, 4, 3)), (3, 40, 40)
    )
    gated = {s.op.name: squeezed.values[s.output].gated for s in squeezed.steps}
    assert gated["global_reduce"]


def test_what_hangs_on_the_place_in_the_frame_is_known() -> None:
    fixed = {
        "flatten": nn.Flatten(),
        "align": nn.UpsamplingBilinear2d(scale_factor=2),
        "ratio": nn.Upsample((20, 20), mode="bilinear"),
        "adaptive": nn.AdaptiveAvgPool2d(3),
        "grid": Fn(lambda x, t: x + t, t=torch.rand(3, 16, 18)),
        "flip": Fn(lambda x: x.flip(3)),
        "dense": nn.GroupNorm(1, 3),
    }
    free = {
        "conv": nn.Conv2d(3, 4, 3, 2, 1),
        "nearest": nn.Upsample(scale_factor=2),
        "reflect": nn.ReflectionPad2d(2),
        "bilinear": nn.Upsample(scale_factor=2, mode="bilinear"),
        "channel": Fn(lambda x, t: x + t, t=torch.rand(3, 1, 1)),
    }
    assert all(plan_of(m).shifts.reasons.keys() == {0} for m in fixed.values())
    assert not any(plan_of(m).shifts.reasons for m in free.values())


@pytest.mark.parametrize(
    ("model", "op", "reason"),
    [
        (nn.GroupNorm(1, 3), "group_norm", "no sparse form"),
        (Fn(lambda x: x.softmax(3)), "softmax", "another axis than the channels"),
        (Fn(lambda x: torch.cat([x, x], 2)), "cat", "another axis than the channels"),
        (Fn(lambda x: F.conv2d(x, x.mean((0, 2, 3)).expand(2, 3, 3, 3).contiguous()[:, :, :1, :1])),
         None, None),
        (Fn(lambda x: x.flatten(2) @ x.flatten(2).transpose(1, 2)), "matmul", None),
        (Fn(lambda x: F.max_pool2d(x, 2, return_indices=True)[1]), "max_pool2d", "indices"),
        (Fn(lambda x: F.interpolate(x, scale_factor=2, mode="bicubic")), "bicubic", None),
    ],
)  # fmt: skip
def test_dense_steps_say_why(model: nn.Module, op: str | None, reason: str | None) -> None:
    if op is None:
        with pytest.raises(torchdelta.CaptureError, match="batch axis"):
            plan_of(model)
        return
    plan = plan_of(model)
    dense = [step for step in plan.steps if step.dense]
    assert any(op in step.op.describe() for step in dense)
    assert all(step.reason for step in dense)
    if reason:
        assert any(reason in step.reason for step in dense)
    fast_text = torchdelta.compile(model.eval(), torch.rand(1, 3, 16, 18)).explain()
    assert "dense:" in fast_text


def test_macs_are_counted_as_the_stock_operations_count_them() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, groups=4), nn.ReLU(),
        nn.ConvTranspose2d(8, 4, 2, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3),
    ).eval()  # fmt: skip
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.rand(1, 3, 16, 18))
    assert plan_of(model).macs == counter.get_total_flops() // 2
    matmul = Fn(lambda x: x.flatten(2) @ x.flatten(2).transpose(1, 2))
    assert plan_of(matmul).macs == 3 * 3 * 16 * 18


def test_plans_are_frozen_and_passes_documented() -> None:
    plan = plan_of(nn.Conv2d(3, 4, 1))
    for part in (plan, plan.steps[0], plan.values[0], plan.steps[0].op):
        with pytest.raises(dataclasses.FrozenInstanceError):
            part.name = "x"
    assert all(p.__doc__ for p in PASSES)


def test_unused_work_is_dropped() -> None:
    assert steps(plan_of(Fn(lambda x: (x.tanh(), x.relu())[1]))) == ["pointwise"]


def test_folded_weights_are_as_precise_as_they_can_be() -> None:
    conv, bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
    bn.running_var.fill_(1e-4)
    model = nn.Sequential(conv, bn).eval()
    x = torch.rand(1, 3, 16, 18)
    fast = torchdelta.compile(model, x, tolerance=0)
    with torch.no_grad():
        exact = model.double()(x.double())
    assert torchdelta.relative_error(fast(x), exact) < 1e-6
