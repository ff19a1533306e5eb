"""The OpenTelemetry exporter that writes log records into a tracker, for SDK pipelines of people's own.

A tracker's module declares `class TensorBoardLogExporter(TrackerLogExporter): tracker = ...`, beside its
exporters of metrics and spans, whose run it writes into.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from opentelemetry.sdk._logs import ReadableLogRecord
from opentelemetry.sdk._logs.export import LogRecordExporter, LogRecordExportResult
from opentelemetry.sdk.resources import Resource

from otel_tracking import discovery
from otel_tracking.log_texts import LogFilter, LogTags, step_of, text_of_api
from otel_tracking.sdk_run import Saying, TrackerExporter

_SECONDS = 30.0
"""How long one export may take; the SDK passes no timeout on."""


class TrackerLogExporter(TrackerExporter, LogRecordExporter):
    """Log records become texts of one tracker.

    A record of the logger `train.loop` is a text `logs/train`, with severity, logger and body, and the
    exception's stack trace if it has one. The step is the record's attribute `training.step` (or `step`,
    `global_step`) if that is an int; else that of its context: a `step(n)`, baggage or a span with
    `training.step`; else a count for each text's name, from 0.

    Left out are records of the SDK's, of trackers' packages and of ours: they say how the export gets on,
    and would be exported, and cause others, for ever.

    Run, failures and options are those of `TrackerMetricExporter`.
    """

    def _prepare(self) -> None:
        self._wanted = LogFilter(
            "debug", never={self.tracker.name, *discovery.known()}, instrumentations=True
        )
        self._tags = LogTags()
        self._counts: Counter[str] = Counter()

    def export(self, batch: Sequence[ReadableLogRecord]) -> LogRecordExportResult:
        """Write log records into the tracker. Never raises; a failure is logged, once for each reason."""
        wanted = [record for record in batch if self._wanted.wants(_logger_of(record))]
        if not wanted:
            return LogRecordExportResult.SUCCESS
        resource = wanted[0].resource or Resource.get_empty()
        done = self._run.call(lambda: self._run.deliver(list(self._convert(wanted)), resource), _SECONDS)
        return LogRecordExportResult.SUCCESS if done else LogRecordExportResult.FAILURE

    def _convert(self, records: Sequence[ReadableLogRecord]) -> Iterator[Saying]:
        """In the run's thread."""
        for readable in records:
            record, name = readable.log_record, _logger_of(readable)
            tag = self._tags.tag(name)
            step = step_of(record, now=False)
            if step is None:
                step = self._counts[tag]
                self._counts[tag] += 1
            yield Saying(
                tag, step, record.timestamp or record.observed_timestamp or 0, text_of_api(record, name)
            )


def _logger_of(record: ReadableLogRecord) -> str:
    scope = record.instrumentation_scope
    return "" if scope is None else scope.name
