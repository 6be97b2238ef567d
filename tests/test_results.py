"""What comes back: results of refused frames, errors that come late, pickling."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import torchdelta
from support import ENGINE_CASES, new_session
from torchdelta import FrameError, StreamError
from torchdelta.engines.base import Done, FrameCall
from torchdelta.engines.torch_engine import TorchEngine
from torchdelta.runtime.session import Session
from torchdelta.state import State

pytestmark = pytest.mark.check

SIZE = (12, 16)
GENERATOR = torch.Generator().manual_seed(0)
FRAMES = [
    torch.randint(0, 256, (3, *SIZE), dtype=torch.uint8, generator=GENERATOR) for _ in range(4)
]
FRAMES[1][:, 4:] = FRAMES[0][:, 4:]


class Net(nn.Module):
    """Gives a dictionary: a map, a vector, and a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, x: Tensor) -> dict[str, Any]:
        y = self.conv(x).relu()
        return {"map": y, "best": y.argmax(1), "scores": (y.mean((2, 3)), "name")}


@pytest.fixture(scope="module")
def fast() -> torchdelta.CompiledModel:
    torch.manual_seed(0)
    return torchdelta.compile(Net().eval(), FRAMES[0][None], engine="torch", input_range=(0, 1))


def same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (tuple, list)):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


@pytest.mark.parametrize("opened", [{}, {"motion": "given"}, {"views": True}], ids=str)
def test_a_refused_frames_result_has_nothing_but_its_error(
    fast: torchdelta.CompiledModel, opened: dict[str, Any]
) -> None:
    session = fast.session(**opened)
    for frame in (FRAMES[0], FRAMES[1]):
        # before the stream is in, and after
        result = session.step({"a": FRAMES[0][:, 1:]}, record=True)["a"]
        assert not result.ok
        assert isinstance(result.error, FrameError)
        for name in ("output", "changed", "output_changed", "active", "aligned", "stats", "plan",
                     "counted"):  # fmt: skip
            assert getattr(result, name) is None, name
        assert result.stream == "a"
        assert "11x16" in repr(result)
        for call in (result.unwrap, lambda r=result: r.to_frame_points([[0, 0]]), result.report):
            with pytest.raises(FrameError, match="frame is 11x16"):
                call()
        taken = session.step({"a": frame})["a"]
        assert taken.ok
        assert same(taken.unwrap(), taken.output)


class LateEngine(TorchEngine):
    """Says of the second slot's first frame that it is refused after all, as devices do."""

    bad: str | None = "frame has NaN or infinite values"

    def step(self, state: State, call: FrameCall) -> Done:
        reports = super().step(state, call)
        if 1 in call.frames:
            reports.get(1).error, self.bad = self.bad, None
        return reports


def test_statistics_count_errors_that_come_late(fast: torchdelta.CompiledModel) -> None:
    engine = LateEngine(fast.plan, fast.device, fast.dtype)
    session = Session(engine, 2, 0.0, torchdelta.Profile())
    assert (session.stats.late_errors, session.stats.late_error) == (0, None)
    results = session.step({"a": FRAMES[0], "b": FRAMES[0]})
    said = "stream 'b': frame 0: frame has NaN or infinite values"
    # this engine knows it at once, a device's next result says so
    assert results["a"].ok
    assert str(results["b"].error) == said + "; it was left out"
    for _ in range(2):
        # however often one asks
        for stats in (session.stream("b").stats, session.stats):
            assert (stats.late_errors, stats.late_error) == (1, said)
    assert (session.stream("a").stats.late_errors, session.stream("a").stats.late_error) == (
        0,
        None,
    )
    assert (session.stream("a").stats.frames, session.stream("b").stats.frames) == (1, 0)
    assert session.step({"b": FRAMES[2]})["b"].ok
    assert (session.stream("b").stats.late_errors, session.stream("b").stats.frames) == (1, 1)
    session.stream("b").leave()
    assert session.stats.late_errors == 1
    with pytest.raises(StreamError):
        _ = session.stream("b").stats


