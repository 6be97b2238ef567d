"""The torch engine: the definition in plain PyTorch, on any device, one slot at a time.

Slots never share a call, so a stream's result cannot depend on the others (P4). A step gathers what
its active pixels read, runs the stock operation on that, and publishes what moved: pixelwise
operations on rows of pixels, windowed ones on small square tiles, and everything at once where
most of the map is active.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from torchdelta.engines.base import Done, Engine, FrameCall, Move, SlotReport
from torchdelta.engines.weights import Weights
from torchdelta.ops import Conv2d
from torchdelta.ops.base import Pixels, Size, WindowOp, put_all, put_rows, take_all, take_rows
from torchdelta.ops.gate import input_gate, value_gate
from torchdelta.plan import Plan
from torchdelta.plan.ir import GROUP_CHANNELS, Activation, Residual, Step
from torchdelta.plan.shift import KEPT, UNSEEN
from torchdelta.state import State

# side of the smallest tiles, output px; twice and four times that are tried too
TILE_PX = 4
# measured time per pixel of a 3x3 convolution over that of a whole map, for tiles of 4, 8 and 16 px
# (64 channels, one core, 16 tiles): small tiles fit the active set, large ones the convolution
TILE_COST = (1.45, 1.15, 1.05)
# price of gathering an input number for a tile, in multiply-accumulates: the best of 0, 4, 12 and
# 35 on EfficientNet-Lite0 over three clips, on one core and on two
GATHER_MACS = 4.0
# what a pool counts as, MACs per gathered number
POOL_MACS = 4.0


@dataclass(frozen=True)
class _Ready:
    """A step with its weights on the engine's device, in its dtype (see `choose_tiles`)."""

    step: Step
    weights: Mapping[str, Tensor]
    epilogue: tuple[tuple[Residual | Activation, Mapping[str, Tensor]], ...]
    out_size: Size
    out_dtype: torch.dtype
    gather_price: float


@dataclass(frozen=True)
class _Gate:
    """What a slot's value is gated by.

    fresh: bool [Ho, Wo], active pixels that are published whatever it finds; None: there are none
    """

    threshold: float
    norm: str
    fresh: Tensor | None = None


class _Outcome(NamedTuple):
    """What a step did in a slot (see `SlotReport`); mask: of what it published, None: nothing."""

    active_px: int
    work_px: int
    published_px: int = 0
    published_groups: int = 0
    mask: Tensor | None = None


@contextmanager
def ieee_float32(device: torch.device) -> Iterator[None]:
    """Keep cuDNN from TF32: its rounding would differ between a whole map and gathered pixels."""
    if device.type != "cuda":
        yield
        return
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def to_layout(model: nn.Module, layout: torch.memory_format) -> nn.Module:
    """Lay out a model's weights, in place; those of 3-D convolutions have no channels_last."""
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.ndim == 4:
            tensor.data = tensor.data.contiguous(memory_format=layout)
    return model


