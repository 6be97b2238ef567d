"""What `torchdelta.compile` takes and what it refuses, and why."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import torchdelta
from api_nets import net
from cases import Fn
from torchdelta import CaptureError


class Branches(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if x.sum() > 0 else x


class Mixes(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(0, keepdim=True)


class Softly(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.softmax(0)


class Random(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.rand_like(x)


class Counts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.seen.add_(1)
        return x + self.seen


class Ignores(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.ones(3)


class Two(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x + y


class Several(nn.Module):
    """Two reasons at once: both must be named."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.seen.add_(1)
        return x + torch.rand_like(x) + self.seen


@pytest.mark.parametrize(
    ("model", "messages"),
    [
        (Branches(), ["cannot be captured", "dynamic batch", "with batch 1"]),
        (Mixes(), ["mixes the batch axis", "mean"]),
        (Softly(), ["mixes the batch axis", "softmax"]),
        (Fn(lambda x: x.mean(0, keepdim=True)), ["mixes the batch axis", "mean"]),
        (Fn(lambda x: x * x.std()), ["mixes the batch axis", "std"]),
        (Fn(lambda x: x.flip(0)), ["mixes the batch axis", "flip"]),
        # the first row sees itself alone, the second one sees the first
        (Fn(lambda x: x + x.flatten(0, 1)[:3].mean()), ["mixes the batch axis"]),
        (Fn(lambda x: x[:1] + x), ["mixes the batch axis", "slice"]),
        (Random(), ["random numbers"]),
        (Counts(), ["keeps state from frame to frame", "`seen`"]),
        (Ignores(), ["no output of the model depends on the frame"]),
        (Two(), ["forward takes (x, y)", "expected one tensor"]),
        (Several(), ["writes to its buffers", "random numbers"]),
        (lambda x: x, ["expected a torch.nn.Module"]),
    ],
    ids=lambda v: type(v).__name__,
)
def test_what_cannot_be_captured_says_why(model: object, messages: list[str]) -> None:
    if isinstance(model, nn.Module):
        model.eval()
    with pytest.raises(CaptureError) as caught:
        torchdelta.compile(model, torch.rand(1, 3, 8, 8), tolerance=0)
    for message in messages:
        assert message in str(caught.value), str(caught.value)


def test_a_model_that_fails_on_this_size_says_so() -> None:
    class Strict(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + F.interpolate(F.max_pool2d(x, 2), scale_factor=2)

    with pytest.raises(CaptureError, match="fails on such a frame"):
        torchdelta.compile(Strict().eval(), torch.rand(1, 3, 9, 9))


def test_a_model_that_fixes_its_batch_runs_stream_by_stream() -> None:
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x).reshape(1, 4, -1).cumsum(2)

    model = Fixed().eval()
    x = torch.rand(1, 3, 8, 9)
    fast = torchdelta.compile(model, x, tolerance=0, input_range=(0, 1))
    y = torch.rand(2, 3, 8, 9)
    out = fast(y)
    assert torchdelta.relative_error(out[1:], model(y[1:])) < 1e-5
    assert any("batch 1" in note for note in fast.plan.notes)


class Anchors(nn.Module):
    """Returns a map and a constant that no frame changes."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 1)
        self.register_buffer("anchors", torch.rand(rows, 4))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.conv(x), self.anchors


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_constant_outputs_are_whole_and_nobody_elses(rows: int) -> None:
    model = Anchors(rows).eval()
    fast = torchdelta.compile(model, torch.rand(1, 3, 8, 8), tolerance=0)
    x = torch.rand(3, 3, 8, 8)
    assert torchdelta.relative_error(fast(x), model(x)) < 1e-5
    fast(x)[1].zero_()
    assert torch.equal(fast(x)[1], model.anchors)


def test_outputs_without_a_batch_axis_keep_their_shape() -> None:
    model = nn.Sequential(nn.Conv2d(3, 2, 1), Fn(lambda x: x.reshape(-1, 2))).eval()
    x = torch.rand(1, 3, 8, 8)
    fast = torchdelta.compile(model, x, tolerance=0)
    assert torchdelta.relative_error(fast(x), model(x)) < 1e-5


def test_control_flow_in_the_graph_is_refused() -> None:
    class Cond(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cond(x.sum() > 0, lambda y: y + 1, lambda y: y - 1, (x,))

    with pytest.raises(CaptureError):
        torchdelta.compile(Cond().eval(), torch.rand(1, 3, 8, 8))


def test_errors_of_different_shapes_are_not_broadcast() -> None:
    with pytest.raises(ValueError, match="shape"):
        torchdelta.relative_error(torch.ones(1, 3, 4, 4), torch.ones(1, 1, 4, 4))


def test_a_deep_network_with_discrete_output_is_taken() -> None:
    torch.manual_seed(3)
    layers: list[nn.Module] = []
    for i in range(8):
        layers += [nn.Conv2d(3 if i == 0 else 16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Conv2d(16, 21, 1), Fn(lambda x: x.argmax(1))).eval()
    fast = torchdelta.compile(model, torch.rand(1, 3, 60, 60), tolerance=0)
    x = torch.rand(1, 3, 60, 60)
    assert float((fast(x) != model(x)).float().mean()) < 0.02


def test_half_precision_does_not_overflow_on_the_way() -> None:
    conv = nn.Conv2d(3, 4, 1)
    nn.init.constant_(conv.weight, 200.0)
    model = nn.Sequential(conv, nn.AvgPool2d(16, 1), Fn(lambda x: x / 70000 * 70000)).eval()
    x = torch.rand(1, 3, 64, 64)
    fast = torchdelta.compile(model, x, tolerance=0, dtype="fp16", input_range=(0, 1))
    for y, z in ((5, 5), (40, 60), (0, 63)):
        x[0, :, y, z] = 0.5
        out = fast(x)
        with torch.no_grad():
            assert torchdelta.relative_error(out, model(x)) < 5e-3


@pytest.mark.parametrize(
    ("fn", "op"),
    [
        (lambda x: torch.max(x, x.tanh()), "binary"),
        (lambda x: torch.min(x, x.tanh()), "binary"),
        (lambda x: torch.clip(x, 0.2, 0.6), "pointwise"),
        (lambda x: torch.multiply(x, x.tanh()), "binary"),
        (lambda x: torch.subtract(x, 0.5), "const"),
        (lambda x: torch.true_divide(x, x.abs() + 1), "binary"),
        (lambda x: torch.negative(x), "pointwise"),
    ],
)
def test_other_spellings_of_an_operation(fn: object, op: str) -> None:
    model = Fn(fn).eval()
    fast = torchdelta.compile(model, torch.rand(1, 3, 8, 8), tolerance=0)
    assert op in {step.op.name for step in fast.plan.steps}
    assert not any(step.dense for step in fast.plan.steps)
    x = torch.rand(1, 3, 8, 8)
    assert torchdelta.relative_error(fast(x), model(x)) < 1e-5


def test_two_compiles_at_a_time_leave_the_process_as_it_was() -> None:
    import logging
    import sys
    import threading

    before = sys.stdout, sys.stderr, logging.root.manager.disable

    def work() -> None:
        torchdelta.compile(net(), torch.rand(1, 3, 20, 22))

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (sys.stdout, sys.stderr, logging.root.manager.disable) == before


def test_part_of_a_model_in_train_mode_is_named() -> None:
    model = net()
    model.stem.train()
    with pytest.warns(UserWarning, match="4 of the model's modules are in train mode"):
        torchdelta.compile(model, torch.rand(1, 3, 20, 22))
