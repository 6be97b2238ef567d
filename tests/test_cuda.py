"""The torch engine on a GPU: skipped without one, required by TORCHDELTA_REQUIRE=cuda."""

import os

import numpy as np
import pytest
import torch

import torchdelta
from support import move
from test_networks import build
from torchdelta.engines.torch_engine import ieee_float32

if not torch.cuda.is_available():
    if "cuda" in os.environ.get("TORCHDELTA_REQUIRE", "").split(","):
        pytest.fail("TORCHDELTA_REQUIRE=cuda, and PyTorch finds no GPU", pytrace=False)
    pytest.skip("PyTorch finds no GPU", allow_module_level=True)

# relative L2 against dense fp32 without TF32; half precision: each of 20 to 50 layers rounds
LIMITS = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 8e-2}


@pytest.mark.parametrize("dtype", LIMITS, ids=["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("spec", ["torchvision:resnet18", "torchvision:mobilenet_v3_small"])
def test_networks_on_the_gpu_equal_dense(spec: str, dtype: torch.dtype) -> None:
    with ieee_float32(torch.device("cuda")):
        model = build(spec, (65, 97)).cuda()
        generator = torch.Generator().manual_seed(2)
        x = torch.rand(1, 3, 65, 97, generator=generator)
        fast = torchdelta.compile(model, x.cuda(), tolerance=0, input_range=(0, 1), dtype=dtype)
        assert fast.device.type == "cuda"
        last = None
        for kind in ("first", "patch", "patch", "stripes", "patch"):
            x = move(x, kind, generator)
            out = fast(x.cuda())
            assert out.is_cuda
            with torch.no_grad():
                expected = model(x.cuda())
            assert torchdelta.relative_error(out, expected) <= LIMITS[dtype]
            if last is not None:
                assert torchdelta.relative_error(last, expected) > 1e-2
            last = expected


def test_frames_from_the_cpu_are_taken_and_gates_work() -> None:
    model = torch.nn.Conv2d(3, 4, 3, padding=1).eval().cuda()
    fast = torchdelta.compile(model, torch.rand(1, 3, 32, 32), input_range=(0, 1))
    session = fast.session(slots=2)
    frame = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    first = session.step({"a": frame, "b": torch.rand(3, 32, 32, device="cuda")})
    assert first["a"].output.is_cuda
    again = session.step({"a": frame})["a"]
    assert again.stats.changed_input == 0.0
    assert session.audit("a").ok


def test_a_frame_on_the_gpu_is_refused_by_a_session_on_the_cpu() -> None:
    fast = torchdelta.compile(torch.nn.Conv2d(3, 4, 3).eval(), torch.rand(1, 3, 32, 32))
    with pytest.raises(torchdelta.FrameError, match="frame is on cuda"):
        fast(torch.rand(1, 3, 32, 32, device="cuda"))
