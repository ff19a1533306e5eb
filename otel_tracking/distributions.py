"""Distributions of OpenTelemetry's Histogram instruments, made of the points that they recorded.

Each value that such an instrument records is a point. From time to time the values of each of its series
since the last time become a histogram too, which is recorded like any other (`log_histogram`). They are
read back from the journal, so that recording a value costs no more for it.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt

from otel_tracking.errors import JournalFull
from otel_tracking.journal.entries import entry_bytes
from otel_tracking.journal.format import RecordType
from otel_tracking.journal.stream import Points, RecordStream
from otel_tracking.journal.writer import JournalWriter
from otel_tracking.media.histograms import exponential_details
from otel_tracking.records import Float64Array, Kind, MediaKind
from otel_tracking.registry import SeriesRegistry

_LOG: Final = logging.getLogger(__name__)
_SUFFIX: Final = "/distribution"
"""Of the name: charts of trackers hold numbers or distributions, not both."""
_SCALE: Final = 4
"""Buckets are 2**2**-4 wide, 4.4 %, as in an OpenTelemetry exponential histogram of that scale."""
_SHARE: Final = 0.05
"""Of a processor, for reading the journal while nobody waits."""


class Source(Protocol):
    """What is needed of a recorder."""

    registry: SeriesRegistry | None
    journal: JournalWriter | None


class Distributions:
    """Records the distributions of a run's Histogram instruments, on the thread that calls `run`."""

    def __init__(self, recorder: Source, interval: float) -> None:
        """Make one.

        Args:
            recorder: Whose journal is read, and into which they go.
            interval: Seconds between two of a series; 0 for none at all.
        """
        self._recorder = recorder
        self._interval = interval
        self._values: dict[int, Values] = {}
        self._journal: JournalWriter | None = None
        """The one of this run: the recorder may have another one by the time that a late end is done."""
        self._stream: RecordStream | None = None
        self._ending = threading.Event()
        self._done = threading.Event()

    def run(self, begun: Callable[[], object]) -> None:
        """Record distributions at each interval and at the end. Never raises.

        Args:
            begun: Waits until the journal has its place.
        """
        try:
            begun()
            self._journal = self._recorder.journal
            last = not self._interval
            while not last:
                last = self._ending.wait(self._interval)
                self._collect()
        except Exception:  # noqa: BLE001 - of this thread no one else hears; and points are what counts
            _LOG.exception("distributions of histograms are recorded no more; their points are")
        finally:
            if self._stream is not None:
                self._stream.close()
            self._done.set()

    def finish(self, timeout: float) -> None:
        """Have the last ones recorded, and no more; wait that many seconds for it."""
        self._ending.set()
        if self._interval and self._wanted() and not self._done.wait(timeout):
            _LOG.warning("the last distributions of histograms took too long; their points are recorded")

    def _wanted(self) -> bool:
        registry = self._recorder.registry
        return registry is not None and registry.has(Kind.HISTOGRAM)

    def _collect(self) -> None:
        journal = self._journal
        if journal is None or not self._wanted():
            return
        if self._stream is None:
            # What an earlier process recorded was that one's business.
            self._stream = RecordStream(journal.descriptor, segment=journal.start >> 32)
        until = journal.position
        while self._stream.position < until:
            begin = time.thread_time()
            items = self._stream.read()
            if items is None:
                break
            for item in items:
                if isinstance(item, Points):
                    self._add(item)
            self._ending.wait((time.thread_time() - begin) / _SHARE)
        for index, values in self._values.items():
            if values.count:
                content = {
                    "kind": MediaKind.HISTOGRAM.value,
                    "tag": self._stream.series[index].tag + _SUFFIX,
                    "files": [],
                    "details": values.details(),
                    "options": {},
                }
                with contextlib.suppress(JournalFull):
                    journal.append(entry_bytes(RecordType.MEDIA, content, step=values.step))
        self._values.clear()

    def _add(self, points: Points) -> None:
        assert self._stream is not None
        of_histogram = np.fromiter((s.kind is Kind.HISTOGRAM for s in self._stream.series), np.bool_)
        (places,) = np.nonzero(of_histogram[points.index])
        places = places[np.argsort(points.index[places], kind="stable")]
        series, first = np.unique(points.index[places], return_index=True)
        for index, some in zip(series.tolist(), np.split(places, first[1:]), strict=False):
            self._values.setdefault(index, Values()).add(points.values[some], int(points.steps[some[-1]]))


class Values:
    """Values of one series, counted in exponential buckets.

    Attributes:
        count: How many finite ones.
        step: Of the last one.
    """

    def __init__(self) -> None:
        self.count = 0
        self.step = 0
        self._sum = 0.0
        self._least, self._most = float("inf"), float("-inf")
        self._zeros = 0
        self._negative: dict[int, float] = {}
        self._positive: dict[int, float] = {}

    def add(self, values: Float64Array, step: int) -> None:
        """Count some more. NaN and infinities have no place in a distribution.

        Args:
            values: (n,)
            step: Of the last one.
        """
        self.step = step
        finite = values[np.isfinite(values)]
        if not len(finite):
            return
        self.count += len(finite)
        with np.errstate(over="ignore"):
            self._sum += float(finite.sum())
        self._least = min(self._least, float(finite.min()))
        self._most = max(self._most, float(finite.max()))
        negative, positive = -finite[finite < 0], finite[finite > 0]
        self._zeros += len(finite) - len(negative) - len(positive)
        _count(negative, self._negative)
        _count(positive, self._positive)

    def details(self) -> dict[str, Any]:
        """What `MediaKind.HISTOGRAM` says; there has to be a value."""
        return exponential_details(
            self._negative,
            self._zeros,
            self._positive,
            scale=_SCALE,
            extremes=(self._least, self._most),
            total=self._sum,
        )


def _count(magnitudes: npt.NDArray[np.float64], buckets: dict[int, float]) -> None:
    indices, counts = np.unique(np.floor(np.log2(magnitudes) * 2**_SCALE), return_counts=True)
    for index, count in zip(indices.astype(np.int64).tolist(), counts.tolist(), strict=True):
        buckets[index] = buckets.get(index, 0) + count