def saved(what: Any) -> Any:
    buffer = io.BytesIO()
    torch.save(what, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


COPIES: dict[str, Callable[[Any], Any]] = {
    "pickle": lambda what: pickle.loads(pickle.dumps(what)),
    "deepcopy": copy.deepcopy,
    "copy": copy.copy,
    "save": saved,
}


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("engine", ENGINE_CASES)
def test_results_and_statistics_can_be_copied(
    fast: torchdelta.CompiledModel, engine: str, how: str
) -> None:
    session = new_session(fast, engine, 0.0, slots=2)
    session.step({"a": FRAMES[0]})
    given = {"a": FRAMES[1], "b": FRAMES[0], "c": FRAMES[0][1:]}
    with_active, without = session.step(given, record=True), session.step(given)
    for results in (with_active, without):
        for result in results.values():
            other = COPIES[how](result)
            assert (other.stream, other.ok) == (result.stream, result.ok)
            assert other.origin == ((0, 0) if result.ok else None)
            assert str(other.error) == str(result.error)
            for name in ("output", "changed", "output_changed", "active", "stats"):
                assert same(getattr(other, name), getattr(result, name)), name
            if result.ok:
                assert other.to_frame_points([[1.0, 2.0]], 2).tolist() == [[2.5, 4.5]]
                assert other.plan is other.counted is None
                with pytest.raises(TypeError, match="has left its session's plan behind"):
                    other.report()
            # and once more
            assert same(COPIES[how](other).output, result.output)
    for stats in (session.stream("a").stats, session.stats):
        other = COPIES[how](stats)
        assert other == stats
        assert other.per_step() == stats.per_step()
        assert str(other) == str(stats)
        assert COPIES[how](other).per_step() == stats.per_step()
        assert stats.plan is fast.plan


def test_results_of_moving_cameras_and_views_can_be_copied(fast: torchdelta.CompiledModel) -> None:
    session = fast.session(motion="given", views=True)
    session.step({"a": FRAMES[0]})
    shift = np.array([[1, 0, 2], [0, 1, 1], [0, 0, 1.0]])
    result = session.step({"a": FRAMES[1]}, homographies={"a": shift})["a"]
    other = pickle.loads(pickle.dumps(result))
    expected = {k: v.clone() for k, v in result.output.items() if isinstance(v, Tensor)}
    there = result.to_frame_map(result.output["map"])
    # the view's content is another now, the copy's is not
    session.step({"a": FRAMES[2]})
    assert all(torch.equal(other.output[k], v) for k, v in expected.items())
    assert torch.equal(other.to_frame_map(other.output["map"]), there)
    assert np.array_equal(other.aligned.pose, result.aligned.pose)


def test_what_is_pickled_is_small(fast: torchdelta.CompiledModel) -> None:
    """Neither the weights nor the state that a view looks at travel with a result."""
    torch.manual_seed(0)
    wide = nn.Sequential(nn.Conv2d(3, 256, 3), nn.Conv2d(256, 256, 3), nn.AdaptiveAvgPool2d(1))
    large = torchdelta.compile(wide.eval(), FRAMES[0][None], engine="torch")
    session = large.session(views=True)
    result = session.step({"a": FRAMES[0]})["a"]
    assert large.session().engine.weight_bytes > 2_000_000
    for what in (result, session.stats):
        assert len(pickle.dumps(what)) < 20_000


@pytest.mark.parametrize("how", COPIES)
def test_what_cannot_be_copied_says_what_to_do(fast: torchdelta.CompiledModel, how: str) -> None:
    for what, instead in (
        (fast, "a CompiledModel cannot be pickled, copied or saved: .*; save the model"),
        (fast.session(), "a Session cannot be pickled, .*its results and statistics can be"),
        (fast.session(motion="given"), "a Session cannot be .*begins with a first frame"),
    ):
        with pytest.raises(TypeError, match=instead):
            COPIES[how](what)
