"""One launch of a kernel with all its arguments."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any


@dataclass(frozen=True)
class Launch:
    """A kernel with everything it is launched with.

    step:   index of the plan's step it works for; None: the frame's own
    grid:   number of programs; they share out the blocks of a list among them
    args:   the kernel's arguments by name, tensors, numbers and constants
    warps, stages: of a program, and of its software pipeline
    """

    kernel: Any
    grid: int
    args: Mapping[str, Any]
    warps: int = 4
    stages: int = 2
    step: int | None = field(default=None)

    def behind(self) -> Launch:
        """Give the same launch as one that begins when all that it waits for is done.

        A programmatic launch is one behind its predecessor in the stream alone.
        """
        return replace(self, args={**self.args, "PDL": False})

    def __call__(self) -> None:
        """Launch it on the current stream."""
        options: dict[str, Any] = {"num_warps": self.warps, "num_stages": self.stages}
        if self.args.get("PDL"):
            options["launch_pdl"] = True
        self.kernel[(self.grid,)](**self.args, **options)


# a launch, or a call into PyTorch
Work = Launch | Callable[[], None]


def divider(n: int) -> int:
    """Prepare the division of numbers 0 .. 2**31 - 1 by n >= 1 for `kernels.shared.divide`.

    The quotient of x is (2 * x * factor) >> (32 + shift) (Granlund and Montgomery, "Division by
    invariant integers using multiplication", 1994, theorem 4.2). The result holds the factor in its
    low 32 bits and shift + 1 above: more than 32 bits, so that kernels always get an int64.
    """
    shift = (n - 1).bit_length()
    return -(-(1 << (31 + shift)) // n) | (shift + 1) << 32
