"""Lowering rules of operations that only move numbers, or do nothing."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from torchdelta.ops import PixelShuffle, PixelUnshuffle, Remap, Reshape
from torchdelta.ops.move import state_shape
from torchdelta.plan.draft import Draft
from torchdelta.plan.lowering import (
    HALVES,
    Args,
    Lowering,
    Rule,
    factors_of,
    is_map,
    is_vector,
    need,
    shape_of,
    source,
)


def _nearest(low: Lowering, a: Args) -> Any:
    x = source(a)
    need(is_map(x), "not a map of one stream")
    factors = factors_of(a)
    rows, cols = (
        _nearest_index(low.node.target, x.shape[1 + i], low.whole[2 + i], factors[i])
        for i in (0, 1)
    )
    return low.add(Remap(rows, cols, what=f"nearest to {low.whole[2]}x{low.whole[3]}"), [x])


def _nearest_index(target: Any, n: int, m: int, factor: float | None) -> tuple[int, ...]:
    """Ask PyTorch itself which input each output of a nearest resize reads."""
    line = torch.arange(n, dtype=torch.float32)[None, None, :, None]
    out = target.overloadpacket.default(line, [m, 1], factor, 1.0)
    return tuple(int(v) for v in out.flatten())


def _pad(low: Lowering, a: Args) -> Any:
    x = source(a)
    need(is_map(x), "padding of something that is no map")
    name = str(low.node.target)
    mode = a.get("mode") or next((m for m in ("reflect", "replicat") if m in name), "constant")
    mode = {"replicat": "replicate"}.get(mode, mode)
    pads = list(a["pad"] if "pad" in a else a["padding"])
    need(len(pads) in (2, 4), "padding of channels or streams")
    pads += [0] * (4 - len(pads))
    index = []
    for n, (lo, hi) in zip(x.shape[1:], ((pads[2], pads[3]), (pads[0], pads[1])), strict=True):
        line = torch.arange(n, dtype=torch.float32)[None, None]
        out = F.pad(line, (lo, hi), mode, -1) if mode == "constant" else F.pad(line, (lo, hi), mode)
        index.append(tuple(int(v) for v in out.flatten()))
    fill = float(a.get("value") or 0.0) if mode == "constant" else 0.0
    draft = low.add(Remap(index[0], index[1], fill=fill, what=f"pad {mode}"), [x])
    if mode == "constant" and fill == 0.0 and min(pads) >= 0:
        draft.pads = (pads[2], pads[3], pads[0], pads[1])
    return draft


def _slice_at(low: Lowering, x: Draft, dim: int, at: range, whole: tuple[int, ...]) -> Draft:
    """Take the indices `at` along an axis of the model's tensor."""
    if at == range(x.whole[dim]):
        return x
    need(is_map(x) or (is_vector(x) and dim == 1), f"slice along axis {dim} of {list(x.whole)}")
    need(dim > 0, "slice along the batch axis mixes the streams")
    if dim == 1 and at.step == 1:
        return low.view("slice", [x], whole, at.start)
    index = tuple(at)
    what = f"slice {at.start}:{at.stop}:{at.step}"
    rows, cols, channels = (index if dim == d else None for d in (2, 3, 1))
    op = Remap(rows, cols, channels, what=what)
    return low.add(op, [x], whole=whole, dtype=x.dtype)


def _slice(low: Lowering, a: Args) -> Any:
    x = a["self"]
    dim = a["dim"] % len(x.whole)
    at = range(x.whole[dim])[slice(a["start"], a["end"], a["step"])]
    return _slice_at(low, x, dim, at, low.whole)


def _split(low: Lowering, a: Args) -> Any:
    x = source(a)
    need(is_map(x) or is_vector(x), "split of something that is no map or vector")
    dim = (a.get("dim") or 0) % len(x.whole)
    need(dim > 0, "split along the batch axis mixes the streams")
    parts, at = [], 0
    for meta in low.node.meta["val"]:
        whole = low.shape(meta)
        parts.append(_slice_at(low, x, dim, range(at, at + whole[dim]), whole))
        at += whole[dim]
    return tuple(parts)


