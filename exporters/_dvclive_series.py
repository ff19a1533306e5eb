"""Series as the TSV files that DVCLive writes, a batch at a time."""

from __future__ import annotations

import csv
import io
import os
from collections import deque
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final, NamedTuple

from otel_tracking.names import NameRule

NAMES: Final = NameRule(
    # One name, one file, below the folder of metrics, and one column that is neither `step` nor
    # `timestamp`; `x.tsv/y` would need a folder where the series `x` has its file.
    forbidden=r"\x00-\x1f\x7f\x85\u2028\u2029\\",
    forbidden_parts=(
        r"^/|/(?=/|\Z)|(?:(?<=/)|^)\.(?=\.?(?:/|\Z))|\.(?=tsv/)"
        r"|(?:(?<=/)|^)s(?=tep\Z)|(?:(?<=/)|^)t(?=imestamp\Z)"
    ),
    max_bytes=200,
)


class Row(NamedTuple):
    """A line of a series' file."""

    time_ms: int
    step: int
    value: float
    position: int

    @property
    def line(self) -> str:
        """As DVCLive writes it: the value as Python spells it, exactly."""
        return f"{self.time_ms}\t{self.step}\t{self.value!r}{os.linesep}"


class SeriesFiles:
    """The files of a run's series. A row that is given again after a kill or an error is stored once."""

    def __init__(self, folder: Path, sizes: Mapping[str, int]) -> None:
        """Use a folder.

        Args:
            folder: `plots/metrics` of the run.
            sizes: By name: bytes of each file when the cursor was saved. What lies beyond may come again.
        """
        self._folder = folder
        self._known = dict(sizes)
        self.sizes: dict[str, int] = dict(sizes)
        """By name: bytes of each file."""
        self._tails: dict[str, deque[str]] = {}
        self._reached: dict[str, int] = {}

    def append(self, name: str, rows: Iterable[Row]) -> None:
        """Append the rows of a series.

        Raises:
            OSError: They can't be written, maybe after some of them were.
        """
        path = self._folder / f"{name}.tsv"
        if name not in self._tails:
            self._open(name, path)
        tail, reached = self._tails[name], self._reached.get(name, -1)
        lines = []
        last = reached
        for row in rows:
            if row.position <= reached:
                continue
            last = row.position
            if tail and row.line in tail:  # written before the process was killed
                while tail.popleft() != row.line:
                    pass  # somebody's own call in between
                continue
            lines.append(row.line)
        if lines:
            with path.open("a", encoding="utf-8", newline="") as file:
                file.write("".join(lines))
        self._reached[name] = last
        self.sizes[name] = path.stat().st_size

    def _open(self, name: str, path: Path) -> None:
        """Look what the file holds beyond what is known; make it if there is none.

        A kill may have cut its last line: a row, or the header, or all of that.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        data = path.read_bytes() if path.exists() else b""
        whole = data.rfind(b"\n") + 1
        if not whole:
            header = io.StringIO()
            columns = ["timestamp", "step", name.rpartition("/")[2]]
            csv.writer(header, delimiter="\t", lineterminator=os.linesep).writerow(columns)
            path.write_text(header.getvalue(), encoding="utf-8", newline="")
            data = path.read_bytes()
            whole = len(data)
        elif whole < len(data):
            os.truncate(path, whole)
        first = self._known.get(name, 0) or data.find(b"\n") + 1
        tail = data[first:whole].decode("utf-8", errors="replace")
        self._tails[name] = deque(tail.splitlines(keepends=True))
