"""The triton engine in Triton's interpreter: lanes, stamps, layouts, gates, windows."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import torchdelta
from chain_nets import AllSorts, Branches, compiled_chain, conv
from streams import dense, history
from support import LONG, as_frame, assert_active, copies, make_engine, move, new_session, snapshot
from torchdelta import EngineError, FrameError
from torchdelta.engines import ENGINES, choose
from torchdelta.engines.triton.launch import Launch
from torchdelta.runtime.inspect import frame_state
from torchdelta.runtime.measure import placed_step
from torchdelta.runtime.session import Session
from torchdelta.runtime.windows import Window
from triton_runs import CPU, language_is_patched_once


@pytest.fixture(autouse=True, scope="module")
def _quicker() -> Iterator[None]:
    with language_is_patched_once():
        yield


class Event:
    """What a stream records; happened: once everything before it is done."""

    happened = False


class Stream:
    """Notes what is put on a stream: launches, events, and tuples of an event to wait for."""

    def __init__(self) -> None:
        self.todo: list[object] = []

    def record_event(self) -> Event:
        self.todo.append(Event())
        return self.todo[-1]

    def wait_event(self, event: Event) -> None:
        self.todo.append((event,))

    @property
    def ready(self) -> bool:
        """Whether it can go on."""
        return bool(self.todo) and (not isinstance(self.todo[0], tuple) or self.todo[0][0].happened)


def in_turns(streams: Sequence[Stream], do: Callable[[Launch], None]) -> None:
    """Do what streams noted: always something of the first that can go on."""
    while any(stream.todo for stream in streams):
        item = next(stream for stream in streams if stream.ready).todo.pop(0)
        if isinstance(item, Event):
            item.happened = True
        elif isinstance(item, Launch):
            do(item)


def test_lanes_in_any_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever lane is ahead, the result is dense (P1); sums in parts have room by lane."""
    from torchdelta.engines.triton.input_gate import check_launches

    torch.manual_seed(0)
    branches = [nn.Sequential(conv(3, 16, 1), nn.ReLU(), conv(16, 4, 3)) for _ in range(2)]
    shape = (3, 4, 5)
    model = Branches(branches, conv(8, 4, 3)).eval()
    fast = torchdelta.compile(model, torch.rand(1, *shape), input_range=(0, 1))
    session = new_session(fast, "triton", 0.0)
    first, *frames = history(("all", "all"), 1, shape)
    session.step({"s": first})
    runner = session.engine.runners[frame_state(session)]
    (frame,) = runner._frames.values()
    assert "2 lanes" in session.explain()
    rooms = {
        (frame.lanes.lane(launch.step), launch.args["partial_ptr"].data_ptr())
        for _, work in frame.work
        for launch in work
        if launch.args.get("SPLITS", 1) > 1
    }
    assert len(rooms) == len(dict(rooms)) == len({room for _, room in rooms}) == 2
    streams = [Stream(), Stream()]
    # who goes first
    order = list(streams)
    launch = Launch.__call__

    def run(*_: object) -> None:
        current = [streams[0]]

        @contextmanager
        def switched(stream: Stream) -> Iterator[None]:
            current.append(stream)
            yield
            current.pop()

        with monkeypatch.context() as patch:
            patch.setattr(torch.cuda, "current_stream", lambda _: current[-1])
            patch.setattr(torch.cuda, "stream", switched)
            patch.setattr(Launch, "__call__", lambda this: current[-1].todo.append(this))
            runner._run_lanes(frame, check_launches(frame), streams[1:])
        assert all(stream.todo for stream in streams)
        in_turns(order, launch)

    monkeypatch.setattr(runner, "_run", run)
    for x in frames:
        result = session.step({"s": x})["s"]
        assert torchdelta.relative_error(result.output, dense(model, x)) <= 1e-5
        order.reverse()


def test_stamps_begin_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Old stamps are gone before a frame's number comes again (on a GPU after 255 frames)."""
    from torchdelta.engines.triton import memory

    assert memory.LAST_STAMP <= 255
    monkeypatch.setattr(memory, "LAST_STAMP", 3)
    fast, model = compiled_chain("chain")
    session = new_session(fast, "triton", 0.0, slots=2)
    frames = history(("pixel", "same", "corner", "same", "same", "origin", "patch", "same"), 9)
    session.step({"idle": frames[0]})
    for x in frames:
        before = snapshot(session)
        result = session.step({"s": x}, record=True)["s"]
        assert_active(session, before, result, 1)
        assert torchdelta.relative_error(result.output, dense(model, x)) <= 1e-5
    # a slot that was left alone for a whole round
    before = snapshot(session)
    result = session.step({"idle": frames[1]}, record=True)["idle"]
    assert int(result.changed.sum()) == 1
    assert_active(session, before, result, 0)


