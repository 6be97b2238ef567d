"""One launch of a kernel with all its arguments."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
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

    def __call__(self) -> None:
        """Launch it on the current stream."""
        options: dict[str, Any] = {"num_warps": self.warps, "num_stages": self.stages}
        if self.args.get("PDL"):
            options["launch_pdl"] = True
        self.kernel[(self.grid,)](**self.args, **options)
