"""From what a user names a model by (`timm:NAME`, `FILE.pt2`, ...) to a module and its input."""

from __future__ import annotations

import difflib
import importlib
import inspect
import json
import logging
import math
import os
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from torchdelta.capture.cards import (
    AskedSize,
    Card,
    floats,
    frame_size,
    size_advice,
    timm_card,
    torchvision_card,
)
from torchdelta.capture.names import (
    COLLECTIONS,
    FORMS,
    INSTALL_HINT,
    check_model,
    current_folder_first,
    split,
    unknown,
)
from torchdelta.capture.suited import check_capturable, unwrapped
from torchdelta.capture.weights import load_weights
from torchdelta.errors import CaptureError, ModelError
from torchdelta.ops.preprocess import channel_order


@dataclass(frozen=True)
class LoadedModel:
    """A model in eval mode on the CPU, and the frames that it expects.

    input_range: values of a frame before mean and std; (0, 1) for most
    mean, std:   per channel; None: values go in as they are
    size:        (h, w) that the model was made for, None where unknown
    fixed_size:  True where it takes no other size
    has_weights: False for a network whose weights are random (see `prepare_untrained`)
    labels:      class names, where they are known
    notes:       lines for the user
    """

    model: nn.Module
    name: str
    channels: int = 3
    input_range: tuple[float, float] = (0.0, 1.0)
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    color: Literal["rgb", "bgr"] = "rgb"
    size: tuple[int, int] | None = None
    fixed_size: bool = False
    has_weights: bool = False
    labels: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()

    def frame_size(self, asked: AskedSize) -> tuple[int, int] | None:
        """Give the size that frames are resized to, None for their own; see `cards.frame_size`."""
        return frame_size(self.name, self.size, self.fixed_size, asked)

    def size_advice(self, frames: tuple[int, int]) -> str | None:
        """Say that frames (h, w) are far from what the model was made for, or None."""
        return size_advice(self.name, self.size, frames)

    def taking(self, limits: tuple[float, float] | None) -> LoadedModel:
        """The same model for frames whose values lo..hi stand for what its input range stands for.

        limits: (lo, hi), or None: frames are as the model expects them
        """
        if limits is None:
            return self
        # a value v of such a frame is scale * v + offset of the model's own range
        scale = (self.input_range[1] - self.input_range[0]) / (limits[1] - limits[0])
        offset = self.input_range[0] - scale * limits[0]
        mean, std = self.mean or (0.0,) * self.channels, self.std or (1.0,) * self.channels
        return replace(
            self,
            input_range=limits,
            mean=tuple((m - offset) / scale for m in mean),
            std=tuple(s / scale for s in std),
        )

    def model_input(self, frames: np.ndarray) -> Tensor:
        """What the model is given for these frames.

        frames: [N, H, W, C] uint8, or float in the input range; RGB, grey, with alpha or without
        returns [N, C, H, W] float32
        """
        low, high = self.input_range
        values = torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2).float()
        if frames.dtype == np.uint8:
            values = low + (high - low) / 255 * values
        if self.color == "bgr":
            values = values[:, channel_order(self.color, self.channels)]
        mean = torch.tensor(self.mean or (0.0,)).view(1, -1, 1, 1)
        std = torch.tensor(self.std or (1.0,)).view(1, -1, 1, 1)
        return ((values - mean) / std).contiguous()


# What a callable's or an archive's `preprocess` may state about its input.
PREPROCESS_KEYS = ("channels", "input_range", "mean", "std", "color", "size", "labels")


