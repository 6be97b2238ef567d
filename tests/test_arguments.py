"""Numbers in arguments: Python's, NumPy's and tensors are numbers; all else is refused in words."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import torchdelta
from torchdelta import ProfileError, StreamError
from torchdelta.cli.app import app
from torchdelta.runtime.measure import placed_step
from torchdelta.runtime.windows import Window
from torchdelta.video import SinkError, VideoWriter

EXAMPLE = torch.zeros(1, 3, 16, 24, dtype=torch.uint8)
# each is the number 4 in another dress
NUMBERS: dict[str, Any] = {
    "int": 4, "float32": np.float32(4), "float64": np.float64(4), "float16": np.float16(4),
    "int64": np.int64(4), "uint8": np.uint8(4), "array": np.array(4), "tensor": torch.tensor(4),
    "float-tensor": torch.tensor(4.0), "grad": torch.tensor(4.0, requires_grad=True),
    "fraction": Fraction(4),
}  # fmt: skip
WHOLE = ("int", "int64", "uint8", "array", "tensor")
NO_NUMBERS: dict[str, Any] = {
    "bool": True, "numpy-bool": np.True_, "bool-tensor": torch.tensor(True), "text": "4",
    "numpy-text": np.str_("4"), "bytes": b"4", "list": [4], "array": np.array([4]),
    "vector": torch.tensor([4]), "complex": 4 + 0j, "date": np.datetime64(4, "s"),
    "nan": float("nan"), "numpy-nan": np.float32("nan"), "tensor-nan": torch.tensor(float("nan")),
    "infinite": float("inf"), "too-large": 10**400, "negative": -4,
    "meta": torch.tensor(4.0, device="meta"), "object": object(),
}  # fmt: skip


def cases(table: dict[str, Any], *names: str) -> Any:
    return pytest.mark.parametrize("number", [pytest.param(table[n], id=n) for n in names or table])


def compile_it(**keywords: Any) -> torchdelta.CompiledModel:
    torch.manual_seed(0)
    return torchdelta.compile(nn.Conv2d(3, 4, 3).eval(), EXAMPLE, engine="torch", **keywords)


@pytest.fixture(scope="module")
def fast() -> torchdelta.CompiledModel:
    return compile_it()


@cases(NUMBERS)
def test_any_number_is_a_tolerance(number: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    # what compiling does with it is other tests' business
    monkeypatch.setattr(torchdelta.api, "CompiledModel", lambda *args, **_: args[5])
    found = compile_it(tolerance=number)
    assert found == 4.0
    assert type(found) is float


@cases(NO_NUMBERS)
def test_anything_else_is_no_tolerance(number: Any) -> None:
    with pytest.raises(ValueError, match=r"tolerance is .*, expected a finite number >= 0$"):
        compile_it(tolerance=number)


@cases(NUMBERS, *WHOLE)
def test_any_whole_number_is_a_number_of_slots_and_a_grain(
    fast: torchdelta.CompiledModel, number: Any
) -> None:
    session = fast.session(slots=number, grain=number)
    assert (session.slots, session.grain) == (4, 4)
    followed = fast.session(slots=number, grain=number, motion="given")
    assert (followed.slots, followed.grains) == (4, (4, 4))


@cases({**NO_NUMBERS, "half": 1.5, "float": 4.0, "float-tensor": torch.tensor(4.0)})
def test_anything_else_is_none(fast: torchdelta.CompiledModel, number: Any) -> None:
    for motion in ("none", "given"):
        with pytest.raises(StreamError, match="a session has 1 to 65535 slots, got "):
            fast.session(motion=motion, slots=number)
        with pytest.raises(ValueError, match=r"grain is .*, expected a whole number of pixels, 1"):
            fast.session(motion=motion, grain=number)


@pytest.mark.parametrize(
    "numbers",
    [(0.5, 1, 2), [0.5, 1, 2], np.array([0.5, 1, 2]), np.float32([0.5, 1, 2]),
     torch.tensor([0.5, 1, 2]), (np.float64(0.5), torch.tensor(1), Fraction(2))],
    ids=["tuple", "list", "array", "float32", "tensor", "mixed"],
)  # fmt: skip
def test_any_three_numbers_are_a_mean_and_a_std(numbers: Any) -> None:
    found = compile_it(mean=numbers, std=numbers).plan.preprocess
    assert found.mean == found.std == (0.5, 1.0, 2.0)
    assert {type(x) for x in (*found.mean, *found.std)} == {float}


@pytest.mark.parametrize("name", ["mean", "std"])
@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        (0.5, r"is 0\.5, expected 3 numbers, one per channel"),
        (torch.tensor(0.5), r"is tensor\(0\.5000\), expected 3 numbers"),
        ("123", "is '123', expected 3 numbers"),
        ({1, 2, 3}, "expected 3 numbers"),
        ((0.5,), "has 1 numbers, expected 3, one per channel"),
        ((1, 2, True), r"\[2\] is True, expected a finite number"),
        ((1, "2", 3), r"\[1\] is '2', expected a finite number"),
        ((1, 2, float("nan")), r"\[2\] is nan, expected a finite number"),
        ((1, float("inf"), 2), r"\[1\] is inf, expected a finite number"),
        (torch.ones(3, 1), r"\[0\] is tensor\(\[1\.\]\), expected a finite number"),
        (torch.ones(3, device="meta"), "expected a finite number"),
    ],
)
def test_what_is_no_mean_or_std(name: str, numbers: Any, message: str) -> None:
    with pytest.raises(ValueError, match=name + ".*" + message):
        compile_it(**{name: numbers})


def test_a_std_is_above_0() -> None:
    with pytest.raises(ValueError, match=r"std\[1\] is 0, expected a finite number > 0"):
        compile_it(std=(1, 0, 1))


@pytest.mark.parametrize("given", [[0, 1], np.array([0, 1]), torch.tensor([0.0, 1.0])])
def test_any_two_numbers_are_a_range(given: Any) -> None:
    found = compile_it(input_range=given).plan.preprocess
    assert (found.lo, found.hi) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("given", "message"),
    [(1, "is 1, expected 2 numbers"), ((0, 1, 2), "has 3 numbers, expected 2"),
     ((0, float("nan")), r"\[1\] is nan"), (("0", 1), r"\[0\] is '0'"), ((1, 0), "lo < hi"),
     ((1, 1), "lo < hi")],
)  # fmt: skip
def test_what_is_no_range(given: Any, message: str) -> None:
    with pytest.raises(ValueError, match="input_range.*" + message):
        compile_it(input_range=given)


@pytest.mark.parametrize("size", [[16, 24], np.array([16, 24]), torch.tensor([16, 24])])
def test_any_two_whole_numbers_are_a_size(fast: torchdelta.CompiledModel, size: Any) -> None:
    assert fast.session(size=size).plan is fast.plan
    assert fast.session(size=size, motion="given").plan is fast.plan


@pytest.mark.parametrize("size", [16, "ab", (16,), (16.0, 24), (0, 24), (True, 24), (16, 24, 3)])
def test_what_is_no_size(fast: torchdelta.CompiledModel, size: Any) -> None:
    with pytest.raises(
        ValueError, match=r"size is .*, expected two whole numbers \(h, w\), at least 1"
    ):
        fast.session(size=size)


@pytest.mark.parametrize("origin", [[0, 0], np.array([0, 0]), (np.int64(0), torch.tensor(0))])
def test_any_two_whole_numbers_are_an_origin(fast: torchdelta.CompiledModel, origin: Any) -> None:
    result = placed_step(fast.session(), {"a": EXAMPLE[0]}, {"a": Window(origin)})["a"]
    assert result.error is None
    assert result.origin == (0, 0)


def test_profiles_hold_any_number_and_are_saved(tmp_path: Path) -> None:
    given = {"input": np.float32(0.5), "*": torch.tensor(2)}
    profile = torchdelta.Profile(given, {"a": np.int64(3)})
    assert profile == torchdelta.Profile({"input": 0.5, "*": 2.0}, {"a": 3.0})
    profile.save(tmp_path / "p.json")
    assert json.loads((tmp_path / "p.json").read_text())["rms"] == {"a": 3.0}
    assert torchdelta.Profile.load(tmp_path / "p.json") == profile
    # what the caller does to his table later is his business
    given["input"] = np.float32(7)
    assert profile.multipliers["input"] == 0.5


@cases(NO_NUMBERS)
def test_profiles_hold_nothing_else(number: Any) -> None:
    for table in ("multipliers", "rms"):
        with pytest.raises(ProfileError, match=r"of 'a' is .*, expected a finite number >= 0"):
            torchdelta.Profile(**{table: {"a": number}})
    with pytest.raises(ProfileError, match=r"multipliers are .*, expected a number by value name"):
        torchdelta.Profile(number)


@pytest.mark.parametrize("stride", [0, -1, float("nan"), "2", True, None])
def test_what_is_no_stride(fast: torchdelta.CompiledModel, stride: Any) -> None:
    result = fast.session().step({"a": EXAMPLE[0]})["a"]
    for call in (result.to_frame_points, result.to_frame_map):
        with pytest.raises(ValueError, match=r"stride is .*, expected a finite number > 0"):
            call(np.zeros((2, 2)), stride)
    assert result.to_frame_points([[1.0, 1.0]], np.int64(2)).tolist() == [[2.5, 2.5]]


def test_the_rate_of_a_video_is_any_number(tmp_path: Path) -> None:
    for number in (np.float32(25), torch.tensor(25), Fraction(25)):
        with VideoWriter(tmp_path / "a.mp4", number, (16, 16)) as video:
            video.write(np.zeros((16, 16, 3), np.uint8))
    for number in (True, "25", float("nan"), -25):
        with pytest.raises(SinkError, match="fps is "):
            VideoWriter(tmp_path / "a.mp4", number, (16, 16))


@pytest.mark.parametrize(
    "options",
    [("--tolerance", "nan"), ("--tolerance", "inf"), ("--tolerance", "-1"), ("--tolerance", "x"),
     ("--grain", "0"), ("--grain", "257"), ("--grain", "1.5"), ("--limit", "0")],
)  # fmt: skip
def test_the_command_line_refuses_the_same(options: tuple[str, str]) -> None:
    asked = ["run", "missing.mp4", "--model", "torchvision:resnet18", *options]
    ended = CliRunner().invoke(app, asked)
    assert ended.exit_code == 2
    assert f"Invalid value for '{options[0]}'" in ended.output


def test_the_command_line_has_room_for_as_many_streams_as_a_session() -> None:
    asked = ["bench", "--model", "torchvision:resnet18", "--active", "0.1", "--streams", "65536"]
    ended = CliRunner().invoke(app, asked)
    assert ended.exit_code == 2
    assert "Invalid value for '--streams'" in ended.output
