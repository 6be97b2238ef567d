"""Model specs, weights files, and networks without weights."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from conftest import require
from support import threads
from torchdelta.capture.load import load_model
from torchdelta.capture.prepare import last_residual_norms, prepare_untrained
from torchdelta.errors import ModelError

timm = require("timm")
torchvision = require("torchvision")

NETWORKS = [
    "torchvision:resnet18",
    "torchvision:resnet50",
    "torchvision:mobilenet_v2",
    "torchvision:mobilenet_v3_small",
    "torchvision:shufflenet_v2_x0_5",
    "torchvision:efficientnet_b0",
    "torchvision:lraspp_mobilenet_v3_large",
    "timm:hrnet_w18_small",
    "timm:resnet50",
]
# number of residual blocks whose last batch norm is made quiet, from the papers' tables
BLOCKS = {
    "torchvision:resnet18": 8,
    "torchvision:resnet50": 16,
    "torchvision:mobilenet_v2": 10,
    "torchvision:mobilenet_v3_small": 6,
    "torchvision:shufflenet_v2_x0_5": 0,
    "torchvision:efficientnet_b0": 9,
    "torchvision:lraspp_mobilenet_v3_large": 10,
    "timm:hrnet_w18_small": 23,
    "timm:resnet50": 16,
}


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    with threads(1):
        yield


def scene(n: int, h: int = 96, w: int = 128) -> torch.Tensor:
    """A still texture on which one square moves: [n, 3, h, w], about unit variance."""
    generator = torch.Generator().manual_seed(1)
    coarse = torch.randn(1, 3, h // 8, w // 8, generator=generator)
    frames = nn.functional.interpolate(coarse, size=(h, w), mode="bilinear").repeat(n, 1, 1, 1)
    for i in range(n):
        left = (i * 12) % (w - 32)
        frames[i, :, h // 3 : h // 3 + 32, left : left + 32] = 1.5
    return frames


def first_tensor(output: Any) -> torch.Tensor:
    return output["out"] if isinstance(output, dict) else output


def tiny_net() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1)
    )


@pytest.mark.parametrize("spec", NETWORKS)
def test_prepared_network_reacts(spec: str) -> None:
    loaded = load_model(spec)
    assert not loaded.has_weights
    model = prepare_untrained(loaded.model, scene(6))
    assert len(last_residual_norms(model, scene(1))) == BLOCKS[spec]
    with torch.no_grad():
        before, after = (first_tensor(model(scene(8)[i : i + 1])) for i in (2, 7))
    assert torch.isfinite(before).all()
    assert 1e-3 < before.pow(2).mean().sqrt() < 100
    assert (after - before).norm() / before.norm() > 1e-2


def test_prepared_network_is_quiet_where_a_block_ends() -> None:
    model = prepare_untrained(torchvision.models.resnet18(weights=None), scene(6))
    quiet = {name for name, m in model.named_modules() if name.endswith("bn2")}
    for name, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            gain = 0.2 if name in quiet else 1.0
            assert 0.7 * gain <= module.weight.min() <= module.weight.max() <= 1.3 * gain
            assert module.bias.abs().max() <= 0.3
            assert module.momentum == 0.1
            assert module.num_batches_tracked == 3
            assert not module.training


def test_prepare_finds_pre_activation_and_squeeze_blocks() -> None:
    for name, suffix in (("resnetv2_50", "norm3"), ("seresnet50", "bn3")):
        model = timm.create_model(name, pretrained=False).eval()
        names = {id(m): n for n, m in model.named_modules()}
        found = [names[id(m)] for m in last_residual_norms(model, scene(1))]
        assert len(found) == 16
        assert all(n.endswith(suffix) for n in found)


def test_prepare_leaves_long_skip_connections_alone() -> None:
    class Skip(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.down = nn.Conv2d(3, 4, 3, padding=1)
            block = [nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()]
            self.deep = nn.Sequential(*block * 9)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.down(x)
            return x + self.deep(x)

    assert last_residual_norms(Skip().eval(), scene(1)) == []


def test_prepare_is_deterministic_and_takes_noise_and_one_frame() -> None:
    nets = []
    for frames in (scene(1), scene(1), (2, 3, 32, 32), (2, 3, 32, 32)):
        torch.manual_seed(3)
        nets.append(prepare_untrained(tiny_net(), frames).state_dict())
    for one, other in (nets[:2], nets[2:]):
        assert all(torch.equal(one[k], other[k]) for k in one)
    assert nets[2]["1.num_batches_tracked"] == 3


def test_same_seed_same_weights_and_global_state_untouched() -> None:
    torch.manual_seed(11)
    expected = torch.rand(1)
    torch.manual_seed(11)
    a = load_model("torchvision:shufflenet_v2_x0_5").model.state_dict()
    assert torch.equal(torch.rand(1), expected)
    b = load_model("torchvision:shufflenet_v2_x0_5").model.state_dict()
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_normalisation_comes_from_the_model() -> None:
    lite = load_model("timm:tf_efficientnet_lite0")
    assert lite.mean == lite.std == (0.5, 0.5, 0.5)
    assert lite.labels is not None
    assert lite.labels[0] == "tench"
    lraspp = load_model("torchvision:lraspp_mobilenet_v3_large")
    assert lraspp.mean == (0.485, 0.456, 0.406)
    assert lraspp.labels is not None
    assert len(lraspp.labels) == 21


def test_model_input_is_what_the_normalisation_says() -> None:
    loaded = load_model("timm:tf_efficientnet_lite0")
    frames = np.array([[[[0, 51, 255]]]], dtype=np.uint8)
    expected = torch.tensor([-1.0, -0.6, 1.0]).view(1, 3, 1, 1)
    torch.testing.assert_close(loaded.model_input(frames), expected)


def weights_file(folder: Path, how: str) -> tuple[Path, nn.Module]:
    torch.manual_seed(5)
    net = tiny_net()
    state = net.state_dict()
    path = folder / f"{how}.pth"
    if how == "half":
        state = {k: v.half() if v.is_floating_point() else v for k, v in state.items()}
        net.load_state_dict(state)
        torch.save(state, path)
    elif how == "wrapped":
        torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}, "epoch": 3}, path)
    elif how == "compiled":
        torch.save({"model": {f"_orig_mod.{k}": v for k, v in state.items()}}, path)
    elif how == "safetensors":
        path = path.with_suffix(".safetensors")
        require("safetensors.torch").save_file(state, path)
    else:
        torch.save(state, path)
    return path, net


@pytest.fixture
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module in the current folder that makes the tiny net."""
    monkeypatch.chdir(tmp_path)
    name = f"tiny_{abs(hash(tmp_path)) % 10**8}"
    (tmp_path / f"{name}.py").write_text(
        textwrap.dedent("""
        from torch import nn

        def build():
            return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(),
                                 nn.Conv2d(4, 2, 1))

        def stated():
            return build()
        stated.preprocess = dict(channels=3, input_range=(0, 255), mean=[1, 2, 3], color="bgr",
                                 size=[32, 48])

        def wrong():
            return build()
        wrong.preprocess = dict(means=[1])

        def flat():
            return build()
        flat.preprocess = dict(input_range=(1, 1))

        def broken():
            raise RuntimeError("no such luck")

        class Grey(nn.Module):
            def __init__(self):
                super().__init__()
                self.conv = nn.Conv2d(1, 1, 3)
            def forward(self, x):
                return self.conv(x)

        number = 3
        """)
    )
    yield name
    sys.modules.pop(name, None)


