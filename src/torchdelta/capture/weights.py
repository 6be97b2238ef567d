"""Read a state dict from a file and put it into a model, or say exactly why it does not fit."""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from torchdelta.capture.names import check_weights
from torchdelta.errors import ModelError

# where checkpoints keep the state dict; averaged weights first, they are the ones to run
WRAPPERS = (
    "model_ema",
    "state_dict_ema",
    "params_ema",
    "state_dict",
    "model_state_dict",
    "model",
    "params",
    "net",
    "weights",
)
# put in front of every key by DataParallel, torch.compile and training frameworks
PREFIXES = ("module.", "_orig_mod.", "model.", "net.")
SHOWN = 5


def load_weights(model: nn.Module, path: Path, name: str) -> str:
    """Load the file's state dict into the model, in the model's own dtype.

    returns one line that says what was loaded; raises ModelError with all that does not fit
    """
    state = _without_prefix(read_state_dict(path), model)
    own = model.state_dict()
    # a counter that inference never reads, missing in old files
    missing = [k for k in own if k not in state and not k.endswith("num_batches_tracked")]
    unexpected = [k for k in state if k not in own and not k.endswith("num_batches_tracked")]
    reshaped = [
        f"{k} is {list(state[k].shape)} in the file and {list(own[k].shape)} in the model"
        for k in own
        if k in state and isinstance(own[k], Tensor) and state[k].shape != own[k].shape
    ]
    problems = [
        _listed(missing, "missing", "; "),
        _listed(unexpected, "unexpected", "; "),
        _listed(reshaped, "of another shape", "; "),
    ]
    if any(problems):
        raise ModelError(
            f"the weights in {path} do not fit {name}:\n  "
            + "\n  ".join(problem for problem in problems if problem)
        )
    _refuse_non_finite(state, path)
    model.load_state_dict(state, strict=False)
    floats = {str(t.dtype).removeprefix("torch.") for t in state.values() if t.is_floating_point()}
    target = {str(t.dtype).removeprefix("torch.") for t in own.values() if t.is_floating_point()}
    converted = f", {'/'.join(sorted(floats))} as {'/'.join(sorted(target))}"
    return f"weights: {path.name}{converted if floats != target else ''}"


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """The state dict in a .pth, .pt, .bin or .safetensors file, unwrapped from a checkpoint."""
    check_weights(path)
    content: Any
    try:
        if path.suffix == ".safetensors":
            content = _read_safetensors(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except ModelError:
        raise
    except pickle.UnpicklingError as error:
        reason = "is damaged, or holds Python objects instead of a plain state dict"
        raise ModelError(f"weights {path}: the file {reason}; save model.state_dict()") from error
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(
            f"weights {path}: damaged, or no file of weights, cannot be read: {reason}"
        ) from error
    state = _unwrapped(content)
    if state is None:
        raise ModelError(
            f"weights {path}: holds {_described(content)}, expected a state dict "
            f"(names to tensors), bare or under {', '.join(map(repr, WRAPPERS))}"
        )
    return state


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        from safetensors.torch import load_file
    except ImportError as error:
        raise ModelError(
            f"weights {path}: safetensors is not installed; pip install safetensors"
        ) from error
    state: dict[str, Tensor] = load_file(path)
    return state


def _unwrapped(content: Any) -> dict[str, Tensor] | None:
    if not isinstance(content, Mapping) or not content:
        return None
    tensors = {k: v for k, v in content.items() if isinstance(k, str) and isinstance(v, Tensor)}
    if len(tensors) == len(content):
        return tensors
    for key in WRAPPERS:
        inner = _unwrapped(content.get(key))
        if inner is not None:
            return inner
    return None


def _described(content: Any) -> str:
    if isinstance(content, Mapping):
        keys = ", ".join(repr(k) for k in list(content)[:SHOWN])
        return f"a dict with the keys {keys}" if content else "an empty dict"
    return f"a {type(content).__name__}"


def _without_prefix(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """The state dict without wrappers' prefixes; as it is where that makes no key match."""
    own = set(model.state_dict())
    bare, changed = state, True
    while changed and not own.intersection(bare):
        changed = False
        for prefix in PREFIXES:
            if all(key.startswith(prefix) for key in bare):
                bare = {key.removeprefix(prefix): value for key, value in bare.items()}
                changed = True
                break
    return bare if own.intersection(bare) else state


def _listed(items: Sequence[str], what: str, separator: str) -> str:
    if not items:
        return ""
    keys = "key" if len(items) == 1 else "keys"
    more = f"{separator}... and {len(items) - SHOWN} more" if len(items) > SHOWN else ""
    return f"{len(items)} {keys} {what}: {separator.join(items[:SHOWN])}{more}"


def _refuse_non_finite(state: Mapping[str, Tensor], path: Path) -> None:
    bad = [k for k, t in state.items() if t.is_floating_point() and not bool(t.isfinite().all())]
    if bad:
        raise ModelError(f"weights {path}: {_listed(bad, 'with NaN or infinite values', ', ')}")
