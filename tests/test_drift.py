"""P2 over long runs: on a looped clip the error shows no trend."""

import pytest
import torch
from torch import nn

import torchdelta
from support import ENGINE_CASES, LONG, computes_in, move, new_session

# `make test-long` runs ten times as many
FRAMES, LOOP = 100_000 if LONG else 10_000, 50


@pytest.mark.parametrize(
    ("engine", "dtype"),
    [
        pytest.param(case, dtype, id=f"{case}-{name}")
        for case in ENGINE_CASES
        for name, dtype in {"fp32": torch.float32, "bf16": torch.bfloat16}.items()
        if computes_in(case, dtype)
    ],
)
def test_ten_thousand_frames(engine: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3, 2, 1), nn.ReLU(), nn.Conv2d(6, 6, 3, 1, 1), nn.SiLU(),
        nn.Conv2d(6, 2, 1),
    ).eval()  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    clip = [torch.rand(1, 3, 16, 20, generator=generator)]
    while len(clip) < LOOP:
        clip.append(move(clip[-1], "noise" if len(clip) % 3 else "patch", generator))
    fast = torchdelta.compile(model, clip[0], input_range=(0, 1))
    session = new_session(fast, engine, 0.1, dtype=dtype)
    frames = FRAMES if dtype == torch.float32 else FRAMES // 5
    with torch.no_grad():
        dense = [model(x) for x in clip]
    means = []
    worst = 0.0
    for loop in range(frames // LOOP):
        errors = []
        for x, expected in zip(clip, dense, strict=True):
            out = session.step({"s": x})["s"].output
            if loop % 10 == 0 or loop == frames // LOOP - 1:
                errors.append(torchdelta.relative_error(out, expected))
        if errors:
            means.append(sum(errors) / len(errors))
            worst = max(worst, max(errors))
            assert session.stream("s").audit().ok
    # the first loop starts from an exact frame; from then on every loop is like the last
    settled = means[1:]
    assert 1e-4 < max(settled) < 0.2
    assert max(settled) - min(settled) <= 0.02 * max(settled)
    assert worst < 0.5
