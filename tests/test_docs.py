"""What the documents say is so: names exist, examples run, tables are complete, links lead on."""

from __future__ import annotations

import dataclasses
import importlib
import itertools
import re
import runpy
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typer.main import get_command

import torchdelta
from documents import ROOT, blocks, rows, section, text
from torchdelta.cli.app import app
from torchdelta.cli.track import Track
from torchdelta.demo.scene import Scene
from torchdelta.ops import OPS
from torchdelta.ops.functions import POINTWISE
from torchdelta.ops.gate import input_gate, input_threshold
from torchdelta.plan.rules_compute import COMPUTE
from torchdelta.plan.rules_move import MOVE
from torchdelta.runtime.inspect import frame_state
from torchdelta.runtime.session import Session
from torchdelta.video.sink import VideoWriter

QUICKSTART = ROOT / "examples" / "quickstart.py"
LOG = tuple(str(path.relative_to(ROOT)) for path in sorted((ROOT / "docs" / "log").glob("*.md")))
DOCUMENTS = (
    "README.md", "docs/usage.md", "docs/papers.md", "docs/performance.md", "docs/developing.md",
    *LOG,
)  # fmt: skip
# shares (in percent) and errors hang on rounding, and so on the machine and the version of PyTorch
SLACK = {"%": 0.5, "": 0.005}


def resolve(name: str) -> Any:
    """Find `torchdelta.a.b.C.d`; raises where a part does not exist."""
    parts = name.split(".")
    found: Any = importlib.import_module(parts[0])
    for i, part in enumerate(parts[1:], 2):
        if hasattr(found, part):
            found = getattr(found, part)
        elif dataclasses.is_dataclass(found):
            # a field without a default is no attribute of its class
            found = {f.name: f for f in dataclasses.fields(found)}[part]
        else:
            found = importlib.import_module(".".join(parts[:i]))
    return found


def test_cells_hide_what_the_table_says() -> None:
    """A thing is published whole from the contrast that the table gives on, and not below it."""
    head, *lines = (
        section("docs/usage.md", "The input gate's cells")
        .split("| size in pixels ")[1]
        .splitlines()
    )
    grains = [int(n) for n in re.findall(r"grain (\d)", head)]
    for size, *contrasts in rows("\n".join(["|", *lines])):
        digits = [int(n) for n in re.findall(r"\d+", size)]
        h, w = (1, 40) if "line" in size else digits
        for grain, contrast in zip(grains, contrasts, strict=True):
            seen = partial(is_seen, h, w, grain)
            if contrast == "never":
                assert not seen(255)
            else:
                assert seen(int(contrast)), (size, grain)
                assert not seen(int(contrast) - 1), (size, grain)


def is_seen(h: int, w: int, grain: int, levels: int) -> bool:
    """Say whether all of a thing is published wherever it lies."""
    for y, x in itertools.product(range(24, 24 + grain), repeat=2):
        old = torch.zeros(96, 96, 1)
        new = old.clone()
        new[y : y + h, x : x + w] = levels
        hot = input_gate(new, old, input_threshold(0.04), torch.full((1,), 1 / 255), grain=grain)
        if not hot[y : y + h, x : x + w].all():
            return False
    return True


def test_every_operation_has_a_row() -> None:
    table = rows(section("docs/usage.md", "Supported operations"))
    assert [row[0] for row in table] == [f"`{name}`" for name in OPS]


def test_every_lowered_call_is_named() -> None:
    named = set(re.findall(r"`(\w+)`", section("docs/usage.md", "Supported operations")))
    public = {name for name in (*COMPUTE, *MOVE, *POINTWISE) if not name.startswith("_")}
    assert public <= named, public - named


@pytest.mark.parametrize("document", DOCUMENTS)
def test_names_exist(document: str) -> None:
    names = set(re.findall(r"`(torchdelta(?:\.\w+)+)`", text(document)))
    assert names or document not in ("docs/usage.md", "docs/papers.md")
    for name in sorted(names):
        try:
            resolve(name)
        except (ImportError, AttributeError, KeyError) as error:
            pytest.fail(f"{document} names {name}, which does not exist: {error}")


