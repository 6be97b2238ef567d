"""What elementwise functions kernels have they say themselves, once; engines take it from there."""

from __future__ import annotations

import ctypes
import math
import re
from pathlib import Path
from typing import Any

import pytest

from support import ENGINE_NAMES
from torchdelta import EngineError, native_lib
from torchdelta.engines.cpu import bind
from torchdelta.ops.functions import BINARY, POINTWISE, Function, kernel_function

ROOT = Path(__file__).resolve().parents[1]
needs_library = pytest.mark.skipif("cpu" not in ENGINE_NAMES, reason="no native library")


@pytest.mark.parametrize(
    ("fn", "args", "kwargs", "expected"),
    [
        ("relu6", (), {}, ("clamp", 0.0, 6.0)),
        ("hardtanh", (-2,), {}, ("clamp", -2.0, 1.0)),
        ("clamp", (), {"max": 3}, ("clamp", -math.inf, 3.0)),
        ("clamp", (None, 3), {}, ("clamp", -math.inf, 3.0)),
        ("clamp_min", (1,), {}, ("clamp", 1.0, math.inf)),
        ("clamp_max", (1,), {}, ("clamp", -math.inf, 1.0)),
        ("celu", (2.0,), {}, ("elu", 2.0, 1.0, 0.5)),
        ("gelu", (), {"approximate": "tanh"}, ("gelu_tanh",)),
        ("gelu", (), {}, ("gelu_erf",)),
        ("softplus", (), {}, ("softplus", 1.0, 20.0)),
        ("tanh", (), {}, ("tanh",)),
    ],
)
def test_atens_functions_are_kernels_with_arguments(
    fn: str, args: tuple[Any, ...], kwargs: dict[str, Any], expected: tuple[Any, ...]
) -> None:
    assert kernel_function(fn, args, kwargs) == Function(expected[0], expected[1:])


def test_rounding_to_decimals_is_no_kernels() -> None:
    assert kernel_function("round", (), {"decimals": 2}) is None
    assert kernel_function("round", (), {"decimals": 0}) == Function("round")


@needs_library
def test_the_native_library_has_all_of_them() -> None:
    known = bind.names("functions")
    wanted = {kernel_function(fn, (0.5,)) for fn in POINTWISE if fn not in ("round", "gelu")}
    assert {function.name for function in wanted if function} <= set(known)
    assert set(bind.names("pairs")) == set(BINARY)


@needs_library
def test_names_that_the_library_lacks_are_refused() -> None:
    with pytest.raises(EngineError, match="has no 'sinc' among its functions; install"):
        bind.code_of("functions", "sinc")


@needs_library
@pytest.mark.parametrize("what", ["td_slot", "td_call", "td_warp_call", "group"])
def test_a_library_that_disagrees_is_refused(what: str) -> None:
    (ours,) = native_lib.told()[what]
    native_lib.agree(what, int(ours))
    with pytest.raises(EngineError, match=f"has {what} {ours}, this version of torchdelta"):
        native_lib.agree(what, int(ours) + 1)


@needs_library
def test_structures_are_compared_before_programs_are_written(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Longer(bind.Slot):
        _fields_ = (("more", ctypes.c_int64),)

    bind.names.cache_clear()
    monkeypatch.setattr(bind, "Slot", Longer)
    try:
        with pytest.raises(EngineError, match="has td_slot"):
            bind.names("functions")
    finally:
        bind.names.cache_clear()


def test_triton_kernels_have_what_they_say() -> None:
    """The lists stand beside the branches of the kernels' functions."""
    pytest.importorskip("triton")
    from torchdelta.engines.triton.kernels import shared

    text = Path(shared.__file__).read_text(encoding="utf-8")
    parts = re.split(r"^def (\w+)\(", text, flags=re.M)
    bodies = dict(zip(parts[1::2], parts[2::2], strict=True))
    branches = {n: set(re.findall(r'FN == "(\w+)"', bodies[n])) for n in bodies}
    assert branches["apply_function"] | {"prelu"} == set(shared.FUNCTIONS)
    assert branches["combine"] == set(shared.JOINS)
