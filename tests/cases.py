"""The op cases: one row per (operation, parameters), run on every engine.

Sizes are odd on purpose (1, 7, 63, 130); `OP_CASES` maps an id to (registered op, module, input
shape [C, H, W]). A new operation needs rows here: a test checks that every registered op has some.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Shape = tuple[int, int, int]


class Fn(nn.Module):
    """Wrap a function as a module, with learnable tensors it may use."""

    def __init__(self, fn: Callable[..., Tensor], **tensors: Tensor) -> None:
        super().__init__()
        self.fn = fn
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor)
        self.names = tuple(tensors)

    def forward(self, x: Tensor) -> Tensor:
        return self.fn(x, *(getattr(self, name) for name in self.names))


class Squeeze(nn.Module):
    """A squeeze-and-excitation gate."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.fc(x.mean((2, 3), keepdim=True)).sigmoid()


class OfSlice(nn.Module):
    """A layer on some of the channels: its input is a view into a wider buffer."""

    def __init__(self, layer: nn.Module, begin: int, end: int) -> None:
        super().__init__()
        self.layer, self.begin, self.end = layer, begin, end

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x[:, self.begin : self.end])


class SideBySide(nn.Module):
    """Layers on one input whose results lie in one buffer."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([layer(x) for layer in self.layers], 1)


# name: function, and the range in which a case looks at it
FUNCTIONS: dict[str, tuple[Callable[[Tensor], Tensor], float, float]] = {
    # what every engine has a kernel for
    "relu": (F.relu, -3, 3), "relu6": (F.relu6, -9, 9), "hardtanh": (F.hardtanh, -3, 3),
    "clamp": (lambda x: x.clamp(-0.5, 0.7), -3, 3),
    "clamp-min": (lambda x: torch.clamp_min(x, -1), -3, 3),
    "clamp-max": (lambda x: torch.clamp_max(x, 1), -3, 3),
    "leaky": (lambda x: F.leaky_relu(x, 0.2), -3, 3), "elu": (F.elu, -4, 2),
    "elu-alpha": (lambda x: F.elu(x, 1.5), -4, 2), "selu": (F.selu, -4, 2),
    "celu": (lambda x: F.celu(x, 0.7), -4, 2), "silu": (F.silu, -6, 4),
    "hardswish": (F.hardswish, -5, 5), "hardsigmoid": (F.hardsigmoid, -5, 5),
    "sigmoid": (torch.sigmoid, -5, 5), "tanh": (torch.tanh, -3, 3), "gelu": (F.gelu, -4, 4),
    "gelu-tanh": (lambda x: F.gelu(x, approximate="tanh"), -4, 4), "mish": (F.mish, -5, 4),
    "softplus": (F.softplus, -5, 4), "softplus-beta": (lambda x: F.softplus(x, 2, 3), -4, 4),
    "logsigmoid": (F.logsigmoid, -4, 5), "softsign": (F.softsign, -3, 3),
    "threshold": (lambda x: F.threshold(x, 0.3, -1), -2, 2),
    "abs": (torch.abs, -3, 3), "neg": (torch.neg, -3, 3), "sign": (torch.sign, -1, 1),
    "square": (torch.square, -2, 2), "sqrt": (torch.sqrt, 0, 4), "rsqrt": (torch.rsqrt, 0.1, 4),
    "reciprocal": (torch.reciprocal, 0.2, 3), "floor": (torch.floor, -3, 3),
    "ceil": (torch.ceil, -3, 3), "exp": (torch.exp, -4, 1), "expm1": (torch.expm1, -3, 1),
    "log": (torch.log, 0.05, 4), "log1p": (torch.log1p, -0.9, 3), "log2": (torch.log2, 0.1, 4),
    "log10": (torch.log10, 0.01, 9), "erf": (torch.erf, -2, 2), "sin": (torch.sin, -4, 4),
    "cos": (torch.cos, -4, 4),
    # what the triton engine leaves to PyTorch
    "round": (torch.round, -3, 3), "trunc": (torch.trunc, -3, 3), "tan": (torch.tan, -1.2, 1.2),
    "sinh": (torch.sinh, -2, 2), "cosh": (torch.cosh, -2, 2), "asin": (torch.asin, -1, 1),
    "acos": (torch.acos, -1, 1), "atan": (torch.atan, -4, 4), "asinh": (torch.asinh, -4, 4),
    "acosh": (torch.acosh, 1, 5), "atanh": (torch.atanh, -0.95, 0.95),
}  # fmt: skip
# of the cases that look at some each; all but those of the last part have kernels everywhere
PARTS = [list(FUNCTIONS)[begin:end] for begin, end in ((0, 21), (21, 42), (42, None))]


class Functions(nn.Module):
    """Elementwise functions side by side, each of three channels in its own range of numbers."""

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__()
        self.names = names
        self.spread = nn.Conv2d(5, 3 * len(names), 1)
        with torch.no_grad():
            self.spread.weight.zero_()
            for c in range(3 * len(names)):
                _, low, high = FUNCTIONS[names[c // 3]]
                self.spread.weight[c, c % 5] = high - low
                self.spread.bias[c] = low

    def forward(self, x: Tensor) -> Tensor:
        parts = self.spread(x).split(3, 1)
        return torch.cat(
            [FUNCTIONS[name][0](part) for name, part in zip(self.names, parts, strict=True)], 1
        )


class Signed(nn.Module):
    """An elementwise layer on numbers of both signs: a step of its own, as its input is a view."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer((8 * x - 4)[:, 1:])


