"""Runs on disk: what their own process could not deliver is delivered later, by another."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from otel_tracking import discovery
from otel_tracking.cursor import cursor_path
from otel_tracking.ranks import parse
from otel_tracking.recorder import Recorder
from otel_tracking.records import Rank, Receipt, RunStatus
from otel_tracking.request import RunRequest
from otel_tracking.runner import deliver
from otel_tracking.runs import RunOnDisk, find_runs, receipt
from otel_tracking.session import RunSession
from otel_tracking.testing import RecordingTracker
from otel_tracking_exporters._wandb_file import read_wandb
from tests import readback
from tests.plugin_site import Site

pytestmark = pytest.mark.mlflow_database("out")

RunScript = Callable[..., subprocess.CompletedProcess[str]]

TRAIN = """
import math, os, signal, sys, time
import otel_tracking as ot

# As good as no budget: almost all is left to be delivered.
names = ["tensorboard", "mlflow", "wandb"]
tracking = ot.Tracking(log_with=names, project_dir="out", run_id="run", budget=1e-6)
tracking.init_trackers("p", config={"lr": 0.1, "layers": [1, 2]})
for step in range(100):
    tracking.log({"loss": 1 / (step + 1), "acc": float(step)}, step=step)
if "started" in sys.argv:
    for name in names:
        tracking.get_tracker(name)
for step in range(100, 1000):
    tracking.log({"loss": 1 / (step + 1), "acc": float(step)}, step=step)
tracking.log({"odd": math.nan}, step=5)
os.kill(os.getpid(), signal.SIGKILL)
"""


def only(project_dir: Path) -> RunOnDisk:
    (run,) = find_runs(project_dir)
    return run


def adds_up(found: Receipt) -> bool:
    return all(
        t.recorded == t.delivered + t.pending + sum(t.dropped.values()) and t.pending >= 0
        for t in found.trackers.values()
    )


@pytest.mark.parametrize("started", [True, False], ids=["after the trackers started", "before they did"])
def test_a_killed_run_is_completed_in_every_tracker(
    run_script: RunScript, tmp_path: Path, started: bool
) -> None:
    killed = run_script(TRAIN, "started" if started else "", check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    run = only(tmp_path / "out")
    before = receipt(run)
    assert adds_up(before)
    assert all(t.recorded == 2001 for t in before.trackers.values())
    assert sum(t.pending for t in before.trackers.values()) > 1000

    after = deliver(run, RunStatus.KILLED, timeout=60)
    assert after.complete, after
    assert adds_up(after)
    assert {name: t.state for name, t in after.trackers.items()} == dict.fromkeys(
        ("mlflow", "tensorboard", "wandb"), "killed"
    )
    recorded = readback.journal(run.directory)
    assert {tag: len(points) for tag, points in recorded.items()} == {"loss": 1000, "acc": 1000, "odd": 1}

    steps = {tag: [point.step for point in points] for tag, points in recorded.items()}
    doubles = {tag: [point.value for point in points] for tag, points in recorded.items()}
    stored = readback.tensorboard(run.directory)
    assert {tag: [point.step for point in stored[tag]] for tag in steps} == steps
    assert {t: [p.value for p in stored[t]] for t in doubles} == {
        tag: [readback.as_float32(value) for value in values] for tag, values in doubles.items()
    }
    stored = readback.wandb(run.directory)
    assert {tag: [point.step for point in stored[tag]] for tag in steps} == steps
    assert {tag: [point.value for point in stored[tag]] for tag in doubles} == doubles
    (in_mlflow,) = readback.mlflow_runs(tmp_path / "out", "p")
    stored = readback.mlflow_points(tmp_path / "out", in_mlflow)
    assert {tag: sorted(point.step for point in stored[tag]) for tag in steps} == steps
    assert sorted(point.value for point in stored["loss"]) == sorted(doubles["loss"])

    assert in_mlflow.info.status == "KILLED"
    assert read_wandb(readback.wandb_file(run.directory)).exit_code == 255
    assert in_mlflow.data.params["lr"] == "0.1"

    assert deliver(run, RunStatus.FINISHED, timeout=60) == after, "a run that is closed is left alone"


# With trackers in memory


class Project:
    """Runs in one directory, recorded here and not delivered."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def record(self, *trackers: str, count: int = 10, rank: Rank | None = None, **values: Any) -> RunSession:
        """A run that has ended, as its journal says, and whose points are all pending."""
        recorder, session = self.begin(*trackers, rank=rank, **values)
        self.log(recorder, count)
        session.end(RunStatus.FINISHED, 10)
        return session

    def begin(self, *trackers: str, rank: Rank | None = None, **values: Any) -> tuple[Recorder, RunSession]:
        recorder = Recorder()
        arguments = {"run_id": "run", "delivery": "off", "load": lambda: ({}, {}), **values}
        request = RunRequest("p", self.directory, names=trackers, **arguments)
        session = RunSession(recorder, request, rank or Rank())
        session.begin()
        return recorder, session

    def log(self, recorder: Recorder, count: int) -> None:
        for step in range(count):
            recorder.log({"a": float(step)}, step=step)


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path / "out")


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, list[RecordingTracker]]]:
    """The trackers `one` and `two` are installed; by name, the instances that delivery makes."""
    site = Site(tmp_path / "site")
    monkeypatch.syspath_prepend(site.directory)
    instances: dict[str, list[RecordingTracker]] = {"one": [], "two": []}
    for name in instances:
        site.install(name)
    load = discovery.load

    def remember(name: str) -> type[RecordingTracker]:
        tracker: Any = load(name)

        class Remembered(tracker):  # type: ignore[misc]
            def __init__(self) -> None:
                super().__init__()
                instances[name].append(self)

        return Remembered

    monkeypatch.setattr(discovery, "load", remember)
    yield instances
    for name in instances:
        sys.modules.pop(f"plugin_{name}", None)


