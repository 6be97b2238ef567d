"""Write the tables and charts of docs/performance.md from the files of benchmarks/results/.

    python tools/performance_page.py            # writes the page and docs/speed_*.svg
    python tools/performance_page.py take --work clips|forced|moving --to FILE.json RECORD ...

Between `<!-- NAME -->` and `<!-- end NAME -->` the page is this script's, all else is prose. A
results file has its machine, versions, commit and settings, and `rows`. Two files may have the same
row, once measured long ago ("old": true) and once anew: then the newer one stands on the page.

`take` makes a results file of what was measured anew: records that `torchdelta bench --json` or
benchmarks/gpu_figures.py wrote, or, for moving cameras, lines of benchmarks/moving_sessions.py.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "performance.md"
DEVICES = {"cpu": "two CPU cores", "h200": "an H200, 16 streams"}
# by what stands behind the colon of a model spec
NETWORKS = {
    "resnet50": "ResNet-50",
    "resnet18": "ResNet-18",
    "hrnet_w32": "HRNet-W32",
    "mobilenetv2_100": "MobileNetV2",
    "tf_efficientnet_lite0": "EfficientNet-Lite0",
    "dncnn": "DnCNN-17",
}
PEERS = {
    "torch": "PyTorch",
    "compile": "torch.compile",
    "onnxruntime": "ONNX Runtime",
    "openvino": "OpenVINO",
    "cudagraph": "CUDA graph",
}
SHARES = {
    0.0: "nothing",
    0.02: "2 %",
    0.05: "5 %",
    0.1: "10 %",
    0.15: "15 %",
    0.25: "25 %",
    1.0: "every pixel",
}

Row = dict[str, Any]


# the results


def load(folder: Path = RESULTS) -> dict[str, dict[str, Any]]:
    """Read all results files: name -> content, what was measured anew last."""
    found = {path.name: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}
    return dict(sorted(found.items(), key=lambda item: not item[1].get("old", False)))


def select(results: dict[str, dict[str, Any]], device: str, work: str) -> list[Row]:
    """Give the rows of a device and kind of work; each gets its file's name as `file`."""
    rows: dict[tuple[Any, ...], Row] = {}
    for name, content in results.items():
        if (content["device"], content["work"]) == (device, work):
            for row in content["rows"]:
                parts = ("network", "clip", "active", "streams", "motion", "dtype")
                rows[tuple(row.get(part) for part in parts)] = {**row, "file": name}
    return list(rows.values())


# the tables


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Write a Markdown table."""
    lines = [f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *rows)]
    return "\n".join(lines)


def number(x: float | None) -> str:
    """Write a number with three digits that count."""
    if x is None:
        return ""
    return f"{x:.0f}" if abs(x) >= 100 else f"{x:.3g}"


def gain(x: float) -> str:
    """Write how many times faster something is."""
    return f"{x:.0f}" if x >= 9.95 else f"{x:.1f}" if x >= 1 else f"{x:.2f}"


def quality(row: Row) -> str:
    """Say how near the output is to the dense network's."""
    if "psnr_db" in row:
        worst = row.get("psnr_worst_db")
        return f"{row['psnr_db']:.1f} dB" + (f" (worst {worst:.1f})" if worst else "")
    text = f"{row['error']:.3f}, {row['layer_error']:.3f}"
    return text + (f"; class {row['same_class']}" if "same_class" in row else "")


def source(rows: Sequence[Row], results: dict[str, dict[str, Any]]) -> str:
    """Say where rows come from: machine, versions, settings and commits of each file.

    Machine and versions stand once where several files share them.
    """
    lines: list[str] = []
    said: set[str] = set()
    for name in dict.fromkeys(row["file"] for row in rows):
        content = results[name]
        where = "; ".join(content[key] for key in ("machine", "versions") if key in content)
        commits = dict.fromkeys(
            row.get("commit", content["commit"]) for row in rows if row["file"] == name
        )
        facts = [
            *(["**old**"] if content.get("old") else []),
            *([] if where in said else [where]),
            content["settings"],
            f"commit {', '.join(commits)}",
        ]
        said.add(where)
        lines.append(f"- [{name}](../benchmarks/results/{name}): {'; '.join(facts)}")
    return "\n".join(lines)


def clips(rows: Sequence[Row]) -> str:
    """Write clips against the best peer of each."""
    head = ("network", "clip", "ms", "best peer", "its ms", "faster", "error, layers; or dB")
    return table(
        head,
        (
            (
                row["network"] + ("*" if row.get("weights") == "random" else ""),
                row["clip"],
                number(row["ours_ms"]),
                row["best_peer"],
                number(row["peers_ms"][row["best_peer"]]),
                f"**{gain(row['speedup'])}**",
                quality(row),
            )
            for row in rows
        ),
    )


