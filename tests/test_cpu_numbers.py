"""The cpu engine number by number: layouts, the input gate, functions, masks, groups."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import torchdelta
from cases import FUNCTIONS
from cpu_cases import BEST, BF16_CASES, CPU_CASES, FEW_CASES, NUMBERS, assert_same, history
from support import (
    ENGINE_CASES,
    ENGINE_NAMES,
    ISA_CASES,
    around_threshold,
    assert_active,
    compiled,
    copies,
    each,
    gate_profile,
    new_session,
    same_bits,
    snapshot,
    threads,
)
from torchdelta.engines.cpu import CpuEngine
from torchdelta.ops import Pointwise
from torchdelta.runtime.inspect import frame_state

if "cpu" not in ENGINE_NAMES:
    # test_every_engine_is_tested says whether that may be
    pytest.skip(CpuEngine.usable()[1], allow_module_level=True)


@cache
def one_conv(
    shape: tuple[int, int, int], *, input_range: tuple[int, int] = (0, 1), **expected: object
) -> torchdelta.CompiledModel:
    torch.manual_seed(0)
    model = nn.Conv2d(shape[0], 2, 1).eval()
    return torchdelta.compile(model, torch.rand(1, *shape), input_range=input_range, **expected)


@pytest.mark.parametrize("engine", CPU_CASES)
@pytest.mark.parametrize(
    ("shape", "color"),
    [((3, 63, 130), "rgb"), ((1, 7, 63), "rgb"), ((4, 13, 1), "rgb"), ((3, 1, 7), "bgr"),
     ((3, 9, 64), "bgr"), ((4, 9, 17), "bgr")],
)  # fmt: skip
def test_layouts_of_a_frame_give_the_same_state(
    engine: str, shape: tuple[int, int, int], color: str
) -> None:
    """uint8 [H, W, C], a cut-out of a larger picture, [C, H, W], float in any order."""
    c, h, w = shape
    # a range of 0..255 leaves uint8 and float the same numbers
    fast = one_conv(shape, input_range=(0, 255), color=color)
    picture = np.random.default_rng(1).integers(0, 256, (2, h + 3, w + 5, c), dtype=np.uint8)
    first, second = picture[:, 1 : h + 1, 2 : w + 2]
    packed = torch.from_numpy(second.copy())
    layouts: list[object] = [
        np.ascontiguousarray(second), second, packed.permute(2, 0, 1),
        packed.permute(2, 0, 1).contiguous(), packed.permute(2, 0, 1).float(),
        packed.permute(2, 0, 1).float().contiguous(), packed.numpy().astype(np.float32),
    ]  # fmt: skip
    states = []
    for frame in layouts:
        session = new_session(fast, engine, 0.0)
        session.step({"s": first})
        session.step({"s": frame})
        states.append(snapshot(session))
    expected = second[:, :, [2, 1, 0, 3][:c]] if color == "bgr" else second
    published = states[0][fast.plan.values[fast.plan.input].buffer][0]
    assert torch.equal(published, torch.from_numpy(expected.astype(np.float32)))
    for state in states[1:]:
        assert_same(states[0], state)


@pytest.mark.parametrize("engine", CPU_CASES)
@pytest.mark.parametrize("size", [(1, 1), (7, 63), (13, 64), (9, 130), (63, 1), (2, 65)])
@pytest.mark.parametrize("channels", [1, 3, 5])
@pytest.mark.parametrize("grain", [1, 2, 5, 16])
def test_input_gate_is_the_torch_engines(
    engine: str, size: tuple[int, int], channels: int, grain: int
) -> None:
    """On changes that are far from the threshold both publish the same pixels."""
    h, w = size
    fast = one_conv((channels, h, w), mean=(0.4,) * channels, std=(0.2,) * channels)
    sessions = [new_session(fast, case, 0.04, grain=grain) for case in ("torch", engine)]
    generator = torch.Generator().manual_seed(2)
    x = 0.2 + 0.2 * torch.rand(1, channels, h, w, generator=generator)
    # 62 and 65: the gate's box reaches to the end of a mask's word, its dilation beyond
    columns = sorted({0, w // 2, min(62, w - 1), min(65, w - 1), w - 1})
    pixels = [((0, h - 1, h // 2, h // 3)[n % 4], column) for n, column in enumerate(columns)]
    for y0, x0 in pixels:
        x = x + 1e-4
        x[0, :, y0, x0] += 0.5 * (1 if x[0, 0, y0, x0] < 0.5 else -1)
        results = [session.step({"s": x})["s"] for session in sessions]
        assert torch.equal(results[0].changed, results[1].changed), (y0, x0)
        with threads(3):
            again = sessions[1].step({"s": x})["s"]
        assert not again.changed.any()


# with the arguments of a step that the exporter does not make today
MORE_FUNCTIONS = {"hardshrink": F.hardshrink, "softshrink": F.softshrink}
# functions whose result hangs on more digits of a large number than float32 has: up to which one
NARROW = {"sin": 1e4, "cos": 1e4, "tan": 1e4}


class OfEachNumber(nn.Module):
    """Elementwise functions of the same numbers, side by side; the frame is 0."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("numbers", NUMBERS[None, None])

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.numbers
        # the last ones are replaced in the plan
        functions = [f for f, _, _ in FUNCTIONS.values()] + [torch.abs] * len(MORE_FUNCTIONS)
        return torch.cat([f(x) for f in functions], 1)


