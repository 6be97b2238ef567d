"""What a network's output means, by task: as a JSON result, and drawn on the picture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils._pytree import tree_leaves

from torchdelta.capture.load import LoadedModel
from torchdelta.cli.options import Task
from torchdelta.errors import ModelError
from torchdelta.ops.preprocess import channel_order
from torchdelta.runtime.result import Result
from torchdelta.video import overlay

Picture = NDArray[np.uint8]
InFrame = Callable[[Tensor], Tensor]

SHOWN_CLASSES = 3


@dataclass(frozen=True)
class Reading:
    """One frame's output as its task reads it.

    result: goes into JSON
    draw:   puts it on a picture, [H, W, 3] uint8 to [H, W, 3] uint8
    """

    result: dict[str, Any] | None
    draw: Callable[[Picture], Picture]


def read(task: Task, result: Result, loaded: LoadedModel) -> Reading:
    """Read the model's output, in the frame; raises ModelError where the task needs another."""
    if task is Task.none:
        return Reading(None, lambda picture: picture)
    return READERS[task](main_output(result.output), loaded, lambda m: _in_frame(m, result))


def _in_frame(found: Tensor, result: Result) -> Tensor:
    """Bring a map [..., h, w] over the window of a followed camera into the frame."""
    if result.aligned is None:
        return found
    return result.to_frame_map(found, result.plan.size[0] / found.shape[-2])


def main_output(output: Any) -> Tensor:
    """The tensor that a task reads: `out` of a dict where there is one, else the first map."""
    if isinstance(output, dict) and isinstance(output.get("out"), Tensor):
        return output["out"].detach().float().cpu()
    for leaf in tree_leaves(output):
        if isinstance(leaf, Tensor) and leaf.is_floating_point():
            return leaf.detach().float().cpu()
    raise ModelError("the model's output holds no floating-point tensor; use --task none")


def _mismatch(task: Task, needs: str, output: Tensor) -> ModelError:
    return ModelError(
        f"--task {task.value} needs an output of {needs}, this model gives {list(output.shape)}; "
        "--task none works with every model"
    )


def _named(index: int, classes: int, labels: Sequence[str] | None) -> str:
    return labels[index] if labels is not None and len(labels) == classes else f"class {index}"


def _classify(output: Tensor, loaded: LoadedModel, in_frame: InFrame) -> Reading:
    if output.numel() < 2 or output.numel() != output.shape[1 if output.dim() > 1 else 0]:
        raise _mismatch(Task.classify, "[1, classes]", output)
    scores = output.flatten()
    is_probability = bool((scores >= 0).all()) and abs(float(scores.sum()) - 1) < 1e-3
    if not is_probability:
        scores = scores.softmax(0)
    best = [
        (_named(int(i), len(scores), loaded.labels), float(scores[i]))
        for i in scores.argsort(descending=True)[:SHOWN_CLASSES]
    ]
    label, score = best[0]
    result = {"top1": int(scores.argmax()), "label": label, "score": score}
    return Reading(result, lambda picture: overlay.labels(picture, best))


def _segment(output: Tensor, loaded: LoadedModel, in_frame: InFrame) -> Reading:
    if output.dim() != 4 or output.shape[2] * output.shape[3] < 2:
        raise _mismatch(Task.segment, "[1, classes, H, W]", output)
    classes = output.shape[1]
    if classes == 1:
        # one map: a logit, or a probability where it stays within 0..1
        low, high = float(output.min()), float(output.max())
        found = output[0, 0] > (0.5 if low >= 0 and high <= 1 else 0.0)
        classes = 2
    else:
        found = output[0].argmax(0)
    found = in_frame(found)
    counts = torch.bincount(found.flatten().long(), minlength=classes)
    shares = {
        _named(index, classes, loaded.labels): int(count) / found.numel()
        for index, count in enumerate(counts)
        if count
    }
    return Reading({"pixel_shares": shares}, lambda picture: overlay.segmentation(picture, found))


def _image(output: Tensor, loaded: LoadedModel, in_frame: InFrame) -> Reading:
    if output.dim() != 4 or output.shape[1] not in (1, 3):
        raise _mismatch(Task.image, "[1, 1 or 3, H, W]", output)
    output = in_frame(output)
    return Reading(
        {"mean": float(output.mean())},
        lambda picture: overlay.image(picture, _to_picture(output[0], loaded)),
    )


def _to_picture(image: Tensor, loaded: LoadedModel) -> Picture:
    """Values in the space of the model's input, [C, H, W], as RGB uint8 [H, W, 3]."""
    channels = image.shape[0]
    for stated, combine in ((loaded.std, torch.mul), (loaded.mean, torch.add)):
        if stated is not None and len(stated) == channels:
            image = combine(image, torch.tensor(stated).view(-1, 1, 1))
    low, high = loaded.input_range
    values = ((image - low) / (high - low)).nan_to_num(0.0).clamp(0, 1) * 255
    pixels = values.round().to(torch.uint8).permute(1, 2, 0).numpy()
    if channels == loaded.channels:
        # the order that swaps red and blue also swaps them back
        pixels = pixels[..., channel_order(loaded.color, channels)]
    return np.ascontiguousarray(np.broadcast_to(pixels, (*pixels.shape[:2], 3)))


READERS: dict[Task, Callable[[Tensor, LoadedModel, InFrame], Reading]] = {
    Task.classify: _classify,
    Task.segment: _segment,
    Task.image: _image,
}
