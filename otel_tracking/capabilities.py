"""What a tracker can store, and what becomes of what it can't: declared by each, as data."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field

from otel_tracking.records import MediaKind


class Feature(enum.StrEnum):
    """What a tracker may be able to do, beside the kinds of media."""

    VALUES = "values"
    """Finite numbers, as doubles."""
    NON_FINITE = "NaN, infinities"
    ORDER = "steps in any order"
    REPEATED = "points of one step"
    """Several points of a series at one step."""
    NEGATIVE = "negative steps"
    TIMES = "times"
    TEXT = "texts"
    CONFIG = "config"
    STATUS = "status at the end"
    RESUME = "resume"
    """The same run goes on, in a later process."""
    REWIND = "rewind"
    """Points of a step and later ones become void."""


class Level(enum.StrEnum):
    """How well."""

    EXACT = "exact"
    CHANGED = "changed"
    NOT_STORED = "not stored"


@dataclass(frozen=True, slots=True)
class Capability:
    """How well a tracker stores something, and what is to be known of it."""

    level: Level
    note: str = ""


def exact(note: str = "") -> Capability:
    """It comes back as it was recorded."""
    return Capability(Level.EXACT, note)


def changed(note: str) -> Capability:
    """It is stored, in another form: receipts count points as altered, everything else as stored altered."""
    return Capability(Level.CHANGED, note)


def not_stored(note: str = "") -> Capability:
    """It is refused and a dead letter: receipts count points as dropped, everything else as not stored."""
    return Capability(Level.NOT_STORED, note)


@dataclass(frozen=True, slots=True)
class Declaration:
    """What people and tests have to know of a tracker."""

    title: str
    """Its name as its makers write it."""
    package: str
    """What `pip` calls what it drives."""
    offline: str
    """How it is kept from the network, or that it never uses it."""
    capabilities: Mapping[Feature | MediaKind, Capability]
    """Of every `Feature` and `MediaKind`; what is missing is not stored."""
    credentials: tuple[str, ...] = ()
    """Environment variables that log in; any one of them will do."""
    credential_files: tuple[str, ...] = ()
    """Files that do, `~` being the home directory."""
    server: tuple[str, ...] = ()
    """Environment variables that name a server of the user's own."""
    stores: str = ""
    """Where things lie by default."""
    needs_login: bool = field(default=False)
    """Whether it can do nothing without, unless it is kept offline."""

    def of(self, what: Feature | MediaKind) -> Capability:
        """How well it stores something."""
        return self.capabilities.get(what, not_stored())
