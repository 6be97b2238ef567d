"""The demo's run: every frame dense and through a session, compared with the truth."""

import io
import math
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.table import Table

import torchdelta
from torchdelta.console import PlainConsole
from torchdelta.demo import DEMO_SEED
from torchdelta.demo.net import DEMO_PREPROCESS, load_demo_net
from torchdelta.demo.scene import CLASSES, Scene
from torchdelta.demo.score import Agreement
from torchdelta.errors import FrameError, SinkError
from torchdelta.report.plot import recomputed
from torchdelta.targets import write_whole
from torchdelta.video import overlay
from torchdelta.video.board import Board, Panel
from torchdelta.video.sink import VideoWriter

_FPS = 25
_STREAM = "demo"
# kinds of pictures by the end of a file's name
_PICTURES = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG"}
# the background is not coloured
_LEGEND = tuple((overlay.colour_of(n), name) for n, name in enumerate(CLASSES) if n)


def _pct(share: float) -> str:
    return f"{100 * share:.1f} %"


@dataclass(frozen=True)
class Side:
    """Figures of one way to run the network: times in ms, the first frame apart."""

    first_ms: float
    median_ms: float
    iou: tuple[float, ...]  # by class, background first; NaN where a class never occurs
    mean_iou: float  # over the classes of things


@dataclass(frozen=True)
class DemoReport:
    """What a demo measured; shares are means over the frames after the first, 0 to 1."""

    video: Path
    frames: int
    size: tuple[int, int]
    seed: int
    tolerance: float
    engine: str
    device: str
    dense: Side
    delta: Side
    mac_share: float
    changed_input: float

    def conditions(self) -> str:
        """Return in one line what was run."""
        h, w = self.size
        return (
            f"{self.frames} frames of {w}x{h}, seed {self.seed}, tolerance {self.tolerance:g}, "
            f"engine {self.engine} on {self.device}"
        )

    def table(self) -> Table:
        """Return the figures as a table for the terminal."""
        table = Table()
        table.add_column("")
        for name in ("dense", "delta"):
            table.add_column(name, justify="right")
        dense, delta = self.dense, self.delta
        rows = [
            ("ms per frame (median)", f"{dense.median_ms:.1f}", f"{delta.median_ms:.1f}"),
            ("ms of the first frame", f"{dense.first_ms:.1f}", f"{delta.first_ms:.1f}"),
            ("MAC share", _pct(1), _pct(self.mac_share)),
            ("changed input", "", _pct(self.changed_input)),
            ("IoU, mean over things", f"{dense.mean_iou:.3f}", f"{delta.mean_iou:.3f}"),
        ]
        for name, of_dense, of_delta in zip(CLASSES, dense.iou, delta.iou, strict=True):
            if name != CLASSES[0]:
                rows.append((f"IoU, {name}", f"{of_dense:.3f}", f"{of_delta:.3f}"))
        for row in rows:
            table.add_row(*row)
        return table


class _Track:
    """Collects times and agreement with the truth of one way to run the network."""

    def __init__(self) -> None:
        self.times_ms: list[float] = []
        self.agreement = Agreement(len(CLASSES))

    def add(self, ms: float, truth: NDArray[np.uint8], found: NDArray[np.uint8]) -> None:
        self.times_ms.append(ms)
        self.agreement.add(truth, found)

    def side(self) -> Side:
        iou = tuple(self.agreement.iou())
        median = statistics.median(self.times_ms[1:])
        return Side(self.times_ms[0], median, iou, self.agreement.mean_iou())


def _labels(logits: torch.Tensor) -> NDArray[np.uint8]:
    """Class of each pixel: [1, K, H, W] to [H, W]."""
    return logits[0].argmax(0).to(torch.uint8).cpu().numpy()


def _timed_dense(
    fast: torchdelta.CompiledModel, picture: NDArray[np.uint8]
) -> tuple[NDArray[np.uint8], float]:
    """Run the original network on one picture; returns the labels, and its time in ms."""
    start = time.perf_counter()
    logits = fast.dense(fast.preprocess(picture))
    if fast.device.type == "cuda":
        torch.cuda.synchronize(fast.device)
    ms = (time.perf_counter() - start) * 1000
    return _labels(logits), ms


