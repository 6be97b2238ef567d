"""From a loaded model to a compiled one, the same for every command."""

from __future__ import annotations

from pathlib import Path

import torch

import torchdelta
from torchdelta import tasks
from torchdelta.api import CompiledModel
from torchdelta.capture.load import LoadedModel
from torchdelta.capture.prepare import prepare_untrained
from torchdelta.cli.options import Dtype, Engine, Task
from torchdelta.video.pixels import Frame

TASKS: dict[Task, tasks.Task | None] = {
    Task.none: None, Task.classify: "classify", Task.segment: "segment", Task.image: "image",
}  # fmt: skip
# frames on which an untrained network's batch norms are measured
CALIBRATION_FRAMES = 6


def compile_loaded(
    loaded: LoadedModel,
    frames: Frame,
    *,
    tolerance: float,
    engine: Engine,
    dtype: Dtype,
    profile: Path | None,
    task: Task = Task.none,
) -> CompiledModel:
    """Compile for the first frame; a network without weights is prepared on all of them.

    loaded: its model is prepared and moved to the device in place
    frames: [N, H, W, C] uint8, or float32 in the model's input range
    """
    if not loaded.has_weights:
        prepare_untrained(loaded.model, loaded.model_input(frames))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    example = torch.from_numpy(frames[:1]).permute(0, 3, 1, 2).contiguous()
    return torchdelta.compile(
        loaded.model.to(device),
        example.to(device),
        tolerance=tolerance,
        engine=engine.value,
        dtype=dtype.value,
        profile=profile,
        input_range=loaded.input_range,
        mean=loaded.mean,
        std=loaded.std,
        color=loaded.color,
        task=TASKS[task],
        labels=None if task is Task.none else loaded.labels,
    )
