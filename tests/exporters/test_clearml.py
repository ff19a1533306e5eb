"""ClearML beyond the contract: charts and lines, refused numbers, hooks, sessions of earlier starts."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from clearml import Task
from hypothesis import given
from hypothesis import strategies as st

from otel_tracking.records import Config, RunStatus
from otel_tracking_exporters import clearml as exporter
from otel_tracking_exporters._clearml_events import title_and_series
from otel_tracking_exporters.clearml import ClearMLTracker
from tests.given import T0, batch, run_info

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    yield
    task = Task.current_task()
    if task is not None:
        task.close()
    exporter._own_tasks.clear()


@given(st.text(max_size=20), st.text(max_size=20))
def test_no_two_names_are_one_line_of_a_chart(one: str, other: str) -> None:
    escape = ClearMLTracker.names.escape
    assert (title_and_series(escape(one)) == title_and_series(escape(other))) == (one == other)


def test_names_as_charts_and_lines() -> None:
    assert title_and_series("train/loss") == ("train", "loss")
    assert title_and_series("class/cat/dog") == ("class", "cat/dog")
    assert title_and_series("loss") == ("loss", "loss")
    assert title_and_series("loss/loss") == ("loss", "_x6c_oss")


def test_what_is_not_finite_is_refused(tmp_path: Path) -> None:
    """ClearML itself stores 0.0."""
    tracker = ClearMLTracker()
    tracker.start(run_info(tmp_path))
    written = tracker.write(batch([("a", 0, 1.0), ("a", 1, math.nan), ("a", 2, math.inf), ("a", 3, 2.0)]))
    assert written.accepted == 2
    assert written.rejected == {"ClearML has no NaN or infinities": [1, 2]}
    folder = Path(tracker.state()["folder"])
    tracker.finish(RunStatus.FINISHED)
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    events = [request for line in lines for request in json.loads(line)]
    assert [(e["iter"], e["value"], e["timestamp"]) for e in events] == [
        (0, 1.0, (T0 + 10**9) // 10**6),
        (3, 2.0, (T0 + 4 * 10**9) // 10**6),
    ]


def test_everything_is_on_the_disk_when_a_call_returns(tmp_path: Path) -> None:
    """ClearML's own calls are lost with the process for some seconds."""
    tracker = ClearMLTracker()
    tracker.start(run_info(tmp_path))
    tracker.write(batch([("a", step, 1.0) for step in range(1000)]))
    (line,) = (Path(tracker.state()["folder"]) / "metrics.jsonl").read_text().splitlines()
    assert len(json.loads(line)) == 1000


def test_hooks_stay_those_of_the_program(tmp_path: Path) -> None:
    before = sys.excepthook, sys.exit, signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    tracker = ClearMLTracker()
    tracker.start(run_info(tmp_path))
    tracker.finish(RunStatus.FINISHED)
    after = sys.excepthook, sys.exit, signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    assert after == before


def test_an_active_task_is_used_and_left_open(tmp_path: Path) -> None:
    mine = Task.init(
        project_name="mine",
        task_name="mine",
        auto_connect_frameworks={"detect_repository": False},
        auto_connect_streams=False,
        auto_resource_monitoring=False,
        auto_connect_arg_parser=False,
    )
    tracker = ClearMLTracker()
    tracker.start(run_info(tmp_path))
    assert tracker.native.id == mine.id
    tracker.write_config(Config({"lr": 0.5}, 1, 1))
    tracker.finish(RunStatus.FINISHED)
    assert Task.current_task() is mine


def test_a_parent_that_has_used_clearml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says so in the environment, and `Task.init` in its children then makes no task."""
    for number, inherited in enumerate(("1:", "1:offline-0123456789abcdef0123456789abcdef")):
        monkeypatch.setenv("CLEARML_PROC_MASTER_ID", inherited)
        tracker = ClearMLTracker()
        tracker.start(run_info(tmp_path / str(number)))
        tracker.write(batch([("a", 0, 1.0)]))
        assert isinstance(tracker.native, Task)
        assert tracker.native.id not in inherited
        tracker.finish(RunStatus.FINISHED)


BEGUN = """
import functools, os, signal, sys, threading
from pathlib import Path
from clearml import Task
from otel_tracking.records import RunStatus
from otel_tracking_exporters.clearml import ClearMLTracker
from tests.given import run_info

def killed(*args, begin, **kwargs):
    begin(*args, **kwargs)
    os.kill(os.getpid(), signal.SIGKILL)

if sys.argv[1] == "after":
    Task.init = functools.partial(killed, begin=Task.init)
elif sys.argv[1] == "within":
    sessions = Path(os.environ["CLEARML_CACHE_DIR"], "offline")

    def named():
        return {path for path in sessions.glob("*/task.json") if '"name"' in path.read_text()}

    def kill(before=named()):
        while named() == before:
            pass
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=kill).start()
tracker = ClearMLTracker()
tracker.start(run_info(Path(sys.argv[2])))
tracker.finish(RunStatus.FINISHED)
"""


@pytest.mark.parametrize("moment", ["within", "after"])
def test_a_session_that_was_killed_at_once_is_retired(tmp_path: Path, run_script: Run, moment: str) -> None:
    """No one knows its name then. Those of other runs stay, of whatever name."""
    environment = {
        "CLEARML_CACHE_DIR": str(tmp_path / "cache"),
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }

    def sessions() -> set[str]:
        return {path.name for path in (tmp_path / "cache" / "offline").iterdir() if path.is_dir()}

    run_script(BEGUN, "ends", "other", env=environment)
    others = sessions()
    run_script(BEGUN, moment, "ours", env=environment, check=False)
    (killed,) = sessions() - others
    run_script(BEGUN, "ends", "ours", env=environment)
    (retired,) = (tmp_path / "ours" / "project" / "run-1" / "clearml-retired").iterdir()
    assert retired.name == killed
    assert others < sessions()
    assert len(sessions()) == 2


def test_an_earlier_session_is_retired(tmp_path: Path) -> None:
    first = ClearMLTracker()
    first.start(run_info(tmp_path))
    first.write(batch([("a", 0, 1.0)]))
    state = dict(first.state())
    first.finish(RunStatus.KILLED)
    again = ClearMLTracker()
    assert again.start(run_info(tmp_path, position=1, state=state)) == 0
    assert not Path(state["folder"]).exists()
    assert len(list((tmp_path / "project" / "run-1" / "clearml-retired").iterdir())) == 2
    again.finish(RunStatus.FINISHED)
