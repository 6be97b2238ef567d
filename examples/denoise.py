"""DnCNN, a grey-scale denoiser: 17 convolutions that estimate the noise of a picture.

Zhang et al., "Beyond a Gaussian Denoiser" (IEEE TIP 2017), in the form without batch norm. Weights
with these keys, trained for noise of sigma 25 (of 255), are published with cszn/KAIR (MIT). From
the project's root:

    torchdelta run VIDEO --model examples.denoise:dncnn --weights dncnn17_gray_sigma25.pth \
        --task image --compare --save out/denoised.mp4
"""

from __future__ import annotations

import torch
from torch import nn

LAYERS = 17
CHANNELS = 64


class DnCNN(nn.Module):
    """Predicts the noise of a picture and takes it away.

    x: [N, 1, H, W] float, grey in 0..1; returns the same shape
    """

    def __init__(self, layers: int = LAYERS, channels: int = CHANNELS) -> None:
        super().__init__()
        # read by `torchdelta run`: what the frames must look like
        self.preprocess = {"channels": 1, "input_range": (0.0, 1.0)}
        convs = [nn.Conv2d(1, channels, 3, padding=1)]
        convs += [nn.Conv2d(channels, channels, 3, padding=1) for _ in range(layers - 2)]
        steps: list[nn.Module] = []
        for conv in convs:
            steps += [conv, nn.ReLU(inplace=True)]
        self.model = nn.Sequential(*steps, nn.Conv2d(channels, 1, 3, padding=1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the picture without its noise."""
        return x - self.model(x)


def dncnn() -> nn.Module:
    """Make the 17-layer denoiser, without weights."""
    return DnCNN()
