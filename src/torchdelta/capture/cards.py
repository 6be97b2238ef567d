"""What a collection says a model of its was made for: size and normalisation of its input."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, Literal

from torch import nn

from torchdelta.errors import ModelError

Size = tuple[int, int]
# the frames' own size, a given one, or the one that the model was made for
AskedSize = Size | Literal["model"] | None

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
# nearly every network takes frames whose sides are multiples of it
USUAL_MULTIPLE = 32
# sides of frames over the model's from which on, or below which, what it was trained on looks
# different; networks bear less well what is larger than what is a little smaller or larger
FAR = 1.5


@dataclass(frozen=True)
class Card:
    """What a model's input is.

    channels:   None where it is not said
    size:       (h, w) that it was made for;  fixed_size: whether it takes no other one
    mean, std:  per channel, of values in 0..1
    """

    channels: int | None = None
    size: Size | None = None
    fixed_size: bool = False
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None


def timm_card(model: nn.Module) -> Card:
    """Read timm's `pretrained_cfg`."""
    config: Mapping[str, Any] = getattr(model, "pretrained_cfg", None) or {}
    shape = config.get("input_size")
    return Card(
        channels=int(shape[0]) if shape else None,
        size=(int(shape[1]), int(shape[2])) if shape else None,
        fixed_size=bool(config.get("fixed_input_size", False)),
        mean=floats(config.get("mean")),
        std=floats(config.get("std")),
    )


def torchvision_card(models: Any, name: str, model: nn.Module) -> Card:
    """Read what torchvision's weights of a model say of its pictures; nothing is downloaded.

    models: the module `torchvision.models`
    """
    try:
        pictures = models.get_model_weights(name).DEFAULT.transforms()
    except (AttributeError, ValueError):
        # no weights were ever published for it
        return Card(mean=IMAGENET_MEAN, std=IMAGENET_STD)
    # a classifier sees a crop, a segmentation network pictures with this shorter side
    sides = getattr(pictures, "crop_size", None) or getattr(pictures, "resize_size", None)
    size = (int(sides[0]), int(sides[-1])) if sides else None
    # a transformer has positions for one size, whatever its best weights were made for
    own = getattr(model, "image_size", None)
    return Card(
        size=(own, own) if isinstance(own, int) else size,
        fixed_size=isinstance(own, int),
        mean=floats(getattr(pictures, "mean", None)) or IMAGENET_MEAN,
        std=floats(getattr(pictures, "std", None)) or IMAGENET_STD,
    )


def floats(values: Any) -> tuple[float, ...] | None:
    """Give numbers as a tuple; one number as a tuple of one.

    Raises: ValueError, TypeError for what is no number.
    """
    if values is None:
        return None
    numbers = (values,) if isinstance(values, int | float) else tuple(values)
    if isinstance(values, str) or any(isinstance(v, bool | str) for v in numbers):
        raise ValueError(f"{values!r}: expected a number or a list of numbers")
    return tuple(map(float, numbers))


def frame_size(name: str, own: Size | None, fixed: bool, asked: AskedSize) -> Size | None:
    """Give the size (h, w) that frames are resized to; None: they stay as they are.

    own, fixed: the model's size, and whether it takes no other one
    asked:      what the user wants
    Raises: ModelError where the model's size is wanted and not known.
    """
    if asked == "model":
        if own is None:
            raise ModelError(f"{name} does not say what size it is for; give --size HxW")
        return own
    return asked or (own if fixed else None)


def size_advice(name: str, own: Size | None, frames: Size) -> str | None:
    """Say that a model was made for other sizes than that of the frames; None where it fits.

    own: (h, w) that the model was made for;  frames: (h, w), not resized
    """
    if own is None or 1 / FAR <= min(frames) / min(own) <= FAR:
        return None
    keeping = same_shape(frames, min(own))
    cost = prod(frames) / prod(keeping)
    times = f"{cost:.1f} times the" if cost >= 1 else f"{cost:.0%} of the"
    return (
        f"{short_name(name)} was made for {own[0]}x{own[1]}, frames are "
        f"{frames[0]}x{frames[1]} ({times} work, and its answers may be poor); --size "
        f"{keeping[0]}x{keeping[1]} keeps this clip's shape, --size model is {own[0]}x{own[1]}"
    )


def short_name(name: str) -> str:
    """Give a model's name without the collection that it is from."""
    return name.removeprefix("timm:").removeprefix("torchvision:")


def same_shape(frames: Size, shorter: int) -> Size:
    """Give the size nearest in shape to frames whose shorter side is as long as this one.

    In multiples of 32, which nearly every network takes.
    """
    least = max(1, round(shorter / USUAL_MULTIPLE)) * USUAL_MULTIPLE
    h, w = (round(side * least / min(frames) / USUAL_MULTIPLE) * USUAL_MULTIPLE for side in frames)
    return h, w
