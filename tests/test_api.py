"""`torchdelta.compile` and calls of what it returns."""

import copy
import warnings
import weakref
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import torchdelta
from api_nets import net
from torchdelta import EngineError, FrameError
from torchdelta.engines import ENGINES, available, choose
from torchdelta.engines.torch_engine import TorchEngine
from torchdelta.engines.triton import TritonEngine
from torchdelta.plan import Plan, explain
from torchdelta.runtime.inspect import frame_state


def test_the_result_has_the_models_structure() -> None:
    model = net()
    x = torch.rand(2, 3, 20, 22)
    fast = torchdelta.compile(model, x, tolerance=0)
    out, expected = fast(x), model(x)
    assert out["stride"] == 2
    assert isinstance(out["both"], tuple)
    assert torchdelta.relative_error(out, expected) < 1e-5
    assert [t.shape for t in (out["map"], *out["both"])] == [
        t.shape for t in (expected["map"], *expected["both"])
    ]


def test_the_model_is_left_untouched() -> None:
    model = net().train()
    before = copy.deepcopy(model.state_dict())
    with pytest.warns(UserWarning, match="train mode"):
        fast = torchdelta.compile(model, torch.rand(1, 3, 20, 22))
    fast(torch.rand(1, 3, 20, 22))
    assert model.training
    assert all(m.training for m in model.modules())
    assert all(p.requires_grad for p in model.parameters())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torchdelta.compile(model.eval(), torch.rand(1, 3, 20, 22))


def test_rows_are_cameras() -> None:
    model = net()
    fast = torchdelta.compile(model, torch.rand(1, 3, 20, 22), tolerance=0)
    x = torch.rand(3, 3, 20, 22)
    fast(x)
    y = x.clone()
    y[1, :, 5:9, 5:9] = 0
    assert torchdelta.relative_error(fast(y), model(y)) < 1e-5
    assert fast.stats.last.changed_input == 0.0
    assert fast.stats.frames == 6


def test_outputs_are_copies_unless_views_are_asked_for() -> None:
    fast = torchdelta.compile(net(), torch.rand(1, 3, 20, 22), tolerance=0)
    a = fast(torch.zeros(1, 3, 20, 22))["map"]
    kept = a.clone()
    view = fast(torch.ones(1, 3, 20, 22), views=True)["map"]
    assert torch.equal(a, kept)
    assert torch.equal(view, fast(torch.ones(1, 3, 20, 22))["map"])
    fast(torch.zeros(1, 3, 20, 22))
    assert torchdelta.relative_error(view, kept) < 1e-5


def test_other_sizes_get_a_plan_of_their_own() -> None:
    model = net()
    fast = torchdelta.compile(model, torch.rand(1, 3, 20, 22), tolerance=0)
    x = torch.rand(1, 3, 20, 22)
    fast(x)
    first = weakref.ref(frame_state(fast._called).buffers[0])
    said = "frames are {}x{} from here on, no longer {}x{}"
    for before, size in pairwise(((20, 22), (31, 17), (20, 22), (31, 17))):
        x = torch.rand(1, 3, *size)
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            assert torchdelta.relative_error(fast(x), model(x)) < 1e-5
            fast(x)
        # once for each change, and where the caller is
        assert [w.filename for w in warned] == [__file__]
        assert said.format(*size, *before) in str(warned[0].message)
        # the state of the size before is gone, so that a frame of it would be a first frame
        assert fast.stats.frames == 2
        assert first() is None
        assert fast._called.plan.size == size
    # the plans stay
    assert len(fast._engines) == 2
    session = fast.session(size=(9, 11))
    assert session.plan.size == (9, 11)


def test_fixed_size_refuses_others() -> None:
    fast = torchdelta.compile(net(), torch.rand(1, 3, 20, 22), fixed_size=True)
    with pytest.raises(FrameError, match=r"21x22.*fixed_size=True for 20x22"):
        fast(torch.rand(1, 3, 21, 22))
    fast(torch.rand(1, 3, 20, 22))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (torch.rand(3, 20, 22), "expected a tensor"),
        (torch.rand(1, 4, 20, 22), "4 channels"),
        (torch.full((1, 3, 20, 22), float("nan")), "row 0: .*NaN"),
        (torch.zeros(1, 3, 20, 22, dtype=torch.int32), "int32"),
        ("frame", "str"),
    ],
)
def test_bad_frames_are_refused_whole(bad: object, message: str) -> None:
    fast = torchdelta.compile(net(), torch.rand(1, 3, 20, 22))
    with pytest.raises(FrameError, match=message):
        fast(bad)


