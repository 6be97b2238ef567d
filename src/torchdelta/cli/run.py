"""`torchdelta run`: sources through a session, with results, figures and pictures on disk."""

from __future__ import annotations

from contextlib import ExitStack
from typing import BinaryIO

from torchdelta.capture.load import load_model
from torchdelta.cli.batch import run_batch
from torchdelta.cli.folders import videos_in
from torchdelta.cli.outputs import video_paths
from torchdelta.cli.runner import Runner, RunOptions, print_results
from torchdelta.cli.stop import stoppable
from torchdelta.console import PlainConsole, doing
from torchdelta.video.sink import JsonLines


def run(
    options: RunOptions, out: PlainConsole, log: PlainConsole, alone: BinaryIO | None = None
) -> int:
    """Run to the end of all sources; the summary goes to `out`, everything else to `log`.

    alone: takes the JSON lines, where they are for standard output
    returns the exit code: 0, 1 where a source was damaged or a frame refused, 130 after Ctrl-C,
    143 after SIGTERM
    """
    videos = videos_in(options.sources)
    with doing(log, f"loading {options.model}"):
        loaded = load_model(options.model, options.weights, size=options.size)
    for note in loaded.notes:
        log.say(note)
    runner = Runner(options, loaded, log)
    if videos is not None:
        return run_batch(runner, videos, out, alone)
    with ExitStack() as stack:
        feeds = runner.open(options.sources, stack)
        paths = video_paths(options.save, [feed.name for feed in feeds]) if options.save else {}
        outputs = [("--save", path) for path in paths.values()]
        if options.json is not None:
            outputs.append(("--json", options.json))
        runner.check_files(outputs, options.sources)
        runner.prepare(feeds)
        # before any file is open
        stop = stack.enter_context(stoppable())
        lines = None
        if options.json is not None:
            lines = stack.enter_context(JsonLines(options.json, alone))
        tracks = runner.play(feeds, paths, lines, stop)
    print_results(runner, tracks, [lines] if lines else [], out, stop)
    if stop.exit_code:
        return stop.exit_code
    return int(any(track.failed(strict=options.strict) for track in tracks))
