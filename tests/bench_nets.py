"""Networks, clips and calls for the tests of `torchdelta bench`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import nn

from support import threads
from torchdelta.bench.forced import made_frame
from torchdelta.bench.peers import Workload

H, W = 48, 64
CPU = torch.device("cpu")

NETS = """
from torch import nn


def net(c_in, c_out):
    return nn.Sequential(
        nn.Conv2d(c_in, 8, 3, 1, 1), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 8, 3, 1, 1), nn.ReLU(), nn.Conv2d(8, c_out, 3, 1, 1),
    )


def picture():
    return net(3, 3)
picture.preprocess = dict(channels=3, input_range=(0, 1))


def denoise():
    return net(1, 1)
denoise.preprocess = dict(channels=1, input_range=(0, 1))


def classify():
    return nn.Sequential(net(3, 5), nn.AdaptiveAvgPool2d(1), nn.Flatten())


class Parts(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = net(3, 4)

    def forward(self, x):
        x = self.body(x)
        return {"aux": x[:, :1], "out": x, "pair": (x.mean((2, 3)), x * 2)}
"""


@contextmanager
def entered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Make a folder the current one, with small networks and a clip of 9 images; one thread."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nets.py").write_text(NETS)
    (tmp_path / "clip").mkdir()
    for i in range(9):
        cv2.imwrite(str(tmp_path / "clip" / f"{i}.png"), frame(i))
    with threads(1):
        yield tmp_path
    sys.modules.pop("nets", None)


def frame(index: int) -> np.ndarray:
    picture = made_frame((H, W), 3, 1)
    left = 4 * index % (W - 16)
    picture[16:28, left : left + 12] = 250
    return picture


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 1, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU(),
        nn.Conv2d(8, 4, 3, 1, 1),
    ).eval()  # fmt: skip


def workload(model: nn.Module, n: int = 1, dtype: torch.dtype = torch.float32) -> Workload:
    generator = torch.Generator().manual_seed(1)
    return Workload(model, torch.rand(n, 3, H, W, generator=generator), dtype, 1)


needs_cuda = pytest.mark.usefixtures("cuda")
