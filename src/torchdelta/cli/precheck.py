"""What can be refused before PyTorch is there: names that stand for nothing, files in the way."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torchdelta.capture.names import check_model, check_weights
from torchdelta.cli.outputs import check_not_open, check_outputs
from torchdelta.runtime.profile import Profile
from torchdelta.video.names import files_of, resolve


def precheck(
    model: str,
    *,
    sources: Sequence[str] = (),
    weights: Path | None = None,
    profile: Path | None = None,
    outputs: Sequence[tuple[str, Path | None]] = (),
) -> None:
    """Refuse what cannot work, whatever the model and the frames are.

    outputs: what the user calls it ("--json"), and its path
    Raises: ModelError, SourceError, ProfileError, SinkError.
    """
    for source in sources:
        resolve(source)
    check_model(model)
    given = [(name, path) for name, path in outputs if path is not None]
    check_not_open(given)
    check_outputs(given, inputs_of(model, sources=sources, weights=weights, profile=profile))
    if weights is not None:
        check_weights(weights)
    if profile is not None:
        Profile.load(profile)


def inputs_of(
    model: str, *, sources: Sequence[str], weights: Path | None, profile: Path | None
) -> list[tuple[str, Path]]:
    """What a command reads, and must not write to; cameras are no files."""
    inputs = [("the source", path) for path in files_of(sources)]
    if model.endswith(".pt2"):
        inputs.append(("the model", Path(model)))
    if weights is not None:
        inputs.append(("the weights", weights))
    if profile is not None:
        inputs.append(("the profile", profile))
    return inputs
