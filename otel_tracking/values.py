"""What people log, as numbers and texts. No tensor package is imported for it.

The hot path takes a plain `float` itself; this is for everything else.
"""

from __future__ import annotations

import logging
import math
import numbers
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from otel_tracking.errors import raised_by_handler
from otel_tracking.tags import distinct

_log = logging.getLogger(__name__)

_MAX_DEPTH = 32
_UNREADABLE = (TypeError, ValueError, RuntimeError, ArithmeticError, AttributeError)
"""What objects raise that are not what they look like."""
_warned_of_devices: set[str] = set()


@dataclass(frozen=True, slots=True)
class Number:
    """A value that can be recorded."""

    value: float
    integer: bool = False
    """Whether it was an int or a bool."""
    altered: str = ""
    """Why the double is not exactly what was given; empty when it is."""


@dataclass(frozen=True, slots=True)
class Refused:
    """A value that can't be recorded."""

    reason: str
    """Names types, never values, so that few reasons occur."""


class Leaf(NamedTuple):
    """One value of a nested mapping."""

    name: str
    """The keys from the outside in, joined by the separator."""
    group: str
    """The name of the mapping it lies in; empty for the outermost."""
    value: Number | str | Refused


def to_number(value: Any) -> Number | Refused:
    """Read one number.

    Python's numbers, what has `__float__`, and anything of one element with `.item()`: NumPy
    scalars and arrays, torch tensors of any dtype and shape. NaN and infinities are numbers.
    A tensor on a GPU is read too, which waits for the GPU; a warning says so once.
    """
    try:
        if hasattr(value, "item"):
            value = _element(value)
        return value if isinstance(value, Refused) else _scalar(value)
    except _UNREADABLE as error:
        if raised_by_handler(error):
            raise
        return Refused(f"{_type_name(value)} can't be read as one number ({type(error).__name__})")


def classify(value: Any) -> Number | str | Mapping[Any, Any] | Refused:
    """Tell what a logged value is: a text, a mapping to `flatten`, a number, or nothing to record."""
    if isinstance(value, str):
        return str.__str__(value)  # a subclass may print itself as something else
    if isinstance(value, Mapping):
        return value
    return to_number(value)


def flatten(values: Mapping[Any, Any], sep: str = "/") -> Iterator[Leaf]:
    """The values of nested mappings, in order, each with a name of its own.

    `{"class_accuracy": {"class_0": 0.9}}` is `class_accuracy/class_0` of the group
    `class_accuracy`. Keys that are no texts become texts. Where two ways lead to one name, the
    later gets `~2`. What nests deeper than 32, or within itself, is refused.
    """
    yield from _flatten(values, "", sep, set(), ())


def key_text(key: Any) -> str:
    """A mapping's key as a name."""
    try:
        return str(key)
    except _UNREADABLE as error:
        if raised_by_handler(error):
            raise
        return f"<{_type_name(key)}>"


def _flatten(
    values: Mapping[Any, Any], group: str, sep: str, taken: set[str], outer: tuple[int, ...]
) -> Iterator[Leaf]:
    try:
        items = list(values.items())
    except _UNREADABLE as error:
        if raised_by_handler(error):
            raise
        reason = f"{_type_name(values)} can't be read as a mapping ({type(error).__name__})"
        yield Leaf(distinct(group, taken), group, Refused(reason))
        return
    for key, value in items:
        name = f"{group}{sep}{key_text(key)}" if outer else key_text(key)
        what = classify(value)
        if isinstance(what, Mapping):
            if id(what) in outer or what is values:
                what = Refused("a mapping that contains itself")
            elif len(outer) >= _MAX_DEPTH:
                what = Refused(f"mappings nested deeper than {_MAX_DEPTH}")
            else:
                yield from _flatten(what, name, sep, taken, (*outer, id(values)))
                continue
        name = distinct(name, taken)
        taken.add(name)
        yield Leaf(name, group, what)


def _element(value: Any) -> Any:
    """The one element of an array, a tensor or an array scalar."""
    if type(value).__name__ == "MaskedConstant":
        return Refused("a masked value")  # NumPy reads it as 0.0
    if getattr(getattr(value, "dtype", None), "kind", "") in ("m", "M"):
        return Refused(f"{_type_name(value)} of dates or durations")
    element = value.item()
    device = getattr(getattr(value, "device", None), "type", "cpu")
    if device != "cpu" and device not in _warned_of_devices:
        _warned_of_devices.add(device)
        _log.warning(
            "a %s tensor was logged: reading it waits for the device. Log tensors of an earlier step, "
            "or `.detach().to('cpu', non_blocking=True)`, where that costs too much.",
            device,
        )
    return element


def _scalar(value: Any) -> Number | Refused:
    if isinstance(value, complex) or not hasattr(type(value), "__float__"):
        return Refused(f"{_type_name(value)} is not a number")
    try:
        number = float(value)
    except OverflowError:
        return Refused(f"{_type_name(value)} too large for a double")
    comparable = isinstance(value, numbers.Number)
    if math.isnan(number) or not comparable:
        return Number(number)
    exact = bool(value == number)
    if math.isinf(number) and not exact:
        return Refused(f"{_type_name(value)} too large for a double")
    return Number(number, isinstance(value, int), "" if exact else f"{_type_name(value)} rounded to a double")


def _type_name(value: Any) -> str:
    kind = type(value)
    return (kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}")[
        :100
    ]
