"""What a run of `bench` says: the figures, as one JSON object and as a table."""

from __future__ import annotations

import contextlib
import json
import math
import os
import statistics
import subprocess
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.table import Table

from torchdelta.bench.measure import Times
from torchdelta.bench.operations import dense_line, operations_table, steps_table
from torchdelta.bench.peers import CudnnFp32
from torchdelta.console import PlainConsole
from torchdelta.errors import SinkError
from torchdelta.report.trust import doubts
from torchdelta.runtime.session import Session
from torchdelta.targets import target_of, write_whole

REFERENCE = CudnnFp32.name
MIB = 2**20


def spread(values_ms: Sequence[float]) -> dict[str, float]:
    """Sum times up: mean, median, 20th and 80th percentile."""
    p20, p80 = np.percentile(values_ms, (20, 80))
    return {
        "mean": statistics.fmean(values_ms),
        "median": statistics.median(values_ms),
        "p20": float(p20),
        "p80": float(p80),
    }


def figures(times: Times, by_median: bool) -> dict[str, Any]:
    """Work out what the times say.

    by_median: the leading figures are medians (forced activity) instead of those of the totals,
               which are the same as those of the means
    """
    ours = spread(times.ours_ms)
    peers = {name: spread(ms) for name, ms in times.peers_ms.items()}
    shares = {
        "mean": statistics.fmean(times.mac_share),
        "median": statistics.median(times.mac_share),
    }
    leading = "median" if by_median else "mean"
    best, speedup = _speedup(ours, peers, leading)
    _, speedup_median = _speedup(ours, peers, "median")
    reference = spread(times.reference_ms) if times.reference_ms else None
    decode_ms = statistics.fmean(times.decode_ms) if times.decode_ms else None
    decoded = None
    if best is not None and decode_ms is not None:
        decoded = (peers[best][leading] + decode_ms) / (ours[leading] + decode_ms)
    return {
        "ours_ms": ours[leading],
        "peers_ms": {name: ms[leading] for name, ms in peers.items()},
        "best_peer": best,
        "speedup": speedup,
        "slower_than": [name for name, ms in peers.items() if ms[leading] < ours[leading]],
        "reference_ms": reference and reference[leading],
        "reference_speedup": reference and reference[leading] / ours[leading],
        "mac_share": shares[leading],
        "changed_input": statistics.fmean(times.changed_input),
        # where nothing was active there is nothing to be efficient at
        "efficiency": shares[leading] * speedup if speedup and any(times.mac_share) else None,
        "ours_ms_median": ours["median"],
        "peers_ms_median": {name: ms["median"] for name, ms in peers.items()},
        "speedup_median": speedup_median,
        "mac_share_median": shares["median"],
        "efficiency_median": None if speedup_median is None else shares["median"] * speedup_median,
        "first_ms": times.first_ms,
        "decode_ms": decode_ms,
        "speedup_with_decoding": decoded,
        "sampled_frames": max(map(len, times.peers_ms.values()), default=len(times.reference_ms)),
        "ours": ours,
        "peers": peers,
        "reference": reference,
    }


def doubtful(found: Mapping[str, Any], times: Times) -> list[str]:
    """Say why the speed-up is not to be trusted, in a note; nothing where it is.

    found: what `figures` made of the times
    """
    best = found["best_peer"]
    if best is None:
        return []
    why = doubts(times.peers_ms[best], found["speedup"], found["mac_share"], best)
    return [f"the speed-up is not to be trusted: {'; '.join(why)}"] if why else []


def following(session: Session, times: Times) -> dict[str, Any]:
    """Say what following cameras came to, since the streams began; times are means per frame.

    window: (h, w);  align_ms: estimating the motion and warping, which is in our times
    followed_frames: of all streams;  moves: frames with which a window moved
    reasons: why frames after the streams' first ones were computed whole, and how many
    """
    # those of the session as a whole count what was run to warm up
    stats = [session.stream(stream).stats for stream in session.streams]
    reasons = sum((Counter(one.reasons) for one in stats), Counter[str]())
    for first in ("first frame", "reset"):
        del reasons[first]
    return {
        "window": list(session.window),
        "align_ms": statistics.fmean(times.align_ms),
        "followed_frames": times.followed,
        "moves": sum(one.moves for one in stats),
        "reasons": dict(reasons),
        "notes": list(session.notes),
    }


def _speedup(
    ours: Mapping[str, float], peers: Mapping[str, Mapping[str, float]], by: str
) -> tuple[str | None, float | None]:
    """Find the peer with the lowest mean or median, and how much faster ours is."""
    if not peers:
        return None, None
    # a peer's time does not depend on the frame, so its mean over the samples stands for its mean
    # over all frames, and the quotient of means is that of the totals
    best = min(peers, key=lambda name: peers[name][by])
    return best, peers[best][by] / ours[by]


