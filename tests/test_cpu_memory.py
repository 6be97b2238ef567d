"""The cpu engine's memory: state, weights, scratch, and where it runs out."""

import mmap
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import torchdelta
from cpu_cases import BEST, CPU, KINDS, history
from support import ENGINE_NAMES, compiled, make_engine
from torchdelta.engines.cpu import CpuEngine
from torchdelta.runtime.inspect import frame_state

if "cpu" not in ENGINE_NAMES:
    # test_every_engine_is_tested says whether that may be
    pytest.skip(CpuEngine.usable()[1], allow_module_level=True)


def test_a_map_too_large_for_a_list_of_pixels_is_left_to_pytorch() -> None:
    class Long(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 2, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x).reshape(x.shape[0], 1, 2, 300 * 220)

    model, x = Long().eval(), torch.rand(1, 1, 300, 220)
    fast = torchdelta.compile(model, x, tolerance=0, input_range=(0, 1), engine="cpu")
    (reason,) = fast.session().engine.foreign_steps().values()
    assert reason == "its map is larger than 65535 px"
    for _ in range(2):
        x[0, 0, 290:, 200:] = torch.rand(10, 20)
        with torch.no_grad():
            assert torchdelta.relative_error(fast(x), model(x)) < 1e-5


def test_state_is_one_piece_of_memory_on_huge_pages() -> None:
    """The kernel is asked for them (it need not have any); nothing is rounded up to whole ones."""
    fast = torchdelta.compile(
        nn.Conv2d(3, 64, 3, padding=1).eval(), torch.rand(1, 3, 130, 130), input_range=(0, 1)
    )
    session = fast.session(slots=2)
    plan = fast.plan
    assert session.state_bytes == 2 * plan.state_bytes(torch.float32)
    buffers = frame_state(session).buffers
    first = min(b.data_ptr() for b in buffers)
    span = max(b.data_ptr() + b.numel() * b.element_size() for b in buffers) - first
    assert span <= session.state_bytes + 2 * 64 * len(plan.buffers)
    wanted = hasattr(mmap, "MADV_HUGEPAGE") and Path("/sys/kernel/mm/transparent_hugepage").exists()
    if not wanted:
        pytest.skip("this system has no transparent huge pages")
    assert "hg" in mapping_flags(first)


def mapping_flags(address: int) -> list[str]:
    """Flags of the mapping that holds an address, as /proc/self/smaps has them."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        head = line.split()
        if "-" in head[0] and not head[0].endswith(":"):
            begin, end = (int(x, 16) for x in head[0].split("-"))
            inside = begin <= address < end
        elif inside and head[0] == "VmFlags:":
            return head[1:]
    raise AssertionError("no mapping holds the address")


def test_weight_and_scratch_bytes() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 64, 3, padding=1), nn.Conv2d(64, 128, 3, padding=1)).eval()
    fast = torchdelta.compile(model, torch.rand(1, 3, 30, 40), input_range=(0, 1), engine="cpu")
    engine = make_engine(BEST, fast.plan, CPU, torch.float32)
    weights = sum(p.numel() * 4 for p in model.parameters())
    # whole vectors of channels, and a cache line to align to
    assert weights <= engine.weight_bytes <= 1.1 * weights + 4096
    assert engine.scratch_bytes == 0
    session = torchdelta.Session(engine, 1, 0.0, torchdelta.Profile())
    frames = history((3, 30, 40), 5, [*KINDS, "all", "all"])
    sizes = []
    for x in frames:
        session.step({"s": x})
        sizes.append(engine.scratch_bytes)
    # masks and lists of a whole frame are there from the first on, and nearly nothing beside them
    assert session.state_bytes == fast.plan.state_bytes(torch.float32)
    assert 0 < sizes[0] < 0.2 * session.state_bytes
    assert sizes[-1] == sizes[0]
    # the plan's weights and the packed ones are all that there is
    assert not engine._oracle._steps


def test_only_foreign_steps_have_weights_in_pytorch() -> None:
    fast, _ = compiled("topk")
    engine = make_engine(BEST, fast.plan, CPU, torch.float32)
    names = [fast.plan.steps[i].name for i in engine._oracle._steps]
    assert names
    assert names == list(engine.foreign_steps())


MEMORY_LIMITED = """
import ctypes, resource
from pathlib import Path
import numpy as np, torch, torchdelta
from torchdelta.motion import warp as warping
from torchdelta.motion.warp import warp

torch.set_num_threads(2)
small = torch.rand(1, 1, 40, 50)
torchdelta.compile(torch.nn.Conv2d(1, 1, 1).eval(), small, engine="cpu")(small)
warp(np.zeros((40, 50, 3), np.uint8), np.diag([1, 1.1, 1]), (40, 50))


libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p


def limited(function):
    # no new memory from the system, and no piece of 64 KiB left in the heap
    def call(*args, **options):
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize(), -1))
        taken = []
        while piece := libc.malloc(1 << 16):
            taken.append(ctypes.c_void_p(piece))
        try:
            return function(*args, **options)
        finally:
            for piece in taken:
                libc.free(piece)
            resource.setrlimit(resource.RLIMIT_AS, (-1, -1))

    return call


def out_of_memory(function, error):
    # the first thread may take all the work, and it has its memory
    for _ in range(100):
        try:
            function()
        except error as raised:
            return str(raised)
    raise AssertionError("memory for everything")


wide = torch.nn.Conv2d(1, 1, 1).eval()
x = torch.rand(1, 1, 96, 20000)
fast = torchdelta.compile(wide, x, engine="cpu", tolerance=0, input_range=(0, 1))
session = fast.session()
torch.set_num_threads(1)
session.step({"s": x})
torch.set_num_threads(2)
program = session.engine._program
step = program.step
program.step = limited(step)
x = 1 - x
print(out_of_memory(lambda: session.step({"s": x}), MemoryError))
program.step = step
print(torchdelta.relative_error(session.step({"s": x})["s"].output, wide(x).detach()) < 1e-5)

warping._run_native = limited(warping._run_native)
picture, size = np.zeros((2, 2, 3), np.uint8), (64, 200000)
print(out_of_memory(lambda: warp(picture, np.diag([1, 1.1, 1]), size), torchdelta.EngineError))
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="no /proc")
def test_memory_that_runs_out_in_a_thread_is_an_error() -> None:
    """It must not end the process; the stream starts anew."""
    env = {**os.environ, "MALLOC_ARENA_MAX": "1"}
    done = subprocess.run(
        [sys.executable, "-c", MEMORY_LIMITED], capture_output=True, text=True, env=env
    )
    assert done.returncode == 0, done.stderr[-2000:]
    step, right, warped = done.stdout.splitlines()
    assert step == "the native engine ran out of memory"
    assert right == "True"
    assert warped.endswith("memory")
