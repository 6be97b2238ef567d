"""The first pass over a captured graph: what depends on no pixel is computed, once and for all.

A result is constant where all that the call reads is: weights, numbers, other constants. Of some
arguments a call reads the shape, dtype and device alone (`zeros_like(x)`, `type_as(grid, x)`):
these may be computed from the frame.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from torchdelta.errors import CaptureError
from torchdelta.plan.sizes import NotSparse, Sizes

# by ATen name: the arguments whose numbers are never read
SHAPE_ONLY = {
    **dict.fromkeys(
        "empty_like full_like ones_like zeros_like new_empty new_empty_strided new_full new_ones "
        "new_zeros fill zero copy".split(),
        "self",
    ),
    **dict.fromkeys("expand_as reshape_as to type_as view_as".split(), "other"),
}
# how a call that may draw random numbers is told not to
SWITCHES = ("train", "training")
CHANCES = ("dropout", "dropout_p")


@dataclass
class Constants:
    """What depends on no pixel: by node, its value, or why it cannot be computed."""

    values: dict[fx.Node, Any] = field(default_factory=dict)
    failed: dict[fx.Node, Exception] = field(default_factory=dict)


def fold_constants(program: ExportedProgram, sizes: Sizes) -> Constants:
    """Compute whatever depends on no pixel, for one stream; empty tensors are among it."""
    found = Constants()
    for node in program.graph.nodes:
        if node.op == "placeholder":
            weight = weight_of(program, node.name)
            if weight is not None:
                found.values[node] = _resolved(weight)
        elif node.op == "call_function" and _is_constant(node, found):
            try:
                found.values[node] = _compute(node, found, sizes)
            except Exception as error:
                found.failed[node] = error
        elif (empty := _empty(node.meta.get("val"), sizes)) is not None:
            found.values[node] = empty
        elif aten_name(node.target) == "index":
            _learn_size(node, found, sizes)
    return found


def _empty(value: Any, sizes: Sizes) -> Tensor | None:
    """Give a traced result that has no elements, None of any other."""
    if not isinstance(value, Tensor):
        return None
    try:
        shape = sizes.shape(value)
    except NotSparse:
        # what stands before it is refused
        return None
    return torch.empty(shape, dtype=value.dtype) if 0 in shape else None


def _learn_size(node: fx.Node, found: Constants, sizes: Sizes) -> None:
    """Count what constant masks pick; the exporter does not look at their values."""
    args: Any = node.args
    source, indices = args[:2]
    if not all(index is None or index in found.values for index in indices):
        return
    try:
        whole = torch.empty(()).expand(sizes.shape(source.meta["val"]))
    except NotSparse:
        # what stands before it is refused
        return
    target: Any = node.target
    at = [None if index is None else found.values[index] for index in indices]
    sizes.learn(node.meta["val"], target(whole, at).shape)


def whole_numbers(indices: Sequence[Any]) -> list[Any]:
    """Write the constant masks of an index as the places that they pick."""
    found: list[Any] = []
    for index in indices:
        is_mask = isinstance(index, Tensor) and index.dtype == torch.bool
        found += index.nonzero(as_tuple=True) if is_mask else [index]
    return found


def weight_of(program: ExportedProgram, name: str) -> Any:
    """Give the parameter, buffer or other constant that a placeholder stands for, or None."""
    signature = program.graph_signature
    for table in (
        signature.inputs_to_parameters,
        signature.inputs_to_buffers,
        signature.inputs_to_lifted_tensor_constants,
    ):
        if name in table:
            value = program.state_dict.get(table[name])
            return program.constants.get(table[name]) if value is None else value
    return None


def aten_name(target: Any) -> str:
    """Give the name of an ATen operation, without overload."""
    return str(getattr(getattr(target, "overloadpacket", None), "__name__", target))


def bind(target: Any, args: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Name the arguments of an ATen call, with its defaults."""
    bound: dict[str, Any] = {}
    for i, arg in enumerate(target._schema.arguments):
        if i < len(args):
            bound[arg.name] = args[i]
        elif arg.name in kwargs:
            bound[arg.name] = kwargs[arg.name]
        else:
            bound[arg.name] = arg.default_value if arg.has_default_value() else None
    return bound


