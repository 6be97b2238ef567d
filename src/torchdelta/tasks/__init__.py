"""Tails: what turns a network's output into a result, outside the plan."""

from torchdelta.tasks.tail import Agreement, Reading, Tail, Task, make_tail

__all__ = ["Agreement", "Reading", "Tail", "Task", "make_tail"]
