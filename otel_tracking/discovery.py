"""Trackers, found by entry point. There is no other list of them."""

from __future__ import annotations

import importlib.metadata
import logging
import re
from collections.abc import Collection, Iterable
from typing import Final

from otel_tracking import settings
from otel_tracking.capabilities import Declaration
from otel_tracking.errors import ConfigurationError, TrackerNotInstalled, UnknownTracker
from otel_tracking.ranks import RankPolicies, parse
from otel_tracking.tracker import Tracker

_LOG: Final = logging.getLogger(__name__)
GROUP: Final = "otel_tracking_trackers"
_DIRECTORY_GROUP: Final = "otel_tracking_needs_directory"
_DECLARATIONS: Final = "otel_tracking_declarations"
_PACKAGE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
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


def needs_directory(name: str) -> bool:
    """Whether users must name a directory for that tracker. Nothing is imported.

    A second group of entry points says so; it is `Tracker.requires_logging_directory` of the class.
    """
    return name in {point.name for point in importlib.metadata.entry_points(group=_DIRECTORY_GROUP)}


def check_installed(name: str) -> None:
    """See whether the packages that a tracker drives are installed. Nothing is imported.

    Raises:
        UnknownTracker: No package declares it.
        TrackerNotInstalled: One of the packages is missing that its extra asks for.
    """
    point = check(name)
    extra = re.compile(rf"""extra\s*==\s*["']{re.escape(name)}["']""")
    requirements = (point.dist.requires if point.dist else None) or ()
    for requirement in filter(extra.search, requirements):
        package = _PACKAGE.match(requirement)
        if package is None:
            continue
        try:
            importlib.metadata.version(package[0])
        except importlib.metadata.PackageNotFoundError as error:
            raise TrackerNotInstalled(name, f"the package {package[0]} is missing") from error


def declaration(name: str) -> Declaration | None:
    """What a tracker says of itself, without importing what it drives if it has an entry point for that.

    None if it says nothing, or can't be imported.
    """
    for point in importlib.metadata.entry_points(group=_DECLARATIONS, name=name):
        try:
            found = point.load()
        except Exception as error:  # noqa: BLE001 - of any package
            _LOG.warning("what %s declares can't be read: %s: %s", name, type(error).__name__, error)
            return None
        if isinstance(found, Declaration):
            return found
    try:
        return load(name).declaration
    except ConfigurationError:
        return None


def installed_version(name: str) -> str:
    """The version of what a tracker drives; empty if it is not installed. That is not imported."""
    known_as = declaration(name)
    package = known_as.package if known_as else name
    try:
        check_installed(name)
        return importlib.metadata.version(package)
    except (ConfigurationError, importlib.metadata.PackageNotFoundError):
        return ""


def load(name: str) -> type[Tracker]:
    """Import one tracker.

    Raises:
        UnknownTracker: No package declares it.
        TrackerNotInstalled: The package it drives is missing.
        ConfigurationError: What the entry point names is no tracker, or can't be imported.
    """
    point = check(name)
    try:
        tracker = point.load()
    except ImportError as error:
        raise TrackerNotInstalled(name, str(error)) from error
    except Exception as error:  # packages that don't fit each other raise anything at import
        reason = f"{type(error).__name__}: {error}"
        raise ConfigurationError(
            f"tracker {name!r} is installed and can't be imported: {reason:.500}"
        ) from error
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


def named_by_environment() -> list[str]:
    """The trackers that OTEL_TRACKING_LOG_WITH names, each once; a name that is none is warned of."""
    points = known()
    names: list[str] = []
    for name in settings.LOG_WITH.get():
        if name == ALL:
            names += points
        elif name in points:
            names.append(name)
        else:
            _LOG.warning("%s: %s", settings.LOG_WITH.variable, UnknownTracker(name, points))
    return list(dict.fromkeys(names))


def policies_by_environment(trackers: Collection[str], world_size: int | None = None) -> RankPolicies:
    """Which ranks record, by OTEL_TRACKING_RANKS; if that is wrong, a warning and the default.

    Args:
        trackers: Names of the run's own, beside the installed ones.
        world_size: As for `ranks.parse`.
    """
    try:
        return parse(settings.RANKS.get() or None, known={*known(), *trackers}, world_size=world_size)
    except ConfigurationError as error:
        _LOG.warning("%s is ignored: %s", settings.RANKS.variable, error)
        return RankPolicies()
