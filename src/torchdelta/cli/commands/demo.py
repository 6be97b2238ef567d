"""`torchdelta demo`: its options and help."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from torchdelta.cli import shared_options as shared
from torchdelta.cli.guard import guarded
from torchdelta.cli.help import NETWORK
from torchdelta.cli.options import FrameSize, parse_size
from torchdelta.cli.stop import raising
from torchdelta.console import console

EPILOG = """[bold]Examples[/bold]

torchdelta demo

torchdelta demo --frames 300 --size 480x640 --pan"""


@guarded
def demo(
    frames: Annotated[
        int, typer.Option("--frames", min=2, metavar="N", help="Length of the video.")
    ] = 120,
    size: Annotated[
        FrameSize | None,
        typer.Option(
            "--size",
            rich_help_panel=NETWORK,
            parser=parse_size,
            metavar="HxW",
            help="Default: 480x640, height x width.",
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(
            "--seed",
            min=0,
            metavar="N",
            help="Another seed, another scene; training saw none below 10000.",
        ),
    ] = None,
    tolerance: shared.ToleranceOption = 0.04,
    pan: Annotated[bool, typer.Option("--pan", help="Let the camera pan.")] = False,
    out: Annotated[
        Path, typer.Option("--out", metavar="FOLDER", help="Folder of demo.mp4.")
    ] = Path("out"),
    picture: Annotated[
        Path | None,
        typer.Option(
            "--picture", metavar="FILE", help="Write the middle frame too, as PNG or JPEG."
        ),
    ] = None,
) -> None:
    """Render a scene, segment it dense and by what changed, and compare both with the truth.

    Needs no arguments, no files and no network. Writes out/demo.mp4.
    """
    from torchdelta.demo import DEMO_SEED
    from torchdelta.demo.run import run_demo

    with raising():
        run_demo(
            out,
            frames=frames,
            size=size or (480, 640),
            seed=DEMO_SEED if seed is None else seed,
            tolerance=tolerance,
            pan=pan,
            picture=picture,
            console=console(),
        )