def test_papers_name_code_for_each_concept_of_deltacnn() -> None:
    table = rows(section("docs/papers.md", "DeltaCNN, concept by concept"))
    assert all(len(row) == 4 for row in table)
    assert [row[0] for row in table if "`torchdelta." not in row[2] and row[1] != "none"] == []


def slug(title: str) -> str:
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document: str) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", text(document)):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        file = (ROOT / document).parent / path if path else ROOT / document
        assert file.exists(), f"{document} links {target}"
        if anchor:
            titles = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), flags=re.M)
            assert anchor in map(slug, titles), f"{document} links {target}"


def test_options_are_those_of_the_command_line() -> None:
    commands: Mapping[str, Any] = getattr(get_command(app), "commands")  # noqa: B009
    real = {
        name: {o for p in command.params for o in p.opts if o.startswith("--")} - {"--help"}
        for name, command in commands.items()
    }
    written = set(re.findall(r"(?<!\w)(--\w+(?:-\w+)*)", text("README.md") + text("docs/usage.md")))
    assert written <= set().union(*real.values())
    assert real["run"] <= set(re.findall(r"--\w+(?:-\w+)*", section("README.md", "Command line")))
    assert real["demo"] <= written
    assert set(commands) == set(re.findall(r"torchdelta (\w+)", text("README.md"))) & set(commands)


def test_json_keys_are_in_the_table() -> None:
    table = [row for row in rows(section("docs/usage.md", "torchdelta run")) if len(row) == 2]
    keys = [key for row in table for key in re.findall(r"`(\w+)`", row[0])]
    assert keys == list(Track("x").record(None, None, None))


def test_log_lists_its_files() -> None:
    listed = {row[0] for row in rows(text("docs/log/README.md"))}
    names = [Path(name).name for name in LOG if not name.endswith("README.md")]
    assert listed == {f"[{name}]({name})" for name in names}


def test_readme_shows_the_quickstart() -> None:
    assert blocks("README.md", "python") == [QUICKSTART.read_text(encoding="utf-8")]