@cache
def of_each_number() -> torchdelta.CompiledModel:
    zeros = torch.zeros(1, 1, 1, len(NUMBERS))
    fast = torchdelta.compile(OfEachNumber().eval(), zeros, input_range=(0, 1))
    steps = list(fast.plan.steps)
    for k, name in enumerate(MORE_FUNCTIONS, len(steps) - len(MORE_FUNCTIONS)):
        steps[k] = replace(steps[k], op=Pointwise(name, (0.3,)))
    fast.plan = replace(fast.plan, steps=tuple(steps))
    return fast


@pytest.mark.parametrize("engine", CPU_CASES)
def test_functions_number_by_number(engine: str) -> None:
    fast = of_each_number()
    session = new_session(fast, engine, 0.0)
    found = session.step({"s": torch.zeros(1, 1, 1, len(NUMBERS))})["s"].output[0, :, 0]
    functions = {name: f for name, (f, _, _) in FUNCTIONS.items()}
    functions |= {name: lambda x, f=f: f(x, 0.3) for name, f in MORE_FUNCTIONS.items()}
    wrong = []
    for (name, f), mine in zip(functions.items(), found, strict=True):
        expected = f(NUMBERS.double()).float()
        # ours, and what PyTorch's float32 gives
        near = (mine - expected).abs() <= 4e-6 * expected.abs() + 1e-7
        good = near | same_bits(mine, expected) | same_bits(mine, f(NUMBERS))
        good |= NUMBERS.abs() > NARROW.get(name, float("inf"))
        wrong += [
            (name, x.item(), got.item(), want.item())
            for x, got, want in zip(NUMBERS[~good], mine[~good], expected[~good], strict=True)
        ]
    assert not wrong


class TwoScales(nn.Module):
    """A map as large as the frame, and one of a quarter."""

    def __init__(self) -> None:
        super().__init__()
        self.fine, self.coarse = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 5, 2, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        fine = self.fine(x)
        return fine, self.coarse(fine)


@pytest.mark.parametrize("engine", FEW_CASES)
def test_masks_of_several_outputs_are_the_torch_engines(engine: str) -> None:
    """Masks wider and narrower than a word, read after the next frame, of two slots."""
    fast = torchdelta.compile(TwoScales().eval(), torch.rand(1, 3, 10, 140), input_range=(0, 1))
    mine, theirs = (new_session(fast, name, 0.0, slots=2) for name in (engine, "torch"))
    found: list[list[Tensor]] = [[], []]
    for x in history((3, 10, 140), 5):
        for session, masks in zip((mine, theirs), found, strict=True):
            results = session.step({"a": x, "b": x.flip(3)}).values()
            masks += [m for r in results for m in (r.changed, *r.output_changed)]
    assert all(map(torch.equal, *found))
    assert any(bool(m.any()) and not bool(m.all()) for m in found[0][2::3])


@pytest.mark.parametrize("case", each(["maxpool-3-s2-p1", "conv-3x3-s2"]))
def test_masks_of_very_wide_maps(case: str) -> None:
    """A stride of 2 is taken in pieces of 4096 outputs: changes at the end of the first."""
    fast, model = compiled(case, (2, 8300))
    session = new_session(fast, BEST, 0.0)
    x = torch.rand(1, *fast.plan.shape, generator=torch.Generator().manual_seed(1))
    session.step({"s": x})
    for column in (4095, 8189, 8190, 8191, 8192, 8193, 8299):
        x = x.clone()
        x[..., column] = 1 - x[..., column]
        before = snapshot(session)
        result = session.step({"s": x}, record=True)["s"]
        assert_active(session, before, result, 0)
        with torch.no_grad():
            assert torchdelta.relative_error(result.output, model(x)) < 1e-5


@pytest.mark.parametrize("norm", ["rms", "max"])
@pytest.mark.parametrize(
    ("engine", "dtype"),
    [*((engine, torch.float32) for engine in (*ENGINE_CASES, *ISA_CASES)), *BF16_CASES],
)
@pytest.mark.parametrize("channels", [1, 5, 16, 63, 64, 65, 130])
def test_a_group_is_published_from_its_threshold_on(
    engine: str, dtype: torch.dtype, channels: int, norm: str
) -> None:
    """Every group of a value moves by a little less than the threshold, then by more."""
    fast, scale = copies(channels)
    x = torch.rand(1, 1, 5, 9, generator=torch.Generator().manual_seed(1))
    value = fast.plan.steps[0].output
    session = new_session(fast, engine, 0.1, profile=gate_profile(fast, norm), dtype=dtype)
    session.step({"s": x})
    assert frame_state(session).thresholds[0, value] == pytest.approx(0.1)
    before = frame_state(session).view(value, 0).clone()
    for g, y, moves in around_threshold(x, scale, norm, dtype):
        session.stream("s").reset()
        session.step({"s": x})
        session.step({"s": y})
        after = frame_state(session).view(value, 0)
        moved = after != before
        # one group of one pixel
        assert bool(moved[2, 3, 64 * g]) == moves
        moved[2, 3] = False
        assert not moved.any()
