"""Whether trackers can be used here: installed, importable, with a login."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from otel_tracking import discovery
from otel_tracking.capabilities import Declaration
from otel_tracking.doctor.finding import Finding, ok, problem, remark
from otel_tracking.doctor.servers import look_at_servers

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


def look_at_tracker(name: str) -> Iterator[Finding]:
    """Findings about one tracker. Its package is imported in a process of its own."""
    declaration = discovery.declaration(name)
    version = discovery.installed_version(name)
    package = declaration.package if declaration else name
    if not version:
        yield problem(name, f"{package} is not installed", f"pip install 'otel-tracking[{name}]'")
        return
    why = _import(name)
    if why:
        yield problem(
            name,
            f"{package} {version} can't be imported: {why}",
            f"pip install --upgrade --force-reinstall 'otel-tracking[{name}]'",
        )
        return
    yield ok(name, f"{package} {version}")
    if declaration is not None:
        yield from _login(name, declaration, os.environ)
        yield from look_at_servers(name, declaration.server)


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


def _login(name: str, declaration: Declaration, environment: Mapping[str, str]) -> Iterator[Finding]:
    if not declaration.credentials:
        return
    switch, _, value = declaration.offline.partition("=")
    offline = bool(value) and environment.get(switch) == value
    given = next((each for each in declaration.credentials if environment.get(each)), None)
    file = next((each for each in declaration.credential_files if Path(each).expanduser().is_file()), None)
    if given is not None:
        yield ok(name, f"{given} is set")
    elif file is not None:
        yield ok(name, f"{file} is there")
    elif offline:
        yield ok(name, f"no login, and none needed: {declaration.offline}")
    elif declaration.needs_login:
        fix = f"set {declaration.credentials[0]}"
        yield problem(name, "there is no login", f"{fix}, or {declaration.offline}" if value else fix)
    else:
        yield remark(name, f"no login ({', '.join(declaration.credentials)}); it works without")
