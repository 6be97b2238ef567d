"""Models that remember frames are refused, with the place named; what is not read back is fine."""

from __future__ import annotations

import functools
import itertools
import random
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import torchdelta
from torchdelta.capture import purity
from torchdelta.capture.purity import check_stateless
from torchdelta.errors import CaptureError

FRAME = torch.rand(1, 3, 8, 12, generator=torch.Generator().manual_seed(3))


class Net(nn.Module):
    """One convolution, and something beside it.

    forward: of the model and the frame;  kept: attributes
    """

    def __init__(self, forward: Callable[[Any, Tensor], Tensor], **kept: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.call = forward
        for name, value in kept.items():
            setattr(self, name, value)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.call(self, x)


def compiled(model: nn.Module) -> torchdelta.CompiledModel:
    return torchdelta.compile(model.eval(), FRAME, tolerance=0, input_range=(0, 1))


def refusal(model: nn.Module) -> str:
    with pytest.raises(CaptureError) as caught:
        compiled(model)
    return str(caught.value)


def blend(self: Any, x: Tensor) -> Tensor:
    before = x if self.before is None else self.before
    self.before, self.seen = x, self.conv(x)
    return self.conv(x - 0.5 * before)


def mean_of_list(self: Any, x: Tensor) -> Tensor:
    self.frames.append(x)
    return self.conv(torch.stack(list(self.frames)).mean(0))


def from_dict(self: Any, x: Tensor) -> Tensor:
    before = self.table["last"].get("x", x)
    self.table["last"]["x"] = x
    return self.conv(x - 0.5 * before)


def growing(self: Any, x: Tensor) -> Tensor:
    self.memory = x if self.memory is None else torch.cat([self.memory, x], 2)
    return self.conv(self.memory)


def growing_until_it_fails(self: Any, x: Tensor) -> Tensor:
    self.memory = x if self.memory is None else torch.cat([self.memory, x], 1)
    return self.conv(self.memory)


def key_frames(self: Any, x: Tensor) -> Tensor:
    if self.count % 5 == 0:
        self.key = self.conv(x)
    self.count += 1
    return self.key + x[:, :1]


def running_mean(self: Any, x: Tensor) -> Tensor:
    self.level.mul_(0.9).add_(x.mean((2, 3), keepdim=True), alpha=0.1)
    return self.conv(x - self.level)


def worn_weights(self: Any, x: Tensor) -> Tensor:
    self.conv.weight.data.mul_(0.9)
    return self.conv(x)


def counted(self: Any, x: Tensor) -> Tensor:
    return self.conv(x) * (1 + next(self.counter))


class Memory:
    """Neither a module nor a container."""

    __slots__ = ("last",)


def in_an_object(self: Any, x: Tensor) -> Tensor:
    before = getattr(self.memory, "last", x)
    self.memory.last = x
    return self.conv(x - 0.5 * before)


class Buffered(Net):
    """With a buffer."""

    def __init__(self) -> None:
        super().__init__(running_mean)
        self.register_buffer("level", torch.zeros(1, 3, 1, 1))


class OfClass(nn.Module):
    """Keeps it where all instances do."""

    before: Tensor | None = None

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        cls = type(self)
        before = x if cls.before is None else cls.before
        cls.before = x
        return self.conv(x - 0.5 * before)


class Nested(nn.Module):
    """Keeps it two levels down; and in a plain list, whose modules no one registers."""

    def __init__(self, *, registered: bool) -> None:
        super().__init__()
        inner = Net(blend, before=None)
        self.blocks: Any = nn.ModuleList([nn.Sequential(inner)]) if registered else [inner]

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks[0](x)


GLOBAL: dict[str, Tensor] = {}


def global_state(self: Any, x: Tensor) -> Tensor:
    before = GLOBAL.get("x", x)
    GLOBAL["x"] = x
    return self.conv(x - 0.5 * before)


# the mutable default is what is tested (B006)
def default_state(self: Any, x: Tensor, calls: list[int] = []) -> Tensor:  # noqa: B006
    calls.append(0)
    return self.conv(x) * len(calls)


def closure() -> Net:
    before: Tensor | None = None

    def forward(self: Any, x: Tensor) -> Tensor:
        nonlocal before
        last, before = (x if before is None else before), x
        return self.conv(x - 0.5 * last)

    return Net(forward)


def hooked(kind: str) -> Net:
    held: dict[str, Tensor] = {}

    def blend_with(x: Tensor) -> Tensor:
        last = held.get("x", x)
        held["x"] = x
        return x - 0.5 * last

    model = Net(lambda self, x: self.conv(x))
    if kind == "forward":
        model.conv.register_forward_hook(lambda module, given, out: blend_with(out))
    else:
        model.conv.register_forward_pre_hook(lambda module, given: (blend_with(given[0]),))
    return model


def partial() -> Net:
    return Net(
        functools.partial(
            lambda held, self, x: from_dict(held, x), Net(from_dict, table={"last": {}})
        )
    )


@pytest.mark.parametrize(
    ("make", "place"),
    [
        (lambda: Net(blend, before=None), "`before`."),
        (lambda: Net(mean_of_list, frames=[]), "`frames`."),
        (lambda: Net(mean_of_list, frames=deque(maxlen=4)), "`frames`."),
        (lambda: Net(from_dict, table={"last": {}}), "`table`."),
        (lambda: Net(growing, memory=None), "`memory`."),
        (lambda: Net(growing_until_it_fails, memory=None), "`memory`."),
        (lambda: Net(key_frames, count=0, key=None), "`count`, `key`."),
        (lambda: Net(worn_weights), "`conv.weight`."),
        (lambda: Net(counted, counter=itertools.count()), "`counter`."),
        (lambda: Net(in_an_object, memory=Memory()), "`memory`."),
        (Buffered, "`level`."),
        (OfClass, "the class attribute `OfClass.before`."),
        (lambda: Nested(registered=True), "`blocks.0.0.before`."),
        (lambda: Nested(registered=False), "`blocks`."),
        (closure, "the variable `before` that `closure.<locals>.forward` encloses."),
        (lambda: Net(global_state), f"the global `GLOBAL` of {__name__}."),
        (lambda: Net(default_state), "the default arguments of `default_state`."),
        (lambda: hooked("forward"), "the variable `held` that `hooked.<locals>.blend_with`"),
        (lambda: hooked("pre"), "the variable `held` that `hooked.<locals>.blend_with`"),
        (partial, "`call`."),
    ],
)
def test_a_model_that_remembers_is_refused_with_the_place(
    make: Callable[[], nn.Module], place: str
) -> None:
    message = refusal(make())
    assert "keeps state from frame to frame" in message
    assert f"It is kept in {place}" in message


def test_a_model_that_has_run_before_is_refused_too() -> None:
    """Whatever it remembers by then, even of the example itself."""
    for model in (Net(blend, before=None), closure()):
        with torch.no_grad():
            model(FRAME)
        assert "keeps state from frame to frame" in refusal(model)


def test_state_that_makes_the_export_fail_is_named() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        self.frames.append(x)
        if float(self.frames[0].mean()) > 2:
            return self.conv(x)
        return self.conv(self.frames[0])

    message = refusal(Net(forward, frames=[]))
    assert "It is kept in `frames`." in message


def anchors(self: Any, x: Tensor) -> Tensor:
    y = self.conv(x)
    if self.size != x.shape[2:]:
        self.size = x.shape[2:]
        self.anchors = torch.arange(y.shape[-1]).float() * 0.1
    return y + self.anchors


def stored(self: Any, x: Tensor) -> Tensor:
    y = self.conv(x)
    self.feature, self.table["y"] = y, y
    self.calls += 1
    self.features.append(y)
    return y.relu()


def lazily(self: Any, x: Tensor) -> Tensor:
    if self.gain is None:
        self.gain = torch.full((1, 4, 1, 1), 2.0)
    return self.conv(x) * self.gain


@pytest.mark.parametrize(
    "make",
    [
        lambda: Net(anchors, size=None, anchors=None),
        lambda: Net(stored, feature=None, features=[], table={}, calls=0),
        lambda: Net(lazily, gain=None),
    ],
    ids=["anchors", "stored", "lazily"],
)
@pytest.mark.parametrize("warm", [False, True])
def test_what_is_not_read_back_is_fine(make: Callable[[], Net], warm: bool) -> None:
    model = make()
    if warm:
        with torch.no_grad():
            model(1 - FRAME)
    fast = compiled(model)
    for frame in (FRAME, 1 - FRAME, FRAME.flip(3)):
        with torch.no_grad():
            expected = make()(frame)
        assert torchdelta.relative_error(fast(frame), expected) < 1e-5
        dense = fast.dense(fast.preprocess(frame))
        assert torchdelta.relative_error(dense, expected) < 1e-5
    # another size is another anchor
    other = torch.rand(1, 3, 10, 7)
    with pytest.warns(UserWarning, match="frames are 10x7 from here on"):
        result = fast(other)
    with torch.no_grad():
        assert torchdelta.relative_error(result, make()(other)) < 1e-5


def test_the_model_is_left_as_it_was() -> None:
    model = Net(stored, feature=None, features=[], table={}, calls=0)
    compiled(model)
    assert model.feature is None
    assert not model.features
    assert model.calls == 0


def count_runs(model: Net) -> int:
    runs = 0

    def forward(self: Any, x: Tensor) -> Tensor:
        nonlocal runs
        runs += not torch.compiler.is_exporting()
        return self.conv(x)

    model.call = forward
    compiled(model)
    return runs


def test_looking_for_state_takes_small_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three runs on a sixteenth of the pixels; where the model takes no such frame, two on it."""
    sizes: list[tuple[int, ...]] = []

    def noted(self: Any, x: Tensor, only: int = 0) -> Tensor:
        if not torch.compiler.is_exporting():
            sizes.append(tuple(x.shape))
        if only and x.shape[2] != only:
            raise ValueError("made for another size")
        return self.conv(x)

    def sizes_of(model: nn.Module, *, looked: bool) -> list[tuple[int, ...]]:
        sizes.clear()
        with monkeypatch.context() as patch:
            if not looked:
                patch.setattr("torchdelta.api.check_stateless", lambda fresh, frame, alone: None)
            torchdelta.compile(model.eval(), torch.rand(1, 3, 256, 512), input_range=(0, 1))
        return sizes[:]

    for only, extra in (
        (0, [(1, 3, 64, 128)] * 3),
        (256, [(1, 3, 64, 128), *[(1, 3, 256, 512)] * 2]),
    ):
        call = functools.partial(noted, only=only)
        plain = sizes_of(Net(call), looked=False)
        looked = sizes_of(Net(call), looked=True)
        assert sorted(looked) == sorted(plain + extra)


def test_looking_for_state_takes_two_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    with_check = count_runs(Net(lambda self, x: x))
    monkeypatch.setattr("torchdelta.api.check_stateless", lambda fresh, frame, alone: None)
    assert with_check - count_runs(Net(lambda self, x: x)) == 2


def noisy(amount: float) -> Callable[[], nn.Module]:
    """Make models whose results differ from run to run, without state or random numbers."""
    runs = itertools.count()
    noise = [1.0 + amount * k for k in range(8)]

    def fresh() -> nn.Module:
        return Net(lambda self, x: self.conv(x) * noise[next(self.runs) % 8], runs=RUNS)

    class Runs:
        def __next__(self) -> int:
            return next(runs)

    RUNS = Runs()
    return fresh


def test_rounding_is_no_state() -> None:
    """A model whose results differ in their last bits is not accused; a note says so."""
    fresh = noisy(1e-6)
    with torch.no_grad():
        alone = fresh()(FRAME)
    note = check_stateless(fresh, FRAME, alone)
    assert note is not None
    assert "does not give the same bits twice" in note


def test_state_in_a_model_that_rounds_is_found() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        before = x if self.before is None else self.before
        self.before = x
        return self.conv(x - 0.5 * before) * (1 + 1e-7 * (time.perf_counter_ns() % 7))

    assert "It is kept in" in refusal(Net(forward, before=None))


def test_a_model_without_a_fixed_result_is_refused_in_other_words(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(purity, "_changed_by", lambda model, frame: {})
    fresh = noisy(0.1)
    with torch.no_grad():
        alone = fresh()(FRAME)
    with pytest.raises(CaptureError, match="does not give the same result twice"):
        check_stateless(fresh, FRAME, alone)


def test_random_numbers_are_named_as_such() -> None:
    message = refusal(Net(lambda self, x: self.conv(x + torch.rand_like(x))))
    assert "random numbers" in message
    assert "keeps state" not in message


@pytest.mark.parametrize("draw", [random.random, np.random.rand], ids=["python", "numpy"])
def test_random_numbers_from_outside_torch_are_named_as_such(draw: Callable[[], float]) -> None:
    message = refusal(Net(lambda self, x: self.conv(x) * draw()))
    assert "random numbers from Python's `random` or from NumPy" in message


def test_a_generator_of_the_models_own_is_named() -> None:
    def forward(self: Net, x: Tensor) -> Tensor:
        return self.conv(x) * torch.rand(1, generator=self.dice)

    assert "It is kept in `dice`" in refusal(Net(forward, dice=torch.Generator()))


def test_a_model_that_cannot_be_copied_says_so() -> None:
    class Locked(Net):
        def __deepcopy__(self, memo: Any) -> Any:
            raise TypeError("locked")

    assert "cannot be copied (TypeError: locked)" in refusal(Locked(lambda self, x: self.conv(x)))
