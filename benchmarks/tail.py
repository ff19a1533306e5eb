"""The slowest calls, alone and beside a thread that never rests."""

from __future__ import annotations

import contextlib
import threading
import time
from array import array
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from opentelemetry import metrics
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from torch.utils.tensorboard import SummaryWriter

from benchmarks.measuring import Size
from benchmarks.tables import Table, micros
from otel_tracking import Tracking

_QUANTILES = (0.5, 0.99, 0.999, 1.0)
_COLUMNS = ("", "calls", "p50", "p99", "p99.9", "slowest")
_Call = Callable[[int], object]


def measure(size: Size) -> list[Table]:
    """Every call timed by itself; medians of each quantile over passes in turn."""
    sdk = MeterProvider([InMemoryMetricReader()], shutdown_on_exit=False)
    sdk_gauge = sdk.get_meter("train").create_gauge("train/loss")
    writer = SummaryWriter("summary-writer")
    peers: dict[str, tuple[_Call, int]] = {
        "SDK gauge.set": (lambda step: sdk_gauge.set(0.5, {"split": "train"}), size(100_000, 5_000)),
        "SummaryWriter.add_scalar": (
            lambda step: writer.add_scalar("train/loss", 0.5, step),
            size(2_000, 200),
        ),
    }
    passes, calls = size(5, 1), size(1_000_000, 10_000)
    rows = [
        *_ours("journal alone", [], calls=calls, passes=passes),
        *_ours("TensorBoard delivered", ["tensorboard"], calls=calls, passes=passes),
        *(
            row
            for name, (call, count) in peers.items()
            for row in _rows(name, call, calls=count, passes=passes)
        ),
    ]
    writer.close()
    return [Table("A single call, wall time, the timer's own included", _COLUMNS, rows)]


def _ours(setup: str, trackers: list[str], *, calls: int, passes: int) -> list[Sequence[str]]:
    with Tracking(log_with=trackers, project_dir="runs") as tracking:
        tracking.init_trackers("tail")
        gauge = metrics.get_meter("train").create_gauge("train/loss")
        return _rows(
            f"gauge.set, {setup}",
            lambda step: gauge.set(0.5, {"training.step": step}),
            calls=calls,
            passes=passes,
        )


def _rows(name: str, call: _Call, *, calls: int, passes: int) -> list[Sequence[str]]:
    alone, beside = [], []
    for _ in range(passes):
        alone.append(_quantiles(call, calls))
        with _busy_thread():
            beside.append(_quantiles(call, calls))
    return [
        (what, f"{calls:,}", *map(micros, np.median(of, axis=0).tolist()))
        for what, of in ((name, alone), (f"{name}, busy thread", beside))
    ]


def _quantiles(call: _Call, calls: int) -> list[float]:
    clock = time.perf_counter_ns
    spent = array("q", bytes(8 * calls))
    for step in range(calls):
        begin = clock()
        call(step)
        spent[step] = clock() - begin
    quantiles: list[float] = np.quantile(np.frombuffer(spent, dtype=np.int64), _QUANTILES).tolist()
    return quantiles


@contextlib.contextmanager
def _busy_thread() -> Iterator[None]:
    done = False

    def work() -> None:
        while not done:
            sum(range(100))

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        done = True
        thread.join()
