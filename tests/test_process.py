"""What a process does once: exit in all its ways, fork, be killed and start again, set providers."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import (  # type: ignore[import-untyped]
    EventAccumulator,
)

import otel_tracking as ot

RunScript = Callable[..., subprocess.CompletedProcess[str]]

# A tracker whose store outlives its process: one line of JSON for each thing that happens to it.
FILE_TRACKER = """
import json, os
from otel_tracking.testing import RecordingTracker
from otel_tracking.tracker import Pacing

class FileTracker(RecordingTracker):
    name = "file"
    pacing = Pacing(max_points=20, interval=0.01)

    def _note(self, **content):
        line = json.dumps({"pid": os.getpid(), **content}) + "\\n"
        fd = os.open(self.run.logging_dir / "stored.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.write(fd, line.encode())
        os.close(fd)

    def start(self, run):
        position = super().start(run)
        self._note(event="start", position=position, run_id=run.run_id, rank=run.rank.rank)
        return position

    def write(self, batch):
        written = super().write(batch)
        tags = [batch.series[i].tag for i in batch.index]
        self._note(event="points", steps=batch.steps.tolist(), tags=tags, positions=batch.positions.tolist())
        return written

    def confirm(self, *, flush=False):
        position = super().confirm(flush=flush)
        self._note(event="confirm", position=position)
        return position

    def finish(self, status):
        super().finish(status)
        reason = self.failure.reason if self.failure else ""
        self._note(event="finish", status=status.value, reason=reason)
"""

TRAIN = """
import os, sys
import otel_tracking as ot
from filetracker import FileTracker

tracking = ot.Tracking(log_with=[FileTracker, "tensorboard"], project_dir="out")
tracking.init_trackers("p")
for step in range(100):
    tracking.log({"a": float(step)}, step=step)
"""


@pytest.fixture(autouse=True)
def _file_tracker(tmp_path: Path) -> None:
    (tmp_path / "filetracker.py").write_text(FILE_TRACKER)


def stored(tmp_path: Path, event: str) -> list[dict[str, Any]]:
    path = tmp_path / "out" / "stored.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [line for text in lines if (line := json.loads(text))["event"] == event]


def stored_steps(tmp_path: Path) -> list[int]:
    return [step for line in stored(tmp_path, "points") for step in line["steps"]]


def tensorboard_steps(run: Path, tag: str = "a") -> list[int]:
    accumulator = EventAccumulator(str(run), size_guidance={"scalars": 0})
    accumulator.Reload()
    return [event.step for event in accumulator.Scalars(tag)]


def only_run(tmp_path: Path) -> Path:
    (description,) = (tmp_path / "out").glob("*/*/run.json")
    return description.parent


# Exit


@pytest.mark.parametrize(
    ("ending", "status", "code"),
    [
        ("", "finished", 0),
        ("sys.exit(0)", "finished", 0),
        ("sys.exit(3)", "failed", 3),
        ("sys.exit('message')", "failed", 1),
        ("from sys import exit\nexit(3)", "failed", 3),
        ("try:\n    sys.exit(3)\nexcept SystemExit:\n    pass\n"
         "tracking.log({'b': 1.0}, step=100)", "finished", 0),
        ("import threading\nt = threading.Thread(target=sys.exit, args=(3,))\n"
         "t.start()\nt.join()", "finished", 0),
        ("raise ValueError('nan')", "failed", 1),
        ("raise KeyboardInterrupt", "killed", -signal.SIGINT),
        ("sys.excepthook = lambda *error: None\nraise ValueError('nan')", "failed", 1),
        ("try:\n    raise ValueError\nexcept ValueError:\n    pass", "finished", 0),
        ("tracking.end_training(status='failed')", "failed", 0),
        ("with tracking:\n    sys.exit(3)", "failed", 3),
        ("import threading\nthreading.excepthook = print\n"
         "t = threading.Thread(target=lambda: 1 / 0)\nt.start()\nt.join()", "finished", 0),
    ],
)  # fmt: skip
def test_a_run_that_is_not_ended_is_ended_at_exit(
    run_script: RunScript, tmp_path: Path, ending: str, status: str, code: int
) -> None:
    done = run_script(TRAIN + ending, check=False)
    assert done.returncode == code, done.stderr
    assert [line["status"] for line in stored(tmp_path, "finish")] == [status]
    assert stored_steps(tmp_path)[:100] == list(range(100))
    assert tensorboard_steps(only_run(tmp_path)) == list(range(100))
    if not code:
        assert done.stderr == ""


@pytest.mark.parametrize("method", ["start", "write", "confirm", "state", "finish"])
@pytest.mark.parametrize("fault", ["threading.Event().wait", "lambda: 1 / 0"], ids=["hangs", "raises"])
def test_a_tracker_that_gets_nowhere_does_not_hold_up_the_exit(
    run_script: RunScript, tmp_path: Path, method: str, fault: str
) -> None:
    script = f"""
import threading
import otel_tracking as ot
from otel_tracking.testing import RecordingTracker
from filetracker import FileTracker

stuck = RecordingTracker(faults={{"{method}": {fault}}})
stuck.patience = 1.0
ot.Tracker.patience = 1.0  # of one that has not started
tracking = ot.Tracking(log_with=[FileTracker, stuck], project_dir="out")
tracking.init_trackers("p")
for step in range(100):
    tracking.log({{"a": float(step)}}, step=step)
"""
    begun = time.monotonic()
    run_script(script)
    # Alone on a machine it takes 2 seconds; without an end to patience it would be 120.
    assert time.monotonic() - begun < 60
    assert stored_steps(tmp_path) == list(range(100))
    assert [line["status"] for line in stored(tmp_path, "finish")] == ["finished"]


# OpenTelemetry's API


def test_what_was_measured_before_the_run_is_in_it(run_script: RunScript, tmp_path: Path) -> None:
    script = """
from opentelemetry import metrics
early = metrics.get_meter("train").create_gauge("loss")
early.set(0.0, {"training.step": 0})          # nobody listens yet

import otel_tracking as ot
from filetracker import FileTracker
tracking = ot.Tracking(log_with=FileTracker, project_dir="out")
early.set(1.0, {"training.step": 1})
for phase in (1, 2):
    tracking.init_trackers(f"phase-{phase}")
    early.set(2.0, {"training.step": 10 * phase})
    tracking.end_training()
    early.set(3.0, {"training.step": 99})       # after the end: counted
    assert tracking.receipt().not_recorded == {"recorded after the run had ended": 1}, tracking.receipt()
print(tracking.receipt().complete)
"""
    done = run_script(script)
    assert done.stdout == "True\n"
    assert done.stderr.count("after the end of the run") == 1
    assert stored_steps(tmp_path) == [1, 10, 20]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["phase-1", "phase-2", "stored.jsonl"]


@pytest.mark.parametrize("records", [False, True])
def test_a_tracking_that_never_begins(run_script: RunScript, tmp_path: Path, records: bool) -> None:
    script = """
import sys
from opentelemetry import metrics
import otel_tracking as ot
from filetracker import FileTracker
tracking = ot.Tracking(log_with=FileTracker, project_dir="out")
if "record" in sys.argv:
    metrics.get_meter("train").create_gauge("loss").set(1.0, {"training.step": 1})
tracking.end_training()
"""
    done = run_script(script, *(["record"] if records else []))
    if not records:
        assert not (tmp_path / "out").exists()
        assert done.stderr == ""
        return
    (pending,) = (tmp_path / "out" / ".pending").iterdir()
    assert f"no run has begun: what was recorded is in {pending}" in done.stderr
    assert ot.read_run(pending).steps.tolist() == [1]
    assert sum(path.stat().st_size for path in pending.iterdir()) < 2**20, "cut to what is used"


# Fork


def test_a_forked_child_is_no_part_of_the_run(run_script: RunScript, tmp_path: Path) -> None:
    script = """
import os, sys, time
import otel_tracking as ot
from filetracker import FileTracker
from otel_tracking.blank import Blank

tracking = ot.Tracking(log_with=[FileTracker, "tensorboard"], project_dir="out")
tracking.init_trackers("p")
for step in range(50):
    tracking.log({"a": float(step)}, step=step)
for child in range(3):
    pid = os.fork()
    if pid == 0:
        begun = time.monotonic()
        tracking.log({"a": -1.0}, step=1000)
        tracking.store_init_configuration({"child": True})
        assert tracking.flush(60)
        assert tracking.receipt().recorded == 0, tracking.receipt()
        assert isinstance(tracking.get_tracker("tensorboard"), Blank)
        tracking.end_training()
        assert time.monotonic() - begun < 20
        sys.exit(0)                    # runs the exit handlers
    assert os.waitpid(pid, 0)[1] == 0
for step in range(50, 100):
    tracking.log({"a": float(step)}, step=step)
tracking.end_training()
assert tracking.receipt().complete
"""
    run_script(script)
    assert stored_steps(tmp_path) == list(range(100))
    assert tensorboard_steps(only_run(tmp_path)) == list(range(100))
    assert len(stored(tmp_path, "finish")) == 1
    assert len({line["pid"] for line in stored(tmp_path, "points")}) == 1


@pytest.mark.parametrize("run_id", ["", "given"])
def test_a_forked_child_that_begins_a_run_has_its_own(
    run_script: RunScript, tmp_path: Path, run_id: str
) -> None:
    script = """
import os, sys
import otel_tracking as ot
from filetracker import FileTracker

tracking = ot.Tracking(log_with=FileTracker, project_dir="out")
tracking.init_trackers("p")
tracking.log({"a": 0.0}, step=0)
pid = os.fork()
if pid == 0:
    for run in (1, 2):
        tracking.init_trackers("p")
        tracking.log({"a": 1.0}, step=1000 + run)
    sys.exit(0)
assert os.waitpid(pid, 0)[1] == 0
tracking.log({"a": 0.0}, step=1)
"""
    run_script(script, env={"OTEL_TRACKING_RUN_ID": run_id})
    runs = {
        path.parent.name: ot.read_run(path.parent).steps.tolist()
        for path in (tmp_path / "out").glob("p/*/run.json")
    }
    assert sorted(runs.values()) == [[0, 1], [1001], [1002]]
    assert sorted(stored_steps(tmp_path)) == [0, 1, 1001, 1002]
    assert [line["status"] for line in stored(tmp_path, "finish")] == ["finished"] * 3
    if run_id:
        assert sorted(runs) == ["given", "given-2", "given-3"]


# Killed, and started again


KILLED = """
import json, os, pathlib, signal, sys, time
import otel_tracking as ot
from filetracker import FileTracker

def reached():
    cursor = pathlib.Path("out/p/same/cursors/rank-00000-file.json")
    return json.loads(cursor.read_text())["position"] if cursor.exists() else 0

first = int(sys.argv[1])
begun = reached()
tracking = ot.Tracking(
    log_with=[FileTracker(lag=3), "tensorboard"], project_dir="out", run_id="same", budget=1.0)
tracking.init_trackers("p")
tracking.get_tracker("file"); tracking.get_tracker("tensorboard")
for step in range(first, first + 500):
    tracking.log({"a": float(step), "b": 0.5}, step=step)
    if step % 50 == 0:
        time.sleep(0.01)
if "last" in sys.argv:
    tracking.end_training()
    print(tracking.receipt())
    assert tracking.receipt().complete
else:
    deadline = time.monotonic() + 20
    while "linger" in sys.argv and reached() == begun and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_killed_and_resumed_everything_is_there_and_what_was_confirmed_comes_once(
    run_script: RunScript, tmp_path: Path
) -> None:
    for start, how in ((0, ""), (500, "linger"), (1000, "")):
        killed = run_script(KILLED, str(start), how, check=False)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
    run_script(KILLED, "1500", "last")

    run = tmp_path / "out" / "p" / "same"
    expected = list(range(2000))
    assert ot.read_run(run).of("a").steps.tolist() == expected
    assert tensorboard_steps(run, "a") == expected
    assert tensorboard_steps(run, "b") == expected

    starts = stored(tmp_path, "start")
    assert [line["run_id"] for line in starts] == ["same"] * 4
    positions = [line["position"] for line in starts]
    assert positions == sorted(positions)
    assert positions[1] < positions[2], "the cursor has come forward"
    # Each start gets, in order, what comes after its cursor, which is something confirmed before.
    confirmed = {0}
    for begun in starts:
        mine = [
            line
            for name in ("points", "confirm")
            for line in stored(tmp_path, name)
            if line["pid"] == begun["pid"]
        ]
        got = [position for line in mine if line["event"] == "points" for position in line["positions"]]
        assert got == sorted(got)
        assert not got or got[0] > begun["position"]
        assert begun["position"] in confirmed
        confirmed |= {line["position"] for line in mine if line["event"] == "confirm"}
    assert set(stored_steps(tmp_path)) == set(expected)
    assert [line["status"] for line in stored(tmp_path, "finish")] == ["finished"]


def test_a_second_process_appends_and_nothing_comes_twice(run_script: RunScript, tmp_path: Path) -> None:
    script = """
import sys
import otel_tracking as ot
from filetracker import FileTracker
first = int(sys.argv[1])
with ot.Tracking(log_with=[FileTracker, "tensorboard"], project_dir="out", run_id="same") as tracking:
    tracking.init_trackers("p", config={"process": first})
    for step in range(first, first + 50):
        tracking.log({"a": float(step)}, step=step)
    tracking.log({"auto": 1.0})
receipt = tracking.receipt()
print(receipt.recorded, receipt.complete)
"""
    first = run_script(script, "0")
    second = run_script(script, "50")
    assert (first.stdout, second.stdout) == ("51 True\n", "102 True\n")
    run = tmp_path / "out" / "p" / "same"
    assert tensorboard_steps(run) == list(range(100))
    assert tensorboard_steps(run, "auto") == [0, 1], "automatic counts go on"
    tags = [tag for line in stored(tmp_path, "points") for tag in line["tags"]]
    assert (tags.count("a"), tags.count("auto")) == (100, 2)


def test_one_writer_a_run(run_script: RunScript, tmp_path: Path) -> None:
    script = """
import subprocess, sys
import otel_tracking as ot
tracking = ot.Tracking(project_dir="out", run_id="same")
if "second" in sys.argv:
    try:
        tracking.init_trackers("p")
    except ot.JournalLocked as error:
        print("locked:", error)
else:
    tracking.init_trackers("p")
    tracking.log({"a": 1.0}, step=0)
    second = [sys.executable, __file__, "second"]
    print(subprocess.run(second, stdout=subprocess.PIPE, text=True).stdout)
    tracking.log({"a": 1.0}, step=1)
"""
    done = run_script(script)
    assert done.stdout.startswith("locked: the journal")
    assert ot.read_run(tmp_path / "out" / "p" / "same").steps.tolist() == [0, 1]
