"""A project directory on a disk that is too small."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import otel_tracking as ot

# Calls, some with new series, that fill the disk several times over; then there is space.
TRAIN = """
import json, logging, os, sys, time
import otel_tracking as ot
from opentelemetry import metrics

directory, delivery, filler = sys.argv[1:]
longest, made = 0.0, 0
tracking = ot.Tracking("tensorboard", project_dir=directory, run_id="run", delivery=delivery)
tracking.init_trackers("p", config={"lr": 0.1})
gauge = metrics.get_meter("m").create_gauge("loss")

def timed(call, points):
    global longest, made
    begin = time.perf_counter()
    call()
    longest = max(longest, time.perf_counter() - begin)
    made += points

for step in range(120_000):
    timed(lambda: gauge.set(0.5, {"training.step": step}), 1)
    timed(lambda: tracking.log({"a": 1.0, "b": -float(step)}, step=step), 2)
    timed(lambda: tracking.log({f"new/{step // 1000}": 1.0}, step=step), 1)
    if step % 1000 == 0:
        timed(lambda: tracking.log({"note": f"text at {step}"}, step=step), 1)
    if step == 100_000 and filler:
        os.unlink(filler)
        time.sleep(2)
tracking.end_training(timeout=20)
receipt = tracking.receipt()
print(json.dumps({
    "longest": longest,
    "made": made,
    "recorded": receipt.recorded,
    "not_recorded": dict(receipt.not_recorded),
    "trackers": {n: [t.delivered, t.pending, sum(t.dropped.values())] for n, t in receipt.trackers.items()},
}))
"""


def train(directory: Path, delivery: str, filler: Path | None = None) -> dict[str, Any]:
    environ = {key: value for key, value in os.environ.items() if not key.startswith("OTEL_")}
    done = subprocess.run(
        [sys.executable, "-c", TRAIN, str(directory), delivery, str(filler or "")],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=environ,
    )
    assert done.returncode == 0, done.stderr
    assert "can't grow" in done.stderr
    said: dict[str, Any] = json.loads(done.stdout)
    return said


@pytest.mark.parametrize("delivery", ["thread", "process", "off"])
def test_four_mebibytes(mounted: Callable[..., Path], delivery: str) -> None:
    disk = mounted("disk", "-t", "tmpfs", "-o", "size=4m", "tmpfs")
    said = train(disk, delivery)
    assert said["longest"] < 0.05
    assert set(said["not_recorded"]) == {"no space for the journal"}
    run = ot.read_run(disk / "p" / "run")
    texts = 120
    # Texts are counted when they are lost, and are no points when they are not.
    total = said["recorded"] + sum(said["not_recorded"].values())
    assert said["made"] - texts <= total <= said["made"]
    assert said["recorded"] == len(run) > 30_000
    for delivered, pending, dropped in said["trackers"].values():
        assert delivered + pending + dropped == said["recorded"]
    assert run.of("loss").steps[:1000].tolist() == list(range(1000))


def test_recording_goes_on_once_there_is_space(mounted: Callable[..., Path]) -> None:
    disk = mounted("disk", "-t", "tmpfs", "-o", "size=64m", "tmpfs")
    filler = disk / "filler"
    filler.write_bytes(bytes(60 * 2**20))
    said = train(disk, "thread", filler)
    assert said["longest"] < 0.05
    assert said["trackers"] == {"tensorboard": [said["recorded"], 0, 0]}
    run = ot.read_run(disk / "p" / "run")
    assert len(run) == said["recorded"]
    assert run.of("loss").steps[-20_000:].tolist() == list(range(100_000, 120_000))
