"""What `torchdelta run` shares between sources: the model, its sessions, results on disk."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from torchdelta.api import CompiledModel
from torchdelta.capture.cards import AskedSize, short_name
from torchdelta.capture.load import LoadedModel
from torchdelta.cli.compare import Comparer, Comparison
from torchdelta.cli.compiled import CALIBRATION_FRAMES, compile_loaded
from torchdelta.cli.options import Border, Dtype, Engine, Motion, Task
from torchdelta.cli.outputs import check_outputs
from torchdelta.cli.panels import Mosaic, Shown, panels
from torchdelta.cli.precheck import inputs_of
from torchdelta.cli.ranges import common_range, range_note
from torchdelta.cli.stop import Stop
from torchdelta.cli.track import Track, agreements, movements, speedup_doubts, summary
from torchdelta.console import PlainConsole, doing
from torchdelta.errors import SourceError
from torchdelta.report.progress import Meter
from torchdelta.running import Sessions, run_feeds
from torchdelta.runtime.result import Result
from torchdelta.runtime.session import Session
from torchdelta.runtime.stats import FrameStats
from torchdelta.targets import names_standard_output
from torchdelta.tasks import Reading
from torchdelta.video.board import Board
from torchdelta.video.feed import Feed, Size, feeds_of
from torchdelta.video.pixels import Range, as_rgb
from torchdelta.video.records import Remark
from torchdelta.video.sink import JsonLines, VideoWriter
from torchdelta.video.source import Source, open_source

ANSWERS = {Task.classify: "classes", Task.segment: "classes", Task.image: "pictures"}
WITH_VECTORS = (Motion.auto, Motion.codec)


@dataclass(frozen=True)
class RunOptions:
    """The options of `torchdelta run`; size is (h, w) or "model"."""

    sources: Sequence[str]
    model: str
    weights: Path | None = None
    task: Task = Task.none
    size: AskedSize = None
    engine: Engine = Engine.auto
    dtype: Dtype = Dtype.fp32
    tolerance: float = 0.04
    limit: int | None = None
    compare: bool = False
    save: Path | None = None
    json: Path | None = None
    profile: Path | None = None
    motion: Motion = Motion.none
    border: Border = Border.keep
    grain: int | None = None
    limits: Range | None = None
    skip_damaged: bool = False
    strict: bool = False

    @property
    def follows(self) -> bool:
        """Whether moving cameras may be followed."""
        return self.motion is not Motion.none

    @property
    def shows_dense(self) -> bool:
        """Whether the video shows the dense network's answer beside ours."""
        return self.compare and self.task is not Task.none


