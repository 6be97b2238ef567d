"""`torchdelta bench`: ours and the peers in one run, on the same frames."""

from __future__ import annotations

import contextlib
import platform
import re
import resource
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

import torchdelta
from torchdelta.api import CompiledModel
from torchdelta.bench import report
from torchdelta.bench.forced import forced_masks
from torchdelta.bench.measure import SAMPLES, Moment, Race, sampled_steps
from torchdelta.bench.operations import by_operation
from torchdelta.bench.peers import Lineup, Peer, Workload, parse_peers
from torchdelta.bench.quality import Quality, Reference, difference
from torchdelta.capture.cards import AskedSize
from torchdelta.capture.load import LoadedModel, load_model
from torchdelta.cli.clip import Clip, Made, Material
from torchdelta.cli.compiled import CALIBRATION_FRAMES, compile_loaded
from torchdelta.cli.info import cpu
from torchdelta.cli.options import Border, Dtype, Engine, Motion
from torchdelta.console import PlainConsole, doing
from torchdelta.engines import PREFERENCE
from torchdelta.errors import EngineError
from torchdelta.report.progress import Meter
from torchdelta.runtime.session import Session
from torchdelta.stages import stage

# frames that ours runs before anything is timed
WARM_UP_FRAMES = 4
# of the pass that times single steps
STEP_FRAMES = 60
# the engine that "auto" takes where no other can run
SLOWEST = PREFERENCE[-1]
KIB = 1024


@dataclass(frozen=True)
class BenchOptions:
    """The options of `torchdelta bench`; one of source and active is given.

    size:   (h, w), or "model": what the model was made for
    active: share of every map that is forced active; 0: the same frame again, nothing forced
    sample: frames of a clip on which the peers run and quality is measured
    motion, border: as for `run`; only with a source
    """

    model: str
    weights: Path | None = None
    size: AskedSize = None
    source: str | None = None
    active: float | None = None
    streams: int = 1
    engine: Engine = Engine.auto
    dtype: Dtype = Dtype.fp32
    tolerance: float = 0.04
    profile: Path | None = None
    grain: int | None = None
    peers: str | None = None
    frames: int | None = None
    sample: int = SAMPLES
    motion: Motion = Motion.none
    border: Border = Border.keep
    steps: bool = False
    json: Path | None = None
    limits: tuple[float, float] | None = None
    skip_damaged: bool = False


