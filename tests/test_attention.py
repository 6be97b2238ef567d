"""Attention and recurrent layers: what could draw random numbers runs where its arguments say no.

At tolerance 0 each frame's result is the dense network's, on every engine.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import torchdelta
from cases import Fn
from support import ENGINE_CASES, each, move, new_session
from torchdelta import CaptureError

# relative L2, float32: a few products summed in another order
FP32 = 1e-5
# a recurrent layer takes its rounding along from row to row, cuDNN's another one than the CPU's
RECURRENT = 5e-5
SHAPE = (1, 3, 5, 7)
ROWS, WIDTH = 5 * 7, 8


class Tokens(nn.Module):
    """A map becomes rows of numbers, one per pixel, on which a layer works, and a map again."""

    def __init__(self, layer: nn.Module, *, first: bool = True) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, WIDTH, 3, padding=1)
        self.layer, self.first = layer, first
        self.head = nn.Conv2d(WIDTH, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        rows = y.flatten(2).transpose(1, 2)
        rows = self.layer(rows) if self.first else self.layer(rows.transpose(0, 1)).transpose(0, 1)
        return self.head(rows.transpose(1, 2).reshape(y.shape))


class Attend(nn.Module):
    """Multi-head attention of rows among themselves."""

    def __init__(self, *, weights: bool, dropout: float = 0.0) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, 2, dropout=dropout, batch_first=True)
        self.weights = weights

    def forward(self, rows: Tensor) -> Tensor:
        return self.attention(rows, rows, rows, need_weights=self.weights)[0]


class Recur(nn.Module):
    """A recurrent layer over the rows."""

    def __init__(self, kind: type[nn.RNNBase], **options: object) -> None:
        super().__init__()
        self.cell = kind(WIDTH, WIDTH, **options)

    def forward(self, rows: Tensor) -> Tensor:
        return self.cell(rows)[0][..., :WIDTH]


class Split(nn.Module):
    """Attention over a map: one convolution makes queries, keys and values, split by channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, WIDTH, 3, padding=1)
        self.qkv = nn.Conv2d(WIDTH, 2 * WIDTH, 1)
        self.place = nn.Conv2d(WIDTH, WIDTH, 3, padding=1, groups=WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        b, c, h, w = y.shape
        qkv = self.qkv(y).view(b, 2, c, h * w)
        q, k, v = qkv.split([c // 4, c // 4, c // 2], dim=2)
        weights = (q.transpose(-2, -1) @ k * 0.5).softmax(dim=-1)
        attended = (v @ weights.transpose(-2, -1)).reshape(b, c, h, w)
        return y + attended + self.place(v.reshape(b, c, h, w))


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "sdpa": lambda: Tokens(Fn(lambda q: F.scaled_dot_product_attention(q, q.tanh(), q))),
    "sdpa-causal": lambda: Tokens(
        Fn(lambda q: F.scaled_dot_product_attention(q, q, q, is_causal=True, scale=0.5))
    ),
    "sdpa-mask": lambda: Tokens(
        Fn(
            lambda q, mask: F.scaled_dot_product_attention(q, q, q, attn_mask=mask),
            mask=torch.rand(ROWS, ROWS, generator=torch.Generator().manual_seed(0)),
        )
    ),
    "mha": lambda: Tokens(Attend(weights=False, dropout=0.2)),
    "mha-weights": lambda: Tokens(Attend(weights=True)),
    "encoder": lambda: Tokens(nn.TransformerEncoderLayer(WIDTH, 2, 16, batch_first=True)),
    "lstm": lambda: Tokens(Recur(nn.LSTM, num_layers=2, dropout=0.3, batch_first=True)),
    "gru": lambda: Tokens(Recur(nn.GRU, bidirectional=True), first=False),
    "rnn": lambda: Tokens(Recur(nn.RNN, batch_first=True)),
    "split": Split,
}


@cache
def compiled(name: str) -> tuple[torchdelta.CompiledModel, nn.Module]:
    """Compile a network once per worker."""
    torch.manual_seed(0)
    model = LAYERS[name]().eval()
    return torchdelta.compile(model, torch.rand(SHAPE), input_range=(0, 1), tolerance=0), model


@pytest.mark.parametrize("engine", ENGINE_CASES)
@pytest.mark.parametrize("name", each(LAYERS))
def test_rows_equal_dense(engine: str, name: str) -> None:
    fast, model = compiled(name)
    session = new_session(fast, engine, 0.0)
    generator = torch.Generator().manual_seed(1)
    x, last = torch.rand(SHAPE, generator=generator), None
    for kind in ("first", "patch", "pixel", "all", "same"):
        x = move(x, kind, generator)
        result = session.step({"s": x})["s"]
        with torch.no_grad():
            expected = model(x)
        limit = RECURRENT if name in ("lstm", "gru", "rnn") else FP32
        assert torchdelta.relative_error(result.output, expected) <= limit, kind
        if kind == "all":
            assert torchdelta.relative_error(last, expected) > 1e-2
        last = expected
    assert sum(result.report().active_px) == 0


@pytest.mark.parametrize("name", each(["mha", "lstm", "gru"]))
def test_cameras_do_not_meet_in_rows(name: str) -> None:
    fast, model = compiled(name)
    frames = torch.rand(3, *SHAPE[1:], generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        assert torchdelta.relative_error(fast(frames), model(frames)) <= FP32


def test_attention_captured_for_one_device_runs_on_any() -> None:
    target = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu

    def attend(x: Tensor) -> Tensor:
        q = x.flatten(2)[:, None]
        return target(q, q, q.tanh())[0]

    fast = torchdelta.compile(Fn(attend).eval(), torch.rand(SHAPE), tolerance=0)
    x = torch.rand(SHAPE)
    assert torchdelta.relative_error(fast(x), attend(x)) <= FP32
    names = [step.op.describe() for step in fast.plan.steps]
    assert not any("for_cpu" in name for name in names)
    assert any("scaled_dot_product_attention" in name for name in names)


def never(x: Tensor) -> Tensor:
    """Run every layer that can draw random numbers in the way that it does not."""
    x = F.dropout(x, 0.0, training=True) + F.dropout(x, 0.5, training=False)
    x = F.feature_alpha_dropout(F.dropout2d(F.alpha_dropout(x, 0.5), 0.5, False), 0.5)
    return F.rrelu(torch.native_dropout(x, 0.5, False)[0])


def test_what_draws_nothing_is_taken() -> None:
    fast = torchdelta.compile(Fn(never).eval(), torch.rand(SHAPE) - 0.5, tolerance=0)
    x = torch.rand(SHAPE) - 0.5
    assert torchdelta.relative_error(fast(x), never(x)) <= FP32


@pytest.mark.parametrize(
    ("fn", "name"),
    [
        (lambda x: F.dropout(x, 0.5, training=True), "dropout"),
        (lambda x: F.dropout2d(x, 0.5, training=True), "bernoulli|dropout"),
        (lambda x: F.alpha_dropout(x, 0.5, training=True), "bernoulli|dropout"),
        (lambda x: F.rrelu(x, training=True), "rrelu"),
        (lambda x: x * torch.bernoulli(torch.full((3, 1, 1), 0.5)), "bernoulli"),
        (lambda x: x + torch.randn(1, 3, 1, 1), "randn"),
        (
            lambda x: F.scaled_dot_product_attention(*(x.flatten(2),) * 3, dropout_p=0.5),
            "attention|dropout|bernoulli",
        ),
    ],
)
def test_what_draws_random_numbers_is_refused(fn: Callable[[Tensor], Tensor], name: str) -> None:
    with pytest.raises(CaptureError, match=f"({name}).*random numbers"):
        torchdelta.compile(Fn(fn).eval(), torch.rand(SHAPE))
