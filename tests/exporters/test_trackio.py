"""Trackio beyond the contract: what is sent twice, projects that it would mix up, status, native runs."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trackio.sqlite_storage import SQLiteStorage
from trackio.utils import TRACKIO_DIR

from otel_tracking.errors import ConfigurationError
from otel_tracking.records import Config, Failure, RunStatus, Text
from otel_tracking_exporters.trackio import _PROJECTS, TrackioTracker
from tests.given import batch, run_info


def rows(project: str, run_id: str) -> list[tuple[int, dict[str, object]]]:
    with sqlite3.connect(f"file:{TRACKIO_DIR}/{project}.db?mode=ro", uri=True) as database:
        found = database.execute("select step, metrics from metrics where run_id=? order by id", (run_id,))
        return [(step, json.loads(metrics)) for step, metrics in found]


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """A project that no other test has: all lie in the directory that trackio took when it was imported."""
    return "".join(c for c in request.node.name if c.isalnum())


def test_what_is_sent_twice_is_stored_once(tmp_path: Path, name: str) -> None:
    tracker = TrackioTracker()
    assert tracker.start(run_info(tmp_path, project=name)) == 0
    points = batch([("a", step, step / 4) for step in range(20)])
    for _ in range(2):
        assert tracker.write(points).accepted == 20
    again = TrackioTracker()
    state = tracker.state()
    assert again.start(run_info(tmp_path, project=name, position=10, state=state)) == 10
    again.write(points)
    again.finish(RunStatus.FINISHED)
    assert [row for row in rows(name, "run-1") if row[1]] == [(s, {"a": s / 4}) for s in range(20)]


def test_a_database_that_is_gone_gets_everything_again(tmp_path: Path, name: str) -> None:
    tracker = TrackioTracker()
    assert tracker.start(run_info(tmp_path, project=name, position=10)) == 0


def test_a_config_waits_for_a_row_and_is_not_confirmed_before(tmp_path: Path, name: str) -> None:
    tracker = TrackioTracker()
    tracker.start(run_info(tmp_path, project=name))
    tracker.write_config(Config({"lr": 0.5}, 1, 3))
    assert tracker.confirm() == 0
    assert tracker.confirm(flush=True) == 3
    stored = SQLiteStorage.get_run_config(name, "first try", run_id="run-1")
    assert stored is not None
    assert stored["lr"] == 0.5


@pytest.mark.parametrize("status", [RunStatus.FAILED, RunStatus.KILLED])
def test_a_bad_end_is_an_alert(tmp_path: Path, name: str, status: RunStatus) -> None:
    tracker = TrackioTracker()
    tracker.start(run_info(tmp_path, project=name))
    tracker.write(batch([("a", 5, 1.0)]))
    tracker.finish(status)
    (alert,) = SQLiteStorage.get_alerts(name, run_id="run-1")
    assert (alert["level"], alert["step"]) == ("error", 5)
    config = SQLiteStorage.get_run_config(name, "first try", run_id="run-1")
    assert config is not None
    assert config["_Status"] == status.value


def test_a_run_that_fails_again_is_another_alert(tmp_path: Path, name: str) -> None:
    for position, reason in ((1, "ValueError: no data"), (2, "ValueError: no disk")):
        tracker = TrackioTracker()
        tracker.start(run_info(tmp_path, project=name, position=position - 1))
        tracker.write(batch([("a", 5, 1.0)], first=position))
        tracker.failure = Failure(reason, f"Traceback\n{reason}")
        for _ in range(2):  # as after an error in between
            tracker.finish(RunStatus.FAILED)
    alerts = SQLiteStorage.get_alerts(name, run_id="run-1")
    assert sorted(alert["text"] for alert in alerts) == ["ValueError: no data", "ValueError: no disk"]


def test_texts_that_trackio_would_read_as_numbers(tmp_path: Path, name: str) -> None:
    tracker = TrackioTracker()
    tracker.start(run_info(tmp_path, project=name))
    tracker.write_text(Text("t", "NaN", 1, 1, 1))
    assert rows(name, "run-1") == [(1, {"t": {"_type": "trackio.markdown", "_value": "NaN"}})]


def test_a_native_run_writes_into_the_same_run(tmp_path: Path, name: str) -> None:
    tracker = TrackioTracker()
    tracker.start(run_info(tmp_path, project=name))
    tracker.handle.log({"own": 1.0}, step=3)
    tracker.write(batch([("a", 0, 1.0)]))
    tracker.finish(RunStatus.FINISHED)
    assert sorted(key for _, row in rows(name, "run-1") for key in row) == ["a", "own"]


def test_an_unknown_option(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigurationError, match=r"no option 'spaceid' here\. Did you mean 'space_id'"):
        TrackioTracker().start(run_info(tmp_path, project=name, options={"spaceid": "me/x"}))


@given(st.text(max_size=30), st.text(max_size=30))
def test_two_projects_never_share_a_database(one: str, other: str) -> None:
    """Trackio itself leaves out what it does not like: `my.model` and `mymodel` are one there."""
    names = [_PROJECTS.escape(one), _PROJECTS.escape(other)]
    for escaped in names:
        SQLiteStorage.validate_project_name(escaped)
    files = [SQLiteStorage.get_project_db_path(escaped) for escaped in names]
    assert (files[0] == files[1]) == (one == other)
