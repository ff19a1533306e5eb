"""Whether servers answer, tried side by side; and whether what is named in the place of one can be used."""

from __future__ import annotations

import os
import queue
import re
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias
from urllib.parse import unquote, urlsplit

from otel_tracking.capabilities import Server
from otel_tracking.doctor.finding import Finding, State, ok, problem, remark
from otel_tracking.doctor.folders import look_at_file, look_at_writable
from otel_tracking.doctor.places import is_on, look_up, value
from otel_tracking.reach import Address, address, knock, proxied, scheme_of

TIMEOUT: Final = 3.0
"""Seconds for a connection to one address."""
PATIENCE: Final = 4.0
"""Seconds for all of a server: its name can take long to look up, and have several addresses."""
_DATABRICKS: Final = ("databricks", "databricks-uc", "uc")
_DATABASES: Final = {
    "mssql": "Microsoft SQL Server",
    "mysql": "MySQL",
    "mariadb": "MariaDB",
    "oracle": "Oracle",
    "postgresql": "PostgreSQL",
}
# `host:port`, and anything with a user and a password, which must not be taken for a path, and shown.
_BARE: Final = re.compile(r"[A-Za-z0-9_.-]+:\d+(/|$)|\[[0-9A-Fa-f:.]+\]:\d+(/|$)|[^@]*:[^@]*@")
_WAITS: Final = "what is recorded waits in the journal meanwhile"

Later: TypeAlias = Callable[[], Finding]
"""What a look finds: calling it waits for that."""


@dataclass(frozen=True, slots=True)
class Named:
    """A server, and what names it."""

    server: Server
    url: str
    """May hold a user and a password."""
    by: str
    """The variable or file; empty for the default."""
    is_variables: bool = False

    @property
    def is_default(self) -> bool:
        """Whether nothing here names it."""
        return not self.by

    def host(self, port: bool) -> str:
        """What a netrc file calls it, with the port if it is named with one; empty if it is no server."""
        try:
            parts = urlsplit(self.url if scheme_of(self.url) else f"//{self.url}")
            host = parts.hostname or ""
            return f"{host}:{parts.port}" if port and parts.port else host
        except ValueError:
            return ""

    @property
    def has_user(self) -> bool:
        """Whether its URL logs in."""
        try:
            return bool(scheme_of(self.url) in self.server.schemes and urlsplit(self.url).username)
        except ValueError:
            return False

    @property
    def setting(self) -> str:
        """What to correct for another server."""
        return self.by or (self.server.variables[0] if self.server.variables else "")


def named(server: Server, environment: Mapping[str, str]) -> Named | None:
    """What is used here; None if nothing names one and there is no default."""
    for variable in server.variables:
        if given := value(variable, environment):
            return Named(server, given, variable, is_variables=True)
    for file in server.files:
        if (said := look_up(file, environment)) and said[1]:
            return Named(server, said[1], said[0])
    if not server.default:
        return None
    if server.elsewhere and is_on(server.elsewhere, environment):
        return None
    return Named(server, server.default, "")


def look_at_server(about: str, it: Named, offline: str = "") -> Later:
    """A look at a server, which is being tried when this returns; or at what is named in its place.

    Args:
        about: Whose it is.
        it: Which one. What may be secret in its URL is not shown.
        offline: How to do without, for people.
    """
    try:
        found = _classify(about, it)
    except ValueError:
        example = f"{it.server.schemes[0]}://host:port"
        return _known(problem(about, f"{it.setting} is no address", f"correct {it.setting}, as in {example}"))
    if isinstance(found, Finding):
        return _known(found)
    return _try(about, it, found, offline)


def _known(finding: Finding) -> Later:
    return lambda: finding


