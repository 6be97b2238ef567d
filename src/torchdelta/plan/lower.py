"""From an exported ATen graph to drafts: one function per ATen operation, in the table `LOWER`.

Everything is lowered for a batch of one: streams never meet inside a step.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree
from torch.utils.flop_counter import FlopCounterMode

from torchdelta.errors import CaptureError
from torchdelta.ops import (
    AdaptivePool2d,
    Affine,
    AvgPool2d,
    Bilinear,
    Binary,
    BinaryConst,
    Conv2d,
    ConvTranspose2d,
    Dense,
    GlobalReduce,
    MaxPool2d,
    PixelShuffle,
    PixelUnshuffle,
    Pointwise,
    Remap,
    Reshape,
    Softmax,
    TileReduce,
)
from torchdelta.ops.base import Op
from torchdelta.ops.dense import Arg, Const
from torchdelta.ops.move import state_shape
from torchdelta.ops.pointwise import BINARY, POINTWISE
from torchdelta.ops.pool import TILE_PX, Kind
from torchdelta.plan.draft import Draft, DraftGraph

Args = dict[str, Any]
_HALVES = (torch.float32, torch.float16, torch.bfloat16)


class NotSparse(Exception):
    """This call has no sparse form; the message says why, and it becomes a dense step."""


def lower(program: ExportedProgram) -> DraftGraph:
    """Lower an exported program of one input tensor.

    Raises: CaptureError with all operations that cannot be run as steps.
    """
    return _Lowering(program).run()


def pair(value: Any, default: Any = None) -> tuple[Any, Any]:
    """Make (h, w) out of a number, a list of one or two, or an empty list (the default)."""
    if isinstance(value, (list, tuple)):
        if not value:
            return pair(default)
        return (value[0], value[-1])
    return (value, value)


class _Lowering:
    """Walks the graph; `env` holds for each node a Draft, a constant Tensor, or plain values."""

    def __init__(self, program: ExportedProgram) -> None:
        self.program = program
        self.env: dict[fx.Node, Any] = {}
        self.graph = DraftGraph([], [])
        self.refusals: list[str] = []
        self.names: dict[str, int] = {"input": 1}
        self.batch: Any = None
        self.node: fx.Node

    def run(self) -> DraftGraph:
        signature = self.program.graph_signature
        if signature.buffers_to_mutate:
            names = ", ".join(signature.buffers_to_mutate.values())
            self.refusals.append(f"the model writes to its buffers while it runs: {names}")
        if len(signature.user_inputs) != 1:
            self.refusals.append(f"forward takes {len(signature.user_inputs)} inputs, expected 1")
        for node in self.program.graph.nodes:
            if node.op == "placeholder":
                self._placeholder(node)
            elif node.op == "call_function":
                self._call(node)
            elif node.op == "output":
                leaves = [
                    leaf
                    for leaf, spec in zip(node.args[0], signature.output_specs, strict=True)
                    if spec.kind.name == "USER_OUTPUT"
                ]
                self.graph.outputs = [self._value(leaf) for leaf in leaves]
            elif node.op != "get_attr":
                self.refusals.append(f"{node.name}: {node.op} {node.target} is not supported")
        if not self.refusals and not any(isinstance(o, Draft) for o in self.graph.outputs):
            self.refusals.append("no output of the model depends on the frame")
        if self.refusals:
            raise CaptureError(
                "the model cannot be turned into a plan:\n  - " + "\n  - ".join(self.refusals)
            )
        return self.graph

    def _placeholder(self, node: fx.Node) -> None:
        signature = self.program.graph_signature
        for table in (signature.inputs_to_parameters, signature.inputs_to_buffers):
            if node.name in table:
                self.env[node] = self.program.state_dict.get(
                    table[node.name], self.program.constants.get(table[node.name])
                )
                return
        if node.name in signature.inputs_to_lifted_tensor_constants:
            name = signature.inputs_to_lifted_tensor_constants[node.name]
            self.env[node] = self.program.constants[name]
            return
        value = node.meta.get("val")
        if not isinstance(value, Tensor):
            self.env[node] = value
            return
        if value.ndim != 4:
            self.refusals.append(
                f"the input has shape {list(value.shape)}, expected a frame [N, C, H, W]"
            )
        batch = value.shape[0]
        self.batch = batch.node.expr if isinstance(batch, torch.SymInt) else None
        whole = self._whole(value)
        draft = Draft("input", "input", whole[1:], whole)
        self.graph.drafts.append(draft)
        self.env[node] = draft

    def _int(self, value: Any) -> Any:
        """Evaluate a symbolic number for a batch of one."""
        if isinstance(value, (torch.SymInt, torch.SymFloat, torch.SymBool)):
            expr = value.node.expr
            expr = expr.subs({self.batch: 1}) if self.batch is not None else expr
            if expr.free_symbols:
                raise NotSparse(f"its size depends on values ({expr})")
            kind = int if isinstance(value, torch.SymInt) else float
            return kind(expr) if not isinstance(value, torch.SymBool) else bool(expr)
        return value

    def _whole(self, value: Tensor) -> tuple[int, ...]:
        return tuple(int(self._int(n)) for n in value.shape)

    def _value(self, arg: Any) -> Any:
        if isinstance(arg, fx.Node):
            return self.env[arg]
        return self._int(arg)

    def _call(self, node: fx.Node) -> None:
        self.node = node
        args, kwargs = pytree.tree_map(
            self._value, (list(node.args), dict(node.kwargs)), is_leaf=lambda a: isinstance(a, fx.Node)
        )  # fmt: skip
        drafts = [a for a in pytree.tree_leaves((args, kwargs)) if isinstance(a, Draft)]
        try:
            if node.target is operator.getitem:
                self.env[node] = self._getitem(args[0], args[1])
            elif not drafts:
                self.env[node] = self._constant(node, args, kwargs)
            elif not isinstance(node.meta.get("val"), (Tensor, list, tuple)):
                self.env[node] = self._int(node.meta.get("val"))
            else:
                self.env[node] = self._operation(node, args, kwargs)
        except (CaptureError, NotSparse) as error:
            self.refusals.append(f"{self.name()}: {node.target}: {error}")
            self.env[node] = self._dummy(node)

    def _dummy(self, node: fx.Node) -> Any:
        """Stand in for a refused result, so that the walk finds all reasons."""
        return Draft(node.name, "op", (1,), (1, 1))

    def _constant(self, node: fx.Node, args: list[Any], kwargs: Args) -> Any:
        """Run an operation that does not depend on the frame, once and for all."""
        value = node.meta.get("val")
        if isinstance(value, (torch.SymInt, torch.SymFloat, torch.SymBool)):
            return self._int(value)
        if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
            raise CaptureError("it draws random numbers; remove it or seed it outside the model")
        assert callable(node.target)
        return node.target(*args, **kwargs)

    def _getitem(self, source: Any, index: int) -> Any:
        if isinstance(source, (tuple, list)):
            item = source[index]
            return item() if callable(item) and not isinstance(item, Tensor) else item
        raise CaptureError(f"item {index} of something that is not a tuple")

    def _operation(self, node: fx.Node, args: list[Any], kwargs: Args) -> Any:
        target: Any = node.target
        if torch.Tag.nondeterministic_seeded in getattr(target, "tags", ()) and not (
            "dropout" in str(target)
        ):
            raise CaptureError("it draws random numbers; remove it or seed it outside the model")
        name = getattr(getattr(target, "overloadpacket", None), "__name__", str(target))
        name = name.rstrip("_") if not name.startswith("_") else name
        try:
            if not hasattr(target, "_schema"):
                raise NotSparse("not an ATen operation")
            bound = bind(target, args, kwargs)
            rule = LOWER.get(name)
            if rule is None and name in POINTWISE:
                rule = _pointwise
            if rule is None:
                raise NotSparse("no sparse form")
            return rule(self, bound)
        except NotSparse as why:
            return self._dense(node, args, kwargs, str(why))

    def _dense(self, node: fx.Node, args: list[Any], kwargs: Args, reason: str) -> Any:
        inputs: list[Draft] = []
        weights: dict[str, Tensor] = {}

        def note(leaf: Any) -> Any:
            if isinstance(leaf, Draft):
                if leaf not in inputs:
                    inputs.append(leaf)
                return Arg(inputs.index(leaf))
            if isinstance(leaf, Tensor):
                weights[f"const{len(weights)}"] = leaf
                return Const(f"const{len(weights) - 1}")
            return leaf

        tree_args, tree_kwargs = pytree.tree_map(note, (args, kwargs))
        macs = _count_macs(node)

        def make(item: int | None, meta: Any) -> Draft:
            if not isinstance(meta, Tensor):
                raise CaptureError("it returns something that is no tensor")
            op = Dense(
                target=node.target,  # type: ignore[arg-type]
                args=tuple(tree_args),
                kwargs=tuple(tree_kwargs.items()),
                shapes=tuple(d.whole for d in inputs),
                flops_macs=macs if not item else 0,
                item=item,
            )
            return self.add(op, inputs, weights, meta=meta, reason=reason)

        value = node.meta["val"]
        if isinstance(value, Tensor):
            return make(None, value)
        # results that nobody takes must not become steps
        return tuple(lambda i=i, v=v: make(i, v) for i, v in enumerate(value))

    def name(self) -> str:
        """Name the current node by its place in the model, if it has one."""
        stack = self.node.meta.get("nn_module_stack")
        path = list(stack.values())[-1][0] if stack else ""
        path = path.removeprefix("L['self'].").removeprefix("L__self___").strip(".")
        return str(path or self.node.name).replace("slice(None, None, None)", "")

    def add(
        self,
        op: Op,
        inputs: Sequence[Draft],
        weights: dict[str, Tensor] | None = None,
        meta: Tensor | None = None,
        whole: tuple[int, ...] | None = None,
        dtype: torch.dtype | None = None,
        reason: str | None = None,
    ) -> Draft:
        """Append an operation; its shape is the current node's, unless `whole` says another."""
        if meta is None and whole is None:
            meta = self.node.meta["val"]
        if whole is None:
            assert meta is not None
            whole = self._whole(meta)
            dtype = None if meta.dtype in _HALVES else meta.dtype
        name = self.name()
        self.names[name] = count = self.names.get(name, 0) + 1
        draft = Draft(
            name if count == 1 else f"{name}:{count}",
            "op",
            shape_of(whole),
            whole,
            list(inputs),
            op,
            {k: w.detach() for k, w in (weights or {}).items()},
            dtype,
            reason=reason,
        )
        self.graph.drafts.append(draft)
        return draft

    def view(self, kind: Any, inputs: Sequence[Draft], whole: tuple[int, ...], start: int) -> Draft:
        """Append a view of channels."""
        draft = Draft(
            f"{self.node.name}@{start}" if kind == "slice" else self.node.name,
            kind,
            shape_of(whole),
            whole,
            list(inputs),
            dtype=inputs[0].dtype,
            start=start,
        )
        self.graph.drafts.append(draft)
        return draft

    @property
    def whole(self) -> tuple[int, ...]:
        """The current node's shape for a batch of one."""
        return self._whole(self.node.meta["val"])


