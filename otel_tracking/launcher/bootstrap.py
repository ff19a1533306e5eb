"""Recording as the environment asks for it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from otel_tracking import discovery, settings
from otel_tracking.errors import ConfigurationError
from otel_tracking.process import Process, process
from otel_tracking.provider import TrackingMeterProvider
from otel_tracking.ranks import RankPolicies, parse
from otel_tracking.recorder import Recorder
from otel_tracking.session import RunRequest
from otel_tracking.spans import TrackingSpanProcessor, TrackingTracerProvider
from otel_tracking.tracker import Tracker

_LOG: Final = logging.getLogger(__name__)


def install() -> None:
    """Record what this process sends through OpenTelemetry's API; the run begins with the first record."""
    _prepared().install()


def meter_provider() -> TrackingMeterProvider:
    """What `OTEL_PYTHON_METER_PROVIDER=otel_tracking` loads."""
    return _prepared().provider


def tracer_provider() -> TrackingTracerProvider:
    """What `OTEL_PYTHON_TRACER_PROVIDER=otel_tracking` loads."""
    return TrackingTracerProvider(TrackingSpanProcessor(_prepared().recorder))


def _prepared() -> Process:
    this = process()
    if this.recorder.opener is None:
        this.recorder.opener = _begin
    this.watch_exit()
    return this


def _begin(recorder: Recorder) -> None:
    this = process()
    assert this.recorder is recorder
    this.begin(request_from_environment(this))


def request_from_environment(this: Process) -> RunRequest:
    """The run that the environment asks for. What is wrong in it is warned of and left out."""
    known = discovery.known()
    names = []
    for name in settings.LOG_WITH.get():
        if name == discovery.ALL:
            names += [n for n in known if n not in names]
        elif name in known:
            names.append(name)
        else:
            _LOG.warning("OTEL_TRACKING_LOG_WITH names %r, which is no tracker: %s", name, ", ".join(known))
    try:
        policies = parse(settings.RANKS.get() or None, known=known)
    except ConfigurationError as error:
        _LOG.warning("OTEL_TRACKING_RANKS is ignored: %s", error)
        policies = RankPolicies()
    project = settings.project()
    return RunRequest(
        project=project,
        project_dir=Path(settings.project_dir()).absolute(),
        load=lambda: _load(names),
        names=names,
        run_name=settings.RUN_NAME.get(),
        policies=policies,
        resource={"service.name": settings.SERVICE_NAME.get() or project},
        budget=settings.BUDGET.get(),
        deliver=settings.DELIVERY.get() == "thread",
        ordinal=this.next_ordinal,
    )


def _load(names: list[str]) -> Mapping[str, Callable[[], Tracker]]:
    trackers, left_out = discovery.load_available(names)
    for reason in left_out.values():
        _LOG.warning("%s The journal is kept.", reason)
    return trackers
