"""Sessions, streams, their state, thresholds and statistics."""