def _prelu(channels: int) -> nn.PReLU:
    """Give one whose slopes differ."""
    layer = nn.PReLU(channels)
    nn.init.uniform_(layer.weight, -0.5, 0.9)
    return layer


def _bn(channels: int) -> nn.BatchNorm2d:
    bn = nn.BatchNorm2d(channels)
    bn.running_mean.uniform_(-1, 1)
    bn.running_var.uniform_(0.5, 2)
    nn.init.uniform_(bn.weight, 0.5, 1.5)
    nn.init.uniform_(bn.bias, -1, 1)
    return bn.eval()


def _linear(c: int, h: int, w: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(c * h * w, 70))


def _twice(x: Tensor) -> Tensor:
    y = x.tanh()
    return torch.cat([y, x, y], 1)


def _split(x: Tensor) -> Tensor:
    a, b, c = x.split([2, 3, 3], 1)
    d, e = a.chunk(2, 1)
    return torch.cat([c.relu(), d.sigmoid(), b[:, 1:].tanh(), e], 1)


def _shuffle(x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    return x.view(n, 2, c // 2, h, w).transpose(1, 2).contiguous().view(n, c, h, w)


conv, deconv = nn.Conv2d, nn.ConvTranspose2d


def _depthwise(channels: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    return conv(channels, channels, kernel, stride, kernel // 2, groups=channels)


# channels around whole vectors (4, 8, 16) and gate groups (64), wide maps, views with an offset:
# kernels of an instruction set take other paths there
WIDE_CASES: dict[str, tuple[str, Callable[[], nn.Module], Shape]] = {
    "conv-3x3-16-64": ("conv2d", lambda: conv(16, 64, 3, padding=1), (16, 13, 17)),
    "conv-3x3-17-65": ("conv2d", lambda: conv(17, 65, 3, padding=1), (17, 9, 63)),
    "conv-3x3-70": ("conv2d", lambda: conv(70, 70, 3, padding=1), (70, 9, 11)),
    "conv-3x3-s2-16-130": ("conv2d", lambda: conv(16, 130, 3, 2, 1), (16, 7, 63)),
    "conv-1x1-130": ("conv2d", lambda: conv(130, 130, 1), (130, 7, 9)),
    "conv-1x1-64-128": ("conv2d", lambda: conv(64, 128, 1), (64, 3, 130)),
    # sums that are longer than the weights of a native chunk, inside and beside the edge
    "conv-1x1-1100": ("conv2d", lambda: conv(1100, 20, 1), (1100, 3, 5)),
    "conv-3x3-370": ("conv2d", lambda: conv(370, 20, 3, padding=1), (370, 5, 6)),
    "conv-1x1-s2-33": ("conv2d", lambda: conv(33, 40, 1, 2), (33, 7, 63)),
    "conv-groups-of-3": ("conv2d", lambda: conv(9, 12, 3, padding=1, groups=3), (9, 9, 17)),
    "conv-groups-of-16": ("conv2d", lambda: conv(32, 40, 3, padding=1, groups=2), (32, 9, 11)),
    "conv-groups-of-40": ("conv2d", lambda: conv(80, 96, 3, 2, 1, groups=2), (80, 9, 11)),
    "conv-depthwise-16-wide": ("conv2d", lambda: _depthwise(16, 3), (16, 7, 63)),
    "conv-depthwise-33-s2": ("conv2d", lambda: _depthwise(33, 3, 2), (33, 7, 130)),
    "conv-depthwise-130": ("conv2d", lambda: _depthwise(130, 3), (130, 5, 9)),
    "conv-depthwise-5-16-s2": ("conv2d", lambda: _depthwise(16, 5, 2), (16, 9, 130)),
    "conv-depthwise-5-33": ("conv2d", lambda: _depthwise(33, 5), (33, 9, 63)),
    "conv-depthwise-5-130-s2": ("conv2d", lambda: _depthwise(130, 5, 2), (130, 9, 7)),
    "conv-depthwise-1px": ("conv2d", lambda: _depthwise(20, 3), (20, 1, 1)),
    "conv-depthwise-relu6": ("conv2d", lambda: nn.Sequential(_depthwise(24, 3), nn.ReLU6()),
                             (24, 9, 11)),
    "conv-of-slice": ("conv2d", lambda: OfSlice(conv(5, 9, 3, padding=1), 4, 9), (12, 9, 17)),
    "conv-1x1-of-slice": ("conv2d", lambda: OfSlice(conv(17, 33, 1), 3, 20), (21, 7, 9)),
    "conv-depthwise-of-slice": ("conv2d", lambda: OfSlice(_depthwise(19, 3), 1, 20), (24, 9, 17)),
    "conv-side-by-side": ("conv2d", lambda: SideBySide(conv(6, 20, 3, padding=1), conv(6, 13, 1),
                                                       conv(6, 70, 1)), (6, 9, 11)),
    "conv-residual-70": ("conv2d", lambda: nn.Sequential(Residual(70), nn.ReLU()), (70, 7, 9)),
    "deconv-17-70": ("conv_transpose2d", lambda: deconv(17, 70, 4, 2, 1), (17, 5, 9)),
    "deconv-of-slice": ("conv_transpose2d", lambda: OfSlice(deconv(6, 9, 3, 2, 1), 2, 8),
                        (11, 7, 9)),
    "maxpool-70": ("max_pool2d", lambda: nn.MaxPool2d(3, 2, 1), (70, 9, 17)),
    "maxpool-of-slice": ("max_pool2d", lambda: OfSlice(nn.MaxPool2d(2), 3, 20), (24, 9, 17)),
    "avgpool-70": ("avg_pool2d", lambda: nn.AvgPool2d(3, 2, 1, count_include_pad=False),
                   (70, 9, 17)),
    "adaptive-avg-70": ("adaptive_pool2d", lambda: nn.AdaptiveAvgPool2d((3, 2)), (70, 9, 7)),
    "global-avg-of-slice": ("global_reduce", lambda: OfSlice(nn.AdaptiveAvgPool2d(1), 3, 20),
                            (24, 35, 20)),
    "squeeze-excite-70": ("binary", lambda: Squeeze(70), (70, 19, 17)),
    "bilinear-70": ("bilinear", lambda: nn.Upsample(scale_factor=2, mode="bilinear"), (70, 5, 7)),
    "nearest-70": ("remap", lambda: nn.Upsample(scale_factor=2), (70, 5, 7)),
    "act-silu-130": ("pointwise", lambda: Signed(nn.SiLU()), (130, 5, 7)),
    "prelu-70": ("pointwise", lambda: Signed(_prelu(69)), (70, 5, 7)),
    "bn-70": ("affine", lambda: _bn(70), (70, 5, 7)),
    "softmax-70": ("softmax", lambda: nn.Softmax(1), (70, 5, 7)),
    "channel-shuffle-130": ("remap", lambda: nn.ChannelShuffle(2), (130, 5, 7)),
    "pixel-shuffle-280": ("pixel_shuffle", lambda: nn.PixelShuffle(2), (280, 5, 7)),
    "pixel-unshuffle-17": ("pixel_unshuffle", lambda: nn.PixelUnshuffle(2), (17, 6, 8)),
    "cat-twice-33": ("copy", lambda: Fn(_twice), (33, 5, 7)),
}  # fmt: skip

OP_CASES: dict[str, tuple[str, Callable[[], nn.Module], Shape]] = {
    "conv-1x1": ("conv2d", lambda: conv(7, 5, 1), (7, 7, 63)),
    "conv-1x1-s2": ("conv2d", lambda: conv(7, 70, 1, stride=2), (7, 13, 9)),
    "conv-1x1-pad": ("conv2d", lambda: conv(3, 4, 1, padding=1), (3, 7, 9)),
    "conv-3x3": ("conv2d", lambda: conv(3, 9, 3, padding=1), (3, 63, 130)),
    "conv-3x3-nobias": ("conv2d", lambda: conv(3, 9, 3, bias=False), (3, 17, 19)),
    "conv-3x3-s2": ("conv2d", lambda: conv(3, 9, 3, stride=2, padding=1), (3, 33, 40)),
    "conv-3x3-s2-even": ("conv2d", lambda: conv(3, 9, 3, stride=2, padding=1), (3, 32, 64)),
    "conv-3x3-d2": ("conv2d", lambda: conv(4, 5, 3, padding=2, dilation=2), (4, 21, 23)),
    "conv-3x3-s3-d2": ("conv2d", lambda: conv(4, 5, 3, stride=3, padding=1, dilation=2),
                       (4, 21, 23)),
    "conv-1x3": ("conv2d", lambda: conv(4, 5, (1, 3), padding=(0, 1)), (4, 11, 13)),
    "conv-7x7-s2": ("conv2d", lambda: conv(3, 8, 7, stride=2, padding=3), (3, 29, 31)),
    "conv-5x2-s2x1": ("conv2d", lambda: conv(3, 8, (5, 2), stride=(2, 1), padding=(2, 1)),
                      (3, 19, 17)),
    "conv-4x4-s4": ("conv2d", lambda: conv(3, 8, 4, stride=4), (3, 19, 17)),
    "conv-groups": ("conv2d", lambda: conv(8, 12, 3, padding=1, groups=4), (8, 17, 15)),
    "conv-depthwise": ("conv2d", lambda: conv(9, 9, 3, padding=1, groups=9), (9, 17, 15)),
    "conv-depthwise-5-s2": ("conv2d", lambda: conv(9, 18, 5, stride=2, padding=2, groups=9),
                            (9, 17, 15)),
    "conv-same": ("conv2d", lambda: conv(3, 4, (4, 3), padding="same"), (3, 11, 12)),
    "conv-valid": ("conv2d", lambda: conv(3, 4, 3, padding="valid"), (3, 11, 12)),
    "conv-asymmetric": ("conv2d", lambda: nn.Sequential(nn.ZeroPad2d((0, 1, 2, 1)),
                                                        conv(3, 4, 3, stride=2)), (3, 12, 13)),
    "conv-1x1-trailing-pad": ("conv2d", lambda: nn.Sequential(nn.ZeroPad2d((0, 1, 0, 2)),
                                                              conv(3, 4, 1)), (3, 12, 13)),
    "conv-1x5-corner-pad": ("conv2d", lambda: nn.Sequential(nn.ZeroPad2d((3, 0, 0, 1)),
                                                            conv(3, 4, (1, 5))), (3, 12, 13)),
    "conv-1px": ("conv2d", lambda: conv(3, 4, 3, padding=1), (3, 1, 1)),
    "conv-tall": ("conv2d", lambda: conv(3, 4, 3, padding=1), (3, 130, 1)),
    "conv-many-groups": ("conv2d", lambda: conv(5, 150, 3, padding=1), (5, 9, 9)),
    "conv-bn-relu": ("conv2d", lambda: nn.Sequential(conv(3, 6, 3, padding=1), _bn(6), nn.ReLU6()),
                     (3, 15, 9)),
    "linear": ("conv2d", lambda: nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                                               nn.Linear(6, 70)), (6, 9, 7)),
    "deconv-2x2-s2": ("conv_transpose2d", lambda: deconv(5, 4, 2, stride=2), (5, 9, 7)),
    "deconv-4x4-s2": ("conv_transpose2d", lambda: deconv(5, 4, 4, stride=2, padding=1),
                      (5, 19, 17)),
    "deconv-3x3-s2-out1": ("conv_transpose2d",
                           lambda: deconv(5, 4, 3, stride=2, padding=1, output_padding=1),
                           (5, 9, 33)),
    "deconv-2x2-s3": ("conv_transpose2d", lambda: deconv(5, 4, 2, stride=3, output_padding=2),
                      (5, 7, 9)),
    "deconv-3x3-d2": ("conv_transpose2d",
                      lambda: deconv(6, 4, 3, stride=2, dilation=2, padding=2, groups=2),
                      (6, 11, 9)),
    "deconv-3x3-s1": ("conv_transpose2d", lambda: deconv(6, 4, 3, padding=1, bias=False),
                      (6, 11, 9)),
    "deconv-bn": ("conv_transpose2d",
                  lambda: nn.Sequential(deconv(6, 4, 2, stride=2, groups=2), _bn(4)), (6, 11, 9)),
    "maxpool-2": ("max_pool2d", lambda: nn.MaxPool2d(2), (5, 17, 19)),
    "maxpool-3-s2-p1": ("max_pool2d", lambda: nn.MaxPool2d(3, 2, 1), (5, 33, 19)),
    "maxpool-ceil": ("max_pool2d", lambda: nn.MaxPool2d(3, 2, ceil_mode=True), (5, 18, 20)),
    "maxpool-d2": ("max_pool2d", lambda: nn.MaxPool2d(3, 1, 1, dilation=2), (5, 18, 20)),
    "maxpool-13-s1": ("max_pool2d", lambda: nn.MaxPool2d(13, 1, 6), (3, 20, 21)),
    "avgpool-2": ("avg_pool2d", lambda: nn.AvgPool2d(2), (5, 17, 19)),
    "avgpool-3-s2-p1": ("avg_pool2d", lambda: nn.AvgPool2d(3, 2, 1), (5, 17, 19)),
    "avgpool-nopad": ("avg_pool2d", lambda: nn.AvgPool2d(3, 2, 1, count_include_pad=False),
                      (5, 18, 19)),
    "avgpool-ceil": ("avg_pool2d", lambda: nn.AvgPool2d(3, 2, 1, ceil_mode=True), (5, 18, 20)),
    "avgpool-ceil-nopad": ("avg_pool2d",
                           lambda: nn.AvgPool2d((2, 3), 2, ceil_mode=True,
                                                count_include_pad=False), (5, 17, 20)),
    "avgpool-divisor": ("avg_pool2d", lambda: nn.AvgPool2d(3, 2, 1, divisor_override=5),
                        (5, 17, 19)),
    "adaptive-avg": ("adaptive_pool2d", lambda: nn.AdaptiveAvgPool2d((3, 4)), (5, 17, 18)),
    "adaptive-max": ("adaptive_pool2d", lambda: nn.AdaptiveMaxPool2d((7, 2)), (5, 17, 18)),
    "global-avg": ("tile_reduce", lambda: nn.AdaptiveAvgPool2d(1), (70, 35, 50)),
    "global-max": ("global_reduce", lambda: nn.AdaptiveMaxPool2d(1), (5, 17, 35)),
    "global-mean": ("global_reduce", lambda: Fn(lambda x: x.mean((2, 3))), (5, 17, 35)),
    "global-amax": ("global_reduce", lambda: Fn(lambda x: x.amax((-1, -2), True)), (5, 16, 7)),
    "squeeze-excite": ("binary", lambda: Squeeze(6), (6, 19, 17)),
    "bn": ("affine", lambda: _bn(5), (5, 9, 7)),
    **{f"functions-{n}": ("pointwise", lambda part=part: Functions(part), (5, 9, 7))
       for n, part in enumerate(PARTS)},
    "gelu-tanh-alone": ("pointwise", lambda: Signed(nn.GELU(approximate="tanh")), (5, 9, 7)),
    "prelu-conv": ("conv2d", lambda: nn.Sequential(conv(5, 70, 1), _prelu(70)), (5, 9, 7)),
    "add": ("binary", lambda: Fn(lambda x: x.tanh() + x), (5, 9, 7)),
    "add-alpha": ("binary", lambda: Fn(lambda x: torch.add(x.tanh(), x, alpha=0.3)), (5, 9, 7)),
    "sub": ("binary", lambda: Fn(lambda x: x.tanh() - x), (5, 9, 7)),
    "mul": ("binary", lambda: Fn(lambda x: x.tanh() * x), (5, 9, 7)),
    "div": ("binary", lambda: Fn(lambda x: x / (x.abs() + 1)), (5, 9, 7)),
    "maximum": ("binary", lambda: Fn(lambda x: torch.maximum(x.tanh(), 1 - x)), (5, 9, 7)),
    "minimum": ("binary", lambda: Fn(lambda x: torch.minimum(x.tanh(), 1 - x)), (5, 9, 7)),
    "pow": ("binary", lambda: Fn(lambda x: (x + 0.1).pow((4 * x - 2).tanh())), (5, 9, 7)),
    "mul-channel": ("binary", lambda: Fn(lambda x: x * x[:, 1:2]), (5, 9, 7)),
    "residual": ("conv2d", lambda: nn.Sequential(Residual(5), nn.ReLU()), (5, 9, 17)),
    "sub-from-value": ("conv2d", lambda: Residual(5, lambda x, y: x - y), (5, 9, 17)),
    "add-const": ("const", lambda: Fn(lambda x: x + 0.7), (5, 9, 7)),
    "rsub-const": ("const", lambda: Fn(lambda x: 1 - x), (5, 9, 7)),
    "div-const": ("const", lambda: Fn(lambda x: 1 / (2 + x.abs())), (5, 9, 7)),
    "pow-const": ("const", lambda: Fn(lambda x: x.abs() ** 1.5), (5, 9, 7)),
    "mul-per-channel": ("const", lambda: Fn(lambda x, t: x.relu() * t, t=torch.rand(1, 5, 1, 1)),
                        (5, 9, 7)),
    "add-per-position": ("const", lambda: Fn(lambda x, t: x + t, t=torch.rand(5, 9, 7)),
                         (5, 9, 7)),
    "softmax": ("softmax", lambda: nn.Softmax(1), (5, 9, 7)),
    "log-softmax": ("softmax", lambda: nn.LogSoftmax(1), (5, 9, 7)),
    "bilinear-x2": ("bilinear", lambda: nn.UpsamplingBilinear2d(scale_factor=2), (5, 9, 7)),
    "bilinear-x2-noalign": ("bilinear",
                            lambda: nn.Upsample(scale_factor=2, mode="bilinear"), (5, 9, 7)),
    "bilinear-size": ("bilinear", lambda: nn.Upsample((13, 30), mode="bilinear"), (5, 9, 7)),
    "bilinear-down": ("bilinear", lambda: nn.Upsample((4, 5), mode="bilinear"), (5, 9, 17)),
    "bilinear-from-1px": ("bilinear", lambda: nn.Upsample((6, 5), mode="bilinear"), (5, 1, 1)),
    "nearest-x2": ("remap", lambda: nn.Upsample(scale_factor=2), (5, 9, 7)),
    "nearest-size": ("remap", lambda: nn.Upsample((13, 5)), (5, 9, 7)),
    "pad-zero": ("remap", lambda: nn.ZeroPad2d((1, 2, 3, 0)), (5, 9, 7)),
    "pad-value": ("remap", lambda: nn.ConstantPad2d(2, -3.5), (5, 9, 7)),
    "pad-reflect": ("remap", lambda: nn.ReflectionPad2d((2, 1, 3, 2)), (5, 9, 7)),
    "pad-replicate": ("remap", lambda: nn.ReplicationPad2d((2, 1, 3, 2)), (5, 9, 7)),
    "pad-circular": ("remap", lambda: nn.CircularPad2d((2, 1, 3, 2)), (5, 9, 7)),
    "pad-crop": ("remap", lambda: Fn(lambda x: F.pad(x, (-1, 2, 1, -2))), (5, 9, 7)),
    "slice-space": ("remap", lambda: Fn(lambda x: x[:, :, 1::2, ::3]), (5, 9, 7)),
    "slice-channels-step": ("remap", lambda: Fn(lambda x: x[:, ::2]), (5, 9, 7)),
    "pick-mask": (
        "remap", lambda: Fn(lambda x: x[:, torch.tensor([True, False, True, False, True])]),
        (5, 9, 7),
    ),
    "pick-rows": (
        "remap", lambda: Fn(lambda x: x[:, :, torch.tensor([4, 0, -2, 0, 3])]), (5, 9, 7),
    ),
    "pick-columns": (
        "remap", lambda: Fn(lambda x: x.index_select(3, torch.tensor([4, 1, 1]))), (5, 9, 7),
    ),
    "flip": ("remap", lambda: Fn(lambda x: x.flip(2, 3)), (5, 9, 7)),
    "channel-shuffle": ("remap", lambda: Fn(_shuffle), (6, 9, 7)),
    "channel-shuffle-module": ("remap", lambda: nn.ChannelShuffle(3), (6, 9, 7)),
    "pixel-shuffle": ("pixel_shuffle", lambda: nn.PixelShuffle(2), (8, 9, 7)),
    "pixel-unshuffle": ("pixel_unshuffle", lambda: nn.PixelUnshuffle(3), (2, 9, 12)),
    "flatten": ("reshape", lambda: _linear(3, 5, 4), (3, 5, 4)),
    "flatten-rows": ("reshape", lambda: Fn(lambda x: x.flatten(2).unsqueeze(2).tanh()), (3, 5, 4)),
    "cat-twice": ("copy", lambda: Fn(_twice), (5, 9, 7)),
    "split-chunk-slice-cat": ("copy", lambda: Fn(_split), (8, 9, 7)),
    "transpose": ("dense", lambda: Fn(lambda x: x.transpose(2, 3).cumsum(2)), (5, 9, 7)),
    "group-norm": ("dense", lambda: nn.GroupNorm(2, 6), (6, 9, 7)),
    "argmax": ("dense", lambda: Fn(lambda x: x.argmax(1)), (6, 9, 7)),
    "topk": ("dense", lambda: Fn(lambda x: x.topk(2, 1)[0]), (6, 9, 7)),
    "avgpool1d": ("dense", lambda: Fn(lambda x: F.avg_pool1d(x.flatten(2), 3)), (6, 9, 7)),
    **WIDE_CASES,
}  # fmt: skip


class Residual(nn.Module):
    """A convolution joined with its input."""

    def __init__(self, channels: int, join: Callable[[Tensor, Tensor], Tensor] = torch.add) -> None:
        super().__init__()
        self.conv, self.join = nn.Conv2d(channels, channels, 3, padding=1), join

    def forward(self, x: Tensor) -> Tensor:
        return self.join(x, self.conv(x))
