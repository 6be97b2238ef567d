"""Options that commands share, with their help and what they may be."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from torchdelta.arguments import MOST_GRAIN
from torchdelta.cli.help import CAMERA, FINE, NETWORK, SOURCES, SPEED
from torchdelta.cli.options import (
    Border,
    Dtype,
    Engine,
    Motion,
    ValueRange,
    check_finite,
    parse_asked_size,
    parse_range,
)

SizeOption = Annotated[
    # typer takes no union: a FrameSize, or "model"
    Any,
    typer.Option(
        "--size",
        rich_help_panel=NETWORK,
        parser=parse_asked_size,
        metavar="HxW|model",
        help="Resize frames to HEIGHTxWIDTH first, or to the size that the model was made for; "
        "default: as the source has them.",
    ),
]
WeightsOption = Annotated[
    Path | None,
    typer.Option(
        "--weights",
        rich_help_panel=NETWORK,
        metavar="FILE",
        help="State dict (.pth, .pt, .bin, .safetensors). Without it: random weights, drawn with "
        "seed 0; nothing is ever downloaded.",
    ),
]
DtypeOption = Annotated[
    Dtype,
    typer.Option(
        "--dtype",
        rich_help_panel=SPEED,
        help="What the network computes in; tf32: float32 with TF32 products (triton engine).",
        case_sensitive=False,
    ),
]
ModelOption = Annotated[
    str,
    typer.Option(
        "--model",
        rich_help_panel=NETWORK,
        metavar="SPEC",
        help="timm:NAME, torchvision:NAME, FILE.pt2 (a torch.export archive), or "
        "package.module:callable, which returns an nn.Module.",
    ),
]
RangeOption = Annotated[
    ValueRange | None,
    typer.Option(
        "--range",
        rich_help_panel=SOURCES,
        parser=parse_range,
        metavar="LO,HI",
        help="Of pictures of more than 8 bits: the values that the model takes for its full range; "
        "default: the least and the largest of the first frame.",
    ),
]
SkipOption = Annotated[
    bool,
    typer.Option(
        "--skip-damaged",
        rich_help_panel=SOURCES,
        help="Go on after a damaged picture or packet, count it, and exit with 1 at the end.",
    ),
]
EngineOption = Annotated[
    Engine,
    typer.Option(
        "--engine",
        rich_help_panel=SPEED,
        case_sensitive=False,
        help="What executes the network: triton on an NVIDIA GPU, cpu in native code on the CPU, "
        "torch anywhere; auto: the first of them that can run.",
    ),
]
ToleranceOption = Annotated[
    float,
    typer.Option(
        "--tolerance",
        rich_help_panel=SPEED,
        min=0.0,
        callback=check_finite,
        metavar="T",
        help="How small a change is passed over: of each layer relative to its usual values, and "
        "of the picture (8/255 at the default). 0 is exact; more is faster.",
    ),
]
ProfileOption = Annotated[
    Path | None,
    typer.Option(
        "--profile", rich_help_panel=FINE, metavar="FILE", help="Thresholds from a profile (JSON)."
    ),
]
MotionOption = Annotated[
    Motion,
    typer.Option(
        "--motion",
        metavar="HOW",
        rich_help_panel=CAMERA,
        case_sensitive=False,
        help="Follow moving cameras: by corners (features), the decoder's motion vectors (codec), "
        "or shifts alone (translation); auto (experimental): follow them while that pays.",
    ),
]
GrainOption = Annotated[
    int | None,
    typer.Option(
        "--grain",
        rich_help_panel=FINE,
        min=1,
        max=MOST_GRAIN,
        metavar="PX",
        help="Side of the cells in which changes of the picture are counted, pixels; 1: 3x3 pixels "
        "decide, for the smallest things. Default: what suits the network and the camera.",
    ),
]
BorderOption = Annotated[
    Border,
    typer.Option(
        "--border",
        rich_help_panel=CAMERA,
        case_sensitive=False,
        help="With --motion, of a camera that is followed: keep what is known at the window's "
        "edges until it is computed again, or compute it with every move (exact).",
    ),
]
