"""What a run did, in forms that people look at."""

from torchdelta.report.heat import heat_map

__all__ = ["heat_map"]
