"""Capture a model as an ATen graph with `torch.export`, on a copy, with a dynamic batch axis."""

from __future__ import annotations

import copy
import logging
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from io import StringIO
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.utils._python_dispatch import TorchDispatchMode

from torchdelta.capture.functional import make_functional
from torchdelta.capture.suited import failing_module, unwrap_parts
from torchdelta.distance import in_float64
from torchdelta.errors import CaptureError, first_lines
from torchdelta.plan.sizes import is_free

# exporting has settings that belong to the process: captures run one after another
CAPTURES = threading.RLock()


@dataclass(frozen=True)
class Captured:
    """An exported graph and what was noticed on the way.

    dynamic_batch: False where the model fixes the batch size, so that it was exported with 1
    """

    program: ExportedProgram
    dynamic_batch: bool
    notes: tuple[str, ...] = ()


def prepare_copy(model: nn.Module) -> nn.Module:
    """Copy a model to the CPU, in eval mode and float32; warns where it was in train mode.

    A plan belongs to no device, and PyTorch's CPU results have no TF32 in them.

    Raises: CaptureError where the model cannot be copied.
    """
    # what was computed from parameters, as `torch.nn.utils.weight_norm` does, is copied as numbers
    computed = {
        id(value): value.detach().clone()
        for module in model.modules()
        for value in vars(module).values()
        if isinstance(value, Tensor) and not value.is_leaf
    }
    try:
        twin = copy.deepcopy(model, computed)
    except Exception as error:
        raise CaptureError(
            f"the model cannot be copied ({type(error).__name__}: {error}); torchdelta works on a "
            "copy and leaves yours untouched: make the model deep-copyable"
        ) from error
    modules = [m for m in twin.modules() if m.training]
    if modules and not isinstance(twin, torch.fx.GraphModule):
        what = "the model is" if model.training else f"{len(modules)} of the model's modules are"
        warnings.warn(
            f"{what} in train mode; torchdelta captures it in eval mode "
            "(call model.eval() to silence this)",
            # whoever called `compile`, which is wrapped
            stacklevel=5,
        )
        twin.eval()
    elif modules:
        for module in modules:
            module.training = False
    return unwrap_parts(twin).cpu().float().requires_grad_(False)


def twin(model: nn.Module) -> nn.Module:
    """Copy a model but for its parameters, which both have.

    Exporting puts other tensors into a model's modules for a while; its twin's will do.
    """
    return copy.deepcopy(model, {id(parameter): parameter for parameter in model.parameters()})


def differing_parameters(one: nn.Module, other: nn.Module) -> list[str]:
    """Name the parameters of a model that its copy has not, or has other numbers in."""
    there = dict(other.named_parameters())

    def differs(name: str, mine: Tensor) -> bool:
        theirs = there.get(name)
        if theirs is None or theirs.shape != mine.shape:
            return True
        # the first is quick; NaN equals NaN
        return not torch.equal(mine, theirs) and not torch.allclose(mine, theirs, 0, 0, True)

    return [name for name, parameter in one.named_parameters() if differs(name, parameter)]


def export(model: nn.Module, example: Tensor) -> Captured:
    """Export a model in eval mode for frames like `example` [N, C, H, W] float32.

    N is 2 to try a dynamic batch first, 1 where the model takes nothing else.
    Raises: CaptureError with all reasons, where neither a dynamic nor a fixed batch exports.
    """
    attempts: list[str] = []
    cause: Exception | None = None
    if len(example) == 1:
        attempts.append("with a dynamic batch: the model takes one frame at a time")
    for batch, dynamic in ((2, True), (1, False))[2 - len(example) :]:
        shapes: Any = ({0: torch.export.Dim.AUTO},) if dynamic else None
        try:
            with _quiet(), torch.no_grad():
                program = torch.export.export(
                    model, (example[:batch].clone(),), dynamic_shapes=shapes, strict=False
                )
                if dynamic and not _has_dynamic_batch(program):
                    attempts.append("with a dynamic batch: the model fixes its batch size")
                    continue
                if not make_functional(program):
                    program = program.run_decompositions({})
                    # tracing it anew may fix what was free before
                    if dynamic and not _has_dynamic_batch(program):
                        attempts.append("with a dynamic batch: the model fixes its batch size")
                        continue
        except Exception as error:
            what = "with a dynamic batch" if dynamic else "with batch 1"
            where = failing_module(model, error)
            attempts.append(f"{what}{f', in {where}' if where else ''}: {first_lines(error)}")
            cause = cause or error
            continue
        notes = () if dynamic else ("captured with batch 1: " + attempts[0],)
        return Captured(program, dynamic, notes)
    written = _written_parameters(model, example[:1])
    if written:
        attempts.append(
            f"it writes to its parameters while it runs: {', '.join(written)}; do that once, "
            "before it is compiled, or without `.data`: `weight.copy_(…)` under torch.no_grad()"
        )
    raise CaptureError(
        "the model cannot be captured by torch.export:\n  - "
        + "\n  - ".join(attempts)
        + "\nCapture needs a forward(frame) of one tensor [N, C, H, W], without control flow that "
        "depends on values; move such code (NMS, decoding) out of the model."
    ) from cause


