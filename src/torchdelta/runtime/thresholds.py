"""Thresholds of a session's slots.

threshold of value v = tolerance x multiplier_v x rms_v (design: gates)
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from torchdelta.ops.base import Size
from torchdelta.ops.gate import input_threshold
from torchdelta.plan import Plan
from torchdelta.runtime.profile import Profile
from torchdelta.state import State

# a frame flatter than this (standard deviation, share of full scale) tells nothing about scales
MIN_FRAME_STD = 4 / 255
# the input gate's cells: so many of them along a pixel of the network's coarsest map, at most so
# many pixels, at least so many for a followed camera
CELLS_PER_STRIDE, LARGEST_GRAIN, LEAST_FOLLOWED = 4, 8, 4


class _Pending:
    """Numbers on their way from a device: spreads of `slots`, then norms of the `fresh` ones."""

    def __init__(self, slots: Sequence[int], fresh: Sequence[int], numbers: Tensor) -> None:
        self.slots, self.fresh, self._numbers = slots, fresh, numbers
        self._event: torch.cuda.Event | None = None
        if numbers.is_cuda:
            self._numbers = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=True)
            self._numbers.copy_(numbers, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record(torch.cuda.current_stream(numbers.device))

    def get(self) -> list[float]:
        """Wait for them."""
        if self._event is not None:
            self._event.synchronize()
        found: list[float] = self._numbers.tolist()
        return found


def default_grain(stride: Size, *, followed: bool) -> int:
    """Give the side in pixels of the input gate's cells (see `ops.gate.input_gate`); 1: no cells.

    stride: the plan's total stride. Where one pixel of a map reaches over many of the frame, each
            place that changes costs as much as a whole neighbourhood, so places should count only
            where they add up to something there.
    followed: a frame that was brought into a window never fits what is there to the pixel, and
            edges all over the picture differ a little, whatever the network
    """
    grain = min(LARGEST_GRAIN, max(1, min(stride) // CELLS_PER_STRIDE))
    return max(grain, LEAST_FOLLOWED) if followed else grain


class Thresholds:
    """Keeps the thresholds of a state's slots in line with tolerances, profile and first frames.

    largest: [N, values], the largest in force since everything was last computed anew in a slot
    """

    def __init__(self, plan: Plan, slots: int, profile: Profile) -> None:
        self.plan, self.profile = plan, profile
        self._tolerances = [0.0] * slots
        self.largest = np.zeros((slots, len(plan.values)))
        default = profile.multipliers.get("*", 1.0)
        self._gated = [v for v in plan.owners if v.gated]
        self._multiplier = {v.index: profile.multipliers.get(v.name, default) for v in self._gated}
        self._of_input = profile.multipliers.get("input", 1.0)
        self._measured = [v for v in self._gated if v.name not in profile.rms]
        # slots of which some gated value has no scale yet; of them, those that had no frame yet
        self._without: set[int] = set()
        self._fresh: set[int] = set()
        self._pending: _Pending | None = None

    def start(self, state: State, slot: int, tolerance: float) -> None:
        """Set a fresh slot's thresholds: the profile's where it has a scale, else 0."""
        state.rms[slot] = np.nan
        state.thresholds[slot] = self.largest[slot] = 0.0
        state.exact[slot] = tolerance == 0
        self._without.discard(slot)
        for v in self._gated:
            if v.name in self.profile.rms:
                state.rms[slot, v.index] = self.profile.rms[v.name]
        if self._measured:
            self._without.add(slot)
            self._fresh.add(slot)
        self.change(state, slot, tolerance)

    def change(self, state: State, slot: int, tolerance: float) -> None:
        """Set a slot's tolerance; one of 0 is for `start`: what is stored was gated by another."""
        self._tolerances[slot] = tolerance
        state.input_threshold[slot] = input_threshold(tolerance, self._of_input)
        if tolerance > 0:
            state.exact[slot] = False
        self._apply(state, slot)

    def measure(self, state: State, slots: Iterable[int], to_full_scale: Tensor) -> None:
        """Begin to measure the scales of these slots that have none, on the frame they just had.

        A device may still be at it when this returns: `settle` before the next frame.
        """
        wanted = [slot for slot in slots if slot in self._without] if self._without else []
        if not wanted:
            return
        # a first frame mostly tells something; dark ones behind it cost no more than looking
        fresh = [slot for slot in wanted if slot in self._fresh]
        self._fresh.difference_update(fresh)
        spreads = [self._spread(state, slot, to_full_scale) for slot in wanted]
        norms = [self._norms(state, slot) for slot in fresh]
        self._pending = _Pending(wanted, fresh, torch.cat([torch.stack(spreads), *norms]))

    def settle(self, state: State) -> None:
        """Set the thresholds that `measure` began with; waits for a device that is still at it."""
        if self._pending is None:
            return
        pending, self._pending = self._pending, None
        numbers = pending.get()
        spreads = dict(zip(pending.slots, numbers, strict=False))
        per_slot = len(self._measured)
        norms = {
            slot: numbers[len(spreads) + n * per_slot :][:per_slot]
            for n, slot in enumerate(pending.fresh)
        }
        for slot, spread in spreads.items():
            if spread >= MIN_FRAME_STD:
                found = norms[slot] if slot in norms else self._norms(state, slot).tolist()
                self._take(state, slot, found)

    def _spread(self, state: State, slot: int, to_full_scale: Tensor) -> Tensor:
        """Measure how much the slot's published frame varies: standard deviation, full scale 1."""
        x = (state.view(self.plan.input, slot).float() * to_full_scale).flatten(0, 1)
        # per channel: a black frame has another normalised value in each
        return (x - x.mean(0)).square().mean().sqrt()

    def _norms(self, state: State, slot: int) -> Tensor:
        """Measure the L2 norms of the values that the profile gives no scale of."""
        # slot by slot: a sum's order must not depend on the other slots
        views = [state.view(v.index, slot) for v in self._measured]
        return torch.stack(torch._foreach_norm(views, 2, torch.float32))

    def _take(self, state: State, slot: int, norms: Sequence[float]) -> None:
        for v, norm in zip(self._measured, norms, strict=True):
            rms = norm / math.sqrt(math.prod(v.size) * v.channels)
            # values beyond the dtype's range: compare values instead of trusting the scale
            state.rms[slot, v.index] = rms if math.isfinite(rms) else 0.0
        self._without.discard(slot)
        self._apply(state, slot)

    def _apply(self, state: State, slot: int) -> None:
        state.changes += 1
        tolerance = self._tolerances[slot]
        for v in self._gated:
            rms = state.rms[slot, v.index]
            known = 0.0 if math.isnan(rms) else rms
            state.thresholds[slot, v.index] = tolerance * self._multiplier[v.index] * known
        np.maximum(self.largest[slot], state.thresholds[slot], out=self.largest[slot])

    def export(self, state: State, slot: int) -> Profile:
        """Give the profile with the slot's measured scales filled in."""
        rms = {
            v.name: float(state.rms[slot, v.index])
            for v in self._gated
            if not math.isnan(state.rms[slot, v.index])
        }
        return Profile(dict(self.profile.multipliers), rms, self.profile.norm)
