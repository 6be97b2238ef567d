"""Whether a model's result for a frame depends on the frames before it.

A plan is made from single runs, in which whatever a model remembers of another frame would become
a constant. Only a run can tell what is read back: a cache of anchors or a feature that is stored
for the caller changes no result, the frame before that is blended in does.
"""

from __future__ import annotations

import functools
import hashlib
import random
import types
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from torchdelta.capture.suited import smaller
from torchdelta.distance import in_float64, squares
from torchdelta.errors import CaptureError

# what two runs of one network may differ by where threads add in another order (relative L2)
ROUNDING = 1e-4
# places of state that a message names, and levels of containers that are looked into
MOST_NAMED, MOST_LEVELS = 8, 8
PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device)


def check_stateless(fresh: Callable[[], nn.Module], frame: Tensor, alone: Any) -> str | None:
    """Check that a model gives a frame the same result, to the bit, whatever came before it.

    Runs the model three times on a small frame, or where it takes none, twice on the whole one;
    more often only where the results differ.
    fresh: makes a copy of the model that has not run
    frame: [1, C, H, W], as the model sees it;  alone: what a fresh copy gives for it
    returns: a note where the model's own results differ from run to run by rounding, else None
    Raises: CaptureError that names what the model keeps, or says that it is not deterministic.
    """
    generator = torch.Generator().manual_seed(0)
    frame, alone = _small(fresh, frame, alone)
    low, high = float(frame.min()), float(frame.max())
    span = high - low or 1.0
    other = low + span * torch.rand(frame.shape, generator=generator)
    after = _after(fresh(), other, frame)
    if not isinstance(after, Exception) and _same(after, alone):
        return None
    drawn = _random_states()
    again = _run(fresh(), frame)
    now = _random_states()
    if drawn[1:] != now[1:]:
        # no operation of the graph: the number would become a constant of it
        raise CaptureError(
            "the model draws random numbers from Python's `random` or from NumPy; a plan would "
            "make constants of them: remove what is random from the model"
        )
    if drawn != now:
        # the walk over the graph names the operation
        return None
    moved, spread = _distance(after, alone), _distance(again, alone)
    if spread <= ROUNDING and moved <= ROUNDING:
        return (
            "the model does not give the same bits twice for one frame, so that state which it "
            f"keeps from frame to frame was looked for down to {ROUNDING:g} of its result only"
        )
    kept = _changed_by(fresh(), other)
    if spread > ROUNDING and not kept:
        raise CaptureError(
            "the model does not give the same result twice for one frame (relative L2 "
            f"difference {spread:.2g}), and nothing was found that it keeps from frame to frame; "
            "a plan gives one result: remove what is random, or depends on time, from the model"
        )
    names = _read_back(fresh, kept, frame, other, after) or list(kept)
    where = ", ".join(names[:MOST_NAMED]) + (" …" if len(names) > MOST_NAMED else "")
    how = (
        f"after another frame it fails, {type(after).__name__}: {after}"
        if isinstance(after, Exception)
        else f"relative L2 difference {moved:.2g}"
    )
    raise CaptureError(
        "the model keeps state from frame to frame: its result for a frame depends on the frame "
        f"before it ({how}). It is kept in {where or 'a place that was not found'}.\n"
        "A plan would make a constant of it. Take what looks back in time out of the model: let "
        "it work on the session's results, or give the model the frames it needs as channels."
    )


def _small(fresh: Callable[[], nn.Module], frame: Tensor, alone: Any) -> tuple[Tensor, Any]:
    """Give a small frame and its result, if the model takes one: it keeps there what it keeps."""
    small = smaller(frame)
    if small is None:
        return frame, alone
    drawn = _random_states()
    try:
        result = _run(fresh(), small)
    except Exception:
        return frame, alone
    # where random numbers are drawn, runs are compared that began alike
    return (frame, alone) if drawn != _random_states() else (small, result)


@torch.no_grad()
def _run(model: nn.Module, frame: Tensor) -> Any:
    # a copy: some models write to their input
    return pytree.tree_map_only(Tensor, Tensor.clone, model(frame.clone()))


def _after(model: nn.Module, other: Tensor, frame: Tensor) -> Any:
    """Give the result for a frame after another one, or the exception instead."""
    try:
        _run(model, other)
    except Exception:
        # it takes no such frame; the frame itself is another one, too
        _run(model, frame)
    try:
        return _run(model, frame)
    except Exception as error:
        return error


