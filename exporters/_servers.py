"""Whether a tracker's server answers, before its SDK is asked to reach it.

An SDK without an answer waits for minutes, some for ever, and W&B's leaves behind a run that can't be opened
again in that process. Waiting is the follower's business.
"""

from __future__ import annotations

from typing import Final

from otel_tracking.errors import Retry
from otel_tracking.reach import address, knock, proxied, scheme_of

_SECONDS: Final = 5.0


def require_answer(url: str, of: str) -> None:
    """Raise `Retry` when nothing listens at an address; nothing is known of one that a proxy leads to.

    Args:
        url: Of a server; other schemes than HTTP's pass.
        of: Whose, for the error.
    """
    if scheme_of(url) not in ("http", "https"):
        return
    server = address(url)
    if server is None or proxied(server):
        return
    try:
        knock(server, _SECONDS)
    except OSError as error:
        raise Retry(f"no {of} server at {server} ({error})") from error
