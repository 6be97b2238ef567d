"""Random small networks out of the supported operations, by seed; one must contain a given op."""

from __future__ import annotations

import random
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import torchdelta


class Layer(nn.Module):
    """One random layer: a module with what must be known of its result."""

    def __init__(self, module: nn.Module | None, fn: object = None) -> None:
        super().__init__()
        self.module, self.fn = module, fn

    def forward(self, x: Tensor) -> Tensor:
        if self.module is not None:
            x = self.module(x)
        return self.fn(x) if callable(self.fn) else x


def _conv(r: random.Random, c: int, h: int, w: int) -> Layer:
    k = r.choice([(1, 1), (3, 3), (1, 3), (5, 5), (3, 2)])
    groups = r.choice([g for g in (1, 1, 2, 3, c) if c % g == 0])
    out = groups * r.randint(1, max(1, 8 // groups)) if groups < c else c
    stride = r.choice([1, 1, 2]) if min(h, w) > 6 else 1
    dilation = r.choice([1, 1, 2]) if min(h, w) > 6 else 1
    pad = tuple(dilation * (n // 2) for n in k)
    conv = nn.Conv2d(c, out, k, stride, pad, dilation, groups, bias=r.random() < 0.7)
    act = r.choice([nn.ReLU(), nn.SiLU(), nn.Hardswish(), nn.Identity(), nn.LeakyReLU(0.1)])
    return Layer(nn.Sequential(conv, act))


def _bn(c: int) -> nn.Module:
    bn = nn.BatchNorm2d(c)
    nn.init.uniform_(bn.running_mean, -0.3, 0.3)
    nn.init.uniform_(bn.running_var, 0.5, 1.5)
    return bn


def _broad(x: Tensor) -> Tensor:
    return x * (0.5 + x.mean(1, keepdim=True).relu())


def _shuffle2(x: Tensor) -> Tensor:
    return F.pixel_shuffle(torch.cat([x, -x, x.abs(), x.tanh()], 1), 2)


def _unshuffle(x: Tensor) -> Tensor:
    h, w = x.shape[2] // 2 * 2, x.shape[3] // 2 * 2
    return F.pixel_unshuffle(x[:, :, :h, :w], 2)[:, : 2 * x.shape[1]]


def _twice(x: Tensor) -> Tensor:
    y = x.tanh()
    return torch.cat([y, x.relu(), y], 1)


def _se(c: int) -> nn.Module:
    class Gate(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Conv2d(c, c, 1)

        def forward(self, x: Tensor) -> Tensor:
            return x * self.fc(F.adaptive_avg_pool2d(x, 1)).sigmoid()

    return Gate()


def _residual(c: int) -> nn.Module:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Conv2d(c, c, 3, padding=1), nn.ReLU(),
                                      nn.Conv2d(c, c, 3, padding=1))  # fmt: skip

        def forward(self, x: Tensor) -> Tensor:
            return (x + self.body(x)).relu()

    return Residual()


def make_layer(op: str, r: random.Random, c: int, h: int, w: int) -> Layer:
    """Make a random layer that lowers to the registered op, for an input of c x h x w."""
    if op == "conv2d":
        return Layer(_residual(c)) if r.random() < 0.3 else _conv(r, c, h, w)
    if op == "conv_transpose2d":
        k = r.choice([2, 3, 4])
        return Layer(nn.ConvTranspose2d(c, r.randint(2, 6), k, 2, r.choice([0, 1])))
    if op == "max_pool2d":
        return Layer(nn.MaxPool2d(3, r.choice([1, 2]), 1, ceil_mode=r.random() < 0.5))
    if op == "avg_pool2d":
        return Layer(nn.AvgPool2d(2, r.choice([1, 2]), ceil_mode=True,
                                  count_include_pad=r.random() < 0.5))  # fmt: skip
    if op == "adaptive_pool2d":
        size = (max(2, h // 2), max(2, w // 3))
        return Layer(nn.AdaptiveAvgPool2d(size))
    if op in ("tile_reduce", "global_reduce"):
        return Layer(_se(c))
    if op == "pointwise":
        act = r.choice([torch.tanh, torch.sigmoid, F.gelu, F.elu, torch.abs])
        return Layer(None, lambda x: x + act(x) * act(2 * x))
    if op == "affine":
        return Layer(_bn(c), torch.relu)
    if op == "binary":
        return Layer(None, r.choice([_broad, lambda x: x * x.sigmoid().sub(x.tanh())]))
    if op == "const":
        t = torch.rand(1, c, 1, 1) + 0.5
        return Layer(None, r.choice([lambda x: x.tanh() * t - 0.1, lambda x: 1.5 - x.relu()]))
    if op == "softmax":
        return Layer(None, lambda x: c * (3 * x).softmax(1) + x)
    if op == "bilinear":
        corners = r.random() < 0.5
        return Layer(nn.Upsample((h + r.randint(0, 5), w + 3), mode="bilinear",
                                 align_corners=corners))  # fmt: skip
    if op == "remap":
        return Layer(
            r.choice(
                [
                    nn.Upsample(scale_factor=2),
                    nn.ReflectionPad2d((1, 0, 1, 1)),
                    nn.ConstantPad2d(1, 0.3),
                ]
            )
        )
    simple = {
        "pixel_shuffle": _shuffle2,
        "pixel_unshuffle": _unshuffle,
        "copy": _twice,
        "dense": lambda x: x.cumsum(3) / x.shape[3],
    }
    if op in simple:
        return Layer(None, simple[op])
    assert op == "reshape", op
    head = nn.Linear(c * h * w, 5)
    return Layer(None, lambda x: x + head(x.flatten(1)).tanh().mean(1)[:, None, None, None])


OTHERS = ("conv2d", "conv2d", "conv2d", "max_pool2d", "affine", "pointwise", "copy", "remap")


class RandomNet(nn.Module):
    """A chain of random layers with skip connections; two results of different size."""

    def __init__(self, op: str, seed: int) -> None:
        super().__init__()
        r = random.Random(f"{op} {seed}")
        torch.manual_seed(seed)
        self.size = (3, r.choice([9, 16, 17, 23]), r.choice([10, 15, 21]))
        layers: list[nn.Module] = []
        x = torch.rand(2, *self.size)
        kinds = [r.choice(OTHERS) for _ in range(r.randint(2, 4))]
        kinds.insert(r.randint(1, len(kinds)), op)
        for kind in kinds:
            layer = make_layer(kind, r, *x.shape[1:])
            with torch.no_grad():
                y = layer.eval()(x)
            x = y[:, :24]
            layers.append(layer)
        self.layers = nn.ModuleList(layers)
        self.middle = len(layers) // 2
        self.head = nn.Conv2d(x.shape[1], 4, 3, padding=1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        middle = x
        for i, layer in enumerate(self.layers):
            x = layer(x)[:, :24]
            if i == self.middle:
                middle = x
        return {"out": self.head(x), "middle": middle}


@cache
def compiled_net(op: str, seed: int) -> tuple[torchdelta.CompiledModel, nn.Module]:
    """Compile a random network once per worker."""
    model = RandomNet(op, seed).eval()
    example = torch.rand(1, *model.size, generator=torch.Generator().manual_seed(seed))
    return torchdelta.compile(model, example, input_range=(0, 1)), model
