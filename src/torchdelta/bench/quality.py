"""How far results are from the dense network's, in float32."""

from __future__ import annotations

import copy
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from torchdelta.bench.peers import peer_settings
from torchdelta.engines.torch_engine import ieee_float32, to_layout
from torchdelta.motion.aligned import Aligned
from torchdelta.plan import Plan
from torchdelta.quality.compare import (
    ClassTally,
    class_agreement,
    is_class_scores,
    pixel_agreement,
    psnr_db,
)
from torchdelta.runtime.frames import Frame, check_frame
from torchdelta.verify import relative_error

# relative L2 that rounding may cost a contestant on a whole frame; where PyTorch itself, eager in
# the same dtype, is worse than half of it, twice PyTorch's error
ROUNDING = {torch.float32: 1e-3, torch.float16: 1e-2, torch.bfloat16: 3e-2}
# TF32 keeps as many bits of a factor as float16, but some tensor cores cut the others off instead
# of rounding, and what is cut off does not cancel out over the layers
TF32_ROUNDING = 2e-2
# of whole numbers (classes …) this share may flip where two candidates are nearly equal
FLIPS = 0.02


class Reference:
    """The dense network, eager in float32, and a frame as it sees it.

    dtype, tf32: what ours computes in, see `allowance`
    """

    def __init__(
        self, model: nn.Module, plan: Plan, device: torch.device, dtype: torch.dtype,
        *, tf32: bool = False,
    ) -> None:  # fmt: skip
        self.plan, self.device, self.dtype, self.tf32 = plan, device, dtype, tf32
        self._model = to_layout(copy.deepcopy(model).to(device, torch.float32), torch.channels_last)

    def input(self, frames: Sequence[Frame]) -> Tensor:
        """Normalise frames, one per stream: [N, C, H, W] float32."""
        rows = []
        for frame in frames:
            checked = check_frame(frame, self.plan, self.device, self.dtype)
            rows.append(self.plan.preprocess.apply(checked, torch.float32).permute(2, 0, 1))
        return torch.stack(rows)

    def shown(self, frame: Frame, aligned: Aligned, published: Tensor) -> Tensor:
        """Give what a window shows of a frame without gates: [1, C, H, W] float32.

        published: [1, C, H, W], which stands where the frame shows nothing
        """
        checked = check_frame(frame, self.plan, self.device, self.dtype)
        warped = self.plan.preprocess.apply(aligned.warp(checked), torch.float32)
        here = torch.from_numpy(np.asarray(aligned.mask())).to(self.device)
        return torch.where(here, warped.permute(2, 0, 1), published.float())

    @torch.no_grad()
    def dense(self, x: Tensor) -> Any:
        """Run the network on [N, C, H, W]."""
        with ieee_float32(self.device):
            x = x.to(self.device, torch.float32)
            # a copy: the network may write to its input
            return self._model(x.clone(memory_format=torch.channels_last))

    @torch.no_grad()
    def allowance(self, x: Tensor) -> float:
        """Give the relative L2 error that rounding to the compute dtype may cost."""
        if self.dtype == torch.float32 and not self.tf32:
            return ROUNDING[self.dtype]
        low = copy.deepcopy(self._model).to(self.dtype)
        with peer_settings(self.device, self.tf32, benchmark=False):
            rounded = low(x.to(self.dtype, copy=True))
        usual = TF32_ROUNDING if self.tf32 else ROUNDING[self.dtype]
        return max(usual, 2 * relative_error(rounded, self.dense(x)))


def difference(mine: Any, dense: Any, allowance: float) -> str | None:
    """Say how a result differs from the dense network's by more than rounding, or None."""
    a, b = tensors(mine), tensors(dense)
    if [t.shape for t in a] != [t.shape for t in b]:
        shapes = (", ".join(str(list(t.shape)) for t in part) for part in (a, b))
        return "it gives {}, the dense network {}".format(*shapes)
    for got, expected in zip(a, b, strict=True):
        if expected.is_floating_point() or expected.is_complex():
            error = relative_error(got, expected)
            if not error <= allowance:
                return f"relative L2 error {error:.2g}, expected <= {allowance:.2g}"
        elif expected.numel() and float((got.cpu() != expected.cpu()).float().mean()) > FLIPS:
            return f"more than {FLIPS:.0%} of its whole numbers differ"
    return None