def _same(a: Any, b: Any) -> bool:
    """Whether two results are equal to the bit, NaN equal to NaN."""
    (one, spec), (two, other_spec) = pytree.tree_flatten(a), pytree.tree_flatten(b)
    return spec == other_spec and all(map(_same_leaf, one, two))


def _same_leaf(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape and a.dtype == b.dtype and _bits(a) == _bits(b)
    if isinstance(a, PLAIN) or isinstance(b, PLAIN):
        return type(a) is type(b) and (a == b or a != a)
    return type(a) is type(b)


def _distance(a: Any, b: Any) -> float:
    """Give the relative L2 distance of two results; infinite where they cannot be compared."""
    if isinstance(a, Exception):
        return float("inf")
    (one, spec), (two, other_spec) = pytree.tree_flatten(a), pytree.tree_flatten(b)
    if spec != other_spec:
        return float("inf")
    diff = norm = 0.0
    for x, y in zip(one, two, strict=True):
        if not isinstance(x, Tensor) or not isinstance(y, Tensor) or x.shape != y.shape:
            if not _same_leaf(x, y):
                return float("inf")
            continue
        more_diff, more_norm = squares(in_float64(x), in_float64(y))
        diff, norm = diff + more_diff, norm + more_norm
    return float(diff**0.5) / (norm**0.5 or 1.0)


def _random_states() -> tuple[Any, ...]:
    # models that draw from NumPy do so from its global state (NPY002)
    return (_bits(torch.get_rng_state()), random.getstate(), str(np.random.get_state()))  # noqa: NPY002


def _bits(x: Tensor) -> bytes:
    """Digest a tensor's values; zeros of both signs are alike."""
    plain = x.detach().cpu().resolve_conj().resolve_neg().contiguous().reshape(-1)
    if plain.is_floating_point() or plain.is_complex():
        plain = plain + 0
    return hashlib.blake2b(plain.view(torch.uint8).numpy().data, digest_size=16).digest()


def _changed_by(model: nn.Module, frame: Tensor) -> dict[str, tuple[str, str] | None]:
    """Name what a run changes: place -> (module, attribute), None for what is no attribute."""
    before = _Places(model)
    _run(model, frame)
    after = _Places(model)
    both = {**before.found, **after.found}
    changed = [p for p in both if before.found.get(p) != after.found.get(p)]
    return {place: after.attributes.get(place) for place in changed}


def _read_back(
    fresh: Callable[[], nn.Module],
    kept: dict[str, tuple[str, str] | None],
    frame: Tensor,
    other: Tensor,
    after: Any,
) -> list[str]:
    """Keep those places whose content the next result depends on."""
    found = []
    for place, attribute in kept.items():
        if attribute is None or len(kept) == 1 or isinstance(after, Exception):
            found.append(place)
            continue
        model, untouched = fresh(), fresh()
        _run(model, other)
        _put_back(model, untouched, *attribute)
        try:
            back = _run(model, frame)
        except Exception:
            found.append(place)
            continue
        if not _same(back, after):
            found.append(place)
    return found


def _put_back(model: nn.Module, untouched: nn.Module, path: str, name: str) -> None:
    module, source = model.get_submodule(path), untouched.get_submodule(path)
    for key in ("_parameters", "_buffers", "__dict__"):
        table, original = getattr(module, key), getattr(source, key)
        if name in original:
            table[name] = original[name]
        else:
            table.pop(name, None)


class _Places:
    """All that a model can remember a frame in, by the words that name it.

    found:      place -> what is there, comparable
    attributes: place -> (path of the module, attribute), where it is one
    """

    def __init__(self, model: nn.Module) -> None:
        self.found: dict[str, tuple[Any, ...]] = {}
        self.attributes: dict[str, tuple[str, str]] = {}
        self._functions: set[int] = set()
        # those in plain lists are walked like any other object
        self._modules = {id(module) for module in model.modules()}
        classes: dict[type, None] = {}
        for path, module in model.named_modules():
            self._module(path, module)
            classes.update(dict.fromkeys(_own_classes(type(module))))
        for cls in classes:
            for name, value in list(vars(cls).items()):
                value = getattr(value, "__func__", getattr(value, "fget", value))
                if isinstance(value, types.FunctionType):
                    self._function(value)
                elif not name.startswith("__"):
                    self._place(f"the class attribute `{cls.__name__}.{name}`", value)

    def _module(self, path: str, module: nn.Module) -> None:
        for name, value in [
            *module._parameters.items(), *module._buffers.items(), *vars(module).items(),
        ]:  # fmt: skip
            if name in ("_parameters", "_buffers", "_modules", "training"):
                continue
            dotted = f"{path}.{name}" if path else name
            if name.startswith("_") and name.endswith(("_hooks", "_pre_hooks")):
                for hook in value.values():
                    self._place(f"a hook of `{path or 'the model'}`", hook)
                continue
            self.attributes[f"`{dotted}`"] = (path, name)
            self._place(f"`{dotted}`", value)

    def _place(self, place: str, value: Any) -> None:
        found = tuple(self._content(value, 0, set()))
        self.found[place] = self.found.get(place, ()) + found

    def _content(self, value: Any, level: int, inside: set[int]) -> Iterator[Any]:
        """List what a value holds, flat; functions met on the way become places themselves."""
        if isinstance(value, PLAIN):
            yield type(value), repr(value)
        elif isinstance(value, Tensor):
            yield _tensor(value)
        elif isinstance(value, torch.Generator):
            yield _bits(value.get_state())
        elif isinstance(value, np.ndarray) and value.dtype != object:
            yield value.dtype, value.shape, value.tobytes()
        elif isinstance(value, types.FunctionType):
            self._function(value)
        elif isinstance(value, (types.ModuleType, type)) or id(value) in self._modules:
            yield type(value), id(value)
        elif id(value) not in inside and level < MOST_LEVELS:
            inside = inside | {id(value)}
            yield type(value)
            for item in _items(value):
                yield from self._content(item, level + 1, inside)

    def _function(self, function: types.FunctionType) -> None:
        """Look at what a function encloses, has as defaults, and reads of its module's globals."""
        if id(function) in self._functions or _is_torchs(function.__module__):
            return
        self._functions.add(id(function))
        name = function.__qualname__
        for variable, cell in zip(
            function.__code__.co_freevars, function.__closure__ or (), strict=True
        ):
            try:
                self._place(f"the variable `{variable}` that `{name}` encloses", cell.cell_contents)
            except ValueError:
                # nothing is in it yet
                continue
        defaults = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
        self._place(f"the default arguments of `{name}`", defaults)
        self._place(f"attributes of `{name}`", vars(function))
        for variable in _globals_of(function.__code__):
            value = function.__globals__.get(variable)
            if not isinstance(value, types.ModuleType) and not _is_torchs(
                getattr(value, "__module__", None)
            ):
                self._place(f"the global `{variable}` of {function.__module__}", value)


def _items(value: Any) -> Iterable[Any]:
    """Give what an object holds: items of a container, arguments of a partial, attributes."""
    if isinstance(value, (list, tuple, deque)):
        items: list[Any] = list(value)
    elif isinstance(value, dict):
        items = [part for item in value.items() for part in item]
    elif isinstance(value, (set, frozenset)):
        items = sorted(map(repr, value))
    elif isinstance(value, types.MethodType):
        items = [value.__func__, value.__self__]
    elif isinstance(value, functools.partial):
        items = [value.func, value.args, value.keywords]
    else:
        # of what has no attributes the text may tell: itertools.count
        items = [] if hasattr(value, "__dict__") or _slots(value) else [repr(value)]
    items += vars(value).values() if hasattr(value, "__dict__") else ()
    return items + [getattr(value, name) for name in _slots(value) if hasattr(value, name)]


def _slots(value: Any) -> list[str]:
    found: list[str] = []
    for cls in type(value).__mro__:
        names = vars(cls).get("__slots__", ())
        found += [names] if isinstance(names, str) else names
    return [name for name in found if name not in ("__dict__", "__weakref__")]


def _tensor(value: Tensor) -> tuple[Any, ...]:
    try:
        return value.dtype, tuple(value.shape), _bits(value)
    except (RuntimeError, TypeError, NotImplementedError):
        # one without memory of its own: sparse, quantised …
        return type(value), id(value)


def _own_classes(cls: type) -> list[type]:
    return [c for c in cls.__mro__ if c is not object and not _is_torchs(c.__module__)]


def _is_torchs(module: str | None) -> bool:
    return module is not None and module.partition(".")[0] in ("torch", "builtins", "numpy")


def _globals_of(code: types.CodeType) -> list[str]:
    """List the names that a function's code and that of functions inside it may read."""
    names = list(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names += _globals_of(constant)
    return names
