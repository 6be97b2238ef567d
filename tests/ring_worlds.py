"""Networks, worlds and walks for the tests of windows that move."""

from collections.abc import Callable, Iterable, Iterator
from functools import cache
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import torchdelta
from chain_nets import conv
from histories import P1_FP32
from streams import dense
from support import ENGINE_NAMES, GPU_NAMES
from torchdelta.runtime.measure import placed_step
from torchdelta.runtime.session import Session
from torchdelta.runtime.windows import Window

# engines whose windows move
ENGINES = (*ENGINE_NAMES, *GPU_NAMES)
# windows of the networks below; odd, so that no value's size is a multiple of its stride
SHAPE = (3, 17, 22)
Point = tuple[int, int]


class Fn(nn.Module):
    """A function with its parts."""

    def __init__(self, fn: Callable[..., Tensor], *parts: nn.Module) -> None:
        super().__init__()
        self.fn, self.parts = fn, nn.ModuleList(parts)
        self.register_buffer("grid", torch.rand(1, 4, SHAPE[1], SHAPE[2]))

    def forward(self, x: Tensor) -> Tensor:
        return self.fn(self, x)


def _unet(net: Fn, x: Tensor) -> Tensor:
    fine, down, up, last = net.parts
    fine_map = fine(x).relu()
    coarse = F.max_pool2d(down(fine_map).relu(), 3, 2, 1)
    back = F.interpolate(up(coarse).relu(), scale_factor=4)[:, :, : x.shape[2], : x.shape[3]]
    return last(torch.cat([fine_map, F.pad(back, (0, x.shape[3] - back.shape[3], 0,
                                                  x.shape[2] - back.shape[2]))], 1))  # fmt: skip


def _excite(net: Fn, x: Tensor) -> Tensor:
    body, squeeze, last = net.parts
    x = body(x).relu()
    return last(x * squeeze(x.mean((2, 3), keepdim=True)).sigmoid())


def _flattened(net: Fn, x: Tensor) -> Tensor:
    body, linear = net.parts
    return linear(F.max_pool2d(body(x), 4).flatten(1))


def _beside(net: Fn, x: Tensor) -> Tensor:
    """A map that follows no shift lies beside one that would."""
    body, last = net.parts
    x = body(x).tanh()
    return last(torch.cat([x.relu(), x.flip(3), x], 1))


NETS: dict[str, Callable[[], nn.Module]] = {
    "strides": lambda: nn.Sequential(conv(3, 6, 5), nn.ReLU(), conv(6, 8, 3, 2), nn.ReLU(),
                                     nn.Conv2d(8, 4, 3, 2, 2, 2)),
    "unet": lambda: Fn(_unet, conv(3, 6, 3), conv(6, 6, 3, 2), conv(6, 4, 1), conv(10, 3, 3)),
    "excite": lambda: Fn(_excite, conv(3, 6, 3, 2), conv(6, 6, 1), conv(6, 4, 3)),
    "flatten": lambda: Fn(_flattened, conv(3, 4, 3), nn.Linear(4 * 4 * 5, 7)),
    "beside": lambda: Fn(_beside, conv(3, 4, 3), conv(12, 3, 3)),
    "position": lambda: Fn(lambda net, x: net.parts[0](x) + net.grid, conv(3, 4, 3)),
    "dense": lambda: nn.Sequential(conv(3, 6, 3), nn.GroupNorm(2, 6), conv(6, 4, 1),
                                   nn.GroupNorm(1, 4)),
    "reflect": lambda: nn.Sequential(nn.ReflectionPad2d(2), nn.Conv2d(3, 4, 5), nn.AvgPool2d(2)),
    "bilinear": lambda: nn.Sequential(conv(3, 4, 3, 2),
                                      nn.Upsample(scale_factor=2, mode="bilinear"), conv(4, 3, 3)),
    "corners": lambda: nn.Sequential(conv(3, 4, 3, 2), nn.UpsamplingBilinear2d(scale_factor=2)),
    "transposed": lambda: nn.Sequential(conv(3, 4, 3, 3), nn.ReLU(),
                                        nn.ConvTranspose2d(4, 4, 5, 3, 1), conv(4, 3, 3)),
    "shuffle": lambda: nn.Sequential(conv(3, 16, 3, 2), nn.PixelShuffle(4), nn.PixelUnshuffle(2)),
    "pools": lambda: nn.Sequential(nn.MaxPool2d(3, 2, 1, ceil_mode=True), nn.Tanh(),
                                   nn.AvgPool2d(3, 1, 1, count_include_pad=False), conv(3, 4, 1)),
}  # fmt: skip


