"""Whole networks: at tolerance 0 each frame's result is the dense network's."""

from functools import cache

import pytest
import torch
from torch import nn

import torchdelta
from conftest import require
from support import ENGINE_CASES, LONG, move, new_session
from torchdelta.capture.prepare import prepare_untrained

# relative L2, float32: folded batch norms and other orders of summation through 100 layers
FP32 = 1e-4

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


@cache
def compiled(spec: str) -> tuple[torchdelta.CompiledModel, nn.Module]:
    """Compile a network once per worker."""
    size = NETWORKS[spec]
    model = build(spec, size)
    return torchdelta.compile(model, torch.rand(1, 3, *size), input_range=(0, 1)), model


@pytest.mark.parametrize("engine", ENGINE_CASES)
@pytest.mark.parametrize(
    "spec", [pytest.param(spec, marks=pytest.mark.xdist_group(spec)) for spec in NETWORKS]
)
def test_network_equals_dense(engine: str, spec: str) -> None:
    fast, model = compiled(spec)
    generator = torch.Generator().manual_seed(2)
    x = torch.rand(1, 3, *NETWORKS[spec], generator=generator)
    assert not any(step.dense for step in fast.plan.steps), fast.explain()
    session = new_session(fast, engine, tolerance=0.0)
    last = None
    shares = []
    for kind in ("first", "patch", "patch", "stripes", "patch"):
        x = move(x, kind, generator)
        result = session.step({"s": x})["s"]
        with torch.no_grad():
            expected = model(x)
        error = torchdelta.relative_error(result.output, expected)
        assert error <= FP32, (kind, error)
        assert type(result.output) is type(expected)
        if last is not None:
            assert torchdelta.relative_error(last, expected) > 1e-2, "the dense output stands still"
        last = expected
        shares.append(result.stats.mac_share)
    assert shares[0] == 1.0
    assert shares[1] < 1.0
