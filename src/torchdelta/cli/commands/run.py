"""`torchdelta run`: its options and help."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from torchdelta.cli import shared_options as shared
from torchdelta.cli.folders import videos_in
from torchdelta.cli.guard import consoles, guarded
from torchdelta.cli.help import NETWORK, OUTPUT, SOURCES
from torchdelta.cli.options import Border, Dtype, Engine, Motion, Task
from torchdelta.cli.outputs import is_folder
from torchdelta.cli.precheck import precheck
from torchdelta.console import doing
from torchdelta.video.suffixes import check_video_name

SourcesArgument = Annotated[
    list[str],
    typer.Argument(
        metavar="SOURCE",
        help="Video file, folder of images, or camera index (also camera:0). Several run as "
        "streams of one session and must have one size (or give --size). A folder of videos runs "
        "them one after another.",
    ),
]
StrictOption = Annotated[
    bool,
    typer.Option(
        "--strict",
        rich_help_panel=SOURCES,
        help="Exit with 1 where a source holds less than it promises, not only warn.",
    ),
]
TaskOption = Annotated[
    Task,
    typer.Option(
        "--task",
        rich_help_panel=NETWORK,
        case_sensitive=False,
        metavar="TASK",
        help="How to read the output: classify (the best class), segment (a class per pixel), "
        "image, or none.",
    ),
]
LimitOption = Annotated[
    int | None,
    typer.Option(
        "--limit",
        rich_help_panel=OUTPUT,
        min=1,
        metavar="N",
        help="Stop after N frames of each source.",
    ),
]
CompareOption = Annotated[
    bool,
    typer.Option(
        "--compare",
        rich_help_panel=OUTPUT,
        help="Also run the dense network on every frame: its time, the error against it on "
        "the same frame, and the layer error, against it on what the input gate let through. Of "
        "a camera that is followed, both errors are against it on the window.",
    ),
]
SaveOption = Annotated[
    Path | None,
    typer.Option(
        "--save",
        rich_help_panel=OUTPUT,
        metavar="OUT.mp4",
        help="Video: left the picture with the result, right what was recomputed; between them "
        "with --compare dense's result, with --motion what the camera has shown of the world. "
        "Several sources make OUT-SOURCE.mp4 each; a name without suffix is a folder for them.",
    ),
]
JsonOption = Annotated[
    Path | None,
    typer.Option(
        "--json",
        rich_help_panel=OUTPUT,
        metavar="OUT.jsonl",
        help="One JSON object per frame (-: on standard output, alone there): stream, frame, "
        "pts_s, ms, dense_ms, changed_input, mac_share, error, layer_error, reason, motion, "
        "result, dense_result, agreement; null where not measured.",
    ),
]

EPILOG = "\n\n".join(
    (
        "[bold]Examples[/bold]",
        "[dim]Classify a clip, and compare time and output with the dense network:[/dim]",
        "torchdelta run clip.mp4 --model timm:tf_efficientnet_lite0 --weights lite0.pth "
        "--task classify --size 224x384 --compare",
        "[dim]Two cameras in one session, 100 frames of each, with videos:[/dim]",
        "torchdelta run 0 1 --model torchvision:lraspp_mobilenet_v3_large --task segment "
        "--size 480x640 --limit 100 --save out/cameras.mp4",
        "[dim]A network of your own on a folder of images, one JSON object per frame:[/dim]",
        "torchdelta run frames/ --model mynets.denoise:build --weights w.pth --task image "
        "--json out.jsonl",
        "[dim]A moving camera, followed by the decoder's motion vectors:[/dim]",
        "torchdelta run drive.mp4 --model timm:resnet50 --motion codec --save out/drive.mp4",
        "[bold]Exit code[/bold]",
        "0: done. 1: an error, a damaged source (after the frames before the damage), or a refused "
        "frame. 2: wrong usage. 130 (Ctrl-C) or 143 (SIGTERM): interrupted; all files are whole.",
    )
)


@guarded
def run(
    sources: SourcesArgument,
    model: shared.ModelOption,
    weights: shared.WeightsOption = None,
    task: TaskOption = Task.none,
    size: shared.SizeOption = None,
    engine: shared.EngineOption = Engine.auto,
    dtype: shared.DtypeOption = Dtype.fp32,
    tolerance: shared.ToleranceOption = 0.04,
    limit: LimitOption = None,
    compare: CompareOption = False,
    save: SaveOption = None,
    json: JsonOption = None,
    profile: shared.ProfileOption = None,
    motion: shared.MotionOption = Motion.none,
    border: shared.BorderOption = Border.keep,
    grain: shared.GrainOption = None,
    limits: shared.RangeOption = None,
    skip_damaged: shared.SkipOption = False,
    strict: StrictOption = False,
) -> None:
    """Run a network on video; print time, changed input and share of the work done."""
    with consoles(json) as (out, log, alone):
        if save is not None and not is_folder(save):
            check_video_name(save)
        is_batch = videos_in(sources) is not None
        precheck(
            model,
            sources=sources,
            weights=weights,
            profile=profile,
            # several sources make videos of their own names
            outputs=[
                ("--save", save if len(sources) == 1 and not is_batch else None),
                ("--json", None if json and is_batch and is_folder(json) else json),
            ],
        )
        with doing(log, "loading PyTorch"):
            from torchdelta.cli.run import run as run_all
            from torchdelta.cli.runner import RunOptions

        options = RunOptions(
            sources=sources,
            model=model,
            weights=weights,
            task=task,
            size=size,
            engine=engine,
            dtype=dtype,
            tolerance=tolerance,
            limit=limit,
            compare=compare,
            save=save,
            json=json,
            profile=profile,
            motion=motion,
            border=border,
            grain=grain,
            limits=limits,
            skip_damaged=skip_damaged,
            strict=strict,
        )
        raise typer.Exit(run_all(options, out, log, alone))
