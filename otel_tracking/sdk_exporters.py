"""OpenTelemetry exporters that write into a tracker, for SDK pipelines of people's own.

The SDK hands exporters *aggregates*: of the values a gauge was set to between two collects the
last, of a counter the sum. NaN and infinities never arrive, names arrive in lower case, and one
collect holds at most 2,000 attribute sets an instrument. For every point, record through
`otel-tracking run` or `Tracking`; these classes are for programs that keep a pipeline as it is::

    provider = MeterProvider([PeriodicExportingMetricReader(TensorBoardMetricExporter())])

A tracker's module declares `class TensorBoardMetricExporter(TrackerMetricExporter): tracker = ...`
and its twin for spans. Exporters of one tracker with the same options write into one run.
"""

from __future__ import annotations

import os
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from opentelemetry.sdk.metrics import Counter, Histogram, UpDownCounter, _Gauge
from opentelemetry.sdk.metrics import export as sdk
from opentelemetry.sdk.metrics.view import Aggregation
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.trace import StatusCode

from otel_tracking.records import AttributeValue, Kind, Series
from otel_tracking.sdk_histograms import distribution_details
from otel_tracking.sdk_run import Distribution, Item, Point, TrackerExporter, attribute_values
from otel_tracking.span_records import STEP_ATTRIBUTE
from otel_tracking.steps import STEP_ALIASES, as_step
from otel_tracking.tags import TagAssigner

_SPAN_SECONDS = 30.0
"""How long one export of spans may take; the SDK passes no timeout on."""

_CUMULATIVE = sdk.AggregationTemporality.CUMULATIVE
_DELTA = sdk.AggregationTemporality.DELTA


class TrackerMetricExporter(TrackerExporter, sdk.MetricExporter):
    """What an SDK pipeline collects becomes points of one tracker.

    A gauge and a counter become a series each, the counter as its running total. A histogram
    becomes four, `<name>/count` and `<name>/sum` as running totals, `<name>/min` and `<name>/max`
    of what the SDK aggregated into the point; and its buckets, explicit or exponential, become a
    distribution, `<name>/distribution`, of what came since the last one. A point's time is the collect's.

    The step is the point's attribute `training.step` (or `step`, `global_step`) if that is an int;
    else that of its newest exemplar, where a View drops the attribute (a gauge's exemplars with a
    step are points of their own then); else a count for each series, from 0.

    Synchronous instruments are asked for as deltas, so that a gauge that has not been set again is
    not exported again and steps do not pile up in the SDK. With `preferred_temporality` set to
    cumulative, or under a reader that ignores it, what did not change is not repeated either
    (for gauges: only if `preferred_temporality` says so, since nothing in the data tells).

    The run starts at the first export that has a point, and ends with `shutdown`, which the SDK
    calls at exit. (W&B closes its runs before that: what is left at exit is delivered only by the
    global providers, others have to be shut down.) Points of an export that fails are kept for the
    next one, up to 200,000. A forked child writes nothing, unless it makes an exporter of its own.

    Args:
        project: Else OTEL_TRACKING_PROJECT, else the resource's `service.name`, else `default`.
        project_dir: Where the run's directory goes; else OTEL_TRACKING_PROJECT_DIR, else `./outputs`.
        run_name: What people see; else OTEL_TRACKING_RUN_NAME, else the run's id.
        init_kwargs: The tracker's own options, as in `Tracking.init_trackers`.
        preferred_temporality: By instrument class, over the deltas that are the default here.
        preferred_aggregation: By instrument class, as in the SDK.
    """

    def __init__(
        self,
        *,
        project: str | None = None,
        project_dir: str | os.PathLike[str] | None = None,
        run_name: str | None = None,
        init_kwargs: Mapping[str, Any] | None = None,
        preferred_temporality: Mapping[type, sdk.AggregationTemporality] | None = None,
        preferred_aggregation: Mapping[type, Aggregation] | None = None,
    ) -> None:
        synchronous: tuple[type, ...] = (Counter, UpDownCounter, Histogram, _Gauge)
        temporality = dict.fromkeys(synchronous, _DELTA) | dict(preferred_temporality or {})
        sdk.MetricExporter.__init__(self, temporality, dict(preferred_aggregation or {}))
        TrackerExporter.__init__(
            self, project=project, project_dir=project_dir, run_name=run_name, init_kwargs=init_kwargs
        )
        self._points = _MetricPoints(self._run.tags, gauges=temporality[_Gauge])

    def export(
        self, metrics_data: sdk.MetricsData, timeout_millis: float = 10_000, **kwargs: Any
    ) -> sdk.MetricExportResult:
        """Write one collect into the tracker. Never raises; a failure is logged, once for each reason."""
        if not metrics_data.resource_metrics:
            return sdk.MetricExportResult.SUCCESS
        resource = metrics_data.resource_metrics[0].resource
        done = self._run.call(
            lambda: self._run.deliver(self._points.convert(metrics_data), resource), timeout_millis / 1e3
        )
        return sdk.MetricExportResult.SUCCESS if done else sdk.MetricExportResult.FAILURE


