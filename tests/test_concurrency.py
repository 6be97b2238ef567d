"""Captures take long: they run one after another, and nobody waits who does not need them."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

import torchdelta
import torchdelta.api
from support import ENGINE_NAMES
from torchdelta import CaptureError
from torchdelta.capture.export import CAPTURES, Captured, export
from torchdelta.engines import Engine
from torchdelta.runtime.background import in_background
from torchdelta.runtime.inspect import ask_for_windows, window_engine
from torchdelta.runtime.once import Once
from torchdelta.runtime.session import Session

SIZE, OTHER = (48, 64), (40, 56)
# a thread that hangs ends a test, it decides none
HANGS_S = 120


class Hold:
    """Holds a capture in the middle: inside the model's own forward, while it is exported."""

    def __init__(self) -> None:
        self.begun, self.may_end, self.size = threading.Event(), threading.Event(), OTHER

    def __call__(self, x: Tensor) -> None:
        if isinstance(x, FakeTensor) and tuple(x.shape[2:]) == self.size:
            self.begun.set()
            assert self.may_end.wait(HANGS_S)


# events cannot be copied with a model
holds: list[Hold] = []


class Net(nn.Module):
    """A convolution, and an operation that has no sparse form."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        for hold in holds:
            hold(x)
        return self.conv(x).cumsum(2)


def frame(seed: int, size: tuple[int, int] = SIZE) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (1, 3, *size), dtype=torch.uint8, generator=generator)


def compile_net(engine: str = "torch", **keywords: Any) -> torchdelta.CompiledModel:
    torch.manual_seed(0)
    return torchdelta.compile(Net().eval(), frame(0), engine=engine, tolerance=0, **keywords)


@pytest.fixture(scope="module", params=ENGINE_NAMES)
def fast(request: pytest.FixtureRequest) -> torchdelta.CompiledModel:
    return compile_net(request.param)


@cache
def reference(seed: int, size: tuple[int, int] = SIZE) -> Tensor:
    torch.manual_seed(0)
    model = Net().eval()
    with torch.no_grad():
        return model(frame(seed, size) / 255)


@contextmanager
def held(size: tuple[int, int] = OTHER) -> Iterator[Hold]:
    holds.append(hold := Hold())
    hold.size = size
    try:
        yield hold
    finally:
        hold.may_end.set()
        holds.clear()


def elsewhere(work: Callable[[], Any]) -> Future[Any]:
    return in_background(work, "test")


def quietly(call: Callable[[], Any]) -> Any:
    """Call without the warning that frames of another size come."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return call()


def window_of(session: Session) -> Engine:
    """Wait for the network on windows."""
    session.waits = True
    assert ask_for_windows(session)
    made = window_engine(session)
    assert made is not None
    return made.result(HANGS_S)


# what asks for a new size, and that size
NEW_SIZES: dict[str, tuple[Callable[[torchdelta.CompiledModel], Any], tuple[int, int]]] = {
    "session": (lambda fast: fast.session(size=(40, 56)), (40, 56)),
    "call": (lambda fast: quietly(lambda: fast(frame(7, (41, 56)))), (41, 56)),
    "preprocess": (lambda fast: fast.preprocess(frame(7, (42, 56))[0]), (42, 56)),
    "window": (lambda fast: fast.session(size=(30, 40), motion="given"), (31, 41)),
    "homography": (
        lambda fast: quietly(lambda: fast(frame(7, (20, 24)), homography=np.eye(3))), (21, 25),
    ),
    "auto": (
        # what the first frame that shows a motion does
        lambda fast: window_of(fast.session(size=(24, 30), motion="auto")), (25, 31),
    ),
}  # fmt: skip


