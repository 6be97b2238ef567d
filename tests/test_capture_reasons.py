"""Models that cannot be captured as they are say where, why and what to do; wrappers come off."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from typer.testing import CliRunner

import torchdelta
from torchdelta.bench.peers import Workload
from torchdelta.bench.quality import Reference
from torchdelta.capture.prepare import prepare_untrained
from torchdelta.capture.suited import check_capturable, working_size
from torchdelta.cli.app import app
from torchdelta.errors import CaptureError

FRAME = torch.rand(1, 3, 8, 12, generator=torch.Generator().manual_seed(3))


def plain() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval()


def refusal(model: nn.Module, frame: Tensor = FRAME) -> str:
    with pytest.raises(CaptureError) as caught:
        torchdelta.compile(model, frame, tolerance=0, input_range=(0, 1))
    return str(caught.value)


def on_meta() -> nn.Module:
    with torch.device("meta"):
        return plain()


def fake() -> nn.Module:
    with FakeTensorMode():
        return plain()


def in_part_on_meta() -> nn.Module:
    model = plain()
    model.extra = nn.Linear(3, 3, device="meta")
    return model


def with_sparse() -> nn.Module:
    model = plain()
    model.register_buffer("graph", torch.eye(3).to_sparse())
    return model


def quantised() -> nn.Module:
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2)).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.ao.quantization.quantize_dynamic(model)


def scripted() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.script(plain())


def traced() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.trace(plain(), FRAME)


class Takes(nn.Module):
    """Takes no frame, or more than that."""

    def __init__(self, forward: Callable[..., Any]) -> None:
        super().__init__()
        self.forward = forward


@pytest.mark.parametrize(
    ("make", "messages"),
    [
        (on_meta, ["0.weight, 0.bias", 'on device "meta"', "to_empty"]),
        (in_part_on_meta, ["extra.weight, extra.bias", 'on device "meta"']),
        (fake, ["0.weight, 0.bias", "FakeTensor"]),
        (with_sparse, ["graph is sparse_coo", ".to_dense()"]),
        (lambda: nn.Sequential(nn.LazyConv2d(4, 3)), ["0.weight", "lazy module", "once"]),
        (quantised, ["`2` (Linear)", "quantised"]),
        (scripted, ["the model (RecursiveScriptModule) is TorchScript", "scripted or traced from"]),
        (traced, ["the model (TopLevelTracedModule) is TorchScript"]),
        (lambda: nn.Sequential(nn.ReLU(), scripted()), ["`1` (RecursiveScriptModule)"]),
        (lambda: Takes(lambda x, mask: x * mask), ["forward takes (x, mask)", "wrap the model"]),
        (lambda: Takes(lambda: torch.zeros(1)), ["forward takes ()"]),
        (
            lambda: nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, track_running_stats=False)),
            ["`1` (BatchNorm2d) has no running statistics", "nn.InstanceNorm2d"],
        ),
        (
            lambda: nn.Sequential(
                nn.BatchNorm2d(3, track_running_stats=False), nn.Conv2d(3, 4, 1, device="meta")
            ),
            ["no running statistics", 'on device "meta"'],
        ),
    ],
)  # fmt: skip
def test_what_a_model_is_made_of(make: Callable[[], nn.Module], messages: list[str]) -> None:
    message = refusal(make().eval())
    assert "the model cannot be captured:" in message
    for part in messages:
        assert part in message, message


def test_several_devices_are_named() -> None:
    """Told by the names alone: no second device is needed."""

    class Elsewhere(Tensor):
        @property
        def device(self) -> torch.device:
            return torch.device("cuda", 1)

    model = plain()
    model.register_buffer("far", torch.ones(3).as_subclass(Elsewhere))
    model.register_buffer("number", torch.ones(()).as_subclass(Elsewhere))
    with pytest.raises(CaptureError, match=r"0.weight on cpu, far on cuda:1\); move the model"):
        check_capturable(model)
    del model.far
    check_capturable(model)


def test_instance_norm_is_what_the_message_says() -> None:
    """The advice for batch norms without statistics gives what those give for a frame alone."""
    batch = nn.BatchNorm2d(3, track_running_stats=False).eval()
    instance = nn.InstanceNorm2d(3, affine=True).eval()
    instance.load_state_dict(batch.state_dict())
    fast = torchdelta.compile(instance, FRAME, tolerance=0, input_range=(0, 1))
    assert torchdelta.relative_error(fast(FRAME), batch(FRAME)) < 1e-5


class Measures(nn.Module):
    """Batch statistics without a batch norm's module."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(self.conv(x), None, None, training=True)


