"""Finished spans as MLflow's traces: a trace a root span, linked to the run.

A tracking server gets them at its OTLP endpoint, a database directly; MLflow's own client knows which. What
comes again replaces itself: a span is a row by its ids.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Sequence
from typing import Any, Final

from mlflow import MlflowClient
from mlflow.entities import Span
from mlflow.tracing.client import TracingClient

from otel_tracking.config import without_surrogates
from otel_tracking.span_records import STEP_ATTRIBUTE, RecordedSpan

_LINKED_AT_ONCE: Final = 100
"""What MLflow takes in one call."""
_INPUTS: Final = "mlflow.spanInputs"
"""Of a root span, what MLflow lists as the input of its trace."""


def trace_id_of(span: RecordedSpan) -> str:
    """What MLflow calls a span's trace."""
    return f"tr-{span.trace_id:032x}"


def send_spans(
    client: MlflowClient, uri: str, experiment_id: str, run_id: str, spans: Sequence[RecordedSpan]
) -> None:
    """Store spans, and link their traces to a run.

    Args:
        client: Of the store.
        uri: Of the store.
        experiment_id: Of the run.
        run_id: Of the run.
        spans: Which.

    Raises:
        MlflowException: The store refuses them, or can't be reached.
        NotImplementedError: It has no traces of this kind: a folder, or a server older than 3.4.
    """
    TracingClient(uri).log_spans(experiment_id, [_span(span) for span in spans])
    traces = list(dict.fromkeys(map(trace_id_of, spans)))
    for first in range(0, len(traces), _LINKED_AT_ONCE):
        client.link_traces_to_run(traces[first : first + _LINKED_AT_ONCE], run_id)


def _span(span: RecordedSpan) -> Span:
    attributes: dict[str, Any] = {"mlflow.traceRequestId": trace_id_of(span)}
    if span.step is not None:
        attributes[STEP_ATTRIBUTE] = span.step
        if not span.parent_id:  # MLflow's list of traces shows nothing else by which to tell them apart
            attributes[_INPUTS] = {"name": span.name, STEP_ATTRIBUTE: span.step}
    attributes |= span.attributes
    if span.kind != "internal":
        attributes.setdefault("span.kind", span.kind)
    if span.scope:
        attributes.setdefault("otel.scope.name", span.scope)
    return Span.from_dict(
        {
            "name": _clean(span.name),
            "trace_id": _base64(span.trace_id, 16),
            "span_id": _base64(span.span_id, 8),
            "parent_span_id": _base64(span.parent_id, 8) if span.parent_id else "",
            "start_time_unix_nano": span.start,
            "end_time_unix_nano": span.end,
            "status": {"code": f"STATUS_CODE_{span.status.upper()}", "message": _clean(span.description)},
            "attributes": {_clean(key): json.dumps(_clean(value)) for key, value in attributes.items()},
            "events": [
                {
                    "name": _clean(event.name),
                    "time_unix_nano": event.time,
                    "attributes": {_clean(key): _clean(value) for key, value in event.attributes.items()},
                }
                for event in span.events
            ],
            "links": [
                {
                    "trace_id": f"tr-{link.trace_id:032x}",
                    "span_id": f"{link.span_id:016x}",
                    "attributes": {_clean(key): _clean(value) for key, value in link.attributes.items()},
                }
                for link in span.links
            ],
        }
    )


def _base64(number: int, size: int) -> str:
    # Hex would be taken for base64, where it can be either.
    return base64.b64encode(number.to_bytes(size)).decode("ascii")


def _clean(value: Any) -> Any:
    """As MLflow's JSON and databases take it: NaN, infinities and integers of more than 64 bits are texts."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        return str(value)
    if isinstance(value, list | tuple):
        return [_clean(each) for each in value]
    return without_surrogates(value)
