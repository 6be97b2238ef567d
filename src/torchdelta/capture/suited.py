"""Whether a model can be copied, run and captured; where it cannot, why, and what to do."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from torchdelta.capture.cards import Size, timm_card
from torchdelta.errors import CaptureError

QUANTISED = (
    "torch.ao.nn.quantized",
    "torch.ao.nn.intrinsic.quantized",
    "torch.nn.quantized",
)
# modules of one kind that a message names
MOST_NAMED = 4
# what networks' sides are multiples of, and squares that those with one size take
STRIDES = (2, 4, 8, 16, 32, 64)
# of the sides of `smaller` frames
SMALLER = 4
SQUARES = (224, 256, 288, 299, 320, 384, 416, 448, 512, 640, 32, 64, 128)


def unwrapped(model: nn.Module) -> nn.Module:
    """Take the network out of wrappers that only say how to run it: compiled, data-parallel."""
    # not imported here: it takes a second, and who compiled a model has done it
    compiler = sys.modules.get("torch._dynamo.eval_frame")
    compiled: tuple[type, ...] = (compiler.OptimizedModule,) if compiler else ()
    while isinstance(model, (*compiled, DataParallel, DistributedDataParallel)):
        inner = getattr(model, "_orig_mod", None) or model.module
        assert isinstance(inner, nn.Module)
        model = inner
    return model


def unwrap_parts(model: nn.Module) -> nn.Module:
    """Take the same wrappers off a model's parts, in place."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            setattr(module, name, unwrapped(child))
    return model


def check_capturable(model: nn.Module) -> None:
    """Refuse a model that cannot be copied, run or captured, whatever its frames.

    Raises: CaptureError with all reasons.
    """
    reasons = [*_modules(model), *_tensors(model), *_signature(model)]
    if reasons:
        raise CaptureError("the model cannot be captured:\n  - " + "\n  - ".join(reasons))


def _modules(model: nn.Module) -> Iterator[str]:
    scripted, quantised, unmeasured = [], [], []
    for path, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            scripted.append((path, module))
        elif type(module).__module__.startswith(QUANTISED):
            quantised.append((path, module))
        elif isinstance(module, _BatchNorm) and module.running_mean is None:
            unmeasured.append((path, module))
    if scripted:
        yield (
            f"{_named(scripted[:1])} is TorchScript, which torch.export does not take; give the "
            "module that it was scripted or traced from"
        )
    if quantised:
        yield (
            f"{_named(quantised)} {_is(quantised)} quantised, and plans are in floating point; "
            "give the network as it was before"
        )
    if unmeasured:
        yield (
            f"{_named(unmeasured)} {'have' if len(unmeasured) > 1 else 'has'} no running "
            "statistics: in eval mode too they are taken over all rows of a batch, which are "
            "different streams here. nn.InstanceNorm2d takes them of each row alone (with "
            "affine=True it has the same weights); or train with track_running_stats=True"
        )


def _tensors(model: nn.Module) -> Iterator[str]:
    kinds: dict[str, list[str]] = {}
    devices: dict[str, str] = {}
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        kind = _kind(tensor)
        if kind is not None:
            kinds.setdefault(kind, []).append(name)
        elif tensor.ndim:
            devices.setdefault(str(tensor.device), name)
    for kind, names in kinds.items():
        yield f"{_listed(names)} {kind}"
    if len(devices) > 1:
        where = ", ".join(f"{name} on {device}" for device, name in devices.items())
        yield (
            f"its tensors lie on several devices ({where}); move the model to one: "
            f"model.to({next(iter(devices))!r})"
        )


def _kind(tensor: Tensor) -> str | None:
    """Say what is wrong with a parameter or buffer, and what to do; None where nothing is."""
    if is_lazy(tensor):
        return "has no shape yet (a lazy module); run the model on a frame once, then compile it"
    if isinstance(tensor, FakeTensor):
        return "is a FakeTensor, without values; build the model outside FakeTensorMode"
    if tensor.device.type == "meta":
        return (
            'is on device "meta", without values; build the model on a real device, or call '
            'model.to_empty(device="cpu") and load its weights'
        )
    if tensor.layout is not torch.strided:
        layout = str(tensor.layout).removeprefix("torch.")
        return f"is {layout}, expected dense; use its .to_dense()"
    if tensor.is_quantized:
        return "is quantised, and plans are in floating point; use its .dequantize()"
    if is_traceable_wrapper_subclass(tensor):
        return f"is a {type(tensor).__name__}, expected a plain tensor"
    return None


