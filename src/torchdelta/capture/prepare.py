"""Give a network without trained weights batch norms under which it behaves like a trained one.

A freshly initialised network is either chaotic (every small change grows from block to block) or
dead (zero-initialised gammas, activations that fade into denormals). Drawn gammas and betas with
measured statistics give activations of sane size; quiet residual branches give the damping that
training gives. Such a network is good for measuring speed, never for quality.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from torchdelta.capture.suited import failing_module, run_model
from torchdelta.errors import CaptureError

GAMMA_RANGE = (0.7, 1.3)
BETA_RANGE = (-0.3, 0.3)
RESIDUAL_GAIN = 0.2
PASSES = 3

# The longest branches in use (inverted residuals with squeeze-and-excitation) have 6 convolutions;
# far longer ones are the skip connections of encoder-decoders, whose deep path must stay audible.
MAX_BRANCH_CONVS = 8


def prepare_untrained(model: nn.Module, frames: Tensor | Sequence[int], seed: int = 0) -> nn.Module:
    """Draw the batch norms of an untrained network and measure their statistics on real frames.

    model:  changed in place and returned in eval mode; networks without batch norm stay as they are
    frames: [N, C, H, W] float, as the model expects them (normalised); or just that shape, which
            means noise. From 6 frames on each of the three passes sees other frames.
    seed:   of the drawn gammas and betas (and of the noise)
    Raises: CaptureError where the model does not run on such frames.
    """
    generator = torch.Generator().manual_seed(seed)
    model.eval()
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm)]
    if not norms:
        return model
    if not isinstance(frames, Tensor):
        frames = torch.randn(tuple(frames), generator=generator)
    parameter = next(model.parameters(), None)
    if parameter is not None:
        frames = frames.to(device=parameter.device, dtype=parameter.dtype)
    try:
        quiet = {id(norm) for norm in last_residual_norms(model, frames[:1])}
        with torch.no_grad():
            for norm in norms:
                if norm.affine:
                    _draw(norm, RESIDUAL_GAIN if id(norm) in quiet else 1.0, generator)
            _measure_statistics(model, norms, _batches(frames))
    except Exception as error:
        # where the model itself fails, that says in which layer, and which frames would do
        run_model(model, frames[:1])
        where = failing_module(model, error)
        raise CaptureError(
            f"the statistics of {len(norms)} batch norms cannot be measured"
            + (f", in {where}" if where else "")
            + f": {type(error).__name__}: {error}\nGive the network its weights."
        ) from error
    return model


def _draw(norm: _BatchNorm, gain: float, generator: torch.Generator) -> None:
    gamma = torch.empty(norm.num_features).uniform_(*GAMMA_RANGE, generator=generator)
    beta = torch.empty(norm.num_features).uniform_(*BETA_RANGE, generator=generator)
    norm.weight.copy_(gamma * gain)
    norm.bias.copy_(beta)


def _batches(frames: Tensor) -> list[Tensor]:
    """The batches of the passes; never of one frame, on which a 1x1 map has no variance."""
    if frames.shape[0] >= 2 * PASSES:
        return list(torch.tensor_split(frames, PASSES))
    if frames.shape[0] == 1:
        frames = torch.cat([frames, frames.flip(-1)])
    return [frames] * PASSES


def _measure_statistics(
    model: nn.Module, norms: Sequence[_BatchNorm], batches: Iterable[Tensor]
) -> None:
    """Average the statistics over the batches; only the batch norms are put into train mode.

    So dropout and stochastic depth stay off, and no module takes another path than in eval mode.
    """
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    try:
        for batch in batches:
            # a copy: the model may write to its input
            model(batch.clone())
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        model.eval()


def last_residual_norms(model: nn.Module, frame: Tensor) -> list[_BatchNorm]:
    """The last batch norm of each residual block, found by watching one frame flow through.

    frame: [1, C, H, W] float, as the model expects it

    A residual block is an addition of a tensor, or at most one convolution of it, and a branch from
    that same tensor with more convolutions. Works on any model that runs, whatever its classes.
    """
    flow = _Flow(model)
    frame = frame.clone()
    with torch.no_grad(), flow:
        flow.enter(frame)
        model(frame)
    found: dict[int, _BatchNorm] = {}
    for node in flow.nodes:
        if node.is_add and len(node.parents) == 2:
            for shortcut, branch in (node.parents, node.parents[::-1]):
                norm = _last_norm_of_branch(flow.nodes, shortcut, branch)
                if norm is not None:
                    found[id(norm)] = norm
    return list(found.values())


@dataclass(frozen=True)
class _Node:
    """One tensor on its way from the input: who made it, from which tracked tensors."""

    parents: tuple[int, ...]
    shape: tuple[int, ...]
    is_conv: bool = False
    is_add: bool = False
    norm: _BatchNorm | None = None


class _Flow(TorchDispatchMode):
    """Records the graph of all tensors that descend from the input, in order of execution."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.nodes: list[_Node] = []
        self._index_of = WeakTensorKeyDictionary()
        self._norm_of_gamma = {
            id(m.weight): m for m in model.modules() if isinstance(m, _BatchNorm) and m.affine
        }

    def enter(self, tensor: Tensor) -> None:
        """Make this tensor the root of the graph."""
        self._append(_Node((), tuple(tensor.shape)), [tensor])

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        # before the call: an in-place op returns a tensor that is already known
        parents = tuple(self._index_of[t] for t in given if t in self._index_of)
        out = func(*args, **(kwargs or {}))
        made = [t for t in tree_leaves(out) if isinstance(t, Tensor)]
        if parents and made:
            name = getattr(func, "_schema").name  # noqa: B009  (not in torch's type stubs)
            norms = [self._norm_of_gamma[id(t)] for t in given if id(t) in self._norm_of_gamma]
            self._append(
                _Node(
                    parents,
                    tuple(made[0].shape),
                    is_conv="convolution" in name or "conv2d" in name,
                    is_add=name in ("aten::add", "aten::add_"),
                    norm=norms[0] if norms else None,
                ),
                made,
            )
        return out

    def _append(self, node: _Node, tensors: Iterable[Tensor]) -> None:
        for tensor in tensors:
            self._index_of[tensor] = len(self.nodes)
        self.nodes.append(node)