def test_batch_statistics_in_a_function_are_refused() -> None:
    message = refusal(Measures().eval())
    assert "statistics are taken over all rows of a batch" in message
    assert "instance_norm" in message


class Masked(nn.Module):
    """Picks channels by a mask, which the exporter takes for something that depends on values."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.tail = nn.Conv2d(3, 4, 3), nn.Conv2d(2, 3, 1)
        mask = torch.tensor([True, False, False, True])
        self.mask: Any = mask.tolist() if kind == "list" else mask
        if kind == "buffer":
            del self.mask
            self.register_buffer("mask", mask)
        self.kind = kind

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        if self.kind == "plane":
            line = torch.arange(60) % 3 == 0
            return y[:, :, line.view(6, 10)]
        if self.kind == "inline":
            return y[:, torch.tensor([False, True, True, False])].relu()
        y = y[:, self.mask]
        return y if self.kind == "last" else self.tail(y).relu()


@pytest.mark.parametrize("kind", ["attribute", "buffer", "list", "inline", "last", "plane"])
def test_constant_masks_pick(kind: str) -> None:
    model = Masked(kind).eval()
    fast = torchdelta.compile(model, FRAME, tolerance=0, input_range=(0, 1))
    for frame in (FRAME, 1 - FRAME):
        with torch.no_grad():
            assert torchdelta.relative_error(fast(frame), model(frame)) < 1e-5
    dense = [step.op.describe() for step in fast.plan.steps if step.reason]
    assert bool(dense) == (kind == "plane")
    # each run would look for the places again
    weights = [w for step in fast.plan.steps for w in step.weights.values()]
    assert all(w.dtype != torch.bool for w in weights)


def test_masks_of_the_frame_say_what_to_do() -> None:
    class Selects(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x[x > 0.5] * 2

    message = refusal(Selects().eval())
    assert "its size depends on the frame's values" in message
    assert "torch.where" in message
    assert message.count("\n  - ") == 1


def compiled_part() -> nn.Module:
    model = plain()
    model[0] = torch.compile(model[0])
    return model


def compiled_in_place() -> nn.Module:
    model = plain()
    model.compile()
    return model


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.compile(plain()),
        lambda: nn.DataParallel(plain()),
        lambda: nn.DataParallel(torch.compile(plain())),
        lambda: nn.Sequential(nn.DataParallel(plain())),
        compiled_part,
        compiled_in_place,
    ],
)
def test_wrappers_come_off(make: Callable[[], nn.Module]) -> None:
    model = make().eval()
    fast = torchdelta.compile(model, FRAME, tolerance=0, input_range=(0, 1))
    expected = plain()(1 - FRAME)
    assert torchdelta.relative_error(fast(1 - FRAME), expected) < 1e-5
    assert torchdelta.relative_error(fast.dense(1 - FRAME), expected) < 1e-5


class Flat3d(nn.Module):
    """Frames as films of one picture."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.film = nn.Conv3d(4, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.film(self.first(x)[:, :, None])[:, :, 0]


