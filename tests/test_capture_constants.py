"""What depends on no pixel is computed once, weights made anew in every forward among it.

And what goes wrong on the way from a model to a plan says where, and why.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, spectral_norm, weight_norm

import torchdelta
from torchdelta import CaptureError
from torchdelta.plan import passes, rules_compute

# relative L2, float32: one convolution summed in another order
FP32 = 1e-5


def frames(count: int, seed: int) -> Tensor:
    return torch.rand(count, 3, 12, 16, generator=torch.Generator().manual_seed(seed))


class Head(nn.Module):
    """A convolution, and a function of its result."""

    def __init__(self, fn: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.fn = fn

    def forward(self, x: Tensor) -> Any:
        return self.fn(self.conv(x))


def check(model: nn.Module) -> torchdelta.CompiledModel:
    """Compile a model; single frames and batches of three give what it gives."""
    fast = torchdelta.compile(model, frames(1, 1), tolerance=0, input_range=(0, 1))
    with torch.no_grad():
        for x in (frames(1, 2), frames(3, 3), frames(3, 4)):
            assert torchdelta.relative_error(fast(x), model(x.clone())) <= FP32
    return fast


def anchors(y: Tensor) -> tuple[Tensor, Tensor]:
    """Give centres [2, H * W] and strides [1, H * W] of a map's pixels, as detectors do."""
    h, w = y.shape[2:]
    sx = torch.arange(w, dtype=y.dtype, device=y.device) + 0.5
    sy = torch.arange(h, dtype=y.dtype, device=y.device) + 0.5
    gy, gx = torch.meshgrid(sy, sx, indexing="ij")
    points = torch.stack((gx, gy), -1).view(-1, 2)
    return points.t(), torch.full((h * w, 1), 8.0, dtype=y.dtype).t()


def boxes(y: Tensor) -> Tensor:
    """Decode distances to a box's sides, the expectation of a softmax (DFL), from anchors."""
    points, strides = anchors(y)
    b, _, h, w = y.shape
    steps = torch.arange(2, dtype=torch.float32).view(1, 2, 1, 1)
    sides = y.view(b, 4, 2, h * w).transpose(2, 1).softmax(1)
    left, right = (sides * steps).sum(1).chunk(2, 1)
    grid = points.unsqueeze(0)
    low, high = grid - left, grid + right
    return torch.cat([(low + high) / 2, high - low], 1) * strides


def painted(y: Tensor) -> Tensor:
    """Write into a constant map before it is added."""
    grid = torch.zeros_like(y)
    grid[:, 1] = 3
    grid[..., 2:].fill_(0.5)
    return y + grid


# by name: the function, and the names of the dense steps that it may leave
FOLDED: dict[str, tuple[Callable[[Tensor], Any], set[str]]] = {
    "type_as": (lambda y: y + torch.arange(8).view(1, 8, 1, 1).type_as(y), set()),
    "to": (lambda y: y * torch.arange(1, 9).view(1, 8, 1, 1).to(y), set()),
    "new_full": (lambda y: y * y.new_full((1, 8, 1, 1), 0.5) + y.new_ones(()), set()),
    "new_zeros": (lambda y: y + y.new_zeros(y.shape[0], 1, 1, 1), set()),
    "zeros_like": (lambda y: torch.maximum(y, torch.zeros_like(y)), set()),
    "full_like": (lambda y: y - torch.full_like(y, 0.25).cumsum(1), set()),
    "ones_like": (lambda y: y * (torch.ones_like(y) + 1).sum(1, keepdim=True), set()),
    "expand_as": (lambda y: y + torch.arange(8.0).view(1, 8, 1, 1).expand_as(y), set()),
    "meshgrid": (lambda y: y + anchors(y)[0].sum(0).view(1, 1, *y.shape[2:]), set()),
    "stack": (lambda y: y * torch.stack([y.new_ones(8), y.new_zeros(8)]).sum(0)[:, None, None],
              set()),
    "painted": (painted, set()),
    "copied": (lambda y: y * torch.empty_like(y).copy_(torch.full((12, 16), 2.0)), set()),
    "boxes": (boxes, {"transpose", "softmax", "mul", "sum", "split", "chunk", "add", "sub", "cat",
                      "div", "slice", "rsub"}),
    "returned": (lambda y: (y, anchors(y), torch.zeros_like(y[:, :1])), set()),
}  # fmt: skip


