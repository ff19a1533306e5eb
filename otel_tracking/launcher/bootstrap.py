"""Recording as the environment asks for it."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Final

from opentelemetry.metrics import MeterProvider
from opentelemetry.trace import TracerProvider

from otel_tracking import discovery, settings
from otel_tracking.journal import zstd_blocks
from otel_tracking.process import Process, process
from otel_tracking.recorder import Recorder
from otel_tracking.request import RunRequest
from otel_tracking.retention import Keep

if TYPE_CHECKING:
    from opentelemetry._logs import LoggerProvider

_LOG: Final = logging.getLogger(__name__)


def install(*, meters: bool = True, tracers: bool = True, first: bool = False) -> None:
    """Record what this process sends through OpenTelemetry's API; the run begins with the first record.

    Args:
        meters: Whether measurements are recorded.
        tracers: Whether spans are.
        first: Whether nothing has used the providers yet.
    """
    _prepared().install(meters=meters, tracers=tracers, first=first)


def meter_provider() -> MeterProvider:
    """What `OTEL_PYTHON_METER_PROVIDER=otel_tracking` loads."""
    return _prepared().offered_meters()


def tracer_provider() -> TracerProvider:
    """What `OTEL_PYTHON_TRACER_PROVIDER=otel_tracking` loads."""
    return _prepared().offered_tracers()


def logger_provider() -> LoggerProvider:
    """What `OTEL_PYTHON_LOGGER_PROVIDER=otel_tracking` loads."""
    return _prepared().offered_loggers()


def _prepared() -> Process:
    this = process()
    if this.recorder.opener is None:
        this.recorder.opener = _begin
        this.want_logs(settings.LOGS.get(), settings.LOG_NAMES.get())
    this.watch_exit()
    return this


def _begin(recorder: Recorder) -> None:
    this = process()
    assert this.recorder is recorder
    this.begin(request_from_environment(this))


def request_from_environment(this: Process) -> RunRequest:
    """The run that the environment asks for. What is wrong in it is warned of and left out."""
    names = discovery.named_by_environment()
    project = settings.project()
    return RunRequest(
        project=project,
        project_dir=Path(settings.project_dir()).absolute(),
        load=lambda: discovery.load_available(names),
        names=names,
        run_name=settings.RUN_NAME.get(),
        policies=discovery.policies_by_environment(names),
        budget=settings.BUDGET.get(),
        delivery=settings.DELIVERY.get(),
        fsync=settings.FSYNC.get(),
        compress=_compression(),
        keep=Keep.parse(settings.KEEP.get()),
        system_metrics=settings.SYSTEM_METRICS.get(),
        ordinal=this.next_ordinal,
    )


def _compression() -> str:
    """The form of the journal's segments that is wanted, or the nearest that there is."""
    wanted = settings.COMPRESS.get()
    if wanted == "zstd" and not zstd_blocks.available():
        _LOG.warning("the journal is packed without zstd: that needs pip install 'otel-tracking[zstd]'")
        return "pack"
    return wanted