@dataclass
class Runner:
    """What all sources of a run share: options, the model, what it was compiled to."""

    options: RunOptions
    loaded: LoadedModel
    log: PlainConsole
    compiled: CompiledModel | None = None
    advised: bool = False
    # of the values of float frames; None: frames are uint8
    limits: Range | None = None

    def open(self, specs: Sequence[str], stack: ExitStack) -> list[Feed]:
        """Open sources that run as streams of one session."""
        options = self.options
        sources = [
            stack.enter_context(
                open_source(
                    spec,
                    channels=self.loaded.channels,
                    vectors=options.motion in WITH_VECTORS,
                    skip_damaged=options.skip_damaged,
                )
            )
            for spec in specs
        ]
        self._settle_range(sources)
        loaded = self.loaded
        size = loaded.frame_size(options.size)
        named = [(source.name, source) for source in sources]
        feeds = feeds_of(named, size, options.limit, self.limits)
        advice = loaded.size_advice(feeds[0].size) if size is None else None
        if advice and not self.advised:
            self.log.say(advice)
            self.advised = True
        return feeds

    def _settle_range(self, sources: Sequence[Source]) -> None:
        """Give sources of more than 8 bits one range, that of the first ones."""
        if self.compiled is None:
            self.limits = common_range(sources, self.options.limits)
            self.loaded = self.loaded.taking(self.limits)
            said = range_note(self.limits, self.options.limits)
            if said is not None:
                self.log.say(said)
            return
        for source in sources:
            if source.value_range is not None and self.limits is None:
                raise SourceError(
                    f"{source.name}: has more than 8 bits, unlike those before it; run it alone"
                )
            source.value_range = source.value_range and self.limits

    def check_files(self, outputs: Sequence[tuple[str, Path]], sources: Sequence[str]) -> None:
        """Refuse to write to what is read, now that the videos' names are known."""
        options = self.options
        inputs = inputs_of(
            options.model, sources=sources, weights=options.weights, profile=options.profile
        )
        check_outputs(outputs, inputs)

    def prepare(self, feeds: Sequence[Feed]) -> None:
        """Compile on the first frames of all feeds, the first time."""
        if self.compiled is not None:
            return
        options = self.options
        # batch norms without weights are set on more frames than one
        count = 1 if self.loaded.has_weights else -(-CALIBRATION_FRAMES // len(feeds))
        with doing(self.log, "reading the first frames"):
            compiled = self.compiled = compile_loaded(
                self.loaded, np.stack([frame for feed in feeds for frame in feed.peek(count)]),
                tolerance=options.tolerance, engine=options.engine, dtype=options.dtype,
                profile=options.profile, task=options.task,
            )  # fmt: skip
        h, w = feeds[0].size
        self.log.say(
            f"{self.loaded.name} at {h}x{w}, {len(feeds)} stream{'s' if len(feeds) > 1 else ''}, "
            f"{options.dtype.value}, tolerance {options.tolerance:g}, engine {compiled.engine} "
            f"on {compiled.device} ({compiled.engine_reason})"
        )

    def play(
        self, feeds: Sequence[Feed], paths: dict[str, Path], lines: JsonLines | None, stop: Stop
    ) -> list[Track]:
        """Run feeds together to their end; paths: of the videos to write, by stream."""
        options = self.options
        assert self.compiled is not None
        sessions = Sessions(
            partial(self._open_session, len(feeds)), self.log.say,
            live=any(feed.is_live for feed in feeds),
        )  # fmt: skip
        tracks = {feed.name: Track(feed.name, size=feed.size) for feed in feeds}
        board = Board(feeds[0].size, 2 + options.shows_dense + options.follows)
        totals = [feed.total for feed in feeds]
        known = sum(n for n in totals if n is not None) if None not in totals else None
        with ExitStack() as stack:
            for feed in feeds:
                if feed.name in paths:
                    writer = VideoWriter(paths[feed.name], feed.fps, size=board.size)
                    tracks[feed.name].writer = stack.enter_context(writer)
            meter = stack.enter_context(Meter(self.log, known))
            loop = _Loop(
                options, self.loaded, self.compiled, sessions, tracks, board, lines, meter, self.log
            )
            loop.run(feeds, stop)
        return list(tracks.values())

    def _open_session(self, slots: int, size: Size) -> Session:
        options = self.options
        assert self.compiled is not None
        # "given" is no choice of the command line, all others are the session's
        motion: Any = options.motion.value
        border: Any = options.border.value
        return self.compiled.session(
            slots, size=size, motion=motion, border=border, grain=options.grain
        )


def print_results(
    runner: Runner, tracks: Sequence[Track], lines: Sequence[JsonLines], out: PlainConsole,
    stop: Stop, *, together: bool = True,
) -> None:  # fmt: skip
    """Print the closing table, what it means, and which files were written.

    lines:    files of JSON lines;  together: the streams have run in one session
    """
    options, loaded = runner.options, runner.loaded
    if stop.signal is not None:
        out.say("interrupted; so far:")
    out.print(summary(tracks, options.compare, together=together))
    for said in filter(None, map(movements, tracks)):
        out.say(said)
    if options.compare:
        for text in _quality(options, loaded, tracks):
            out.say(text)
    of_medians = ", the speed-up is of medians" if options.compare else ""
    out.say(f"medians and means are over the frames after the first{of_medians}")
    written = [track.writer.path for track in tracks if track.writer and track.writer.frames]
    written += [file.path for file in lines if file.lines and not names_standard_output(file.path)]
    for path in written:
        out.say(f"wrote {path}")


def _quality(options: RunOptions, loaded: LoadedModel, tracks: Sequence[Track]) -> list[str]:
    """Say what the comparison with the dense network means."""
    lines = [*filter(None, map(agreements, tracks)), *filter(None, map(speedup_doubts, tracks))]
    meaning = "error, layer error: relative L2 against dense on the frame, on what was published"
    if options.task is Task.none:
        return [*lines, f"{meaning}; what it means for answers, --task says (classify, segment …)"]
    if loaded.has_weights:
        return [*lines, f"{meaning}; for {ANSWERS[options.task]} see the agreement above"]
    return [
        *lines,
        f"{meaning}; the weights are random, so their {ANSWERS[options.task]} mean nothing and "
        "agreement is not counted",
    ]


@dataclass
class _Loop:
    """The frames of all feeds, step by step."""

    options: RunOptions
    loaded: LoadedModel
    compiled: CompiledModel
    sessions: Sessions
    tracks: dict[str, Track]
    board: Board
    lines: JsonLines | None
    meter: Meter
    log: PlainConsole
    compare: Comparer = field(init=False)
    mosaics: dict[str, Mosaic] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.compare = Comparer(self.compiled, trained=self.loaded.has_weights)
        if self.options.follows:
            self.mosaics = {name: Mosaic() for name in self.tracks}

    def run(self, feeds: Sequence[Feed], stop: Stop) -> None:
        """Until every feed has ended or the run is asked to stop."""
        results = run_feeds(
            feeds, self.sessions, record=self.options.save is not None, tell=self._tell,
            stopped=lambda: stop.signal is not None,
        )  # fmt: skip
        for result in results:
            track = self.tracks[result.stream]
            if isinstance(result.error, SourceError):
                track.damage = str(result.error)
                self._complain(track.damage)
            else:
                self._take(track, result)

    def _tell(self, feed: Feed, remark: Remark) -> None:
        track = self.tracks[feed.name]
        track.skipped += remark.kind == "damage"
        track.missed += remark.kind == "missed"
        self.log.say(remark.text if remark.kind == "note" else f"warning: {remark.text}")

    def _complain(self, message: str) -> None:
        self.log.say(f"error: {message}", style="red")

    def _take(self, track: Track, result: Result) -> None:
        """Measure, write and count one frame."""
        frame, pts_s, tail = result.frame, result.pts_s, self.compiled.tail
        stats: FrameStats | None = None
        comparison: Comparison | None = None
        reading = Reading(None)
        dense: Reading | None = None
        if result.error is not None:
            track.refused += 1
            self._complain(f"frame {track.frames}: {result.error}")
        else:
            stats = result.stats
            if tail is not None:
                reading = tail.read(result.output, result)
            if self.options.compare:
                comparison = self.compare(frame, result, self.sessions.of(track.name))
                dense = tail.read(comparison.dense, result) if tail else Reading(None)
            track.add(stats, comparison, result.aligned)
        if self.lines is not None:
            answer = dense.result if dense else None
            self.lines.write(
                track.record(stats, comparison, reading.result, result.aligned, answer, pts_s)
            )
        if track.writer is not None:
            agreement = comparison.agreement if comparison else None
            rgb = as_rgb(frame, self.loaded.input_range)
            shown = Shown(rgb, result, reading, dense, str(agreement) if agreement else None)
            parts = panels(
                shown, compared=self.options.shows_dense, mosaic=self.mosaics.get(track.name)
            )
            picture = self.board.draw(self._title(track, stats, comparison), parts)
            track.writer.write(picture, pts_s)
        track.frames += 1
        self.meter.add(stats)

    def _title(self, track: Track, stats: FrameStats | None, comparison: Comparison | None) -> str:
        """Write above a frame what ran and how long it took."""
        stream = f"{track.name}  " if len(self.tracks) > 1 else ""
        speed = f"  {stats.ms:.1f} ms" if stats else ""
        if comparison is not None:
            speed += f" (dense {comparison.dense_ms:.1f} ms)"
        return (
            f"{stream}{short_name(self.loaded.name)}  tolerance "
            f"{self.options.tolerance:g}  frame {track.frames}{speed}"
        )
