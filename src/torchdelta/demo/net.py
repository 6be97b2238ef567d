"""The demo's segmentation network: an encoder-decoder with skip connections, and its weights."""

from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchdelta.demo.scene import CLASSES
from torchdelta.errors import ModelError

WEIGHTS_PATH = Path(__file__).with_name("demo_net.pt")


class Preprocess(TypedDict):
    """What a frame becomes before it enters a network: keywords of `torchdelta.compile`."""

    input_range: tuple[float, float]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


DEMO_PREPROCESS: Preprocess = {
    "input_range": (0.0, 1.0),
    "mean": (0.45, 0.45, 0.45),
    "std": (0.225, 0.225, 0.225),
}


def _conv(c_in: int, c_out: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False), nn.BatchNorm2d(c_out), nn.ReLU()
    )


class _Residual(nn.Module):
    """Two convolutions around a shortcut."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = _conv(channels, channels)
        self.second = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Shapes as they come: [N, C, H, W] to [N, C, H, W]."""
        return F.relu(x + self.norm(self.second(self.first(x))))


class DemoNet(nn.Module):
    """Encoder with 4 scales (1/2 to 1/16), decoder with skips, class scores for every pixel.

    x:       [N, 3, H, W] float, normalised as DEMO_PREPROCESS says; H, W any size
    returns: [N, K, H, W] logits of the classes in `torchdelta.demo.scene.CLASSES`
    """

    stride = 16

    def __init__(
        self, classes: int = len(CLASSES), widths: Sequence[int] = (24, 48, 64, 64)
    ) -> None:
        super().__init__()
        c2, c4, c8, c16 = widths
        self.stem = nn.Sequential(_conv(3, c2, 2), _conv(c2, c2))
        self.down4 = nn.Sequential(_conv(c2, c4, 2), _Residual(c4))
        self.down8 = nn.Sequential(_conv(c4, c8, 2), _Residual(c8))
        self.down16 = nn.Sequential(_conv(c8, c16, 2), _Residual(c16))
        self.up8 = _conv(c16 + c8, c8)
        self.up4 = _conv(c8 + c4, c4)
        self.up2 = _conv(c4 + c2, c2)
        self.fine = _conv(c2 + 3, 8)
        self.head = nn.Conv2d(8, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Compute the logits; shapes as the class says."""
        at2 = self.stem(x)
        at4 = self.down4(at2)
        at8 = self.down8(at4)
        y = self.down16(at8)
        # Smooth where a block is wide; nearest where a following convolution smooths anyway.
        y = F.interpolate(y, size=at8.shape[2:], mode="bilinear", align_corners=False)
        y = self.up8(torch.cat([y, at8], 1))
        y = F.interpolate(y, size=at4.shape[2:], mode="nearest")
        y = self.up4(torch.cat([y, at4], 1))
        y = F.interpolate(y, size=at2.shape[2:], mode="nearest")
        y = self.up2(torch.cat([y, at2], 1))
        y = F.interpolate(y, size=x.shape[2:], mode="nearest")
        return self.head(self.fine(torch.cat([y, x], 1)))


def load_demo_net() -> DemoNet:
    """Return the trained network in float32 and eval mode.

    Raises ModelError where the weights file is missing or damaged.
    """
    net = DemoNet()
    try:
        weights = torch.load(WEIGHTS_PATH, map_location="cpu", weights_only=True)
        net.load_state_dict(weights)
    except Exception as error:
        raise ModelError(
            f"the demo's weights at {WEIGHTS_PATH} cannot be read ({error}); "
            "install torchdelta again, or run tools/train_demo_net.py"
        ) from error
    return net.eval()


def normalise(pictures: Tensor) -> Tensor:
    """Turn pictures into the network's input: [N, H, W, 3] uint8 to [N, 3, H, W] float32."""
    low, high = DEMO_PREPROCESS["input_range"]
    x = pictures.permute(0, 3, 1, 2).float() * ((high - low) / 255) + low
    mean, std = (torch.tensor(DEMO_PREPROCESS[key])[:, None, None] for key in ("mean", "std"))
    return ((x - mean) / std).contiguous()