def shares(rows: Sequence[Row]) -> str:
    """Write speed-ups by network, streams and share of each map that is computed again."""
    lines: dict[str, dict[float, str]] = {}
    for row in rows:
        if "dtype" not in row and "speedup" in row and row["active"] in SHARES:
            streams = row.get("streams")
            name = row["network"] + (f", {streams} streams" if streams else "")
            name = name.replace(" 1 streams", " 1 stream")
            lines.setdefault(name, {})[row["active"]] = gain(row["speedup"])
    columns = [share for share in SHARES if any(share in found for found in lines.values())]
    return table(
        ("computed again", *(SHARES[share] for share in columns)),
        ((name, *(found.get(share, "") for share in columns)) for name, found in lines.items()),
    )


def moving(rows: Sequence[Row]) -> str:
    """Write what following a camera gains over not following it."""
    head = ("network", "clip", "ms", "not followed", "faster", "error", "not followed")
    still = {(r["network"], r["clip"]): r for r in rows if r["motion"] == "none"}
    return table(
        head,
        (
            (
                row["network"],
                row["clip"],
                number(row["ours_ms"]),
                number(row["not_followed_ms"]),
                f"**{gain(row['speedup'])}**",
                f"{row['error']:.3f}",
                f"{still[row['network'], row['clip']]['error']:.3f}",
            )
            for row in rows
            if row["motion"] == "features"
        ),
    )


def untuned(rows: Sequence[Row]) -> str:
    """Write ranges of speed-ups."""
    lines = (
        (row["network"], gain(row["speedup_least"]), gain(row["speedup_most"])) for row in rows
    )
    return table(("network", "least", "most"), lines)


# the charts

BAR_PX, GAP_PX, LABEL_PX, WIDTH_PX, HEAD_PX = 15, 5, 210, 760, 50
COLOURS = ("#2f6db5", "#c2622d", "#3c8c5a", "#7a5aa6")


def chart(title: str, rows: Sequence[Row]) -> str:
    """Draw the speed-ups as bars, one colour per network, with a line where nothing is gained."""
    networks = list(dict.fromkeys(row["network"] for row in rows))
    most = max(row["speedup"] for row in rows)
    per_px = (WIDTH_PX - LABEL_PX - 60) / most
    height = HEAD_PX + len(rows) * (BAR_PX + GAP_PX) + len(networks) * GAP_PX
    y, previous = HEAD_PX, None
    bars = []
    for row in rows:
        if previous not in (None, row["network"]):
            y += GAP_PX
        previous = row["network"]
        colour = COLOURS[networks.index(row["network"]) % len(COLOURS)]
        wide = row["speedup"] * per_px
        text = y + BAR_PX - 3
        bars.append(
            f'<text x="{LABEL_PX - 8}" y="{text}" text-anchor="end">{row["network"]}, '
            f"{row['clip']}</text>"
            f'<rect x="{LABEL_PX}" y="{y}" width="{wide:.1f}" height="{BAR_PX}" fill="{colour}"/>'
            f'<text x="{LABEL_PX + wide + 5:.1f}" y="{text}">{gain(row["speedup"])}</text>'
        )
        y += BAR_PX + GAP_PX
    one = LABEL_PX + per_px
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH_PX}" height="{height}" '
        f'viewBox="0 0 {WIDTH_PX} {height}" font-family="sans-serif" font-size="12" fill="#222">',
        f"<title>{title}</title>",
        f'<rect width="{WIDTH_PX}" height="{height}" fill="#fff"/>',
        f'<text x="10" y="20" font-size="15">{title}</text>',
        f'<text x="{one:.1f}" y="{HEAD_PX - 8}" text-anchor="middle">1 = no gain</text>',
        *bars,
        f'<line x1="{one:.1f}" y1="{HEAD_PX - 4}" x2="{one:.1f}" y2="{height - 4}" '
        'stroke="#222" stroke-dasharray="4 3"/>',
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


# the page


def parts(results: dict[str, dict[str, Any]]) -> dict[str, str]:
    """Make all that the page has of the results: name of its place -> Markdown."""
    kinds = {"clips": clips, "forced": shares, "moving": moving, "untuned": untuned}
    made = {}
    for device in DEVICES:
        for work, write in kinds.items():
            rows = select(results, device, work)
            if rows:
                made[f"{device} {work}"] = write(rows)
        rows = [row for work in kinds for row in select(results, device, work)]
        made[f"{device} sources"] = source(rows, results)
    return made


def charts(results: dict[str, dict[str, Any]]) -> dict[str, str]:
    """Make the charts: file name -> SVG."""
    title = "Times faster than the best peer, whole clips of fixed cameras, {}"
    return {
        f"speed_{device}.svg": chart(title.format(name), select(results, device, "clips"))
        for device, name in DEVICES.items()
    }


