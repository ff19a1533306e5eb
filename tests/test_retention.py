"""What of a journal stays, and that nothing else changes by what goes."""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from opentelemetry import metrics

import otel_tracking as ot
from otel_tracking import recorder as recorder_module
from otel_tracking.errors import ConfigurationError
from otel_tracking.journal.verifying import verify
from otel_tracking.journal.writer import JournalWriter
from otel_tracking.records import RunStatus
from otel_tracking.retention import Keep
from otel_tracking.runner import deliver
from otel_tracking.runs import find_runs, receipt, status_of_run
from otel_tracking.summary import summarize
from otel_tracking.testing import RecordingTracker

SLOTS = 256
DEADLINE = 60


@pytest.fixture(autouse=True)
def small_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        recorder_module, "JournalWriter", functools.partial(JournalWriter, segment_slots=SLOTS)
    )


def train(tracking: ot.Tracking, first: int, steps: int) -> None:
    counter = metrics.get_meter("m").create_counter("seen")
    for step in range(first, first + steps):
        tracking.log({"a": float(step), "b": -float(step)}, step=step)
        tracking.log({"counted": 1.0})
        counter.add(2, {"training.step": step})


def segments(directory: Path) -> list[Path]:
    return sorted(directory.rglob("*.segment*"))


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def follow(tracking: ot.Tracking, steps: int) -> None:
    for first in range(0, steps, 100):
        train(tracking, first, 100)
        assert tracking.flush(DEADLINE)


def test_what_is_delivered_goes(tmp_path: Path) -> None:
    tracker = RecordingTracker()
    tracking = ot.Tracking(tracker, project_dir=tmp_path, run_id="run", keep="delivered")
    tracking.init_trackers("p", config={"lr": 0.1})
    follow(tracking, 2000)
    run = tmp_path / "p" / "run"
    until(lambda: len(segments(run)) < 12)  # of some thirty
    tracking.end_training()
    assert segments(run) == []
    found = tracking.receipt()
    assert (found.recorded, found.trackers["recording"].delivered) == (8000, 8000)
    assert [point.step for point in tracker.points("a")] == list(range(2000))
    assert [point.value for point in tracker.points("seen")] == [2.0 * n for n in range(1, 2001)]

    # What is known of it is still known.
    (on_disk,) = find_runs(tmp_path)
    assert status_of_run(on_disk) == "finished"
    assert receipt(on_disk).recorded == 8000
    summary = summarize(run)
    assert (summary.points, summary.removed, summary.damaged) == (0, 8000, 0)
    assert summary.config == {"lr": 0.1}
    assert {each.series.tag for each in summary.series} <= {"a", "b", "counted", "seen"}
    data = ot.read_run(run)
    assert (len(data), data.removed, data.damaged) == (0, 8000, 0)
    assert all(report.whole for report in verify(run / "journal" / "rank-00000"))


def test_a_resumed_run_counts_on_and_keeps_its_places(tmp_path: Path) -> None:
    first = RecordingTracker()
    for start in (0, 2000):
        tracker = first if not start else RecordingTracker()
        tracking = ot.Tracking(tracker, project_dir=tmp_path, run_id="run", keep="delivered")
        tracking.init_trackers("p")
        for begin in range(start, start + 2000, 100):
            train(tracking, begin, 100)
            assert tracking.flush(DEADLINE)
        tracking.end_training()
        assert tracking.receipt().complete
        assert [point.step for point in tracker.points("a")] == list(range(start, start + 2000))
        assert [point.step for point in tracker.points("counted")] == list(range(start, start + 2000))
        totals = [point.value for point in tracker.points("seen")]
        assert totals == [2.0 * n for n in range(start + 1, start + 2001)]
    assert tracker.points("a")[0].position > first.points("a")[-1].position


def test_nothing_goes_that_a_tracker_has_not_got(tmp_path: Path) -> None:
    quick, stuck = RecordingTracker(), type("Stuck", (RecordingTracker,), {"name": "stuck"})()
    tracking = ot.Tracking([quick, stuck], project_dir=tmp_path, run_id="run", keep="delivered")
    stuck.faults = {"write": lambda: 1 / 0}
    tracking.init_trackers("p")
    train(tracking, 0, 2000)
    tracking.end_training(timeout=5)
    assert len(ot.read_run(tmp_path / "p" / "run")) == 8000


@pytest.mark.parametrize("compress", ["pack", "zstd", "off"])
def test_a_cap_takes_the_oldest_and_says_what_trackers_lose(tmp_path: Path, compress: str) -> None:
    cap = 40_000
    tracking = ot.Tracking(
        "mlflow", project_dir=tmp_path, run_id="run", keep="40KB", delivery="off", compress=compress
    )
    tracking.init_trackers("p")
    train(tracking, 0, 5000)
    tracking.end_training()
    run = tmp_path / "p" / "run"
    assert 0 < sum(path.stat().st_size for path in segments(run)) <= cap
    assert json.loads((run / "run.json").read_text())["keep"] == str(cap)
    data = ot.read_run(run)
    assert len(data) + data.removed == 20_000
    steps = data.of("a").steps.tolist()
    assert steps == list(range(5000 - len(steps), 5000))
    assert data.of("seen").values.tolist()[-3:] == [9996.0, 9998.0, 10000.0]
    assert data.of("counted").steps.tolist()[-1] == 4999
    (on_disk,) = find_runs(tmp_path)
    found = deliver(on_disk, RunStatus.FINISHED, DEADLINE).trackers["mlflow"]
    assert (found.recorded, found.delivered, found.pending) == (20_000, len(data), 0)
    assert found.dropped == {"removed from the journal before": data.removed}


@pytest.mark.parametrize(
    ("text", "keep"),
    [
        ("always", Keep()),
        ("delivered", Keep(until_delivered=True)),
        ("10GB", Keep(cap=10**10)),
        ("1.5 mb", Keep(cap=1_500_000)),
        ("4096", Keep(cap=4096)),
        ("2T", Keep(cap=2 * 10**12)),
    ],
)
def test_what_can_be_said(text: str, keep: Keep) -> None:
    assert Keep.parse(text) == keep
    assert Keep.parse(str(keep)) == keep


@pytest.mark.parametrize("text", ["", "never", "10XB", "-1GB", "GB", "1e3"])
def test_what_can_not_be_said(text: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="keep can't be"):
        Keep.parse(text)
    if text:
        with pytest.raises(ConfigurationError, match="keep can't be"):
            ot.Tracking(project_dir=tmp_path, keep=text)
