"""Whether a tracker's server answers, before its SDK is asked to reach it.

An SDK without an answer waits for minutes, some for ever, and W&B's leaves behind a run that can't be opened
again in that process. Waiting is the follower's business.
"""

from __future__ import annotations

import socket
from typing import Final
from urllib.parse import urlsplit

import requests.utils

from otel_tracking.errors import Retry

_SECONDS: Final = 5.0


def require_answer(url: str, of: str) -> None:
    """Raise `Retry` when nothing listens at an address; nothing is known of one that a proxy leads to.

    Args:
        url: Of a server; other schemes than HTTP's pass.
        of: Whose, for the error.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or requests.utils.get_environ_proxies(url):
        return
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        socket.create_connection((parts.hostname or "", port), _SECONDS).close()
    except OSError as error:
        raise Retry(f"no {of} server at {parts.hostname}:{port} ({error})") from error
