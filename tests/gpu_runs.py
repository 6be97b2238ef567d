"""Sessions, tolerances and markers for the tests on a GPU."""

import pytest
import torch

import torchdelta
from chain_nets import compiled_chain
from conftest import is_required
from support import ENGINE_CASES, make_engine
from torchdelta.engines import ENGINES
from torchdelta.runtime.session import Session

if not torch.cuda.is_available():
    if is_required("cuda"):
        pytest.fail("TORCHDELTA_REQUIRE=cuda, and PyTorch finds no GPU", pytrace=False)
    pytest.skip("PyTorch finds no GPU", allow_module_level=True)
if "triton" not in ENGINE_CASES and is_required("cuda"):
    pytest.fail(f"TORCHDELTA_REQUIRE=cuda: {ENGINES['triton'].usable()[1]}", pytrace=False)
CUDA = torch.device("cuda")
ENGINES_HERE = [name for name in ("torch", "triton") if name in ENGINE_CASES]
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
needs_triton = pytest.mark.skipif("triton" not in ENGINE_CASES, reason="no Triton")
each_dtype = pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)


def open_session(net: str, *, tolerance: float = 0.0, slots: int = 1, **options: bool) -> Session:
    """Open a session of one of NETS on the GPU."""
    fast, _ = compiled_chain(net)
    engine = make_engine("triton", fast.plan, fast.device, torch.float32)
    return Session(engine, slots, tolerance, torchdelta.Profile(), **options)