@pytest.mark.parametrize("how", NEW_SIZES)
def test_nobody_waits_for_a_capture_but_who_needs_it(
    fast: torchdelta.CompiledModel, how: str
) -> None:
    ask, size = NEW_SIZES[how]
    session = fast.session()
    session.step({"a": frame(0)[0]})
    quietly(lambda: fast(frame(0)))
    table, called = fast.explain(), fast.stats.frames
    dense = fast.dense(frame(3) / 255)

    def work() -> list[Tensor]:
        outputs = [session.step({"a": frame(n)[0]})["a"].output for n in (1, 2)]
        outputs += [fast(frame(n)) for n in (1, 2)]
        opened = fast.session(slots=2)
        outputs += [opened.step({"b": frame(3)[0]})["b"].output]
        assert torch.allclose(fast.preprocess(frame(3)[0]), frame(3) / 255)
        assert fast.stats.frames == called + 2
        assert session.stream("a").audit().ok
        assert session.stats.frames == 3
        assert fast.explain() == table
        return [*outputs, fast.dense(frame(3) / 255)]

    with held(size) as hold:
        waiting = elsewhere(lambda: ask(fast))
        assert hold.begun.wait(HANGS_S)
        outputs = elsewhere(work).result(HANGS_S)
        assert not waiting.done()
    for output, seed in zip(outputs, (1, 2, 1, 2, 3, 3), strict=True):
        assert torchdelta.relative_error(output, reference(seed)) < 1e-5
    found = waiting.result(HANGS_S)
    if how == "call":
        assert torchdelta.relative_error(found, reference(7, size)) < 1e-5
    # parameters that the exporter had put away are back
    assert torch.equal(fast.dense(frame(3) / 255), dense)


def test_auto_goes_on_while_its_window_is_captured(fast: torchdelta.CompiledModel) -> None:
    session = fast.session(size=(26, 32), motion="auto")
    session.step({"a": frame(0, (26, 32))[0]})
    with held(session.window) as hold:
        assert not ask_for_windows(session)
        assert hold.begun.wait(HANGS_S)

        def work() -> None:
            assert session.step({"a": frame(1, (26, 32))[0]})["a"].aligned is None
            assert not ask_for_windows(session)
            assert session.stream("a").stats.frames == 2
            assert "input 3x26x32" in session.explain()

        elsewhere(work).result(HANGS_S)
        made = window_engine(session)
        assert made is not None
        assert not made.done()
    assert made.result(HANGS_S).plan.size == session.window
    assert ask_for_windows(session)
    # another session has it at once
    other = fast.session(size=(26, 32), motion="features")
    other.step({"a": frame(0, (26, 32))[0]})
    assert other.engines == [made.result(HANGS_S)]


