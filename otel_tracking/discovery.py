"""Trackers, found by entry point. There is no other list of them."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterable
from typing import Final

from otel_tracking.errors import ConfigurationError, TrackerNotInstalled, UnknownTracker
from otel_tracking.tracker import Tracker

GROUP: Final = "otel_tracking_trackers"
ALL: Final = "all"


def known() -> dict[str, importlib.metadata.EntryPoint]:
    """The entry points of all installed trackers, by name. Nothing is imported."""
    return {point.name: point for point in importlib.metadata.entry_points(group=GROUP)}


def check(name: str) -> importlib.metadata.EntryPoint:
    """The tracker's entry point.

    Raises:
        UnknownTracker: No package declares it.
    """
    points = known()
    if name not in points:
        raise UnknownTracker(name, points)
    return points[name]


def load(name: str) -> type[Tracker]:
    """Import one tracker.

    Raises:
        UnknownTracker: No package declares it.
        TrackerNotInstalled: The package it drives is missing.
        ConfigurationError: What the entry point names is no tracker.
    """
    point = check(name)
    try:
        tracker = point.load()
    except ImportError as error:
        raise TrackerNotInstalled(name, str(error)) from error
    if not (isinstance(tracker, type) and issubclass(tracker, Tracker)):
        raise ConfigurationError(f"the entry point {point.value!r} is no subclass of Tracker")
    return tracker


def load_available(names: Iterable[str]) -> tuple[dict[str, type[Tracker]], dict[str, str]]:
    """Import what can be imported.

    Returns:
        The trackers, and for each other name why it is left out.
    """
    trackers: dict[str, type[Tracker]] = {}
    left_out: dict[str, str] = {}
    for name in names:
        try:
            trackers[name] = load(name)
        except ConfigurationError as error:
            left_out[name] = str(error)
    return trackers, left_out
