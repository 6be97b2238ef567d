"""What the values of pictures of more than 8 bits stand for, for all sources of a run."""

from __future__ import annotations

from collections.abc import Sequence

from torchdelta.errors import SourceError
from torchdelta.video.pixels import Range
from torchdelta.video.source import Source


def common_range(sources: Sequence[Source], asked: Range | None) -> Range | None:
    """Give all sources of more than 8 bits one range of values; None where there are none.

    asked: by the user; default: from the least to the largest value of their first frames
    Raises SourceError where a range was asked for and no source has more than 8 bits.
    """
    deep = [source for source in sources if source.value_range is not None]
    if not deep:
        if asked is not None:
            names = ", ".join(source.name for source in sources)
            raise SourceError(
                f"--range is for pictures of more than 8 bits; {names}: 8 bits, which are taken as "
                "0..255; leave it out"
            )
        return None
    ranges = [source.value_range for source in deep if source.value_range is not None]
    limits = asked or (min(low for low, _ in ranges), max(high for _, high in ranges))
    for source in deep:
        source.value_range = limits
    return limits


def range_note(limits: Range | None, asked: Range | None) -> str | None:
    """Say what a range that nobody asked for means; None where there is nothing to say."""
    if limits is None or asked is not None:
        return None
    return (
        f"values {limits[0]:g} to {limits[1]:g}, the least and the largest of the first frame, are "
        "taken as the model's full range; --range LO,HI sets another"
    )
