"""`torchdelta env`: its help."""

from __future__ import annotations

from torchdelta.cli.guard import guarded
from torchdelta.console import console


@guarded
def env() -> None:
    """Print versions, devices, and which engines work here; for the others, why not."""
    from torchdelta.cli.info import environment

    environment(console())