class TorchEngine(Engine):
    """Runs plans with stock PyTorch operations on gathered pixels.

    only: the steps that `run_step` will be asked for; no weights are kept for the others. None: all
    weights: what the engine that this one works for keeps; default: its own
    """

    name: ClassVar[str] = "torch"

    def __init__(
        self,
        plan: Plan,
        device: torch.device,
        dtype: torch.dtype,
        only: Collection[int] | None = None,
        weights: Weights | None = None,
    ) -> None:
        super().__init__(plan, device, dtype)
        kept = range(len(plan.steps)) if only is None else only
        self._weights = Weights(device, dtype) if weights is None else weights
        self._steps = {i: self._ready(plan.steps[i], self._weights) for i in kept}
        scale = plan.preprocess.per_full_scale(plan.shape[0])
        self._to_full_scale = torch.tensor(scale, device=device, dtype=torch.float32)

    @classmethod
    def usable(cls) -> tuple[bool, str]:
        """It runs wherever PyTorch does."""
        return True, f"PyTorch {torch.__version__}"

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights that it computes with, shared by all sessions."""
        return self._weights.bytes

    def _ready(self, step: Step, weights: Weights) -> _Ready:
        def move(own: Mapping[str, Tensor]) -> dict[str, Tensor]:
            return {
                name: weights.take(w, channels_last=w.ndim == 4 and name == "weight")
                for name, w in own.items()
            }

        value = self.plan.values[step.output]
        epilogue = tuple(
            (part, move(part.weights) if isinstance(part, Activation) else {})
            for part in step.epilogue
        )
        numbers = prod(value.size) * self.plan.values[step.inputs[0]].channels
        price = GATHER_MACS / (step.macs / numbers if step.macs else POOL_MACS)
        return _Ready(
            step, move(step.weights), epilogue, value.size, value.dtype or self.dtype, price
        )

    @torch.no_grad()
    def step(self, state: State, call: FrameCall) -> Done:
        """Run one frame for the slots that have one (see `Engine.step`)."""
        with ieee_float32(self.device):
            return Done({slot: self._run_slot(state, slot, call) for slot in call.frames})

    def _run_slot(self, state: State, slot: int, call: FrameCall) -> SlotReport:
        start = time.perf_counter()
        count = len(self.plan.steps)
        whole, move = slot in call.whole, call.moved.get(slot)
        changed = self._publish_input(state, slot, call)
        input_px = int(changed[self.plan.input].sum()) if changed else 0
        px, groups = [0] * count, [0] * count
        report = SlotReport(changed, [0] * count, [0] * count, input_px, px, groups)
        if call.timed:
            report.step_ms = [0.0] * count
        for i, ready in self._steps.items():
            begin = time.perf_counter()
            output = ready.step.output
            inputs = [state.pixels(v, slot) for v in ready.step.inputs]
            stored = state.pixels(output, slot)
            active: Tensor | None
            if whole or (move and self.plan.shifts.absolute[output]):
                put_all(stored, self._evaluate(ready, inputs))
                area = ready.out_size[0] * ready.out_size[1]
                report.active_px[i] = report.work_px[i] = px[i] = area
                groups[i] = area * self._groups(output)
                changed[output] = active = self._ones(ready.out_size)
            else:
                fresh: Tensor | None = None
                active = self._active(ready.step, changed, ready.out_size)
                if move:
                    uncovered, fresh = self._uncovered(output, move)
                    active = uncovered if active is None else active | uncovered
                if i in call.forced:
                    active = fresh = call.forced[i]
                if active is not None and bool(active.any()):
                    gate = _Gate(float(state.thresholds[slot, output]), state.norm, fresh)
                    done = self._recompute(ready, inputs, stored, active, gate)
                    report.active_px[i], report.work_px[i] = done.active_px, done.work_px
                    px[i], groups[i] = done.published_px, done.published_groups
                    if done.mask is not None:
                        changed[output] = done.mask
            if call.record and active is not None:
                report.active[i] = active
            if report.step_ms is not None:
                self._synchronize()
                report.step_ms[i] = (time.perf_counter() - begin) * 1e3
        report.ms = (time.perf_counter() - start) * 1e3
        return report

    def _groups(self, value: int) -> int:
        return -(-self.plan.values[value].channels // GROUP_CHANNELS)

    def _ones(self, size: Size) -> Tensor:
        return torch.ones((1, 1), dtype=torch.bool, device=self.device).expand(size)

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _publish_input(self, state: State, slot: int, call: FrameCall) -> dict[int, Tensor]:
        value, valid, move = self.plan.input, call.masks.get(slot), call.moved.get(slot)
        new = self.plan.preprocess.apply(call.frames[slot].permute(1, 2, 0), self.dtype)
        if valid is not None:
            new = new.where(valid.unsqueeze(-1), 0)
        stored = state.pixels(value, slot)
        if slot in call.whole:
            put_all(stored, new)
            return {value: self._ones(self.plan.size)}
        unseen = self._uncovered(value, move)[1] if move else None
        mask = input_gate(
            new, take_all(stored), float(state.input_threshold[slot]), self._to_full_scale,
            mask=valid, unseen=unseen, grain=state.input_grain,
        )  # fmt: skip
        index = flat_index(mask)
        if not len(index):
            return {}
        put_rows(stored, index, take_rows(new, index))
        return {value: mask}

    def _uncovered(self, value: int, move: Move) -> tuple[Tensor, Tensor]:
        """Mark the pixels of a value that a move makes active, and those that are unseen."""
        rows, cols = self.plan.shifts.lines(value, move.shift, move.exact)
        level = torch.from_numpy(np.maximum(rows[:, None], cols)).to(self.device)
        return level > KEPT, level == UNSEEN

    def _active(self, step: Step, changed: Mapping[int, Tensor], size: Size) -> Tensor | None:
        """Unite the footprints of all changed inputs; None where none changed."""
        active: Tensor | None = None
        seen = set()
        for value, footprint in zip(step.inputs, step.footprints, strict=True):
            for owner in self.plan.values[value].owners:
                key = (owner, id(footprint))
                if owner not in changed or key in seen:
                    continue
                seen.add(key)
                part = footprint.active(changed[owner], size)
                active = part if active is None else active | part
        return active

    @torch.no_grad()
    def evaluate(self, step: int, inputs: Sequence[Tensor]) -> Tensor:
        """Compute one step whole (see `Engine.evaluate`)."""
        ready = self._steps.get(step)
        if ready is None:
            ready = self._ready(self.plan.steps[step], Weights(self.device, self.dtype))
        with ieee_float32(self.device):
            return self._evaluate(ready, inputs).to(ready.out_dtype)

    @torch.no_grad()
    def run_step(
        self,
        step: int,
        state: State,
        slot: int,
        active: Tensor,
        *,
        whole: bool = False,
        forced: bool = False,
        fresh: Tensor | None = None,
    ) -> tuple[Tensor | None, int]:
        """Recompute, gate and publish one step of one slot, for engines that lack it.

        active: bool [Ho, Wo]; whole: publish all without comparing; forced: all active pixels;
        fresh: bool [Ho, Wo], these active pixels
        Returns the change mask, bool [Ho, Wo], None where nothing was published; and how many
        groups were.
        """
        ready = self._steps[step]
        inputs = [state.pixels(v, slot) for v in ready.step.inputs]
        stored = state.pixels(ready.step.output, slot)
        with ieee_float32(self.device):
            if whole:
                put_all(stored, self._evaluate(ready, inputs))
                groups = prod(ready.out_size) * self._groups(ready.step.output)
                return self._ones(ready.out_size), groups
            threshold = float(state.thresholds[slot, ready.step.output])
            gate = _Gate(threshold, state.norm, active if forced else fresh)
            done = self._recompute(ready, inputs, stored, active, gate)
            return done.mask, done.published_groups

    def _evaluate(self, ready: _Ready, pixels: Sequence[Pixels]) -> Tensor:
        step = ready.step
        inputs = [take_all(x) for x in pixels]
        out = step.op.full(inputs[: step.arity], ready.weights)
        for part, weights in ready.epilogue:
            if isinstance(part, Activation):
                out = part.op.apply(out, weights)
            else:
                other = inputs[part.index]
                out = part.op.apply(*((other, out) if part.first else (out, other)))
        return out

    def _recompute(
        self,
        ready: _Ready,
        inputs: Sequence[Pixels],
        stored: Pixels,
        active: Tensor,
        gate: _Gate,
    ) -> _Outcome:
        """Recompute, gate and publish the active pixels."""
        step = ready.step
        rows, index, work = self._rows(ready, inputs[: step.arity], active)
        for part, weights in ready.epilogue:
            if isinstance(part, Activation):
                rows = part.op.apply(rows, weights)
            else:
                other = take_rows(inputs[part.index], index)
                rows = part.op.apply(*((other, rows) if part.first else (rows, other)))
        rows = rows.to(ready.out_dtype)
        old = take_rows(stored, index)
        publish = value_gate(rows, old, gate.threshold, gate.norm, GROUP_CHANNELS)
        if gate.fresh is not None:
            publish |= gate.fresh.flatten().index_select(0, index).unsqueeze(1)
        hit = publish.any(1).nonzero().squeeze(1)
        if not len(hit):
            return _Outcome(len(index), work)
        rows, where = rows.index_select(0, hit), index.index_select(0, hit)
        if publish.shape[1] > 1:
            groups = publish.index_select(0, hit).repeat_interleave(GROUP_CHANNELS, 1)
            keep = old.index_select(0, hit)
            rows = torch.where(groups[:, : rows.shape[1]], rows, keep)
        put_rows(stored, where, rows)
        mask = torch.zeros(active.numel(), dtype=torch.bool, device=self.device)
        mask.index_fill_(0, where, True)
        return _Outcome(len(index), work, len(hit), int(publish.sum()), mask.view(active.shape))

    def _rows(
        self, ready: _Ready, inputs: Sequence[Pixels], active: Tensor
    ) -> tuple[Tensor, Tensor, int]:
        """Compute the operation at the active pixels.

        Returns the rows [M, C], their flat indices [M] (tiles have an order of their own), and
        the number of pixels computed.
        """
        op, size = ready.step.op, ready.out_size
        area = size[0] * size[1]
        if op.kind == "rows" or (isinstance(op, Conv2d) and op.pointwise):
            index = flat_index(active)
            return op.rows(inputs, ready.weights, index, size), index, len(index)
        if isinstance(op, WindowOp):
            price, side, tiles = choose_tiles(op, active, ready.gather_price)
            if price < area:
                return self._tiled(op, inputs[0], ready.weights, active, side, tiles)
        index = flat_index(active)
        out = op.full([take_all(x) for x in inputs], ready.weights)
        if len(index) == area:
            return out.reshape(area, -1), index, area
        return take_rows(out, index), index, area

    def _tiled(
        self,
        op: WindowOp,
        x: Pixels,
        weights: Mapping[str, Tensor],
        active: Tensor,
        side: Size,
        tiles: Tensor,
    ) -> tuple[Tensor, Tensor, int]:
        """Gather tiles, run the stock operation on them, and pick the active pixels."""
        h, w = x.shape[:2]
        out_h, out_w = active.shape
        (rows_in, row_ok), (cols_in, col_ok) = (
            _tile_inputs(op, axis, side[axis], tiles[:, axis], n) for axis, n in enumerate((h, w))
        )
        at = rows_in[:, :, None] * w + cols_in[:, None, :]
        gathered = take_rows(x, at.flatten())
        outside = ~(row_ok[:, :, None] & col_ok[:, None, :]).flatten()
        gathered.index_fill_(0, outside.nonzero().squeeze(1), op.fill)
        gathered = gathered.view(*at.shape, -1).permute(0, 3, 1, 2)
        out = op.tile(gathered, weights, side).permute(0, 2, 3, 1)
        # outputs of the tiles, flat; those beyond the map's edge are dropped
        row = tiles[:, :1] * side[0] + torch.arange(side[0], device=x.device)
        col = tiles[:, 1:] * side[1] + torch.arange(side[1], device=x.device)
        wanted = (row < out_h)[:, :, None] & (col < out_w)[:, None, :]
        flat = row.clamp(max=out_h - 1)[:, :, None] * out_w + col.clamp(max=out_w - 1)[:, None, :]
        pick = flat_index(active.flatten()[flat] & wanted)
        index = flat.flatten().index_select(0, pick)
        picked = out.reshape(-1, out.shape[-1]).index_select(0, pick)
        return op.finish(picked, index, (h, w), (out_h, out_w)), index, flat.numel()


def _tile_inputs(op: WindowOp, axis: int, side: int, tile: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Give the input coordinates [T, extent] of tiles along an axis, and which lie inside."""
    step, offset, extent = op.reach(axis, side)
    first = tile * side * step // op.pitch[axis] + offset
    at = first[:, None] + torch.arange(extent, device=tile.device)
    return at.clamp(0, n - 1), (at >= 0) & (at < n)