def test_what_is_pending_is_delivered_and_the_run_closed(
    project: Project, made: dict[str, list[RecordingTracker]]
) -> None:
    project.record("one", "two", init_kwargs={"two": {"entity": "me"}}, run_name="for people")
    after = deliver(only(project.directory), RunStatus.KILLED, timeout=20)
    assert after.complete
    for name, (tracker,) in made.items():
        assert [p.step for p in tracker.points()] == list(range(10))
        assert tracker.status is RunStatus.FINISHED, "as its journal says, not as the caller guesses"
        assert tracker.run is not None
        assert tracker.run.name == "for people"
        assert dict(tracker.run.options) == ({"entity": "me"} if name == "two" else {})
        assert tracker.run.directory == project.directory / "p" / "run"


def test_a_run_that_is_being_recorded_is_left_alone(
    project: Project, made: dict[str, list[RecordingTracker]]
) -> None:
    recorder, session = project.begin("one")
    project.log(recorder, 10)
    found = deliver(only(project.directory), RunStatus.KILLED, timeout=20)
    assert made["one"] == []
    assert found.trackers["one"].pending == 10
    project.log(recorder, 5)
    session.end(RunStatus.FAILED, 10)
    assert deliver(only(project.directory), RunStatus.KILLED, timeout=20).complete
    assert made["one"][0].status is RunStatus.FAILED


def test_a_tracker_that_is_not_here_is_named_and_its_points_stay(
    project: Project, made: dict[str, list[RecordingTracker]]
) -> None:
    project.record("one", "programs_own")
    after = deliver(only(project.directory), RunStatus.FINISHED, timeout=20)
    assert not after.complete
    assert after.trackers["one"].pending == 0
    own = after.trackers["programs_own"]
    assert (own.pending, own.state) == (10, "unfinished")
    (reason,) = own.errors
    assert reason.startswith("unknown tracker 'programs_own'")


def test_delivery_takes_no_longer_than_it_may(
    project: Project, made: dict[str, list[RecordingTracker]], monkeypatch: pytest.MonkeyPatch
) -> None:
    project.record("one", "two")
    release = threading.Event()

    class Stuck(RecordingTracker):
        name = "one"

        def __init__(self) -> None:
            super().__init__(faults={"write": release.wait})

    load = discovery.load
    monkeypatch.setattr(discovery, "load", lambda name: Stuck if name == "one" else load(name))
    begun = time.monotonic()
    after = deliver(only(project.directory), RunStatus.FINISHED, timeout=0.5)
    assert time.monotonic() - begun < 20
    assert after.trackers["two"].delivered == 10
    assert after.trackers["one"].pending == 10
    release.set()


