"""Packages with trackers of their own, as an installer leaves them on `sys.path`."""

from __future__ import annotations

from pathlib import Path

from otel_tracking import discovery

RECORDING = """
from otel_tracking.testing import RecordingTracker

class Made(RecordingTracker):
    name = {name!r}
"""


class Site:
    """A directory for `sys.path`.

    Args:
        directory: Where; made.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir()

    def install(self, name: str, source: str | None = None, *, target: str = "Made") -> None:
        """A package whose tracker `name` is `target` in a module of that source: a RecordingTracker."""
        module = f"plugin_{name}"
        (self.directory / f"{module}.py").write_text(
            RECORDING.format(name=name) if source is None else source
        )
        info = self.directory / f"{module}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: plugin-{name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[{discovery.GROUP}]\n{name} = {module}:{target}\n")