def shape_of(whole: tuple[int, ...]) -> tuple[int, ...]:
    """Give a value's shape without the batch; one without a batch axis of 1 is stored flat."""
    return whole[1:] if whole[:1] == (1,) else (prod(whole),)


def bind(target: Any, args: list[Any], kwargs: Args) -> Args:
    """Name the arguments of an ATen call, with its defaults."""
    bound: Args = {}
    for i, arg in enumerate(target._schema.arguments):
        if i < len(args):
            bound[arg.name] = args[i]
        elif arg.name in kwargs:
            bound[arg.name] = kwargs[arg.name]
        else:
            bound[arg.name] = arg.default_value if arg.has_default_value() else None
    return bound


def _count_macs(node: fx.Node) -> int:
    """Let PyTorch's flop counter count a dense call for one stream."""

    def fake(arg: Any) -> Any:
        return arg.meta["val"] if isinstance(arg, fx.Node) else arg

    def one_stream(leaf: Any) -> Any:
        if isinstance(leaf, Tensor):
            sizes = [1 if isinstance(n, torch.SymInt) else n for n in leaf.shape]
            return torch.empty(sizes, dtype=leaf.dtype, device="meta")
        return 1 if isinstance(leaf, torch.SymInt) else leaf

    args, kwargs = pytree.tree_map(
        fake, (list(node.args), dict(node.kwargs)), is_leaf=lambda a: isinstance(a, fx.Node)
    )
    args, kwargs = pytree.tree_map(one_stream, (args, kwargs))
    try:
        with FlopCounterMode(display=False) as counter:
            node.target(*args, **kwargs)  # type: ignore[operator]
        return counter.get_total_flops() // 2
    except Exception:
        # the count is for the report only: some operations have no shape rule
        return 0


