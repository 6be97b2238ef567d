"""The passes over drafts, in the order of `PASSES`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from torchdelta.ops import (
    Affine,
    Binary,
    BinaryConst,
    Conv2d,
    ConvTranspose2d,
    Dense,
    Pointwise,
    Remap,
    Reshape,
)
from torchdelta.plan.draft import Draft, DraftGraph
from torchdelta.plan.ir import Activation, Residual

CONVOLUTIONS = (Conv2d, ConvTranspose2d)


def remove_unused(graph: DraftGraph) -> None:
    """Drop operations that nobody reads."""
    for draft in reversed(list(graph.drafts)):
        if draft.kind != "input" and graph.uses(draft) == 0:
            graph.drafts.remove(draft)


def find_channel_shuffle(graph: DraftGraph) -> None:
    """Turn view → permute of the split channels → view into one index over channels."""
    for last in list(graph.of(Reshape)):
        middle = last.inputs[0]
        if not isinstance(middle.op, Dense) or graph.uses(middle) != 1:
            continue
        first = middle.inputs[0]
        if not isinstance(first.op, Reshape) or graph.uses(first) != 1:
            continue
        order = _permutation(middle)
        source = first.inputs[0]
        if order is None or len(source.shape) != 3 or source.shape != last.shape:
            continue
        split = first.whole[:-2]
        tail = len(order) - 2
        if (
            order[0] != 0
            or order[tail:] != (tail, tail + 1)
            or first.whole[-2:] != source.shape[1:]
            or torch.Size(split).numel() != source.shape[0]
        ):
            continue
        index = torch.arange(source.shape[0]).reshape(split).permute(order[:-2]).flatten()
        last.op = Remap(channels_from=tuple(index.tolist()), what="channel shuffle")
        last.inputs = [source]
        graph.drafts.remove(middle)
        graph.drafts.remove(first)


def _permutation(draft: Draft) -> tuple[int, ...] | None:
    op = draft.op
    assert isinstance(op, Dense)
    rank = len(draft.whole)
    name = op.describe().split(".")[0]
    if name == "permute":
        return tuple(d % rank for d in op.args[1])
    if name == "transpose":
        order = list(range(rank))
        a, b = op.args[1] % rank, op.args[2] % rank
        order[a], order[b] = order[b], order[a]
        return tuple(order)
    return None


def merge_padding(graph: DraftGraph) -> None:
    """Let a convolution do the zero padding in front of it (TensorFlow's "same")."""
    for conv in graph.of(Conv2d):
        pad = conv.inputs[0]
        if pad.pads is None or graph.uses(pad) != 1:
            continue
        assert isinstance(conv.op, Conv2d)
        (a, b, c, d), (e, f, g, h) = pad.pads, conv.op.pad
        conv.op = replace(conv.op, pad=(a + e, b + f, c + g, d + h))
        conv.inputs[0] = pad.inputs[0]
        graph.drafts.remove(pad)


def fold_affine(graph: DraftGraph) -> None:
    """Fold batch norm, and constants per channel, into the convolution before them."""
    for draft in list(graph.drafts):
        scale_shift = _scale_shift(draft)
        if scale_shift is None:
            continue
        conv = draft.inputs[0]
        if not isinstance(conv.op, CONVOLUTIONS) or conv.epilogue or graph.uses(conv) != 1:
            continue
        _fold(conv, *scale_shift, graph.weight_dtype)
        graph.merge_into_consumer(conv, draft)


def _scale_shift(draft: Draft) -> tuple[Tensor, Tensor] | None:
    """Give an operation as x * scale + shift, with [C] or [1] each, or None."""
    if draft.epilogue:
        return None
    if isinstance(draft.op, Affine):
        return draft.weights["scale"], draft.weights["shift"]
    if not isinstance(draft.op, BinaryConst) or draft.op.per_position:
        return None
    scalar, fn, first = draft.op.scalar, draft.op.fn, draft.op.const_first
    const = (
        draft.weights["const"].flatten()
        if scalar is None
        else torch.tensor([scalar], dtype=torch.float64)
    )
    zero, one = torch.zeros(1), torch.ones(1)
    if fn == "mul":
        return const, zero
    if fn == "add":
        return one, const
    if fn == "sub":
        return (-one, const) if first else (one, -const)
    if fn == "div" and not first:
        return 1 / const, zero
    return None


def _fold(conv: Draft, scale: Tensor, shift: Tensor, dtype: torch.dtype) -> None:
    """Fold into weight [Co, C/g, kh, kw] (transposed: [C, Co/g, kh, kw]) and bias, in float64."""
    weight = conv.weights["weight"].double()
    scale, shift = scale.double(), shift.double()
    op = conv.op
    transposed = isinstance(op, ConvTranspose2d)
    assert isinstance(op, CONVOLUTIONS)
    channels = weight.shape[1] * op.groups if transposed else weight.shape[0]
    scale, shift = scale.expand(channels), shift.expand(channels)
    bias = conv.weights.get("bias", torch.zeros(channels)).double()
    if transposed:
        # the weight's second axis counts the outputs within the group of the first
        per_group = scale.reshape(op.groups, 1, -1, 1, 1)
        weight = (weight.unflatten(0, (op.groups, -1)) * per_group).flatten(0, 1)
    else:
        weight = weight * scale[:, None, None, None]
    conv.weights = {"weight": weight.to(dtype), "bias": (bias * scale + shift).to(dtype)}


def fuse_epilogues(graph: DraftGraph) -> None:
    """Fuse activations into what produces their input, additions into a convolution."""
    for draft in list(graph.drafts):
        if draft not in graph.drafts or draft.dtype is not None:
            continue
        if isinstance(draft.op, Pointwise) and not draft.epilogue:
            producer = draft.inputs[0]
            if _can_take_epilogue(graph, producer):
                producer.epilogue += (Activation(draft.op, draft.weights),)
                graph.merge_into_consumer(producer, draft)
        elif isinstance(draft.op, Binary) and not draft.epilogue:
            _fuse_residual(graph, draft)


def _can_take_epilogue(graph: DraftGraph, producer: Draft) -> bool:
    return (
        producer.kind == "op"
        and producer.op is not None
        and producer.op.gated
        and producer.dtype is None
        and graph.uses(producer) == 1
    )


def _fuse_residual(graph: DraftGraph, draft: Draft) -> None:
    """Let the convolution that runs last of the two operands add the other one."""
    left, right = draft.inputs
    if left is right or left.whole != right.whole:
        return
    hosts = [
        d
        for d in draft.inputs
        if isinstance(d.op, CONVOLUTIONS)
        and _can_take_epilogue(graph, d)
        and not any(isinstance(e, Residual) for e in d.epilogue)
    ]
    if not hosts:
        return
    host = max(hosts, key=graph.drafts.index)
    other = right if host is left else left
    host.inputs.append(other)
    assert isinstance(draft.op, Binary)
    residual = Residual(draft.op, len(host.inputs) - 1, first=other is left)
    host.epilogue += (residual,)
    graph.merge_into_consumer(host, draft)


PASSES: list[Callable[[DraftGraph], None]] = [
    remove_unused,
    find_channel_shuffle,
    merge_padding,
    fold_affine,
    fuse_epilogues,
]