def bench(
    options: BenchOptions, out: PlainConsole, log: PlainConsole, alone: BinaryIO | None = None
) -> None:
    """Measure; the figures go to `out`, what happens meanwhile to `log`.

    alone: takes the record as JSON, where it is for standard output
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    float32 = options.dtype is Dtype.fp32
    kinds, asked = parse_peers(options.peers, device, float32=float32)
    if options.json is not None and alone is None:
        report.check_target(options.json)
    with doing(log, f"loading {options.model}"):
        loaded = load_model(options.model, options.weights, size=options.size)
        stage("reading the clip")
        material = _material(options, loaded)
        loaded = loaded.taking(material.limits)
        for text in material.notes:
            log.say(text)
        advice = loaded.size_advice(material.size)
        if advice is not None and options.size is None:
            log.say(advice)
        compiled = compile_loaded(
            loaded, material.peek(CALIBRATION_FRAMES), tolerance=options.tolerance,
            engine=options.engine, dtype=options.dtype, profile=options.profile,
        )  # fmt: skip
    record = measure(options, loaded, compiled, material, Lineup(kinds, asked, log.say), log)
    report.show(record, out)
    if alone is not None:
        alone.write(report.as_json(record).encode())
    elif options.json is not None:
        report.write_json(options.json, record)
        out.say(f"wrote {options.json}")


def measure(
    options: BenchOptions,
    loaded: LoadedModel,
    compiled: CompiledModel,
    material: Material,
    lineup: Lineup,
    log: PlainConsole,
) -> dict[str, Any]:
    """Measure a compiled network in a new session; returns the record.

    Of the options, those count that say how to run: active, streams, dtype, tolerance, grain,
    steps.
    lineup: its peers are prepared here where they are not ready for this shape of input
    """
    device = compiled.device
    race = _race(options, loaded, compiled)
    x, allowance = _warm_up(race, list(islice(material.moments(), WARM_UP_FRAMES)))
    # before the peers, whose memory is not ours
    peak_rss_bytes = _peak_rss_bytes()
    work = Workload(loaded.model, x, compiled.dtype, torch.get_num_threads(), compiled.tf32)
    race.peers, left_out = lineup.prepare(work, lambda: _right(race.reference, x, allowance))
    with Meter(log, material.count) as meter:
        times = race.run(material.moments(), _sampled(options, material), meter.add)
    session, moving = race.session, race.session.motion != "none"
    state_bytes = session.state_bytes + sum(engine.scratch_bytes for engine in session.engines)
    following = report.following(session, times) if moving else None
    steps = _slowest_steps(options, compiled, race, material, log) if options.steps else None
    notes = [*loaded.notes, *material.notes, *left_out]
    if options.engine is Engine.auto and compiled.engine == SLOWEST:
        notes.append(f"ours ran on the {SLOWEST} engine: {compiled.engine_reason}")
    figures = report.figures(times, by_median=options.active is not None)
    notes += report.doubtful(figures, times)
    if not loaded.has_weights and race.peers:
        notes.append("the peers run the same prepared weights as ours")
    return {
        **_conditions(options, loaded, compiled, material),
        "grain": list(session.grains) if moving else session.grain,
        "motion": options.motion.value,
        "border": options.border.value if moving else None,
        "following": following,
        **figures,
        "quality": race.quality.summary() if race.quality else None,
        "state_bytes": state_bytes,
        "values_bytes": session.state_bytes,
        "weight_bytes": sum(engine.weight_bytes for engine in session.engines),
        "peak_rss_bytes": peak_rss_bytes,
        "device": _device_name(device),
        "isa": getattr(session.engine, "isa", None),
        "threads": work.threads,
        "versions": _versions(device, race.peers),
        "commit": report.commit() or torchdelta.__version__,
        "steps": steps,
        "operations": by_operation(steps) if steps else None,
        "notes": notes,
    }


def _right(
    reference: Reference, x: Tensor, allowance: float
) -> Callable[[list[Tensor]], str | None]:
    """Make the check of what peers compute for the input x."""
    dense = reference.dense(x)
    return lambda mine: difference(mine, dense, allowance)


def _material(options: BenchOptions, loaded: LoadedModel) -> Material:
    if options.source is not None:
        return Clip(
            options.source, channels=loaded.channels, limits=options.limits,
            skip_damaged=options.skip_damaged,
            size=loaded.frame_size(options.size),
            streams=options.streams, frames=options.frames,
            vectors=options.motion in (Motion.codec, Motion.auto),
        )  # fmt: skip
    assert options.active is not None
    size = loaded.frame_size(options.size) or loaded.frame_size("model")
    assert size is not None
    return Made(
        channels=loaded.channels, size=size, streams=options.streams, share=options.active,
        frames=options.frames,
    )  # fmt: skip


def _sampled(options: BenchOptions, material: Material) -> frozenset[int]:
    if options.active is not None:
        return frozenset(range(1, material.count))
    return frozenset(sampled_steps(material.count, options.sample))


def _race(options: BenchOptions, loaded: LoadedModel, compiled: CompiledModel) -> Race:
    """Open the session; the peers come later."""
    reference = Reference(
        loaded.model, compiled.plan, compiled.device, compiled.dtype, tf32=compiled.tf32
    )
    low, high = loaded.input_range
    value_range = None if loaded.mean or loaded.std else high - low
    forced = None
    if options.active:
        forced = forced_masks(compiled.plan, options.active, compiled.device)
    quality = Quality(loaded.channels, value_range, trained=loaded.has_weights)
    return Race(
        _session(options, compiled),
        reference,
        quality=quality if options.active is None else None,
        forced=forced,
    )


def _session(options: BenchOptions, compiled: CompiledModel, *, timed: bool = False) -> Session:
    if options.motion is Motion.none:
        return compiled.session(slots=options.streams, grain=options.grain, timed=timed)
    # names that `CompiledModel.session` knows
    motion: Any = options.motion.value
    border: Any = options.border.value
    session = compiled.session(
        slots=options.streams, motion=motion, border=border, grain=options.grain, timed=timed
    )
    if options.motion is Motion.auto:
        # the network is compiled for windows beforehand: else it would be while frames are timed
        compiled.session(motion="features")
        session.waits = True
    return session


def _warm_up(race: Race, moments: Sequence[Moment]) -> tuple[Tensor, float]:
    """Run ours, and check its first frame of each stream, which is computed whole.

    Returns the inputs [N, C, H, W] of that frame, and the relative L2 error that rounding may cost.
    Raises: EngineError where ours computes something else than the dense network.
    """
    allowance, inputs = 0.0, race.reference.input(race.place(moments[0].frames))
    for index, moment in enumerate(moments):
        results = race.step(race.session, race.place(moment.frames))
        if index:
            continue
        allowance = race.reference.allowance(inputs[:1])
        for row, stream in enumerate(race.streams):
            # of a camera that is followed the frame lies in a window; its first one is published
            seen = inputs[row : row + 1]
            if results[stream].aligned is not None:
                seen = race.session.stream(stream).published()
            dense = race.reference.dense(seen)
            wrong = difference(results[stream].unwrap(), dense, allowance)
            if wrong is not None:
                raise EngineError(
                    f"the {race.session.engine.name} engine's first frame of stream {stream} is "
                    f"not the dense network's: {wrong}; no figures of a wrong network"
                )
    for stream in race.streams:
        race.session.stream(stream).reset()
    return inputs, allowance


def _slowest_steps(
    options: BenchOptions,
    compiled: CompiledModel,
    race: Race,
    material: Material,
    log: PlainConsole,
) -> list[dict[str, Any]]:
    """Run once more, each step timed, which would have cost the others time."""
    session = _session(options, compiled, timed=True)
    count = min(STEP_FRAMES, material.count)
    with Meter(log, count) as meter:
        steps = race.slowest_steps(session, islice(material.moments(), count), meter.add)
    return [asdict(step) for step in steps]


def _conditions(
    options: BenchOptions, loaded: LoadedModel, compiled: CompiledModel, material: Material
) -> dict[str, Any]:
    return {
        "model": loaded.name,
        "source": material.name,
        "active": options.active,
        "size": list(material.size),
        "streams": options.streams,
        "engine": compiled.engine,
        "engine_reason": compiled.engine_reason,
        "dtype": options.dtype.value,
        "tolerance": options.tolerance,
        "frames": material.count,
        "prepared": not loaded.has_weights,
    }


def _peak_rss_bytes() -> int:
    """Give the most memory that the process has held so far."""
    with contextlib.suppress(OSError):
        # getrusage counts the parent's memory too, where that started this process
        found = re.search(r"^VmHWM:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.M)
        if found:
            return int(found[1]) * KIB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * KIB


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else cpu()[0]


def _versions(device: torch.device, peers: Sequence[Peer]) -> dict[str, str]:
    versions = {
        "torchdelta": torchdelta.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    for peer in peers:
        versions.setdefault(peer.packages[0], peer.version())
    if device.type == "cuda":
        versions["cuda"] = str(torch.version.cuda)
        versions["cudnn"] = str(torch.backends.cudnn.version())
        with contextlib.suppress(PackageNotFoundError):
            versions["triton"] = version("triton")
    return versions
