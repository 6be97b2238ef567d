"""Whole networks without weights, by name, and the size that each is tested at."""

import torch
from torch import nn

from conftest import require
from support import LONG
from torchdelta.capture.prepare import prepare_untrained

NETWORKS = {
    "torchvision:resnet18": (65, 97),
    "torchvision:mobilenet_v2": (65, 97),
    "torchvision:mobilenet_v3_small": (65, 97),
    "torchvision:shufflenet_v2_x0_5": (65, 97),
    "torchvision:efficientnet_b0": (65, 97),
    "torchvision:lraspp_mobilenet_v3_large": (65, 97),
    # HRNet adds maps of several scales: only multiples of 32 fit
    "timm:hrnet_w18_small": (64, 96),
}
# the large one is in lraspp, whose blocks squeeze and excite as those of efficientnet_b0 do
if not LONG:
    del NETWORKS["torchvision:mobilenet_v3_small"], NETWORKS["torchvision:efficientnet_b0"]


def build(spec: str, size: tuple[int, int]) -> nn.Module:
    """Make a network "timm:name" or "torchvision:name", prepared as in every benchmark."""
    where, name = spec.split(":")
    torch.manual_seed(0)
    if where == "timm":
        timm = require("timm")
        model = timm.create_model(name, pretrained=False)
    else:
        models = require("torchvision.models")
        more = {"weights_backbone": None} if "lraspp" in name else {}
        model = models.get_model(name, weights=None, **more)
    frames = torch.rand(6, 3, *size, generator=torch.Generator().manual_seed(1))
    return prepare_untrained(model, frames)
