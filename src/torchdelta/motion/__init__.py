"""Moving cameras: how they moved, and frames brought into a window of a fixed world."""
