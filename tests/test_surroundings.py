"""What surrounds a call gets into nothing: autocast, default dtype and device, modes, gradients."""

from __future__ import annotations

import ast
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import torchdelta
from support import ENGINE_CASES, new_session, same_bits
from torchdelta import EngineError, StreamError
from torchdelta.apart import apart, default_float32
from torchdelta.report import heat_map
from torchdelta.runtime.background import in_background
from torchdelta.runtime.inspect import frame_state, states

SIZE = (24, 32)


class Functions(TorchFunctionMode):
    """Spoils every function that is called."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"the caller's mode saw {func}")


class Dispatched(TorchDispatchMode):
    """Spoils every operation that is dispatched."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"the caller's mode saw {func}")


def setting(read: Callable[[], Any], write: Callable[[Any], None], value: Any) -> Any:
    @contextmanager
    def changed() -> Iterator[None]:
        before = read()
        write(value)
        try:
            yield
        finally:
            write(before)

    return changed


def default_dtype(dtype: torch.dtype) -> Any:
    return setting(torch.get_default_dtype, torch.set_default_dtype, dtype)


@contextmanager
def everything() -> Iterator[None]:
    with ExitStack() as stack:
        for name in ("autocast", "float64", "inference", "set-device", "functions", "dispatch"):
            stack.enter_context(MODES[name]())
        yield


MODES: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "autocast-cuda": setting(
        lambda: torch.is_autocast_enabled("cuda"),
        lambda on: torch.set_autocast_enabled("cuda", on), True,
    ),
    "float64": default_dtype(torch.float64),
    "bfloat16": default_dtype(torch.bfloat16),
    "inference": torch.inference_mode,
    "grad": torch.enable_grad,
    "no-grad": torch.no_grad,
    "device": lambda: torch.device("meta"),
    "set-device": setting(lambda: None, torch.set_default_device, "meta"),
    "functions": Functions,
    "dispatch": Dispatched,
    "fake": FakeTensorMode,
    "deterministic": setting(
        torch.are_deterministic_algorithms_enabled, torch.use_deterministic_algorithms, True
    ),
    "anomaly": lambda: torch.autograd.set_detect_anomaly(True),
    "everything": everything,
}  # fmt: skip


def settings() -> tuple[Any, ...]:
    """Give what is in force."""
    return (
        *(torch.is_autocast_enabled(device) for device in ("cpu", "cuda")),
        torch.get_autocast_dtype("cpu"),
        torch.get_default_dtype(),
        torch.is_inference_mode_enabled(), torch.is_grad_enabled(),
        torch.overrides._get_current_function_mode_stack(),
        torch.utils._python_dispatch._get_current_dispatch_mode_stack(),
        torch.are_deterministic_algorithms_enabled(),
    )  # fmt: skip


