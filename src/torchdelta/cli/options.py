"""What options of the command line may be; light, since every start imports it."""

from __future__ import annotations

import math
import re
from enum import StrEnum
from typing import Literal, NamedTuple

import typer


class Task(StrEnum):
    """What is done with the network's output."""

    none = "none"
    classify = "classify"
    segment = "segment"
    image = "image"


class Engine(StrEnum):
    """What executes the plan."""

    auto = "auto"
    torch = "torch"
    cpu = "cpu"
    triton = "triton"


class Dtype(StrEnum):
    """What the network computes in."""

    fp32 = "fp32"
    fp16 = "fp16"
    bf16 = "bf16"
    tf32 = "tf32"


class Motion(StrEnum):
    """Whether the camera moves, and how that is found out."""

    none = "none"
    auto = "auto"
    features = "features"
    codec = "codec"
    translation = "translation"


class Border(StrEnum):
    """What happens at the edges of a window that moves."""

    keep = "keep"
    exact = "exact"


class FrameSize(NamedTuple):
    """Height and width of frames; a plain tuple would be an option of two arguments."""

    h: int
    w: int


def parse_size(text: str) -> FrameSize:
    """'480x640' as (480, 640): height, then width."""
    match = re.fullmatch(r"(\d+)[xX](\d+)", text.strip())
    if match is None or 0 in (int(match[1]), int(match[2])):
        raise typer.BadParameter(f"{text!r} is no size; expected HEIGHTxWIDTH, such as 480x640")
    return FrameSize(int(match[1]), int(match[2]))


def parse_asked_size(text: str) -> FrameSize | Literal["model"]:
    """'480x640' as (480, 640), and 'model' as it is: the size that the model was made for."""
    if text.strip().lower() == "model":
        return "model"
    try:
        return parse_size(text)
    except typer.BadParameter as error:
        raise typer.BadParameter(f"{error.message}; or: model") from error


class ValueRange(NamedTuple):
    """Least and largest value that pictures may have; a plain tuple would be two arguments."""

    low: float
    high: float


def parse_range(text: str) -> ValueRange:
    """'7000,8000' as (7000.0, 8000.0)."""
    parts = text.split(",")
    try:
        low, high = (float(part) for part in parts)
    except ValueError:
        low = high = math.nan
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise typer.BadParameter(
            f"{text!r} is no range; expected LO,HI with LO below HI, such as 7000,8000"
        )
    return ValueRange(low, high)


def check_finite(value: float) -> float:
    """Refuse NaN and infinity, which pass every range."""
    if not math.isfinite(value):
        raise typer.BadParameter(f"{value} is no finite number")
    return value


def check_share(value: float | None) -> float | None:
    """Refuse what is no share."""
    if value is not None and not 0 <= value <= 1:
        raise typer.BadParameter(f"{value} is no share; expected a number from 0 to 1")
    return value
