"""The walk from an exported ATen graph to drafts, with what every lowering rule needs.

Everything is lowered for a batch of one: streams never meet inside a step.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from torchdelta.errors import CaptureError, first_lines
from torchdelta.ops import Dense
from torchdelta.ops.base import Op
from torchdelta.ops.dense import Arg, Const, name_of
from torchdelta.ops.functions import POINTWISE
from torchdelta.plan.constants import (
    Constants,
    aten_name,
    bind,
    draws_random_numbers,
    fold_constants,
    whole_numbers,
    written_state,
)
from torchdelta.plan.draft import Draft, DraftGraph
from torchdelta.plan.sizes import NotSparse, Sizes

Args = dict[str, Any]
# why an operation that nobody has written a sparse form for is dense
NO_FORM = "no sparse form"
HALVES = (torch.float32, torch.float16, torch.bfloat16)


Rule = Callable[["Lowering", Args], Any]


# they reduce over every axis where none is named
REDUCTIONS = (
    "all amax amin any argmax argmin logsumexp max mean median min nanmean norm prod std sum var"
).split()
# other spellings of the same operation, by name or by overload
ALIASES = {
    "max.other": "maximum",
    "min.other": "minimum",
    "absolute": "abs",
    "arccos": "acos",
    "arcsin": "asin",
    "arctan": "atan",
    "clip": "clamp",
    "divide": "div",
    "fix": "trunc",
    "multiply": "mul",
    "negative": "neg",
    "subtract": "sub",
    "true_divide": "div",
}
# they let the items along an axis see each other, or pick some
ALONG_AXIS = frozenset(
    REDUCTIONS
    + (
        "_log_softmax _softmax cat chunk cummax cumprod cumsum diff flip gather index_select "
        "log_softmax logcumsumexp roll select slice softmax sort split split_with_sizes topk unbind"
    ).split()
)


def pair(value: Any, default: Any = None) -> tuple[Any, Any]:
    """Make (h, w) out of a number, a list of one or two, or an empty list (the default)."""
    if isinstance(value, (list, tuple)):
        if not value:
            return pair(default)
        return (value[0], value[-1])
    return (value, value)


class Lowering:
    """Walks the graph; `env` holds for each node a Draft, a constant Tensor, or plain values."""

    def __init__(
        self,
        program: ExportedProgram,
        rules: Mapping[str, Rule],
        unary: Rule,
        weight_dtype: torch.dtype,
    ) -> None:
        self.rules, self.unary = rules, unary
        self.program = program
        self.env: dict[fx.Node, Any] = {}
        self.graph = DraftGraph([], [], weight_dtype=weight_dtype)
        self.refusals: list[str] = []
        self.refused: set[Draft] = set()
        # the first exception behind a refusal
        self.cause: Exception | None = None
        self.names: dict[str, int] = {"input": 1}
        self.sizes: Sizes
        self.constants: Constants
        # of the call at hand; the name is ATen's, without overload and other spellings
        self.node: fx.Node
        self.op_name = ""

    def run(self) -> DraftGraph:
        """Walk the graph; raises CaptureError with all refusals."""
        signature = self.program.graph_signature
        if len(signature.user_inputs) != 1:
            raise _refusal([f"forward takes {len(signature.user_inputs)} inputs, expected 1"])
        self.sizes = Sizes(_input_of(self.program).meta["val"])
        self.constants = fold_constants(self.program, self.sizes)
        self.env.update(self.constants.values)
        for node in self.program.graph.nodes:
            self.node = node
            if node.op == "placeholder":
                self._placeholder(node)
            elif node.op == "call_function":
                self._call(node)
            elif node.op == "output":
                self.graph.outputs = [
                    self._value(leaf)
                    for leaf, spec in zip(node.args[0], signature.output_specs, strict=True)
                    if spec.kind.name == "USER_OUTPUT"
                ]
            elif node.op == "get_attr":
                # a branch of torch.cond and its like; who calls it is refused
                self.env[node] = self._stand_in(node)
                self.refusals.append(f"{node.name}: control flow inside the graph")
            else:
                self.refusals.append(f"{node.name}: {node.op} {node.target} is not supported")
        self.refusals += written_state(self.program, self.constants)
        if not self.refusals and not any(isinstance(o, Draft) for o in self.graph.outputs):
            empty = any(isinstance(o, Tensor) and not o.numel() for o in self.graph.outputs)
            at = "x".join(map(str, self.graph.drafts[0].shape[1:]))
            why = f": for a frame of {at} what it gives is empty" if empty else ""
            self.refusals.append(f"no output of the model depends on the frame{why}")
        if self.refusals:
            raise _refusal(self.refusals) from self.cause
        return self.graph

    def _placeholder(self, node: fx.Node) -> None:
        if node in self.env:
            return
        value = node.meta.get("val")
        if not isinstance(value, Tensor):
            self.env[node] = value
            return
        if value.ndim != 4:
            self.refusals.append(
                f"the input has shape {list(value.shape)}, expected a frame [N, C, H, W]"
            )
        whole = self.shape(value)
        draft = Draft("input", "input", whole[1:], whole)
        self.graph.drafts.append(draft)
        self.env[node] = draft

    def shape(self, value: Tensor) -> tuple[int, ...]:
        """Give a tensor's shape for a batch of one."""
        return self.sizes.shape(value)

    def _value(self, arg: Any) -> Any:
        if isinstance(arg, fx.Node):
            return self.env[arg]
        return self.sizes.number(arg)

    def _call(self, node: fx.Node) -> None:
        if node in self.env:
            return
        try:
            args, kwargs = pytree.tree_map(self._value, (list(node.args), dict(node.kwargs)))
            drafts = [a for a in pytree.tree_leaves((args, kwargs)) if isinstance(a, Draft)]
            if any(d in self.refused for d in drafts):
                self.env[node] = self._stand_in(node)
            elif node in self.constants.failed:
                raise self.constants.failed[node]
            elif node.target is operator.getitem:
                self.env[node] = self._getitem(args[0], args[1])
            elif not isinstance(node.meta.get("val"), (Tensor, list, tuple)):
                self.env[node] = self.sizes.number(node.meta.get("val"))
            else:
                self.env[node] = self._operation(node, args, kwargs)
        except Exception as error:
            known = isinstance(error, (CaptureError, NotSparse))
            what = str(error) if known else first_lines(error)
            self.refusals.append(f"{self.name()}: {node.target}: {what}")
            self.cause = self.cause or error
            self.env[node] = self._stand_in(node)

    def _stand_in(self, node: fx.Node) -> Draft:
        """Stand in for a refused result, so that the walk finds all reasons."""
        draft = Draft(node.name, "op", (1,), (1, 1))
        self.refused.add(draft)
        return draft

    def _getitem(self, source: Any, index: int) -> Any:
        if isinstance(source, (tuple, list)):
            item = source[index]
            return item() if callable(item) and not isinstance(item, Tensor) else item
        raise CaptureError(f"item {index} of something that is not a tuple")

    def _operation(self, node: fx.Node, args: list[Any], kwargs: Args) -> Any:
        target: Any = node.target
        name = aten_name(target)
        name = name.rstrip("_") if not name.startswith("_") else name
        name = ALIASES.get(str(target).removeprefix("aten."), ALIASES.get(name, name))
        self.op_name = name
        if not hasattr(target, "_schema"):
            raise CaptureError("control flow inside the graph; only ATen operations can run")
        if name == "index":
            args = [args[0], whole_numbers(args[1])]
        bound = bind(target, args, kwargs)
        if draws_random_numbers(target, bound):
            raise CaptureError("it draws random numbers; remove it or seed it outside the model")
        self._check_batch_axis(bound, name)
        try:
            rule = self.rules.get(name)
            if rule is None and name in POINTWISE:
                rule = self.unary
            if rule is None:
                raise NotSparse(NO_FORM)
            return rule(self, bound)
        except NotSparse as why:
            return self.dense(target, args, kwargs, node.meta["val"], str(why))

    def _check_batch_axis(self, bound: Args, name: str) -> None:
        """Refuse what works along the batch axis, where that can be seen from the arguments.

        A graph that was captured with a batch of 1 does not show it: its results are compared.
        """
        nodes = self.node.all_input_nodes
        # gather and its like take their axis from the first argument
        first = nodes if name in ("cat", "stack") else nodes[:1]
        works_on = next((n for n in first if isinstance(self.env[n], Draft)), None)
        if works_on is None or self.sizes.batch is None:
            return
        value = works_on.meta["val"]
        axes = self.sizes.batch_axes(value)
        dims = bound.get("dim", bound.get("dims"))
        given = [dims] if isinstance(dims, int) else list(dims or [])
        along = {d % value.ndim for d in given} & set(axes)
        if "batch_norm" in name and axes and takes_statistics(bound):
            raise CaptureError(
                "its statistics are taken over all rows of a batch, which are different streams "
                "here; instance_norm takes them of each row alone"
            )
        if name == "slice" and along <= set(self.sizes.batch_axes(self.node.meta["val"])):
            # all streams
            return
        if (along and name in ALONG_AXIS) or (axes and name in REDUCTIONS and not given):
            raise CaptureError("it mixes the batch axis, whose rows are different streams here")

    def dense(self, target: Any, args: Sequence[Any], kwargs: Args, value: Any, reason: str) -> Any:
        """Append an ATen call as a dense step; value: the traced result, for its shape."""
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

        tree_args, tree_kwargs = pytree.tree_map(note, (list(args), kwargs))
        macs = self._count_macs(self.node)
        try:
            called = name_of(target)
        except ValueError as error:
            raise CaptureError(str(error)) from None
        dtypes = [d.dtype for d in inputs] + [w.dtype for w in weights.values()]

        def make(item: int | None, meta: Any) -> Draft:
            if not isinstance(meta, Tensor):
                raise CaptureError("it returns something that is no tensor")
            op = Dense(
                target=called,
                args=tuple(tree_args),
                kwargs=tuple(tree_kwargs.items()),
                shapes=tuple(d.whole for d in inputs),
                flops_macs=macs if not item else 0,
                item=item,
                by_default=meta.is_floating_point() and not any(map(_floats, dtypes)),
            )
            return self.add(op, inputs, weights, meta=meta, reason=reason)

        if isinstance(value, Tensor):
            return make(None, value)
        # results that nobody takes must not become steps
        return tuple(lambda i=i, v=v: make(i, v) for i, v in enumerate(value))

    def _count_macs(self, node: fx.Node) -> int:
        """Let PyTorch's flop counter count a dense call for one stream."""
        # not at the top: it imports Triton where that is installed
        from torch.utils.flop_counter import FlopCounterMode

        def fake(leaf: Any) -> Any:
            value = leaf.meta["val"] if isinstance(leaf, fx.Node) else leaf
            if isinstance(value, Tensor):
                return torch.empty(self.shape(value), dtype=value.dtype, device="meta")
            return self.sizes.number(value)

        args, kwargs = pytree.tree_map(fake, (list(node.args), dict(node.kwargs)))
        target: Any = node.target
        try:
            with FlopCounterMode(display=False) as counter:
                target(*args, **kwargs)
        except Exception:
            # some operations have no shape rule without data
            self.graph.notes.append(f"{self.name()}: its multiply-accumulates are not counted")
            return 0
        return int(counter.get_total_flops()) // 2

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
            whole = self.shape(meta)
            dtype = None if meta.dtype in HALVES else meta.dtype
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
    def weight_dtype(self) -> torch.dtype:
        """What weights are kept in."""
        return self.graph.weight_dtype

    @property
    def whole(self) -> tuple[int, ...]:
        """The current node's shape for a batch of one."""
        return self.shape(self.node.meta["val"])