@cache
def one_conv(shape: tuple[int, int, int], **expected: object) -> torchdelta.CompiledModel:
    torch.manual_seed(0)
    model = nn.Conv2d(shape[0], 2, 1).eval()
    return torchdelta.compile(model, torch.rand(1, *shape), **expected)


@pytest.mark.parametrize(("channels", "color"), [(3, "rgb"), (1, "rgb"), (3, "bgr"), (4, "bgr")])
def test_layouts_of_a_frame_give_the_same_state(channels: int, color: str) -> None:
    """uint8 [H, W, C], a cut-out of a larger picture, [C, H, W], float in any order."""
    h, w = 7, 11
    fast = one_conv((channels, h, w), input_range=(0, 255), color=color)
    picture = np.random.default_rng(1).integers(0, 256, (h + 3, w + 5, channels), dtype=np.uint8)
    cut = picture[1 : h + 1, 2 : w + 2]
    packed = torch.from_numpy(cut.copy())
    layouts = {
        "array": np.ascontiguousarray(cut), "cut": cut, "planes": packed.permute(2, 0, 1),
        "planes in order": packed.permute(2, 0, 1).contiguous(),
        "float planes": packed.permute(2, 0, 1).float().contiguous(),
        "half planes": packed.permute(2, 0, 1).half(), "float array": cut.astype(np.float32),
    }  # fmt: skip
    session = new_session(fast, "triton", 0.0, slots=len(layouts))
    session.step({name: 255 - packed.permute(2, 0, 1) for name in layouts})
    results = session.step(layouts)
    expected = cut[:, :, [2, 1, 0, 3][:channels]] if color == "bgr" else cut
    expected = torch.from_numpy(expected.astype(np.float32)).permute(2, 0, 1)[None]
    for name, result in results.items():
        assert torch.equal(session.stream(name).published(), expected), name
        assert torch.equal(result.output, results["array"].output)


@pytest.mark.versions
def test_layouts_that_change_from_frame_to_frame() -> None:
    """What was said of a frame some frames ago is not said of this one."""
    fast = one_conv((3, 4, 5), input_range=(0, 255))
    session = new_session(fast, "triton", 0.0)
    layouts: tuple[Callable[[Tensor], Tensor], ...] = (
        lambda x: x, lambda x: x.permute(1, 2, 0).contiguous().permute(2, 0, 1), Tensor.float,
    )  # fmt: skip
    for n, x in enumerate(torch.randint(0, 256, (13, 3, 4, 5), dtype=torch.uint8)):
        session.step({"s": layouts[n % 3](x)})
        assert torch.equal(session.stream("s").published(), x[None].float()), n


