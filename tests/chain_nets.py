"""Small networks whose steps share lists of active pixels in the triton engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import torchdelta

SHAPE = (3, 8, 10)


class Join(nn.Module):
    """relu(body(x) + shortcut(x))."""

    def __init__(self, body: nn.Module, shortcut: nn.Module, act: nn.Module) -> None:
        super().__init__()
        self.body, self.shortcut, self.act = body, shortcut, act

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.body(x) + self.shortcut(x))


class Branches(nn.Module):
    """Branches on one input, side by side, then a tail."""

    def __init__(self, branches: Sequence[nn.Module], tail: nn.Module) -> None:
        super().__init__()
        self.branches, self.tail = nn.ModuleList(branches), tail

    def forward(self, x: Tensor) -> Tensor:
        return self.tail(torch.cat([branch(x) for branch in self.branches], 1))


class Scales(nn.Module):
    """Maps of two scales that are added, as HRNet does."""

    def __init__(self) -> None:
        super().__init__()
        self.fine, self.down = conv(4, 4, 3), conv(4, 6, 3, 2)
        self.up = nn.Sequential(conv(6, 4, 1), nn.Upsample(scale_factor=2))
        self.again = conv(4, 6, 3, 2)

    def forward(self, x: Tensor) -> Tensor:
        coarse = self.down(x).relu()
        fine = (self.fine(x) + self.up(coarse)).relu()
        return (self.again(fine) * 0.5 + coarse).relu()


class Fused(nn.Module):
    """Branches of three scales, each then added to all: a stage of HRNet."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, widths = conv(3, 4, 3), (4, 5, 6)
        self.down = nn.ModuleList([conv(4, 5, 3, 2), conv(5, 6, 3, 2)])
        self.branches = nn.ModuleList(
            nn.Sequential(conv(c, c, 3), nn.ReLU(), conv(c, c, 3), nn.ReLU()) for c in widths
        )
        self.fuse = nn.ModuleList(
            nn.ModuleList(self._fuse(i, j, widths) for j in range(3)) for i in range(3)
        )

    def _fuse(self, i: int, j: int, widths: tuple[int, ...]) -> nn.Module:
        if j >= i:
            up = nn.Upsample(scale_factor=2 ** (j - i))
            return nn.Identity() if j == i else nn.Sequential(conv(widths[j], widths[i], 1), up)
        steps = [conv(widths[n], widths[n + 1], 3, 2) for n in range(j, i)]
        return nn.Sequential(*steps)

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = [self.stem(x).relu()]
        for down in self.down:
            maps.append(down(maps[-1]).relu())
        maps = [branch(x) for branch, x in zip(self.branches, maps, strict=True)]
        return [sum(f(x) for f, x in zip(row, maps, strict=True)).relu() for row in self.fuse]


class Excite(nn.Module):
    """A squeeze-and-excitation gate on a depthwise convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.fc = conv(6, 6, 3, groups=6), conv(6, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x).relu()
        return x * self.fc(x.mean((2, 3), keepdim=True)).sigmoid() + x.tanh()


class Cumulated(nn.Module):
    """A step that is left to PyTorch, between others."""

    def forward(self, x: Tensor) -> Tensor:
        return x.cumsum(3) / x.shape[3]


@torch.library.custom_op("torchdelta_tests::peek", mutates_args=())
def peek(x: Tensor) -> Tensor:
    """Compute relu, looking at a number on the way: no CUDA graph can hold that."""
    return x.clamp_min(0.0) if float(x.flatten()[0]) == 0.0 else x.relu()


@peek.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


class Peek(nn.Module):
    """An operation that PyTorch cannot capture."""

    def forward(self, x: Tensor) -> Tensor:
        return peek(x)


class AllSorts(nn.Module):
    """Steps of many kinds, each of which finds its input on a ring."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.wide, self.alone = conv(3, 4, 3), conv(4, 16, 1), conv(16, 16, 3, 2, 16)
        self.deep, self.up = conv(16, 4, 3), nn.ConvTranspose2d(4, 4, 4, 2, 1)
        self.squeeze, self.last = conv(4, 4, 1), conv(4, 3, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        y = self.alone(self.wide(x).relu())
        z = F.max_pool2d(F.avg_pool2d(self.deep(y), 3, 1, 1), 3, 1, 1)
        up = self.up(z) + F.interpolate(z, scale_factor=2)
        up = up * self.squeeze(up.mean((2, 3), keepdim=True)).sigmoid()
        fine = F.pixel_shuffle(F.softmax(y, 1), 2) * 4
        even = F.interpolate(F.pixel_unshuffle(fine, 2), scale_factor=2, mode="bilinear")[:, 4:8]
        return self.last(x + up + fine + even.cumsum(3).tanh() * 2 - 0.5)


def conv(c: int, out: int, k: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(c, out, k, stride, k // 2, groups=groups)


def bottleneck(c: int, out: int, stride: int = 1) -> nn.Module:
    body = nn.Sequential(
        conv(c, 4, 1), nn.ReLU(), conv(4, 4, 3, stride), nn.ReLU(), conv(4, out, 1)
    )
    same = c == out and stride == 1
    return Join(body, nn.Identity() if same else conv(c, out, 1, stride), nn.ReLU())


def inverted(c: int) -> nn.Module:
    body = nn.Sequential(
        conv(c, 2 * c, 1), nn.ReLU6(), conv(2 * c, 2 * c, 3, groups=2 * c), nn.ReLU6(),
        conv(2 * c, c, 1),
    )  # fmt: skip
    return Join(body, nn.Identity(), nn.Identity())


NETS: dict[str, Callable[[], nn.Module]] = {
    "chain": lambda: nn.Sequential(
        conv(3, 6, 3), conv(6, 4, 1), nn.ReLU(), conv(4, 6, 1), nn.Tanh(), conv(6, 2, 1)
    ),
    "bottleneck": lambda: nn.Sequential(conv(3, 8, 3), nn.ReLU(), bottleneck(8, 8)),
    "downsampling": lambda: nn.Sequential(conv(3, 6, 3), bottleneck(6, 8, 2), bottleneck(8, 8)),
    "inverted-residual": lambda: nn.Sequential(conv(3, 6, 3, 2), nn.Hardswish(), inverted(6)),
    "scales": lambda: nn.Sequential(conv(3, 4, 3), nn.ReLU(), Scales()),
    "squeeze-excite": lambda: nn.Sequential(conv(3, 6, 3), Excite(), conv(6, 4, 1)),
    # more sources than one select kernel takes; a deconvolution, whose lists nobody follows
    "cat-of-six": lambda: nn.Sequential(
        Branches(
            [conv(3, 2, k) for k in (1, 3, 1, 3, 1, 3)],
            nn.Sequential(nn.ReLU(), conv(12, 4, 3), nn.ConvTranspose2d(4, 3, 2, 2)),
        ),
        conv(3, 2, 1), nn.Tanh(), conv(2, 2, 1),
    ),
    "left-to-pytorch": lambda: nn.Sequential(
        conv(3, 6, 3), Cumulated(), conv(6, 4, 1), nn.ReLU(), conv(4, 4, 1)
    ),
}  # fmt: skip


@cache
def compiled_chain(net: str) -> tuple[torchdelta.CompiledModel, nn.Module]:
    """Compile one of NETS once per worker."""
    torch.manual_seed(0)
    model = NETS[net]().eval()
    example = torch.rand(1, *SHAPE, generator=torch.Generator().manual_seed(0))
    return torchdelta.compile(model, example, input_range=(0, 1)), model
