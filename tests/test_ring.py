"""Windows that move over the world: rings, new strips, borders, masks, regions of interest."""

import zlib
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from itertools import product

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, seed, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import torchdelta
from chain_nets import conv
from random_nets import compiled_net
from support import (
    ENGINE_NAMES,
    GPU_NAMES,
    LONG,
    make_engine,
    new_session,
    same_bits,
    snapshot,
)
from test_properties import P1_FP32, dense, quick
from torchdelta import FrameError, StreamError, Window
from torchdelta.ops import OPS
from torchdelta.ops.gate import FINE, input_gate
from torchdelta.plan import Plan
from torchdelta.plan.shift import BORDER, KEPT, UNSEEN, shift_stride
from torchdelta.runtime.inspect import buffers_of, frame_state
from torchdelta.runtime.session import Session

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


# ------------------------------------------------------------------------------------- the world


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
    return session.step({"s": frame}, windows={"s": Window(origin, border=border)}, **more)["s"]


def same_state(a: Session, b: Session, stream: str) -> bool:
    """Whether a stream has the same bits in the same places of two sessions' buffers."""
    pairs = zip(buffers_of(a, stream), buffers_of(b, stream), strict=True)
    return all(bool(same_bits(x, y).all()) for x, y in pairs)


DIRECTIONS = [d for d in product((-1, 0, 1), repeat=2) if d != (0, 0)]
BACK_AND_FORTH = [(2, -1), (-2, 1), (0, 0), (1, 3), (-3, -2)]
# a few single strides in each direction
PAN = [d for d in DIRECTIONS for _ in range(3)] + BACK_AND_FORTH


