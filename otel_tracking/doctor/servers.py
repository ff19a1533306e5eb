"""Whether servers that the environment names answer."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from otel_tracking.doctor.finding import Finding, ok, problem, remark

TIMEOUT: Final = 3.0
"""Seconds."""
_PORTS: Final = {"http": 80, "https": 443, "grpc": 4317}


def look_at_servers(about: str, variables: Iterable[str]) -> Iterator[Finding]:
    """Findings about the addresses that environment variables hold; user-info is not shown.

    Args:
        about: Whose servers they are.
        variables: Names; those that are not set are left out.
    """
    for variable in variables:
        value = os.environ.get(variable, "").strip()
        if value:
            yield _look_at(about, variable, value)


def _look_at(about: str, variable: str, value: str) -> Finding:
    try:
        url = urlsplit(value if "://" in value else f"//{value}")
        host, port = url.hostname, url.port or _PORTS.get(url.scheme, 443)
    except ValueError:
        return problem(about, f"{variable} is no address", f"correct {variable}")
    if not host:
        if url.scheme in ("sqlite", "file", "") and url.path:
            return remark(about, f"{variable} names a file or folder: {Path(url.path)}")
        return problem(about, f"{variable} names no host", f"correct {variable}, as in https://host:port")
    where = f"{host}:{port}"
    try:
        socket.create_connection((host, port), TIMEOUT).close()
    except OSError as error:
        why = "no answer" if isinstance(error, TimeoutError) else (error.strerror or str(error))
        return problem(
            about,
            f"{where} of {variable} can't be reached ({why})",
            f"start the server, or correct {variable}; what is recorded waits in the journal meanwhile",
        )
    return ok(about, f"{where} of {variable} answers")
