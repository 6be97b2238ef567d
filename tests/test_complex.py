"""Values of complex numbers: both parts are kept, published and compared, on every engine."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import torchdelta
from cases import Fn
from support import ENGINE_CASES, new_session

each_engine = pytest.mark.parametrize("engine", ENGINE_CASES)


@each_engine
@pytest.mark.parametrize(
    ("spectrum", "channels"),
    [
        (lambda y: torch.complex(y, y * 2), 4),
        (lambda y: torch.complex(y, y.square()).conj(), 40),
        (torch.fft.rfft2, 4),
    ],
    ids=["complex", "conjugate", "rfft2"],
)
def test_outputs_have_both_parts(
    engine: str, spectrum: Callable[[Tensor], Tensor], channels: int
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, channels, 3, padding=1), Fn(spectrum)).eval()
    frame = torch.rand(1, 3, 9, 11)
    fast = torchdelta.compile(model, frame, tolerance=0, input_range=(0, 1))
    session = new_session(fast, engine, 0.0)
    session.step({"s": 1 - frame})
    output = session.step({"s": frame})["s"].output
    with torch.no_grad():
        expected = model(frame)
    assert output.dtype == torch.complex64
    assert torchdelta.relative_error(output, expected) < 1e-5


class Imaginary(nn.Module):
    """A part of its complex value never changes, the other one carries everything."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        return self.last(torch.complex(torch.ones_like(y), y).imag)


@each_engine
def test_a_tolerance_does_not_hold_an_imaginary_part_back(engine: str) -> None:
    torch.manual_seed(0)
    model, frame = Imaginary().eval(), torch.rand(1, 3, 9, 11)
    fast = torchdelta.compile(model, frame, tolerance=0.04, input_range=(0, 1))
    session = new_session(fast, engine, 0.04)
    session.step({"s": 1 - frame})
    output = session.step({"s": frame})["s"].output
    with torch.no_grad():
        before, expected = model(1 - frame), model(frame)
    assert torchdelta.relative_error(before, expected) > 0.3
    assert torchdelta.relative_error(output, expected) < 0.1
    assert session.stream("s").audit().ok