def render(page: str, made: dict[str, str]) -> str:
    """Put what was made into its places; raises ValueError where either lacks the other."""
    for name, text in made.items():
        place = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end {name} -->)", flags=re.S)
        if not place.search(page):
            raise ValueError(f"the page has no place <!-- {name} --> … <!-- end {name} -->")
        page = place.sub(lambda found, text=text: f"{found[1]}\n{text}\n\n{found[2]}", page)
    for name in re.findall(r"<!-- end (.+?) -->", page):
        if name not in made:
            raise ValueError(f"there is nothing to stand at <!-- {name} -->")
    return page


# what was measured anew


def taken(record: dict[str, Any], work: str) -> Row:
    """Make a row of a record of `torchdelta bench`, or of a line about a moving camera."""
    if work == "moving":
        motion = record["mode"]
        row = {
            "motion": motion,
            "ours_ms": record["ms_mean"],
            "not_followed_ms": None if motion == "none" else record["ms_mean"] * record["faster"],
            "speedup": None if motion == "none" else record["faster"],
            **{key: record[key] for key in ("network", "clip", "frames", "mac_share")},
            **{key: record[key] for key in ("changed_input", "layer_error", "error", "moves")},
            "references": ", ".join(f"{n} {why}" for why, n in record["reasons"].items()),
        }
        return {key: value for key, value in row.items() if value is not None}
    found = record["quality"] or {}
    psnr_db, classes = found.get("psnr_db"), found.get("classes")
    row = {
        "network": NETWORKS.get(record["model"].split(":")[-1], record["model"]),
        "size": "{}x{}".format(*record["size"]),
        # room_768x432.mp4 is called room
        "clip": Path(record["source"]).stem.split("_")[0] if record["source"] else None,
        "active": record["active"],
        "streams": record["streams"] if record["engine"] == "triton" else None,
        "dtype": record["dtype"] if record["dtype"] == "bf16" else None,
        "weights": "random" if record["prepared"] else "trained",
        "peers_ms": {PEERS[name]: ms for name, ms in record["peers_ms"].items()},
        "best_peer": PEERS.get(record["best_peer"]),
        **{key: record[key] for key in ("frames", "tolerance", "ours_ms", "ours_ms_median")},
        **{key: record[key] for key in ("speedup", "speedup_median", "changed_input", "mac_share")},
        **{key: record[key] for key in ("efficiency", "reference_ms", "reference_speedup")},
        **{key: found[key]["mean"] for key in ("error", "layer_error") if found},
        "psnr_db": psnr_db and psnr_db["mean"],
        "psnr_worst_db": psnr_db and psnr_db["worst"],
        "same_class": f"{classes['same']} of {classes['clear']}" if classes else None,
        "commit": record["commit"],
    }  # fmt: skip
    return {key: value for key, value in row.items() if value is not None}


def take(paths: Sequence[Path], work: str, settings: str) -> dict[str, Any]:
    """Make a results file of records, which must come from one machine and one set of versions."""
    texts = [path.read_text() for path in paths]
    if work == "moving":
        records = [json.loads(line) for text in texts for line in text.splitlines()]
    else:
        records = [json.loads(text) for text in texts]
    conditions = {(r["device"], json.dumps(r["versions"])) for r in records}
    if len({device for device, _ in conditions}) != 1:
        raise SystemExit(f"records of several machines: {sorted(conditions)}; take one at a time")
    first = records[0]
    engine, dtype = first["engine"], first["dtype"]
    return {
        "device": "h200" if "H200" in first["device"] else "cpu",
        "work": work,
        "machine": first["device"],
        "versions": ", ".join(f"{name} {v}" for name, v in first["versions"].items()),
        "commit": first["commit"],
        "settings": f"{engine} engine, {dtype}; {settings}",
        "rows": [taken(record, work) for record in records],
    }


def write_results(path: Path, content: dict[str, Any]) -> None:
    """Write a results file with one row a line."""
    head = [f"  {json.dumps(key)}: {json.dumps(content[key])}" for key in content if key != "rows"]
    rows = ",\n".join("    " + json.dumps(row, ensure_ascii=False) for row in content["rows"])
    path.write_text("{\n" + ",\n".join([*head, f'  "rows": [\n{rows}\n  ]']) + "\n}\n")


def main() -> None:
    """Write the page, or a results file first."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command")
    taking = commands.add_parser("take", help="make a results file of what was measured anew")
    taking.add_argument("--work", choices=("clips", "forced", "moving"), required=True)
    taking.add_argument("--settings", default="", help="what else there is to say")
    taking.add_argument("--to", type=Path, required=True)
    taking.add_argument("records", nargs="+", type=Path)
    options = parser.parse_args()
    if options.command == "take":
        write_results(options.to, take(options.records, options.work, options.settings))
    results = load()
    PAGE.write_text(render(PAGE.read_text(), parts(results)))
    for name, svg in charts(results).items():
        (PAGE.parent / name).write_text(svg)


if __name__ == "__main__":
    main()