class TrackerSpanExporter(TrackerExporter, SpanExporter):
    """Finished spans become points of one tracker.

    A span's duration is a point of the series `time/<span name>`, in seconds, at the time it
    ended; failed spans are counted in `errors/<span name>`. The step is the span's attribute
    `training.step` if that is an int, else that of the nearest parent that finished in the same
    batch, else a count for each series, from 0.

    Run, failures and options are those of `TrackerMetricExporter`.
    """

    def _prepare(self) -> None:
        self._points = _SpanPoints(self._run.tags)

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Write spans into the tracker. Never raises; a failure is logged, once for each reason."""
        if not spans:
            return SpanExportResult.SUCCESS
        done = self._run.call(
            lambda: self._run.deliver(self._points.convert(spans), spans[0].resource), _SPAN_SECONDS
        )
        return SpanExportResult.SUCCESS if done else SpanExportResult.FAILURE


@dataclass(slots=True)
class _Line:
    """A series, and what has to be remembered of it between exports."""

    series: Series
    count: int = 0
    total: int | float = 0

    def point(self, step: int | None, time_ns: int, value: float) -> Point:
        if step is None:
            step = self.count
            self.count += 1
        return Point(self.series, step, time_ns, float(value))


class _Lines:
    def __init__(self, tags: TagAssigner) -> None:
        self._tags = tags
        self._lines: dict[Hashable, _Line] = {}

    def line(self, series: Series) -> _Line:
        """The line of a series given without its tag."""
        identity = series.identity
        line = self._lines.get(identity)
        if line is None:
            tag = self._tags.assign(identity, series.name, series.attributes, series.meter)
            line = self._lines[identity] = _Line(replace(series, tag=tag))
        return line


class _MetricPoints:
    """Makes points of the collects of one pipeline; remembers running totals and what was seen last."""

    def __init__(self, tags: TagAssigner, gauges: sdk.AggregationTemporality) -> None:
        self._lines = _Lines(tags)
        self._gauges = gauges
        # Of cumulative streams only, so never more than the SDK itself keeps.
        self._last: dict[Hashable, sdk.DataPointT] = {}

    def convert(self, data: sdk.MetricsData) -> list[Item]:
        return [
            item
            for resource_metrics in data.resource_metrics
            for scope_metrics in resource_metrics.scope_metrics
            for metric in scope_metrics.metrics
            for measured in metric.data.data_points
            for item in self._items(scope_metrics.scope.name, metric, measured)
        ]

    def _items(self, meter: str, metric: sdk.Metric, measured: sdk.DataPointT) -> Iterator[Item]:
        attributes, step = _split(measured.attributes)
        exemplars = [] if step is not None else _exemplars(measured)
        last = None
        if self._is_cumulative(metric.data):
            last = self._swap(_series(meter, metric, "value", attributes), step, measured)
            if last is not None and not exemplars and _values(last) == _values(measured):
                return
        if exemplars:
            step = exemplars[-1].step
        for field in _fields(measured):
            line = self._lines.line(_series(meter, metric, field, attributes))
            value = getattr(measured, field)
            if field in _TOTALS or isinstance(metric.data, sdk.Sum):
                before = 0 if last is None else getattr(last, field)
                # A line fed by one stream takes the stream's own total: no rounding of ours.
                line.total = value if line.total == before else line.total + (value - before)
                value = line.total
            elif field == "value" and exemplars:
                yield from (line.point(e.step, e.time, e.value) for e in exemplars)
                if exemplars[-1].value == value:
                    continue
            point = line.point(step, measured.time_unix_nano, value)
            yield point
        if isinstance(measured, sdk.HistogramDataPoint | sdk.ExponentialHistogramDataPoint):
            details = distribution_details(measured, last)
            if details is not None:
                whole = self._lines.line(_series(meter, metric, "distribution", attributes)).series
                yield Distribution(whole.tag, point.step, measured.time_unix_nano, details)

    def _is_cumulative(self, data: sdk.DataT) -> bool:
        # Nothing in a gauge's data says whether it was set again: only what was asked for does.
        temporality = self._gauges if isinstance(data, sdk.Gauge) else data.aggregation_temporality
        return temporality is _CUMULATIVE

    def _swap(self, series: Series, step: int | None, measured: sdk.DataPointT) -> sdk.DataPointT | None:
        """Remember a stream's point; return the one before it, unless the stream has begun anew."""
        key = (series.identity, step)
        last = self._last.get(key)
        self._last[key] = measured
        same = last is not None and last.start_time_unix_nano == measured.start_time_unix_nano
        return last if same else None


