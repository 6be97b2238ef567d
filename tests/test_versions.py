"""What is promised, pinned and tested: pyproject.toml, constraints.txt, tools/other_versions.py."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from types import ModuleType

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from support import load_file

ROOT = Path(__file__).resolve().parents[1]
PIN = re.compile(r"([A-Za-z0-9._-]+)==([0-9][A-Za-z0-9.]*)")


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    return load_file(ROOT / "tools/other_versions.py")


@pytest.fixture(scope="module")
def pins() -> dict[str, Version]:
    """Read the constraints: exact versions alone, no address, no path."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    found = {}
    for line in lines:
        if line.startswith("#"):
            continue
        match = PIN.fullmatch(line)
        assert match, f"constraints.txt: {line!r} is not name==version"
        name = canonicalize_name(match[1])
        assert name not in found, f"constraints.txt names {name} twice"
        found[name] = Version(match[2])
    return found


def test_pins_lie_in_the_promised_ranges(tool: ModuleType, pins: dict[str, Version]) -> None:
    for line in tool.dependencies():
        wanted = Requirement(line)
        name = canonicalize_name(wanted.name)
        assert name in pins, f"{line} of pyproject.toml has no line in constraints.txt"
        assert wanted.specifier.contains(pins[name]), f"{line}, but {name}=={pins[name]} is pinned"


def test_everything_that_comes_along_is_pinned(tool: ModuleType, pins: dict[str, Version]) -> None:
    """What dependencies depend on, too: else `make` installs what nobody tried."""
    open_, seen = [Requirement(line) for line in tool.dependencies()], set()
    while open_:
        wanted = open_.pop()
        name = canonicalize_name(wanted.name)
        if (name, frozenset(wanted.extras)) in seen:
            continue
        seen.add((name, frozenset(wanted.extras)))
        assert name in pins, f"{name} comes along and has no line in constraints.txt"
        try:
            needs = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        for need in map(Requirement, needs):
            extras = [{"extra": extra} for extra in ("", *wanted.extras)]
            if need.marker is None or any(need.marker.evaluate(extra) for extra in extras):
                open_.append(need)
    assert len(seen) > 30


def test_lower_bounds_are_what_is_installed_as_oldest(tool: ModuleType) -> None:
    bounds = tool.lower_bounds(tool.dependencies())
    assert {"torch", "numpy", "av", "typer", "timm", "onnxruntime", "pytest"} <= set(bounds)
    assert bounds["torch"] == "2.11"
    for line in tool.dependencies():
        wanted = Requirement(line)
        assert wanted.specifier.contains(bounds[wanted.name])
    assert tool.lower_bounds(["a>=1.2,<3", "b[c]>=4"]) == {"a": "1.2", "b": "4"}
    with pytest.raises(ValueError, match=r"'a' in pyproject[.]toml has no lower bound"):
        tool.lower_bounds(["a"])
    with pytest.raises(ValueError, match="two lower bounds"):
        tool.lower_bounds(["a>=1", "a>=2"])


@pytest.mark.parametrize("error", [None, KeyboardInterrupt, subprocess.CalledProcessError(1, "x")])
def test_an_environment_goes_away_whatever_happens(
    tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException | None
) -> None:
    monkeypatch.setattr(tool, "run", lambda command: Path(command[-1]).mkdir())
    folder = tmp_path / "venv"
    folder.mkdir()
    (folder / "left over").touch()

    def use() -> None:
        with tool.environment(folder) as python:
            assert python == folder / "bin" / "python"
            assert list(folder.iterdir()) == []
            if error is not None:
                raise error

    if error is None:
        use()
    else:
        with pytest.raises(error if isinstance(error, type) else type(error)):
            use()
    assert not folder.exists()


def test_an_interrupted_command_leaves_no_process(
    tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Workers of the tests would go on in an environment that is being taken away."""
    started = tmp_path / "started"
    child = f"import os, time; open({str(started)!r}, 'w').write(str(os.getpid())); time.sleep(600)"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"

    def wait(self: subprocess.Popen[bytes], *args: object, **how: object) -> int:
        monkeypatch.undo()
        while not started.exists() or not started.read_text():
            time.sleep(0.01)
        raise KeyboardInterrupt

    monkeypatch.setattr(subprocess.Popen, "wait", wait)
    with pytest.raises(KeyboardInterrupt):
        tool.run([sys.executable, "-c", parent])
    status = Path(f"/proc/{started.read_text()}/stat")
    for _ in range(1000):
        if not status.exists() or status.read_text().rpartition(")")[2].split()[0] == "Z":
            return
        time.sleep(0.01)
    pytest.fail("what the command started goes on")


def test_a_part_that_fails_is_named_and_the_others_run(
    tool: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = []

    def run(command: list[str], **env: str) -> None:
        ran.append((command, env))
        if "tests/test_video.py" in command:
            raise subprocess.CalledProcessError(5, command)

    monkeypatch.setattr(tool, "run", run)
    assert tool.failures(Path("python")) == ["video"]
    assert len(ran) == len(tool.PARTS)
    interpreted = [command for command, env in ran if env.get("TRITON_INTERPRET") == "1"]
    assert len(interpreted) == 1
    assert "tests/test_triton.py" in interpreted[0]
    files = [text for command, _ in ran for text in command if text.startswith("tests/")]
    assert all((ROOT / file).is_file() for file in files)


def test_classifiers_name_pythons_that_are_allowed() -> None:
    with (ROOT / "pyproject.toml").open("rb") as file:
        project = tomllib.load(file)["project"]
    named = [c.rpartition(" ")[2] for c in project["classifiers"] if ":: Python :: 3." in c]
    assert named
    allowed = Requirement(f"python{project['requires-python']}").specifier
    assert all(allowed.contains(version) for version in named)