def _cat(low: Lowering, a: Args) -> Any:
    # empty tensors are constants, whatever they were cut from
    parts = [p for p in a["tensors"] if not isinstance(p, Tensor) or p.numel()]
    need(all(is_map(p) for p in parts) or all(is_vector(p) for p in parts),
         "concatenation of other things than maps, or with a constant")  # fmt: skip
    need(a["dim"] % len(low.whole) == 1, "concatenation along another axis than the channels")
    need(len({p.dtype for p in parts}) == 1, "concatenation of several dtypes")
    return parts[0] if len(parts) == 1 else low.view("cat", parts, low.whole, 0)


def _reshape(low: Lowering, a: Args) -> Any:
    x = source(a)
    old, new = x.whole, low.whole
    if old == new:
        return x
    if state_shape(shape_of(old)) == state_shape(shape_of(new)):
        # the same state under another shape, e.g. [1, C, 1, 1] and [1, C]
        draft = low.view("slice", [x], new, 0)
        return draft
    return low.add(Reshape(shape_of(old), shape_of(new)), [x])


def _shuffle(op: type[PixelShuffle] | type[PixelUnshuffle], key: str) -> Any:
    def rule(low: Lowering, a: Args) -> Any:
        need(is_map(a["self"]), "pixel shuffle of something that is no map")
        return low.add(op(int(a[key])), [a["self"]])

    return rule


def _channel_shuffle(low: Lowering, a: Args) -> Any:
    x, groups = a["self"], int(a["groups"])
    need(is_map(x), "channel shuffle of something that is no map")
    order = torch.arange(x.shape[0]).reshape(groups, -1).t().flatten()
    op = Remap(channels_from=tuple(order.tolist()), what="channel shuffle")
    return low.add(op, [x])


def _flip(low: Lowering, a: Args) -> Any:
    x = a["self"]
    need(is_map(x), "flip of something that is no map")
    dims = {d % 4 for d in a["dims"]}
    need(0 not in dims, "a flip along the batch axis mixes the streams")
    rows, cols, channels = (
        tuple(reversed(range(x.whole[d]))) if d in dims else None for d in (2, 3, 1)
    )
    return low.add(Remap(rows, cols, channels, what="flip"), [x])


def _index(low: Lowering, a: Args) -> Any:
    along = [(dim, index) for dim, index in enumerate(a["indices"]) if index is not None]
    need(len(along) == 1, "it picks along several axes at once")
    return _pick(low, a["self"], *along[0])


def _index_select(low: Lowering, a: Args) -> Any:
    return _pick(low, a["self"], a["dim"], a["index"])


def _pick(low: Lowering, x: Any, dim: int, at: Any) -> Any:
    need(is_map(x), "it picks from something that is no map")
    need(isinstance(at, Tensor) and at.ndim == 1, "it picks by numbers that depend on the frame")
    dim %= 4
    need(dim != 0, "it picks along the batch axis")
    index = tuple(int(i) % x.whole[dim] for i in at)
    rows, cols, channels = (index if dim == d else None for d in (2, 3, 1))
    return low.add(Remap(rows, cols, channels, what="pick"), [x])


def _same(_: Lowering, a: Args) -> Any:
    return source(a)


def _cast(low: Lowering, a: Args) -> Any:
    x = a["self"]
    new = low.node.meta["val"].dtype
    need(x.dtype is None and new in HALVES, f"it casts to {new}")
    return x


MOVE: dict[str, Rule] = {
    **dict.fromkeys(("clone", "contiguous", "alias", "detach", "lift_fresh_copy"), _same),
    **dict.fromkeys(("to", "_to_copy", "type_as"), _cast),
    **dict.fromkeys(("upsample_nearest2d", "_upsample_nearest_exact2d"), _nearest),
    **dict.fromkeys(("pad", "constant_pad_nd", "reflection_pad2d", "replication_pad2d"), _pad),
    "slice": _slice,
    **dict.fromkeys(("split", "split_with_sizes", "chunk", "tensor_split"), _split),
    **dict.fromkeys(("cat", "concat", "concatenate"), _cat),
    **dict.fromkeys(
        ("view", "reshape", "_unsafe_view", "flatten", "unflatten", "squeeze", "unsqueeze"),
        _reshape,
    ),
    "pixel_shuffle": _shuffle(PixelShuffle, "upscale_factor"),
    "pixel_unshuffle": _shuffle(PixelUnshuffle, "downscale_factor"),
    "channel_shuffle": _channel_shuffle,
    "flip": _flip,
    "index": _index,
    "index_select": _index_select,
}
