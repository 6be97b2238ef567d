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
from torchdelta.quality.compare import (
    ClassAgreement,
    class_agreement,
    is_class_scores,
    pixel_classes,
    probabilities,
    psnr_db,
    same_share,
)
from torchdelta.runtime.result import Result
from torchdelta.video import overlay

Picture = NDArray[np.uint8]
Colour = tuple[int, int, int]
InFrame = Callable[[Tensor], Tensor]

SHOWN_CLASSES = 3


@dataclass(frozen=True)
class Reading:
    """One frame's output as its task reads it.

    result: goes into JSON
    draw:   puts it on a picture, [H, W, 3] uint8 to [H, W, 3] uint8
    labels: names and scores (0..1) of the best classes of the picture
    legend: colours and names of the classes that `draw` has coloured, those of most pixels first
    """

    result: dict[str, Any] | None
    draw: Callable[[Picture], Picture] = lambda picture: picture
    labels: tuple[tuple[str, float], ...] = ()
    legend: tuple[tuple[Colour, str], ...] = ()


def read(task: Task, result: Result, loaded: LoadedModel) -> Reading:
    """Read the model's output, in the frame; raises ModelError where the task needs another."""
    return read_output(task, result.output, result, loaded)


def read_output(task: Task, output: Any, result: Result, loaded: LoadedModel) -> Reading:
    """Read an output over the same pixels as a result's, such as the dense network's."""
    if task is Task.none:
        return Reading(None)
    return READERS[task](main_output(output), loaded, lambda m: _in_frame(m, result))


@dataclass(frozen=True)
class Agreement:
    """How one frame's answer agrees with the dense network's, by task; the others are None.

    classes:    of a picture's class scores
    pixels:     share of the frame's pixels with the same class
    psnr_db:    of two pictures, at the range of the input's values
    """

    classes: ClassAgreement | None = None
    pixels: float | None = None
    psnr_db: float | None = None

    def record(self) -> dict[str, Any]:
        """Give it as a JSON object."""
        if self.classes is not None:
            one = self.classes
            return {"same_class": one.same, "near_tie": one.near_tie, "distance": one.distance}
        if self.pixels is not None:
            return {"same_pixels": self.pixels}
        return {"psnr_db": self.psnr_db}

    def __str__(self) -> str:
        if self.classes is not None:
            same = "the same class" if self.classes.same else "another class"
            tie = " (a near-tie)" if self.classes.near_tie else ""
            return f"{same}{tie}, probabilities differ by {self.classes.distance:.3f}"
        if self.pixels is not None:
            return f"the same class on {self.pixels:.1%} of the pixels"
        return f"{self.psnr_db:.1f} dB PSNR between both"


def agree(task: Task, result: Result, dense: Any, loaded: LoadedModel) -> Agreement | None:
    """Compare a result with the dense network's output; None where the answers mean nothing.

    That is so with `Task.none`, and for random weights: their classes are names of nothing, and
    the best two lie so close that rounding chooses between them.
    """
    if task is Task.none or not loaded.has_weights:
        return None
    mine, theirs = main_output(result.output), main_output(dense)
    if task is Task.classify:
        return Agreement(classes=class_agreement(mine, theirs))
    if task is Task.segment:
        found = (_in_frame(pixel_classes(output, like=theirs), result) for output in (mine, theirs))
        return Agreement(pixels=same_share(*found))
    mine, theirs = (_in_0_1(_in_frame(output, result)[0], loaded) for output in (mine, theirs))
    return Agreement(psnr_db=psnr_db(mine, theirs, peak=1.0))


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
    if not is_class_scores(output):
        raise _mismatch(Task.classify, "[1, classes]", output)
    scores = probabilities(output)
    best = tuple(
        (_named(int(i), len(scores), loaded.labels), float(scores[i]))
        for i in scores.argsort(descending=True)[:SHOWN_CLASSES]
    )
    label, score = best[0]
    return Reading({"top1": int(scores.argmax()), "label": label, "score": score}, labels=best)


def _segment(output: Tensor, loaded: LoadedModel, in_frame: InFrame) -> Reading:
    if output.dim() != 4 or output.shape[2] * output.shape[3] < 2:
        raise _mismatch(Task.segment, "[1, classes, H, W]", output)
    found = in_frame(pixel_classes(output))
    classes = max(2, output.shape[1])
    counts = torch.bincount(found.flatten().long(), minlength=classes)
    shares = {index: int(count) / found.numel() for index, count in enumerate(counts) if count}
    names = {index: _named(index, classes, loaded.labels) for index in shares}
    largest = sorted((index for index in shares if index), key=lambda index: -shares[index])
    return Reading(
        {"pixel_shares": {names[index]: share for index, share in shares.items()}},
        lambda picture: overlay.segmentation(picture, found),
        legend=tuple((overlay.colour_of(index), names[index]) for index in largest),
    )


def _image(output: Tensor, loaded: LoadedModel, in_frame: InFrame) -> Reading:
    if output.dim() != 4 or output.shape[1] not in (1, 3):
        raise _mismatch(Task.image, "[1, 1 or 3, H, W]", output)
    output = in_frame(output)
    return Reading(
        {"mean": float(output.mean())},
        lambda picture: overlay.image(picture, _to_picture(output[0], loaded)),
    )


def _in_0_1(image: Tensor, loaded: LoadedModel) -> Tensor:
    """Bring values in the space of the model's input, [C, H, W], to the range of pictures, 0..1."""
    channels = image.shape[0]
    for stated, combine in ((loaded.std, torch.mul), (loaded.mean, torch.add)):
        if stated is not None and len(stated) == channels:
            image = combine(image, torch.tensor(stated).view(-1, 1, 1))
    low, high = loaded.input_range
    return (image - low) / (high - low)


def _to_picture(image: Tensor, loaded: LoadedModel) -> Picture:
    """Values in the space of the model's input, [C, H, W], as RGB uint8 [H, W, 3]."""
    values = _in_0_1(image, loaded).nan_to_num(0.0).clamp(0, 1) * 255
    pixels = values.round().to(torch.uint8).permute(1, 2, 0).numpy()
    if image.shape[0] == loaded.channels:
        # the order that swaps red and blue also swaps them back
        pixels = pixels[..., channel_order(loaded.color, loaded.channels)]
    return np.ascontiguousarray(np.broadcast_to(pixels, (*pixels.shape[:2], 3)))


READERS: dict[Task, Callable[[Tensor, LoadedModel, InFrame], Reading]] = {
    Task.classify: _classify,
    Task.segment: _segment,
    Task.image: _image,
}
