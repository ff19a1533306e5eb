"""What a row, a log option and a config value of the journal are in W&B's terms."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from otel_tracking.config import without_surrogates
from otel_tracking.names import NameRule

STEP = "training/step"
"""The history field that holds a row's step, and the x-axis of every chart."""
TIME = "_timestamp"
"""W&B's own field for a row's time, in seconds since the epoch."""

CONFIG_NAMES = NameRule(forbidden_parts=r"^-|-\Z|^_(?=wandb\Z)")
"""W&B strips dashes off config keys, and keeps `_wandb` to itself."""

_NESTED_NAMES = NameRule(empty="")
_ARTIFACT = "wandb-artifact://"


def split_row(
    tags: list[str], index: list[int], steps: list[int], times: list[int], values: list[float]
) -> list[dict[str, Any]]:
    """The points of one position as W&B rows, most often one: a row has one step, one time, and a name once.

    Args:
        tags: Escaped, by the numbers in `index`.
        index: Of each point, as the columns that follow.
        steps: Of each point.
        times: Nanoseconds since the epoch.
        values: Of each point.
    """
    parts: list[dict[str, Any]] = []
    part: dict[str, Any] = {}
    at = None
    for series, step, time_ns, value in zip(index, steps, times, values, strict=True):
        tag = tags[series]
        if at != (step, time_ns) or tag in part:
            at = (step, time_ns)
            part = {STEP: step, TIME: time_ns / 1e9}
            parts.append(part)
        part[tag] = value
    return parts


def unused_options(options: Mapping[str, Any]) -> list[str]:
    """Why some of a row's `log_kwargs` have no effect."""
    reasons = []
    if "step" in options:
        reasons.append("log option 'step' is not passed on: the row's own step is stored")
    if options.keys() - {"step", "commit"}:
        reasons.append("log options W&B has no use for")
    return reasons


def config_value(value: Any) -> Any:
    """A JSON value as W&B keeps it: what it would change or look up becomes text.

    Raises:
        RecursionError: It is nested too deep.
    """
    match value:
        case float() if not math.isfinite(value):
            return json.dumps(value)  # W&B would make NaN null; elsewhere it spells it so itself
        case str():
            # W&B would look up the artifact such a text names, online.
            text = json.dumps(value) if value.startswith(_ARTIFACT) else value
            return without_surrogates(text)
        case Mapping() if value.get("_type") == "artifactVersion":
            return json.dumps(value)
        case Mapping():
            return {_NESTED_NAMES.escape(key): config_value(inner) for key, inner in value.items()}
        case list() | tuple():
            return [config_value(inner) for inner in value]
    return value
