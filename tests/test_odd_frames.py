"""Frames of every kind: each works, or only its own stream is refused, in words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

import torchdelta
from support import ENGINE_CASES, new_session, same_bits, snapshot
from torchdelta import FrameError
from torchdelta.runtime.inspect import slot_of
from torchdelta.runtime.measure import placed_step
from torchdelta.runtime.windows import Window
from torchdelta.videoframe import VideoFrame

SIZE = (12, 16)
RNG = np.random.default_rng(0)
ARRAY = RNG.integers(0, 256, (*SIZE, 3), np.uint8)
TENSOR = torch.from_numpy(ARRAY).permute(2, 0, 1).contiguous()
FLOAT = TENSOR / 255


class Sub(Tensor):
    """A subclass that is a tensor of its own, as torchvision's images are."""


class Spoilt(Tensor):
    """A subclass on which every function fails."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError("functions of the frame's class have no business here")


def fake() -> Tensor:
    with FakeTensorMode() as mode:
        return mode.from_tensor(TENSOR)


def sparse_rows() -> Tensor:
    return FLOAT[0].to_sparse_csr()


# what is the same picture in another dress
FINE: dict[str, Callable[[], Any]] = {
    "array": lambda: ARRAY,
    "tensor": lambda: TENSOR,
    "read-only": lambda: np.frombuffer(ARRAY.tobytes(), np.uint8).reshape(ARRAY.shape),
    "mirrored-twice": lambda: ARRAY[::-1].copy()[::-1],
    "every-second": lambda: ARRAY.repeat(2, 1)[:, ::2],
    "matrix-order": lambda: np.asfortranarray(ARRAY),
    "memmap-like": lambda: ARRAY.view(np.ndarray),
    "subclass": lambda: TENSOR.as_subclass(Sub),
    "spoilt": lambda: TENSOR.clone().as_subclass(Spoilt),
    "parameter": lambda: nn.Parameter(TENSOR, requires_grad=False),
    "batch-of-one": lambda: TENSOR[None],
    "channels-last": lambda: TENSOR[None].contiguous(memory_format=torch.channels_last),
    "expanded": lambda: TENSOR.unsqueeze(-1).expand(-1, -1, -1, 4)[..., 2],
    "gradients": lambda: FLOAT.clone().requires_grad_(),
    "graph": lambda: FLOAT.clone().requires_grad_() * 1,
    "negated": lambda: torch._neg_view(-FLOAT),
    "inference": lambda: inference(),
}  # fmt: skip


def inference() -> Tensor:
    with torch.inference_mode():
        return TENSOR.clone()


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "none": (lambda: None, "frame is a NoneType, .*; the source gave none"),
    "list": (lambda: ARRAY.tolist(), "frame is a list"),
    "picture": (lambda: Image.fromarray(ARRAY), "frame is a Image, expected a numpy array"),
    "sparse": (lambda: TENSOR.to_sparse(), "frame is a tensor of layout sparse_coo; expected a"),
    "sparse-floats": (lambda: FLOAT.to_sparse(), "layout sparse_coo"),
    "sparse-rows": (sparse_rows, "layout sparse_csr"),
    "nested": (lambda: torch.nested.nested_tensor([FLOAT, FLOAT]), "frame is a nested tensor"),
    "jagged": (
        lambda: torch.nested.nested_tensor([FLOAT[0], FLOAT[1]], layout=torch.jagged),
        "frame is a NestedTensor, whose values lie elsewhere",
    ),
    "quantized": (
        lambda: torch.quantize_per_tensor(FLOAT, 0.01, 0, torch.quint8), "a quantized tensor",
    ),
    "meta": (lambda: TENSOR.to("meta"), "frame is on meta, where tensors hold no values"),
    "fake": (fake, "frame is a FakeTensor, whose values lie elsewhere"),
    "objects": (lambda: ARRAY.astype(object), "frame has dtype object, expected uint8"),
    "structured": (lambda: np.zeros(SIZE, "u1,u1,u1"), "frame has dtype .*, expected uint8"),
    "swapped": (lambda: (ARRAY / 255).astype(">f4"), "dtype >f4, whose bytes are the other way"),
    "masked": (lambda: np.ma.masked_array(ARRAY), "frame is a masked array; hand over its data"),
    "float64": (lambda: ARRAY / 255, "frame has dtype float64"),
    "text": (lambda: np.full((*SIZE, 3), "x"), "frame has dtype <U1"),
    "complex": (lambda: FLOAT + 0j, "frame has dtype complex64"),
    "bool": (lambda: TENSOR > 9, "frame has dtype bool"),
    "scalar": (lambda: np.array(1, np.uint8), r"numpy frame has shape \(\)"),
    "empty": (lambda: TENSOR[:, :0], "frame is 0x16"),
    "class": (lambda: Tensor, "frame is a .*TensorMeta"),
}  # fmt: skip


@pytest.fixture(scope="module")
def fast() -> torchdelta.CompiledModel:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU()).eval()
    return torchdelta.compile(net, TENSOR[None], engine="torch", input_range=(0, 1))


@pytest.mark.parametrize("kind", FINE)
@pytest.mark.parametrize("engine", ENGINE_CASES)
def test_the_same_picture_in_another_dress(
    fast: torchdelta.CompiledModel, engine: str, kind: str
) -> None:
    session = new_session(fast, engine, 0.0, slots=2)
    for frame in (TENSOR.flip(2), FINE[kind]()):
        results = session.step({"a": frame, "b": TENSOR})
        assert [result.error for result in results.values()] == [None, None]
    assert torchdelta.relative_error(results["a"].output, results["b"].output) < 1e-6
    assert not results["a"].output.requires_grad


@pytest.mark.parametrize("kind", REFUSED)
@pytest.mark.parametrize("engine", ENGINE_CASES)
def test_only_the_stream_of_an_odd_frame_is_refused(
    fast: torchdelta.CompiledModel, engine: str, kind: str
) -> None:
    make, message = REFUSED[kind]
    session = new_session(fast, engine, 0.0, slots=2)
    other = new_session(fast, engine, 0.0)
    # as a first frame, and where all streams go on
    for frame in (TENSOR, TENSOR.flip(1)):
        odd = make()
        before = snapshot(session)
        results = session.step({"a": odd, "b": frame})
        expected = other.step({"b": frame})["b"]
        with pytest.raises(FrameError, match="stream 'a': .*" + message):
            raise results["a"].error or AssertionError("it was taken")
        assert torch.equal(results["b"].output, expected.output)
        if "a" in session.streams:
            after = snapshot(session)
            slot = slot_of(session, "a")
            assert all(
                same_bits(x[slot], y[slot]).all() for x, y in zip(before, after, strict=True)
            )
        else:
            session.stream("a").join()
            session.step({"a": TENSOR})


@pytest.mark.parametrize("kind", [k for k in REFUSED if k not in ("float64", "text")])
def test_odd_frames_of_moving_cameras_and_of_calls(
    fast: torchdelta.CompiledModel, kind: str
) -> None:
    make, message = REFUSED[kind]
    session = fast.session(2, motion="given")
    for _ in range(2):
        results = session.step({"a": make(), "b": TENSOR})
        assert results["b"].error is None
        with pytest.raises(FrameError, match="stream 'a': .*" + message):
            raise results["a"].error or AssertionError("it was taken")
    odd = make()
    for call in (fast, fast.preprocess):
        with pytest.raises(FrameError):
            call(odd)


@pytest.mark.parametrize("kind", ["sparse", "nested", "meta", "fake", "objects", "text"])
def test_odd_masks_and_motions(fast: torchdelta.CompiledModel, kind: str) -> None:
    odd = {
        "sparse": lambda: torch.eye(12, 16).bool().to_sparse(),
        "nested": lambda: torch.nested.nested_tensor([torch.ones(3), torch.ones(2)]),
        "meta": lambda: torch.ones(SIZE, dtype=torch.bool, device="meta"),
        "fake": fake,
        "objects": lambda: np.full(SIZE, object()),
        "text": lambda: "mask",
    }[kind]()
    still, moving = fast.session(2), fast.session(2, motion="given")
    codec = fast.session(2, motion="codec")
    given = {"a": TENSOR, "b": TENSOR}
    for step in (
        lambda: still.step(given, roi={"a": odd}),
        lambda: placed_step(still, given, {"a": Window((0, 0), odd)}),
        lambda: placed_step(still, given, {"a": odd}),
        lambda: moving.step(given, roi={"a": odd}),
        lambda: moving.step(given, homographies={"a": odd}),
        lambda: codec.step({"a": VideoFrame(given["a"], vectors=odd), "b": TENSOR}),
    ):
        results = step()
        assert isinstance(results["a"].error, FrameError)
        assert results["b"].error is None
        assert results["b"].output is not None
