"""A config as MLflow's parameters: flat, of limited size, in requests of limited size."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from mlflow.entities import Param
from mlflow.utils.validation import MAX_PARAM_VAL_LENGTH, MAX_PARAMS_TAGS_PER_BATCH

from otel_tracking.media.histograms import QUANTILE_PARTS
from otel_tracking.names import NameRule

NAMES = NameRule(
    forbidden=r"^/\w.\- :",
    # MLflow takes names for paths and refuses any that `normpath` would change, or that begins with `..`.
    forbidden_parts=r"^/|/(?=/|\Z)|(?<![^/])\.(?=/|\Z)|(?<![^/])\.(?=\.(?:/|\Z))|^\.(?=\.)",
    max_length=250,
)
"""The names of parameters and tags."""

METRICS = replace(NAMES, forbidden_parts=f"{NAMES.forbidden_parts}|{QUANTILE_PARTS}")
"""The names of metrics."""

REQUEST_BYTES = 900_000
"""The server refuses requests over 1,000,000 bytes; the rest is for what surrounds the entries."""

_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")
_Entry = TypeVar("_Entry")


def flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """(name, text) of each leaf of nested mappings: `{"a": {"b": [1]}}` is `a/b`, `[1]`."""
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{name}/")
        elif isinstance(value, str):
            yield name, value
        elif isinstance(value, bool | int | float):
            yield name, str(value)
        else:
            yield name, json.dumps(value, ensure_ascii=False, default=str)


def storable(text: str) -> str:
    """The text with what no database takes (NUL, lone surrogates) written as an escape."""
    return _UNSTORABLE.sub(lambda m: ascii(m[0])[1:-1], text)


def cut(text: str, limit: int, where: str) -> str:
    """The text in at most `limit` characters; where it was cut says so, and where it is whole."""
    mark = f"... [cut; all {len(text)} characters are in {where}]"
    return text if len(text) <= limit else text[: limit - len(mark)] + mark


def parameters(values: Mapping[str, Any]) -> tuple[dict[str, str], set[str]]:
    """What MLflow can hold of a config.

    Returns:
        The parameters, and the reasons why they are not exactly the config.
    """
    found: dict[str, str] = {}
    altered = set()
    for name, text in flatten(values):
        key = NAMES.escape(name)
        kept = cut(storable(text), MAX_PARAM_VAL_LENGTH, "config.json")
        if kept != text:
            altered.add("param too long or not text; it is whole in config.json")
        if key in found:
            altered.add("two params of one name; both are in config.json")
        found.setdefault(key, kept)
    return found, altered


def param_requests(params: Mapping[str, str]) -> Iterator[list[Param]]:
    """The parameters in portions that MLflow takes in one request."""
    entries = [(Param(key, value), json_bytes(key) + json_bytes(value) + 30) for key, value in params.items()]
    yield from portions(entries, MAX_PARAMS_TAGS_PER_BATCH)


def portions(entries: Sequence[tuple[_Entry, int]], most: int) -> Iterator[list[_Entry]]:
    """Entries, each given with its bytes in a request, in lists of at most `most` and `REQUEST_BYTES`."""
    part: list[_Entry] = []
    room = REQUEST_BYTES
    for entry, size in entries:
        if part and (size > room or len(part) == most):
            yield part
            part, room = [], REQUEST_BYTES
        part.append(entry)
        room -= size
    if part:
        yield part


def json_bytes(text: str) -> int:
    """How many bytes a text takes in a request."""
    return len(json.dumps(text))
