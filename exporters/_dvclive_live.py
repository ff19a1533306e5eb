"""Importing DVCLive, without what an import of DVC does to stdout and stderr: colorama wraps both."""

from __future__ import annotations

import sys

_streams = sys.stdout, sys.stderr
try:
    from dvclive.error import InvalidDvcyamlError, InvalidReportModeError
    from dvclive.live import Live
finally:
    sys.stdout, sys.stderr = _streams

__all__ = ["InvalidDvcyamlError", "InvalidReportModeError", "Live"]
