"""Whether trackers can be used here: installed, importable, with a login, a server and folders."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from otel_tracking import discovery
from otel_tracking.capabilities import Declaration
from otel_tracking.doctor.finding import Finding, ok, problem
from otel_tracking.doctor.folders import look_at_writable
from otel_tracking.doctor.logins import look_at_login
from otel_tracking.doctor.places import find, setting
from otel_tracking.doctor.servers import Later, look_at_server

_IMPORT_TIMEOUT: Final = 60.0
_IMPORT: Final = """
import sys
from otel_tracking import discovery
try:
    discovery.load(sys.argv[1])
except Exception as error:
    print(error)
    sys.exit(1)
"""


def look_at_trackers(names: Sequence[str]) -> Iterator[Finding]:
    """Findings about trackers, one after the other.

    All their servers are tried while their packages are imported, each in a process of its own, as many at
    once as there are processors.
    """
    looks = [_Look(name) for name in names]
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        for look, why in zip(looks, pool.map(lambda look: look.import_error(), looks), strict=True):
            yield from look.findings(why)


class _Look:
    """At one tracker. Its servers are being tried from the beginning."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._declaration = discovery.declaration(name)
        self._version = discovery.installed_version(name)
        self._found: list[Finding | Later] = []
        if self._version and self._declaration is not None:
            self._found = _look_around(name, self._declaration)

    def import_error(self) -> str:
        """Why its package can't be imported; empty if it can, or isn't there."""
        return _import(self._name) if self._version else ""

    def findings(self, why: str) -> Iterator[Finding]:
        """What was found; waits for its servers.

        Args:
            why: Its package can't be imported.
        """
        name, version = self._name, self._version
        package = self._declaration.package if self._declaration else name
        if not version:
            yield problem(name, f"{package} is not installed", f"pip install '{extra(name)}'")
            return
        if why:
            yield problem(
                name,
                f"{package} {version} can't be imported: {why}",
                f"pip install --upgrade --force-reinstall '{extra(name)}'",
            )
            return
        yield ok(name, f"{package} {version}")
        for each in self._found:
            yield each if isinstance(each, Finding) else each()


def _look_around(name: str, declaration: Declaration) -> list[Finding | Later]:
    standing = look_at_login(name, declaration, os.environ)
    servers = [look_at_server(name, server, declaration.offline) for server in standing.servers]
    folders: list[Finding] = []
    for folder in declaration.folders:
        if place := find(folder.places, os.environ):
            folders.append(look_at_writable(name, place[1].absolute(), setting(folder.places)))
    return [*folders, *standing.findings, *servers]


def extra(name: str) -> str:
    """What `pip install` is given for a tracker: `otel-tracking[wandb]`, or the package of a plug-in."""
    distribution = discovery.known()[name].dist
    if distribution is None:
        return f"otel-tracking[{name}]"
    extras = {
        each.replace("_", "-").lower() for each in distribution.metadata.get_all("Provides-Extra") or ()
    }
    package = distribution.metadata["Name"]
    return f"{package}[{name}]" if name.replace("_", "-").lower() in extras else package


def _import(name: str) -> str:
    try:
        done = subprocess.run(
            [sys.executable, "-c", _IMPORT, name],
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=_IMPORT_TIMEOUT,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"it takes longer than {_IMPORT_TIMEOUT:.0f} s"
    said = (done.stdout.strip() or done.stderr.strip()).splitlines()
    return "" if done.returncode == 0 else (said[-1] if said else f"exit code {done.returncode}")