def _signature(model: nn.Module) -> Iterator[str]:
    try:
        signature = inspect.signature(model.forward)
    except (TypeError, ValueError):
        return
    try:
        signature.bind(None)
    except TypeError:
        plain = [p.replace(annotation=p.empty) for p in signature.parameters.values()]
        yield (
            f"forward takes ({', '.join(map(str, plain))}), expected one tensor [N, C, H, W]; wrap "
            "the model in a module whose forward takes the frame alone"
        )


def _named(modules: Sequence[tuple[str, nn.Module]]) -> str:
    return _listed([f"{_place(path)} ({type(module).__name__})" for path, module in modules])


def _place(path: str) -> str:
    return f"`{path}`" if path else "the model"


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return ", ".join(names[:MOST_NAMED]) + more


def _is(names: Sequence[Any]) -> str:
    return "are" if len(names) > 1 else "is"


def failing_module(model: nn.Module, error: BaseException) -> str | None:
    """Name the deepest module whose forward an exception came out of, from its traceback."""
    paths = {id(module): path for path, module in model.named_modules()}
    found = None
    trace = error.__traceback__
    while trace is not None:
        code, values = trace.tb_frame.f_code, trace.tb_frame.f_locals
        # the first argument of a method, whatever it is called
        owner = values.get(code.co_varnames[0]) if code.co_argcount else None
        if isinstance(owner, nn.Module) and id(owner) in paths:
            found = f"{_place(paths[id(owner)])} ({type(owner).__name__})"
        trace = trace.tb_next
    return found


def smaller(x: Tensor) -> Tensor | None:
    """Give frames [N, C, H, W] with about a quarter of their sides; None where they are small.

    What does not hang on the size is looked at there. Sides are multiples of 64, which the strides
    of nearly all networks divide.
    """
    stride = STRIDES[-1]
    h, w = (-(-n // (SMALLER * stride)) * stride for n in x.shape[2:])
    if h * w * SMALLER > x.shape[2] * x.shape[3]:
        return None
    return F.interpolate(x, (h, w), mode="area")


@torch.no_grad()
def run_model(model: nn.Module, x: Tensor) -> Any:
    """Run a model on frames [N, C, H, W], as it sees them.

    Raises: CaptureError where it fails: with the module, and a size at which it does not.
    """
    try:
        # a copy: some models write to their input
        return model(x.clone())
    except Exception as error:
        where = failing_module(model, error)
        found = None if isinstance(error, MemoryError) else working_size(model, x)
        advice = (
            "At no size that was tried it does better: check the channels, and that forward takes "
            "one tensor [N, C, H, W]."
            if found is None
            else f"With frames of {found[0]}x{found[1]} it works: resize them to that, or run it "
            f"with --size {found[0]}x{found[1]}."
        )
        raise CaptureError(
            f"the model itself fails on such a frame, {list(x.shape)}"
            + (f", in {where}" if where else "")
            + f": {type(error).__name__}: {error}\n{advice}"
        ) from error


@torch.no_grad()
def working_size(model: nn.Module, x: Tensor) -> Size | None:
    """Find a size near that of frames [N, C, H, W] on which the model runs, by running it."""
    for size in _sizes(model, (x.shape[2], x.shape[3])):
        try:
            model(F.interpolate(x[:1], size, mode="nearest"))
        except Exception:
            continue
        return size
    return None


def _sizes(model: nn.Module, size: Size) -> list[Size]:
    """List sizes to try: multiples of small strides first, then those that models are made for."""
    found: dict[Size, None] = {}
    for stride in STRIDES:
        rows, columns = (
            {max(stride, side // stride * stride), -(-side // stride) * stride} for side in size
        )
        near = [(h, w) for h in rows for w in columns]
        # the least change first; of equal ones the larger frame
        near.sort(key=lambda s: (abs(s[0] - size[0]) + abs(s[1] - size[1]), -s[0] * s[1]))
        found |= dict.fromkeys(near)
    own = timm_card(model).size
    found |= dict.fromkeys(([own] if own else []) + [(side, side) for side in SQUARES])
    found.pop(size, None)
    return list(found)