def load_model(
    spec: str,
    weights: str | os.PathLike[str] | None = None,
    *,
    size: AskedSize = None,
    seed: int = 0,
) -> LoadedModel:
    """Build the model that `spec` names and load its weights; nothing is ever downloaded.

    spec:    see `names.FORMS`
    weights: state dict, .pth/.pt/.bin or .safetensors; None: random weights drawn from `seed`,
             or those that an archive or a callable brings along
    size:    (h, w) of the frames to come, checked against a model that takes one size only;
             "model": its own, which must be known

    Raises ModelError, saying what was expected.
    """
    kind, name = split(spec)
    if not kind:
        raise _bare(spec)
    loader = LOADERS[kind]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        loaded = loader(name)
    model = loaded.model
    if weights is not None:
        target = model.network if isinstance(model, _Archive) else model
        note = load_weights(target, Path(weights), spec)
    elif not loaded.has_weights:
        norms = any(isinstance(m, _BatchNorm) for m in model.modules())
        how = ", batch norms set on the run's first frames" if norms else ""
        note = f"weights: random (seed {seed}){how}; shows speed, never quality"
    else:
        note = f"weights: as {name} makes them"
    loaded = replace(
        loaded,
        has_weights=loaded.has_weights or weights is not None,
        notes=(*loaded.notes, note),
    )
    if size == "model":
        loaded.frame_size(size)
    elif loaded.fixed_size and size is not None and loaded.size not in (None, size):
        raise ModelError(
            f"{spec} takes frames of {_hxw(loaded.size)} only, not {_hxw(size)}; "
            "leave the size out, and frames are resized to what it takes"
        )
    model.eval()
    return loaded


def _hxw(size: tuple[int, int] | None) -> str:
    return "?" if size is None else f"{size[0]}x{size[1]}"


def _bare(spec: str) -> ModelError:
    known = [f"{kind}:{spec}" for kind in COLLECTIONS if _is_known(kind, spec)]
    return unknown(spec, f"did you mean {' or '.join(known)}?" if known else "")


def _is_known(collection: str, name: str) -> bool:
    try:
        return name in _names(collection)
    except ModelError:
        return False