def tensors(result: Any) -> list[Tensor]:
    """Give a result's tensors, in order."""
    return [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor)]


@dataclass
class Spread:
    """Mean and worst of a figure over the sampled frames."""

    values: list[float] = field(default_factory=list)
    high_is_bad: bool = True

    def summary(self) -> dict[str, float]:
        """Give both."""
        worst = max(self.values) if self.high_is_bad else min(self.values)
        return {"mean": statistics.fmean(self.values), "worst": worst}


class Quality:
    """Gathers the errors of sampled frames: against dense on the frame, and on the published input.

    channels:    of the frame: an output of its size with as many is a picture, with others a map of
                 classes
    value_range: of the network's input, the peak of a picture's PSNR; None where it is normalised
    trained:     False: which class random weights choose says nothing, and is left out
    """

    def __init__(self, channels: int, value_range: float | None, *, trained: bool = True) -> None:
        self._channels, self._value_range, self._trained = channels, value_range, trained
        self._error, self._layer_error = Spread(), Spread()
        self._outputs: dict[str, tuple[Spread, Spread]] = {}
        self._classes, self._variation = ClassTally(), Spread()
        self._pixels = Spread(high_is_bad=False)
        self._psnr_db = Spread(high_is_bad=False)

    def add(self, output: Any, on_frame: Any, on_published: Any, size: tuple[int, int]) -> None:
        """Count one frame of one stream: our result, and the dense network's two.

        size: (h, w) of what the network ran on
        """
        self._error.values.append(relative_error(output, on_frame))
        self._layer_error.values.append(relative_error(output, on_published))
        paths, _ = pytree.tree_flatten_with_path(output)
        triples = zip(
            paths, pytree.tree_leaves(on_frame), pytree.tree_leaves(on_published), strict=True
        )
        for (path, mine), frame, published in triples:
            if isinstance(mine, Tensor):
                name = pytree.keystr(path) or "output"
                error, layer_error = self._outputs.setdefault(name, (Spread(), Spread()))
                error.values.append(relative_error(mine, frame))
                layer_error.values.append(relative_error(mine, published))
        if len(tensors(output)) == 1:
            self._add_task(tensors(output)[0], tensors(on_frame)[0], size)

    def _add_task(self, mine: Tensor, dense: Tensor, size: tuple[int, int]) -> None:
        if not mine.is_floating_point():
            return
        if is_class_scores(mine):
            if self._trained:
                one = class_agreement(mine, dense)
                self._classes.add(one)
                self._variation.values.append(one.distance)
        elif mine.dim() == 4 and tuple(mine.shape[2:]) == size:
            if mine.shape[1] == self._channels:
                peak = self._value_range or float(dense.max() - dense.min())
                self._psnr_db.values.append(psnr_db(mine, dense, peak))
            elif self._trained:
                self._pixels.values.append(pixel_agreement(mine.cpu(), dense.cpu()))

    def summary(self) -> dict[str, Any] | None:
        """Give the figures, None where no frame was sampled."""
        if not self._error.values:
            return None
        peak = "range of the input" if self._value_range else "max - min of the dense output"
        return {
            "frames": len(self._error.values),
            "error": self._error.summary(),
            "layer_error": self._layer_error.summary(),
            "outputs": {
                name: {"error": error.summary(), "layer_error": layer_error.summary()}
                for name, (error, layer_error) in self._outputs.items()
            },
            "classes": self._class_figures(),
            "pixel_agreement": self._pixels.summary() if self._pixels.values else None,
            "psnr_db": self._psnr_db.summary() if self._psnr_db.values else None,
            "psnr_peak": peak if self._psnr_db.values else None,
        }

    def _class_figures(self) -> dict[str, Any] | None:
        tally = self._classes
        if not tally.frames:
            return None
        return {
            "same": tally.same,
            "clear": tally.clear,
            "near_ties": tally.near_ties,
            "agreement": tally.same_share,
            "variation": self._variation.summary(),
            "said": str(tally),
        }
