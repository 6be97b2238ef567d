"""What a network's output means: as a JSON result, drawn on the picture, beside dense's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils._pytree import tree_leaves

from torchdelta.errors import ModelError
from torchdelta.ops.preprocess import Preprocess, channel_order
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
Task = Literal["classify", "segment", "image"]

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


@dataclass(frozen=True)
class Tail:
    """What turns a network's output into a result that people look at.

    task:       "classify": scores of the picture's classes, [1, classes]; "segment": of each
                pixel's, [1, classes, H, W]; "image": a picture in the space of the model's input,
                [1, 1 or 3, H, W]
    labels:     names of the classes, where they are known
    channels:   of a frame;  preprocess: what the model's input is made by
    """

    task: Task
    labels: tuple[str, ...] | None
    channels: int
    preprocess: Preprocess

    def read(self, output: Any, result: Result) -> Reading:
        """Read an output over the same pixels as a result's: its own, or the dense network's.

        Raises: ModelError where the task needs another output.
        """
        return READERS[self.task](self, main_output(output), result)

    def agree(self, result: Result, dense: Any) -> Agreement:
        """Compare a result with the dense network's output."""
        mine, theirs = main_output(result.output), main_output(dense)
        if self.task == "classify":
            return Agreement(classes=class_agreement(mine, theirs))
        if self.task == "segment":
            found = (in_frame(pixel_classes(x, like=theirs), result) for x in (mine, theirs))
            return Agreement(pixels=same_share(*found))
        mine, theirs = (self._in_0_1(in_frame(x, result)[0]) for x in (mine, theirs))
        return Agreement(psnr_db=psnr_db(mine, theirs, peak=1.0))

    def classify(self, output: Tensor, result: Result) -> Reading:
        """Read the scores of a picture's classes."""
        if not is_class_scores(output):
            raise self._mismatch("[1, classes]", output)
        scores = probabilities(output)
        best = tuple(
            (self._named(int(i), len(scores)), float(scores[i]))
            for i in scores.argsort(descending=True)[:SHOWN_CLASSES]
        )
        label, score = best[0]
        return Reading({"top1": int(scores.argmax()), "label": label, "score": score}, labels=best)

    def segment(self, output: Tensor, result: Result) -> Reading:
        """Read the scores of each pixel's classes."""
        if output.dim() != 4 or output.shape[2] * output.shape[3] < 2:
            raise self._mismatch("[1, classes, H, W]", output)
        found = in_frame(pixel_classes(output), result)
        classes = max(2, output.shape[1])
        counts = torch.bincount(found.flatten().long(), minlength=classes)
        shares = {index: int(count) / found.numel() for index, count in enumerate(counts) if count}
        names = {index: self._named(index, classes) for index in shares}
        largest = sorted((index for index in shares if index), key=lambda index: -shares[index])
        return Reading(
            {"pixel_shares": {names[index]: share for index, share in shares.items()}},
            lambda picture: overlay.segmentation(picture, found),
            legend=tuple((overlay.colour_of(index), names[index]) for index in largest),
        )

    def image(self, output: Tensor, result: Result) -> Reading:
        """Read a picture."""
        if output.dim() != 4 or output.shape[1] not in (1, 3):
            raise self._mismatch("[1, 1 or 3, H, W]", output)
        output = in_frame(output, result)
        return Reading(
            {"mean": float(output.mean())},
            lambda picture: overlay.image(picture, self.picture(output[0])),
        )

    def picture(self, image: Tensor) -> Picture:
        """Turn values in the space of the model's input, [C, H, W], into RGB uint8 [H, W, 3]."""
        values = self._in_0_1(image).nan_to_num(0.0).clamp(0, 1) * 255
        pixels = values.round().to(torch.uint8).permute(1, 2, 0).numpy()
        if image.shape[0] == self.channels:
            # the order that swaps red and blue also swaps them back
            pixels = pixels[..., channel_order(self.preprocess.color, self.channels)]
        return np.ascontiguousarray(np.broadcast_to(pixels, (*pixels.shape[:2], 3)))

    def _in_0_1(self, image: Tensor) -> Tensor:
        """Bring values in the space of the model's input, [C, H, W], to 0..1."""
        channels, made = image.shape[0], self.preprocess
        for stated, combine in ((made.std, torch.mul), (made.mean, torch.add)):
            if stated is not None and len(stated) == channels:
                image = combine(image, torch.tensor(stated).view(-1, 1, 1))
        return (image - made.lo) / (made.hi - made.lo)

    def _named(self, index: int, classes: int) -> str:
        if self.labels is None:
            return f"class {index}"
        if len(self.labels) != classes:
            raise ModelError(
                f"labels has {len(self.labels)} names, the network gives {classes} classes; give "
                "one name for each"
            )
        return self.labels[index]

    def _mismatch(self, needs: str, output: Tensor) -> ModelError:
        return ModelError(
            f"task {self.task} needs an output of {needs}, this model gives {list(output.shape)}; "
            "without a task (--task none) every model works"
        )


READERS: dict[Task, Callable[[Tail, Tensor, Result], Reading]] = {
    "classify": Tail.classify, "segment": Tail.segment, "image": Tail.image,
}  # fmt: skip


def make_tail(task: Any, labels: Any, channels: int, preprocess: Preprocess) -> Tail | None:
    """Make a network's tail; task: None: there is none. Raises: ValueError."""
    if task is None:
        if labels is not None:
            raise ValueError("labels are names of classes: give task= as well")
        return None
    if task not in get_args(Task):
        known = ", ".join(f'"{name}"' for name in get_args(Task))
        raise ValueError(f"task is {task!r}, expected one of {known}, or None")
    names = None if labels is None else tuple(map(str, labels))
    return Tail(task, names, channels, preprocess)


def in_frame(found: Tensor, result: Result) -> Tensor:
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
    raise ModelError(
        "the model's output holds no floating-point tensor, which every task reads; leave the task "
        "out (--task none)"
    )
