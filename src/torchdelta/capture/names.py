"""What a model may be named by, and whether the files named are there; imports nothing heavy."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from torchdelta.errors import ModelError

FORMS = """a model is named by one of
  timm:NAME                 a model of timm, e.g. timm:tf_efficientnet_lite0
  torchvision:NAME          a model of torchvision, e.g. torchvision:resnet18
  FILE.pt2                  a torch.export archive
  package.module:callable   a function or class that returns an nn.Module; the current folder is
                            searched first, e.g. examples.denoise:DnCNN"""

COLLECTIONS = ("timm", "torchvision")
INSTALL_HINT = 'install it with: pip install "torchdelta[models]"'
WEIGHT_SUFFIXES = (".pth", ".pt", ".bin", ".safetensors")


def split(spec: str) -> tuple[str, str]:
    """Give the kind of a model's name ("timm", "torchvision", "archive", "callable") and the rest.

    The kind is "" of a bare name, which a collection may know. Raises: ModelError for all others.
    """
    prefix, colon, rest = spec.partition(":")
    if colon and prefix in COLLECTIONS:
        return prefix, rest
    if spec.endswith(".pt2"):
        return "archive", spec
    if colon and rest and all(part.isidentifier() for part in prefix.split(".")):
        return "callable", spec
    if Path(spec).suffix in WEIGHT_SUFFIXES:
        raise unknown(
            spec, "a file of weights goes to --weights, beside the model that it belongs to"
        )
    if not spec.partition(".")[0].isidentifier():
        raise unknown(spec)
    return "", spec


def unknown(spec: str, hint: str = "") -> ModelError:
    """Give the error of a name that is none."""
    return ModelError(f"no model is named {spec!r}{'; ' if hint else ''}{hint}\n{FORMS}")


def check_model(spec: str) -> None:
    """Refuse a model's name whose file or module is not there, without importing it.

    Raises: ModelError. What is inside is seen when it is loaded.
    """
    kind, name = split(spec)
    if kind == "archive" and not Path(name).is_file():
        raise ModelError(f"{name}: {'is a folder' if Path(name).is_dir() else 'no such file'}")
    module = {"callable": name.partition(":")[0], "timm": "timm", "torchvision": "torchvision"}
    package = module.get(kind, "").partition(".")[0]
    with current_folder_first():
        found = not package or package in sys.modules or importlib.util.find_spec(package)
    if not found and kind == "callable":
        raise ModelError(
            f"{spec}: cannot import {module[kind]}: there is no module {package!r}, neither in the "
            "current folder nor installed"
        )
    if not found:
        raise ModelError(f"{package} is not installed; {INSTALL_HINT}")


def check_weights(path: str | os.PathLike[str]) -> None:
    """Refuse a file of weights that is not there. Raises: ModelError."""
    file = Path(path)
    if not file.is_file():
        raise ModelError(f"weights {path}: {'is a folder' if file.is_dir() else 'no such file'}")


@contextlib.contextmanager
def current_folder_first() -> Iterator[None]:
    """Search the current folder first for what is imported while entered."""
    folder = os.getcwd()
    sys.path.insert(0, folder)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(folder)
