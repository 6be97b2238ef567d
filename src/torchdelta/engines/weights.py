"""A plan's weights on a device."""

from __future__ import annotations

import torch
from torch import Tensor


class Weights:
    """Weights on a device, each once, whichever steps use it.

    dtype: of those with a fraction; whole numbers and truth values keep theirs
    """

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self._device, self._dtype = device, dtype
        # by where the plan has it: a layer that is used twice has a tensor each of the same memory,
        # which is kept here too, lest another one comes to lie there
        self._held: dict[tuple[object, ...], tuple[Tensor, Tensor]] = {}

    def take(self, weight: Tensor, *, channels_last: bool = False) -> Tensor:
        """Give a plan's weight as engines need it; where it is so already, it is the plan's own."""
        key = weight.data_ptr(), weight.shape, weight.stride(), weight.dtype, channels_last
        if key not in self._held:
            held = weight.to(self._device, self._dtype if weight.is_floating_point() else None)
            if channels_last:
                held = held.contiguous(memory_format=torch.channels_last)
            self._held[key] = weight, held
        return self._held[key][1]

    @property
    def bytes(self) -> int:
        """Bytes of all that was taken."""
        held = {(w.data_ptr(), w.numel(), w.dtype): w for _, w in self._held.values()}
        return sum(w.numel() * w.element_size() for w in held.values())
