"""From an exported ATen graph to drafts: the table of lowering rules, and the way in."""

from __future__ import annotations

import torch
from torch.export import ExportedProgram

from torchdelta.plan.draft import DraftGraph
from torchdelta.plan.lowering import Lowering
from torchdelta.plan.rules_compute import COMPUTE, unary
from torchdelta.plan.rules_move import MOVE


def lower(program: ExportedProgram, weight_dtype: torch.dtype = torch.float32) -> DraftGraph:
    """Lower an exported program of one input tensor, for a batch of one.

    Raises: CaptureError with all operations that cannot be run as steps.
    """
    return Lowering(program, {**COMPUTE, **MOVE}, unary, weight_dtype).run()
