"""The commands and their options; what they do is imported when they are called."""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, BinaryIO, ParamSpec

import typer
from typer.core import TyperCommand, TyperGroup

from torchdelta.arguments import MOST_GRAIN, MOST_SLOTS
from torchdelta.cli.folders import videos_in
from torchdelta.cli.options import (
    Border,
    Dtype,
    Engine,
    FrameSize,
    Motion,
    Task,
    ValueRange,
    check_finite,
    check_share,
    parse_asked_size,
    parse_range,
    parse_size,
)
from torchdelta.cli.outputs import is_folder
from torchdelta.cli.precheck import precheck
from torchdelta.cli.stop import raising
from torchdelta.cli.streams import INTERRUPTED, claim_stdout
from torchdelta.console import PlainConsole, console, doing
from torchdelta.errors import TorchdeltaError
from torchdelta.targets import names_standard_output
from torchdelta.video.suffixes import check_video_name

# a flag takes no value, and help should not name the type of one
FLAG = " "


class _Help:
    """What typer's help lacks.

    Without a default of `--help` typer imports pydantic, which takes as long as all else.
    """

    def get_help_option(self, ctx: Any) -> Any:
        """Give the option that every command has."""
        option = super().get_help_option(ctx)  # type: ignore[misc]
        if option is not None and option.default is None:
            option.default = False
        return option

    def get_params(self, ctx: Any) -> list[Any]:
        """Give the parameters; flags without the name of a type."""
        parameters: list[Any] = super().get_params(ctx)  # type: ignore[misc]
        for parameter in parameters:
            if getattr(parameter, "is_flag", False) and parameter.metavar is None:
                parameter.metavar = FLAG
            if parameter.param_type_name == "argument":
                # its name says what it is; Python's type of it is for programmers
                parameter.display_type_rich = _no_type
            if parameter.name == "help":
                # else it makes a panel of its own, before all others
                parameter.rich_help_panel = HELP
        return parameters


def _no_type(ctx: Any) -> None:
    return None


class _Group(_Help, TyperGroup):
    """The command that has commands."""


class _Command(_Help, TyperCommand):
    """One command."""


app = typer.Typer(
    cls=_Group,
    name="torchdelta",
    rich_markup_mode="rich",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

# the panels of help, in the order in which they are met in a command's options
NETWORK, SPEED, OUTPUT = "Network", "Speed and precision", "Output"
MATERIAL, MEASURED = "What it is measured on", "What is measured"
CAMERA, FINE, SOURCES = "Moving cameras", "Fine tuning", "Sources that are unusual or damaged"
HELP = "Help"

P = ParamSpec("P")


def guarded(command: Callable[P, None]) -> Callable[P, None]:
    """Print errors that the user can mend without a traceback; leave others to Python."""

    @functools.wraps(command)
    def call(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except TorchdeltaError as error:
            console(stderr=True).say(f"error: {error}", style="red")
            raise typer.Exit(1) from error
        except KeyboardInterrupt as error:
            console(stderr=True).say("interrupted")
            raise typer.Exit(INTERRUPTED) from error

    return call


@contextlib.contextmanager
def _consoles(json: Path | None) -> Iterator[tuple[PlainConsole, PlainConsole, BinaryIO | None]]:
    """Give the consoles of figures and of news, and standard output where it is for JSON alone."""
    if not names_standard_output(json):
        yield console(), console(stderr=True), None
        return
    stdout = sys.stdout
    try:
        alone = claim_stdout()
        log = console(stderr=True)
        yield log, log, alone
    finally:
        sys.stdout = stdout


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"torchdelta {importlib.metadata.version('torchdelta')}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            callback=_print_version,
            is_eager=True,
            help="Print it and exit.",
        ),
    ] = False,
) -> None:
    """Run a CNN on video and compute only what changed from frame to frame.

    The first frame is computed whole. After it, only what has changed is computed again.

    Begin with [bold]torchdelta demo[/bold], then [bold]torchdelta run --help[/bold].
    """


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

