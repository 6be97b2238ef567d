"""Run a cross-section of the tests with the oldest or the newest versions that pip may choose.

    python tools/other_versions.py oldest|newest

`oldest` takes every dependency at the lower bound that pyproject.toml gives, `newest` whatever pip
chooses, for the Python that this runs with. Each gets an environment of its own below build/ with
torchdelta installed as users get it, as a wheel. It prints what that environment holds, and takes
it away again, also after a failure.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SETS = ("oldest", "newest")
# a dependency as pyproject.toml names it: what has a name, extras and a lower bound
BOUNDED = re.compile(r"([A-Za-z0-9._-]+)(?:\[.*\])?>=([0-9.]+)")


@dataclass(frozen=True)
class Part:
    """Tests of one subject, in a process of their own; to find none of them is a failure."""

    name: str
    tests: tuple[str, ...]
    interpreted: bool = False


# a few minutes altogether: each subject on every engine that needs no GPU
PARTS = (
    Part(
        "capture and plans",
        (
            "tests/test_plan.py",
            "tests/test_api.py",
            "tests/test_api_capture.py",
            "tests/test_load.py",
        ),
    ),
    Part("sessions", ("tests/test_session.py",)),
    Part("operations", ("tests/test_ops.py", "-m", "versions")),
    Part("networks", ("tests/test_networks.py",)),
    Part("peers", ("tests/test_bench_peers.py",)),
    Part("video", ("tests/test_video.py", "tests/test_sink.py")),
    Part("command line", ("tests/test_cli.py",)),
    Part(
        "Triton's interpreter",
        (
            "tests/test_triton.py",
            "tests/test_triton_frames.py",
            "-m",
            "versions",
        ),
        interpreted=True,
    ),
)


def dependencies() -> list[str]:
    """List what pyproject.toml asks for, of all extras and to build; torchdelta itself left out."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        project = tomllib.load(file)
    extras = project["project"]["optional-dependencies"].values()
    found = [*project["build-system"]["requires"], *project["project"]["dependencies"]]
    found += [line for extra in extras for line in extra if not line.startswith("torchdelta[")]
    return list(dict.fromkeys(found))


def lower_bounds(requirements: Iterable[str]) -> dict[str, str]:
    """Give each requirement's lower bound by its name, which must be a version that exists.

    Raises: ValueError where there is none, or there are two.
    """
    found: dict[str, str] = {}
    for requirement in requirements:
        match = BOUNDED.match(requirement)
        if match is None:
            raise ValueError(f"{requirement!r} in pyproject.toml has no lower bound: name>=version")
        name, version = match.groups()
        if found.setdefault(name, version) != version:
            raise ValueError(f"pyproject.toml gives {name} two lower bounds")
    return found


@contextmanager
def environment(folder: Path) -> Iterator[Path]:
    """Make a virtual environment, and take it away whatever happens; gives its python."""
    shutil.rmtree(folder, ignore_errors=True)
    try:
        run([sys.executable, "-m", "venv", str(folder)])
        yield folder / "bin" / "python"
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def run(command: list[str], **env: str) -> None:
    """Run a command at the repository's root; interrupted, it ends all that the command started.

    Raises: subprocess.CalledProcessError where it fails.
    """
    # what is tested is what is installed
    kept = {name: text for name, text in os.environ.items() if name != "PYTHONPATH"}
    process = subprocess.Popen(command, cwd=ROOT, env={**kept, **env}, start_new_session=True)
    try:
        code = process.wait()
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise
    if code:
        raise subprocess.CalledProcessError(code, command)


def install(python: Path, constraints: Path | None) -> None:
    """Install torchdelta with all extras, built by the environment's own tools."""
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    pip += ["--no-compile", *(["--constraint", str(constraints)] if constraints else [])]
    run([*pip, "scikit-build-core", "cmake", "ninja"])
    tools = f"{python.parent}{os.pathsep}{os.environ['PATH']}"
    # kernels compile in a quarter of the time, and what they compute does not change
    quick = "--config-settings=cmake.define.CMAKE_CXX_FLAGS_RELEASE=-O0"
    run([*pip, "--no-build-isolation", quick, ".[dev]"], PATH=tools)


def failures(python: Path) -> list[str]:
    """Run all parts; name those that fail."""
    failed = []
    for part in PARTS:
        print(f"\n{part.name}: {' '.join(part.tests)}", flush=True)
        # what is not there must not be skipped
        env = {"TORCHDELTA_REQUIRE": "cpu,triton-interpreter"}
        if part.interpreted:
            env["TRITON_INTERPRET"] = "1"
        workers = ["-n", "2", "--dist", "loadgroup", "-p", "no:cacheprovider"]
        try:
            run([str(python), "-m", "pytest", *workers, *part.tests], **env)
        except subprocess.CalledProcessError:
            failed.append(part.name)
    return failed


def main(which: str) -> int:
    """Build, print, test; returns the exit code."""
    build = ROOT / "build"
    build.mkdir(exist_ok=True)
    constraints = None
    if which == "oldest":
        constraints = build / "oldest.txt"
        bounds = lower_bounds(dependencies())
        constraints.write_text("".join(f"{n}=={v}\n" for n, v in bounds.items()))
    with environment(build / f"venv-{which}") as python:
        print(f"installing the {which} versions into {python.parents[1]}", flush=True)
        install(python, constraints)
        print(f"\n{which} versions on Python {sys.version.split()[0]}:", flush=True)
        run([str(python), "-m", "pip", "--disable-pip-version-check", "list", "--format=freeze"])
        failed = failures(python)
    print(f"\n{which} versions: {'failed: ' + ', '.join(failed) if failed else 'all passed'}")
    return 1 if failed else 0


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1] not in SETS:
        sys.exit(__doc__)
    # the environment goes away then too
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))
    sys.exit(main(sys.argv[1]))
