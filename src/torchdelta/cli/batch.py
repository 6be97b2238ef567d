"""A folder of videos: one after another through one compiled network, each with its own outputs."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO

from torchdelta.cli.outputs import is_folder, paths_in, video_paths
from torchdelta.cli.runner import Runner, print_results
from torchdelta.cli.stop import Stop, stoppable
from torchdelta.cli.track import Track
from torchdelta.console import PlainConsole
from torchdelta.errors import CaptureError, FrameError, SourceError
from torchdelta.video.sink import JsonLines

SUMMARY = "summary.json"


def run_batch(
    runner: Runner, videos: Sequence[Path], out: PlainConsole, alone: BinaryIO | None
) -> int:
    """Run the videos of a folder; a video that cannot be read or computed does not stop the others.

    Each size is compiled once. With `--save DIR` and `--json DIR` every video has a file of its own
    there, and the summary is DIR/summary.json; with `--json FILE` all lines go there, the summary
    as the last one.

    returns the exit code, as `run` does
    """
    begin_s = time.perf_counter()
    plan = _Files(runner, [video.name for video in videos])
    runner.check_files(plan.outputs(), [str(video) for video in videos])
    tracks: list[Track] = []
    failures: dict[str, str] = {}
    stop: Stop | None = None
    with ExitStack() as stack:
        for number, video in enumerate(videos, 1):
            with ExitStack() as each:
                try:
                    feeds = runner.open([str(video)], each)
                    runner.prepare(feeds)
                    if stop is None:
                        # before any file is open
                        stop = stack.enter_context(stoppable())
                        plan.open(stack, alone)
                    h, w = feeds[0].size
                    runner.log.say(f"{number} of {len(videos)}: {video.name}, {h}x{w}")
                    lines = plan.lines_of(video.name, each)
                    tracks += runner.play(feeds, plan.videos_of(video.name), lines, stop)
                except (SourceError, CaptureError, FrameError) as error:
                    if isinstance(error, CaptureError) and runner.compiled is None:
                        raise
                    failures[video.name] = str(error)
                    runner.log.say(f"error: {error}", style="red")
            if stop is not None and stop.signal is not None:
                break
        if stop is None:
            # each of them has been told
            return 1
        seconds = time.perf_counter() - begin_s
        plan.write_summary(_record(runner, tracks, failures, len(videos), seconds))
    print_results(runner, tracks, plan.written, out, stop, together=False)
    done = (
        f"{len(tracks)} of {len(videos)} videos"
        if len(tracks) < len(videos)
        else (f"{len(videos)} video{'s' if len(videos) > 1 else ''}")
    )
    out.say(f"{done} in {seconds:.1f} s, {sum(track.frames for track in tracks)} frames")
    if stop.exit_code:
        return stop.exit_code
    strict = runner.options.strict
    return int(bool(failures) or any(track.failed(strict=strict) for track in tracks))


def _record(
    runner: Runner, tracks: Sequence[Track], failures: dict[str, str], count: int, seconds: float
) -> dict[str, Any]:
    """Sum a batch up as a JSON object."""
    options, compiled = runner.options, runner.compiled
    assert compiled is not None
    return {
        "model": runner.loaded.name,
        "weights": options.weights,
        "task": options.task.value,
        "size": runner.loaded.frame_size(options.size),
        "tolerance": options.tolerance,
        "dtype": options.dtype.value,
        "engine": compiled.engine,
        "device": str(compiled.device),
        "videos": count,
        "frames": sum(track.frames for track in tracks),
        "seconds": seconds,
        "streams": [track.figures() for track in tracks],
        "failed": failures,
    }


class _Files:
    """The files that a batch writes.

    written: those with JSON lines
    """

    def __init__(self, runner: Runner, names: Sequence[str]) -> None:
        options = runner.options
        self._videos = video_paths(options.save, names) if options.save else {}
        self._json = options.json
        self._folder = options.json if options.json and is_folder(options.json) else None
        self._lines = paths_in(self._folder, names, ".jsonl") if self._folder else {}
        self._shared: JsonLines | None = None
        self.written: list[JsonLines] = []

    def outputs(self) -> list[tuple[str, Path]]:
        """Give all paths, with the options that they come from."""
        if self._folder is not None:
            json = [*self._lines.values(), self._folder / SUMMARY]
        else:
            json = [self._json] if self._json else []
        return [
            *(("--save", path) for path in self._videos.values()),
            *(("--json", path) for path in json),
        ]

    def open(self, stack: ExitStack, alone: BinaryIO | None) -> None:
        """Open the one file of all lines, where they go to one."""
        if self._json is not None and self._folder is None:
            self._shared = stack.enter_context(JsonLines(self._json, alone))
            self.written.append(self._shared)

    def lines_of(self, name: str, stack: ExitStack) -> JsonLines | None:
        """Give where a video's lines go; what is opened for it closes with the stack."""
        if name not in self._lines:
            return self._shared
        own = stack.enter_context(JsonLines(self._lines[name]))
        self.written.append(own)
        return own

    def videos_of(self, name: str) -> dict[str, Path]:
        """Give the path of a video's own video, by its name."""
        return {name: self._videos[name]} if name in self._videos else {}

    def write_summary(self, record: dict[str, Any]) -> None:
        """Write the record of the batch, where lines are wanted at all."""
        if self._shared is not None:
            self._shared.write({"summary": record})
        elif self._folder is not None:
            with JsonLines(self._folder / SUMMARY) as file:
                file.write(record)
            self.written.append(file)
