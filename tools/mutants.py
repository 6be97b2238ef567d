"""Plant one fault at a time in a copy of the sources; each must fail a test.

    python tools/mutants.py [--all] [NAME ...]

The faults stand beside the tests, in `tests/mutants_*.py`. Without names it plants the few that are
marked so, about one for each invariant and engine, and each of these must be noticed by another
test first: two that the same test notices would count as one. `--all` plants all. A mutant that no
test notices, or that no longer applies to the sources, is an error. Faults of the native engine are
compiled, without much optimisation, into a library that takes the place of the copy's.
"""

from __future__ import annotations

import importlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from mutant import Mutant  # noqa: E402

PYTEST_TESTS_FAILED = 1
LIBRARY = "src/torchdelta/engines/cpu/libtorchdelta_native.so"
# a native fault may keep the engine waiting for ever
TIMEOUT_S = 600
# what CMake left in native/inplace holds absolute paths
IGNORED = shutil.ignore_patterns("__pycache__", "CMakeCache.txt", "CMakeFiles", ".ninja*", ".cmake")


def all_mutants() -> list[Mutant]:
    """List the faults of all subjects."""
    modules = [importlib.import_module(p.stem) for p in sorted(ROOT.glob("tests/mutants_*.py"))]
    return [mutant for module in modules for mutant in module.MUTANTS]


class Survived(Exception):
    """What is wrong with a mutant, or with the tests without it."""


class Sources:
    """A copy of what is tested; its native library is built when a native fault wants it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("src", "native"):
            shutil.copytree(ROOT / name, folder / name, ignore=IGNORED)

    def build(self) -> None:
        """Compile the library. Raises: SystemExit with what the compiler says."""
        build = self.folder / "build"
        path = os.pathsep.join((os.environ.get("PATH", ""), str(Path(sys.executable).parent)))
        steps = [["cmake", "--build", str(build)]]
        if not build.exists():
            flags = ("-DCMAKE_BUILD_TYPE=Quick", "-DCMAKE_CXX_FLAGS_QUICK=-O1")
            native = str(self.folder / "native")
            steps.insert(0, ["cmake", "-S", native, "-B", str(build), "-G", "Ninja", *flags])
        for step in steps:
            done = subprocess.run(
                step, env={**os.environ, "PATH": path}, capture_output=True, text=True
            )
            if done.returncode:
                raise SystemExit(f"{' '.join(step)}:\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
        shutil.copy2(build / Path(LIBRARY).name, self.folder / LIBRARY)

    def test(
        self, tests: tuple[str, ...], names: str, *, interpreted: bool
    ) -> subprocess.CompletedProcess[str]:
        """Run tests, named as a mutant names them, against the copy, up to the first that fails."""
        env = {**os.environ, "PYTHONPATH": str(self.folder / "src"), "OMP_NUM_THREADS": "1"}
        if interpreted:
            env["TRITON_INTERPRET"] = "1"
        files = [f"tests/{name}" for name in tests]
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *files]
        return subprocess.run(
            [*command, "-k", names], cwd=ROOT, env=env, capture_output=True, text=True,
            timeout=TIMEOUT_S,
        )  # fmt: skip


def noticed_by(mutant: Mutant, sources: Sources) -> str:
    """Plant a fault, run its tests, mend it; returns the test that noticed, or how it ended.

    Raises: Survived where none did, or where the fault cannot be planted or compiled.
    """
    path = sources.folder / mutant.path
    text = path.read_text(encoding="utf-8")
    try:
        path.write_text(mutant.planted(text), encoding="utf-8")
        if mutant.native:
            sources.build()
        done = sources.test(mutant.tests, mutant.names, interpreted=mutant.interpreted)
    except (LookupError, SystemExit) as error:
        raise Survived(str(error)) from None
    except subprocess.TimeoutExpired:
        return "a test that never ended"
    finally:
        path.write_text(text, encoding="utf-8")
    if done.returncode == 0:
        raise Survived("survived: no test noticed")
    if mutant.native and done.returncode < 0:
        return "a crash"
    if done.returncode != PYTEST_TESTS_FAILED:
        raise Survived(
            f"pytest exited with {done.returncode}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
        )
    found = re.search(r"^(?:FAILED|ERROR) (.+?)(?: - |$)", done.stdout, flags=re.M)
    return found[1].removeprefix("tests/") if found else "pytest"


def judge(chosen: list[Mutant], folder: Path, *, native: bool) -> dict[str, str]:
    """Judge mutants of one kind, whose tests must pass without them; who noticed each, by name."""
    sources = Sources(folder)
    if native:
        sources.build()
    noticed: dict[str, str] = {}
    files: dict[tuple[tuple[str, ...], bool], set[str]] = {}
    for m in chosen:
        files.setdefault((m.tests, m.interpreted), set()).add(m.names)
    for (tests, interpreted), names in files.items():
        every = "" if "" in names else " or ".join(f"({name})" for name in sorted(names))
        done = sources.test(tests, every, interpreted=interpreted)
        if done.returncode:
            print(f"{tests} -k {every!r} fail without a fault:\n{done.stdout[-3000:]}")
            return noticed
    for mutant in chosen:
        try:
            noticed[mutant.name] = noticed_by(mutant, sources)
            print(f"ok     {mutant.name}: {noticed[mutant.name]}", flush=True)
        except Survived as wrong:
            print(f"FAILED {mutant.name}: {wrong}", flush=True)
    return noticed


def main(arguments: list[str]) -> int:
    """Run the mutants named, the few, or all; returns the exit code."""
    mutants, everyone = all_mutants(), "--all" in arguments
    names = [name for name in arguments if name != "--all"]
    few = not names and not everyone
    chosen = [m for m in mutants if everyone or m.name in names or (few and m.few)]
    if not chosen or len(chosen) < len(names):
        print(f"no mutant of that name; there are: {', '.join(m.name for m in mutants)}")
        return 2
    noticed: dict[str, str] = {}
    for native in (False, True):
        kind = [m for m in chosen if m.native == native]
        if kind:
            with tempfile.TemporaryDirectory() as folder:
                noticed |= judge(kind, Path(folder), native=native)
    by_test: dict[str, list[str]] = {}
    for name, test in noticed.items():
        by_test.setdefault(test, []).append(name)
    alike = {test: who for test, who in by_test.items() if "::" in test and len(who) > 1}
    for test, who in alike.items() if few else ():
        print(f"FAILED {test} notices {len(who)} of the few: {', '.join(who)}")
    failed = len(chosen) - len(noticed)
    print(f"{len(noticed)} noticed, by {len(by_test)} tests; {failed} failed")
    return 1 if failed or (few and alike) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