@pytest.mark.parametrize("name", FOLDED)
def test_what_depends_on_no_pixel_is_folded(name: str) -> None:
    torch.manual_seed(0)
    fn, left = FOLDED[name]
    fast = check(Head(fn).eval())
    dense = {step.op.describe().split(".")[0] for step in fast.plan.steps if step.dense}
    assert dense <= left


class Fused(nn.Module):
    """A convolution whose weight is made anew from two others in every forward."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.wide, self.narrow = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(3, 8, 1)
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.register_buffer("weight", torch.zeros(8, 3, 3, 3))
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        fused = self.wide.weight + F.pad(self.narrow.weight, (1, 1, 1, 1))
        if self.how == "data":
            self.conv.weight.data = fused
        elif self.how == "copied data":
            self.conv.weight.data.copy_(fused)
        elif self.how == "parameter":
            self.conv.weight = nn.Parameter(fused, requires_grad=False)
        elif self.how == "in place":
            with torch.no_grad():
                self.conv.weight.copy_(fused)
        elif self.how == "buffer":
            self.weight.copy_(fused)
            return F.conv2d(x, self.weight, padding=1)
        elif self.how == "settled":
            self.weight.copy_(self.weight.clamp(min=0.5))
            return F.conv2d(x, self.weight + fused, padding=1)
        elif self.how == "attribute":
            self.now = fused
            return F.conv2d(x, self.now, padding=1)
        elif self.how == "counts":
            self.count += 1
        elif self.how == "stores":
            self.weight = self.wide(x)
            return self.weight * 2
        return self.conv(x)


@pytest.mark.parametrize(
    "how",
    [*"data parameter buffer settled attribute counts stores".split(), "in place"],
)
def test_weights_made_in_every_forward_are_frozen(how: str) -> None:
    torch.manual_seed(0)
    model = Fused(how).eval().requires_grad_(False)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    fast = torchdelta.compile(model, frames(1, 1), tolerance=0, input_range=(0, 1))
    # the user's model has not run
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    x = frames(2, 2)
    assert torchdelta.relative_error(fast(x), model(x)) <= FP32
    assert not any(step.dense for step in fast.plan.steps)


def test_weights_written_where_it_cannot_be_seen_are_named() -> None:
    model = Fused("copied data").eval()
    with pytest.raises(CaptureError, match=r"writes to its parameters.*conv\.weight"):
        torchdelta.compile(model, frames(1, 1))


@pytest.mark.parametrize(
    "norm", [weight_norm, spectral_norm, parametrizations.weight_norm,
             parametrizations.spectral_norm],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_reparametrised_weights_are_frozen(norm: Callable[[nn.Module], nn.Module]) -> None:
    torch.manual_seed(0)
    fast = check(nn.Sequential(norm(nn.Conv2d(3, 8, 3, padding=1)), nn.ReLU()).eval())
    assert [step.op.name for step in fast.plan.steps] == ["conv2d"]


class Named(nn.Module):
    """A network with a layer at a place that has a name."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.neck = nn.Sequential(nn.ReLU(), layer)

    def forward(self, x: Tensor) -> Tensor:
        return self.neck(self.stem(x))


def broken(*args: object, **kwargs: object) -> None:
    raise IndexError("list index out of range")


def test_an_error_in_a_rule_names_the_module(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(rules_compute.COMPUTE, "avg_pool2d", broken)
    with pytest.raises(CaptureError, match=r"neck\.1: aten\.avg_pool2d.*IndexError") as caught:
        torchdelta.compile(Named(nn.AvgPool2d(2)).eval(), frames(1, 1))
    assert isinstance(caught.value.__cause__, IndexError)


def test_an_error_in_a_pass_names_the_module(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passes, "_fold", broken)
    model = Named(nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8))).eval()
    with pytest.raises(CaptureError, match=r"at neck\.1\.[01]: IndexError.*defect") as caught:
        torchdelta.compile(model, frames(1, 1))
    assert isinstance(caught.value.__cause__, IndexError)


def test_an_error_of_the_exporter_names_the_module() -> None:
    class Decides(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * 2 if float(x.mean()) > 0 else x

    with pytest.raises(CaptureError, match=r"in `neck\.1` \(Decides\)") as caught:
        torchdelta.compile(Named(Decides()).eval(), frames(1, 1))
    assert caught.value.__cause__ is not None


def test_an_error_of_a_step_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from torchdelta.ops import AvgPool2d

    monkeypatch.setattr(AvgPool2d, "full", broken)
    with pytest.raises(CaptureError, match=r"does not run, at neck\.1: .*IndexError"):
        torchdelta.compile(Named(nn.AvgPool2d(2)).eval(), frames(1, 1))
