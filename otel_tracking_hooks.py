"""What `opentelemetry-instrument` loads in every program; it does nothing unless it is asked for us.

A module beside the package, and not in it: to import the package takes a quarter of a second and 20 MB,
and a program that does not ask for us must not notice that we are installed. Hence also no entry point
of the group `opentelemetry_configurator`: the one that is found first would be taken, and a second one
is warned of.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from otel_tracking.launcher.distro import TrackingDistro

_NAME: Final = "otel_tracking"


def distro() -> TrackingDistro | None:
    """What `OTEL_PYTHON_DISTRO=otel_tracking` loads. Else None, which is passed over: no distro."""
    if os.environ.get("OTEL_PYTHON_DISTRO") != _NAME:
        return None
    from otel_tracking.launcher.distro import TrackingDistro

    return TrackingDistro()


def pre_instrument() -> None:
    """Have `OTEL_PYTHON_METER_PROVIDER=otel_tracking`, the tracer's or logger's, mean something here too.

    OpenTelemetry reads these where nothing has set a provider, and a configurator has set the SDK's.
    That one is attached to now: nothing has made an instrument or a span yet.
    """
    meters = os.environ.get("OTEL_PYTHON_METER_PROVIDER") == _NAME
    tracers = os.environ.get("OTEL_PYTHON_TRACER_PROVIDER") == _NAME
    if not (meters or tracers or os.environ.get("OTEL_PYTHON_LOGGER_PROVIDER") == _NAME):
        return
    try:
        from otel_tracking.launcher.bootstrap import install

        install(meters=meters, tracers=tracers, first=True)
    except Exception as error:  # noqa: BLE001 - the program and its instrumentations must run
        print(f"otel-tracking: nothing is recorded in {sys.executable}: {error}", file=sys.stderr)