def test_uint8_and_normalisation() -> None:
    model = net()
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
    u = torch.randint(0, 256, (1, 3, 20, 22), dtype=torch.uint8)
    fast = torchdelta.compile(model, u, tolerance=0, input_range=(0, 1), mean=mean, std=std)
    x = (u / 255 - torch.tensor(mean).view(1, 3, 1, 1)) / torch.tensor(std).view(1, 3, 1, 1)
    assert torchdelta.relative_error(fast(u), model(x)) < 1e-5
    assert torchdelta.relative_error(fast(u / 255), model(x)) < 1e-5
    assert torchdelta.relative_error(fast.preprocess(u[0]), x) < 1e-6
    assert torchdelta.relative_error(fast.dense(x), model(x)) < 1e-5
    array = u[0].permute(1, 2, 0).numpy()
    assert torchdelta.relative_error(fast(array), model(x)) < 1e-5


def test_bgr_and_0_255() -> None:
    model = net()
    u = torch.randint(0, 256, (1, 3, 20, 22), dtype=torch.uint8)
    fast = torchdelta.compile(model, u, tolerance=0, input_range=(0, 255), color="bgr")
    assert torchdelta.relative_error(fast(u), model(u.flip(1).float())) < 1e-5


@pytest.mark.parametrize(
    ("example", "lo", "hi"),
    [
        (torch.rand(1, 3, 20, 22), 0, 1),
        (torch.rand(1, 3, 20, 22) * 255, 0, 255),
        (torch.rand(1, 3, 20, 22) * 2 - 1, -1, 1),
        (torch.linspace(-2.5, 3, 3 * 20 * 22).reshape(1, 3, 20, 22), -2.5, 3),
        (torch.randint(0, 256, (1, 3, 20, 22), dtype=torch.uint8), 0, 1),
    ],
)
def test_the_range_is_taken_from_the_example_with_a_note(
    example: Tensor, lo: float, hi: float
) -> None:
    fast = torchdelta.compile(net(), example)
    assert (fast.plan.preprocess.lo, fast.plan.preprocess.hi) == pytest.approx((lo, hi))
    assert "input_range not given" in fast.plan.notes[0]
    assert "input_range not given" in fast.explain()


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"tolerance": -1}, "tolerance"),
        ({"tolerance": float("nan")}, "tolerance"),
        ({"dtype": "fp8"}, "fp32, fp16, bf16, tf32"),
        ({"dtype": torch.int8}, "dtype"),
        ({"mean": (0.5,)}, "mean has 1 numbers"),
        ({"std": (0.1, 0.0, 0.1)}, "std"),
        ({"input_range": (1, 0)}, "lo < hi"),
        ({"input_range": (0, float("inf"))}, "finite"),
        ({"color": "yuv"}, "color"),
        ({"engine": "warp"}, "'warp' is unknown; choose auto or one of torch"),
    ],
)
def test_bad_arguments(keywords: dict, message: str) -> None:
    with pytest.raises((ValueError, EngineError), match=message):
        torchdelta.compile(net(), torch.rand(1, 3, 20, 22), **keywords)


@pytest.mark.parametrize(
    "example", [torch.rand(3, 20, 22), torch.rand(0, 3, 20, 22), torch.zeros(1, 3, 4, 4).long(),
                torch.full((1, 3, 20, 22), float("inf")), np.zeros((20, 22, 3))]
)  # fmt: skip
def test_bad_examples(example: object) -> None:
    with pytest.raises(FrameError, match="example"):
        torchdelta.compile(net(), example)


def test_dtypes() -> None:
    model = net()
    x = torch.rand(1, 3, 20, 22)
    for name, dtype, limit in (("fp16", torch.float16, 5e-3), ("bf16", torch.bfloat16, 2e-2)):
        fast = torchdelta.compile(model, x, tolerance=0, dtype=name)
        fast(torch.rand(1, 3, 20, 22))
        out = fast(x)
        assert out["map"].dtype == fast.dtype == dtype
        assert torchdelta.relative_error(out, model(x)) < limit
        half = fast.session().plan.state_bytes(dtype)
        assert half < 0.6 * fast.plan.state_bytes(torch.float32)


