"""What numbers in arguments may be; light, since the command line imports it.

A number is Python's, NumPy's or a tensor's without dimensions, never a bool or a text.
"""

from __future__ import annotations

import math
import numbers
from typing import Any

# engines keep a slot's number in 16 bits
MOST_SLOTS = 65535
# a cell of more pixels than that says nothing about any of them
MOST_GRAIN = 256
# of a value in a message
MOST_LETTERS = 60


def finite(name: str, value: Any, *, least: float = -math.inf, above: float = -math.inf) -> float:
    """Give a finite number >= `least` and > `above` as a float. Raises: ValueError."""
    number = _python(value)
    try:
        found = float(number) if isinstance(number, numbers.Real) else math.nan
    except OverflowError:
        found = math.inf
    if not (math.isfinite(found) and found >= least and found > above):
        limit = f" >= {least:g}" if math.isfinite(least) else ""
        limit += f" > {above:g}" if math.isfinite(above) else ""
        raise ValueError(f"{name} is {shown(value)}, expected a finite number{limit}")
    return found


def whole(name: str, value: Any, *, least: int, most: int | None = None, unit: str = "") -> int:
    """Give a whole number from `least` to `most` as an int. Raises: ValueError."""
    number = _python(value)
    found = int(number) if isinstance(number, numbers.Integral) else least - 1
    if found < least or (most is not None and found > most):
        unit = f" of {unit}" if unit else ""
        limits = f"at least {least}" if most is None else f"{least} to {most}"
        raise ValueError(f"{name} is {shown(value)}, expected a whole number{unit}, {limits}")
    return found


def several(
    name: str, values: Any, count: int, meaning: str, *, above: float = -math.inf
) -> tuple[float, ...]:
    """Give as many finite numbers > `above`, from a sequence, an array or a tensor, as floats.

    meaning: what they are, for the message: "one per channel"
    Raises: ValueError.
    """
    found = _items(values)
    if found is None:
        raise ValueError(f"{name} is {shown(values)}, expected {count} numbers, {meaning}")
    if len(found) != count:
        raise ValueError(f"{name} has {len(found)} numbers, expected {count}, {meaning}")
    return tuple(finite(f"{name}[{k}]", v, above=above) for k, v in enumerate(found))


def pair(
    name: str, values: Any, meaning: str, *, least: int, most: int | None = None
) -> tuple[int, int]:
    """Give two whole numbers from `least` to `most`, from a sequence, an array or a tensor.

    meaning: what they are, for the message: "(y, x)"

    Raises: ValueError.
    """
    try:
        first, second = (whole(name, v, least=least, most=most) for v in _items(values) or ())
    except ValueError:
        limits = f"at least {least}" if most is None else f"{least} to {most}"
        raise ValueError(
            f"{name} is {shown(values)}, expected two whole numbers {meaning}, {limits}"
        ) from None
    return first, second


def shown(value: Any) -> str:
    """Put a value as messages have it: on one line, not too long."""
    text = " ".join(repr(value).split())
    return text if len(text) <= MOST_LETTERS else f"{text[:MOST_LETTERS]} …"


def _python(value: Any) -> Any:
    """Take the number out of an array or a tensor without dimensions; a bool is none."""
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
        try:
            value = value.item()
        except (RuntimeError, NotImplementedError):
            # a tensor that holds no data
            return None
    return None if isinstance(value, bool) else value


def _items(values: Any) -> list[Any] | None:
    """List what a sequence, an array or a tensor holds; None: it is none of them."""
    if isinstance(values, (str, bytes, set, frozenset, dict)):
        return None
    try:
        return list(values)
    except (TypeError, RuntimeError, NotImplementedError):
        return None
