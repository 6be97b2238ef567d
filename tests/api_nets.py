"""Networks for the tests of `compile`."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class TwoHeads(nn.Module):
    """Returns a dict of a map, a tuple and a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.map = nn.Conv2d(8, 2, 1)
        self.fc = nn.Linear(8, 5)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> dict:
        y = self.stem(x)
        pooled = self.dropout(F.adaptive_avg_pool2d(y, 1).flatten(1))
        return {"map": self.map(y), "both": (self.fc(pooled), y), "stride": 2}


def net() -> nn.Module:
    torch.manual_seed(0)
    return TwoHeads().eval()
