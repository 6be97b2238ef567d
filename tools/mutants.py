"""Plant one fault at a time in a copy of the sources; each must fail a test.

    python tools/mutants.py [NAME ...]

A mutant that no test notices, or that no longer applies to the sources, is an error. Later parts of
the project add their faults to `MUTANTS`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ENGINE = "engines/torch_engine.py"
PYTEST_TESTS_FAILED = 1


@dataclass(frozen=True)
class Mutant:
    """One fault: in `file` (below src/torchdelta) `old` becomes `new`; `tests` must notice."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


OPS = ("tests/test_ops.py", "-k", "test_op and (conv-3x3 or conv-1x1)")
MUTANTS = [
    Mutant("footprint one pixel short", "ops/base.py",
           "for t in range(self.kernel):\n                line",
           "for t in range(max(1, self.kernel - 1)):\n                line",
           ("tests/test_ops.py", "-k", "footprint and conv-3x3")),
    Mutant("publish skipped", ENGINE,
           "stored.flatten(0, 1).index_copy_(0, where, rows)", "pass", OPS),
    Mutant("mask not cleared", ENGINE,
           "mask = torch.zeros(active.numel()", "mask = torch.ones(active.numel()",
           ("tests/test_session.py", "-k", "change_masks")),
    Mutant("join without reset", "runtime/session.py",
           "self._whole.add(stream)\n        self._stats", "self._stats",
           ("tests/test_session.py", "-k", "taken_over or join")),
    Mutant("threshold ignored", ENGINE,
           "value_gate(rows, old, gate.threshold,", "value_gate(rows, old, 0.0,",
           ("tests/test_gate.py", "-k", "groups_that_moved")),
    Mutant("threshold far too large", "runtime/gate.py",
           "self.tolerance * self._multiplier[v.index] * known",
           "3 * self.tolerance * self._multiplier[v.index] * known",
           ("tests/test_gate.py", "-k", "multiplier")),
    Mutant("stale residual", ENGINE,
           "zip(step.inputs, step.footprints, strict=True)",
           "zip(step.inputs[: step.arity], step.footprints, strict=False)",
           ("tests/test_networks.py", "-k", "resnet18")),
    Mutant("wrong cat offset", "runtime/state.py",
           "buffer.narrow(2, v.offset, v.channels)",
           "buffer.narrow(2, max(0, v.offset - 1), v.channels)",
           ("tests/test_ops.py", "-k", "test_op and cat")),
    Mutant("wrong stride offset", ENGINE,
           "first = tile * side * step // op.pitch[axis] + offset",
           "first = tile * side * step // op.pitch[axis] + offset + step - 1",
           ("tests/test_ops.py", "-k", "test_op and s2")),
    Mutant("bias dropped", "ops/conv.py",
           'F.linear(x, weights["weight"].flatten(1), weights.get("bias"))',
           'F.linear(x, weights["weight"].flatten(1))', OPS),
    Mutant("first-frame flag shared by streams", "runtime/session.py",
           "self._whole -= set(frames)", "self._whole.clear()",
           ("tests/test_session.py", "-k", "flag")),
    Mutant("NaN does not publish", "ops/gate.py",
           "return ~(group_norm(new.float() - stored.float(), norm, group) <= threshold)",
           "return group_norm(new.float() - stored.float(), norm, group) > threshold",
           ("tests/test_gate.py", "-k", "nan")),
    Mutant("padding of a max pool read as 0", "ops/pool.py",
           'return float("-inf")\n\n    def full', "return 0.0\n\n    def full",
           ("tests/test_ops.py", "-k", "max_pools")),
    Mutant("average over the wrong count", "ops/pool.py",
           "return (begin + k).clamp(max=n_in) - begin.clamp(min=0)",
           "return (begin + k).clamp(max=n_in) - begin",
           ("tests/test_ops.py", "-k", "avgpool-nopad")),
    Mutant("input gate without dilation", "ops/gate.py",
           "return Axis(w, w, 3, pad=1).spread(Axis(h, h, 3, pad=1).spread(hot[0, 0], 0), 1)",
           "return hot[0, 0]",
           ("tests/test_gate.py", "-k", "dilates")),
    Mutant("refresh keeps old scales", "runtime/session.py",
           "for stream in whole:\n            self._thresholds.start",
           "for stream in ():\n            self._thresholds.start",
           ("tests/test_gate.py", "-k", "black_first")),
    Mutant("refused frame takes a slot", "runtime/session.py",
           "newcomers = [s for s in ready if", "newcomers = [s for s in frames if",
           ("tests/test_session.py", "-k", "bad_first")),
    Mutant("slots not aligned alike", "runtime/state.py",
           "padded = -(-per_slot // unit) * unit", "padded = per_slot",
           ("tests/test_session.py", "-k", "aligned_alike")),
]  # fmt: skip


def run_tests(source: Path, tests: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
    """Run tests against the package in `source`."""
    env = {**os.environ, "PYTHONPATH": str(source), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)


def judge(mutant: Mutant, folder: Path) -> str | None:
    """Plant a fault and run its tests; returns what is wrong, or None where it was noticed."""
    source = folder / "src"
    shutil.copytree(ROOT / "src", source, ignore=shutil.ignore_patterns("__pycache__"))
    path = source / "torchdelta" / mutant.file
    text = path.read_text(encoding="utf-8")
    if text.count(mutant.old) != 1:
        return f"applies {text.count(mutant.old)} times to {mutant.file}, expected once"
    path.write_text(text.replace(mutant.old, mutant.new), encoding="utf-8")
    done = run_tests(source, mutant.tests)
    if done.returncode == 0:
        return "survived: no test noticed"
    if done.returncode != PYTEST_TESTS_FAILED:
        return f"pytest exited with {done.returncode}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
    return None


def main(names: list[str]) -> int:
    """Run the mutants named, or all; returns the exit code."""
    chosen = [m for m in MUTANTS if not names or m.name in names]
    if not chosen:
        print(f"no mutant of that name; there are: {', '.join(m.name for m in MUTANTS)}")
        return 2
    for tests in dict.fromkeys(m.tests for m in chosen):
        done = run_tests(ROOT / "src", tests)
        if done.returncode:
            print(f"the tests fail without a fault: {' '.join(tests)}\n{done.stdout[-3000:]}")
            return 1
    survivors = 0
    for mutant in chosen:
        with tempfile.TemporaryDirectory() as folder:
            wrong = judge(mutant, Path(folder))
        survivors += wrong is not None
        print(f"{'FAILED' if wrong else 'ok':7}{mutant.name}{': ' + wrong if wrong else ''}",
              flush=True)  # fmt: skip
    print(f"{len(chosen) - survivors} passed, {survivors} failed")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
