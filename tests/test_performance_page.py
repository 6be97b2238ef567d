"""docs/performance.md and the files that it is made from."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.etree import ElementTree

import pytest

from support import load_file

ROOT = Path(__file__).resolve().parents[1]
MOST_WORDS = 2000


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    return load_file(ROOT / "tools/performance_page.py")


def test_page_and_charts_are_those_of_the_files(tool: ModuleType) -> None:
    results = tool.load()
    page = tool.PAGE.read_text(encoding="utf-8")
    assert tool.render(page, tool.parts(results)) == page, "run `make docs`"
    for name, svg in tool.charts(results).items():
        assert (ROOT / "docs" / name).read_text(encoding="utf-8") == svg, "run `make docs`"
        assert f"({name})" in page
        ElementTree.fromstring(svg)


def test_page_is_short(tool: ModuleType) -> None:
    assert len(tool.PAGE.read_text(encoding="utf-8").split()) < MOST_WORDS


def test_figures_have_their_conditions(tool: ModuleType) -> None:
    for name, content in tool.load().items():
        assert {"device", "work", "machine", "commit", "settings"} <= set(content), name
        for row in content["rows"]:
            if "peers_ms" in row:
                assert row["best_peer"] == min(row["peers_ms"], key=row["peers_ms"].get), row


def row(**changes: Any) -> dict[str, Any]:
    found = {
        "network": "A", "clip": "room", "ours_ms": 2.0, "peers_ms": {"X": 8.0, "Y": 6.0},
        "best_peer": "Y", "speedup": 3.0, "error": 0.02, "layer_error": 0.01,
    }  # fmt: skip
    return {**found, **changes}


def content(rows: list[dict[str, Any]], **changes: Any) -> dict[str, Any]:
    found = {"device": "cpu", "work": "clips", "machine": "M", "commit": "c0", "settings": "s"}
    return {**found, **changes, "rows": rows}


def test_what_was_measured_anew_takes_the_old_rows_place(tool: ModuleType, tmp_path: Path) -> None:
    old = content([row(), row(clip="road")], old=True, machine="Then")
    tool.write_results(tmp_path / "a.json", content([row(speedup=4.0)], machine="Now"))
    tool.write_results(tmp_path / "b.json", old)
    assert json.loads((tmp_path / "b.json").read_text()) == old
    results = tool.load(tmp_path)
    rows = tool.select(results, "cpu", "clips")
    assert {r["clip"]: r["speedup"] for r in rows} == {"room": 4.0, "road": 3.0}
    new, kept = tool.source(rows, results).splitlines()
    assert "**old**" not in new
    assert "Now" in new
    assert "**old**" in kept
    assert "Then" in kept


def test_the_best_peer_is_named(tool: ModuleType) -> None:
    assert "| A | room | 2 | Y | 6 | **3.0** | 0.020, 0.010 |" in tool.clips([row()])
    assert "45.2 dB (worst 40.0)" in tool.clips([row(psnr_db=45.21, psnr_worst_db=40)])


def test_every_part_has_a_place_and_every_place_a_part(tool: ModuleType) -> None:
    place = "a <!-- x -->\nold\n<!-- end x --> b"
    assert tool.render(place, {"x": "new"}) == "a <!-- x -->\n\nnew\n\n<!-- end x --> b"
    with pytest.raises(ValueError, match="no place <!-- y -->"):
        tool.render(place, {"x": "new", "y": ""})
    with pytest.raises(ValueError, match=r"nothing to stand at <!-- x -->"):
        tool.render(place, {})


def test_records_of_bench_become_rows(tool: ModuleType, tmp_path: Path) -> None:
    record = {
        "model": "timm:resnet50", "source": "room_768x432.mp4", "active": None, "streams": 1,
        "size": [512, 768],
        "frames": 9, "engine": "cpu", "dtype": "fp32", "tolerance": 0.04, "prepared": True,
        "ours_ms": 2.0, "ours_ms_median": 2.0, "peers_ms": {"openvino": 6.0},
        "best_peer": "openvino", "speedup": 3.0, "speedup_median": 3.0, "changed_input": 0.1,
        "mac_share": 0.2, "efficiency": 0.6, "reference_ms": None, "reference_speedup": None,
        "quality": {"error": {"mean": 0.02}, "layer_error": {"mean": 0.01}, "psnr_db": None,
                    "classes": None},
        "device": "A CPU", "versions": {"torch": "2.14"}, "commit": "c1",
    }  # fmt: skip
    path = tmp_path / "record.json"
    path.write_text(json.dumps(record))
    made = tool.take([path], "clips", "quiet")
    assert (made["device"], made["machine"], made["commit"]) == ("cpu", "A CPU", "c1")
    (taken,) = made["rows"]
    assert (taken["network"], taken["clip"], taken["weights"]) == ("ResNet-50", "room", "random")
    assert taken["peers_ms"] == {"OpenVINO": 6.0}
    other = tmp_path / "other.json"
    other.write_text(json.dumps({**record, "device": "B"}))
    with pytest.raises(SystemExit, match="several machines"):
        tool.take([path, other], "clips", "")