def _kind_of(picture: str | Path | None) -> str | None:
    """Give what kind of picture a file's name asks for; raises SinkError for other names."""
    if picture is None:
        return None
    kind = _PICTURES.get(Path(picture).suffix.lower())
    if kind is None:
        raise SinkError(f"{picture}: a picture's name ends in {', '.join(_PICTURES)}")
    return kind


@contextmanager
def _progress(console: PlainConsole, frames: int) -> Iterator[tuple[Progress, TaskID]]:
    columns = (
        TextColumn("demo"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}", markup=False),
    )
    with Progress(*columns, console=console) as progress:
        yield progress, progress.add_task("demo", total=frames, note="")


def run_demo(
    out_dir: str | Path,
    frames: int = 120,
    size: tuple[int, int] = (480, 640),
    seed: int = DEMO_SEED,
    tolerance: float = 0.04,
    engine: str = "auto",
    pan: bool = False,
    picture: str | Path | None = None,
    console: PlainConsole | None = None,
) -> DemoReport:
    """Run the demo's network on the demo's scene, write a video, print and return the figures.

    out_dir: folder of demo.mp4, made where missing. Left half: the picture with what the session
             found; right half: where the network's work was done again
    frames:  length in frames, at least 2, since the first one is dense
    size:    (h, w) in pixels
    picture: file that the video's middle frame is written to as well, PNG or JPEG
    Raises FrameError for a size or length that cannot be, SinkError for files that cannot be
    written.
    """
    kind = _kind_of(picture)
    if frames < 2:
        raise FrameError(f"a demo of {frames} frames has nothing to compare; ask for 2 or more")
    console = console or PlainConsole()
    scene = Scene(size, seed, pan=pan)
    example = torch.from_numpy(scene.frame(0)).permute(2, 0, 1)[None]
    fast = torchdelta.compile(
        load_demo_net(), example, tolerance=tolerance, engine=engine, **DEMO_PREPROCESS
    )
    stream = fast.session(size=size).stream(_STREAM)
    path = Path(out_dir) / "demo.mp4"
    board = Board(size, panels=2)

    dense, delta = _Track(), _Track()
    with (
        _progress(console, frames) as (progress, task),
        VideoWriter(path, _FPS, size=board.size) as writer,
    ):
        for index in range(frames):
            frame, truth = scene.frame(index), scene.mask(index)
            found, dense_ms = _timed_dense(fast, frame)
            dense.add(dense_ms, truth, found)
            result = stream(frame, record=True)
            found = _labels(result.unwrap())
            stats = result.stats
            delta.add(stats.ms, truth, found)

            note = f"changed {_pct(stats.changed_input)}  MACs {_pct(stats.mac_share)}"
            title = (
                f"demo  tolerance {tolerance:g}  frame {index}  {stats.ms:.1f} ms "
                f"(dense {dense_ms:.1f} ms)"
            )
            mine = Panel(overlay.segmentation(frame, found), "torchdelta", legend=_LEGEND)
            heat, first = recomputed(frame, result)
            drawn = board.draw(title, [mine, Panel(heat, note, note=first, is_heat=True)])
            writer.write(drawn)
            if picture is not None and index == frames // 2:
                encoded = io.BytesIO()
                Image.fromarray(drawn).save(encoded, kind, quality=85)
                write_whole(picture, encoded.getvalue())
            fps = 1000 / stats.ms if stats.ms else math.inf
            progress.update(task, advance=1, note=f"{fps:.0f} FPS  {note}")

    overall = stream.stats
    assert overall.mac_share is not None
    assert overall.changed_input is not None
    report = DemoReport(
        video=path,
        frames=frames,
        size=size,
        seed=seed,
        tolerance=tolerance,
        engine=fast.engine,
        device=str(fast.device),
        dense=dense.side(),
        delta=delta.side(),
        mac_share=overall.mac_share,
        changed_input=overall.changed_input,
    )
    console.say(report.conditions())
    console.print(report.table())
    console.say(f"wrote {path}" + ("" if picture is None else f" and {picture}"))
    return report
