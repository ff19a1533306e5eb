"""Where the run is that a test reads back."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Place:
    """A run's directories."""

    root: Path
    """In which its program ran, and that has trackers' own directories."""
    runs: Path
    project: str
    run_id: str

    @property
    def run(self) -> Path:
        """The run's directory."""
        return self.runs / self.project / self.run_id
