"""Op cases and histories for the tests of the cpu engine."""

from collections.abc import Sequence

import torch
from torch import Tensor

from cases import OP_CASES
from support import ENGINE_CASES, ISA_CASES, computes_in, move, same_bits

BEST = next(case for case in ENGINE_CASES if case.startswith("cpu-"))
CPU_CASES = [BEST, *ISA_CASES]
# the best and the narrowest: those between have the same float32 kernels as the best
FEW_CASES = [BEST, *ISA_CASES[-1:]]
CPU = torch.device("cpu")
# the instruction set that has it
BF16_CASES = [(case, torch.bfloat16) for case in CPU_CASES if computes_in(case, torch.bfloat16)]
NATIVE_CASES = [case for case, (op, _, _) in OP_CASES.items() if op != "dense"]
KINDS = ("first", "pixel", "patch", "same", "stripes", "all", "corner", "patch")


def history(shape: Sequence[int], seed: int, kinds: Sequence[str] = KINDS) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(1, *shape, generator=generator)
    frames = []
    for kind in kinds:
        x = move(x, kind, generator)
        frames.append(x)
    return frames


def assert_same(a: Sequence[Tensor], b: Sequence[Tensor]) -> None:
    assert all(bool(same_bits(x, y).all()) for x, y in zip(a, b, strict=True))


# of every size and sign, at the edges of ranges and beyond them; no number below float32's smallest
# normal one, which PyTorch may take for 0
NUMBERS = torch.tensor([
    *(s * x for s in (1, -1) for x in (
        0.0, 1.2e-38, 1e-20, 1e-7, 1e-4, 0.01, 0.1, 0.25, 0.3, 0.49999, 0.5, 0.7, 0.95, 1.0, 1.0001,
        1.4142, 1.5, 2.0, 2.5, 2.718, 3.0, 3.5, 5.0, 6.0, 7.3, 10.0, 20.0, 20.5, 30.0, 87.0, 88.5,
        89.5, 103.0, 105.0, 1000.25, 8388607.5, 1e10, 3e38, float("inf"),
    )), float("nan"),
])  # fmt: skip
