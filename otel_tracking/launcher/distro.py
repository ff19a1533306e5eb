"""The distro that `opentelemetry-instrument` takes with `OTEL_PYTHON_DISTRO=otel_tracking`.

Needs the extra `otel`; only that command's entry point imports this module.
"""

from __future__ import annotations

import os
from importlib.metadata import entry_points
from typing import Any, Final

from opentelemetry.instrumentation.distro import BaseDistro
from opentelemetry.instrumentation.version import __version__
from opentelemetry.sdk._configuration import _OTelSDKConfigurator

from otel_tracking.launcher.bootstrap import install

_SDK_IS_WANTED: Final = (
    "OTEL_METRICS_EXPORTER",
    "OTEL_TRACES_EXPORTER",
    "OTEL_LOGS_EXPORTER",
    "OTEL_CONFIG_FILE",
)


class TrackingDistro(BaseDistro):
    """Records what the program sends through OpenTelemetry's API, whatever else is set up.

    An SDK pipeline is set up as the environment says, by the configurator that is installed or, where
    there is none, by the SDK's. Unlike `opentelemetry-distro`'s, no exporter is the default.
    """

    def _configure(self, **kwargs: Any) -> None:
        # First, so that an SDK provider is attached before anything can have used it.
        install()
        if not _has_configurator() and any(os.environ.get(name) for name in _SDK_IS_WANTED):
            configurator: Any = _OTelSDKConfigurator  # has no types
            configurator().configure(auto_instrumentation_version=__version__)


def _has_configurator() -> bool:
    """Whether `opentelemetry-instrument` will find a configurator to call, after this."""
    wanted = os.environ.get("OTEL_PYTHON_CONFIGURATOR")
    found = entry_points(group="opentelemetry_configurator")
    return any(wanted is None or wanted == entry_point.name for entry_point in found)