def _collection(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        reason = "is not installed" if isinstance(error, ModuleNotFoundError) else "does not import"
        raise ModelError(f"{name} {reason} ({error}); {INSTALL_HINT}") from error


def _names(collection: str) -> list[str]:
    if collection == "timm":
        names: list[str] = _collection("timm").list_models()
        return names
    models = _collection("torchvision").models
    return list(models.list_models())


def _check_name(collection: str, name: str, names: Iterable[str]) -> None:
    known = list(names)
    if name in known:
        return
    close = difflib.get_close_matches(name, known, n=5, cutoff=0.5)
    hint = f"; close to it: {', '.join(close)}" if close else ""
    raise ModelError(f"{collection} has no model {name!r}{hint}\n{FORMS}")


def _load_timm(name: str) -> LoadedModel:
    timm = _collection("timm")
    _check_name("timm", name.partition(".")[0], _names("timm"))
    try:
        model = timm.create_model(name, pretrained=False)
    except Exception as error:
        raise ModelError(f"timm cannot build {name!r}: {_first_line(error)}") from error
    config: Mapping[str, Any] = getattr(model, "pretrained_cfg", None) or {}
    labels = _imagenet_labels() if config.get("num_classes") == 1000 else None
    return _with_card(timm_card(model), model, f"timm:{name}", labels)


def _with_card(
    card: Card, model: nn.Module, name: str, labels: tuple[str, ...] | None
) -> LoadedModel:
    return LoadedModel(
        model,
        name,
        channels=card.channels or _first_channels(model),
        mean=card.mean,
        std=card.std,
        size=card.size,
        fixed_size=card.fixed_size,
        labels=labels,
    )


def _load_torchvision(name: str) -> LoadedModel:
    models = _collection("torchvision").models
    _check_name("torchvision", name, _names("torchvision"))
    builder = models.get_model_builder(name)
    # without weights_backbone=None a segmentation model would fetch its backbone's weights
    options: dict[str, Any] = {"weights": None}
    if "weights_backbone" in inspect.signature(builder).parameters:
        options["weights_backbone"] = None
    try:
        with warnings.catch_warnings():
            # googlenet and inception announce another initialisation
            warnings.simplefilter("ignore", FutureWarning)
            model = builder(**options)
    except Exception as error:
        raise ModelError(f"torchvision cannot build {name!r}: {_first_line(error)}") from error
    is_segmentation = name in models.list_models(module=models.segmentation)
    is_classifier = name in models.list_models(module=models)
    labels = None
    if is_segmentation:
        labels = tuple(importlib.import_module("torchvision.models._meta")._VOC_CATEGORIES)
    elif is_classifier:
        labels = _imagenet_labels()
    card = torchvision_card(models, name, model)
    return _with_card(card, model, f"torchvision:{name}", labels)


def _imagenet_labels() -> tuple[str, ...] | None:
    try:
        return tuple(importlib.import_module("torchvision.models._meta")._IMAGENET_CATEGORIES)
    except (ImportError, AttributeError):
        return None


class _Archive(nn.Module):
    """The module of an export archive, which knows no train and eval mode of its own."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        # an archive's modules refuse eval()
        for module in self.modules():
            module.training = False

    def train(self, mode: bool = True) -> _Archive:
        """Do nothing: the mode was fixed when the archive was made."""
        return self

    def forward(self, frame: Tensor) -> Any:
        return self.network(frame)


def _load_archive(name: str) -> LoadedModel:
    path = Path(name)
    check_model(name)
    extra: dict[str, Any] = {"preprocess.json": ""}
    logger = logging.getLogger("torch.export")
    level = logger.level
    # on a file that is no archive it logs two tracebacks before it raises
    logger.setLevel(logging.CRITICAL)
    try:
        program = torch.export.load(path, extra_files=extra)
    except Exception as error:
        raise ModelError(
            f"{path} cannot be read as a torch.export archive: {_first_line(error)}"
        ) from error
    finally:
        logger.setLevel(level)
    shape = _only_input(program, path)
    c, h, w = shape[1:]
    if not isinstance(c, int):
        raise ModelError(f"{path}: the number of channels of its input must not be dynamic")
    fixed = isinstance(h, int) and isinstance(w, int)
    loaded = LoadedModel(
        _Archive(program.module()),
        str(path),
        channels=c,
        size=(int(h), int(w)) if fixed else _example_size(program),
        fixed_size=fixed,
        has_weights=True,
    )
    stated = extra["preprocess.json"]
    if stated:
        try:
            preprocess = json.loads(stated)
        except ValueError as error:
            raise ModelError(f"{path}: its preprocess.json is no JSON: {error}") from error
        return _with_preprocess(loaded, preprocess, f"{path}: preprocess.json")
    return replace(
        loaded,
        notes=(
            "the archive says nothing about its input: frames go in as 0..1, RGB "
            '(state it with torch.export.save(..., extra_files={"preprocess.json": ...}))',
        ),
    )


def _only_input(program: torch.export.ExportedProgram, path: Path) -> Sequence[Any]:
    """Shape of the archive's one input, dynamic sizes as SymInt."""
    names = set(program.graph_signature.user_inputs)
    values = [n.meta.get("val") for n in program.graph.nodes if n.name in names]
    tensors = [v for v in values if isinstance(v, Tensor)]
    if len(tensors) != 1 or len(values) != 1 or tensors[0].dim() != 4:
        got = ", ".join(str(list(t.shape)) for t in tensors) or "none"
        raise ModelError(f"{path} takes the inputs {got}; expected one of [N, C, H, W]")
    return tuple(tensors[0].shape)


def _example_size(program: torch.export.ExportedProgram) -> tuple[int, int] | None:
    args = program.example_inputs[0] if program.example_inputs else ()
    frames = [a for a in args if isinstance(a, Tensor) and a.dim() == 4]
    return (int(frames[0].shape[2]), int(frames[0].shape[3])) if frames else None


def _load_callable(spec: str) -> LoadedModel:
    module_name, _, attribute = spec.partition(":")
    with current_folder_first():
        try:
            module = importlib.import_module(module_name)
        except Exception as error:
            raise ModelError(
                f"{spec}: cannot import {module_name}: {type(error).__name__}: {_first_line(error)}"
            ) from error
        target = getattr(module, attribute, None)
        if target is None:
            public = [n for n in vars(module) if not n.startswith("_")]
            close = difflib.get_close_matches(attribute, public, n=5, cutoff=0.5)
            hint = f"; close to it: {', '.join(close)}" if close else ""
            raise ModelError(f"{spec}: {module_name} has no {attribute!r}{hint}")
        model = target if isinstance(target, nn.Module) else _call(target, spec)
    if not isinstance(model, nn.Module):
        raise ModelError(f"{spec} returned {type(model).__name__}, expected an nn.Module")
    model = unwrapped(model)
    try:
        check_capturable(model)
    except CaptureError as error:
        raise CaptureError(f"{spec}: {error}") from error
    loaded = LoadedModel(
        model, spec, channels=_first_channels(model), has_weights=not _is_untrained(model)
    )
    preprocess = getattr(target, "preprocess", None) or getattr(model, "preprocess", None)
    if isinstance(preprocess, Mapping):
        return _with_preprocess(loaded, preprocess, f"{spec}: preprocess")
    return replace(
        loaded,
        notes=(
            f"{attribute} has no `preprocess`: frames go in as 0..1, RGB, without mean and std",
        ),
    )


def _call(target: Callable[[], Any], spec: str) -> Any:
    if not callable(target):
        raise ModelError(f"{spec} is a {type(target).__name__}, expected a function or a class")
    try:
        return target()
    except Exception as error:
        raise ModelError(
            f"{spec} raised {type(error).__name__}: {_first_line(error)}; "
            "it is called without arguments and returns an nn.Module"
        ) from error


def _is_untrained(model: nn.Module) -> bool:
    """Whether the model has batch norms and none of them has ever seen a batch."""
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    return bool(norms) and all(
        bool((m.running_mean == 0).all()) and bool((m.running_var == 1).all())
        for m in norms
        if m.running_mean is not None and m.running_var is not None
    )


def _first_channels(model: nn.Module) -> int:
    convs = (m for m in model.modules() if isinstance(m, nn.Conv2d))
    first = next(convs, None)
    return first.in_channels if first is not None else 3


def _with_preprocess(loaded: LoadedModel, stated: Mapping[str, Any], where: str) -> LoadedModel:
    unknown = sorted(set(stated) - set(PREPROCESS_KEYS))
    if unknown:
        raise ModelError(
            f"{where} has unknown keys {', '.join(map(repr, unknown))}; "
            f"known are {', '.join(PREPROCESS_KEYS)}"
        )
    changes: dict[str, Any] = {k: v for k, v in stated.items() if v is not None}
    try:
        for key in ("mean", "std", "input_range"):
            if key in changes:
                changes[key] = floats(changes[key])
        if "size" in changes:
            h, w = changes["size"]
            changes["size"] = (int(h), int(w))
        if "labels" in changes:
            changes["labels"] = tuple(str(label) for label in changes["labels"])
        if "channels" in changes:
            changes["channels"] = int(changes["channels"])
    except (TypeError, ValueError) as error:
        raise ModelError(f"{where}: {error}") from error
    channels = changes.get("channels", loaded.channels)
    _check_preprocess(changes, channels, where)
    for key in ("mean", "std"):
        if len(changes.get(key, ())) == 1:
            changes[key] *= channels
    return replace(loaded, **changes)


def _check_preprocess(stated: Mapping[str, Any], channels: int, where: str) -> None:
    if channels not in (1, 2, 3, 4):
        raise ModelError(
            f"{where}: frames have 1 (grey), 2 (grey and alpha), 3 (RGB) or 4 channels (RGBA), not "
            f"{channels}"
        )
    limits = stated.get("input_range", (0.0, 1.0))
    if len(limits) != 2 or not limits[0] < limits[1]:
        raise ModelError(f"{where}: input_range is {limits}, expected (low, high) with low < high")
    for key in ("mean", "std", "input_range"):
        if not all(map(math.isfinite, stated.get(key, ()))):
            raise ModelError(f"{where}: {key} is {stated[key]}, expected finite numbers")
    if any(not one > 0 for one in stated.get("std", ())):
        raise ModelError(f"{where}: std is {stated['std']}, expected numbers > 0")
    for key in ("mean", "std"):
        if key in stated and len(stated[key]) not in (1, channels):
            raise ModelError(
                f"{where}: {key} has {len(stated[key])} values, expected 1 or {channels}"
            )
    try:
        channel_order(stated.get("color", "rgb"), channels)
    except ValueError as error:
        raise ModelError(f"{where}: {error}") from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


LOADERS: dict[str, Callable[[str], LoadedModel]] = {
    "timm": _load_timm,
    "torchvision": _load_torchvision,
    "archive": _load_archive,
    "callable": _load_callable,
}
