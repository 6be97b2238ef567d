"""Turn an exported graph's writes in place into plain operations, where that can be seen at once.

`ExportedProgram.run_decompositions` does it for every graph by tracing it again, with symbolic
sizes: twice the time that exporting takes. Nearly all networks write in place only to what a layer
has just computed (`relu_`), which needs no tracing.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram

# composite operations that lowering knows as they are
KEPT = frozenset(
    (
        "adaptive_avg_pool2d batch_norm conv2d conv_transpose2d dropout flatten layer_norm linear "
        "max_pool2d pad reshape upsample_bilinear2d upsample_nearest2d"
    ).split()
)
# operations value by value that PyTorch does not mark as such
VALUE_BY_VALUE = frozenset(("hardswish",))
# nothing in their schema says that they may return their argument
RETURNS_ARGUMENT = frozenset(("dropout",))


def make_functional(program: ExportedProgram) -> bool:
    """Rewrite the program's graph without writes in place; what it computes stays.

    Returns False, and leaves the program as it is, where more than a look at each operation is
    needed: writes to inputs, parameters or what has views, and composite operations.
    """
    try:
        graph = _Rewriting(program.graph).run()
    except _TooHard:
        return False
    program.graph_module.graph = graph
    return True


class _TooHard(Exception):
    """It takes more than a look."""


class _Rewriting:
    """Copies a graph node by node."""

    def __init__(self, old: fx.Graph) -> None:
        self._old, self._new = old, fx.Graph()
        # old node -> its copy; after a write the one that the tensor's value comes from
        self._value: dict[fx.Node, fx.Node] = {}
        # old node -> all nodes that share its memory, the same list for each of them
        self._sharing: dict[fx.Node, list[fx.Node]] = {}
        # old node -> all nodes that are the very same tensor, the same list for each of them
        self._same: dict[fx.Node, list[fx.Node]] = {}
        self._place = {node: index for index, node in enumerate(old.nodes)}

    def run(self) -> fx.Graph:
        for node in self._old.nodes:
            if node.op == "call_function":
                self._call(node)
            elif node.op in ("placeholder", "output"):
                self._copy(node, node.target, node.name)
                self._own_memory(node)
            else:
                raise _TooHard
        # an operation of several results is exported with all of them
        self._new.eliminate_dead_code()
        return self._new

    def _copy(self, node: fx.Node, target: Any, name: str) -> None:
        made = self._new.create_node(
            node.op,
            target,
            fx.map_arg(node.args, self._value.__getitem__),
            fx.map_arg(node.kwargs, self._value.__getitem__),
            name,
        )
        made.meta = dict(node.meta)
        if node.op == "placeholder":
            # the program's signature knows it; a new graph avoids names of Python's such as "input"
            made.name = node.name
        self._value[node] = made

    def _own_memory(self, node: fx.Node) -> None:
        self._sharing[node], self._same[node] = [node], [node]

    def _call(self, node: fx.Node) -> None:
        target: Any = node.target
        if not isinstance(target, torch._ops.OpOverload):
            if getattr(target, "__module__", "") not in ("_operator", "math"):
                raise _TooHard
            self._copy(node, target, node.name)
            self._own_memory(node)
            if target is operator.getitem:
                self._share(node, node.args[0])
            return
        name = target.overloadpacket.__name__
        if target.namespace != "aten" or (_is_composite(target) and name not in KEPT):
            raise _TooHard
        written = [a.alias_info is not None and a.alias_info.is_write
                   for a in target._schema.arguments]  # fmt: skip
        if any(written):
            if written.index(True) or sum(written) > 1:
                raise _TooHard
            self._write(node, _without_writing(target), name.removesuffix("_"))
            return
        self._copy(node, target, name)
        self._own_memory(node)
        for argument, given in zip(target._schema.arguments, node.args, strict=False):
            if argument.alias_info is not None:
                self._share(node, given)
        if name in RETURNS_ARGUMENT:
            self._share(node, node.args[0])

    def _share(self, node: fx.Node, other: Any) -> None:
        if not isinstance(other, fx.Node):
            # a list of tensors
            raise _TooHard
        joined = [*self._sharing[other], *self._sharing[node]]
        for one in joined:
            self._sharing[one] = joined

    def _write(self, node: fx.Node, target: Any, name: str) -> None:
        """Take the written tensor's new value for it from here on."""
        written: Any = node.args[0]
        same = self._same[written]
        for other in self._sharing[written]:
            is_ours = other.op == "call_function"
            seen_later = any(self._place[user] > self._place[node] for user in other.users)
            if not is_ours or (other not in same and seen_later):
                raise _TooHard
        tensors = [value for value in map(_value_of, node.all_input_nodes)
                   if isinstance(value, Tensor)]  # fmt: skip
        # a tensor that is written to keeps its type, a result takes the wider one
        if len({value.dtype for value in tensors}) > 1:
            raise _TooHard
        self._copy(node, target, name)
        same.append(node)
        self._same[node] = same
        self._sharing[written].append(node)
        self._sharing[node] = self._sharing[written]
        for one in same:
            self._value[one] = self._value[node]


def _value_of(node: fx.Node) -> Any:
    return node.meta.get("val")


def _is_composite(target: torch._ops.OpOverload) -> bool:
    return target.has_kernel_for_dispatch_key(torch._C.DispatchKey.CompositeImplicitAutograd)


def _without_writing(target: torch._ops.OpOverload) -> Any:
    """Give the operation that computes what this one writes to its first argument."""
    name = target.overloadpacket.__name__
    found = getattr(torch.ops.aten, name.removesuffix("_"), None)
    plain = getattr(found, target._overloadname, None) if name.endswith("_") else None
    # others (resize_, t_, set_) change more than values
    if plain is None:
        raise _TooHard
    if torch.Tag.pointwise not in plain.tags and name.removesuffix("_") not in VALUE_BY_VALUE:
        raise _TooHard
    return plain