@cache
def compiled(net: str) -> tuple[torchdelta.CompiledModel, nn.Module]:
    """Compile one of NETS once per worker."""
    torch.manual_seed(0)
    model = NETS[net]().eval()
    return torchdelta.compile(model, torch.rand(1, *SHAPE), input_range=(0, 1)), model


class World:
    """A large textured picture that repeats itself, with values 0..1, and objects put into it."""

    def __init__(self, seed: int = 0, period: int = 211) -> None:
        generator = torch.Generator().manual_seed(seed)
        coarse = torch.rand(1, 3, period // 8, period // 8, generator=generator)
        smooth = F.interpolate(coarse, size=(period, period), mode="bilinear")
        self.picture = (smooth + torch.rand(1, 3, period, period, generator=generator)) / 2
        self.period, self.generator = period, generator

    def show(self, origin: Point, size: Point) -> Tensor:
        """Give [1, 3, h, w], what a window shows."""
        rows, cols = (
            (torch.arange(n) + o) % self.period for o, n in zip(origin, size, strict=True)
        )
        return self.picture[:, :, rows][:, :, :, cols]

    def change(self, origin: Point, size: Point) -> None:
        """Put an object somewhere into a window."""
        h, w = 4, 5
        y, x = (int(torch.randint(0, max(1, n - 3), (), generator=self.generator)) for n in size)
        rows, cols = (
            (torch.arange(h) + origin[0] + y) % self.period,
            (torch.arange(w) + origin[1] + x) % self.period,
        )
        new = torch.rand(1, 3, h, w, generator=self.generator)
        self.picture[:, :, rows[:, None], cols[None, :]] = new


def walk(stride: Point, steps: Iterable[Point], start: Point = (0, 0)) -> Iterator[Point]:
    """Give a window's corners: steps count total strides."""
    y, x = start
    for dy, dx in steps:
        y, x = y + dy * stride[0], x + dx * stride[1]
        yield y, x


def step(
    session: Session, world: World, origin: Point, border: str = "exact", **more: object
) -> torchdelta.Result:
    """Run a frame of stream "s" that shows what its window covers."""
    frame = world.show(origin, session.plan.size)
    return placed_step(session, {"s": frame}, {"s": Window(origin, border=border)}, **more)["s"]


DIRECTIONS = [d for d in product((-1, 0, 1), repeat=2) if d != (0, 0)]
BACK_AND_FORTH = [(2, -1), (-2, 1), (0, 0), (1, 3), (-3, -2)]
# a few single strides in each direction
PAN = [d for d in DIRECTIONS for _ in range(3)] + BACK_AND_FORTH


def inside(origin: Point, size: Point, stride: float, world: int) -> Tensor:
    """Mark what a window covers: [1, 1, world / stride, world / stride]."""
    n = int(world / stride)
    marks = torch.zeros(1, 1, n, n)
    y, x = (int(o / stride) for o in origin)
    h, w = (int(s / stride) for s in size)
    marks[:, :, y : y + h, x : x + w] = 1
    return marks


def same_output(result: torchdelta.Result, model: nn.Module, frame: Tensor) -> bool:
    return torchdelta.relative_error(result.output, dense(model, frame)) <= P1_FP32
