"""Brings a plan to a device: packs weights, and decides what is left to PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from torchdelta.engines.torch_engine import TorchEngine
from torchdelta.engines.triton import pack, rows
from torchdelta.engines.triton.gpu import Gpu
from torchdelta.engines.triton.program import Program
from torchdelta.engines.triton.schedule import MOST_LANES, make_schedule, sources_of
from torchdelta.engines.weights import Weights
from torchdelta.ops import Conv2d, ConvTranspose2d, Dense
from torchdelta.plan import Plan
from torchdelta.plan.ir import Step


def load(plan: Plan, gpu: Gpu) -> Program:
    """Bring a plan to a device."""
    device, dtype = gpu.device, gpu.dtype
    foreign = {i: reason for i, s in enumerate(plan.steps) if (reason := foreign_reason(plan, s))}
    taken = Weights(device, dtype)
    oracle = TorchEngine(plan, device, dtype, sorted(foreign), taken)
    own = [(i, step) for i, step in enumerate(plan.steps) if i not in foreign]
    packed = {
        i: pack.pack(plan, step, device, dtype)
        for i, step in own
        if isinstance(step.op, (Conv2d, ConvTranspose2d))
    }
    weights = {i: rows.take_weights(plan, step, taken) for i, step in own if i not in packed}
    channels = plan.shape[0]
    scale = [f / channels for f in plan.preprocess.per_full_scale(channels)]
    reported = _reported(plan)
    sources = [source for step in plan.steps for source in sources_of(plan, step)]
    return Program(
        plan=plan, gpu=gpu, foreign=foreign, oracle=oracle, packed=packed, weights=weights,
        taken=taken,
        normalise=_normalise(plan, device),
        to_full_scale=torch.tensor(scale, dtype=torch.float32, device=device),
        reported=reported,
        stamped=set(reported) | {owner for owner, _ in sources},
        touched={owner for owner, footprint in sources if footprint.everything},
        shared=make_schedule(plan),
        # what PyTorch does inside a frame it does on one stream
        most_lanes=1 if foreign else MOST_LANES,
    )  # fmt: skip


def _reported(plan: Plan) -> list[int]:
    owners = {
        owner
        for out, shape in zip(plan.outputs, plan.output_shapes, strict=True)
        if shape is not None
        for owner in plan.values[out].owners
    }
    return sorted(owners | {plan.input})


def foreign_reason(plan: Plan, step: Step) -> str | None:
    """Say why a step is left to PyTorch; None where a kernel here computes it."""
    if isinstance(step.op, Dense):
        return step.reason or "no sparse form"
    if isinstance(step.op, (Conv2d, ConvTranspose2d)):
        return pack.refusal(plan, step)
    return rows.refusal(plan, step)


def _normalise(plan: Plan, device: torch.device) -> tuple[Tensor, Tensor]:
    """Give factors and shifts [2, C] that make the network's input of uint8 and float frames."""
    pre, channels = plan.preprocess, plan.shape[0]
    mean = torch.tensor(pre.mean or (0.0,) * channels, dtype=torch.float64)
    std = torch.tensor(pre.std or (1.0,) * channels, dtype=torch.float64)
    scale = (pre.hi - pre.lo) / 255
    factor = torch.stack([scale / std, 1 / std])
    shift = torch.stack([(pre.lo - mean) / std, -mean / std])
    return factor.float().to(device).contiguous(), shift.float().to(device).contiguous()
