"""What trackers are given, made by hand."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from otel_tracking.records import Batch, Kind, RunInfo, Series

T0 = 1_790_000_000_123_456_789


def run_info(place: Path, **changes: Any) -> RunInfo:
    """A run `run-1` of the project `project`."""
    directory = place / "project" / "run-1"
    directory.mkdir(parents=True, exist_ok=True)
    given: dict[str, Any] = {
        "project": "project",
        "run_id": "run-1",
        "name": "first try",
        "directory": directory,
        "logging_dir": place,
    }
    return RunInfo(**{**given, **changes})


def batch(points: Iterable[tuple[str, int, float]], first: int = 1) -> Batch:
    """Points (tag, step, value), each at a position and a second of its own."""
    rows = list(points)
    tags = list(dict.fromkeys(tag for tag, _, _ in rows))
    count = len(rows)
    return Batch(
        [Series(tag, tag, Kind.GAUGE) for tag in tags],
        np.array([tags.index(tag) for tag, _, _ in rows], dtype=np.int32),
        np.array([step for _, step, _ in rows], dtype=np.int64),
        T0 + np.arange(first, first + count, dtype=np.int64) * 10**9,
        np.array([value for _, _, value in rows], dtype=np.float64),
        np.arange(first, first + count, dtype=np.int64),
    )
