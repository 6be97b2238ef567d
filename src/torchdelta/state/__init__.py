"""What streams leave behind between frames: the values' buffers, with thresholds and rings."""

from torchdelta.state.state import State

__all__ = ["State"]