@pytest.fixture
def exported(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Note the size of each capture, and see that it is alone."""
    found: list[tuple[int, ...]] = []

    def noting(model: nn.Module, example: Tensor) -> Captured:
        found.append(tuple(example.shape[2:]))
        # nobody else is at it
        with ThreadPoolExecutor(1) as pool:
            assert not pool.submit(CAPTURES.acquire, blocking=False).result(HANGS_S)
        return export(model, example)

    monkeypatch.setattr(torchdelta.api, "export", noting)
    return found


def wait_for(fast: torchdelta.CompiledModel, count: int) -> list[Future[Any]]:
    """Have threads ask for a size that is being captured; gives them when all wait."""
    asked = threading.Semaphore(0)

    class Asked(dict[Any, Any]):
        def get(self, key: Any, default: Any = None) -> Any:
            asked.release()
            return super().get(key, default)

    fast._engines._under_way = Asked(fast._engines._under_way)
    futures = [elsewhere(lambda: fast.session(size=OTHER)) for _ in range(count)]
    for _ in futures:
        assert asked.acquire(timeout=HANGS_S)
    return futures


def test_all_who_ask_for_a_size_wait_for_its_one_capture(exported: list[tuple[int, ...]]) -> None:
    fast = compile_net()
    with held() as hold:
        first = elsewhere(lambda: fast.session(size=OTHER))
        assert hold.begun.wait(HANGS_S)
        others = wait_for(fast, 3)
        assert not any(future.done() for future in (first, *others))
    sessions = [future.result(HANGS_S) for future in (first, *others)]
    assert {id(session.engine) for session in sessions} == {id(fast._engine_at(OTHER))}
    assert exported == [SIZE, OTHER]
    outputs = [session.step({"a": frame(5, OTHER)[0]})["a"].output for session in sessions]
    assert all(torch.equal(outputs[0], output) for output in outputs)


def test_a_failure_goes_to_all_who_wait_and_is_not_kept(
    monkeypatch: pytest.MonkeyPatch, exported: list[tuple[int, ...]]
) -> None:
    fast = compile_net()
    begun, may_fail = threading.Event(), threading.Event()
    noting = torchdelta.api.export

    def failing(model: nn.Module, example: Tensor) -> Captured:
        begun.set()
        assert may_fail.wait(HANGS_S)
        raise CaptureError("the exporter is tired")

    monkeypatch.setattr(torchdelta.api, "export", failing)
    first = elsewhere(lambda: fast(frame(1, OTHER)))
    assert begun.wait(HANGS_S)
    others = wait_for(fast, 3)
    may_fail.set()
    for future in (first, *others):
        with pytest.raises(CaptureError, match="tired"):
            future.result(HANGS_S)
    monkeypatch.setattr(torchdelta.api, "export", noting)
    assert fast.session(size=OTHER).step({"a": frame(1, OTHER)[0]})["a"].error is None
    assert exported == [SIZE, OTHER]


def test_models_are_captured_one_after_another(exported: list[tuple[int, ...]]) -> None:
    with held(SIZE) as hold:
        first = elsewhere(compile_net)
        assert hold.begun.wait(HANGS_S)
        second = elsewhere(compile_net)
        assert exported == [SIZE]
    for future in (first, second):
        future.result(HANGS_S)
    assert exported == [SIZE, SIZE]


class Interrupted(BaseException):
    """Ctrl-C in one thread."""


def test_an_interruption_is_for_one_thread_alone() -> None:
    begun, may_end = threading.Event(), threading.Event()
    makers = []

    def make(key: str) -> str:
        makers.append(key)
        if len(makers) == 1:
            begun.set()
            assert may_end.wait(HANGS_S)
            raise Interrupted
        return key.upper()

    once: Once[str, str] = Once(make, 2, {})
    first = elsewhere(lambda: once.get("a"))
    assert begun.wait(HANGS_S)
    second = elsewhere(lambda: once.get("a"))
    may_end.set()
    with pytest.raises(Interrupted):
        first.result(HANGS_S)
    assert second.result(HANGS_S) == "A"
    assert makers == ["a", "a"]


def test_the_sizes_asked_for_last_are_kept_and_the_examples_always(
    monkeypatch: pytest.MonkeyPatch, exported: list[tuple[int, ...]]
) -> None:
    monkeypatch.setattr(torchdelta.api, "MAX_PLANS", 3)
    fast = compile_net()
    first = fast._engine_at(SIZE)
    sizes = [(8, 8), (8, 9), (8, 8), (8, 10), (8, 8), (8, 9)]
    for size in sizes:
        session = fast.session(size=size)
        assert session.plan.size == size
    # (8, 9) had to go for (8, 10), and came again
    assert exported == [SIZE, (8, 8), (8, 9), (8, 10), (8, 9)]
    assert len(fast._engines) == 3
    assert fast._engine_at(SIZE) is first
    # a session outlives its place
    assert (8, 10) not in fast._engines


def test_calls_of_two_sizes_from_two_threads_give_what_the_model_gives() -> None:
    fast = compile_net()

    def work(size: tuple[int, int]) -> list[float]:
        return [
            torchdelta.relative_error(fast(frame(n, size)), reference(n, size)) for n in range(4)
        ]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        both = [elsewhere(lambda size=size: work(size)) for size in (SIZE, OTHER)]
        assert max(error for future in both for error in future.result(HANGS_S)) < 1e-5