def flat_index(mask: Tensor) -> Tensor:
    """List the flat indices [M] int64 of a mask's pixels, ascending."""
    return mask.flatten().nonzero().squeeze(1)


def choose_tiles(op: WindowOp, active: Tensor, gather_price: float) -> tuple[float, Size, Tensor]:
    """Pick the tile size that covers the active set at the lowest price.

    gather_price: of gathering one output pixel's inputs, over computing it in a whole map
    Returns the price in pixels of a whole map, the side (h, w) in output px, and the tiles' grid
    coordinates [T, 2] int64.
    """
    h, w = _tile_side(op, 0), _tile_side(op, 1)
    grid = _any_in_tiles(active, (h, w))
    best: tuple[float, Size, Tensor] | None = None
    for cost in TILE_COST:
        price = int(grid.count_nonzero()) * h * w * (cost + gather_price)
        if best is None or price < best[0]:
            best = (price, (h, w), grid)
        if grid.numel() == 1:
            break
        h, w, grid = 2 * h, 2 * w, _any_in_tiles(grid, (2, 2))
    assert best is not None
    return best[0], best[1], best[2].nonzero()


def _tile_side(op: WindowOp, axis: int) -> int:
    """Round the smallest side up to the operation's pitch; windows far apart need fewer outputs."""
    stride, pitch = op.reach(axis, 1)[0], op.pitch[axis]
    side = max(1, TILE_PX // stride) if stride > 2 else TILE_PX
    return -(-side // pitch) * pitch


def _any_in_tiles(active: Tensor, side: Size) -> Tensor:
    """Mark the tiles that hold an active pixel: bool [tiles down, tiles across]."""
    h, w = active.shape
    down, across = -(-h // side[0]), -(-w // side[1])
    if (down * side[0], across * side[1]) != (h, w):
        padded = active.new_zeros(down * side[0], across * side[1])
        padded[:h, :w] = active
        active = padded
    # whole rows first: they are contiguous, and a reduction over a few booleans is slow
    rows = active[:: side[0]]
    for t in range(1, side[0]):
        rows = rows | active[t :: side[0]]
    return rows.reshape(down, across, side[1]).any(2)