def test_weights_of_five_dimensions() -> None:
    model = Flat3d().eval()
    fast = torchdelta.compile(model, FRAME, tolerance=0, input_range=(0, 1))
    with torch.no_grad():
        expected = model(1 - FRAME)
    assert torchdelta.relative_error(fast(1 - FRAME), expected) < 1e-5
    assert torchdelta.relative_error(fast.dense(1 - FRAME), expected) < 1e-5
    dense = Reference(model, fast.plan, torch.device("cpu"), torch.float32)
    assert torchdelta.relative_error(dense.dense(1 - FRAME), expected) < 1e-5
    peer = Workload(model, FRAME, torch.float32, 1).network(torch.channels_last)
    assert peer.first.weight.is_contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        assert torchdelta.relative_error(peer(1 - FRAME), expected) < 1e-5


class Join(nn.Module):
    """Joins a map with one of half its size."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.cat([x, F.interpolate(y, scale_factor=2)], 1)


class UNet(nn.Module):
    """Two levels: takes multiples of 4."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4))
        self.inner, self.outer = Join(), Join()

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = F.max_pool2d(x, 2)
        return self.outer(x, self.inner(y, F.max_pool2d(y, 2)))


@pytest.mark.parametrize("size", [(16, 22), (18, 24)])
def test_a_size_at_which_a_model_fails(size: tuple[int, int]) -> None:
    """The layer is named, and the nearest size at which it runs, on every way that runs it."""
    frame = torch.rand(1, 3, *size)
    h, w = -(-size[0] // 4) * 4, -(-size[1] // 4) * 4
    message = refusal(UNet().eval(), frame)
    assert f"fails on such a frame, [1, 3, {size[0]}, {size[1]}], in `inner` (Join): " in message
    assert "Sizes of tensors must match" in message
    assert f"With frames of {h}x{w} it works" in message
    assert f"--size {h}x{w}" in message
    with pytest.raises(CaptureError) as caught:
        prepare_untrained(UNet(), frame)
    assert str(caught.value) == message
    with torch.no_grad():
        UNet().eval()(torch.rand(1, 3, h, w))


def test_a_size_is_found_for_models_that_take_one() -> None:
    head = nn.Sequential(nn.Conv2d(3, 1, 1), nn.Flatten(), nn.Linear(64 * 64, 2)).eval()
    message = refusal(head, torch.rand(1, 3, 48, 80))
    assert "in `2` (Linear)" in message
    assert "With frames of 64x64 it works" in message
    stated = nn.Sequential(nn.Flatten(), nn.Linear(3 * 18 * 22, 2)).eval()
    stated.pretrained_cfg = {"input_size": (3, 18, 22)}
    assert working_size(stated, torch.rand(1, 3, 48, 80)) == (18, 22)


def test_no_size_helps_where_channels_are_wrong() -> None:
    message = refusal(nn.Sequential(nn.Conv2d(4, 2, 1)).eval())
    assert "in `0` (Conv2d)" in message
    assert "check the channels" in message
    assert "it works" not in message


def test_statistics_that_cannot_be_measured_say_so() -> None:
    class Stern(nn.Module):
        """Fails in train mode only."""

        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm2d(3)

        def forward(self, x: Tensor) -> Tensor:
            if self.norm.training:
                raise KeyError("no training here")
            return self.norm(x)

    with pytest.raises(CaptureError, match=r"1 batch norms cannot be measured, in the model"):
        prepare_untrained(Stern(), FRAME)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("on_meta", 'is on device "meta"'),
        ("scripted", "is TorchScript"),
        ("fake", "is a FakeTensor"),
        ("UNet", "With frames of 16x24 it works"),
    ],
)
def test_the_command_line_says_it_without_a_traceback(
    name: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Path(__file__).read_text()
    (tmp_path / "odd_models.py").write_text(source)
    monkeypatch.chdir(tmp_path)
    size = ["--size", "16x22"]
    result = CliRunner().invoke(app, ["explain", f"odd_models:{name}", *size])
    assert result.exit_code == 1
    text = " ".join(result.output.split())
    assert message in text, text
    assert "Traceback" not in text
    assert isinstance(result.exception, SystemExit)