def _refusal(reasons: list[str]) -> CaptureError:
    return CaptureError("the model cannot be turned into a plan:\n  - " + "\n  - ".join(reasons))


def _input_of(program: ExportedProgram) -> fx.Node:
    names = set(program.graph_signature.user_inputs)
    return next(n for n in program.graph.nodes if n.op == "placeholder" and n.name in names)


def _floats(dtype: torch.dtype | None) -> bool:
    """Whether a draft's dtype is one of floating point; None is what the session computes in."""
    return dtype is None or dtype.is_floating_point or dtype.is_complex


def shape_of(whole: tuple[int, ...]) -> tuple[int, ...]:
    """Give a value's shape without the batch; one without a batch axis of 1 is stored flat."""
    return whole[1:] if whole[:1] == (1,) else (prod(whole),)


def takes_statistics(bound: Args) -> bool:
    """Whether a batch norm takes mean and variance from its input."""
    return bool(bound.get("training")) or bound.get("running_mean") is None


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


def source(a: Args) -> Draft:
    """Give the value that a call works on: its first argument that is computed from the frame."""
    return next(v for v in pytree.tree_leaves(a) if isinstance(v, Draft))


def factors_of(a: Args) -> tuple[float | None, float | None]:
    """Give the factors (h, w) of a resize, where the model states them."""
    if "scale_factors" in a:
        f = a["scale_factors"]
        return (None, None) if not f else (float(f[0]), float(f[-1]))
    return a.get("scales_h"), a.get("scales_w")