@pytest.mark.parametrize("engine", ["torch", "cpu"])
def test_engines_without_tf32_say_which_has_it(engine: str) -> None:
    with pytest.raises(EngineError, match="no tf32, which the triton engine has; take fp32"):
        torchdelta.compile(net(), torch.rand(1, 3, 20, 22), dtype="tf32", engine=engine)


def test_tf32_without_a_gpu_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TritonEngine, "usable", classmethod(lambda cls: (False, "no GPU")))
    with pytest.raises(EngineError, match=r"in tf32: triton: no GPU; cpu: it has no tf32"):
        torchdelta.compile(net(), torch.rand(1, 3, 20, 22), dtype="tf32")


def test_tf32_reaches_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []

    class Fake(TritonEngine):
        def __new__(cls, plan: Plan, device: torch.device, dtype: torch.dtype, tf32: bool) -> Any:
            asked.append(tf32)
            return TorchEngine(plan, device, dtype)

    monkeypatch.setattr(Fake, "usable", classmethod(lambda cls: (True, "here")))
    monkeypatch.setattr(Fake, "refuses", classmethod(lambda cls, device, dtype: None))
    monkeypatch.setattr(Fake, "reluctance", classmethod(lambda cls: None))
    monkeypatch.setitem(ENGINES, "triton", Fake)
    fast = torchdelta.compile(net(), torch.rand(1, 3, 20, 22), dtype="tf32")
    assert (fast.engine, fast.dtype, fast.tf32, asked) == ("triton", torch.float32, True, [True])
    assert "engine triton (auto: here), products in tf32, float32" in fast.explain()
    fast(torch.rand(1, 3, 24, 22))
    assert asked == [True, True]


def test_a_model_in_half_precision_is_captured() -> None:
    model = net()
    half = copy.deepcopy(model).half()
    fast = torchdelta.compile(half, torch.rand(1, 3, 20, 22), tolerance=0)
    x = torch.rand(1, 3, 20, 22)
    assert torchdelta.relative_error(fast(x), model(x)) < 1e-2
    assert next(half.parameters()).dtype == torch.float16


def test_a_model_without_parameters() -> None:
    fast = torchdelta.compile(nn.AvgPool2d(3, 1, 1).eval(), torch.rand(1, 3, 20, 22), tolerance=0)
    x = torch.rand(1, 3, 20, 22)
    assert torchdelta.relative_error(fast(x), F.avg_pool2d(x, 3, 1, 1)) < 1e-5
    assert fast.stats.last.mac_share == 1.0


def test_explain_is_a_table() -> None:
    fast = torchdelta.compile(net(), torch.rand(1, 3, 20, 22))
    text = fast.explain()
    assert explain(fast.plan).splitlines()[1:] == text.splitlines()[2:]
    assert f"engine {fast.engine}, float32" in fast.session().explain()
    for part in ("step", "operation", "conv2d 3x3 s2+relu", "8x10x11", "sparse", "MAC per dense",
                 "state", f"engine {fast.engine}"):  # fmt: skip
        assert part in text


def test_exported_archives_run(tmp_path) -> None:
    model = net()
    x = torch.rand(1, 3, 20, 22)
    path = tmp_path / "net.pt2"
    torch.export.save(torch.export.export(model, (x,), strict=False), path)
    fast = torchdelta.compile(torch.export.load(path).module(), x, tolerance=0)
    y = torch.rand(1, 3, 20, 22)
    fast(x)
    assert torchdelta.relative_error(fast(y), model(y)) < 1e-5


def test_engines_say_what_they_are() -> None:
    names = {name: (usable, why) for name, usable, why in available()}
    assert names["torch"][0]
    assert torch.__version__ in names["torch"][1]
    engine, reason = choose("auto", torch.device("cpu"))
    assert engine.name == ("cpu" if names["cpu"][0] else "torch")
    assert "cpu" in reason or names["cpu"][1] in reason


def test_import_pulls_in_no_model_collections() -> None:
    import subprocess
    import sys

    code = (
        "import sys, torchdelta, torchdelta.cli\n"
        "print([m for m in ('timm', 'torchvision', 'triton') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_frame_beyond_float16_is_refused() -> None:
    fast = torchdelta.compile(
        nn.Conv2d(3, 4, 1).eval(), torch.rand(1, 3, 8, 8) * 1e5, dtype="fp16", input_range=(0, 1e5)
    )
    with pytest.raises(FrameError, match="beyond the range of float16"):
        fast(torch.full((1, 3, 8, 8), 1e5))
