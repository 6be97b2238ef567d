"""The demo: a synthetic scene with ground truth, a small network trained on it, and their run."""

DEMO_SEED = 7
"""The scene that the demo shows; training starts at TRAIN_SEEDS and never sees it."""

TRAIN_SEEDS = 10_000
"""First seed that training may use; all below are for tests and figures."""