class Net(nn.Module):
    """Convolutions that autocast would round, whole numbers, and what has no sparse form."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.SiLU())
        self.head = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        y = self.head(self.stem(x))
        best = y.argmax(1, keepdim=True)
        share = torch.where(best > 3, 0.37, 1.1) + best / 3
        return y, torch.bmm(y.flatten(2), y.flatten(2).transpose(1, 2)), share, torch.ones(3) / 3


def model() -> nn.Module:
    torch.manual_seed(0)
    return Net().eval()


def compile_net() -> torchdelta.CompiledModel:
    return torchdelta.compile(model(), FRAMES[0], engine="torch", input_range=(0, 1))


GENERATOR = torch.Generator().manual_seed(0)
FRAMES = [
    torch.randint(0, 256, (1, 3, *SIZE), dtype=torch.uint8, generator=GENERATOR) for _ in range(4)
]
# float frames are compared, scaled and warned about
FLOATS = [frame / 255 for frame in FRAMES]


@pytest.fixture(scope="module")
def fast() -> torchdelta.CompiledModel:
    return compile_net()


def same(a: Any, b: Any) -> None:
    """Whether two results are the same, to the bit and the dtype."""
    if isinstance(a, (tuple, list)):
        for one, other in zip(a, b, strict=True):
            same(one, other)
    elif isinstance(a, Mapping):
        assert a.keys() == b.keys()
        same(list(a.values()), list(b.values()))
    elif isinstance(a, Tensor):
        assert type(a) is type(b) is Tensor
        assert (a.dtype, a.shape, a.device) == (b.dtype, b.shape, b.device)
        assert bool(same_bits(a, b).all())
    elif isinstance(a, np.ndarray):
        assert np.array_equal(a, b)
    else:
        assert a == b


def same_state(a: Any, b: Any) -> None:
    for one, other in zip(states(a), states(b), strict=True):
        same(one.buffers, other.buffers)
        assert np.array_equal(one.thresholds, other.thresholds)


@contextmanager
def under(mode: str) -> Iterator[None]:
    """Run under a mode, and see that it is in force afterwards as it was before."""
    with MODES[mode]():
        before = settings()
        try:
            yield
        finally:
            assert settings() == before


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("engine", ENGINE_CASES)
def test_a_step_under_a_mode_leaves_the_state_of_one_without(
    fast: torchdelta.CompiledModel, engine: str, mode: str
) -> None:
    seen, never = (new_session(fast, engine, 0.04, slots=2) for _ in range(2))
    for n, frames in enumerate((FRAMES, FRAMES, FLOATS, FRAMES)):
        given = {"a": frames[n], "b": frames[n].numpy()[0].transpose(1, 2, 0)}
        expected = never.step(given)
        if n in (0, 2):
            with under(mode):
                results = seen.step(given)
        else:
            results = seen.step(given)
        for stream, result in results.items():
            assert result.error is None
            same(result.output, expected[stream].output)
            same(result.changed, expected[stream].changed)
        same_state(seen, never)
    with under(mode):
        assert seen.stream("a").audit().ok
        published, stats = seen.stream("a").published(), seen.stream("a").stats
        seen.stream("b").reset()
        seen.refresh()
    same(published, never.stream("a").published())
    assert stats.frames == 4


@pytest.mark.parametrize("mode", MODES)
def test_results_read_under_a_mode_are_ordinary(fast: torchdelta.CompiledModel, mode: str) -> None:
    frame = FRAMES[1]

    def read() -> tuple[Any, ...]:
        session = fast.session(slots=2)
        session.step({"a": FRAMES[0], "b": FRAMES[0]})
        result = session.step({"a": frame, "b": frame}, record=True)["a"]
        heat = heat_map(result.plan, result.active, SIZE)
        maps = result.to_frame_map(result.output[0])
        return result.output, result.output_changed, result.active, heat, maps

    expected = read()
    with under(mode):
        found = read()
    same(found, expected)
    for leaf in (*found[0], found[4]):
        assert not leaf.is_inference()
        assert not leaf.requires_grad
        # no error: it is the caller's own
        leaf.add_(1)


@pytest.mark.parametrize("mode", MODES)
def test_calls_and_the_dense_model_do_not_see_a_mode(
    fast: torchdelta.CompiledModel, mode: str
) -> None:
    frame = FRAMES[2][0]

    def run() -> tuple[Any, ...]:
        outputs = [fast(frame) for frame in (FRAMES[0], FRAMES[1])]
        x = fast.preprocess(frame)
        dense = fast.dense(x)
        return *outputs, x, dense, torchdelta.relative_error(dense, outputs[0]), fast.explain()

    fast(torch.cat([FRAMES[0]] * 2))
    expected = run()
    # with another number of rows calls begin anew
    fast(torch.cat([FRAMES[0]] * 2))
    with under(mode):
        found = run()
    same(found, expected)
    assert not any(leaf.is_inference() or leaf.requires_grad for leaf in found[3])


@pytest.mark.parametrize("mode", MODES)
def test_compiling_under_a_mode_makes_the_same_plan(
    fast: torchdelta.CompiledModel, mode: str
) -> None:
    network, example = model(), FRAMES[0]
    small = torch.zeros(3, 9, 11, dtype=torch.uint8)
    with under(mode):
        other = torchdelta.compile(network, example, engine="torch", input_range=(0, 1))
        if mode == "everything":
            # a size is captured like the first one
            other.session(size=(9, 11))
    if mode == "everything":
        found, expected = (net.session(size=(9, 11)).step({"a": small}) for net in (other, fast))
        same(found["a"].output, expected["a"].output)
    assert other.explain() == fast.explain()
    assert {w.dtype for s in other.plan.steps for w in s.weights.values()} <= {torch.float32}
    ours, theirs = other.session(), fast.session()
    for frame in FRAMES:
        same(ours.step({"a": frame})["a"].output, theirs.step({"a": frame})["a"].output)
    same_state(ours, theirs)
    # the weights are ordinary too: in-place operations work on them
    assert not any(w.is_inference() for s in other.plan.steps for w in s.weights.values())


@pytest.mark.parametrize("mode", ["autocast", "float64", "inference", "everything"])
@pytest.mark.parametrize("motion", ["given", "features", "auto"])
def test_moving_cameras_do_not_see_a_mode(
    fast: torchdelta.CompiledModel, motion: Any, mode: str
) -> None:
    rng = np.random.default_rng(0)
    world = rng.integers(0, 256, (8, 12, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    seen, never = (fast.session(motion=motion) for _ in range(2))
    for n in range(4):
        frame = np.ascontiguousarray(world[n : n + SIZE[0], 2 * n : 2 * n + SIZE[1]])
        shift = np.array([[1, 0, 2.25], [0, 1, 1], [0, 0, 1]])
        given = {"homographies": {"a": shift}} if motion == "given" and n else {}
        expected = never.step({"a": frame}, **given)["a"]
        if n % 2:
            result = seen.step({"a": frame}, **given)["a"]
        else:
            with under(mode):
                result = seen.step({"a": frame}, **given)["a"]
        same(result.output, expected.output)
        same(result.to_frame_map(result.output[0]), expected.to_frame_map(expected.output[0]))
    same_state(seen, never)


@pytest.mark.parametrize("mode", MODES)
def test_an_error_leaves_a_mode_in_force(fast: torchdelta.CompiledModel, mode: str) -> None:
    session = fast.session()
    with under(mode), pytest.raises(StreamError):
        session.stream("nobody").leave()


def test_what_a_thread_runs_in_the_background_sees_no_gradients() -> None:
    assert torch.is_grad_enabled()
    assert in_background(torch.is_grad_enabled, "test").result(60) is False


def test_transforms_and_traces_are_refused(fast: torchdelta.CompiledModel) -> None:
    session = fast.session()
    session.step({"a": FRAMES[0]})
    before = [buffer.clone() for buffer in frame_state(session).buffers]

    def call(x: Tensor) -> Any:
        return session.step({"a": x})["a"].output[0]

    float_frame = FLOATS[1][0]
    for transformed in (
        lambda: torch.vmap(call)(FLOATS[1]),
        lambda: torch.func.grad(lambda x: call(x).sum())(float_frame),
        lambda: torch.func.jvp(call, (float_frame,), (float_frame,)),
        lambda: torch.vmap(fast)(torch.stack(FLOATS)),
    ):
        with pytest.raises(EngineError, match=r"inside torch\.vmap, torch\.func\.grad"):
            transformed()
    with pytest.raises(EngineError, match=r"recorded by torch\.jit\.trace"):
        torch.jit.trace(call, float_frame, check_trace=False)
    same(frame_state(session).buffers, before)
    assert session.stream("a").stats.frames == 1


def test_the_default_dtype_comes_back_when_the_last_thread_is_done() -> None:
    entered, may_end = threading.Event(), threading.Event()

    def other() -> None:
        with default_float32():
            entered.set()
            assert may_end.wait(60)

    with MODES["float64"]():
        with default_float32():
            thread = threading.Thread(target=other)
            thread.start()
            assert entered.wait(60)
            assert torch.get_default_dtype() == torch.float32
        # the other one is not done
        assert torch.get_default_dtype() == torch.float32
        may_end.set()
        thread.join()
        assert torch.get_default_dtype() == torch.float64


def test_a_frame_leaves_the_default_dtype_to_the_process(
    fast: torchdelta.CompiledModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other threads may be making tensors of theirs."""
    networks = [fast, torchdelta.compile(nn.Conv2d(3, 4, 3).eval(), FRAMES[0], engine="torch")]
    changed = []
    with MODES["float64"]():
        monkeypatch.setattr(torch, "set_default_dtype", changed.append)
        sessions = [network.session() for network in networks]
        for session in sessions:
            session.step({"a": FRAMES[0]})
        # whole numbers become floating point in what the default says: that step needs it
        assert bool(changed)
        changed.clear()
        sessions[1].step({"a": FRAMES[1]})
        assert not changed


def test_apart_gives_what_it_wraps() -> None:
    @apart
    def named(a: int, *, b: int = 2) -> int:
        """Add."""
        return a + b

    assert (named.__name__, named.__doc__, named(1, b=4)) == ("named", "Add.", 5)


MAKERS = "zeros ones empty full tensor linspace logspace eye rand randn scalar_tensor".split()
RUNNING = ("engines", "motion", "ops", "report", "runtime")


def test_what_runs_with_a_frame_says_the_dtype_of_what_it_makes() -> None:
    """The default dtype is the process's, and a frame must not depend on it."""
    package = Path(torchdelta.__file__).parent
    silent = []
    for path in sorted(p for folder in RUNNING for p in (package / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if (
                isinstance(node, ast.Call)
                and ast.unparse(node.func) in {f"torch.{name}" for name in MAKERS}
                and not {"dtype", None} & {keyword.arg for keyword in node.keywords}
            ):
                silent.append(f"{path.relative_to(package)}:{node.lineno}")
    assert not silent
