"""Launches of convolutions: from packed weights and a frame's lists to a kernel's arguments."""

from __future__ import annotations

from math import ceil, gcd
from typing import Any

import torch

from torchdelta.engines.triton import pack
from torchdelta.engines.triton.frame import Frame
from torchdelta.engines.triton.kernels import conv as kernels
from torchdelta.engines.triton.kernels import depthwise as depthwise_kernels
from torchdelta.engines.triton.launch import Launch
from torchdelta.engines.triton.pack import NO_GROUP, Packed, Phase, epilogue_parts
from torchdelta.engines.triton.schedule import phases_of

# steps of a sum from which lists of middle length are worth a program for each part (H200: 72 steps
# gain a third, 16 and 36 lose)
DEEP_STEPS = 64


def epilogue_args(frame: Frame, index: int, packed: Packed) -> dict[str, Any]:
    """Give the arguments of a step's bias, activations and residual."""
    step = frame.plan.steps[index]
    before, residual, after = epilogue_parts(step)
    args: dict[str, Any] = {
        "BIAS": packed.bias is not None,
        "bias_ptr": frame.dummy if packed.bias is None else packed.bias,
        "slope_ptr": frame.dummy if packed.slope is None else packed.slope,
    }
    for name, parts in (("PRE", before), ("POST", after)):
        function = parts[0].op.kernel if parts else None
        numbers = (*(function.args if function else ()), 0.0, 0.0, 0.0)
        args[name] = function.name if function else ""
        args |= {f"{name}_{letter}": float(n) for letter, n in zip("ABC", numbers, strict=False)}
    source = step.output if residual is None else step.inputs[residual.index]
    place = frame.in_args(source, "residual")
    args |= {
        f"residual_{key}": place[f"residual_{key}"] for key in ("ptr", "slot", "px", "ring_ptr")
    }
    args["JOIN"] = residual.op.fn if residual else ""
    args["ALPHA"] = float(residual.op.alpha) if residual else 1.0
    args["JOIN_FIRST"] = bool(residual and residual.first)
    return args


def launches(frame: Frame, index: int, packed: Packed) -> list[Launch]:
    """Make the launches of a step: one, or one per phase of a transposed convolution."""
    step = frame.plan.steps[index]
    common = {
        **frame.in_args(step.inputs[0], "x"), **frame.out_args(index), **frame.list_args(index),
        **epilogue_args(frame, index, packed),
    }  # fmt: skip
    for name in ("x", "out", "residual"):
        # what a kernel knows about alignment decides how wide its loads are
        unit = gcd(common[f"{name}_px"], 16)
        common[f"{name.upper()}_UNIT"] = unit
        common[f"{name}_px"] //= unit
    return [
        _launch(frame, index, packed, phase, common, number)
        for number, phase in enumerate(packed.phases)
    ]


def _launch(
    frame: Frame, index: int, packed: Packed, phase: Phase, common: dict[str, Any], number: int
) -> Launch:
    args = dict(common)
    if number:
        args["list_ptr"] = args["list_ptr"][number * frame.capacity(index) :]
        args["count_ptr"] = args["count_ptr"][number:]
    for name in ("num", "bias", "first", "step"):
        args[f"{name}_y"], args[f"{name}_x"] = getattr(phase, name)
    args["DEN_Y"], args["DEN_X"] = phase.den
    args["weight_ptr"] = phase.weight
    rows = _longest_list(frame, index)
    if packed.depthwise:
        args |= {
            "TAPS_H": phase.taps[0], "TAPS_W": phase.taps[1],
            "MULTIPLIER": common["channels"] // frame.plan.values[
                frame.plan.steps[index].inputs[0]].channels,
        }  # fmt: skip
        bn = packed.width
        bm = 16 if bn >= 64 else 32
        blocks = ceil(rows / bm) * ceil(common["channels"] / bn)
        return Launch(
            depthwise_kernels.depthwise,
            frame.programs(blocks),
            {**args, "BM": bm, "BN": bn, "EVEN": common["channels"] % bn == 0},
            step=index,
        )
    blocks = pack.choose_blocks(frame.gpu, packed, common["channels"])
    columns = ceil(common["channels"] / blocks.width)
    partial, arrived = frame.dummy, frame.dummy
    if packed.splits > 1:
        partial, arrived = frame.partial_sums(index)
    args |= {
        "steps": phase.weight.shape[1] // packed.chunk, "small_rows": blocks.small_rows,
        "middle_rows": blocks.middle_rows,
        "out_group": packed.out_group, "in_group": packed.in_group,
        "last_channel": packed.last_channel, "partial_ptr": partial, "arrived_ptr": arrived,
        "CHANNELS": packed.channels, "BK": packed.chunk, "WN": packed.width,
        "SPLITS": packed.splits, "SPLIT_STEPS": packed.split_steps, "GATHER": packed.gather,
        "TAPS_H": phase.taps[0], "TAPS_W": phase.taps[1],
        "SAME": packed.gather == "channels" and _is_same_place(frame, index, phase),
        "GROUPED": packed.out_group != NO_GROUP, "EVEN": common["channels"] % blocks.width == 0,
        "SMALL_M": blocks.small_m, "MIDDLE_M": blocks.middle_m, "LARGE_M": blocks.large_m,
        "BN": blocks.width, "PRECISION": frame.gpu.precision, "capacity": rows,
        **dict(zip(("SMALL_STAGES", "MIDDLE_STAGES", "LARGE_STAGES"), blocks.stages, strict=True)),
        "MIDDLE_PARTS": packed.splits * packed.split_steps >= DEEP_STEPS,
        "LARGE_EARLY": blocks.large_m <= 64,
        "CAST": frame.gpu.interpreted and frame.gpu.dtype == torch.bfloat16,
    }  # fmt: skip
    most = columns * max(
        blocks.split_tiles(rows)[0] * packed.splits,
        ceil(rows / blocks.large_m),
    )
    return Launch(
        kernels.convolution, frame.programs(most), args, warps=blocks.warps, stages=1, step=index
    )


def _longest_list(frame: Frame, index: int) -> int:
    """Give the longest that one of a step's lists can be: that of its first phase."""
    h, w = frame.plan.values[frame.plan.steps[index].output].size
    down, across = phases_of(frame.plan, index)
    return frame.slots * ceil(h / down) * ceil(w / across)


def _is_same_place(frame: Frame, index: int, phase: Phase) -> bool:
    """Whether a pixel is made of the input's pixel at its own place alone, where that stays."""
    step = frame.plan.steps[index]
    sizes = {frame.plan.values[value].size for value in (step.inputs[0], step.output)}
    plain = (phase.taps, phase.num, phase.den) == ((1, 1), (1, 1), (1, 1))
    return (
        plain and (phase.bias, phase.first) == ((0, 0), (0, 0)) and len(sizes) == 1
        and frame.windows is None
    )  # fmt: skip
