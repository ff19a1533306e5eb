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
class Switch:
    """An environment variable that turns something on."""

    variable: str
    on: str
    """The values that do: a regular expression for the whole of one."""


@dataclass(frozen=True, slots=True)
class File:
    """A file that something is looked up in."""

    places: tuple[str, ...]
    """Where it is: the first that names no variable that is unset. `~` is the home directory, `$NAME` what a
    variable holds."""
    pattern: str = ""
    """What has to be in it: a regular expression, `^` and `$` being a line's. Its group is looked up."""


@dataclass(frozen=True, slots=True)
class Netrc:
    """A file in the format of `.netrc`, with a login for the tracker's server."""

    places: tuple[str, ...] = ("$NETRC", "~/.netrc")
    """As those of a `File`."""
    aliases: Mapping[str, str] = field(default_factory=dict)
    """Of a server's host, another one whose login will do."""
    ports: bool = False
    """Whether a machine is called `host:port` where the server's URL has a port."""
    any_machine: bool = False
    """Whether the first login is used, for whatever server, unless a variable names one."""


@dataclass(frozen=True, slots=True)
class Server:
    """A server that a tracker sends to, and what names it: a variable, else a file, else nothing."""

    variables: tuple[str, ...] = ()
    """The first that is set is used."""
    files: tuple[File, ...] = ()
    """The first that says something is used."""
    default: str = ""
    """The URL of the one that is used when nothing names one; of a tracker with logins, only with one."""
    elsewhere: Switch | None = None
    """When it is on, the default is not used, and which one is can't be known."""
    schemes: tuple[str, ...] = ("https", "http")
    bare: bool = False
    """Whether it may be named as `host:port`; it has the first scheme then."""
    stores: bool = False
    """Whether a folder, an sqlite file or a database can be named in its place, as MLflow has it."""
    folders: Switch | None = None
    """What has to be on for a folder to be taken."""


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder that a tracker writes to, other than the run's directory."""

    places: tuple[str, ...]
    """As those of a `File`. The first one's variable is what to set for another folder."""


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
    switches: tuple[Switch, ...] = ()
    """What keeps it offline; any one of them will do."""
    credentials: tuple[str | tuple[str, ...], ...] = ()
    """Environment variables that log in; any one of them will do, and those of a tuple together."""
    credential_files: tuple[File | Netrc, ...] = ()
    """Files that do."""
    login_is_for: str = ""
    """What a login is needed for, of a tracker that works without."""
    servers: tuple[Server, ...] = ()
    folders: tuple[Folder, ...] = ()
    stores: str = ""
    """Where things lie by default."""
    needs_login: bool = field(default=False)
    """Whether it can do nothing without, unless it is kept offline."""

    def of(self, what: Feature | MediaKind) -> Capability:
        """How well it stores something."""
        return self.capabilities.get(what, not_stored())