@torch.no_grad()
def _written_parameters(model: nn.Module, frame: Tensor) -> list[str]:
    """Name the parameters that a run writes to in place."""
    names = {p.untyped_storage().data_ptr(): name for name, p in model.named_parameters()}
    found: dict[str, None] = {}

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            for argument, value in zip(func._schema.arguments, args, strict=False):
                if argument.is_write and isinstance(value, Tensor):
                    name = names.get(value.untyped_storage().data_ptr())
                    found.update({name: None} if name else {})
            return func(*args, **(kwargs or {}))

    try:
        with Watch():
            model(frame.clone())
    except Exception:
        return []
    return list(found)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what the exporter logs and prints on a failed attempt: whole graphs."""
    with CAPTURES:
        before = logging.root.manager.disable
        logging.disable(logging.CRITICAL)
        try:
            with warnings.catch_warnings(), redirect_stderr(StringIO()):
                warnings.simplefilter("ignore")
                yield
        finally:
            logging.disable(before)


def _has_dynamic_batch(program: ExportedProgram) -> bool:
    """Whether the batch is really free: a model that asks for its number fixes it."""
    names = set(program.graph_signature.user_inputs)
    for node in program.graph.nodes:
        if node.op == "placeholder" and node.name in names:
            return is_free(node.meta["val"].shape[0])
    return False


def find_batch_mixing(captured: Captured, example: Tensor) -> str | None:
    """Name the first operation whose result for one stream depends on the other's frame.

    example: [2, C, H, W] float32. Returns None where each row stands alone, or cannot be told.
    """
    if not captured.dynamic_batch:
        return None
    together = _run_nodes(captured.program, example)
    alone = _run_nodes(captured.program, example[:1])
    for node, whole in together.items():
        part = alone.get(node)
        if not isinstance(whole, Tensor) or not isinstance(part, Tensor):
            continue
        rows = whole[: len(part)] if whole.ndim and whole.ndim == part.ndim else whole
        if rows.shape != part.shape or not torch.allclose(
            in_float64(rows), in_float64(part), rtol=1e-3, atol=1e-4, equal_nan=True
        ):
            return f"{node} ({part.dtype}, {list(whole.shape)} for a batch of 2)"
    return None


def _run_nodes(program: ExportedProgram, x: Tensor) -> dict[str, Any]:
    results: dict[str, Any] = {}

    class Recorder(torch.fx.Interpreter):
        def run_node(self, n: torch.fx.Node) -> Any:
            results[n.name] = out = super().run_node(n)
            return out

    signature = program.graph_signature
    lifted = {
        **signature.inputs_to_parameters,
        **signature.inputs_to_buffers,
        **signature.inputs_to_lifted_tensor_constants,
    }
    values = {**program.state_dict, **program.constants}
    args = [
        values[lifted[n.name]] if n.name in lifted else x
        for n in program.graph.nodes
        if n.op == "placeholder"
    ]
    with torch.no_grad():
        Recorder(program.graph_module).run(*args)
    return {n.name: results.get(n.name) for n in program.graph.nodes if n.op == "call_function"}