def _classify(about: str, it: Named) -> Finding | Address:
    """What is found without trying, else what to try.

    Raises:
        ValueError: It is no address.
    """
    server, url, scheme = it.server, it.url, scheme_of(it.url)
    bare = not scheme and _BARE.match(url) is not None
    if server.stores and scheme not in server.schemes and not bare:
        return _look_at_store(about, it, scheme)
    if not scheme and (server.bare or not it.is_variables):
        scheme, url = server.schemes[0], f"{server.schemes[0]}://{url}"
    if "@" in (urlsplit(url).path if scheme else url.partition("/")[2]):
        raise ValueError("a password with a slash in it, of which a part would be taken for the host")
    found = address(url if scheme else f"//{url}")
    where = f"{server.schemes[0]}://{found.host if found else 'host'}"
    if not scheme:
        if found and urlsplit(f"//{url}").port:
            where = f"{'http' if 'http' in server.schemes else server.schemes[0]}://{found}"
        return problem(about, f"{it.setting} does not say {_either(server)}", _correct(it, where))
    if scheme not in server.schemes:
        text = f"{it.setting} begins with {scheme:.20}://, not with {_either(server)}"
        return problem(about, text, _correct(it, where))
    return found or problem(about, f"{it.setting} names no host", _correct(it, where))


def _either(server: Server) -> str:
    return " or ".join(f"{each}://" for each in server.schemes)


def _correct(it: Named, url: str) -> str:
    return f"set {it.by}={url}" if it.is_variables else f"correct {it.setting}, as in {url}"


def _look_at_store(about: str, it: Named, scheme: str) -> Finding:
    url, by = it.url, it.setting
    if (scheme or url.lower()) in _DATABRICKS:
        return remark(about, f"{by} names Databricks, which is not tried")
    kind = scheme.partition("+")[0]
    if kind in _DATABASES:
        return remark(about, f"{by} names a database ({_DATABASES[kind]}), which is not tried")
    if kind == "sqlite":
        path = unquote(urlsplit(url).path.removeprefix("/"))
        if path in ("", ":memory:"):
            text = f"{by} names a database in memory: nothing of it stays"
            return problem(about, text, _correct(it, f"sqlite:///{Path.cwd()}/mlflow.db"))
        return look_at_file(about, Path(path), by)
    if scheme not in ("", "file"):
        return remark(about, f"{by} names a store of the kind {scheme:.20}, which is not tried")
    path = unquote(urlsplit(url).path) if url.lower().startswith("file:") else url
    found = look_at_writable(about, Path(path).expanduser(), by)
    switch = it.server.folders
    if found.state is not State.OK or switch is None or is_on(switch, os.environ):
        return found
    fix = f"set {switch.variable}=true, or {by}=sqlite:///{Path(path).absolute()}/mlflow.db"
    return remark(about, f"{found.text}; some versions refuse folders without {switch.variable}", fix)


def _try(about: str, it: Named, server: Address, offline: str) -> Later:
    of = f"of {it.by}" if it.by else "(its default server)"
    if proxied(server):
        text = f"{server} {of} is behind a proxy that the environment names: it was not tried"
        return _known(remark(about, text, f"add {server.host} to NO_PROXY if it is reached without"))
    answer: queue.SimpleQueue[OSError | None] = queue.SimpleQueue()
    until = time.monotonic() + PATIENCE

    def trying() -> None:
        try:
            knock(server, TIMEOUT)
        except (OSError, UnicodeError) as error:  # of names that are too long for DNS
            answer.put(error if isinstance(error, OSError) else OSError(str(error)))
        else:
            answer.put(None)

    # A daemon: looking up a name has no timeout, and must not hold the end of the process.
    threading.Thread(target=trying, daemon=True, name=f"doctor-{server}").start()

    def found() -> Finding:
        try:
            error = answer.get(timeout=max(0.0, until - time.monotonic()))
        except queue.Empty:
            error = TimeoutError()
        if error is None:
            return ok(about, f"{server} {of} answers")
        why = "no answer" if isinstance(error, TimeoutError) else (error.strerror or str(error))
        return problem(about, f"{server} {of} can't be reached ({why})", _remedy(it, server, offline))

    return found


def _remedy(it: Named, server: Address, offline: str) -> str:
    if it.by:
        return f"start the server, or correct {it.by}; {_WAITS}"
    ways = [f"let this machine reach {server}"]
    if it.setting:
        ways.append(f"set {it.setting} to a server of yours")
    if "=" in offline:
        ways.append(f"set {offline}")
    return f"{', or '.join(ways)}; {_WAITS}"