@pytest.mark.parametrize("fault", [threading.Event().wait, lambda: 1 / 0], ids=["hangs", "raises"])
def test_a_tracker_that_gets_nowhere_is_given_up(
    project: Project,
    made: dict[str, list[RecordingTracker]],
    monkeypatch: pytest.MonkeyPatch,
    fault: Callable[[], object],
) -> None:
    project.record("one", "two")

    class Stuck(RecordingTracker):
        name = "one"
        patience = 0.3

        def __init__(self) -> None:
            super().__init__(faults={"write": fault})

    load = discovery.load
    monkeypatch.setattr(discovery, "load", lambda name: Stuck if name == "one" else load(name))
    begun = time.monotonic()
    after = deliver(only(project.directory), RunStatus.FINISHED, timeout=600, patience=0.5)
    assert 0.5 < time.monotonic() - begun < 60
    assert after.trackers["two"].delivered == 10
    assert after.trackers["one"].pending == 10


def test_ranks_are_delivered_each_and_added_up(
    project: Project, made: dict[str, list[RecordingTracker]]
) -> None:
    policies = parse("all", known=["one"])
    for rank, count in ((0, 10), (1, 7)):
        project.record("one", count=count, rank=Rank(rank, 2, rank, 2), policies=policies)
    run = only(project.directory)
    before = receipt(run)
    assert (before.recorded, before.trackers["one"].pending) == (17, 17)
    after = deliver(run, RunStatus.FINISHED, timeout=20)
    assert (after.recorded, after.trackers["one"].delivered, after.complete) == (17, 17, True)
    names = sorted(tracker.run.name for tracker in made["one"] if tracker.run is not None)
    assert names == ["run-rank0", "run-rank1"]


def test_a_rank_that_still_records_holds_up_no_other(
    project: Project, made: dict[str, list[RecordingTracker]]
) -> None:
    policies = parse("all", known=["one"])
    project.record("one", rank=Rank(0, 2, 0, 2), policies=policies)
    recorder, session = project.begin("one", rank=Rank(1, 2, 1, 2), policies=policies)
    project.log(recorder, 3)
    after = deliver(only(project.directory), RunStatus.FINISHED, timeout=20)
    assert (after.trackers["one"].delivered, after.trackers["one"].pending) == (10, 3)
    session.end(RunStatus.FINISHED, 10)


def test_runs_are_found_by_id_and_later_ones_of_the_process(project: Project) -> None:
    for run_id in ("exp", "exp-2", "exp-3", "exp-large", "exp-2-b", "other", "e.p"):
        project.record("one", run_id=run_id, count=1)
    (project.directory / "p" / "broken").mkdir()
    (project.directory / "p" / "broken" / "run.json").write_text('{"run_id": "exp"')
    (project.directory / "p" / "foreign").mkdir()
    (project.directory / "p" / "foreign" / "run.json").write_text(json.dumps(["exp"]))
    assert [run.run_id for run in find_runs(project.directory, "exp")] == ["exp", "exp-2", "exp-3"]
    assert [run.run_id for run in find_runs(project.directory, "e.p")] == ["e.p"]
    assert len(list(find_runs(project.directory))) == 7
    assert list(find_runs(project.directory / "nowhere")) == []


def test_a_torn_record_of_a_killed_process_is_no_point(
    project: Project, made: dict[str, list[RecordingTracker]]
) -> None:
    session = project.record("one")
    assert session.directory is not None
    segment = max((session.directory / "journal" / "rank-00000").glob("*.segment"))
    with segment.open("ab") as file:
        file.write(b"\x01" * 16 + bytes(16))
    after = deliver(only(project.directory), RunStatus.KILLED, timeout=20)
    assert (after.recorded, after.complete) == (10, True)


def test_a_damaged_cursor_is_an_error_that_says_what_to_do(project: Project) -> None:
    session = project.record("one")
    assert session.directory is not None
    cursor_path(session.directory, 0, "one").write_text("{")
    with pytest.raises(Exception, match="remove the file to deliver the run again"):
        deliver(only(project.directory), RunStatus.KILLED, timeout=1)