@pytest.mark.parametrize(
    ("size", "grain"),
    # cells of 2, 4 and 8 pixels divide the gate's tiles
    [
        ((1, 1), 1),
        ((23, 24), 1),
        ((23, 24), 4),
        ((9, 13), 5),
        *([((1, 1), 8), ((23, 24), 5)] if LONG else []),
    ],
)
def test_input_gate_is_the_torch_engines(size: tuple[int, int], grain: int) -> None:
    """On changes that are far from the threshold both publish the same pixels."""
    h, w = size
    fast = one_conv((3, h, w), input_range=(0, 1), mean=(0.4, 0.3, 0.5), std=(0.2, 0.1, 0.3))
    sessions = [new_session(fast, engine, 0.04, grain=grain) for engine in ("torch", "triton")]
    generator = torch.Generator().manual_seed(2)
    x = 0.2 + 0.2 * torch.rand(1, 3, h, w, generator=generator)
    # of 2x2 pixels a box of 3x3 is far beyond the threshold, and no cell is; then all cells are
    for y0, x0, side in ((0, 0, 2), (h, w, 2), (h // 2, w // 3, 2), (h, 0, 2), (0, 0, max(h, w))):
        y0, x0 = max(0, min(y0, h - side)), max(0, min(x0, w - side))
        x = x + 1e-4
        patch = x[0, :, y0 : y0 + side, x0 : x0 + side]
        patch += torch.where(patch < 0.5, 0.5, -0.5)
        masks = [session.step({"s": x})["s"].changed for session in sessions]
        assert masks[0].any()
        assert torch.equal(*masks), (y0, x0)
        assert not sessions[1].step({"s": x})["s"].changed.any()


@pytest.mark.parametrize(
    ("grain", "tolerance"),
    [(3, 0.04), (2, 0.0), *([(1, 0.04), (4, 0.04)] if LONG else [])],
)
def test_frames_that_are_valid_in_part_are_gated_alike(grain: int, tolerance: float) -> None:
    """Both publish the same of moving windows; one slot of two has no mask."""
    # two of the gate's tiles in each direction
    h, w = 6, 70
    fast = one_conv((3, h, w), input_range=(0, 1))
    sessions = [
        new_session(fast, engine, tolerance, slots=2, grain=grain) for engine in ("torch", "triton")
    ]
    r = np.random.default_rng(1)
    world = torch.from_numpy(r.random((3, 2 * h, 2 * w), dtype=np.float32))
    seen = set()
    for t, (y, x) in enumerate([(0, 0), (0, 0), (2, 5), (1, 3)]):
        frames, windows = {}, {}
        for n in range(2):
            world[:, y + 2 : y + 5, x + 9 * n : x + 9 * n + 5] += 0.2 * (-1) ** t
            valid = r.random((h, w)) < 0.8 if n == 0 else None
            frames[str(n)] = world[:, y : y + h, x : x + w].clone()
            windows[str(n)] = Window((y, x), valid, "keep")
        results = [placed_step(session, frames, windows) for session in sessions]
        for n in frames:
            theirs, mine = (result[n].changed for result in results)
            assert torch.equal(theirs, mine), (t, n)
            seen.add(0 < float(mine.float().mean()) < 1)
    assert True in seen


@pytest.mark.parametrize(
    ("channels", "norm"),
    [
        (1, "rms"),
        (5, "max"),
        (65, "rms"),
        (130, "max"),
        *([(1, "max"), (5, "rms"), (65, "max"), (130, "rms")] if LONG else []),
    ],
)
def test_a_group_is_published_from_its_threshold_on(channels: int, norm: str) -> None:
    """Every group of a value moves by 2 % less than the threshold, then by 2 % more."""
    fast, scale = copies(channels, (3, 5))
    x = torch.rand(1, 1, 3, 5, generator=torch.Generator().manual_seed(1))
    value = fast.plan.steps[0].output
    name = fast.plan.values[value].name
    # every input pixel that differs goes in
    profile = torchdelta.Profile({"input": 0.0}, rms={name: 1.0}, norm=norm)
    groups = [scale[c : c + 64] for c in range(0, channels, 64)]
    session = new_session(fast, "triton", 0.1, slots=len(groups), profile=profile)
    session.step({str(g): x for g in range(len(groups))})
    before = [frame_state(session).view(value, slot).clone() for slot in range(len(groups))]
    sizes = [part.max() if norm == "max" else part.square().mean().sqrt() for part in groups]
    for factor, moves in ((0.98, False), (1.02, True)):
        frames = {}
        for g, size in enumerate(sizes):
            frames[str(g)] = x.clone()
            frames[str(g)][0, 0, 1, 3] += factor * 0.1 / size
        session.step(frames)
        for g in range(len(groups)):
            moved = frame_state(session).view(value, g) != before[g]
            # one group of one pixel
            assert bool(moved[1, 3, 64 * g]) == moves
            moved[1, 3] = False
            assert not moved.any()


@pytest.mark.parametrize("dark", [0, 2])
def test_scales_count_from_the_frame_after_the_one_that_shows_them(dark: int) -> None:
    """They are fetched before that frame; dark frames show none."""
    fast, _ = copies(5, (3, 5))
    session = new_session(fast, "triton", 0.1, profile=torchdelta.Profile({"input": 0.0}))
    value = frame_state(session).view(fast.plan.steps[0].output, 0)
    x = torch.rand(1, 1, 3, 5, generator=torch.Generator().manual_seed(1))
    frames = [torch.zeros_like(x)] * dark + [x]
    for frame in frames:
        session.step({"s": frame})
    kept = value.clone()
    session.step({"s": x + 1e-3})
    assert torch.equal(value, kept)
    session.step({"s": x + 0.3})
    assert (value != kept).all()
    scale = float(kept.square().mean().sqrt())
    assert session.stream("s").profile().rms == pytest.approx({fast.plan.values[1].name: scale})


def test_frames_that_are_not_finite_are_refused_at_once() -> None:
    """Frames of the host are looked at before anything runs; the other stream goes on."""
    fast, model = compiled_chain("chain")
    session = new_session(fast, "triton", 0.0, slots=2)
    good, other = history(("patch",), 10)
    session.step({"bad": good, "good": good})
    before = snapshot(session)
    results = session.step({"bad": move(other, "nan", torch.Generator()), "good": other})
    assert isinstance(results["bad"].error, FrameError)
    assert "NaN" in str(results["bad"].error)
    assert torchdelta.relative_error(results["good"].output, dense(model, other)) <= 1e-5
    for x, y in zip(before, frame_state(session).buffers, strict=True):
        assert torch.equal(x[0], y[0])
    again = session.step({"bad": good})["bad"]
    assert not again.stats.first
    assert again.stats.changed_input == 0.0
    assert session.stream("bad").stats.frames == 2


@pytest.mark.versions
def test_masks_are_those_of_their_frame_until_the_session_is_gone() -> None:
    """Results that are read late say what their own frame did."""
    shape = (3, 4, 5)
    session = new_session(one_conv(shape, input_range=(0, 1)), "triton", 0.0)
    # more frames than can be on their way; float ones are counted at once
    kinds = ("pixel", "patch", "corner", "all", "same", "patch")
    frames = [as_frame(x) for x in history(kinds, 11, shape)]
    results = [session.step({"s": x})["s"] for x in frames]
    masks = [result.changed for result in results[1:]]
    for mask, old, new in zip(masks, frames, frames[1:], strict=False):
        assert torch.equal(mask, torch.from_numpy((old != new).any(-1)))
    shares = [result.stats.changed_input for result in results]
    assert shares == pytest.approx([1.0, *(int(mask.sum()) / 20 for mask in masks)])
    counts = [result.report().active_px for result in results]
    assert counts == [[20], *([int(mask.sum())] for mask in masks)]


def test_views_and_uint8_frames() -> None:
    fast, model = compiled_chain("bottleneck")
    frames = history(("patch",), 12)
    session = Session(make_engine("triton", fast.plan, CPU, torch.float32), 1, 0.0,
                      torchdelta.Profile(), views=True)  # fmt: skip
    view = session.step({"s": as_frame(frames[0])})["s"].output
    kept = view.clone()
    shown = torch.from_numpy(as_frame(frames[0])).permute(2, 0, 1)[None] / 255
    assert torchdelta.relative_error(kept, dense(model, shown)) <= 1e-5
    session.step({"s": as_frame(frames[1])})
    assert not torch.equal(view, kept)


def test_explain_and_bytes() -> None:
    fast, _ = compiled_chain("left-to-pytorch")
    engine = make_engine("triton", fast.plan, CPU, torch.float32)
    session = Session(engine, 2, 0.0, torchdelta.Profile())
    ((name, reason),) = engine.foreign_steps().items()
    assert [name] == [step.name for step in fast.plan.steps if step.dense]
    (row,) = (line for line in session.explain().splitlines() if line.split()[:1] == [name])
    assert row.endswith(f"dense: {reason}; in every frame, for every slot")
    assert "engine triton" in session.explain()
    assert engine.scratch_bytes == 0
    session.step({"s": history((), 13)[0]})
    assert engine.scratch_bytes > 0
    weights = sum(w.numel() * 4 for step in fast.plan.steps for w in step.weights.values())
    assert engine.weight_bytes >= weights
    del session
    assert engine.scratch_bytes == 0, "a session's memory outlives it"


def test_an_interpreted_engine_runs_only_when_asked_for() -> None:
    engine, reason = choose("auto", CPU)
    assert engine is not ENGINES["triton"]
    assert "not triton: its kernels would be interpreted" in reason
    assert choose("triton", CPU) == (ENGINES["triton"], "as asked")
    model, x = nn.Conv2d(3, 2, 1).eval(), torch.rand(1, 3, 5, 7)
    assert torchdelta.compile(model, x).engine != "triton"
    fast = torchdelta.compile(model, x, engine="triton", tolerance=0, input_range=(0, 1))
    assert fast.engine == "triton"
    assert torchdelta.relative_error(fast(x), dense(model, x)) <= 1e-5


def test_another_device_is_refused() -> None:
    with pytest.raises(EngineError, match=r"runs on cpu here, the model is on cuda"):
        choose("triton", torch.device("cuda"))


@cache
def all_sorts() -> tuple[torchdelta.CompiledModel, nn.Module]:
    torch.manual_seed(0)
    model = AllSorts().eval()
    return torchdelta.compile(model, torch.rand(1, 3, 10, 12), input_range=(0, 1)), model


def test_windows_that_move() -> None:
    """Strips, borders, masks and states are the torch engine's; with exact borders, dense (P1)."""
    fast, model = all_sorts()
    assert fast.plan.total_stride == (2, 2)
    # not 0: the last bits of an unchanged pixel may hang on what PyTorch computes along with it,
    # and must not count as a change
    session, oracle = (new_session(fast, e, 2e-6, slots=2) for e in ("triton", "torch"))
    world = torch.rand(1, 3, 40, 40, generator=torch.Generator().manual_seed(5))
    valid = np.ones((10, 12), bool)
    valid[:, :5] = False
    still = world[:, :, :10, :12].contiguous()
    for t, (y, x) in enumerate([(6, 6), (8, 2), (2, 12)]):
        border = "keep" if t == 2 else "exact"
        frame = world[:, :, y : y + 10, x : x + 12].contiguous()
        window = Window((y, x), valid if t == 2 else None, border)
        frames = {"moving": frame, "still": still} if t % 2 == 0 else {"moving": frame}
        results, expected = (
            placed_step(s, frames, {"moving": window}, record=True) for s in (session, oracle)
        )
        for stream, result in results.items():
            other = expected[stream]
            for name, mask in result.active.items():
                assert torch.equal(mask, other.active[name].expand(mask.shape)), (t, name)
            assert torch.equal(result.changed, other.changed)
        if border == "exact":
            assert torchdelta.relative_error(results["moving"].output, dense(model, frame)) <= 1e-5
        for a, b in zip(frame_state(session).buffers, frame_state(oracle).buffers, strict=True):
            torch.testing.assert_close(a, b, equal_nan=True)
    assert session.stream("still").stats.mac_share == 0.0


def test_new_strips_are_published_without_comparing() -> None:
    """In an even world, where nothing differs from what its cell held; round the rings."""
    torch.manual_seed(0)
    model = nn.Sequential(conv(3, 4, 3, 2), conv(4, 2, 1)).eval()
    fast = torchdelta.compile(model, torch.rand(1, 3, 8, 10), input_range=(0, 1))
    session, oracle = (new_session(fast, e, 0.0) for e in ("triton", "torch"))
    frame = torch.full((1, 3, 8, 10), 0.5)
    for t, origin in enumerate([(6, 2), (2, 8), (8, 14)]):
        windows = {"s": Window(origin, border="keep")}
        result, wanted = (placed_step(s, {"s": frame}, windows)["s"] for s in (session, oracle))
        assert torch.equal(result.changed, wanted.changed), t
        assert torch.equal(result.output_changed, wanted.output_changed), t
        assert 0 < int(wanted.changed.sum()) < 80 or t == 0


def test_masked_frames_are_gated_as_by_the_oracle() -> None:
    """With a threshold: means over what can be compared, marks inside the mask."""
    torch.manual_seed(0)
    fast = torchdelta.compile(conv(3, 2, 1).eval(), torch.rand(1, 3, 10, 12), input_range=(0, 1))
    session, oracle = (new_session(fast, e, 0.04) for e in ("triton", "torch"))
    generator = torch.Generator().manual_seed(6)
    world = torch.rand(1, 3, 40, 40, generator=generator)
    for t, (y, x) in enumerate([(6, 6), (6, 6), (8, 10)]):
        # some differences are near the threshold
        world = (world + 0.12 * (torch.rand(world.shape, generator=generator) - 0.5)).clamp(0, 1)
        frame = world[:, :, y : y + 10, x : x + 12].contiguous()
        valid = (torch.rand(10, 12, generator=generator) < 0.7) if t else None
        windows = {"s": Window((y, x), valid, "keep")}
        found, wanted = (
            placed_step(s, {"s": frame}, windows)["s"].changed for s in (session, oracle)
        )
        assert torch.equal(found, wanted), t
        assert t == 0 or 0 < int(found.sum()) < found.numel()
        assert torch.equal(session.stream("s").published(), oracle.stream("s").published())
