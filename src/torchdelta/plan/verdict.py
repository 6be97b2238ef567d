"""What may be expected of a plan: how much of it runs dense, and how far a change spreads.

A dense step computes all of its map whenever anything in it changed, and copies it to the model's
layout, back, and through the gate. So steps without a single multiply-accumulate may cost more than
all convolutions: both are weighed, in multiply-accumulates of PyTorch's convolutions:

    floor = (MACs + DENSE_ELEMENT x elements of dense steps) / (MACs + ELEMENT x elements of all)

is about what dense steps take in every frame, over PyTorch's time for the network. The two weights
are speeds of operations, not of a network: ELEMENT is the middle of add, permute, GELU, layer norm
and softmax against 3x3 and 1x1 convolutions in PyTorch on one AVX-512 core (6 to 37). DENSE_ELEMENT
is time per element of dense steps on the cpu engine there (230 to 340 in networks whose dense steps
have no MACs). Floors so found and measured, 224x224: ConvNeXt-Atto 1.2, 1.8; ConvNeXt-Tiny 2.0,
2.8; SKResNet-34 .62, .62; ResNeSt-26 .38, .32. So a floor is right within a factor of 1.5, and the
limits of the verdict leave that much room. A GPU has far more MACs per element: there dense steps
weigh more.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from torchdelta.ops.pointwise import Binary
from torchdelta.plan.ir import Residual, Step
from torchdelta.plan.plan import Plan

ELEMENT, DENSE_ELEMENT = 25, 300
# floors of 1 and of half of it, less what they may be off by: no gain; at most a small one
NO_GAIN, SMALL_GAIN = 1 / 1.5, 0.5 / 1.5
# share of the frame, one square, whose spread is followed: a person or a car in view
CHANGED = 0.05
SHOWN_KINDS = 3


@dataclass(frozen=True)
class Verdict:
    """Figures of a plan on which the verdict rests.

    steps, dense: how many steps there are, and how many of them run dense
    kinds:    dense operations by name, with how many there are of each
    macs, elements: shares of the network's in dense steps
    floor:    see above; 0 without dense steps
    products: how many steps are a map times one vector of the whole map (squeeze-and-excitation)
    spread:   share of the MACs that a change of `CHANGED` of the frame makes active where no gate
              holds anything back;  held: the same while such vectors do not change
    """

    steps: int
    dense: int
    kinds: Counter[str]
    macs: float
    elements: float
    floor: float
    products: int
    spread: float
    held: float

    def lines(self) -> list[str]:
        """Say what may be expected, the claim first."""
        lines = [f"verdict: {self._claim()}"]
        if self.dense and self.floor < NO_GAIN:
            lines.append(f"{self._dense()}; these run whole in every frame in which they change")
        if self.products:
            many = self.products > 1
            lines.append(
                f"{self.products} squeeze-and-excitation product{'s' * many} make"
                f"{'s' * (not many)} {'their' if many else 'its'} map active whenever "
                f"{'their' if many else 'its'} vector changes; a tolerance above 0 holds small "
                "changes of it back"
            )
        return lines

    def _claim(self) -> str:
        if self.floor >= NO_GAIN:
            return (
                f"expect no gain: {self._dense()}; they alone take about {self.floor:.1f} times "
                "what the whole network takes in PyTorch"
            )
        reach = f"a change of {CHANGED:.0%} of the frame in one place reaches up to "
        reach += f"{self.spread:.0%} of the MACs"
        if self.products and self.held < self.spread:
            reach += f" ({self.held:.0%} while the vectors of its products stay)"
        reach += "; gates hold part of that back, which `torchdelta bench` measures"
        if self.floor >= SMALL_GAIN:
            return f"expect a small gain, about {1 / self.floor:.1f} times at most: {reach}"
        if self.dense:
            most = max(2, round(1 / self.floor)) if self.floor else 0
            limit = f", up to about {most} times" if 0 < most <= 20 else ""
            return f"expect a gain where little changes{limit}: {reach}"
        return f"expect a gain where little changes, every step runs sparse: {reach}"

    def _dense(self) -> str:
        names = ", ".join(name for name, _ in self.kinds.most_common(SHOWN_KINDS))
        names += " …" if len(self.kinds) > SHOWN_KINDS else ""
        return (
            f"{self.dense} of {self.steps} steps run dense ({names}), {self.macs:.0%} of the MACs "
            f"and {self.elements:.0%} of the elements"
        )


def judge(plan: Plan) -> Verdict:
    """Work a plan's verdict out."""
    dense = [step for step in plan.steps if step.dense]
    sizes = {step.output: prod(plan.values[step.output].shape) for step in plan.steps}
    elements, macs = sum(sizes.values()) or 1, plan.macs
    dense_elements = sum(sizes[step.output] for step in dense)
    dense_macs = sum(step.macs for step in dense)
    return Verdict(
        steps=len(plan.steps),
        dense=len(dense),
        kinds=Counter(step.op.describe().split(".")[0] for step in dense),
        macs=dense_macs / (macs or 1),
        elements=dense_elements / elements,
        floor=(dense_macs + DENSE_ELEMENT * dense_elements) / (macs + ELEMENT * elements),
        products=sum(_scales_a_map(plan, step) for step in plan.steps),
        spread=spread(plan, CHANGED),
        held=spread(plan, CHANGED, vectors=False),
    )


def _scales_a_map(plan: Plan, step: Step) -> bool:
    """Say whether a step multiplies a map by one vector of the whole map."""
    products = [part.op for part in step.epilogue if isinstance(part, Residual)] + [step.op]
    return any(isinstance(op, Binary) and op.fn == "mul" for op in products) and any(
        _is_vector(plan, step, n) for n in range(len(step.inputs))
    )


def _is_vector(plan: Plan, step: Step, n: int) -> bool:
    """Say whether a sparse step reads its input n as one vector for all places of a map."""
    sparse = not step.dense and step.op.kind != "whole"
    one_pixel = plan.values[step.inputs[n]].size == (1, 1)
    return sparse and one_pixel and plan.values[step.output].size != (1, 1)


def spread(plan: Plan, changed: float, *, vectors: bool = True) -> float:
    """Follow a change through a plan's footprints: share of the MACs that it makes active.

    changed: share of the frame, a square in its middle
    vectors: False: vectors of the whole map, where maps are multiplied by them, do not change
    """
    masks: dict[int, Tensor] = {plan.input: _square(plan.size, changed)}
    active_macs = 0.0
    for step, per_px in zip(plan.steps, plan.mac_share_per_px, strict=True):
        size = plan.values[step.output].size
        active = torch.zeros(size, dtype=torch.bool)
        for n, (value, footprint) in enumerate(zip(step.inputs, step.footprints, strict=True)):
            if vectors or not _is_vector(plan, step, n):
                for owner in plan.values[value].owners:
                    active |= footprint.active(masks[owner], size)
        masks[step.output] = active
        active_macs += per_px * int(active.sum())
    return active_macs


def _square(size: tuple[int, int], share: float) -> Tensor:
    h, w = size
    side = (share * h * w) ** 0.5
    # a frame that is narrower gets a bar
    height = min(h, max(1, round(side)))
    width = min(w, max(1, round(share * h * w / height)))
    mask = torch.zeros(size, dtype=torch.bool)
    top, left = (h - height) // 2, (w - width) // 2
    mask[top : top + height, left : left + width] = True
    return mask
