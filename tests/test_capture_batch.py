"""Models that ask for the batch's size, work on its rows one by one, or write to their input."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import torchdelta
from cases import Fn
from torchdelta import CaptureError
from torchdelta.bench.peers import PEERS, Workload
from torchdelta.capture.export import export
from torchdelta.capture.prepare import prepare_untrained

# relative L2, float32: one convolution summed in another order
FP32 = 1e-5
CPU = torch.device("cpu")


class Head(nn.Module):
    """A convolution, and a function of the frame and of its result."""

    def __init__(self, fn: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.fn = fn

    def forward(self, x: Tensor) -> Any:
        return self.fn(x, self.conv(x))


def head(fn: Callable[[Tensor, Tensor], Any]) -> nn.Module:
    torch.manual_seed(0)
    return Head(fn).eval()


def frames(count: int, seed: int) -> Tensor:
    return torch.rand(count, 3, 12, 16, generator=torch.Generator().manual_seed(seed))


def rows_one_by_one(x: Tensor, y: Tensor) -> Tensor:
    return torch.cat([F.relu(y[i : i + 1]) for i in range(len(x))])


def fixed(x: Tensor, y: Tensor) -> Tensor:
    b = int(y.shape[0])
    return torch.cat([y.view(b, 8, -1)] * 2, -1)


# by name: the function, and whether its graph takes any batch
ASK = {
    "int": (fixed, False),
    "len": (lambda x, y: y.view(len(x), 8, -1).softmax(-1), False),
    "range": (rows_one_by_one, False),
    "iterate": (lambda x, y: torch.stack([row.tanh() for row in y]), False),
    "index": (lambda x, y: torch.stack([y[i] * 2 for i in range(x.shape[0])]), False),
    "size": (lambda x, y: y.view(x.size(0), 8, -1) * 2, True),
    "slice": (lambda x, y: y[: x.shape[0]] * 2, True),
    "expand": (lambda x, y: y + torch.ones(1, 8, 1, 1).expand(x.shape[0], 8, 1, 1), True),
    "zeros": (lambda x, y: torch.cat([y, torch.zeros(x.shape[0], 1, 12, 16)], 1), True),
    "rows of constants": (lambda x, y: (y, y.new_zeros(y.shape[0], 3)), True),
    "rows of constants, fixed": (lambda x, y: (y, torch.ones(len(y), 3)), False),
    "constant": (lambda x, y: (y, torch.ones(1, 3), len(y.shape)), True),
}


@pytest.mark.parametrize("name", ASK)
def test_a_model_may_ask_for_the_batch(name: str) -> None:
    fn, free = ASK[name]
    model = head(fn)
    fast = torchdelta.compile(model, frames(1, 1), tolerance=0, input_range=(0, 1))
    with torch.no_grad():
        for x in (frames(1, 2), frames(3, 3), frames(3, 4)):
            out, expected = fast(x), model(x)
            assert torchdelta.relative_error(out, expected) <= FP32
    assert free != any("the model fixes its batch size" in note for note in fast.plan.notes)
    assert export(model, frames(2, 1)).dynamic_batch == free


def test_a_model_may_treat_a_single_frame_differently() -> None:
    model = head(lambda x, y: y * 2 if x.shape[0] == 1 else y * 3)
    fast = torchdelta.compile(model, frames(1, 1), tolerance=0, input_range=(0, 1))
    x = frames(2, 2)
    with torch.no_grad():
        alone = torch.cat([model(row[None]) for row in x])
    assert torchdelta.relative_error(fast(x), alone) <= FP32
    assert any("one frame at a time" in note for note in fast.plan.notes)


@pytest.mark.parametrize(
    "fn",
    [
        lambda x, y: torch.stack([y[i] + sum(row.mean() for row in y) for i in range(len(y))]),
        lambda x, y: torch.cat([y[:1], y[1:] - y[: len(y) - 1]]),
        lambda x, y: y * torch.arange(1, 1 + len(y)).view(-1, 1, 1, 1),
        lambda x, y: (y, torch.arange(y.shape[0])),
        lambda x, y: y.transpose(0, 1).softmax(1).transpose(0, 1),
    ],
    ids=["loop", "difference", "number", "constant", "moved axis"],
)
def test_rows_that_see_each_other_or_their_number_are_refused(fn: Any) -> None:
    with pytest.raises(CaptureError, match="mixes the batch axis"):
        torchdelta.compile(head(fn), frames(1, 1), tolerance=0)


def test_an_axis_of_one_is_not_taken_for_the_batch() -> None:
    def over_levels(x: Tensor, y: Tensor) -> Tensor:
        levels = y.flatten(1)[None]
        return levels.softmax(0).sum(0).view(y.shape) + y

    model = head(over_levels)
    fast = torchdelta.compile(model, frames(1, 1), tolerance=0, input_range=(0, 1))
    x = frames(2, 2)
    with torch.no_grad():
        assert torchdelta.relative_error(fast(x), model(x)) <= FP32


class Writes(nn.Module):
    """Writes to its input before it reads it."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "scale":
            x *= 255.0
        elif self.how == "mean":
            x -= torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
        elif self.how == "clamp":
            x[:, 0].clamp_(0.2, 0.5)
        else:
            x[:, :, :4] = 0
        return self.norm(self.conv(x)).relu_()


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8])
@pytest.mark.parametrize("how", ["scale", "mean", "clamp", "paint"])
def test_a_model_that_writes_its_input_gets_a_copy(how: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = Writes(how).eval()

    def picture(seed: int) -> Tensor:
        x = frames(1, seed)
        return (x * 255).to(dtype) if dtype == torch.uint8 else x

    def dense(x: Tensor) -> Tensor:
        with torch.no_grad():
            return model(x / 255 if dtype == torch.uint8 else x.clone())

    given = [picture(seed) for seed in (1, 2, 3)]
    kept = [x.clone() for x in given]
    fast = torchdelta.compile(model, given[0], tolerance=0, input_range=(0, 1))
    session = fast.session()
    for x, copy in zip(given, kept, strict=True):
        result = session.step({"s": x})["s"]
        assert torchdelta.relative_error(result.output, dense(copy)) <= FP32
        seen = fast.preprocess(x)
        published = session.stream("s").published().clone()
        for _ in range(2):
            assert torchdelta.relative_error(fast.dense(seen), dense(copy)) <= FP32
            on_published = fast.dense(session.stream("s").published())
            assert torchdelta.relative_error(on_published, dense(copy)) <= FP32
        assert torch.equal(session.stream("s").published(), published)
        assert session.stream("s").audit().ok
    assert all(torch.equal(x, copy) for x, copy in zip(given, kept, strict=True))


def test_peers_of_a_bench_get_copies() -> None:
    model = Writes("scale").eval()
    x = frames(1, 1).contiguous(memory_format=torch.channels_last)
    kept = x.clone()
    work = Workload(model, x, CPU, torch.float32, 1)
    peer = PEERS["cpu"][0](work)
    with torch.no_grad():
        expected = model(x.clone())
    for _ in range(2):
        assert torchdelta.relative_error(peer.run(peer.load(x)), expected) <= FP32
    assert torch.equal(x, kept)


def test_preparing_a_model_leaves_its_frames() -> None:
    x = frames(2, 1)
    kept = x.clone()
    model = prepare_untrained(Writes("scale"), x)
    assert torch.equal(x, kept)
    # statistics of frames scaled once, not three times
    with torch.no_grad():
        assert float(model.norm.running_var.max()) < 255.0**2


class Chaos(nn.Module):
    """Magnifies rounding: in float32 it is a hundredth off, whoever computes it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(self.norm(self.conv(x)) * 3e4)


def chaos() -> nn.Module:
    torch.manual_seed(0)
    return prepare_untrained(Chaos(), frames(2, 1))


def test_float64_decides_who_is_off() -> None:
    model = chaos()
    fast = torchdelta.compile(model, frames(1, 1), tolerance=0, input_range=(0, 1))
    x = frames(1, 2)
    with torch.no_grad():
        mine, theirs, exact = fast(x), model(x), model.double()(x.double())
    # were they closer, nothing would have to be decided
    assert torchdelta.relative_error(mine, theirs) > 1e-3
    assert torchdelta.relative_error(mine, exact) < 4 * torchdelta.relative_error(theirs, exact)


@pytest.mark.parametrize("make", [chaos, lambda: head(lambda x, y: y * 2)], ids=["chaos", "head"])
def test_a_plan_that_is_wrong_in_float64_too_is_refused(
    make: Callable[[], nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchdelta.plan import passes

    right = passes._fold
    monkeypatch.setattr(passes, "_fold", lambda d, s, t, dtype: right(d, s, t + 1e-2, dtype))
    with pytest.raises(CaptureError, match=r"In float64 too.*defect of torchdelta"):
        torchdelta.compile(make(), frames(1, 1), tolerance=0)


def test_a_result_that_changes_from_run_to_run_is_no_defect_of_ours() -> None:
    class Unsteady(nn.Module):
        runs = 0

        def forward(self, x: Tensor) -> Tensor:
            Unsteady.runs += 1
            return x * Unsteady.runs

    with pytest.raises(CaptureError, match=r"same result twice|keeps state"):
        torchdelta.compile(Unsteady().eval(), frames(1, 1), tolerance=0)


def test_whole_numbers_are_judged_in_float64_too() -> None:
    model = nn.Sequential(chaos(), Fn(lambda x: x.argmax(1))).eval()
    fast = torchdelta.compile(model, frames(1, 1), tolerance=0, input_range=(0, 1))
    assert fast(frames(1, 2)).dtype == torch.int64