class _SpanPoints:
    """Makes points of the finished spans of one pipeline."""

    def __init__(self, tags: TagAssigner) -> None:
        self._lines = _Lines(tags)

    def convert(self, spans: Sequence[ReadableSpan]) -> list[Item]:
        return list(self._convert(spans))

    def _convert(self, spans: Sequence[ReadableSpan]) -> Iterator[Point]:
        batch = {(span.context.trace_id, span.context.span_id): span for span in spans}
        for span in spans:
            if span.start_time is None or span.end_time is None:
                continue
            step = _step_of(span, batch)
            durations = Series("", f"time/{span.name}", Kind.GAUGE, "s")
            yield self._lines.line(durations).point(
                step, span.end_time, (span.end_time - span.start_time) / 1e9
            )
            if span.status.status_code is StatusCode.ERROR:
                errors = self._lines.line(Series("", f"errors/{span.name}", Kind.COUNTER, "{span}"))
                errors.total += 1
                yield errors.point(step, span.end_time, errors.total)


class _Exemplar(NamedTuple):
    time: int
    step: int
    value: int | float


_TOTALS = ("count", "sum")
_EXTREMES = ("min", "max")


def _fields(measured: sdk.DataPointT) -> tuple[str, ...]:
    if isinstance(measured, sdk.NumberDataPoint):
        return ("value",)
    # Without recorded extremes the SDK leaves them at +inf and -inf.
    return _TOTALS + (_EXTREMES if measured.min <= measured.max else ())


def _values(measured: sdk.DataPointT) -> tuple[object, ...]:
    """What a measurement changes (of a histogram at least the count)."""
    return tuple(getattr(measured, field) for field in _fields(measured))


def _series(meter: str, metric: sdk.Metric, field: str, attributes: dict[str, AttributeValue]) -> Series:
    match metric.data:
        case sdk.Sum(is_monotonic=True):
            kind = Kind.COUNTER
        case sdk.Sum():
            kind = Kind.UP_DOWN_COUNTER
        case sdk.Gauge():
            kind = Kind.GAUGE
        case _:
            kind = Kind.HISTOGRAM
    whole = field == "value"
    return Series(
        tag="",
        name=metric.name if whole else f"{metric.name}/{field}",
        kind=kind,
        unit="" if field == "count" else metric.unit or "",
        description=metric.description or "",
        meter=meter,
        attributes=attributes,
        group=metric.name if attributes or not whole else "",
    )


def _exemplars(measured: sdk.DataPointT) -> list[_Exemplar]:
    """Those that have a step, by time."""
    steps = ((e, _split(e.filtered_attributes)[1]) for e in measured.exemplars)
    return sorted(_Exemplar(e.time_unix_nano, step, e.value) for e, step in steps if step is not None)


def _split(attributes: Mapping[str, Any] | None) -> tuple[dict[str, AttributeValue], int | None]:
    """Attributes without the step, and the step."""
    rest = attribute_values(attributes)
    for name in (STEP_ATTRIBUTE, *STEP_ALIASES):
        step = as_step(rest.get(name))
        if step is not None:
            del rest[name]
            return rest, step
    return rest, None


def _step_of(span: ReadableSpan, batch: Mapping[tuple[int, int], ReadableSpan]) -> int | None:
    at: ReadableSpan | None = span
    # Spans of a hand-made batch may be each other's parents.
    for _ in range(len(batch)):
        if at is None:
            break
        step = as_step((at.attributes or {}).get(STEP_ATTRIBUTE))
        if step is not None:
            return step
        at = batch.get((at.parent.trace_id, at.parent.span_id)) if at.parent else None
    return None