def long_pan(stride: Point) -> list[Point]:
    """Give a run in each direction, in strides: the rings (of 17x22) come round with each.

    Per direction: most of a window, one stride, nearly all of a window.
    """
    runs = [tuple(max(1, px // s) for s in stride) for px in (12, 1, 16)]
    far = [(y * dy, x * dx) for dy, dx in DIRECTIONS for y, x in runs]
    return far + BACK_AND_FORTH


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("net", sorted(NETS))
def test_pans_equal_the_dense_network_on_every_window(engine: str, net: str) -> None:
    fast, model = compiled(net)
    session, world = new_session(fast, engine, 0.0), World()
    stride, size = fast.plan.total_stride, fast.plan.size
    steps = long_pan(stride)
    for axis in (0, 1):
        way = [abs(step[axis]) * stride[axis] for step in steps]
        assert sum(way) > 7 * size[axis] > 7 * max(way)
    last, moved = None, 0.0
    for t, origin in enumerate(walk(stride, [(0, 0), *steps], (-40, 60))):
        if t % 4 == 3:
            world.change(origin, fast.plan.size)
        origin = tuple(o - o % s for o, s in zip(origin, fast.plan.total_stride, strict=True))
        frame = world.show(origin, fast.plan.size)
        result = step(session, world, origin)
        expected = dense(model, frame)
        assert torchdelta.relative_error(result.output, expected) <= P1_FP32, (t, origin)
        assert torch.equal(session.published("s").cpu(), frame)
        assert result.origin == origin
        if t % 5 == 0:
            assert session.audit("s").ok, str(session.audit("s"))
        if last is not None:
            moved = max(moved, torchdelta.relative_error(last, expected))
        last = expected
    assert moved > 1e-2
    assert session.stats("s").reasons == {"first frame": 1}
    assert session.stats("s").moves == len(steps) - 1


# -------------------------------------------------------------------- P1 over random walks and nets

strides = st.integers(-2, 2)
# a walk is many frames
few = settings(quick, max_examples=25 if LONG else 3)
WALKS = st.lists(
    st.one_of(
        st.tuples(st.just("move"), strides, strides),
        st.tuples(st.just("change"), strides, strides),
        st.sampled_from([("same", 0, 0), ("reset", 0, 0), ("refresh", 0, 0), ("leave", 0, 0)]),
        st.tuples(st.just("jump"), st.integers(-30, 30), st.integers(-30, 30)),
    ),
    min_size=4,
    max_size=10,
)


@pytest.mark.parametrize(
    ("engine", "op"),
    [
        pytest.param(engine, op, id=f"{engine}-{op}", marks=pytest.mark.xdist_group(op))
        for engine in ENGINES
        for op in sorted(OPS)
    ],
)
def test_p1_over_random_walks(engine: str, op: str) -> None:
    """With exact borders a stream is the dense network on its window, whatever it did before."""

    @seed(zlib.crc32(op.encode()))
    @few
    @given(net=st.integers(0, 3 if LONG else 0), history=WALKS)
    def run(net: int, history: list[tuple[str, int, int]]) -> None:
        fast, model = compiled_net(op, net)
        session, world = new_session(fast, engine, 0.0, slots=2), World(net)
        stride, size = fast.plan.total_stride, fast.plan.size
        still = world.show((5, 5), size)
        session.step({"still": still})
        y, x = 0, 0
        for kind, dy, dx in [*history, ("move", 1, 1), ("change", -1, 0)]:
            if kind in ("reset", "refresh", "leave"):
                if "s" in session.streams:
                    getattr(session, kind)("s")
                continue
            y, x = y + dy * stride[0], x + dx * stride[1]
            if kind == "change":
                world.change((y, x), size)
            result = step(session, world, (y, x))
            expected = dense(model, world.show((y, x), size))
            assert torchdelta.relative_error(result.output, expected) <= P1_FP32
        audit = session.audit("s")
        assert audit.ok, str(audit)
        idle = session.step({"still": still})["still"]
        assert idle.stats.mac_share == 0.0
        assert torchdelta.relative_error(idle.output, dense(model, still)) <= P1_FP32

    run()


# --------------------------------------------------------------------------------------- keep

# layers with what they do to a map of marks [1, 1, H, W] of the whole world
LAYERS: dict[str, tuple[Callable[[int], nn.Module], Callable[[Tensor], Tensor], float]] = {
    "3x3": (lambda c: nn.Conv2d(c, 4, 3, padding=1), lambda m: F.max_pool2d(m, 3, 1, 1), 1),
    "5x1": (lambda c: nn.Conv2d(c, 4, (5, 1), padding=(2, 0)),
            lambda m: F.max_pool2d(m, (5, 1), 1, (2, 0)), 1),
    "1x1": (lambda c: nn.Conv2d(c, 4, 1), lambda m: m, 1),
    "3x3s2": (lambda c: nn.Conv2d(c, 4, 3, 2, 1), lambda m: F.max_pool2d(m, 3, 2, 1), 2),
    "2x2s2": (lambda c: nn.Conv2d(c, 4, 2, 2), lambda m: F.max_pool2d(m, 2, 2), 2),
    "3x3d2": (lambda c: nn.Conv2d(c, 4, 3, padding=2, dilation=2),
              lambda m: F.max_pool2d(F.pad(m, (2, 2, 2, 2)), 3, 1, dilation=2), 1),
    "up": (lambda c: nn.Upsample(scale_factor=2), lambda m: F.interpolate(m, scale_factor=2), 0.5),
    "deconv": (lambda c: nn.ConvTranspose2d(c, 4, 4, 2, 1),
               lambda m: F.conv_transpose2d(m, torch.ones(1, 1, 4, 4), None, 2, 1).clamp(max=1),
               0.5),
}  # fmt: skip
STACKS = (
    ("3x3", "3x3s2", "1x1", "3x3"),
    ("5x1", "2x2s2", "3x3s2", "3x3"),
    ("3x3s2", "3x3d2", "up", "3x3"),
    ("2x2s2", "3x3", "deconv", "1x1", "3x3"),
)


@cache
def stack(names: tuple[str, ...]) -> tuple[torchdelta.CompiledModel, nn.Module]:
    """Compile layers in a row, with nothing between them that could hide a change."""
    torch.manual_seed(0)
    layers = [LAYERS[name][0](4 if i else 3) for i, name in enumerate(names)]
    model = nn.Sequential(*layers).eval()
    return torchdelta.compile(model, torch.rand(1, 3, 24, 32), input_range=(0, 1)), model


def inside(origin: Point, size: Point, stride: float, world: int) -> Tensor:
    """Mark what a window covers: [1, 1, world / stride, world / stride]."""
    n = int(world / stride)
    marks = torch.zeros(1, 1, n, n)
    y, x = (int(o / stride) for o in origin)
    h, w = (int(s / stride) for s in size)
    marks[:, :, y : y + h, x : x + w] = 1
    return marks


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("names", STACKS, ids="-".join)
def test_keep_activates_the_footprint_of_the_new_strip(engine: str, names: tuple[str, ...]) -> None:
    """Pixel for pixel, in every step; worked out in the world's coordinates.

    The window never turns round: what comes back to an edge with the context that it kept gives
    what it gave, and activates nothing behind it.
    """
    fast, _ = stack(names)
    session, world = new_session(fast, engine, 0.0), World()
    for direction in DIRECTIONS:
        before = (96, 96)
        step(session, world, before, "keep")
        # diagonally until both rings have come round
        moves = 8 if all(direction) else 2
        for origin in walk(fast.plan.total_stride, [direction] * moves, before):
            result = step(session, world, origin, "keep", record=True)
            check_strip(fast.plan, names, before, origin, result)
            assert 0 < result.stats.mac_share < 1
            before = origin
        assert session.audit("s").ok, str(session.audit("s"))
        session.refresh()


def check_strip(
    plan: Plan, names: tuple[str, ...], before: Point, origin: Point, result: torchdelta.Result
) -> None:
    """Compare all active sets with the marks that a new strip makes."""
    window, old = (inside(at, plan.size, 1, 192) for at in (origin, before))
    marks, stride = window * (1 - old), 1.0
    assert torch.equal(result.changed.cpu(), cut(marks, origin, plan.size, 1))
    for name, plan_step in zip(names, plan.steps, strict=True):
        _, spread, factor = LAYERS[name]
        stride *= factor
        window, old = (inside(at, plan.size, stride, 192) for at in (origin, before))
        marks = torch.maximum(spread(marks) * window, window * (1 - old))
        wanted = cut(marks, origin, plan.size, stride)
        assert torch.equal(result.active[plan_step.name].cpu(), wanted), plan_step.name


def cut(marks: Tensor, origin: Point, size: Point, stride: float) -> Tensor:
    """Cut a window's marks out of the world's: bool [H, W]."""
    y, x = (int(o / stride) for o in origin)
    h, w = (int(s / stride) for s in size)
    return marks[0, 0, y : y + h, x : x + w].bool()


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("tolerance", [0.0, 0.04])
def test_new_strips_are_published_without_comparing(engine: str, tolerance: float) -> None:
    """In a world without any texture, where nothing ever differs from what a cell held before."""
    fast, _ = stack(STACKS[0])
    session, world = new_session(fast, engine, tolerance), World()
    world.picture.fill_(0.5)
    before = (96, 96)
    step(session, world, before, "keep")
    # wide strips reach to where the edge does not show
    for origin in walk(fast.plan.total_stride, [*PAN, (9, 0), (0, -12)], before):
        result = step(session, world, origin, "keep", record=True)
        strips = [
            cut(1 - inside(before, fast.plan.size, stride, 192), origin, fast.plan.size, stride)
            for stride in (1, 2)
        ]
        assert torch.equal(result.changed.cpu(), strips[0])
        assert bool(result.output_changed[strips[1]].all())
        before = origin


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("net", ["position", "dense"])
def test_what_follows_no_shift_is_published_whole_at_a_move(engine: str, net: str) -> None:
    """Also where it gives what lay there before: in a world without any texture."""
    fast, _ = compiled(net)
    session, world = new_session(fast, engine, 0.04), World()
    world.picture.fill_(0.5)
    for t, origin in enumerate(walk(fast.plan.total_stride, [(0, 0), (0, 1), (0, 0), (-1, 1)])):
        result = step(session, world, origin)
        assert bool(result.output_changed.all()) == (t != 2)


@pytest.mark.parametrize("engine", ENGINES)
def test_keep_is_the_dense_network_on_the_world_off_the_edges(engine: str) -> None:
    fast, model = stack(STACKS[0])
    session, world = new_session(fast, engine, 0.0), World()
    # input pixels that an output reads beyond its own: 1 + 1 + 2
    far = 8
    for origin in walk(fast.plan.total_stride, PAN, (96, 96)):
        result = step(session, world, origin, "keep")
        h, w = fast.plan.size
        around = world.show((origin[0] - far, origin[1] - far), (h + 2 * far, w + 2 * far))
        expected = dense(model, around)[:, :, far // 2 : -(far // 2), far // 2 : -(far // 2)]
        inner = (slice(None), slice(None), slice(2, -2), slice(2, -2))
        assert torchdelta.relative_error(result.output[inner], expected[inner]) <= P1_FP32
    assert torchdelta.relative_error(result.output, expected) > 1e-3


# --------------------------------------------------------------------------------------- streams


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("tolerance", [0.0, 0.05])
@pytest.mark.parametrize("net", ["strides", "unet", "excite"])
def test_streams_that_move_apart_do_not_meet(engine: str, net: str, tolerance: float) -> None:
    """Three streams in one session, one of them static, give bit for bit what they give alone."""
    fast, _ = compiled(net)
    stride, size = fast.plan.total_stride, fast.plan.size
    together = new_session(fast, engine, tolerance, slots=3)
    alone = {s: new_session(fast, engine, tolerance) for s in "abs"}
    world = World()
    calls = {5: ("reset", "a"), 8: ("refresh", "b"), 11: ("leave", "a"), 14: ("reset", "s")}
    for t in range(18):
        if t in calls:
            call, stream = calls[t]
            getattr(together, call)(stream)
            getattr(alone[stream], call)(stream)
        world.change((0, 0), (40, 40))
        at = {"a": (t * stride[0], -t * stride[1]), "b": (-2 * t * stride[0], t * stride[1])}
        border = "exact" if t % 3 == 2 else "keep"
        windows = {s: Window(o, border=border) for s, o in at.items() if (t + len(s)) % 7}
        frames = {s: world.show(at.get(s, (0, 0)), size) for s in "abs" if s in windows or s == "s"}
        results = together.step(frames, windows=windows)
        for s, result in results.items():
            given = {s: windows[s]} if s in windows else {}
            expected = alone[s].step({s: frames[s]}, windows=given)[s]
            for x, y in zip(
                *map(pytree.tree_leaves, (result.output, expected.output)), strict=True
            ):
                assert torch.equal(x, y), (t, s)
            assert torch.equal(result.changed.cpu(), expected.changed.cpu())
            assert result.report().active_px == expected.report().active_px
            assert result.stats.reason == expected.stats.reason
    for s in together.streams:
        assert same_state(together, alone[s], s)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_window_may_begin_and_end_anywhere(engine: str) -> None:
    """First frames, resets and refreshes put windows anywhere; a reset begins at (0, 0) again."""
    fast, model = compiled("strides")
    sy, sx = fast.plan.total_stride
    session, world = new_session(fast, engine, 0.0, slots=2), World()
    for call, origin in (
        (None, (-3 * sy, 7 * sx)), ("refresh", (50 * sy, sx)), ("reset", (sy, -sx)),
        ("leave", (9 * sy, 9 * sx)),
    ):  # fmt: skip
        if call:
            getattr(session, call)("s")
        result = step(session, world, origin)
        assert result.stats.first
        assert result.stats.reason == {None: "first frame", "leave": "first frame"}.get(call, call)
        assert same_output(result, model, world.show(origin, fast.plan.size))
        # without a word about it the window stays
        world.change(origin, fast.plan.size)
        frame = world.show(origin, fast.plan.size)
        result = session.step({"s": frame})["s"]
        assert result.origin == origin
        assert not result.stats.first
        assert same_output(result, model, frame)
    session.reset("s")
    assert session.step({"s": frame})["s"].origin == (0, 0)
    session.refresh("s", reason="zoomed out")
    assert step(session, world, (sy, sx)).stats.reason == "zoomed out"
    assert session.stats().reasons == {"first frame": 2, "refresh": 1, "reset": 2, "zoomed out": 1}


def same_output(result: torchdelta.Result, model: nn.Module, frame: Tensor) -> bool:
    return torchdelta.relative_error(result.output, dense(model, frame)) <= P1_FP32


@pytest.mark.parametrize("engine", ENGINES)
def test_a_refresh_after_a_walk_is_a_fresh_start(engine: str) -> None:
    """P2, and P5: a frame that repeats itself in a window that stays activates nothing."""
    fast, _ = compiled("unet")
    session, world = new_session(fast, engine, 0.05), World()
    for origin in walk(fast.plan.total_stride, PAN):
        step(session, world, origin, "keep")
    idle = step(session, world, origin, "keep")
    assert idle.stats.mac_share == 0.0
    assert not idle.changed.any()
    session.refresh("s")
    step(session, world, origin)
    fresh = new_session(fast, engine, 0.05, profile=session.profile("s"))
    step(fresh, world, origin)
    assert same_state(session, fresh, "s")


@pytest.mark.parametrize("engine", ENGINES)
def test_thresholds_hold_while_moving(engine: str) -> None:
    """P3 with exact borders everywhere, with kept ones off the edges; and something is saved."""
    fast, _ = compiled("unet")
    for border in ("exact", "keep"):
        session, world = new_session(fast, engine, 0.1), World()
        shares = []
        for t, origin in enumerate(walk(fast.plan.total_stride, PAN)):
            if t % 3 == 2:
                world.change(origin, fast.plan.size)
            shares.append(step(session, world, origin, border).stats.mac_share)
            audit = session.audit("s")
            assert audit.ok, (border, t, str(audit))
        assert any(v.worst > v.allowance for v in audit.values)
        assert min(shares[1:]) < 0.9


@pytest.mark.parametrize("engine", ENGINES)
def test_streams_without_windows_have_no_rings(engine: str) -> None:
    fast, _ = compiled("unet")
    session, world = new_session(fast, engine, 0.0, slots=2), World()
    session.step({"still": world.show((0, 0), fast.plan.size)})
    step(session, world, fast.plan.total_stride)
    state = frame_state(session)
    for v in fast.plan.values:
        assert state.pixels(v.index, 0) is state.view(v.index, 0)
        assert state.window(v.index, 0) is state.view(v.index, 0)
    assert state.origin.tolist() == [[0, 0], list(fast.plan.total_stride)]
    assert not state.rings[0].any()
    assert state.rings[1].any()


@pytest.mark.parametrize("engine", ENGINES)
def test_results_are_in_reading_order_as_views_too(engine: str) -> None:
    fast, model = compiled("strides")
    ready = make_engine(engine, fast.plan, fast.device, torch.float32)
    session, world = Session(ready, 1, 0.0, torchdelta.Profile(), views=True), World()
    for origin in walk(fast.plan.total_stride, PAN[:6]):
        result = step(session, world, origin)
        frame = world.show(origin, fast.plan.size)
        assert same_output(result, model, frame)
        assert torch.equal(session.published("s").cpu(), frame)


# --------------------------------------------------------------------------- masks and regions


def gate_by_hand(
    new: np.ndarray, old: np.ndarray, threshold: float, mask: np.ndarray, unseen: np.ndarray,
    grain: int,
) -> np.ndarray:  # fmt: skip
    """Do what `input_gate` says, pixel by pixel; new and old: [H, W, C], full scale 1."""
    h, w = mask.shape
    known = mask & ~unseen
    diff = np.abs(new - old).mean(-1)

    def exceeds(rows: range, columns: range, limit: float) -> bool:
        box = [
            diff[j, i] for j in rows for i in columns if 0 <= j < h and 0 <= i < w and known[j, i]
        ]
        return bool(box) and np.mean(box) > limit

    if threshold == 0:
        return (known & (new != old).any(-1)) | unseen
    around = (-1, 0, 1)
    hot = np.zeros((-(-h // grain), -(-w // grain)), bool)
    for y, x in product(*map(range, hot.shape)):
        rows, columns = range(y * grain, (y + 1) * grain), range(x * grain, (x + 1) * grain)
        own = [(j, i) for j in rows for i in columns if j < h and i < w and known[j, i]]
        wide = [range(n.start - grain, n.stop + grain) for n in (rows, columns)]
        hot[y, x] = bool(own) and exceeds(*wide, threshold)
        if grain > 1:
            hot[y, x] |= any(
                exceeds(range(j - 1, j + 2), range(i - 1, i + 2), FINE * threshold) for j, i in own
            )
    marked = np.zeros((h, w), bool)
    for y, x in zip(*np.nonzero(hot), strict=True):
        for j, i in product(around, around):
            rows, columns = max(0, y + j) * grain, max(0, x + i) * grain
            if y + j >= 0 and x + i >= 0:
                marked[rows : rows + grain, columns : columns + grain] = True
    return (marked & mask) | unseen


@pytest.mark.parametrize("threshold", [0.0, 0.1])
@pytest.mark.parametrize("parts", ["none", "mask", "unseen", "both"])
@pytest.mark.parametrize("grain", [1, 2, 3])
def test_the_input_gate_compares_what_can_be_compared(
    threshold: float, parts: str, grain: int
) -> None:
    r = np.random.default_rng(0)
    published = []
    for n in range(20):
        h, w = r.integers(1, 9 if grain == 1 else 20, 2)
        old = r.random((h, w, 3), dtype=np.float32)
        differs = r.random((h, w, 1)) < (0.2 if grain == 1 else (0.02, 0.25)[n % 2])
        y, x = r.integers(0, h), r.integers(0, w)
        # of larger cells: enough in one place
        differs[y : y + grain, x : x + grain] |= grain > 1 and n % 4 < 2
        new = np.where(differs, r.random((h, w, 3), dtype=np.float32), old)
        mask, unseen = r.random((h, w)) < 0.7, r.random((h, w)) < 0.3
        mask = np.ones_like(mask) if parts in ("none", "unseen") else mask
        unseen = np.zeros_like(mask) if parts in ("none", "mask") else unseen
        found = input_gate(
            # what lies where nothing can be compared does not matter
            torch.from_numpy(new), torch.from_numpy(np.where(unseen[..., None], np.nan, old)),
            threshold, torch.ones(3),
            mask=None if parts in ("none", "unseen") else torch.from_numpy(mask),
            unseen=None if parts in ("none", "mask") else torch.from_numpy(unseen), grain=grain,
        )  # fmt: skip
        expected = gate_by_hand(new, old, threshold, mask, unseen, grain)
        assert np.array_equal(found.numpy(), expected)
        published.append(float(expected.mean()))
    assert 0 < np.mean(published) < 1


@pytest.mark.parametrize("engine", ENGINES[1:])
@pytest.mark.parametrize("tolerance", [0.0, 0.04])
@pytest.mark.parametrize("grain", [1, 3, 8])
def test_frames_that_are_valid_in_part_are_gated_alike(
    engine: str, tolerance: float, grain: int
) -> None:
    """All engines publish the input pixels that the torch engine does."""
    fast, _ = compiled("strides")
    sessions = [new_session(fast, name, tolerance, grain=grain) for name in ("torch", engine)]
    world, r = World(), np.random.default_rng(0)
    for t, origin in enumerate(walk(fast.plan.total_stride, PAN)):
        world.change(origin, fast.plan.size)
        # in blocks of cells: some have no valid pixel
        block = np.ones((1, 1) if grain == 1 else (7, 7), bool)
        size = [-(-n // k) for n, k in zip(fast.plan.size, block.shape, strict=True)]
        valid = np.kron(r.random(size) < 0.7, block)[: fast.plan.size[0], : fast.plan.size[1]]
        frame = world.show(origin, fast.plan.size)
        # what is not valid does not matter
        frame = torch.where(torch.from_numpy(valid), frame, torch.rand(frame.shape))
        window = Window(origin, valid if t % 4 else None, "keep")
        theirs, mine = (s.step({"s": frame}, windows={"s": window})["s"] for s in sessions)
        assert torch.equal(mine.changed.cpu(), theirs.changed), t
        published = [s.published("s").cpu() for s in sessions]
        assert torch.allclose(*published, atol=1e-6)
        assert 0 < mine.stats.changed_input <= 1


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("tolerance", [0.0, 0.04])
def test_only_the_region_of_interest_is_looked_at(engine: str, tolerance: float) -> None:
    fast, model = compiled("strides")
    h, w = fast.plan.size
    session = new_session(fast, engine, tolerance)
    r = torch.Generator().manual_seed(0)
    first, second = (torch.rand(1, 3, h, w, generator=r) for _ in range(2))
    roi = np.zeros((h, w), bool)
    roi[3:9, 4:12] = True
    # a first frame is published whole, whatever the region
    assert session.step({"s": first}, roi={"s": roi})["s"].stats.first
    assert torch.equal(session.published("s").cpu(), first)
    result = session.step({"s": second}, roi={"s": torch.from_numpy(roi)})["s"]
    assert result.changed.cpu().numpy()[roi].all()
    assert not result.changed.cpu().numpy()[~roi].any()
    inside = torch.from_numpy(roi)[None, None]
    assert torch.equal(session.published("s").cpu(), torch.where(inside, second, first))
    # outside the region a NaN is not looked at either, and nothing is idle for ever
    assert session.step({"s": second}, roi={"s": roi})["s"].stats.mac_share == 0.0
    assert not session.step({"s": first}, roi={"s": np.zeros((h, w), bool)})["s"].changed.any()
    result = session.step({"s": second})["s"]
    assert torch.equal(session.published("s").cpu(), second)
    if tolerance == 0:
        assert same_output(result, model, second)


@pytest.mark.parametrize("engine", ENGINES)
def test_new_strips_are_published_whatever_the_region(engine: str) -> None:
    fast, model = compiled("strides")
    session, world = new_session(fast, engine, 0.0), World()
    empty = np.zeros(fast.plan.size, bool)
    for origin in walk(fast.plan.total_stride, PAN):
        result = step(session, world, origin, roi={"s": empty})
        # nothing moves in the world: what is old is still right
        assert same_output(result, model, world.show(origin, fast.plan.size))
    assert 0 < result.stats.changed_input < 1


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("tolerance", [0.0, 0.04])
def test_what_was_never_seen_is_0(engine: str, tolerance: float) -> None:
    """Frames that are valid in part: pixels elsewhere stay, or are 0 where there is nothing."""
    shape, mean, std = SHAPE, (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)
    _, model = compiled("strides")
    fast = torchdelta.compile(
        model, torch.rand(1, *shape), input_range=(0, 1), mean=mean, std=std
    )  # fmt: skip
    size, stride = fast.plan.size, fast.plan.total_stride
    session, world = new_session(fast, engine, tolerance), World()
    r = np.random.default_rng(0)
    known: dict[Point, Tensor] = {}
    for t, origin in enumerate(walk(stride, [*PAN[:12], (20, 20)])):
        valid = r.random(size) < 0.6
        frame = world.show(origin, size)
        garbage = torch.where(torch.from_numpy(valid), frame, torch.rand(frame.shape))
        window = Window(origin, valid if t % 2 else torch.from_numpy(valid), "exact")
        result = session.step({"s": garbage}, windows={"s": window})["s"]
        if result.stats.first:
            known.clear()
        places = {(y + origin[0], x + origin[1]): (y, x) for y, x in product(*map(range, size))}
        # what the window has left is forgotten
        known = {p: v for p, v in known.items() if p in places}
        expected = torch.zeros(1, 3, *size)
        for place, (y, x) in places.items():
            if valid[y, x]:
                known.setdefault(place, fast.preprocess(frame)[0, :, y, x])
            if place in known:
                expected[0, :, y, x] = known[place]
        published = session.published("s").cpu()
        found = torch.isclose(published, expected, atol=1e-6)
        # a tolerance may leave single pixels that were never seen as they are
        assert (found | (published == 0) & bool(tolerance)).all(), t
        if tolerance == 0:
            assert same_output(result, model, expected)
    assert session.stats("s").reasons == {
        "first frame": 1, "the window jumped by more than its size": 1
    }  # fmt: skip


# --------------------------------------------------------------------------------------- bad input

H, W = SHAPE[1:]
BAD_WINDOWS = {
    "off-stride": (Window((4, 3)), r"origin is \(4, 3\), expected multiples .* \(4, 4\)"),
    "not-whole": (Window((4.0, 0.0)), "expected two whole numbers"),
    "too-few": (Window((4,)), "expected two whole numbers"),
    "too-far": (Window((2**60, 0)), "expected two whole numbers"),
    "no-window": ((4, 4), "window is a tuple, expected a torchdelta Window"),
    "border": (Window((4, 4), border="zero"), "border is 'zero', expected"),
    "small-mask": (Window((4, 4), np.ones((H, W - 1), bool)), r"bool \[17, 21\], expected bool"),
    "float-mask": (Window((4, 4), torch.ones(H, W)), r"window.valid is float32 \[17, 22\]"),
    "list-mask": (Window((4, 4), [[True]]), "window.valid is a list, expected a bool"),
}
BAD_REGIONS = {
    "roi-shape": (np.ones((W, H), bool), r"roi is bool \[22, 17\], expected bool \[17, 22\]"),
    "roi-dtype": (np.ones((H, W), np.uint8), r"roi is uint8 \[17, 22\]"),
    "roi-type": ("all", "roi is a str"),
}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("bad", [*BAD_WINDOWS, *BAD_REGIONS, "nan"])
def test_bad_windows_leave_the_stream_as_it_was(engine: str, bad: str) -> None:
    fast, model = compiled("strides")
    assert fast.plan.total_stride == (4, 4)
    session, world = new_session(fast, engine, 0.0, slots=3), World()
    step(session, world, (8, -4))
    step(session, world, (12, -8))
    before, origin = snapshot(session), frame_state(session).origin.copy()
    frame = world.show((12, -8), fast.plan.size)
    frames = {"s": frame, "other": frame, "new": frame}
    windows, roi = {"s": Window((8, -8)), "new": Window((4, 4))}, {}
    if bad == "nan":
        frames["s"] = torch.full_like(frame, float("nan"))
        message = "NaN"
    elif bad in BAD_WINDOWS:
        windows["s"], message = BAD_WINDOWS[bad]
    else:
        roi["s"], message = BAD_REGIONS[bad]
    results = session.step(frames, windows=windows, roi=roi)
    with pytest.raises(FrameError, match=message):
        results["s"].unwrap()
    assert all(results[s].error is None for s in ("other", "new"))
    assert (frame_state(session).origin[0] == origin[0]).all()
    assert all(
        bool(same_bits(x[0], y[0]).all())
        for x, y in zip(before, frame_state(session).buffers, strict=True)
    )
    assert session.stats("s").frames == 2
    assert same_output(step(session, world, (8, -8)), model, world.show((8, -8), fast.plan.size))


@pytest.mark.parametrize("engine", ENGINES)
def test_a_bad_first_window_takes_no_slot(engine: str) -> None:
    fast, _ = compiled("strides")
    session = new_session(fast, engine, 0.0)
    frame = torch.rand(1, *SHAPE)
    result = session.step({"s": frame}, windows={"s": Window((1, 1))})["s"]
    assert isinstance(result.error, FrameError)
    assert session.streams == []


@pytest.mark.parametrize("engine", ENGINES)
def test_windows_and_regions_belong_to_frames(engine: str) -> None:
    fast, _ = compiled("strides")
    session = new_session(fast, engine, 0.0, slots=2)
    frame = torch.rand(1, *SHAPE)
    with pytest.raises(StreamError, match="windows names 't', which has no frame"):
        session.step({"s": frame}, windows={"t": Window((4, 4))})
    with pytest.raises(StreamError, match="roi names 't', which has no frame"):
        session.step({"s": frame}, roi={"t": np.ones((H, W), bool)})
    assert session.streams == []


@pytest.mark.parametrize("engine", ENGINES)
def test_a_jump_begins_anew_and_says_so(engine: str) -> None:
    fast, model = compiled("unet")
    session, world = new_session(fast, engine, 0.0), World()
    sy, sx = fast.plan.total_stride
    far_y, far_x = -(-H // sy) * sy, -(-W // sx) * sx
    jumps = 0
    for origin in ((0, 0), (far_y, 0), (far_y - sy, 0), (far_y - sy, -far_x), (0, -far_x)):
        result = step(session, world, origin, "keep")
        jumps += result.stats.reason == "the window jumped by more than its size"
        if result.stats.first:
            assert same_output(result, model, world.show(origin, fast.plan.size))
            assert result.changed.all()
            assert session.audit("s").ok
    assert jumps == 2
    assert session.stats("s").moves == 2


# --------------------------------------------------------------------------------------- the plan


@pytest.mark.parametrize(
    ("net", "total", "last"),
    [
        ("strides", (4, 4), (4, 4)),
        ("unet", (4, 4), (1, 1)),
        ("excite", (2, 2), (2, 2)),
        ("bilinear", (2, 2), (1, 1)),
        ("transposed", (3, 3), (1, 1)),
        ("shuffle", (2, 2), (1, 1)),
        ("reflect", (2, 2), (2, 2)),
        ("corners", (2, 2), None),
        ("position", (1, 1), None),
        ("flatten", (4, 4), None),
        ("dense", (1, 1), None),
    ],
)
def test_strides(net: str, total: Point, last: Point | None) -> None:
    plan = compiled(net)[0].plan
    assert plan.total_stride == total
    assert shift_stride(plan, plan.input) == (1, 1)
    assert shift_stride(plan, plan.outputs[0]) == last
    absolute = {i for i, s in enumerate(plan.steps) if shift_stride(plan, s.output) is None}
    assert plan.shifts.reasons.keys() == absolute
    text = plan.explain(moves=True)
    assert f"multiples of {total[0]}x{total[1]} px" in " ".join(text.split())
    assert sum(" whole: " in line for line in text.splitlines()) >= bool(absolute)
    assert "at a move" not in plan.explain()


def test_steps_that_hang_on_their_place_say_why() -> None:
    reasons = {net: set(compiled(net)[0].plan.shifts.reasons.values()) for net in NETS}
    assert reasons["strides"] == reasons["unet"] == reasons["pools"] == set()
    assert reasons["corners"] == {"align_corners"}
    assert "a constant per position" in reasons["position"]
    assert "every number has its place" in reasons["flatten"]
    assert reasons["excite"] >= {"tiles of a global pool", "a global pool"}
    assert "its windows follow no shift" in reasons["beside"]
    assert "beside values that follow no shift" in reasons["beside"]
    assert "dense" in reasons["dense"]


@pytest.mark.parametrize("net", sorted(NETS))
def test_lines_are_what_their_definition_says(net: str) -> None:
    plan = compiled(net)[0].plan
    sy, sx = plan.total_stride
    makers = {s.output: s for s in plan.steps}
    for shift in ((sy, 0), (-sy, sx), (0, -2 * sx), (3 * sy, 3 * sx)):
        for value, exact in product(plan.owners, (False, True)):
            lines = plan.shifts.lines(value.index, shift, exact)
            stride = shift_stride(plan, value.index)
            for axis, (n, line) in enumerate(zip(value.size, lines, strict=True)):
                if stride is None:
                    assert (line == UNSEEN).all()
                    continue
                k = int(shift[axis] / stride[axis])
                for o in range(n):
                    kind = KEPT if 0 <= o + k < n else UNSEEN
                    step = makers.get(value.index)
                    if kind == KEPT and exact and step is not None:
                        changed = [
                            reads(fp, axis, o) != {
                                v - int(shift[axis] / shift_stride(plan, source)[axis])
                                for v in reads(fp, axis, o + k)
                            }
                            for source, fp in zip(step.inputs, step.footprints, strict=True)
                            if (fp.rows, fp.cols)[axis] is not None
                        ]  # fmt: skip
                        kind = BORDER if any(changed) else KEPT
                    assert line[o] == kind, (value.name, axis, o)


def reads(footprint: object, axis: int, o: int) -> set[int]:
    line = (footprint.rows, footprint.cols)[axis]
    return {int(v) for v in line.taps[o] if v >= 0}


def test_rings_are_reduced_positions() -> None:
    plan = compiled("unet")[0].plan
    for origin in ((0, 0), (-8, 12), (400, -4000)):
        rings, k = plan.shifts.rings(origin), plan.shifts.pixels(origin)
        for v in plan.values:
            stride = shift_stride(plan, v.index)
            for axis in (0, 1):
                assert k[v.index, axis] == origin[axis] / stride[axis]
                assert rings[v.index, axis] == k[v.index, axis] % v.size[axis]
