"""Sizes, tolerances and sessions for the tests in Triton's interpreter."""

import importlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch

from conftest import is_required
from support import (
    ENGINE_NAMES,
)
from torchdelta.engines import ENGINES

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("TRITON_INTERPRET=1 is not set: see make test", allow_module_level=True)
if "triton" not in ENGINE_NAMES:
    why = ENGINES["triton"].usable()[1]
    if is_required("triton-interpreter"):
        pytest.fail(why, pytrace=False)
    pytest.skip(why, allow_module_level=True)

# Triton is imported where it is there
tl = importlib.import_module("triton.language")
interpreter = importlib.import_module("triton.runtime.interpreter")
CPU = torch.device("cpu")


@contextmanager
def language_is_patched_once() -> Iterator[None]:
    """Spare a third of the interpreter's time.

    A launch replaces the functions of triton.language by interpreted ones; each call of one of a
    kernel's own functions would look for them, and replace them, once more.
    """
    if not hasattr(interpreter, "_patch_lang") or not hasattr(interpreter, "_LangPatchScope"):
        # another version of Triton: it only takes longer
        yield
        return
    patch_all = interpreter._patch_lang

    def patch(fn: Callable[..., object]) -> object:
        known = fn.__globals__.values()
        langs = [lang for lang in (tl, tl.core) if any(value is lang for value in known)]
        if any(tl.core.is_builtin(lang.load) for lang in langs):
            return patch_all(fn)
        return interpreter._LangPatchScope()

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(interpreter, "_patch_lang", patch)
        yield