def draws_random_numbers(target: Any, bound: dict[str, Any]) -> bool:
    """Whether a call with these arguments draws random numbers; its tag says that it can."""
    name = aten_name(target)
    tagged = torch.Tag.nondeterministic_seeded in getattr(target, "tags", ())
    if not tagged and "dropout" not in name:
        return False
    if any(bound.get(switch) is False for switch in SWITCHES):
        return False
    chances = (*CHANCES, "p") if "dropout" in name else CHANCES
    return not any(chance in bound and bound[chance] == 0 for chance in chances)


def written_state(program: ExportedProgram, constants: Constants) -> list[str]:
    """Say which buffers and parameters carry something from one frame to the next.

    Those that the model writes to, unless no result reads what was there before, or what is written
    is what was there (weights that are fused anew in every forward).
    """
    *nodes, output = program.graph.nodes
    written: dict[str, fx.Node] = {}
    results: list[Any] = []
    for leaf, spec in zip(output.args[0], program.graph_signature.output_specs, strict=True):
        if spec.kind.name == "USER_OUTPUT":
            results.append(leaf)
        elif spec.kind.name in ("BUFFER_MUTATION", "PARAMETER_MUTATION"):
            written[spec.target] = leaf
    if not written:
        return []
    read = _ancestors(results)
    signature = program.graph_signature
    tables = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    names = [
        tables[node.name]
        for node in nodes
        if node in read
        and (leaf := written.get(tables.get(node.name, ""))) is not None
        and not _same(constants.values.get(leaf), constants.values[node])
    ]
    if not names:
        return []
    return [
        f"the model writes to its buffers while it runs: {', '.join(names)}; what it gives then "
        "depends on earlier frames. Take that state out of the model, or freeze it"
    ]


def _ancestors(results: list[Any]) -> set[fx.Node]:
    """All nodes whose numbers these results depend on, themselves among them."""
    queue = [leaf for leaf in results if isinstance(leaf, fx.Node)]
    seen: set[fx.Node] = set()
    while queue:
        node = queue.pop()
        if node not in seen:
            seen.add(node)
            queue += _read(node)
    return seen


def _same(written: Any, before: Any) -> bool:
    if not isinstance(written, Tensor) or not isinstance(before, Tensor):
        return False
    equal = written.shape == before.shape and written.dtype == before.dtype
    return equal and bool(((written == before) | (written != written) & (before != before)).all())


def _read(node: fx.Node) -> list[fx.Node]:
    """The nodes whose numbers a call reads."""
    read: Any = (node.args, node.kwargs)
    if hasattr(node.target, "_schema"):
        bound = bind(node.target, node.args, dict(node.kwargs))
        bound.pop(SHAPE_ONLY.get(aten_name(node.target), ""), None)
        read = bound
    return [leaf for leaf in pytree.tree_leaves(read) if isinstance(leaf, fx.Node)]


def _is_constant(node: fx.Node, found: Constants) -> bool:
    if isinstance(node.meta.get("val"), (torch.SymInt, torch.SymFloat, torch.SymBool)):
        return True
    return all(leaf in found.values for leaf in _read(node))


def _compute(node: fx.Node, found: Constants, sizes: Sizes) -> Any:
    value = node.meta.get("val")
    if isinstance(value, (torch.SymInt, torch.SymFloat, torch.SymBool)):
        return sizes.number(value)

    def fill(leaf: Any) -> Any:
        if not isinstance(leaf, fx.Node):
            return sizes.number(leaf)
        if leaf in found.values:
            return found.values[leaf]
        like = leaf.meta["val"]
        # it takes no memory, and nobody reads it
        return torch.empty((), dtype=like.dtype).expand(sizes.shape(like))

    args, kwargs = pytree.tree_map(fill, (list(node.args), dict(node.kwargs)))
    target: Any = node.target
    if target is operator.getitem:
        return args[0][args[1]]
    if hasattr(target, "_schema") and draws_random_numbers(target, bind(target, args, kwargs)):
        raise CaptureError("it draws random numbers; remove it or seed it outside the model")
    with torch.no_grad():
        return pytree.tree_map(_resolved, target(*args, **kwargs))


def _resolved(constant: Any) -> Any:
    """Carry out a pending negation or conjugation: engines read a constant's memory as it is."""
    return constant.resolve_conj().resolve_neg() if isinstance(constant, Tensor) else constant
