"""On a GPU: frames are replayed from CUDA graphs, and nobody waits for the device."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torchdelta
from chain_nets import NETS, SHAPE, Fused, Peek, compiled_chain, conv
from gpu_runs import needs_triton, open_session
from streams import dense, history
from support import as_frame, new_session, same_bits, snapshot
from torchdelta.runtime.inspect import frame_state, uncounted_turns
from torchdelta.runtime.session import Session
from torchdelta.runtime.uncounted import MOST_UNCOUNTED

pytestmark = pytest.mark.gpu

# frames after which all of a session is warm: each kind of frame is captured at its second one, and
# there is a staging buffer for each of the frames that may be on their way
WARM = 12


class Launches:
    """Count the kernels that are launched one by one."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        from torchdelta.engines.triton.launch import Launch

        self.count = 0
        launch = Launch.__call__

        def counted(this: Launch) -> None:
            self.count += 1
            launch(this)

        patch.setattr(Launch, "__call__", counted)


@needs_triton
@pytest.mark.parametrize("host", [False, True], ids=["device", "host"])
def test_frames_are_replayed(host: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once warm, joins, leaves, resets and uneven arrival launch no kernel by itself."""
    launches = Launches(monkeypatch)
    session = open_session("downsampling", tolerance=0.04, slots=3)
    _, model = compiled_chain("downsampling")
    frames = [as_frame(x) for x in history(["patch"] * 20, 6)]

    def step(t: int, streams: str) -> dict[str, torchdelta.Result]:
        x = frames[t]
        given = x if host else torch.from_numpy(x).permute(2, 0, 1).cuda()
        return session.step(dict.fromkeys(streams, given))

    for t in range(3):
        step(t, "ab")
    assert launches.count > 0
    before = launches.count
    step(3, "c")
    session.stream("a").leave()
    step(4, "bd")
    session.stream("b").reset()
    step(5, "b")
    session.refresh()
    results = step(6, "bcd")
    assert launches.count == before
    x = torch.from_numpy(frames[6]).permute(2, 0, 1)[None] / 255
    for result in results.values():
        assert result.stats.first
        assert torchdelta.relative_error(result.output, dense(model, x)) <= 1e-5


class NoWaiting:
    """While it is on, whatever waits for the device raises; waits for events are counted."""

    def __init__(self) -> None:
        self.events = 0
        self._patch = pytest.MonkeyPatch()

    def __call__(self, on: bool, ring: Session | None = None) -> None:
        """Switch; ring: a session that may wait for the oldest of its frames under way."""
        torch.cuda.set_sync_debug_mode("error" if on else "default")
        self._patch.undo()
        if not on:
            return
        frames = set() if ring is None else {id(e) for pair in runner(ring)._events for e in pair}
        synchronize = torch.cuda.Event.synchronize

        def waits(*args: object, **kwargs: object) -> None:
            raise AssertionError("synchronises with the device")

        def waits_for_event(event: torch.cuda.Event) -> None:
            self.events += id(event) not in frames and not event.query()
            synchronize(event)

        self._patch.setattr(torch.cuda, "synchronize", waits)
        self._patch.setattr(torch.cuda.Stream, "synchronize", waits)
        self._patch.setattr(torch.cuda.Event, "synchronize", waits_for_event)


@pytest.fixture
def no_waiting() -> Iterator[NoWaiting]:
    """Give a switch that is off in the end."""
    switch = NoWaiting()
    yield switch
    switch(False)


def runner(session: Session) -> Any:
    """Give what runs a session's frames."""
    return session.engine.runners[frame_state(session)]


def keep_busy() -> None:
    """Keep the device busy for some 50 ms."""
    torch.cuda._sleep(100_000_000)


@needs_triton
@pytest.mark.parametrize("kind", ["device uint8", "device float", "numpy"])
@pytest.mark.parametrize("net", ["downsampling", "squeeze-excite", "left-to-pytorch"])
@pytest.mark.parametrize("views", [False, True], ids=["copies", "views"])
def test_a_step_does_not_wait_for_the_device(
    net: str, kind: str, views: bool, no_waiting: NoWaiting
) -> None:
    """Once it is warm, a step returns before the device is done."""
    session = open_session(net, tolerance=0.04, slots=2, views=views)
    _, model = compiled_chain(net)
    clip = history(["patch", "pixel", "noise"] * 8, 7)
    forms: dict[str, Callable[[Tensor], object]] = {
        "device uint8": lambda x: torch.from_numpy(as_frame(x)).permute(2, 0, 1).cuda(),
        "device float": lambda x: x.cuda(),
        "numpy": as_frame,
    }
    frames = [forms[kind](x) for x in clip]
    for t in range(WARM):
        session.step({"a": frames[t], "b": frames[t]} if t % 2 else {"a": frames[t]})
    torch.cuda.synchronize()
    results = []
    no_waiting(True, ring=session)
    for t in range(WARM, len(frames)):
        streams = {"a": frames[t]} if t % 3 else {"a": frames[t], "b": frames[t]}
        results.append(session.step(streams)["a"])
    no_waiting(False)
    assert no_waiting.events == 0
    assert max(r.stats.changed_input for r in results) > 0
    assert session.stream("a").stats.frames == len(frames)
    assert session.stream("a").audit().ok
    shown = session.stream("a").published().cpu()
    assert torchdelta.relative_error(results[-1].output, dense(model, shown)) < 0.5


@needs_triton
def test_counting_does_not_wait_for_the_device(no_waiting: NoWaiting) -> None:
    """When so many frames wait to be counted that some must be, those in flight go on waiting."""
    session = open_session("downsampling", tolerance=0.04, slots=2)
    frames = [torch.from_numpy(as_frame(x)).permute(2, 0, 1).cuda() for x in history(["all"], 8)]
    limit = MOST_UNCOUNTED // 2 * 2
    for t in range(limit - 1):
        session.step(dict.fromkeys("ab", frames[t % 2]))
    torch.cuda.synchronize()
    assert uncounted_turns(session) == limit - 1
    no_waiting(True)
    keep_busy()
    for t in range(3):
        session.step(dict.fromkeys("ab", frames[t % 2]))
    under_way = not runner(session)._events[runner(session)._turn][1].query()
    no_waiting(False)
    assert under_way, "the device was faster than the test"
    assert no_waiting.events == 0
    assert uncounted_turns(session) < limit
    assert session.stats.frames == 2 * (limit + 2)


@needs_triton
@pytest.mark.parametrize("host", [False, True], ids=["device", "host"])
def test_joins_and_refreshes_wait_once_and_later(host: bool, no_waiting: NoWaiting) -> None:
    """Scales are fetched before the next step, of all streams at once; dark frames have none."""
    session = open_session("downsampling", tolerance=0.04, slots=4)
    pictures = [as_frame(x) for x in history(["patch"] * 30, 9)]
    frames = [x if host else torch.from_numpy(x).permute(2, 0, 1).cuda() for x in pictures]
    dark = frames[0] * 0
    for t in range(WARM):
        # staging buffers of all slots are made here
        session.step(dict.fromkeys("abcd", frames[t]))
    for name in "bcd":
        session.stream(name).leave()
    _ = session.stats

    def waits(streams: dict[str, object]) -> int:
        """Run a step behind a busy device."""
        torch.cuda.synchronize()
        before = no_waiting.events
        no_waiting(True)
        keep_busy()
        session.step(streams)
        no_waiting(False)
        return no_waiting.events - before

    def waits_behind(streams: dict[str, object]) -> int:
        """Run a step that must settle what the last one began, which is still under way."""
        before = no_waiting.events
        no_waiting(True)
        session.step(streams)
        no_waiting(False)
        return no_waiting.events - before

    t = iter(frames[WARM:])
    assert waits(dict.fromkeys("abcd", next(t))) == 0
    assert waits_behind(dict.fromkeys("abcd", next(t))) == 1
    assert waits_behind(dict.fromkeys("abcd", next(t))) == 0
    assert (frame_state(session).thresholds.max(1) > 0).all()
    session.refresh()
    assert waits(dict.fromkeys("abcd", next(t))) == 0
    assert waits_behind({"a": next(t)}) == 1
    session.stream("b").reset()
    assert waits({"a": next(t), "b": dark}) == 0
    for _ in range(2):
        assert waits_behind({"b": dark}) <= 1
    # a frame that tells something: its scales are looked for when that is known
    session.step({"b": next(t)})
    assert session.stream("b").profile().rms
    assert session.stream("b").audit().ok


@needs_triton
def test_a_capture_holds_no_synchronisation(
    no_waiting: NoWaiting, monkeypatch: pytest.MonkeyPatch
) -> None:
    captures = 0
    enter, leave = torch.cuda.graph.__enter__, torch.cuda.graph.__exit__

    def entered(this: torch.cuda.graph) -> None:
        nonlocal captures
        captures += 1
        enter(this)
        no_waiting(True)

    def left(this: torch.cuda.graph, *error: object) -> None:
        no_waiting(False)
        leave(this, *error)

    monkeypatch.setattr(torch.cuda.graph, "__enter__", entered)
    monkeypatch.setattr(torch.cuda.graph, "__exit__", left)
    for net in NETS:
        session = open_session(net, tolerance=0.04, slots=2)
        x = history((), 10)[0]
        for frame in (as_frame(x), x.cuda(), as_frame(x), x.cuda()):
            session.step({"a": frame})
        # with float frames and without
        assert captures >= 2
        assert not session.engine.program.uncaptured
        captures = 0
    assert no_waiting.events == 0


@needs_triton
def test_a_step_that_cannot_be_captured_splits_the_graph() -> None:
    """It runs between two graphs, for slots with a frame alone, and `explain` says so."""
    torch.manual_seed(0)
    model = nn.Sequential(conv(3, 6, 3), Peek(), conv(6, 4, 1)).eval()
    fast = torchdelta.compile(model, torch.rand(1, *SHAPE), input_range=(0, 1))
    session = new_session(fast, "triton", 0.0, slots=3)
    ((name, _),) = session.engine.foreign_steps().items()
    computed: list[int] = []
    evaluate = session.engine.program.oracle.evaluate

    def counted(step: int, inputs: Sequence[Tensor]) -> Tensor:
        computed.append(step)
        return evaluate(step, inputs)

    session.engine.program.oracle.evaluate = counted  # type: ignore[method-assign]
    for t, x in enumerate(history(["patch", "all", "pixel", "patch"], 14)):
        streams = "ab" if t % 2 == 0 else "a"
        computed.clear()
        results = session.step(dict.fromkeys(streams, x.cuda()))
        for result in results.values():
            assert torchdelta.relative_error(result.output, dense(model, x)) <= 1e-5
        if t != 1:
            # the second frame is captured
            assert len(computed) == len(streams)
    assert fast.plan.steps[next(iter(session.engine.program.uncaptured))].name == name
    # a row of the table goes over several lines
    assert "between CUDA graphs" in " ".join(session.explain().split())
    (parts,) = runner(session)._graphs.values()
    assert len(parts) == 3


@needs_triton
def test_lanes_give_what_a_chain_gives() -> None:
    """Bit for bit, frame by frame, all state: also where lists are short and kernels overlap."""
    torch.manual_seed(0)
    size = (3, 96, 128)
    fast = torchdelta.compile(Fused().eval(), torch.rand(1, *size), input_range=(0, 1))
    sessions = [new_session(fast, "triton", 0.0, slots=2) for _ in range(2)]
    sessions[1].engine.program.most_lanes = 1
    kinds = ["patch", "pixel", "all", "stripes", "corner", "same"] * 6
    clips = [history(kinds, seed, size) for seed in (1, 2)]
    for frames in zip(*clips, strict=True):
        given = dict(zip("ab", (x.cuda() for x in frames), strict=True))
        for session in sessions:
            session.step(given)
        for mine, other in zip(*map(snapshot, sessions), strict=True):
            assert same_bits(mine, other).all()
    counts = [next(iter(runner(session)._frames.values())).lanes.count for session in sessions]
    assert counts == [4, 1]
    assert all(len(parts) == 1 for s in sessions for parts in runner(s)._graphs.values())


@needs_triton
def test_running_out_of_memory_is_no_reason_to_split_the_graph(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    session = open_session("left-to-pytorch")
    x = history((), 15)[0].cuda()
    session.step({"s": x})

    def evaluate(*args: object) -> Tensor:
        raise torch.OutOfMemoryError("none left")

    with monkeypatch.context() as patch:
        patch.setattr(session.engine.program.oracle, "evaluate", evaluate)
        with pytest.raises(RuntimeError):
            session.step({"s": x})
    assert not session.engine.program.uncaptured
    _, model = compiled_chain("left-to-pytorch")
    for _ in range(2):
        out = session.step({"s": x})["s"].output
        assert torchdelta.relative_error(out, dense(model, x.cpu())) <= 1e-5


@needs_triton
def test_frames_take_no_new_pinned_memory() -> None:
    """Once it is warm, also while nothing is counted or read."""
    session = open_session("downsampling", slots=2)
    frames = history(["patch"] * (WARM + 60), 16)
    allocations = 0
    for t, x in enumerate(frames):
        if t == WARM:
            allocations = torch.cuda.host_memory_stats()["num_host_alloc"]
        session.step({"a": as_frame(x), "b": torch.from_numpy(as_frame(x)).permute(2, 0, 1).cuda()})
    assert allocations > 0
    assert torch.cuda.host_memory_stats()["num_host_alloc"] == allocations
