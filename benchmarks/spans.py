"""A span with its step, beside one of the SDK's that no processor looks at."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import Tracer

from benchmarks.loops import set_with_attribute, set_with_step
from benchmarks.measuring import Contender, Size, take_turns
from benchmarks.tables import COMPARISON, Table, compared, micros, verdict
from otel_tracking import Tracking

_AT_MOST = 1.3
_COLUMNS = ("", "ours", "peer", "ratio", "at most", "")


def measure(size: Size) -> list[Table]:
    """Alone, and one with four children that have its step; and points that are recorded inside of one."""
    peer = TracerProvider(shutdown_on_exit=False).get_tracer("train")
    sdk = MeterProvider([InMemoryMetricReader()], shutdown_on_exit=False)
    of_sdk = set_with_attribute(sdk.get_meter("train").create_gauge("train/loss"))
    rounds, calls = size(15, 3), size(10_000, 500)
    with Tracking(project_dir="runs") as tracking:
        tracking.init_trackers("spans")
        ours = trace.get_tracer("train")
        rows = [
            _row("alone", _alone, ours, peer, rounds, calls, target=True),
            _row("of five, nested", _nested, ours, peer, rounds, calls, target=False),
        ]
        gauge = set_with_step(metrics.get_meter("train").create_gauge("train/loss"))
        points = [
            Contender(_inside(t, calls_of), 10 * calls) for t, calls_of in ((ours, gauge), (peer, of_sdk))
        ]
        inside = compared(
            "step alone, inside a span", *(cost.cpu for cost in take_turns(points, rounds=rounds))
        )
    return [
        Table("A span, caller's CPU; peer: the SDK's without any processor", _COLUMNS, rows),
        Table("gauge.set inside a span, caller's CPU; peer: the plain SDK's", COMPARISON, [inside]),
    ]


def _row(
    what: str,
    loop: Callable[[Tracer], Callable[[int], None]],
    ours: Tracer,
    peer: Tracer,
    rounds: int,
    calls: int,
    *,
    target: bool,
) -> Sequence[str]:
    mine, of_sdk = (
        cost.cpu for cost in take_turns([Contender(loop(t), calls) for t in (ours, peer)], rounds=rounds)
    )
    ratio = mine / of_sdk
    asked = (f"{_AT_MOST}", verdict(ratio <= _AT_MOST)) if target else ("", "")
    return (what, micros(mine), micros(of_sdk), f"{ratio:.2f}", *asked)


def _alone(tracer: Tracer) -> Callable[[int], None]:
    steps = itertools.count()

    def make_calls(calls: int) -> None:
        for step in itertools.islice(steps, calls):
            with tracer.start_as_current_span("step", attributes={"training.step": step}):
                pass

    return make_calls


def _nested(tracer: Tracer) -> Callable[[int], None]:
    steps = itertools.count()

    def make_calls(calls: int) -> None:
        for step in itertools.islice(steps, calls // 5):
            with tracer.start_as_current_span("step", attributes={"training.step": step}):
                for name in ("load", "forward", "backward", "optimize"):
                    with tracer.start_as_current_span(name):
                        pass

    return make_calls


def _inside(tracer: Tracer, record: Callable[[int], None]) -> Callable[[int], None]:
    def make_calls(calls: int) -> None:
        with tracer.start_as_current_span("train"):
            record(calls)

    return make_calls
