"""A whole tracker in one module: every point a line of JSON in the run's directory."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from otel_tracking.records import Batch, RunInfo, RunStatus, Written
from otel_tracking.tracker import Tracker


class JsonlTracker(Tracker):
    """Writes `points.jsonl`; `native` is its path.

    NaN and the infinities are written as Python's `json` writes and reads them.
    """

    name = "jsonl"

    _path: Path
    _file: BinaryIO
    _size: int
    _position: int

    def start(self, run: RunInfo) -> int:
        self._path = run.directory / "points.jsonl"
        self._file = self._path.open("r+b" if run.resumed else "w+b")
        # Lines written after the cursor was saved are given again.
        self._size = run.state.get("size", 0)
        self._file.truncate(self._size)
        self._position = run.position
        return run.position

    def write(self, batch: Batch) -> Written:
        columns = (batch.index, batch.steps, batch.times, batch.values)
        lines = [
            json.dumps({"name": batch.series[i].tag, "step": step, "time_ns": time, "value": value})
            for i, step, time, value in zip(*(column.tolist() for column in columns), strict=True)
        ]
        data = "".join(f"{line}\n" for line in lines).encode()
        # Over what an attempt that failed half-way has left.
        self._file.seek(self._size)
        self._file.write(data)
        self._file.flush()
        self._size += len(data)
        self._position = int(batch.positions[-1])
        return Written(len(batch))

    def confirm(self, *, flush: bool = False) -> int:
        return self._position

    def state(self) -> Mapping[str, Any]:
        return {"size": self._size}

    def finish(self, status: RunStatus) -> None:
        self._file.close()

    @property
    def native(self) -> Path:
        return self._path
