"""How often system metrics are sampled."""

from __future__ import annotations

from otel_tracking import settings
from otel_tracking.errors import ConfigurationError


def interval(asked: float | str | None) -> float:
    """Seconds between two samples, 0 for none; None asks the environment.

    Raises:
        ConfigurationError: It is no number above 0, and not `off`.
    """
    if asked is None:
        return settings.SYSTEM_METRICS.get()
    try:
        return settings.SYSTEM_METRICS.parse(str(asked))
    except ValueError:
        raise ConfigurationError(
            f"system_metrics is a number of seconds above 0, or 'off', not {asked!r:.80}"
        ) from None
