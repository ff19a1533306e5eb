"""CPU time of the whole process for a point that ends up in TensorBoard's file."""

from __future__ import annotations

import resource
import statistics
from collections.abc import Callable, Sequence

from opentelemetry import metrics

from benchmarks.measuring import Size, in_own_process
from benchmarks.tables import COMPARISON, Table, compared
from otel_tracking import Tracking

_NAMES = [f"train/metric_{i}" for i in range(20)]


def measure(size: Size) -> list[Table]:
    """Marginal: what 4n points cost more than n, each in a process of its own."""
    n, rounds = size(50_000, 2_000), size(5, 1)
    workers = [by_gauge, by_log, by_two_logs, by_summary_writer]
    costs: list[list[float]] = [[] for _ in workers]
    for _ in range(rounds):
        for worker, marginal in zip(workers, costs, strict=True):
            less, more = (in_own_process(worker, range(count // len(_NAMES))) for count in (n, 4 * n))
            marginal.append((more - less) / (3 * n) * 1e9)
    gauge, log, two_logs, peer = map(statistics.median, costs)
    rows = [
        compared("gauge.set", gauge, peer, at_most=20),
        compared("log of ten scalars", log, peer, at_most=20),
        compared("log of ten, then of ten others", two_logs, peer, at_most=20),
    ]
    title = "CPU a point, whole process, TensorBoard delivered; peer: SummaryWriter.add_scalar"
    return [Table(title, COMPARISON, rows)]


def by_gauge(steps: Sequence[int]) -> float:
    """CPU seconds from the first point until the run has ended."""

    def record(tracking: Tracking) -> None:
        meter = metrics.get_meter("train")
        gauges = [meter.create_gauge(name) for name in _NAMES]
        for step in steps:
            for gauge in gauges:
                gauge.set(0.5, {"training.step": step})

    return _delivered(record, len(steps) * len(_NAMES))


def by_log(steps: Sequence[int]) -> float:
    """CPU seconds from the first point until the run has ended."""

    def record(tracking: Tracking) -> None:
        for step in steps:
            tracking.log(dict.fromkeys(_NAMES[:10], 0.5), step=2 * step)
            tracking.log(dict.fromkeys(_NAMES[:10], 0.5), step=2 * step + 1)

    return _delivered(record, len(steps) * len(_NAMES))


def by_two_logs(steps: Sequence[int]) -> float:
    """CPU seconds from the first point until the run has ended."""

    def record(tracking: Tracking) -> None:
        for step in steps:
            tracking.log(dict.fromkeys(_NAMES[:10], 0.5), step=step)
            tracking.log(dict.fromkeys(_NAMES[10:], 0.5), step=step)

    return _delivered(record, len(steps) * len(_NAMES))


def by_summary_writer(steps: Sequence[int]) -> float:
    """CPU seconds from the first point until the file is closed."""
    from torch.utils.tensorboard import SummaryWriter  # only this worker needs torch, which takes seconds

    writer = SummaryWriter("summary-writer")
    begin = _cpu()
    for step in steps:
        for name in _NAMES:
            writer.add_scalar(name, 0.5, step)
    writer.close()
    return _cpu() - begin


def _delivered(record: Callable[[Tracking], None], points: int) -> float:
    tracking = Tracking(log_with="tensorboard", project_dir="runs")
    tracking.init_trackers("delivered")
    tracking.get_tracker("tensorboard")  # waits until it has started
    begin = _cpu()
    record(tracking)
    tracking.end_training()
    spent = _cpu() - begin
    delivered = tracking.receipt().trackers["tensorboard"].delivered
    if delivered != points:
        raise RuntimeError(f"{delivered} of {points} points were delivered")
    return spent


def _cpu() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)
