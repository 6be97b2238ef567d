"""`torchdelta bench`: its options and help."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from torchdelta.arguments import MOST_SLOTS
from torchdelta.cli import shared_options as shared
from torchdelta.cli.guard import consoles, guarded
from torchdelta.cli.help import MATERIAL, MEASURED, OUTPUT
from torchdelta.cli.options import Border, Dtype, Engine, Motion, check_share
from torchdelta.cli.precheck import precheck
from torchdelta.cli.stop import raising
from torchdelta.console import doing

EPILOG = "\n\n".join(
    (
        "[bold]Examples[/bold]",
        "[dim]A clip, against every peer that is installed:[/dim]",
        "torchdelta bench --model timm:tf_efficientnet_lite0 --weights lite0.pth "
        "--source clip.mp4 --json lite0.json",
        "[dim]Kernels apart from content: 5 % of every map active, in four streams:[/dim]",
        "torchdelta bench --model torchvision:resnet18 --active 0.05 --size 512x768 --streams 4",
        "[dim]Half precision on a GPU, 16 streams, and the papers' reference beside it:[/dim]",
        "torchdelta bench --model timm:resnet50 --source clip.mp4 --size 512x768 --streams 16 "
        "--engine triton --dtype fp16 --peers compile,cudnn-fp32",
        "[dim]One peer only, the first 100 frames, and where our time goes:[/dim]",
        "torchdelta bench --model mynets.denoise:build --weights w.pth --source clip.mp4 "
        "--frames 100 --peers openvino --steps",
        "[dim]A moving camera that ours follows; PyTorch runs on the frame:[/dim]",
        "torchdelta bench --model timm:resnet50 --source drive.mp4 --size 384x640 "
        "--motion features --peers torch",
        "[bold]What is compared[/bold]",
        "Ours runs on every frame, preprocessing and copy of the output included; the peers run "
        "on 20 frames of a clip (--sample), right after ours, on inputs made beforehand. All use "
        "torch's number of threads (OMP_NUM_THREADS).",
        "On a GPU all frames and inputs lie in its memory beforehand, and a time ends when the "
        "GPU is done. cudnn-fp32 is what the papers compare with, cuDNN in float32 without TF32: "
        "it is float32 whatever --dtype says, so it is never the best peer and has a line of its "
        "own, the reference. With --dtype fp32 the peer cudagraph is the same already, and "
        "cudnn-fp32 runs only where --peers names it.",
    )
)


ClipOption = Annotated[
    str | None,
    typer.Option(
        "--source",
        rich_help_panel=MATERIAL,
        metavar="CLIP",
        help="Video file or folder of images to measure on; this or --active must be given.",
    ),
]
ActiveOption = Annotated[
    float | None,
    typer.Option(
        "--active",
        rich_help_panel=MATERIAL,
        callback=check_share,
        metavar="SHARE",
        help="Instead of --source: force this share of every map active, 0.05 for 5 %; 0: the same "
        "frame again and again, nothing forced.",
    ),
]
StreamsOption = Annotated[
    int,
    typer.Option(
        "--streams",
        rich_help_panel=MATERIAL,
        min=1,
        max=MOST_SLOTS,
        metavar="N",
        help="Streams run together.",
    ),
]
PeersOption = Annotated[
    str | None,
    typer.Option(
        "--peers",
        rich_help_panel=MEASURED,
        metavar="LIST",
        help="Of torch,compile,onnxruntime,openvino (on a GPU: torch,cudagraph,compile,"
        "cudnn-fp32), or none. Default: all that are installed, cudnn-fp32 unless --dtype is fp32.",
    ),
]
FramesOption = Annotated[
    int | None,
    typer.Option(
        "--frames",
        rich_help_panel=MATERIAL,
        min=2,
        metavar="N",
        help="Frames of each stream; default: the whole clip, 31 with --active.",
    ),
]
SampleOption = Annotated[
    int,
    typer.Option(
        "--sample",
        rich_help_panel=MEASURED,
        min=1,
        metavar="N",
        help="Frames of a clip, evenly spaced, on which the peers run and quality is measured; of "
        "20 frames each one is 5 % of the agreement.",
    ),
]
StepsOption = Annotated[
    bool,
    typer.Option(
        "--steps",
        rich_help_panel=MEASURED,
        help="Also time each step of ours, in a pass of its own; sums by operation.",
    ),
]
RecordOption = Annotated[
    Path | None,
    typer.Option(
        "--json",
        rich_help_panel=OUTPUT,
        metavar="FILE",
        help="All figures as one JSON object; -: on standard output, alone there.",
    ),
]


@guarded
def bench(
    model: shared.ModelOption,
    weights: shared.WeightsOption = None,
    size: shared.SizeOption = None,
    source: ClipOption = None,
    active: ActiveOption = None,
    streams: StreamsOption = 1,
    engine: shared.EngineOption = Engine.auto,
    dtype: shared.DtypeOption = Dtype.fp32,
    tolerance: shared.ToleranceOption = 0.04,
    profile: shared.ProfileOption = None,
    grain: shared.GrainOption = None,
    peers: PeersOption = None,
    frames: FramesOption = None,
    sample: SampleOption = 20,
    motion: shared.MotionOption = Motion.none,
    border: shared.BorderOption = Border.keep,
    steps: StepsOption = False,
    json: RecordOption = None,
    limits: shared.RangeOption = None,
    skip_damaged: shared.SkipOption = False,
) -> None:
    """Measure speed and quality against other runtimes, in one run on the same frames."""
    if (source is None) == (active is None):
        raise typer.BadParameter("give one of --source CLIP and --active SHARE")
    if active is not None and motion is not Motion.none:
        raise typer.BadParameter(
            "--active forces maps of a fixed camera active, and --motion follows one that moves; "
            "give --motion with --source CLIP"
        )
    with consoles(json) as (out, log, alone):
        precheck(
            model,
            sources=[] if source is None else [source],
            weights=weights,
            profile=profile,
            outputs=[("--json", json)],
        )
        with doing(log, "loading PyTorch"):
            from torchdelta.cli.bench import BenchOptions
            from torchdelta.cli.bench import bench as measure

        options = BenchOptions(
            model=model,
            weights=weights,
            size=size,
            source=source,
            active=active,
            streams=streams,
            engine=engine,
            dtype=dtype,
            tolerance=tolerance,
            profile=profile,
            grain=grain,
            peers=peers,
            frames=frames,
            sample=sample,
            motion=motion,
            border=border,
            steps=steps,
            json=json,
            limits=limits,
            skip_damaged=skip_damaged,
        )
        # peers leave files behind while they are made
        with raising():
            measure(options, out, log, alone)
