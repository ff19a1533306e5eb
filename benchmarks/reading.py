"""What a run takes on disk and to read, by the commands as users call them. The targets are figures: what
is shown or exported here, no peer keeps.
"""

from __future__ import annotations

import json
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.measuring import Size
from benchmarks.tables import Table, verdict
from otel_tracking.provider import TrackingMeterProvider
from otel_tracking.recorder import Recorder
from otel_tracking.records import RunStatus

_COMMAND = str(Path(sys.executable).with_name("otel-tracking"))
_ROUNDS = 3
_SHOW_SECONDS = 2.0
_EXPORT_RATE = 1e6
_BYTES = {"pack": 32.0, "zstd": 12.0}
"""At most, a point, by the form of the journal's segments; the first is the default."""


def measure(size: Size) -> list[Table]:
    """Random values, as the worst case for compression, recorded by gauge.set at full speed."""
    points = size(10_000_000, 300_000)
    rows: list[Sequence[str]] = []
    for form in ("pack", "zstd", "off"):
        run = Path("runs") / "p" / form
        stored = _record(run, points, form)
        each = sum(path.stat().st_size for path in (run / "journal").rglob("*") if path.is_file()) / stored
        most = _BYTES.get(form)
        target = f"at most {most:.0f}" if most else ""
        rows.append((f"bytes a point, {form}", f"{each:.4f}", target, verdict(each <= most) if most else ""))
        seconds = _seconds("show", form)
        default = form == "pack"
        target = f"at most {_SHOW_SECONDS:.0f} s" if default else ""
        rows.append(
            (
                f"show, {form}",
                f"{seconds:.2f} s",
                target,
                verdict(seconds <= _SHOW_SECONDS) if default else "",
            )
        )
    seconds = _seconds("export", "pack", "--format", "parquet", "-o", "points.parquet", "--force")
    rate = points / seconds
    met = rate >= _EXPORT_RATE
    rows.append(("export to Parquet", f"{rate / 1e6:.2f} million/s", "at least 1 million/s", verdict(met)))
    rows.append(("verify, pack", f"{_seconds('verify', 'pack'):.2f} s", "", ""))
    return [Table(f"A run of {points:,} points, start of the command included", ("", "", "", ""), rows)]


def _record(run: Path, points: int, form: str) -> int:
    recorder = Recorder()
    recorder.compress = form
    start = {"project": "p", "pid": 1, "host": "here", "resource": {}}
    recorder.open(run / "journal" / "rank-00000", start=start)
    about = {"version": 1, "run_id": run.name, "project": "p", "name": run.name, "created": time.time_ns()}
    (run / "run.json").write_text(json.dumps(about))
    gauge = TrackingMeterProvider(recorder).get_meter("train").create_gauge("train/loss")
    value = random.Random(1).random
    for step in range(points):
        gauge.set(value(), {"training.step": step})
    recorder.close(RunStatus.FINISHED)
    return points - sum(recorder.not_recorded().values())


def _seconds(command: str, run: str, *options: str) -> float:
    times = []
    for _ in range(_ROUNDS):
        begin = time.perf_counter()
        subprocess.run(
            [_COMMAND, command, run, *options, "--project-dir", "runs"],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        times.append(time.perf_counter() - begin)
    return statistics.median(times)