@pytest.mark.parametrize("how", ["plain", "half", "wrapped", "compiled", "safetensors"])
def test_weights_load(how: str, tmp_path: Path, own_module: str) -> None:
    path, net = weights_file(tmp_path, how)
    loaded = load_model(f"{own_module}:build", path)
    assert loaded.has_weights
    for key, value in loaded.model.state_dict().items():
        assert torch.equal(value, net.state_dict()[key])
        assert value.dtype != torch.float16
    assert ("float16 as float32" in loaded.notes[-1]) == (how == "half")


def test_wrong_keys_are_named(tmp_path: Path, own_module: str) -> None:
    state = tiny_net().state_dict()
    state["3.weight"] = torch.zeros(7, 4, 1, 1)
    state["head.weight"] = state.pop("3.bias")
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(ModelError) as caught:
        load_model(f"{own_module}:build", tmp_path / "w.pth")
    text = str(caught.value)
    assert "1 key missing: 3.bias" in text
    assert "1 key unexpected: head.weight" in text
    assert "3.weight is [7, 4, 1, 1] in the file and [2, 4, 1, 1] in the model" in text


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "no such file"),
        (b"", "cannot be read"),
        (b"these are no weights", "damaged"),
        ([1, 2], "a list, expected a state dict"),
        ({"epoch": 1}, "'epoch'"),
        ({"0.weight": torch.full((4, 3, 3, 3), float("nan"))}, "missing"),
        (nn.ReLU(), "plain state dict"),
    ],
)
def test_unreadable_weights(content: Any, said: str, tmp_path: Path, own_module: str) -> None:
    path = tmp_path / "w.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(ModelError, match=said):
        load_model(f"{own_module}:build", path)


