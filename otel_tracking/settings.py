"""Every setting that comes from the environment, in one table. Read when it is needed."""

from __future__ import annotations

import logging
import math
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

_LOG: Final = logging.getLogger(__name__)
_T = TypeVar("_T")
_warned: Final[set[str]] = set()


@dataclass(frozen=True)  # with slots, `Setting[str](...)` fails on 3.11
class Setting(Generic[_T]):
    """One environment variable. Empty is unset; an invalid value warns once and is the default."""

    variable: str
    default: _T
    parse: Callable[[str], _T]
    meaning: str

    def get(self) -> _T:
        """Its value now."""
        text = os.environ.get(self.variable, "").strip()
        if not text:
            return self.default
        try:
            return self.parse(text)
        except ValueError as error:
            if self.variable not in _warned:
                _warned.add(self.variable)
                _LOG.warning("%s=%.80r is ignored: %s", self.variable, text, error)
            return self.default


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _positive(text: str) -> float:
    number = float(text)
    if not (number > 0 and math.isfinite(number)):
        raise ValueError("a number above 0 is needed")
    return number


def _seconds_or_off(text: str) -> float:
    return 0.0 if text == "off" else _positive(text)


def _fraction(text: str) -> float:
    number = float(text)
    if not 0 < number <= 1:
        raise ValueError("a number above 0 and up to 1 is needed")
    return number


def _one_of(*known: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in known:
            raise ValueError(f"known are: {', '.join(known)}")
        return text

    return parse


DELIVERIES: Final = ("thread", "process", "off")
COMPRESSIONS: Final = ("pack", "zstd", "off")
FSYNCS: Final = ("off", "interval", "always")
LOG_LEVELS: Final = ("off", "debug", "info", "warning", "error", "critical")


SIZE: Final = re.compile(r"(\d+(?:\.\d+)?) ?([KMGT]?)B?", re.IGNORECASE)
"""Of bytes: `500MB`, `10 GB`, `1.5T`, `4096`."""


def _keep(text: str) -> str:
    if text not in ("always", "delivered") and not SIZE.fullmatch(text):
        raise ValueError("known are: always, delivered, and a size such as 10GB")
    return text


def _flag(text: str) -> bool:
    return text.lower() == "true"  # as OpenTelemetry has it: nothing else is true


LOG_WITH: Final = Setting[tuple[str, ...]](
    "OTEL_TRACKING_LOG_WITH", (), _names, "trackers, comma-separated, or `all`"
)
PROJECT_DIR: Final = Setting[str](
    "OTEL_TRACKING_PROJECT_DIR", "", str, "directory of all projects' runs; `./outputs` if unset"
)
PROJECT: Final = Setting[str](
    "OTEL_TRACKING_PROJECT", "", str, "project; OTEL_SERVICE_NAME, then `default`, if unset"
)
RUN_ID: Final = Setting[str](
    "OTEL_TRACKING_RUN_ID", "", str, "identity of the run; a run that exists is resumed"
)
RUN_NAME: Final = Setting[str](
    "OTEL_TRACKING_RUN_NAME", "", str, "the run's name for people; its id if unset"
)
RANKS: Final = Setting[str](
    "OTEL_TRACKING_RANKS", "", str, "`main`, `local_main`, `all`, `0,3`, or by tracker `wandb=all,*=main`"
)
LOGS: Final = Setting[str](
    "OTEL_TRACKING_LOGS",
    "off",
    lambda text: _one_of(*LOG_LEVELS)(text.lower()),
    "log records from that level on become texts: `debug` to `critical`; `off` for none",
)
LOG_NAMES: Final = Setting[tuple[str, ...]](
    "OTEL_TRACKING_LOG_NAMES", (), _names, "loggers, each with those below, whose records do; `!` excludes"
)
METERS: Final = Setting[tuple[str, ...]](
    "OTEL_TRACKING_METERS", (), _names, "patterns of meter names that are recorded; `!` excludes"
)
DELIVERY: Final = Setting[str](
    "OTEL_TRACKING_DELIVERY",
    "thread",
    _one_of(*DELIVERIES),
    "`thread`; `process`: in a process of its own; `off`: only the journal is written",
)
FSYNC: Final = Setting[str](
    "OTEL_TRACKING_FSYNC",
    "off",
    _one_of(*FSYNCS),
    "`off`; `interval`: the journal is on the disk each second; `always`: when a call returns",
)
COMPRESS: Final = Setting[str](
    "OTEL_TRACKING_COMPRESS",
    "pack",
    _one_of(*COMPRESSIONS),
    "`pack`: full segments of the journal take half the space or less; `zstd`: all take less still; `off`",
)
KEEP: Final = Setting[str](
    "OTEL_TRACKING_KEEP",
    "always",
    _keep,
    "what of the journal stays: `always`; `delivered`: until trackers have it; a size such as `10GB`",
)
BUDGET: Final = Setting[float](
    "OTEL_TRACKING_BUDGET", 0.05, _fraction, "CPU seconds a second that delivery threads may take together"
)
DISTRIBUTIONS: Final = Setting[float](
    "OTEL_TRACKING_DISTRIBUTIONS",
    60.0,
    _seconds_or_off,
    "seconds between two distributions of a Histogram instrument; `off` for none",
)
SYSTEM_METRICS: Final = Setting[float](
    "OTEL_TRACKING_SYSTEM_METRICS",
    0.0,
    _seconds_or_off,
    "seconds between two samples of CPU, memory, disk, network and GPUs; `off` for none",
)
END_TIMEOUT: Final = Setting[float](
    "OTEL_TRACKING_END_TIMEOUT", 120.0, _positive, "seconds that the end of a run waits for delivery"
)
SDK_DISABLED: Final = Setting[bool](
    "OTEL_SDK_DISABLED", False, _flag, "OpenTelemetry's own switch: record nothing"
)
SERVICE_NAME: Final = Setting[str](
    "OTEL_SERVICE_NAME", "", str, "OpenTelemetry's own; the project if none is set"
)

ALL: Final[tuple[Setting[tuple[str, ...]] | Setting[str] | Setting[float] | Setting[bool], ...]] = (
    LOG_WITH,
    PROJECT_DIR,
    PROJECT,
    RUN_ID,
    RUN_NAME,
    RANKS,
    LOGS,
    LOG_NAMES,
    METERS,
    DELIVERY,
    FSYNC,
    COMPRESS,
    KEEP,
    BUDGET,
    DISTRIBUTIONS,
    SYSTEM_METRICS,
    END_TIMEOUT,
    SDK_DISABLED,
    SERVICE_NAME,
)


def project() -> str:
    """The project that the environment names."""
    return PROJECT.get() or SERVICE_NAME.get() or "default"


def project_dir() -> str:
    """The directory that the environment names, or the default."""
    return PROJECT_DIR.get() or "outputs"
