"""Measuring ours against the peers: one run, the same frames, the same threads (`bench`)."""
