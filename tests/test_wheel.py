"""The package as users get it: a wheel with the native library, and one without a compiler."""

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from conftest import require
from support import LONG
from torchdelta import native_lib

ROOT = Path(__file__).resolve().parents[1]
LIBRARY = "torchdelta/engines/cpu/libtorchdelta_native.so"
BUILD_TIMEOUT_S = 600
# builds take all cores: one after the other
pytestmark = pytest.mark.xdist_group("wheel")

SMOKE = """
import sys
from pathlib import Path

import torch
from torch import nn

import torchdelta

folder, engine = Path(sys.argv[1]).resolve(), sys.argv[2]
assert Path(torchdelta.__file__).resolve().is_relative_to(folder), torchdelta.__file__
torch.manual_seed(0)
model = nn.Sequential(nn.Conv2d(3, 18, 3, padding=1), nn.ReLU(), nn.Conv2d(18, 5, 1)).eval()
frame = torch.rand(1, 3, 23, 31)
fast = torchdelta.compile(model, frame, tolerance=0, input_range=(0, 1), engine=engine)
for shift in range(3):
    frame[:, :, 4 + shift, 7] = torch.rand(1, 3)
    with torch.no_grad():
        error = torchdelta.relative_error(fast(frame), model(frame))
    assert error < 1e-5, error
print(fast.engine, fast.engine_reason)
"""


# as `torchdelta env`, whose script stands beside another Python's
ENV = "import sys; sys.argv[1:] = ['env']; from torchdelta.cli import main; main()"


def pip(*args: str, **env: str) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *args]
    done = subprocess.run(
        command, env={**os.environ, **env}, capture_output=True, text=True, timeout=BUILD_TIMEOUT_S
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


def build_wheel(folder: Path, **env: str) -> Path:
    """Build a wheel into a folder, with the objects in its `objects`."""
    require("scikit_build_core")
    options = ["--no-build-isolation", "--no-deps", "--wheel-dir", str(folder)]
    options.append(f"--config-settings=build-dir={folder / 'objects'}")
    if not LONG:
        # kernels compile in a quarter of the time, and what they compute does not change
        options.append("--config-settings=cmake.define.CMAKE_CXX_FLAGS_RELEASE=-O0")
    pip("wheel", *options, str(ROOT), **env)
    (wheel,) = folder.glob("*.whl")
    return wheel


def run_installed(wheel: Path, folder: Path, code: str, *args: str) -> str:
    """Install a wheel into an empty folder and run code that sees it before the sources."""
    target = folder / "site"
    if not target.exists():
        pip("install", "--no-deps", "--target", str(target), str(wheel))
    env = {**os.environ, "PYTHONPATH": str(target)}
    done = subprocess.run(
        [sys.executable, "-c", code, str(target), *args],
        cwd=folder, env=env, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(tmp_path_factory.mktemp("wheel"))


def defined(file: Path, *options: str) -> list[str]:
    """Name what an object or a library defines for others."""
    command = ["nm", "--extern-only", "--defined-only", "--demangle", *options, str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return [line.split(maxsplit=2)[2] for line in done.stdout.splitlines()]


def test_code_of_one_instruction_set_is_called_by_that_one_alone(
    wheel: Path, tmp_path: Path
) -> None:
    """The linker keeps one copy of a template: it must not be one that only some CPUs run."""
    objects = {p.stem.removeprefix("isa_"): p for p in wheel.parent.rglob("isa_*.o")}
    assert set(native_lib.isas()) <= set(objects)
    for isa, file in objects.items():
        assert defined(file) == [f"td::kernels_{isa}(bool)"]
    zipfile.ZipFile(wheel).extract(LIBRARY, tmp_path)
    exported = defined(tmp_path / LIBRARY, "--dynamic")
    assert "td_step" in exported
    assert [name for name in exported if not name.startswith("td_")] == []


def test_wheel_holds_all_and_runs_on_the_cpu_engine(wheel: Path, tmp_path: Path) -> None:
    """Package, library and license; installed, it runs."""
    assert wheel.name.startswith("torchdelta-")
    assert "-py3-none-" in wheel.name
    assert not wheel.name.endswith("-any.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert names.count(LIBRARY) == 1
    info = next(n for n in names if n.endswith("/METADATA")).removesuffix("/METADATA")
    assert {"torchdelta/demo/demo_net.pt", f"{info}/entry_points.txt",
            f"{info}/licenses/LICENSE"} <= set(names)  # fmt: skip
    assert {n.split("/")[0] for n in names} == {"torchdelta", info}
    assert run_installed(wheel, tmp_path, SMOKE, "cpu").startswith("cpu ")


def test_without_a_compiler_the_torch_engine_is_left(tmp_path: Path) -> None:
    wheel = build_wheel(tmp_path, CXX="/bin/false")
    assert wheel.name.endswith("-py3-none-any.whl")
    assert LIBRARY not in zipfile.ZipFile(wheel).namelist()
    said = run_installed(wheel, tmp_path, SMOKE, "auto")
    assert said.startswith("torch ")
    assert "compiler" in said
    said = " ".join(run_installed(wheel, tmp_path, ENV).split())
    assert "the native library was not built when torchdelta was installed" in said
    assert "instruction sets │ none" in said


def test_sdist_holds_the_native_sources(tmp_path: Path) -> None:
    require("scikit_build_core")
    code = "import sys, scikit_build_core.build as b; print(b.build_sdist(sys.argv[1]))"
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        names = {n.partition("/")[2] for n in tar.getnames()}
    sources = {str(p.relative_to(ROOT)) for p in (ROOT / "native" / "src").rglob("*.*")}
    sources |= {"native/CMakeLists.txt", "native/exports.map", "LICENSE", "pyproject.toml"}
    assert sources <= names
    assert not [n for n in names if n.endswith((".so", ".o"))]
