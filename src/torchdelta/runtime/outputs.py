"""A session's outputs: copied out of the state, or views of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from torchdelta.ops.base import Ring, take_all
from torchdelta.ops.move import to_model_layout
from torchdelta.plan import Plan
from torchdelta.state import State


class Outputs:
    """Takes the model's results out of a session's state.

    views: outputs are views of the state (where a window has moved, copies all the same)
    """

    def __init__(self, state: State, *, views: bool) -> None:
        self._state, self._views = state, views
        self._device = state.buffers[0].device
        plan = state.plan
        self._values = [
            (out, whole)
            for out, whole in zip(plan.outputs, plan.output_shapes, strict=True)
            if whole is not None
        ]
        # values of all slots, a slot's outputs as views, and outputs by value, slot and shape
        self._batches: dict[int, Tensor] = {}
        self._slot_views: dict[int, list[Tensor]] = {}
        self._leaves: dict[tuple[int, int, tuple[int, ...]], Tensor] = {}

    def take(self, slots: Sequence[int]) -> dict[int, Any]:
        """Take the results of slots as they are now; copies are under way when this returns.

        returns: by slot, what the model returned, or what puts that `Together`
        """
        plan, device = self._state.plan, self._device
        taken: Mapping[int, Sequence[Tensor]] | Sequence[Tensor]
        if not self._state.turned:
            if self._views:
                taken = {slot: self._viewed(slot) for slot in slots}
                return dict.fromkeys(slots, Together(plan, device, taken))
            if len(slots) > 1 and device.type == "cuda":
                # one copy for all slots instead of many small ones
                taken = [self._copies(value, shape) for value, shape in self._values]
                return dict.fromkeys(slots, Together(plan, device, taken))
        return {
            slot: put_together(
                plan, device, [self._take(value, slot, shape) for value, shape in self._values]
            )
            for slot in slots
        }

    def _viewed(self, slot: int) -> list[Tensor]:
        """View a slot's outputs, in the order of its buffers; made once."""
        found = self._slot_views.get(slot)
        if found is None:
            state = self._state
            found = [self._leaf(state.view(v, slot), v, slot, shape) for v, shape in self._values]
            # one that is no view after all is a copy of this frame
            if all((v, slot, shape) in self._leaves for v, shape in self._values):
                self._slot_views[slot] = found
        return found

    def _take(self, value: int, slot: int, shape: tuple[int, ...]) -> Tensor:
        at = self._state.pixels(value, slot)
        if isinstance(at, Ring):
            return self._shaped(take_all(at), value, shape)
        leaf = self._leaf(at, value, slot, shape)
        return leaf if self._views else leaf.clone(memory_format=torch.contiguous_format)

    def _copies(self, value: int, shape: tuple[int, ...]) -> Tensor:
        """Copy a value of all slots, in the order of its buffer: [slots, *shape]."""
        batch = self._batches.get(value)
        if batch is None:
            batch = self._batches[value] = self._state.batch_view(value)
        copy = batch.clone()
        if len(self._state.plan.values[value].shape) == 3:
            copy = copy.permute(0, 3, 1, 2)
        return copy.reshape(len(copy), *shape)

    def _shaped(self, y: Tensor, value: int, shape: tuple[int, ...]) -> Tensor:
        return to_model_layout(y, self._state.plan.values[value].shape).reshape(shape)

    def _leaf(self, y: Tensor, value: int, slot: int, shape: tuple[int, ...]) -> Tensor:
        """Give a value of the state, [H, W, C], in the model's shape; a view is made once."""
        found = self._leaves.get((value, slot, shape))
        if found is None:
            found = self._shaped(y, value, shape)
            if found.data_ptr() == y.data_ptr():
                self._leaves[value, slot, shape] = found
        return found


def put_together(plan: Plan, device: torch.device, taken: Iterable[Tensor]) -> Any:
    """Give what the model returns, from what its values are."""
    values = iter(taken)
    leaves: list[Any] = []
    for out, whole in zip(plan.outputs, plan.output_shapes, strict=True):
        if whole is not None:
            leaves.append(next(values))
        elif isinstance(out, Tensor):
            # the plan is shared: nobody gets its own constants to write to
            leaves.append(out.to(device, copy=True))
        else:
            leaves.append(out)
    return pytree.tree_unflatten(leaves, plan.out_spec)


class Together:
    """The results of one step's slots, put together when they are read.

    taken: of the outputs' values, by slot, or copies of all slots, [slots, ...]
    """

    def __init__(
        self,
        plan: Plan,
        device: torch.device,
        taken: Mapping[int, Sequence[Tensor]] | Sequence[Tensor],
    ) -> None:
        self._plan, self._device, self._taken = plan, device, taken

    def of(self, slot: int) -> Any:
        """Give what the model returned for a slot."""
        taken = self._taken
        own = taken[slot] if isinstance(taken, Mapping) else [copy[slot] for copy in taken]
        return put_together(self._plan, self._device, own)
