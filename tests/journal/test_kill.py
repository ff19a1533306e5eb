"""What SIGKILL leaves: every point whose call had returned, once, in order; and a journal to go on with."""

from __future__ import annotations

import random
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from otel_tracking import read_run
from otel_tracking.journal.format import SLOT
from otel_tracking.journal.ownership import repair
from otel_tracking.recorder import Recorder

Spawn = Callable[..., "subprocess.Popen[bytes]"]

# Every value is a function of its step, so that a made-up point shows.
BY_GAUGE = """
import os, sys
from pathlib import Path
from otel_tracking.provider import TrackingMeterProvider
from otel_tracking.recorder import Recorder

directory, first = Path(sys.argv[1]), int(sys.argv[2])
recorder = Recorder()
recorder.opener = lambda this: this.open(directory)
gauge = TrackingMeterProvider(recorder).get_meter("train").create_gauge("loss")
step = first
while True:
    for step in range(step, step + 64):
        gauge.set(1.0 / (step + 1), {"training.step": step})
    step += 1
    os.write(1, step.to_bytes(8, "little"))
"""
BY_ROW = """
import os, sys
from pathlib import Path
from otel_tracking.recorder import Recorder

directory, first = Path(sys.argv[1]), int(sys.argv[2])
recorder = Recorder()
recorder.open(directory)
step = first
while True:
    for step in range(step, step + 64):
        row = {"a": 1.0 / (step + 1), "b": -float(step), "c": 0.5, "d": step * 0.1, "e": 1e300}
        recorder.log(row, step=step)
    step += 1
    os.write(1, step.to_bytes(8, "little"))
"""


def kill_at_random(spawn: Spawn, source: str, directory: Path, first: int, moment: float) -> int:
    """Let a program record for a moment after its first acknowledgement; the last step it acknowledged."""
    program = spawn(source, directory, first)
    assert program.stdout is not None
    acknowledged = program.stdout.read(8)
    time.sleep(moment)
    program.kill()
    acknowledged += program.stdout.read()
    program.wait()
    whole = len(acknowledged) // 8 * 8
    return int.from_bytes(acknowledged[whole - 8 : whole], "little")


def check(values: dict[str, np.ndarray], steps: np.ndarray, first: int, acknowledged: int) -> int:
    """One stretch of a program: nothing missing, doubled, out of order or made up. Returns its end."""
    end = int(steps[-1]) + 1
    assert steps.tolist() == list(range(first, end))
    assert acknowledged <= end
    assert np.array_equal(values["a"], 1.0 / (steps + 1.0))
    for name, expected in {"b": -steps.astype(float), "d": steps * 0.1}.items():
        if name in values:
            assert np.array_equal(values[name], expected)
    return end


def test_every_acknowledged_point_survives_and_the_next_start_appends(
    tmp_path: Path, spawn: Spawn, size: Callable[[int, int], int]
) -> None:
    """Several kills in a row on one journal, read back whole after each."""
    moments = random.Random(20)
    kills = size(6, 200)
    directory = tmp_path / "journal"
    first = 0
    for _ in range(kills):
        acknowledged = kill_at_random(spawn, BY_GAUGE, directory, first, moments.uniform(0.0, 0.05))
        run = read_run(directory)
        steps = run.steps
        first = check({"a": run.values}, steps, 0, acknowledged)
        assert {series.name for series in run.series} == {"loss"}

    recorder = Recorder()
    recorder.open(directory)
    recorder.log({"after": 1.0}, step=first)
    recorder.journal.close()  # type: ignore[union-attr]  # it was opened
    assert read_run(directory).steps.tolist() == list(range(first + 1))


def test_a_row_is_there_whole_or_not_at_all(
    tmp_path: Path, spawn: Spawn, size: Callable[[int, int], int]
) -> None:
    moments = random.Random(21)
    directory = tmp_path / "journal"
    first = 0
    for _ in range(size(3, 100)):
        acknowledged = kill_at_random(spawn, BY_ROW, directory, first, moments.uniform(0.0, 0.05))
        run = read_run(directory)
        values = {name: run.of(name).values for name in "abcde"}
        assert len({len(column) for column in values.values()}) == 1
        first = check(values, run.of("a").steps, 0, acknowledged)


def test_what_a_kill_leaves_is_cut_and_takes_no_space(tmp_path: Path, spawn: Spawn) -> None:
    directory = tmp_path / "journal"
    kill_at_random(spawn, BY_GAUGE, directory, 0, 0.01)
    before = read_run(directory)
    repair(directory)
    after = read_run(directory)

    assert after.steps.tolist() == before.steps.tolist()
    space = sum(path.stat().st_size for path in directory.glob("*.segment"))
    assert space <= (len(after) + 100) * SLOT
    assert not list(directory.glob("*.draft"))


@pytest.mark.parametrize("source", [BY_GAUGE, BY_ROW], ids=["gauge", "row"])
def test_recovery_can_be_killed_too(tmp_path: Path, spawn: Spawn, source: str) -> None:
    """Killed again while it starts: what is there stays there."""
    directory = tmp_path / "journal"
    end = kill_at_random(spawn, source, directory, 0, 0.02)
    counted = len(read_run(directory))
    moments = random.Random(22)
    for _ in range(3):
        program = spawn(source, directory, end)
        deadline = time.monotonic() + 10
        lock_seen = len(list(directory.glob("*")))
        while len(list(directory.glob("*"))) == lock_seen and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(moments.uniform(0.0, 0.004))
        program.kill()
        program.wait()
        steps = read_run(directory).of("loss" if source is BY_GAUGE else "a").steps
        assert len(steps) >= counted // (1 if source is BY_GAUGE else 5)
        assert steps[:end].tolist() == list(range(end))
