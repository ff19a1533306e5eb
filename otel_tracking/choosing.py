"""Which trackers a program names, and whether they can be had."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from typing import Any, Final, TypeAlias

from otel_tracking import discovery
from otel_tracking.errors import ConfigurationError, LoggingDirectoryRequired
from otel_tracking.general_tracker import GeneralTrackerAdapter, is_general_tracker
from otel_tracking.tracker import Tracker

LogWith: TypeAlias = Any
"""A name, a `Tracker` class or instance, or one of Accelerate's `GeneralTracker`s."""

_LOG: Final = logging.getLogger(__name__)
_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,99}")


class Maker:
    """Makes a tracker. A class that is only named is imported when the first one is made.

    Attributes:
        source: The class, its name, or an instance that the user made.
    """

    def __init__(self, source: str | type[Tracker] | Tracker) -> None:
        self.source = source

    def __call__(self) -> Tracker:
        """A new one; an instance is used as it is."""
        if isinstance(self.source, str):
            self.source = discovery.load(self.source)
        return self.source() if isinstance(self.source, type) else self.source


def choose(
    log_with: LogWith | Iterable[LogWith] | None, *, has_directory: bool, delivery: str
) -> tuple[dict[str, Maker], dict[str, str]]:
    """The makers of the trackers by name, and for each other why it is left out.

    Where this process does not deliver, no tracker's package is imported.

    Args:
        log_with: As users give it; None is what the environment names.
        has_directory: Whether the user has given a directory.
        delivery: `thread`, `process` or `off`.

    Raises:
        UnknownTracker: A name is no tracker's.
        TrackerNotInstalled: A tracker named in code lacks its package.
        LoggingDirectoryRequired: A tracker needs a directory and none is given.
        ConfigurationError: Something is no tracker, or can't be used in another process.
    """
    if log_with is None:  # they never lack a directory: there is a default
        makers, left_out = _available(discovery.named_by_environment(), delivery)
        for reason in left_out.values():
            _LOG.warning("%s The journal is kept.", reason)
        return makers, left_out
    makers, left_out = {}, {}
    for given in _items(log_with):
        item = GeneralTrackerAdapter(given) if is_general_tracker(given) else given
        if item == discovery.ALL:
            found, left_out = _available(discovery.known(), delivery)
            for name, maker in found.items():
                if _needs_directory(name, maker.source) and not has_directory:
                    left_out[name] = str(LoggingDirectoryRequired(name))
                else:
                    makers.setdefault(name, maker)
            continue
        name = item if isinstance(item, str) else _name_of(item, delivery)
        source = _source(item, delivery) if isinstance(item, str) else item
        if _needs_directory(name, source) and not has_directory:
            raise LoggingDirectoryRequired(name)
        makers[name] = Maker(source)
    return makers, {name: reason for name, reason in left_out.items() if name not in makers}


def _needs_directory(name: str, source: str | type[Tracker] | Tracker) -> bool:
    return discovery.needs_directory(name) if isinstance(source, str) else source.requires_logging_directory


def _items(log_with: LogWith | Iterable[LogWith]) -> Iterable[LogWith]:
    if isinstance(log_with, str):
        return [name for part in log_with.split(",") if (name := part.strip())]
    return log_with if isinstance(log_with, Iterable) else [log_with]


def _source(name: str, delivery: str) -> str | type[Tracker]:
    if delivery == "thread":
        return discovery.load(name)
    discovery.check_installed(name)
    return name


def _available(names: Iterable[str], delivery: str) -> tuple[dict[str, Maker], dict[str, str]]:
    makers: dict[str, Maker] = {}
    left_out: dict[str, str] = {}
    for name in names:
        try:
            makers[name] = Maker(_source(name, delivery))
        except ConfigurationError as error:
            left_out[name] = str(error)
    return makers, left_out


def _name_of(item: object, delivery: str) -> str:
    """The name of a tracker that is given as a class or an instance; it becomes part of file names."""
    if not (isinstance(item, Tracker) or (isinstance(item, type) and issubclass(item, Tracker))):
        raise ConfigurationError(f"log_with takes names, Tracker classes and instances, not {item!r:.200}")
    name: object = getattr(item, "name", None)
    if not (isinstance(name, str) and _NAME.fullmatch(name)):
        raise ConfigurationError(f"a tracker's name is letters, digits, `_` and `-`, not {name!r:.200}")
    if delivery == "process":
        raise ConfigurationError(
            f"the tracker {name!r} is given as an object of this process; delivery='process' needs one that "
            "an entry point names, or use delivery='thread'"
        )
    return name
