"""Anonymous memory while a run grows a hundredfold."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from opentelemetry import metrics

from benchmarks.measuring import Size, in_own_process
from benchmarks.tables import Table, verdict
from otel_tracking import Tracking

_MIB = 2**20
_GROWTH_LIMIT = 32 * _MIB
_SEGMENT_LIMIT = 3
_COLUMNS = ("", "at first", "highest after", "growth", "at most", "mapped segments", "at most", "")


def measure(size: Size) -> list[Table]:
    """With nothing but the journal, and with TensorBoard delivered."""
    first, last = size(100_000, 10_000), size(10_000_000, 300_000)
    rows = [
        _row(setup, in_own_process(grow, trackers, first, last))
        for setup, trackers in (("journal alone", []), ("TensorBoard delivered", ["tensorboard"]))
    ]
    return [Table(f"Anonymous memory (RssAnon), {first:,} to {last:,} points by gauge.set", _COLUMNS, rows)]


@dataclass(frozen=True, slots=True)
class Growth:
    """What a run took of memory, in bytes."""

    first: int
    """After the first points had been delivered."""
    highest: int
    """From then on, until the run had ended."""
    segments: int
    """The journal's segments that were mapped at once, at most."""


def grow(trackers: Sequence[str], first: int, last: int) -> Growth:
    """Record until there are `last` points, watching from the `first` ones on."""
    tracking = Tracking(log_with=list(trackers), project_dir="runs")
    tracking.init_trackers("memory")
    gauge = metrics.get_meter("train").create_gauge("train/loss")
    for step in range(first):
        gauge.set(0.5, {"training.step": step})
    if not tracking.flush():
        raise RuntimeError("the first points were not delivered")
    begin = anonymous_memory()
    with Watch() as watch:
        for step in range(first, last):
            gauge.set(0.5, {"training.step": step})
        tracking.end_training(timeout=600)
    for tracker in tracking.receipt().trackers.values():
        if tracker.delivered != last:
            raise RuntimeError(f"{tracker.delivered} of {last} points were delivered")
    return Growth(begin, watch.highest, watch.segments)


class Watch(threading.Thread):
    """Looks at this process's memory a hundred times a second."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.highest = 0
        self.segments = 0
        self._done = threading.Event()

    def run(self) -> None:
        """Look until told to stop, and then once more."""
        while not self._done.wait(0.01):
            self._look()
        self._look()

    def _look(self) -> None:
        self.highest = max(self.highest, anonymous_memory())
        self.segments = max(self.segments, Path("/proc/self/maps").read_text().count(".segment\n"))

    def __enter__(self) -> Watch:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._done.set()
        self.join()


def anonymous_memory() -> int:
    """Bytes of anonymous memory that this process holds."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("this kernel does not tell RssAnon")


def _row(setup: str, growth: Growth) -> Sequence[str]:
    grown = growth.highest - growth.first
    return (
        setup,
        _mib(growth.first),
        _mib(growth.highest),
        f"{grown / _MIB:+.1f} MiB",
        f"{_GROWTH_LIMIT / _MIB:+.0f} MiB",
        str(growth.segments),
        str(_SEGMENT_LIMIT),
        verdict(grown <= _GROWTH_LIMIT and growth.segments <= _SEGMENT_LIMIT),
    )


def _mib(size: int) -> str:
    return f"{size / _MIB:.1f} MiB"
