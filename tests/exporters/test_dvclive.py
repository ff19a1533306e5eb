"""DVCLive beyond the contract: folders that exist, repositories, torn lines, native calls."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from dvclive.live import Live
from hypothesis import given
from hypothesis import strategies as st

from otel_tracking.errors import ConfigurationError
from otel_tracking.records import RunStatus
from otel_tracking_exporters.dvclive import DVCLiveTracker
from tests.given import T0, batch, run_info


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines()


def tsv(place: Path, name: str = "a") -> Path:
    return place / "project" / "run-1" / "dvclive" / "plots" / "metrics" / f"{name}.tsv"


def test_a_folder_that_exists_is_not_wiped(tmp_path: Path) -> None:
    """`Live` itself removes what lies there."""
    earlier = Live(dir="results", save_dvc_exp=False, dvcyaml=None)
    earlier.log_metric("old", 1.0)
    earlier.end()  # type: ignore[no-untyped-call]
    tracker = DVCLiveTracker()
    tracker.start(run_info(tmp_path, options={"dir": "results"}))
    tracker.write(batch([("new", 0, 2.0)]))
    tracker.finish(RunStatus.FINISHED)
    assert sorted(path.name for path in Path("results/plots/metrics").iterdir()) == ["new.tsv", "old.tsv"]
    assert json.loads(Path("results/metrics.json").read_text())["new"] == 2.0


def test_nothing_else_is_written_in_a_repository(tmp_path: Path) -> None:
    """Of Git and DVC: no refs, no `dvc.yaml`."""

    def run(*command: str) -> str:
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    run("git", "init", "-q")
    run(sys.executable, "-m", "dvc", "init", "-q")
    run("git", "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "one")
    before = run("git", "status", "--porcelain")
    references = run("git", "for-each-ref")
    tracker = DVCLiveTracker()
    tracker.start(run_info(tmp_path))
    tracker.write(batch([("a", 0, 1.0)]))
    tracker.finish(RunStatus.FINISHED)
    assert run("git", "status", "--porcelain") == before + "?? project/\n"
    assert run("git", "for-each-ref") == references


def test_after_a_kill_each_row_is_there_once(tmp_path: Path) -> None:
    points = batch([("a", step, step / 8) for step in range(30)])
    tracker = DVCLiveTracker()
    tracker.start(run_info(tmp_path))
    tracker.write(points[:10])
    state = json.loads(json.dumps(dict(tracker.state())))
    tracker.write(points[10:25])
    with tsv(tmp_path).open("a") as file:
        file.write("17900000")  # a line that the kill cut
    again = DVCLiveTracker()
    assert again.start(run_info(tmp_path, position=10, state=state)) == 10
    again.write(points[10:])
    header, *rows = lines(tsv(tmp_path))
    assert header == "timestamp\tstep\ta"
    assert rows == [f"{(T0 + (s + 1) * 10**9) // 10**6}\t{s}\t{s / 8!r}" for s in range(30)]


@pytest.mark.parametrize("left", ["", "timest"])
def test_a_file_that_a_kill_left_without_its_header(tmp_path: Path, left: str) -> None:
    tracker = DVCLiveTracker()
    tracker.start(run_info(tmp_path))
    tsv(tmp_path).parent.mkdir(parents=True, exist_ok=True)
    tsv(tmp_path).write_text(left)
    tracker.write(batch([("a", 3, 0.5)]))
    header, *rows = lines(tsv(tmp_path))
    assert header == "timestamp\tstep\ta"
    assert [row.split("\t")[1:] for row in rows] == [["3", "0.5"]]


def test_rows_of_the_user_stay(tmp_path: Path) -> None:
    """Written natively into the same series, before a kill."""
    points = batch([("a", step, step / 8) for step in range(4)])
    tracker = DVCLiveTracker()
    tracker.start(run_info(tmp_path))
    tracker.write(points[:1])
    state = dict(tracker.state())
    tracker.write(points[1:2])
    tracker.native.log_metric("a", 99.0)
    tracker.write(points[2:3])
    again = DVCLiveTracker()
    again.start(run_info(tmp_path, position=1, state=state))
    again.write(points[1:])
    assert [line.split("\t")[2] for line in lines(tsv(tmp_path))[1:]] == [
        "0.0",
        "0.125",
        "99.0",
        "0.25",
        "0.375",
    ]


def test_a_series_within_a_series(tmp_path: Path) -> None:
    """`Live` itself raises AttributeError, whichever comes first."""
    tracker = DVCLiveTracker()
    tracker.start(run_info(tmp_path))
    tracker.write(batch([("a", 0, 1.0), ("a/b", 0, 2.0), ("c/d", 0, 3.0), ("c", 7, 4.0)]))
    tracker.finish(RunStatus.FINISHED)
    latest = json.loads((tmp_path / "project/run-1/dvclive/metrics.json").read_text())
    assert latest == {"a": 1.0, "a/b": 2.0, "c": {"d": 3.0}, "c/": 4.0, "step": 7}


def test_a_step_that_is_counted_natively_stays(tmp_path: Path) -> None:
    tracker = DVCLiveTracker()
    tracker.start(run_info(tmp_path))
    tracker.write(batch([("a", 3, 1.0)]))
    tracker.native.step = 40
    tracker.write(batch([("a", 4, 1.0)]))
    assert tracker.native.step == 40
    tracker.finish(RunStatus.FINISHED)


def test_a_wrong_option(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"dvclive\.Live refused its arguments"):
        DVCLiveTracker().start(run_info(tmp_path, options={"report": "pdf"}))


@given(st.text(max_size=40), st.text(max_size=40))
def test_no_two_names_share_a_file_and_none_leaves_the_folder(one: str, other: str) -> None:
    files = [Path("/metrics", f"{DVCLiveTracker.names.escape(name)}.tsv") for name in (one, other)]
    assert (files[0] == files[1]) == (one == other)
    for file in files:
        assert ".." not in file.parts
        assert file.parts[:2] == ("/", "metrics")
        assert all(len(part.encode()) <= 255 for part in file.parts)
    assert not files[0].is_relative_to(files[1]) or files[0] == files[1]