def test_weights_with_nan_are_refused(tmp_path: Path, own_module: str) -> None:
    state = tiny_net().state_dict()
    state["0.bias"][0] = float("nan")
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(ModelError, match=r"1 key with NaN or infinite values: 0\.bias"):
        load_model(f"{own_module}:build", tmp_path / "w.pth")


def test_truncated_weights(tmp_path: Path, own_module: str) -> None:
    path, _ = weights_file(tmp_path, "plain")
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ModelError, match=r"plain\.pth"):
        load_model(f"{own_module}:build", path)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("timm:resnet5O", "close to it: .*resnet50"),
        ("torchvision:mobilenetv2", "close to it: mobilenet_v2"),
        ("resnet18", "did you mean timm:resnet18 or torchvision:resnet18"),
        ("weights.pth", "--weights"),
        ("model.onnx", "package.module:callable"),
        ("gone.pt2", "no such file"),
        ("no_such_module_here:build", "cannot import no_such_module_here"),
        ("json:dumpz", "close to it: .*dumps"),
        ("json:dumps", "called without arguments"),
        ("os:getcwd", "returned str, expected an nn.Module"),
    ],
)
def test_unknown_models(spec: str, said: str) -> None:
    with pytest.raises(ModelError, match=said):
        load_model(spec)


def test_missing_collection_says_how_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ModelError, match=r'pip install "torchdelta\[models\]"'):
        load_model("timm:resnet18")


def test_callable_states_its_input(own_module: str) -> None:
    loaded = load_model(f"{own_module}:stated")
    assert loaded.input_range == (0.0, 255.0)
    assert loaded.mean == (1.0, 2.0, 3.0)
    assert loaded.std is None
    assert loaded.color == "bgr"
    assert loaded.size == (32, 48)
    assert not loaded.has_weights
    grey = load_model(f"{own_module}:Grey")
    assert grey.channels == 1
    assert grey.has_weights
    for name, said in (
        ("wrong", "unknown keys 'means'"),
        ("flat", "expected .low, high. with low < high"),
        ("broken", "no such luck"),
    ):
        with pytest.raises(ModelError, match=said):
            load_model(f"{own_module}:{name}")
    with pytest.raises(ModelError, match="expected a function"):
        load_model(f"{own_module}:number")


def test_archive(tmp_path: Path) -> None:
    net = tiny_net().eval()
    frame = torch.rand(1, 3, 32, 48)
    program = torch.export.export(net, (frame,))
    stated = {"mean": [0.5], "std": [0.25, 0.25, 0.25]}
    path = tmp_path / "net.pt2"
    torch.export.save(program, path, extra_files={"preprocess.json": json.dumps(stated)})
    loaded = load_model(str(path))
    assert (loaded.size, loaded.fixed_size, loaded.channels) == ((32, 48), True, 3)
    assert loaded.has_weights
    assert (loaded.mean, loaded.std) == ((0.5,) * 3, (0.25,) * 3)
    assert not loaded.model.eval().training
    torch.testing.assert_close(loaded.model(frame), net(frame))
    with pytest.raises(ModelError, match="32x48 only, not 64x64"):
        load_model(str(path), size=(64, 64))
    other, changed = weights_file(tmp_path, "plain")
    torch.testing.assert_close(load_model(str(path), other).model(frame), changed.eval()(frame))


def test_archive_of_any_size_and_damaged_one(tmp_path: Path) -> None:
    sizes = {2: torch.export.Dim("h", min=8, max=512), 3: torch.export.Dim("w", min=8, max=512)}
    program = torch.export.export(
        tiny_net().eval(), (torch.rand(1, 3, 32, 48),), dynamic_shapes=(sizes,)
    )
    path = tmp_path / "net.pt2"
    torch.export.save(program, path)
    loaded = load_model(str(path), size=(64, 64))
    assert not loaded.fixed_size
    assert loaded.model(torch.rand(1, 3, 64, 64)).shape == (1, 2, 64, 64)
    path.write_bytes(b"PK" + path.read_bytes()[100:])
    with pytest.raises(ModelError, match=r"cannot be read as a torch\.export archive"):
        load_model(str(path))


def test_collections_are_imported_only_when_named() -> None:
    code = (
        "import sys, torchdelta.capture.load, torchdelta.capture.prepare;"
        "assert not {'timm', 'torchvision', 'safetensors'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