SourcesArgument = Annotated[
    list[str],
    typer.Argument(
        metavar="SOURCE",
        help="Video file, folder of images, or camera index (also camera:0). Several run as "
        "streams of one session and must have one size (or give --size). A folder of videos runs "
        "them one after another.",
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
        help="How to read the output: the best class, a class per pixel, an image.",
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
        help="One JSON object per frame (-: on standard output, alone there): stream, frame, ms, "
        "dense_ms, changed_input, "
        "mac_share, error, layer_error, reason, motion, result, dense_result, agreement; null "
        "where not measured.",
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

RUN_EPILOG = "\n\n".join(
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


@app.command(cls=_Command, epilog=RUN_EPILOG)
@guarded
def run(
    sources: SourcesArgument,
    model: ModelOption,
    weights: WeightsOption = None,
    task: TaskOption = Task.none,
    size: SizeOption = None,
    engine: EngineOption = Engine.auto,
    dtype: DtypeOption = Dtype.fp32,
    tolerance: ToleranceOption = 0.04,
    limit: LimitOption = None,
    compare: CompareOption = False,
    save: SaveOption = None,
    json: JsonOption = None,
    profile: ProfileOption = None,
    motion: MotionOption = Motion.none,
    border: BorderOption = Border.keep,
    grain: GrainOption = None,
    limits: RangeOption = None,
    skip_damaged: SkipOption = False,
    strict: StrictOption = False,
) -> None:
    """Run a network on video; print time, changed input and share of the work done."""
    with _consoles(json) as (out, log, alone):
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
            from torchdelta.cli.run import RunOptions
            from torchdelta.cli.run import run as run_all

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


BENCH_EPILOG = "\n\n".join(
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


@app.command(cls=_Command, epilog=BENCH_EPILOG)
@guarded
def bench(
    model: ModelOption,
    weights: WeightsOption = None,
    size: SizeOption = None,
    source: ClipOption = None,
    active: ActiveOption = None,
    streams: StreamsOption = 1,
    engine: EngineOption = Engine.auto,
    dtype: DtypeOption = Dtype.fp32,
    tolerance: ToleranceOption = 0.04,
    profile: ProfileOption = None,
    grain: GrainOption = None,
    peers: PeersOption = None,
    frames: FramesOption = None,
    sample: SampleOption = 20,
    motion: MotionOption = Motion.none,
    border: BorderOption = Border.keep,
    steps: StepsOption = False,
    json: RecordOption = None,
    limits: RangeOption = None,
    skip_damaged: SkipOption = False,
) -> None:
    """Measure speed and quality against other runtimes, in one run on the same frames."""
    if (source is None) == (active is None):
        raise typer.BadParameter("give one of --source CLIP and --active SHARE")
    if active is not None and motion is not Motion.none:
        raise typer.BadParameter(
            "--active forces maps of a fixed camera active, and --motion follows one that moves; "
            "give --motion with --source CLIP"
        )
    with _consoles(json) as (out, log, alone):
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


EXPLAIN_EPILOG = """[bold]Examples[/bold]

torchdelta explain torchvision:resnet18 --size 480x640

torchdelta explain timm:resnet50 --size 384x640 --motion features"""


@app.command(cls=_Command, epilog=EXPLAIN_EPILOG)
@guarded
def explain(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="As for [bold]run --model[/bold].")],
    weights: WeightsOption = None,
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
    dtype: DtypeOption = Dtype.fp32,
    motion: Annotated[
        Motion,
        typer.Option(
            "--motion",
            rich_help_panel=CAMERA,
            case_sensitive=False,
            help="Any but none: also what each step does when a moving camera's window moves.",
        ),
    ] = Motion.none,
) -> None:
    """Print a network's plan, step by step, sparse or dense and why, and what may be expected."""
    precheck(model, weights=weights)
    with doing(console(stderr=True), "loading PyTorch"):
        from torchdelta.cli.info import explain as print_plan
    print_plan(model, weights, size, dtype, motion, console(), console(stderr=True))


DEMO_EPILOG = """[bold]Examples[/bold]

torchdelta demo

torchdelta demo --frames 300 --size 480x640 --pan"""


@app.command(cls=_Command, epilog=DEMO_EPILOG)
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
            "--seed", min=0, help="Another seed, another scene; training saw none below 10000."
        ),
    ] = None,
    tolerance: ToleranceOption = 0.04,
    pan: Annotated[bool, typer.Option("--pan", help="Let the camera pan.")] = False,
    out: Annotated[Path, typer.Option("--out", help="Folder of demo.mp4.")] = Path("out"),
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
            console=console(),
        )


@app.command(cls=_Command)
@guarded
def env() -> None:
    """Print versions, devices, and which engines work here; for the others, why not."""
    from torchdelta.cli.info import environment

    environment(console())
