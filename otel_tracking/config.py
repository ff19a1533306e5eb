"""Hyperparameters of any shape, as what JSON can hold."""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import enum
import functools
import logging
import math
import numbers
import os
import re
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from typing import Any, Final, TypeAlias

from otel_tracking.redaction import redact
from otel_tracking.tags import distinct
from otel_tracking.values import key_text

_LOG: Final = logging.getLogger(__name__)

Leaf: TypeAlias = bool | int | float | str | list[Any] | None
"""What a configuration consists of once it is flat."""

_MAX_DEPTH = 32
_MAX_VALUES = 100_000
_MAX_REPR = 1_000
_MAX_ELEMENTS = 64
_INT_MIN, _INT_MAX = -(2**63), 2**64 - 1
_NAMED_BY_STR = ("torch", "numpy", "numpy.dtypes")
"""Modules of dtypes and devices, whose `repr` is longer than their name."""
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


def redacted(config: Any) -> tuple[dict[str, Any], list[str]]:
    """A configuration as it may be recorded, and the names of what looked like secrets, with a warning."""
    jsonable, secrets = redact(to_jsonable(config))
    if secrets:
        _LOG.warning("these look like secrets, and are not recorded: %s", ", ".join(secrets[:20]))
    return jsonable, secrets


def without_secrets(options: Any) -> Any:
    """A tracker's `init_kwargs`; of a `config` in it, what may be recorded."""
    if not isinstance(options, Mapping):
        return options
    config, secrets = redacted(options.get("config"))
    return {**options, "config": config} if secrets else options


def to_jsonable(config: Any) -> dict[str, Any]:
    """A configuration as nested dicts, lists, None and JSON's scalars; NaN and infinities stay floats.

    Takes mappings (OmegaConf's too), dataclasses, pydantic's and attrs' objects, partial functions, named
    tuples and namespaces, nested in any way, and at the top any other object with public attributes. Enums
    become their values, sets sorted lists, paths and dates text, functions and classes their qualified
    names, arrays and tensors of up to 64 elements lists, ints beyond 64 bits text. Keys become text; of two
    that become the same text, the later gets `~2`. What is nothing of that becomes its `repr`, cut at 1,000
    characters and without addresses, which differ in each run.

    Never raises: what can't be read is replaced by a word in angle brackets (`<cycle>`, `<too deep>`,
    `<cut>` after 100,000 values).
    """
    if config is None:
        return {}
    converter = _Converter()
    values = converter.convert(config)
    if isinstance(values, dict):
        return values
    attributes = {} if callable(config) else getattr(config, "__dict__", {})
    public = {name: value for name, value in attributes.items() if not name.startswith("_")}
    return converter.convert(public) if public else {"config": values}


def flatten_config(values: Mapping[str, Any], sep: str = "/") -> dict[str, Leaf]:
    """The configuration as one level of names, for trackers that have no other; lists stay whole.

    Args:
        values: What `to_jsonable` returned.
        sep: Between the keys of a name.

    Returns:
        Values by name; an empty mapping is the text `{}`. Of two ways to one name, the later gets `~2`.
    """
    flat: dict[str, Leaf] = {}
    for name, value in _leaves(values, "", sep):
        flat[distinct(name, flat)] = value
    return flat


def without_surrogates(value: Any) -> Any:
    """The same, with lone surrogates as escapes: no UTF-8 file or database can hold them."""
    match value:
        case str():
            return value.encode(errors="backslashreplace").decode()
        case Mapping():
            return {without_surrogates(key): without_surrogates(inner) for key, inner in value.items()}
        case list() | tuple():
            return [without_surrogates(inner) for inner in value]
    return value


