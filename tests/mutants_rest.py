"""Faults of the command line and what it shows."""

from mutant import Mutant

MUTANTS = [
    Mutant(
        "summary without new references", "cli/track.py", "Track.add",
        'self.reasons[stats.reason or ""] += 1',
        'self.reasons[stats.reason or ""] += 1\n            return',
        tests=("test_cli.py",), names="new_references",
    ),
    Mutant(
        "mosaic scrolls the other way", "cli/panels.py", "Mosaic.add",
        "_scrolled(self._canvas, dy, dx)", "_scrolled(self._canvas, -dy, -dx)",
        tests=("test_panels.py",), names="mosaic",
    ),
    Mutant(
        "heat in the window's place", "report/plot.py", "recomputed",
        "heat = result.to_frame_map(torch.from_numpy(heat)).numpy()", "pass",
        tests=("test_panels.py",), names="followed",
    ),
]  # fmt: skip
