"""`gauge.set` of one value with its step, beside the plain OpenTelemetry SDK's."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from opentelemetry import metrics
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from benchmarks.loops import set_with_attribute, set_with_step, set_with_step_and_attribute
from benchmarks.measuring import PACE, Contender, Size, take_turns
from benchmarks.tables import COMPARISON, Table, compared
from otel_tracking import Tracking

_PEER = "caller's CPU; peer: the plain SDK's, one attribute, one reader"


def measure(size: Size) -> list[Table]:
    """With nothing but the journal, and while TensorBoard is being delivered."""
    sdk = MeterProvider([InMemoryMetricReader()], shutdown_on_exit=False)
    peer = set_with_attribute(sdk.get_meter("train").create_gauge("train/loss"))
    rounds, calls = size(15, 3), size(100_000, 5_000)
    at_full_speed = [
        *_rows("journal alone", [], peer, rounds=rounds, calls=calls),
        *_rows("TensorBoard delivered", ["tensorboard"], peer, rounds=rounds, calls=calls),
    ]
    paced = _rows("TensorBoard delivered", ["tensorboard"], peer, rounds=size(500, 10))
    return [
        Table(f"gauge.set, {_PEER}", COMPARISON, at_full_speed),
        Table(f"The same, one call every {PACE * 1000:g} ms", COMPARISON, paced),
    ]


def _rows(
    setup: str,
    trackers: list[str],
    peer: Callable[[int], None],
    *,
    rounds: int,
    calls: int | None = None,
) -> list[Sequence[str]]:
    """Of rounds of many calls; of paced ones where `calls` is None, for which there is no target."""
    with Tracking(log_with=trackers, project_dir="runs") as tracking:
        tracking.init_trackers("gauge")
        gauge = metrics.get_meter("train").create_gauge("train/loss")
        ours = [set_with_step(gauge), set_with_step_and_attribute(gauge)]
        if calls is None:
            contenders = [Contender(make, 1, settle=lambda: time.sleep(PACE)) for make in (*ours, peer)]
        else:
            contenders = [*(Contender(make, calls) for make in ours), Contender(peer, calls // 10)]
        plain, attribute, of_sdk = (cost.cpu for cost in take_turns(contenders, rounds=rounds))
    return [
        compared(f"step alone, {setup}", plain, of_sdk, at_most=8 if calls else None),
        compared(f"step and one attribute, {setup}", attribute, of_sdk),
    ]