def commit() -> str | None:
    """Give the git commit of the checkout that this package runs from, None where it is none.

    "+" at its end stands for changes that are in no commit.
    """
    folder = Path(__file__).resolve().parents[1]

    def git(*args: str) -> subprocess.CompletedProcess[str]:
        # without optional locks git only reads
        return subprocess.run(
            ["git", "-C", str(folder), *args],
            capture_output=True, text=True, env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},
        )  # fmt: skip

    with contextlib.suppress(OSError):
        # installed somewhere below another project's checkout, that one's commit says nothing
        if git("ls-files", "--error-unmatch", "__init__.py").returncode == 0:
            name = git("rev-parse", "--short", "HEAD").stdout.strip()
            changed = git("status", "--porcelain", "--", ".").stdout.strip()
            return f"{name}{'+' if changed else ''}" or None
    return None


def check_target(path: Path) -> None:
    """Refuse a JSON file that could not be written, before the work; raises SinkError."""
    if path.is_dir():
        raise SinkError(f"{path} is a folder; give --json a file name")
    target = target_of(path)
    if not target.regular:
        return
    folder = target.file.parent
    if not folder.is_dir():
        raise SinkError(f"{path}: there is no folder {folder}; make it first")
    if not os.access(folder, os.W_OK):
        raise SinkError(f"{path}: the folder {folder} cannot be written to")


def write_json(path: Path, record: Mapping[str, Any]) -> None:
    """Write the record as JSON, a file whole or not at all; raises SinkError."""
    write_whole(path, as_json(record))


def as_json(record: Mapping[str, Any]) -> str:
    """Give the record as a JSON object."""
    return json.dumps(_finite(record), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(v) for key, v in value.items()}
    return [_finite(v) for v in value] if isinstance(value, list | tuple) else value


def show(record: Mapping[str, Any], out: PlainConsole) -> None:
    """Print a record: the table, the figures, the conditions, the notes."""
    out.print(_times_table(record))
    for line in (*_result_lines(record), *_quality_lines(record), *_condition_lines(record)):
        out.say(line)
    if record["steps"]:
        out.print(steps_table(record["steps"]))
        out.print(operations_table(record["operations"]))
        dense = dense_line(record["operations"])
        if dense is not None:
            out.say(dense)
    for note in record["notes"]:
        out.say(f"note: {note}")


def _times_table(record: Mapping[str, Any]) -> Table:
    table = Table(box=box.SIMPLE, pad_edge=False, title="ms per frame", title_justify="left")
    table.add_column("contestant")
    for column in ("median", "20%", "80%", "mean"):
        table.add_column(column, justify="right")
    rows = {f"torchdelta ({record['engine']})": record["ours"], **record["peers"]}
    if record["reference"] is not None:
        rows[f"{REFERENCE} (reference)"] = record["reference"]
    for name, ms in rows.items():
        mark = " (best)" if name == record["best_peer"] else ""
        cells = (_number(ms[key]) for key in ("median", "p20", "p80", "mean"))
        table.add_row(f"{name}{mark}", *cells)
    return table


def _number(value: float) -> str:
    """Print two places, more for what is small."""
    return f"{value:.2f}" if value >= 1 else f"{value:.3f}"


def _result_lines(record: Mapping[str, Any]) -> list[str]:
    forced = record["active"] is not None
    leading = "medians" if forced else "totals"
    lines = []
    if record["speedup"] is not None:
        of_medians = "" if forced else f", {_number(record['speedup_median'])}x of medians"
        lines.append(
            f"speedup     {_number(record['speedup'])}x over {record['best_peer']} (of {leading})"
            f"{of_medians}"
        )
    if record["slower_than"]:
        best = record["best_peer"]
        lines.append(
            f"            slower than {', '.join(record['slower_than'])}: ours takes "
            f"{_number(1 / record['speedup'])} times as long as {best}"
        )
    if record["reference_speedup"] is not None:
        lines.append(
            f"reference   {_number(record['reference_speedup'])}x over {REFERENCE} (of {leading}), "
            "cuDNN in float32 without TF32"
        )
    of_median = "" if forced else f", median {record['mac_share_median']:.1%}"
    lines.append(
        f"MAC share   {record['mac_share']:.1%}{of_median}; changed input "
        f"{record['changed_input']:.1%}"
    )
    if record["efficiency"] is not None:
        of_medians = "" if forced else f", {_number(record['efficiency_median'])} of medians"
        lines.append(
            f"efficiency  {_number(record['efficiency'])}{of_medians} (MAC share x speedup)"
        )
    if record["following"] is not None:
        lines += _following_lines(record)
    first = f"first frame {record['first_ms']:.1f} ms"
    if record["decode_ms"] is not None:
        first += f"; decoding {record['decode_ms']:.2f} ms a frame, in no figure above"
        if record["speedup_with_decoding"] is not None:
            first += f" (with it the speedup is {_number(record['speedup_with_decoding'])}x)"
    return [*lines, first]


