"""Where in the picture a frame was recomputed, weighted by what each step costs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from torchdelta.apart import apart


class CountedStep(Protocol):
    """What is read of a step: its name and its dense MACs per frame."""

    @property
    def name(self) -> str:
        """Name of the step, unique in its plan."""

    @property
    def macs(self) -> int:
        """Multiply-accumulates that the step takes when all of it is computed."""


class CountedPlan(Protocol):
    """What is read of a plan: its steps."""

    @property
    def steps(self) -> Sequence[Any]:
        """The steps, each a `CountedStep`."""


@apart
def heat_map(
    plan: CountedPlan, active: Mapping[str, torch.Tensor], size: tuple[int, int]
) -> NDArray[np.float32]:
    """Share of the network's MACs that was recomputed at each pixel of the picture.

    plan:   its steps with `name` and `macs`; steps without MACs do not count
    active: step name -> bool [Ho, Wo], the output pixels that the step recomputed
    size:   (h, w) of the picture
    returns float32 [h, w] in 0..1; its mean is about the frame's MAC share

    A step's MACs lie evenly on its output pixels, and an output pixel covers its part of the
    picture. Raises ValueError where the active set of a step with MACs is missing.
    """
    counted = [step for step in plan.steps if step.macs > 0]
    missing = [step.name for step in counted if step.name not in active]
    if missing:
        raise ValueError(
            f"no active set for {', '.join(missing)}; run session.step(..., record=True)"
        )
    total_macs = sum(step.macs for step in counted)
    by_resolution: defaultdict[tuple[int, ...], list[CountedStep]] = defaultdict(list)
    for step in counted:
        by_resolution[tuple(active[step.name].shape)].append(step)

    picture = torch.zeros(size, dtype=torch.float32)
    for steps in by_resolution.values():
        masks = torch.stack([active[step.name] for step in steps])
        shares = torch.tensor(
            [step.macs / total_macs for step in steps], dtype=torch.float32, device=masks.device
        )
        share = torch.tensordot(shares, masks.to(shares.dtype), dims=1)
        # "area" averages what lies under a pixel, whether that is many outputs or part of one
        picture += F.interpolate(share[None, None], size=size, mode="area")[0, 0].cpu()
    return picture.clamp_(0, 1).numpy()