def _last_norm_of_branch(nodes: Sequence[_Node], shortcut: int, branch: int) -> _BatchNorm | None:
    """The branch's last batch norm if the two operands of an addition make a residual block."""
    ancestors = _ancestors(nodes, branch)
    fork, shortcut_convs = shortcut, 0
    while fork not in ancestors:
        parents = nodes[fork].parents
        shortcut_convs += nodes[fork].is_conv
        if len(parents) != 1 or shortcut_convs > 1:
            return None
        fork = parents[0]
    between = _between(nodes, fork, branch)
    if not shortcut_convs < between.get(branch, 0) <= MAX_BRANCH_CONVS:
        return None
    spatial = nodes[branch].shape[2:]
    for index in sorted(between, reverse=True):
        node = nodes[index]
        # squeeze-and-excitation vectors lie between, too; their norms are not the branch's
        is_vector = all(n == 1 for n in node.shape[2:]) and any(n > 1 for n in spatial)
        if node.norm is not None and not is_vector:
            return node.norm
    return None


def _ancestors(nodes: Sequence[_Node], index: int) -> set[int]:
    """Everything that `index` was computed from, without itself."""
    seen: set[int] = set()
    queue = list(nodes[index].parents)
    while queue:
        one = queue.pop()
        if one not in seen:
            seen.add(one)
            queue.extend(nodes[one].parents)
    return seen


def _between(nodes: Sequence[_Node], fork: int, end: int) -> dict[int, int]:
    """Nodes after `fork` that lead from it to `end` -> most convolutions on a way from the fork."""
    candidates = {i for i in _ancestors(nodes, end) if i > fork} | {end}
    convs: dict[int, int] = {fork: 0}
    for index in sorted(candidates):
        before = [convs[p] for p in nodes[index].parents if p in convs]
        if before:
            convs[index] = max(before) + nodes[index].is_conv
    del convs[fork]
    return convs
