"""How far a result is from the dense network's, in the units of what the network is for.

The distance of any two results is `verify.relative_error`; what follows reads them as classes of a
picture, as a class for each pixel, and as a picture.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

# where dense's best two classes lie closer than this, the better one means little
NEAR_TIE = 0.02


@dataclass(frozen=True)
class ClassAgreement:
    """One frame's class scores against the dense network's.

    same:     whether both have the same best class
    near_tie: whether dense's best two probabilities lie within `NEAR_TIE`
    distance: total variation of the probabilities, half of their L1 distance: 0 (alike) to 1
    """

    same: bool
    near_tie: bool
    distance: float


def is_class_scores(output: Tensor) -> bool:
    """Whether an output is class scores of one picture: [K], [1, K] or [1, K, 1, 1], K > 1."""
    return output.numel() > 1 and output.numel() == output.shape[1 if output.dim() > 1 else 0]


def probabilities(scores: Tensor, like: Tensor | None = None) -> Tensor:
    """Give the softmax of class scores, or the scores themselves where they are probabilities.

    scores:  any shape with K elements
    like:    scores that decide which of the two it is; default: these themselves
    returns: [K] float64
    """
    values = scores.detach().flatten().double().cpu()
    judge = values if like is None else like.detach().flatten().double().cpu()
    if bool((judge >= 0).all()) and abs(float(judge.sum()) - 1) < 1e-3:
        return values
    return values.softmax(0)


def class_agreement(mine: Tensor, dense: Tensor) -> ClassAgreement:
    """Compare the class scores of one picture (see `is_class_scores`)."""
    expected = probabilities(dense)
    got = probabilities(mine, like=dense)
    best, second = expected.topk(2).values.tolist()
    return ClassAgreement(
        same=int(got.argmax()) == int(expected.argmax()),
        near_tie=best - second < NEAR_TIE,
        distance=float((got - expected).abs().sum()) / 2,
    )


@dataclass
class ClassTally:
    """What many frames' class scores say against the dense network's.

    clear:    frames on which dense has a clear best class;  same: those of them with the same one
    near_ties: the other frames, which are left out of the count
    distance: sum of the total variations of all frames
    """

    clear: int = 0
    same: int = 0
    near_ties: int = 0
    distance: float = 0.0

    def add(self, one: ClassAgreement) -> None:
        """Count a frame."""
        self.clear += not one.near_tie
        self.same += one.same and not one.near_tie
        self.near_ties += one.near_tie
        self.distance += one.distance

    @property
    def frames(self) -> int:
        """Frames counted, near-ties too."""
        return self.clear + self.near_ties

    @property
    def same_share(self) -> float | None:
        """Share of the clear frames that have the same class; None where no frame is clear."""
        return self.same / self.clear if self.clear else None

    @property
    def mean_distance(self) -> float | None:
        """Mean total variation, 0 to 1, over all frames; None without any."""
        return self.distance / self.frames if self.frames else None

    def __str__(self) -> str:
        if self.mean_distance is None:
            return "no frame compared"
        ties = f"{self.near_ties} near-tie{'s' if self.near_ties != 1 else ''}"
        left_out = f" ({ties} left out)" if self.near_ties else ""
        same = f"{self.same} of {self.clear} frames{left_out}"
        if not self.clear:
            same = f"cannot be told, dense's best two are near-ties in all {self.frames} frames"
        return (
            f"same class as dense: {same}; class probabilities differ by {self.mean_distance:.3f}"
        )


def pixel_classes(output: Tensor, like: Tensor | None = None) -> Tensor:
    """Give the class of each pixel.

    output:  [1, K, H, W] scores; with K = 1 a logit, or a probability where it stays within 0..1
    like:    the output that decides between these two; default: this one
    returns: [H, W], bool where K = 1, else int64
    """
    if output.shape[1] > 1:
        return output[0].argmax(0)
    judge = output if like is None else like
    in_0_1 = float(judge.min()) >= 0 and float(judge.max()) <= 1
    return output[0, 0] > (0.5 if in_0_1 else 0.0)


def pixel_agreement(mine: Tensor, dense: Tensor) -> float:
    """Give the share of pixels that have the same class on both sides; [1, K, H, W] each."""
    return same_share(pixel_classes(mine, like=dense), pixel_classes(dense))


def same_share(mine: Tensor, dense: Tensor) -> float:
    """Give the share of equal elements."""
    return float((mine == dense).double().mean())


def psnr_db(mine: Tensor, dense: Tensor, peak: float) -> float:
    """Give the peak signal-to-noise ratio of a picture against dense's, in decibels.

    peak: range of the values; equal pictures give what float32 can tell apart at that range
    """
    mse = float((mine.double().cpu() - dense.double().cpu()).square().mean())
    floor = (peak * torch.finfo(torch.float32).eps) ** 2
    return 10 * math.log10(peak * peak / max(mse, floor, 1e-300))