def _following_lines(record: Mapping[str, Any]) -> list[str]:
    found = record["following"]
    h, w = found["window"]
    whole = "; ".join(f"{n} x {why}" for why, n in found["reasons"].items())
    whole = whole or "no frame after the first"
    return [
        f"following   {record['motion']}: estimation and warp {found['align_ms']:.2f} ms a frame, "
        f"in our times above; {found['followed_frames']} frames followed on windows of {h}x{w}",
        f"            the window moved with {found['moves']} frames; computed whole: {whole}",
        "            the peers run on the frame; quality is measured against the dense network on "
        "the window",
    ]


def _quality_lines(record: Mapping[str, Any]) -> list[str]:
    quality = record["quality"]
    if quality is None:
        frames = "the same frame again shows none"
        forced = "forced active sets are not what has changed"
        return [f"quality     not measured: {forced if record['active'] else frames}"]

    def both(key: str, what: Mapping[str, Any]) -> str:
        return f"{what[key]['mean']:.4f} (worst {what[key]['worst']:.4f})"

    where = "the window" if record["following"] is not None else "the frame"
    lines = [
        f"quality     error {both('error', quality)} against dense on {where}, layer error "
        f"{both('layer_error', quality)} against dense on the published input"
    ]
    if len(quality["outputs"]) > 1:
        lines += [
            f"            {name}: error {both('error', one)}, layer error "
            f"{both('layer_error', one)}"
            for name, one in quality["outputs"].items()
        ]
    meaning = _meaning(quality, record["prepared"])
    lines.append(f"            errors are relative L2 of the outputs; {meaning}")
    if quality["classes"] is not None:
        clear = quality["classes"]["clear"]
        step = f"; a frame is {1 / clear:.1%}" if clear else ""
        lines.append(f"            {quality['classes']['said']}{step}")
    if quality["pixel_agreement"] is not None:
        same = quality["pixel_agreement"]
        lines.append(
            f"            same class as dense on {same['mean']:.2%} of the pixels (worst frame "
            f"{same['worst']:.2%})"
        )
    if quality["psnr_db"] is not None:
        psnr_db = quality["psnr_db"]
        lines.append(
            f"            PSNR {psnr_db['mean']:.1f} dB (worst {psnr_db['worst']:.1f}), peak: "
            f"{quality['psnr_peak']}"
        )
    lines[-1] += f"; {quality['frames']} frames"
    return lines


def _meaning(quality: Mapping[str, Any], prepared: bool) -> str:
    """Say what to read instead of an error, or beside it."""
    if quality["classes"] is not None or quality["pixel_agreement"] is not None:
        return "for classes see the agreement below"
    if quality["psnr_db"] is not None:
        return "for pictures see the PSNR below"
    if prepared:
        return "what the network decides is not compared, since its weights are random"
    return "what they mean for the result depends on what is made of the outputs"


def _condition_lines(record: Mapping[str, Any]) -> list[str]:
    source = record["source"]
    if record["active"] is not None:
        source = f"{record['active']:.1%} of every map forced active"
        if not record["active"]:
            source = "the same frame again and again"
    streams = record["streams"]
    h, w = record["size"]
    isa = f", {record['isa']}" if record["isa"] else ""
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    return [
        f"engine      {record['engine']} ({record['engine_reason']}){isa}",
        f"state       {record['state_bytes'] / MIB:.1f} MiB, published values "
        f"{record['values_bytes'] / MIB:.1f} of it; weights "
        f"{record['weight_bytes'] / MIB:.1f} MiB, once for all streams; peak memory of the "
        f"process before the peers came {record['peak_rss_bytes'] / MIB:.0f} MiB",
        f"conditions  {record['model']}, {source}, {h}x{w}, {streams} "
        f"stream{'s' if streams > 1 else ''}, {record['frames']} frames, peers on "
        f"{record['sampled_frames']}; {record['dtype']}, tolerance {record['tolerance']:g}, "
        f"{record['threads']} thread{'s' if record['threads'] > 1 else ''}",
        f"            {record['device']}; {versions}; commit {record['commit']}",
    ]
