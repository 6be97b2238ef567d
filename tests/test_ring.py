"""Windows that move: what a step computes equals the dense network on the window."""

import zlib
from collections.abc import Callable
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, seed, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import torchdelta
from histories import P1_FP32, quick
from random_nets import compiled_net
from ring_worlds import (
    BACK_AND_FORTH,
    DIRECTIONS,
    ENGINES,
    NETS,
    PAN,
    Point,
    World,
    compiled,
    inside,
    step,
    walk,
)
from streams import dense
from support import LONG, new_session
from torchdelta.ops import OPS
from torchdelta.plan import Plan


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
        assert torch.equal(session.stream("s").published().cpu(), frame)
        assert result.origin == origin
        if t % 5 == 0:
            assert session.stream("s").audit().ok, str(session.stream("s").audit())
        if last is not None:
            moved = max(moved, torchdelta.relative_error(last, expected))
        last = expected
    assert moved > 1e-2
    assert session.stream("s").stats.reasons == {"first frame": 1}
    assert session.stream("s").stats.moves == len(steps) - 1


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
                    getattr(session.stream("s"), kind)()
                continue
            y, x = y + dy * stride[0], x + dx * stride[1]
            if kind == "change":
                world.change((y, x), size)
            result = step(session, world, (y, x))
            expected = dense(model, world.show((y, x), size))
            assert torchdelta.relative_error(result.output, expected) <= P1_FP32
        audit = session.stream("s").audit()
        assert audit.ok, str(audit)
        idle = session.step({"still": still})["still"]
        assert idle.stats.mac_share == 0.0
        assert torchdelta.relative_error(idle.output, dense(model, still)) <= P1_FP32

    run()


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
        assert session.stream("s").audit().ok, str(session.stream("s").audit())
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
