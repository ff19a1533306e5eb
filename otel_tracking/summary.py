"""What a run's journals hold, series by series, in one pass and little memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from otel_tracking.journal.entries import Entry
from otel_tracking.journal.format import RecordType
from otel_tracking.journal.stream import Points
from otel_tracking.reading import journals, read_items
from otel_tracking.records import Float64Array, Series

CURVE_POINTS: Final = 40
"""A curve has half as many at least, once there are as many points, and this many at most."""
_BLOCK_SLOTS: Final = 2**18
"""8 MiB: whole segments. Series are looked at one by one in each block."""


@dataclass(slots=True)
class SeriesSummary:
    """One rank's points of a series."""

    series: Series
    rank: int
    points: int = 0
    last_step: int = 0
    last_value: float = float("nan")
    lowest: float = float("nan")
    """Of the numbers; NaN if there are none."""
    highest: float = float("nan")
    curve: Curve = field(default_factory=lambda: Curve())

    def add(self, steps: npt.NDArray[np.int64], values: Float64Array) -> None:
        """Take the next points, in recorded order; at least one."""
        self.points += len(values)
        self.last_step, self.last_value = int(steps[-1]), float(values[-1])
        self.lowest = float(np.fmin(self.lowest, np.fmin.reduce(values)))
        self.highest = float(np.fmax(self.highest, np.fmax.reduce(values)))
        self.curve.add(values)


class Curve:
    """The course of a series: means of stretches of equal length, which doubles as the series grows."""

    def __init__(self) -> None:
        self._length = 1
        self._seen = 0
        self._sums: Float64Array = np.zeros(0)
        self._counts: Float64Array = np.zeros(0)

    def add(self, values: Float64Array) -> None:
        """Take the next values; NaN and infinities are left out of the means."""
        place = (self._seen + np.arange(len(values))) // self._length
        self._seen += len(values)
        finite = np.isfinite(values)
        size = int(place[-1]) + 1
        sums, counts = np.zeros(size), np.zeros(size)
        sums[: len(self._sums)], counts[: len(self._counts)] = self._sums, self._counts
        sums += np.bincount(place[finite], weights=values[finite], minlength=size)
        counts += np.bincount(place[finite], minlength=size)
        while len(sums) > CURVE_POINTS:
            odd = len(sums) % 2
            sums = np.pad(sums, (0, odd)).reshape(-1, 2).sum(1)
            counts = np.pad(counts, (0, odd)).reshape(-1, 2).sum(1)
            self._length *= 2
        self._sums, self._counts = sums, counts

    def means(self) -> Float64Array:
        """(at most CURVE_POINTS,) NaN where a stretch holds no finite number."""
        with np.errstate(invalid="ignore", divide="ignore"):
            means: Float64Array = self._sums / self._counts
        return means


@dataclass(slots=True)
class RunSummary:
    """What all ranks of a run recorded."""

    series: list[SeriesSummary] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    texts: int = 0
    media: dict[str, int] = field(default_factory=dict)
    """How many, by kind."""
    starts: list[tuple[int, dict[str, Any]]] = field(default_factory=list)
    """When processes began to write, nanoseconds since the epoch, and who they were."""
    status: str = ""
    """As the last process said that it ended; empty if it said nothing."""
    damaged: int = 0
    """Points that were recorded and can't be read."""
    removed: int = 0
    """Points that were removed to save space."""
    rewinds: list[int] = field(default_factory=list)
    """Steps that training went back to."""

    @property
    def points(self) -> int:
        """Of all series."""
        return sum(each.points for each in self.series)


def summarize(path: Path) -> RunSummary:
    """Look at everything that a run holds now.

    Args:
        path: As for `read_run`.

    Raises:
        ConfigurationError: There is no journal.
        UnsupportedJournal: A journal is of another version.
    """
    summary = RunSummary()
    for rank, journal in journals(path):
        found: list[SeriesSummary] = []
        for item, series in read_items(journal, _BLOCK_SLOTS):
            if isinstance(item, Points):
                found += [SeriesSummary(each, rank) for each in series[len(found) :]]
                _add_points(found, item)
            else:
                _add_entry(summary, item)
        summary.series += found
    return summary


def _add_points(found: Sequence[SeriesSummary], points: Points) -> None:
    # Of 16 bits, NumPy sorts by radix.
    order = np.argsort(points.index.astype(np.int16 if len(found) < 2**15 else np.int32), kind="stable")
    steps, values = points.steps[order], points.values[order]
    counts = np.bincount(points.index)
    stop = 0
    for index, count in enumerate(counts.tolist()):
        start, stop = stop, stop + count
        if count:
            found[index].add(steps[start:stop], values[start:stop])


def _add_entry(summary: RunSummary, entry: Entry) -> None:
    if entry.type == RecordType.CONFIG:
        summary.config |= entry.content["config"]
    elif entry.type == RecordType.TEXT:
        summary.texts += 1
    elif entry.type == RecordType.MEDIA:
        kind = str(entry.content["kind"])
        summary.media[kind] = summary.media.get(kind, 0) + 1
    elif entry.type == RecordType.START:
        summary.starts.append((entry.time, entry.content))
        summary.status = ""
    elif entry.type == RecordType.END:
        summary.status = str(entry.content["status"])
    elif entry.type == RecordType.GONE:
        if entry.content["removed"]:
            summary.removed += entry.content["points"]
        else:
            summary.damaged += entry.content["points"]
    elif entry.type == RecordType.REWIND:
        summary.rewinds.append(entry.step)
