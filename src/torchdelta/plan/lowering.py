"""The walk from an exported ATen graph to drafts, with what every lowering rule needs.

Everything is lowered for a batch of one: streams never meet inside a step.
"""

from __future__ import annotations

import operator
import sys
from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from torchdelta.errors import CaptureError
from torchdelta.ops import Dense
from torchdelta.ops.base import Op
from torchdelta.ops.dense import Arg, Const
from torchdelta.ops.pointwise import POINTWISE
from torchdelta.plan.draft import Draft, DraftGraph

Args = dict[str, Any]
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


class NotSparse(Exception):
    """This call has no sparse form; the message says why, and it becomes a dense step."""


def pair(value: Any, default: Any = None) -> tuple[Any, Any]:
    """Make (h, w) out of a number, a list of one or two, or an empty list (the default)."""
    if isinstance(value, (list, tuple)):
        if not value:
            return pair(default)
        return (value[0], value[-1])
    return (value, value)


class Lowering:
    """Walks the graph; `env` holds for each node a Draft, a constant Tensor, or plain values."""

    def __init__(self, program: ExportedProgram, rules: Mapping[str, Rule], unary: Rule) -> None:
        self.rules, self.unary = rules, unary
        self.program = program
        self.env: dict[fx.Node, Any] = {}
        self.graph = DraftGraph([], [])
        self.refusals: list[str] = []
        self.refused: set[Draft] = set()
        self.names: dict[str, int] = {"input": 1}
        self.batch: Any = None
        # of the call at hand; the name is ATen's, without overload and other spellings
        self.node: fx.Node
        self.op_name = ""

    def run(self) -> DraftGraph:
        """Walk the graph; raises CaptureError with all refusals."""
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
            elif node.op == "get_attr":
                # a branch of torch.cond and its like; who calls it is refused
                self.env[node] = self._stand_in(node)
                self.refusals.append(f"{node.name}: control flow inside the graph")
            else:
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
                name = table[node.name]
                constants = self.program.constants
                self.env[node] = _resolved(self.program.state_dict.get(name, constants.get(name)))
                return
        if node.name in signature.inputs_to_lifted_tensor_constants:
            name = signature.inputs_to_lifted_tensor_constants[node.name]
            self.env[node] = _resolved(self.program.constants[name])
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
        args, kwargs = pytree.tree_map(self._value, (list(node.args), dict(node.kwargs)))
        drafts = [a for a in pytree.tree_leaves((args, kwargs)) if isinstance(a, Draft)]
        if any(d in self.refused for d in drafts):
            self.env[node] = self._stand_in(node)
            return
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
            self.env[node] = self._stand_in(node)

    def _stand_in(self, node: fx.Node) -> Draft:
        """Stand in for a refused result, so that the walk finds all reasons."""
        draft = Draft(node.name, "op", (1,), (1, 1))
        self.refused.add(draft)
        return draft

    def _constant(self, node: fx.Node, args: list[Any], kwargs: Args) -> Any:
        """Run an operation that does not depend on the frame, once and for all."""
        value = node.meta.get("val")
        if isinstance(value, (torch.SymInt, torch.SymFloat, torch.SymBool)):
            return self._int(value)
        if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
            raise CaptureError("it draws random numbers; remove it or seed it outside the model")
        assert callable(node.target)
        return pytree.tree_map(_resolved, node.target(*args, **kwargs))

    def _getitem(self, source: Any, index: int) -> Any:
        if isinstance(source, (tuple, list)):
            item = source[index]
            return item() if callable(item) and not isinstance(item, Tensor) else item
        raise CaptureError(f"item {index} of something that is not a tuple")

    def _operation(self, node: fx.Node, args: list[Any], kwargs: Args) -> Any:
        target: Any = node.target
        if torch.Tag.nondeterministic_seeded in getattr(
            target, "tags", ()
        ) and "dropout" not in str(target):
            raise CaptureError("it draws random numbers; remove it or seed it outside the model")
        name = getattr(getattr(target, "overloadpacket", None), "__name__", str(target))
        name = name.rstrip("_") if not name.startswith("_") else name
        name = ALIASES.get(str(target).removeprefix("aten."), ALIASES.get(name, name))
        self.op_name = name
        try:
            if not hasattr(target, "_schema"):
                raise CaptureError("control flow inside the graph; only ATen operations can run")
            bound = bind(target, args, kwargs)
            self._check_batch_axis(bound, name)
            rule = self.rules.get(name)
            if rule is None and name in POINTWISE:
                rule = self.unary
            if rule is None:
                raise NotSparse("no sparse form")
            return rule(self, bound)
        except NotSparse as why:
            return self._dense(node, args, kwargs, str(why))

    def _check_batch_axis(self, bound: Args, name: str) -> None:
        """Refuse what works along the batch axis, where that can be seen from the arguments."""
        if source(bound).whole[:1] != (1,):
            return
        if name == "slice" and bound["start"] in (None, 0) and bound["end"] in (None, sys.maxsize):
            return
        dims = bound.get("dim", bound.get("dims"))
        given = [dims] if isinstance(dims, int) else list(dims or [])
        rank = len(source(bound).whole)
        everywhere = name in REDUCTIONS and not given
        if everywhere or (name in ALONG_AXIS and any(d % rank == 0 for d in given)):
            raise CaptureError("it mixes the batch axis, whose rows are different streams here")

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

        target: Any = node.target
        tree_args, tree_kwargs = pytree.tree_map(note, (args, kwargs))
        macs = self._count_macs(node)

        def make(item: int | None, meta: Any) -> Draft:
            if not isinstance(meta, Tensor):
                raise CaptureError("it returns something that is no tensor")
            op = Dense(
                target=target,
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

    def _count_macs(self, node: fx.Node) -> int:
        """Let PyTorch's flop counter count a dense call for one stream."""
        # not at the top: it imports Triton where that is installed
        from torch.utils.flop_counter import FlopCounterMode

        def fake(leaf: Any) -> Any:
            value = leaf.meta["val"] if isinstance(leaf, fx.Node) else leaf
            if isinstance(value, Tensor):
                return torch.empty(self._whole(value), dtype=value.dtype, device="meta")
            return self._int(value)

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
            whole = self._whole(meta)
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
    def whole(self) -> tuple[int, ...]:
        """The current node's shape for a batch of one."""
        return self._whole(self.node.meta["val"])


def _resolved(constant: Any) -> Any:
    """Carry out a pending negation or conjugation: engines read a constant's memory as it is."""
    return constant.resolve_conj().resolve_neg() if isinstance(constant, Tensor) else constant


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
