"""Histories of streams for the tests of the triton engine, interpreted or on a GPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

import torchdelta
from chain_nets import SHAPE
from support import move, new_session, same_bits
from torchdelta.runtime.inspect import buffers_of
from torchdelta.runtime.session import Session


def history(kinds: Sequence[str], seed: int, shape: Sequence[int] = SHAPE) -> list[Tensor]:
    """Make a first frame and one more of each kind."""
    generator = torch.Generator().manual_seed(seed)
    frames = [torch.rand(1, *shape, generator=generator)]
    for kind in kinds:
        frames.append(move(frames[-1], kind, generator))
    return frames


def dense(model: nn.Module, x: Tensor) -> Tensor:
    """Run the model itself."""
    with torch.no_grad():
        return model(x)


# each line: what happens to streams beforehand, then the streams with a frame and how it changes
SCRIPT: list[tuple[dict[str, str], dict[str, str]]] = [
    ({}, {"a": "first"}),
    ({}, {"b": "first", "a": "patch"}),
    ({}, {"c": "first", "b": "same"}),
    ({"a": "leave"}, {"c": "pixel", "b": "patch"}),
    ({"b": "reset"}, {"d": "first", "b": "pixel", "c": "all"}),
    ({"c": "refresh"}, {"c": "same", "d": "stripes"}),
    ({}, {"d": "corner"}),
]


def play(
    fast: torchdelta.CompiledModel,
    tolerance: float,
    check: Callable[[str, torchdelta.Result, Tensor], None],
    *,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
) -> tuple[Session, dict[str, Tensor]]:
    """Run SCRIPT in a session of three slots and each stream alone: bit for bit the same (P4).

    check: is given each stream's name, result and frame
    device: where frames lie
    Returns the session and each stream's last frame.
    """
    together = new_session(fast, "triton", tolerance, slots=3, dtype=dtype)
    alone = {name: new_session(fast, "triton", tolerance, dtype=dtype) for name in "abcd"}
    generator = torch.Generator().manual_seed(7)
    shape = fast.plan.shape
    last = {name: torch.rand(1, *shape, generator=generator) for name in "abcd"}
    for before, frames in SCRIPT:
        for name, call in before.items():
            getattr(together.stream(name), call)()
            getattr(alone[name].stream(name), call)()
        for name, kind in frames.items():
            last[name] = move(last[name], kind, generator).to(dtype).float()
        results = together.step({name: last[name].to(device) for name in frames})
        for name, result in results.items():
            expected = alone[name].step({name: last[name].to(device)})[name]
            assert torch.equal(result.output, expected.output), name
            assert torch.equal(result.changed, expected.changed)
            assert result.report().active_px == expected.report().active_px
            check(name, result, last[name])
    for name in together.streams:
        for x, y in zip(buffers_of(together, name), buffers_of(alone[name], name), strict=True):
            assert same_bits(x, y).all()
    return together, last
