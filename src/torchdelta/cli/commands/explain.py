"""`torchdelta explain`: its options and help."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from torchdelta.cli import shared_options as shared
from torchdelta.cli.guard import guarded
from torchdelta.cli.help import CAMERA, NETWORK
from torchdelta.cli.options import Dtype, Motion, parse_asked_size
from torchdelta.cli.precheck import precheck
from torchdelta.console import console, doing

EPILOG = """[bold]Examples[/bold]

torchdelta explain torchvision:resnet18 --size 480x640

torchdelta explain timm:resnet50 --size 384x640 --motion features"""


@guarded
def explain(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="As for [bold]run --model[/bold].")],
    weights: shared.WeightsOption = None,
    size: Annotated[
        Any,
        typer.Option(
            "--size",
            rich_help_panel=NETWORK,
            parser=parse_asked_size,
            metavar="HxW|model",
            help="HEIGHTxWIDTH of the frames; default: what the model was made for, else 224x224.",
        ),
    ] = None,
    dtype: shared.DtypeOption = Dtype.fp32,
    motion: Annotated[
        Motion,
        typer.Option(
            "--motion",
            rich_help_panel=CAMERA,
            case_sensitive=False,
            metavar="HOW",
            help="As for [bold]run --motion[/bold]; any but none: also what each step does when a "
            "moving camera's window moves.",
        ),
    ] = Motion.none,
) -> None:
    """Print a network's plan, step by step, sparse or dense and why, and what may be expected."""
    precheck(model, weights=weights)
    with doing(console(stderr=True), "loading PyTorch"):
        from torchdelta.cli.info import explain as print_plan
    print_plan(model, weights, size, dtype, motion, console(), console(stderr=True))