def need(condition: bool, reason: str) -> None:
    """Leave to the dense path unless the condition holds."""
    if not condition:
        raise NotSparse(reason)


def is_map(draft: Any) -> bool:
    """Whether a result is a map [C, H, W] of one stream."""
    return isinstance(draft, Draft) and len(draft.shape) == 3 and draft.whole[0] == 1


def is_vector(draft: Any) -> bool:
    """Whether a result is a vector [C] of one stream."""
    return isinstance(draft, Draft) and len(draft.shape) == 1 and draft.whole[0] == 1


def _tensors(**weights: Any) -> dict[str, Tensor]:
    out = {}
    for name, w in weights.items():
        if w is None:
            continue
        need(isinstance(w, Tensor), f"its {name} is computed from the frame")
        out[name] = w.float()
    return out


def _same(_: _Lowering, a: Args) -> Any:
    return next(v for v in a.values() if isinstance(v, Draft))


def _cast(low: _Lowering, a: Args) -> Any:
    x = _same(low, a)
    new = low.node.meta["val"].dtype
    need(x.dtype is None and new in _HALVES, f"it casts to {new}")
    return x


def _dropout(low: _Lowering, a: Args) -> Any:
    need(not a.get("train"), "dropout in train mode")
    return a["input"]


def _conv(low: _Lowering, a: Args) -> Any:
    x, weight = a["input"], a["weight"]
    need(is_map(x), "not a 2-D convolution of one stream")
    need(isinstance(weight, Tensor) and weight.ndim == 4, "its weight is computed from the frame")
    weights = _tensors(weight=weight, bias=a["bias"])
    kernel = (weight.shape[2], weight.shape[3])
    stride, dilation = pair(a["stride"], 1), pair(a["dilation"], 1)
    if a.get("transposed") or "transpose" in str(low.node.target):
        pad, more = pair(a["padding"], 0), pair(a["output_padding"], 0)
        op: Op = ConvTranspose2d(kernel, stride, dilation, pad, more, a["groups"])
        return low.add(op, [x], weights)
    if isinstance(a["padding"], str):
        same = [
            d * (k - 1) if a["padding"] == "same" else 0
            for d, k in zip(dilation, kernel, strict=True)
        ]
        pads = (same[0] // 2, same[0] - same[0] // 2, same[1] // 2, same[1] - same[1] // 2)
    else:
        ph, pw = pair(a["padding"], 0)
        pads = (ph, ph, pw, pw)
    return low.add(Conv2d(kernel, stride, dilation, pads, a["groups"]), [x], weights)


def _linear(low: _Lowering, a: Args) -> Any:
    x, weight = a["input"], a["weight"]
    need(is_vector(x), "linear on something that is not one vector per stream")
    weights = _tensors(weight=weight, bias=a["bias"])
    weights["weight"] = weights["weight"][:, :, None, None]
    return low.add(Conv2d((1, 1)), [x], weights)


def _addmm(low: _Lowering, a: Args) -> Any:
    need(a.get("beta", 1) == 1 and a.get("alpha", 1) == 1, "scaled matrix product")
    left, right = a.get("mat1", a.get("self")), a["mat2"]
    need(isinstance(left, Draft) and isinstance(right, Tensor), "product of two values")
    bias = a["self"] if "mat1" in a else None
    need(bias is None or isinstance(bias, Tensor), "its bias is computed from the frame")
    return _linear(low, {"input": left, "weight": right.t(), "bias": bias})


def _batch_norm(low: _Lowering, a: Args) -> Any:
    x = a["input"]
    need(not a.get("training"), "batch norm in train mode mixes the streams")
    need(is_map(x) or is_vector(x), "batch norm over something that is no map or vector")
    mean, var = a["running_mean"], a["running_var"]
    need(isinstance(mean, Tensor), "batch norm without running statistics mixes the streams")
    scale = 1 / torch.sqrt(var.double() + a["eps"])
    if a["weight"] is not None:
        scale = scale * a["weight"].double()
    shift = -mean.double() * scale
    if a["bias"] is not None:
        shift = shift + a["bias"].double()
    value = low.node.meta["val"]
    several = isinstance(value, (tuple, list))
    meta = value[0] if several else value
    draft = low.add(Affine(), [x], {"scale": scale.float(), "shift": shift.float()}, meta=meta)
    return (draft,) if several else draft


def _max_pool(low: _Lowering, a: Args) -> Any:
    x = a["self"]
    need(is_map(x), "not a 2-D pool of one stream")
    kernel = pair(a["kernel_size"])
    op = MaxPool2d(
        kernel, pair(a["stride"], kernel), pair(a["padding"], 0), pair(a["dilation"], 1),
        bool(a["ceil_mode"]),
    )  # fmt: skip
    value = low.node.meta["val"]
    if not isinstance(value, (tuple, list)):
        return low.add(op, [x])
    need(all(user.args[1] == 0 for user in low.node.users), "the indices of a max pool are used")
    return (low.add(op, [x], meta=value[0]),)


def _avg_pool(low: _Lowering, a: Args) -> Any:
    x = a["self"]
    need(is_map(x), "not a 2-D pool of one stream")
    kernel = pair(a["kernel_size"])
    op = AvgPool2d(
        kernel, pair(a["stride"], kernel), pair(a["padding"], 0), (1, 1), bool(a["ceil_mode"]),
        bool(a["count_include_pad"]), a["divisor_override"],
    )  # fmt: skip
    return low.add(op, [x])


def _global(low: _Lowering, x: Draft, how: Kind, whole: tuple[int, ...] | None = None) -> Draft:
    c, h, w = x.shape
    tiles = (1, c, -(-h // TILE_PX), -(-w // TILE_PX))
    part = low.add(TileReduce(how), [x], whole=tiles, dtype=torch.float32)
    if whole is None:
        return low.add(GlobalReduce(how, h * w), [part])
    return low.add(GlobalReduce(how, h * w), [part], whole=whole)


def _adaptive(how: Kind) -> Callable[[_Lowering, Args], Any]:
    def rule(low: _Lowering, a: Args) -> Any:
        x = a["self"]
        need(is_map(x), "not a 2-D pool of one stream")
        c, h, w = x.shape
        size = pair(a["output_size"])
        value = low.node.meta["val"]
        several = isinstance(value, (tuple, list))
        need(
            not several or all(user.args[1] == 0 for user in low.node.users),
            "the indices of a max pool are used",
        )
        whole = (1, c, *size)
        if size == (h, w):
            draft = x
        elif size == (1, 1):
            draft = _global(low, x, how, whole)
        else:
            draft = low.add(AdaptivePool2d(size, how), [x], whole=whole)
        return (draft,) if several else draft

    return rule


def _reduce_hw(how: Kind) -> Callable[[_Lowering, Args], Any]:
    def rule(low: _Lowering, a: Args) -> Any:
        x, dims = a["self"], a["dim"]
        need(is_map(x), f"{how} of something that is no map")
        dims = [dims] if isinstance(dims, int) else list(dims or [])
        need(
            sorted(d % 4 for d in dims) == [2, 3],
            f"{how} over the axes {dims}, not height and width",
        )
        need(a.get("dtype") is None, "it casts")
        return _global(low, x, how)

    return rule


def _nearest(low: _Lowering, a: Args) -> Any:
    x = a.get("input", a.get("self"))
    need(is_map(x), "not a map of one stream")
    factors = _factors(a)
    rows, cols = (
        _nearest_index(low.node.target, x.shape[1 + i], low.whole[2 + i], factors[i])
        for i in (0, 1)
    )
    whole = all(f is not None and f == int(f) for f in factors)
    op = Remap(rows, cols, what=f"nearest to {low.whole[2]}x{low.whole[3]}", follows_shift=whole)
    return low.add(op, [x])


def _nearest_index(target: Any, n: int, m: int, factor: float | None) -> tuple[int, ...]:
    """Ask PyTorch itself which input each output of a nearest resize reads."""
    line = torch.arange(n, dtype=torch.float32)[None, None, :, None]
    out = target.overloadpacket.default(line, [m, 1], factor, 1.0)
    return tuple(int(v) for v in out.flatten())


def _factors(a: Args) -> tuple[float | None, float | None]:
    if "scale_factors" in a:
        f = a["scale_factors"]
        return (None, None) if not f else (float(f[0]), float(f[-1]))
    return a.get("scales_h"), a.get("scales_w")


def _bilinear(low: _Lowering, a: Args) -> Any:
    x = a.get("input", a.get("self"))
    need(is_map(x), "not a map of one stream")
    h, w = _factors(a)
    factors = (h, w) if h is not None and w is not None else None
    size = (low.whole[2], low.whole[3])
    return low.add(Bilinear(size, bool(a["align_corners"]), factors), [x])


def _pad(low: _Lowering, a: Args) -> Any:
    x = a.get("self", a.get("input"))
    need(is_map(x), "padding of something that is no map")
    name = str(low.node.target)
    mode = a.get("mode") or next((m for m in ("reflect", "replicat") if m in name), "constant")
    mode = {"replicat": "replicate"}.get(mode, mode)
    pads = list(a.get("pad", a.get("padding")))
    need(len(pads) in (2, 4), "padding of channels or streams")
    pads += [0] * (4 - len(pads))
    index = []
    for n, (lo, hi) in zip(x.shape[1:], ((pads[2], pads[3]), (pads[0], pads[1])), strict=True):
        line = torch.arange(n, dtype=torch.float32)[None, None]
        out = F.pad(line, (lo, hi), mode, -1) if mode == "constant" else F.pad(line, (lo, hi), mode)
        index.append(tuple(int(v) for v in out.flatten()))
    fill = float(a.get("value") or 0.0) if mode == "constant" else 0.0
    op = Remap(index[0], index[1], fill=fill, what=f"pad {mode}")
    draft = low.add(op, [x])
    if mode == "constant" and fill == 0.0 and min(pads) >= 0:
        draft.pads = (pads[2], pads[3], pads[0], pads[1])
    return draft


def _slice_at(low: _Lowering, x: Draft, dim: int, at: range, whole: tuple[int, ...]) -> Draft:
    """Take the indices `at` along an axis of the model's tensor."""
    if at == range(x.whole[dim]):
        return x
    need(is_map(x) or (is_vector(x) and dim == 1), f"slice along axis {dim} of {list(x.whole)}")
    need(dim > 0, "slice along the batch axis mixes the streams")
    if dim == 1 and at.step == 1:
        return low.view("slice", [x], whole, at.start)
    index = tuple(at)
    op = Remap(
        *(index if dim == d else None for d in (2, 3, 1)), what=f"slice {at.start}:{at.stop}:{at.step}"
    )  # fmt: skip
    return low.add(op, [x], whole=whole, dtype=x.dtype)


def _slice(low: _Lowering, a: Args) -> Any:
    x = a["self"]
    dim = a["dim"] % len(x.whole)
    at = range(x.whole[dim])[slice(a["start"], a["end"], a["step"])]
    return _slice_at(low, x, dim, at, low.whole)


def _split(low: _Lowering, a: Args) -> Any:
    x = a.get("self", a.get("input"))
    need(is_map(x) or is_vector(x), "split of something that is no map or vector")
    dim = (a.get("dim") or 0) % len(x.whole)
    need(dim > 0, "split along the batch axis mixes the streams")
    parts, at = [], 0
    for meta in low.node.meta["val"]:
        whole = low._whole(meta)
        parts.append(_slice_at(low, x, dim, range(at, at + whole[dim]), whole))
        at += whole[dim]
    return tuple(parts)


def _cat(low: _Lowering, a: Args) -> Any:
    parts = list(a["tensors"])
    need(all(is_map(p) for p in parts) or all(is_vector(p) for p in parts),
         "concatenation of other things than maps, or with a constant")  # fmt: skip
    need(a["dim"] % len(low.whole) == 1, "concatenation along another axis than the channels")
    need(len({p.dtype for p in parts}) == 1, "concatenation of several dtypes")
    return parts[0] if len(parts) == 1 else low.view("cat", parts, low.whole, 0)


def _reshape(low: _Lowering, a: Args) -> Any:
    x = a.get("self", a.get("input"))
    old, new = x.whole, low.whole
    if old == new:
        return x
    if state_shape(shape_of(old)) == state_shape(shape_of(new)):
        # the same state under another shape, e.g. [1, C, 1, 1] and [1, C]
        draft = low.view("slice", [x], new, 0)
        return draft
    return low.add(Reshape(shape_of(old), shape_of(new)), [x])


def _binary(fn: str) -> Callable[[_Lowering, Args], Any]:
    def rule(low: _Lowering, a: Args) -> Any:
        left, right = a["self"], a.get("other", a.get("exponent"))
        need(a.get("rounding_mode") is None, "division with rounding")
        alpha = 1.0 if a.get("alpha") is None else float(a["alpha"])
        drafts = [d for d in (left, right) if isinstance(d, Draft)]
        need(
            low.node.meta["val"].dtype in _HALVES and all(d.dtype is None for d in drafts),
            "not in floating point",
        )
        if len(drafts) == 2:
            fits = left.whole == right.whole or (is_map(left) and is_map(right))
            need(fits, f"broadcast of {list(left.whole)} and {list(right.whole)}")
            return low.add(Binary(fn, alpha), [left, right])
        (x,) = drafts
        const = right if x is left else left
        return _with_const(low, fn, x, const, alpha, const_first=x is right)

    return rule


def _with_const(
    low: _Lowering, fn: str, x: Draft, const: Any, alpha: float, const_first: bool
) -> Draft:
    need(low.whole == x.whole, "a constant that enlarges the value")
    t = const if isinstance(const, Tensor) else torch.tensor(float(const))
    need(not t.is_complex(), "complex numbers")
    t = t.float()
    if alpha != 1.0:
        need(not const_first, "a scaled value is taken from a constant")
        t = t * alpha
    if t.numel() == 1:
        t = t.reshape(1, 1, 1)
    elif is_map(x):
        t = t.reshape((1,) * (4 - t.ndim) + tuple(t.shape))[0].permute(1, 2, 0)
    else:
        t = t.expand(x.whole).reshape(1, 1, -1)
    op = BinaryConst(fn, const_first, per_position=t.shape[0] > 1 or t.shape[1] > 1)
    return low.add(op, [x], {"const": t.contiguous()})


def _rsub(low: _Lowering, a: Args) -> Any:
    need(a.get("alpha") in (None, 1), "scaled subtraction")
    return _binary("sub")(low, {"self": a["other"], "other": a["self"]})


def _pointwise(low: _Lowering, a: Args) -> Any:
    (x,) = [v for v in a.values() if isinstance(v, Draft)] or [None]
    need(isinstance(x, Draft) and x.dtype is None, "not in floating point")
    need(not any(isinstance(v, Tensor) for v in a.values()), "with a tensor as argument")
    target: Any = low.node.target
    schema = target._schema.arguments
    need(isinstance(a[schema[0].name], Draft), "with a value as argument")
    rest = [arg for arg in schema[1:]]
    args = tuple(a[arg.name] for arg in rest if not arg.kwarg_only)
    kwargs = tuple((arg.name, a[arg.name]) for arg in rest if arg.kwarg_only)
    name = target.overloadpacket.__name__.rstrip("_")
    return low.add(Pointwise(name, args, kwargs), [x])


def _pow(low: _Lowering, a: Args) -> Any:
    need(isinstance(a["self"], Draft), "a constant to the power of a value")
    return _binary("pow")(low, a)


def _prelu(low: _Lowering, a: Args) -> Any:
    x, slope = a["self"], a["weight"]
    need(is_map(x) or is_vector(x), "prelu of something that is no map or vector")
    need(isinstance(slope, Tensor), "its slope is computed from the frame")
    return low.add(Pointwise("prelu"), [x], {"slope": slope.float().flatten()})


def _softmax(log: bool) -> Callable[[_Lowering, Args], Any]:
    def rule(low: _Lowering, a: Args) -> Any:
        x = a.get("self", a.get("input"))
        need(is_map(x) or is_vector(x), "softmax of something that is no map or vector")
        need(a["dim"] % len(x.whole) == 1, "softmax over another axis than the channels")
        return low.add(Softmax(log), [x])

    return rule


def _shuffle(op: type[PixelShuffle] | type[PixelUnshuffle], key: str) -> Any:
    def rule(low: _Lowering, a: Args) -> Any:
        need(is_map(a["self"]), "pixel shuffle of something that is no map")
        return low.add(op(int(a[key])), [a["self"]])

    return rule


def _channel_shuffle(low: _Lowering, a: Args) -> Any:
    x, groups = a["self"], int(a["groups"])
    need(is_map(x), "channel shuffle of something that is no map")
    order = torch.arange(x.shape[0]).reshape(groups, -1).t().flatten()
    op = Remap(channels_from=tuple(order.tolist()), what="channel shuffle")
    return low.add(op, [x])


def _flip(low: _Lowering, a: Args) -> Any:
    x = a["self"]
    need(is_map(x), "flip of something that is no map")
    dims = {d % 4 for d in a["dims"]}
    need(0 not in dims, "a flip along the batch axis mixes the streams")
    index = [tuple(reversed(range(x.whole[d]))) if d in dims else None for d in (2, 3, 1)]
    op = Remap(*index, what="flip", follows_shift=dims <= {1})
    return low.add(op, [x])


LOWER: dict[str, Callable[[_Lowering, Args], Any]] = {
    **dict.fromkeys(("clone", "contiguous", "alias", "detach", "lift_fresh_copy"), _same),
    **dict.fromkeys(("to", "_to_copy", "type_as"), _cast),
    **dict.fromkeys(("dropout", "feature_dropout", "alpha_dropout"), _dropout),
    **dict.fromkeys(("conv2d", "convolution", "conv_transpose2d"), _conv),
    "linear": _linear,
    **dict.fromkeys(("addmm", "mm"), _addmm),
    **dict.fromkeys(
        (
            "batch_norm",
            "native_batch_norm",
            "_native_batch_norm_legit_no_training",
            "_native_batch_norm_legit",
        ),
        _batch_norm,
    ),
    **dict.fromkeys(("max_pool2d", "max_pool2d_with_indices"), _max_pool),
    "avg_pool2d": _avg_pool,
    **dict.fromkeys(("adaptive_avg_pool2d", "_adaptive_avg_pool2d"), _adaptive("avg")),
    "adaptive_max_pool2d": _adaptive("max"),
    "mean": _reduce_hw("avg"),
    "amax": _reduce_hw("max"),
    **dict.fromkeys(("upsample_nearest2d", "_upsample_nearest_exact2d"), _nearest),
    "upsample_bilinear2d": _bilinear,
    **dict.fromkeys(("pad", "constant_pad_nd", "reflection_pad2d", "replication_pad2d"), _pad),
    "slice": _slice,
    **dict.fromkeys(("split", "split_with_sizes", "chunk", "tensor_split"), _split),
    **dict.fromkeys(("cat", "concat", "concatenate"), _cat),
    **dict.fromkeys(
        ("view", "reshape", "_unsafe_view", "flatten", "unflatten", "squeeze", "unsqueeze"),
        _reshape,
    ),
    **{fn: _binary(fn) for fn in BINARY if fn != "pow"},
    "rsub": _rsub,
    "pow": _pow,
    **dict.fromkeys(("prelu", "_prelu_kernel"), _prelu),
    **dict.fromkeys(("softmax", "_softmax"), _softmax(log=False)),
    **dict.fromkeys(("log_softmax", "_log_softmax"), _softmax(log=True)),
    "pixel_shuffle": _shuffle(PixelShuffle, "upscale_factor"),
    "pixel_unshuffle": _shuffle(PixelUnshuffle, "downscale_factor"),
    "channel_shuffle": _channel_shuffle,
    "flip": _flip,
}