def test_quickstart_prints_what_the_readme_shows(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    video = Scene(size=(480, 640), seed=7)
    with VideoWriter(tmp_path / "clip.mp4", 25, (480, 640)) as writer:
        for index in range(20):
            writer.write(video.frame(index))
    monkeypatch.setattr("sys.argv", [str(QUICKSTART), str(tmp_path / "clip.mp4")])
    runpy.run_path(str(QUICKSTART))
    printed = capsys.readouterr().out
    (shown,) = [
        block for block in blocks("README.md", "") if "MAC share" in block and "error" in block
    ]
    number = r"(\d+(?:\.\d+)?)(%| ms|)"
    assert re.sub(number, "#", printed) == re.sub(number, "#", shown)
    for (a, unit), (b, _) in zip(
        re.findall(number, printed), re.findall(number, shown), strict=True
    ):
        if unit != " ms":
            assert float(a) == pytest.approx(float(b), abs=SLACK[unit])


@pytest.mark.filterwarnings("error")
def test_usage_runs(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile("\n".join(blocks("docs/usage.md", "python")), "docs/usage.md", "exec"), {})
    printed = capsys.readouterr().out
    assert "21 values within their thresholds" in printed
    (shown,) = [block for block in blocks("docs/usage.md", "") if "steps, 0 of them" in block]
    # the engine and its instruction set are this machine's
    assert any(line.startswith("engine ") for line in printed.splitlines())
    lines = [line for line in shown.splitlines()
             if line.strip() and line != " …" and not line.startswith("engine ")]  # fmt: skip
    assert [line for line in lines if line not in printed.splitlines()] == []


# ---------------------------------------------------- the claim of docs/papers.md, in numbers


class WholeNumbers(nn.Module):
    """Convolutions, a residual addition, activations and a max pool; all weights whole numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 4, 3, padding=1)
        self.second = nn.Conv2d(4, 4, 3, padding=1)
        self.pool = nn.MaxPool2d(2)
        self.last = nn.Conv2d(4, 3, 3, stride=2, padding=1)
        generator = torch.Generator().manual_seed(0)
        for weight in self.parameters():
            weight.data = torch.randint(-2, 3, weight.shape, generator=generator).float()

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x))
        x = F.relu(self.second(x) + x)
        return self.last(self.pool(x))


class Deltas:
    """The same network by propagated deltas, as docs/papers.md states the method."""

    def __init__(self, net: WholeNumbers, x: Tensor, thresholds: Mapping[str, float]) -> None:
        self.net, self.thresholds = net, thresholds
        self.total = {"input": x}
        self.sums: dict[str, Tensor] = {}
        self.withheld: dict[str, Tensor] = {}
        self.held_back = 0
        self._run(x, first=True)

    def _linear(self, name: str, delta: Tensor, first: bool) -> Tensor:
        conv: nn.Conv2d = getattr(self.net, name)
        bias = conv.bias if first else None
        return F.conv2d(delta, conv.weight, bias, conv.stride, conv.padding)

    def _gate(self, name: str, add: Tensor, f: Any, first: bool) -> Tensor:
        """Accumulate, apply f, truncate; returns the delta that is sent on."""
        if first:
            self.sums[name] = add
            self.total[name] = f(add)
            self.withheld[name] = torch.zeros_like(f(add))
            return self.total[name]
        before = f(self.sums[name])
        self.sums[name] = self.sums[name] + add
        candidate = f(self.sums[name]) - before + self.withheld[name]
        passes = candidate.abs().amax(1, keepdim=True) > self.thresholds[name]
        sent = torch.where(passes, candidate, 0.0)
        self.withheld[name] = candidate - sent
        self.held_back += int((self.withheld[name] != 0).sum())
        self.total[name] = self.total[name] + sent
        return sent

    def _run(self, delta: Tensor, first: bool) -> None:
        sent = self._gate("first", self._linear("first", delta, first), F.relu, first)
        sent = self._gate("second", self._linear("second", sent, first) + sent, F.relu, first)
        sent = self._gate("pool", sent, self.net.pool, first)
        out = self._linear("last", sent, first)
        self.total["last"] = out if first else self.total["last"] + out

    def step(self, x: Tensor) -> None:
        delta = x - self.total["input"]
        self.total["input"] = self.total["input"] + delta
        self._run(delta, first=False)


def published(session: Session) -> dict[str, Tensor]:
    """Give what is published of every value: name -> [1, C, H, W]."""
    state = frame_state(session)
    return {v.name: state.view(v.index, 0).permute(2, 0, 1)[None] for v in session.plan.owners}


@torch.no_grad()
def test_publishing_equals_propagating_deltas() -> None:
    """Whole numbers below 2**24 are exact in float32, so equal means equal."""
    net = WholeNumbers().eval()
    generator = torch.Generator().manual_seed(1)
    x = torch.randint(0, 8, (1, 2, 24, 32), generator=generator).float()
    # the maximum keeps norms whole; tenths keep them off the thresholds
    scales = {"first": 30.1, "second": 200.1, "pool": 300.1}
    profile = torchdelta.Profile({"input": 0.0}, scales, norm="max")
    fast = torchdelta.compile(net, x, tolerance=0.1, profile=profile, input_range=(0, 7))
    session = fast.session()
    session.step({"s": x})
    assert {v.name for v in fast.plan.owners if v.gated} == set(scales)
    deltas = Deltas(net, x, {name: 0.1 * scale for name, scale in scales.items()})
    differs = False
    for frame in range(12):
        x = x.clone()
        y, column = frame % 5 * 4, frame * 5 % 24
        patch = torch.randint(0, 8, (2, 5, 6), generator=generator).float()
        # every third change is a small one, which the gates hold back
        x[0, :, y : y + 5, column : column + 6] = patch if frame % 3 else patch.clamp(3, 4)
        session.step({"s": x})
        deltas.step(x)
        state = published(session)
        assert set(state) == set(deltas.total)
        for name, total in deltas.total.items():
            assert torch.equal(total, state[name]), (frame, name)
        differs |= not torch.equal(state["last"], net(x))
    # the gates did hold something back, or the test says nothing
    assert deltas.held_back > 0
    assert differs