def _leaves(values: Mapping[str, Any], prefix: str, sep: str) -> Iterator[tuple[str, Leaf]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{key}{sep}", sep)
        else:
            yield f"{prefix}{key}", "{}" if isinstance(value, Mapping) else value


class _Converter:
    """One conversion: where in the nesting it is, and how many values it may still take."""

    def __init__(self) -> None:
        self._outer: list[int] = []
        self._left = _MAX_VALUES

    def convert(self, value: Any) -> Any:
        self._left -= 1
        try:
            return self._convert(value)
        except Exception as error:  # noqa: BLE001 - properties and methods of any object may raise anything
            return f"<{type(value).__name__}: {type(error).__name__}>"

    def _convert(self, value: Any) -> Any:
        match value:
            case None | bool():
                return value
            case enum.Enum():
                return self.convert(value.value)
            case str():
                return str.__str__(value)  # a subclass may print itself as something else
            case int():
                return int(value) if _INT_MIN <= value <= _INT_MAX else str(int(value))
            case float():
                return float(value)
            case type():
                return _qualified_name(value)
            case Mapping():
                return self._inside(value, lambda: self._mapping(value.items()))
            case argparse.Namespace() | types.SimpleNamespace():
                return self._inside(value, lambda: self._mapping(vars(value).items()))
            case tuple() if hasattr(value, "_fields"):
                return self._inside(value, lambda: self._mapping(zip(value._fields, value, strict=True)))
            case Set():
                return self._inside(value, lambda: self._list(_sorted(value)))
            case bytes() | bytearray() | memoryview() | range():
                return _readable(value)
            case Sequence():
                return self._inside(value, lambda: self._list(value))
            case datetime.date() | datetime.time():
                return value.isoformat()
            case os.PathLike():
                return os.fsdecode(value)
        if dataclasses.is_dataclass(value):
            fields = [f.name for f in dataclasses.fields(value) if hasattr(value, f.name)]
            return self._inside(value, lambda: self._mapping((name, getattr(value, name)) for name in fields))
        if isinstance(value, functools.partial):
            parts = {"function": value.func, "arguments": value.args, "keywords": value.keywords}
            return self._inside(value, lambda: self._mapping(parts.items()))
        if names := _field_names(value):
            return self._inside(value, lambda: self._mapping((name, getattr(value, name)) for name in names))
        if hasattr(value, "dtype") and hasattr(value, "tolist"):
            return self._inside(value, lambda: self._array(value))
        if isinstance(value, numbers.Number) or type(value).__module__ in _NAMED_BY_STR:
            return str(value)
        if callable(value) and hasattr(value, "__qualname__"):
            return _qualified_name(value)
        return _readable(value)

    def _inside(self, value: Any, convert: Callable[[], Any]) -> Any:
        """Convert what a container holds, unless that is itself."""
        if id(value) in self._outer:
            return "<cycle>"
        if len(self._outer) >= _MAX_DEPTH:
            return "<too deep>"
        self._outer.append(id(value))
        try:
            return convert()
        finally:
            self._outer.pop()

    def _mapping(self, items: Iterable[tuple[Any, Any]]) -> dict[str, Any]:
        converted: dict[str, Any] = {}
        for key, value in items:
            if self._left <= 0:
                converted[distinct("<cut>", converted)] = True
                break
            converted[distinct(key_text(key), converted)] = self.convert(value)
        return converted

    def _list(self, values: Iterable[Any]) -> list[Any]:
        converted: list[Any] = []
        for value in values:
            if self._left <= 0:
                converted.append("<cut>")
                break
            converted.append(self.convert(value))
        return converted

    def _array(self, value: Any) -> Any:
        shape = tuple(value.shape)
        if math.prod(shape) > _MAX_ELEMENTS:
            return f"<{type(value).__name__} {value.dtype} of shape {shape}>"
        plain = value.tolist()
        # Of a type that Python has no number for (long double), NumPy returns the scalar itself.
        return float(plain) if hasattr(plain, "dtype") else self.convert(plain)


def _field_names(value: Any) -> list[str]:
    """What pydantic and attrs say that an object of theirs consists of."""
    kind = type(value)
    if isinstance(fields := getattr(kind, "model_fields", None), Mapping):
        return list(fields)
    return [field.name for field in getattr(kind, "__attrs_attrs__", ())]


def _sorted(values: Set[Any]) -> list[Any]:
    try:
        return sorted(values)
    except TypeError:  # of several types, or of one without an order
        return sorted(values, key=repr)


def _qualified_name(value: Any) -> str:
    return ".".join(filter(None, (value.__module__, value.__qualname__)))


def _readable(value: Any) -> str:
    text = _ADDRESS.sub("", repr(value))
    return text if len(text) <= _MAX_REPR else f"{text[: _MAX_REPR - 1]}…"
