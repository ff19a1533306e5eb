"""Aim beyond the contract: repeated steps, runs that go on, repositories of the user's."""

from __future__ import annotations

import mimetypes
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from aim import Repo

from otel_tracking.errors import ConfigurationError, Retry
from otel_tracking.records import Failure, Media, MediaFile, MediaKind, RunStatus
from otel_tracking_exporters.aim import AimTracker
from tests.given import batch, run_info


def points(place: Path) -> dict[tuple[str, int], list[tuple[int, float]]]:
    """By name and repetition: steps and values."""
    (run,) = Repo(str(place)).iter_runs()
    found = {}
    for metric in run.metrics():
        steps, (values, _, _) = metric.data.items_list()
        repetition = metric.context.to_dict().get("repetition", 1)
        found[metric.name, repetition] = sorted(zip(steps, map(float, values), strict=True))
    return found


def test_points_of_one_step_are_all_kept(tmp_path: Path) -> None:
    tracker = AimTracker()
    tracker.start(run_info(tmp_path))
    tracker.write(batch([("a", 1, 1.0), ("a", 1, 2.0), ("a", 2, 3.0), ("a", 1, 4.0), ("a", -1, 5.0)]))
    tracker.finish(RunStatus.FINISHED)
    assert points(tmp_path) == {
        ("a", 1): [(-1, 5.0), (1, 1.0), (2, 3.0)],
        ("a", 2): [(1, 2.0)],
        ("a", 3): [(1, 4.0)],
    }


def test_a_run_goes_on_and_knows_which_steps_are_taken(tmp_path: Path) -> None:
    given = batch([("a", 1, 1.0), ("a", 1, 2.0), ("a", 1, 3.0), ("a", 2, 4.0)])
    first = AimTracker()
    first.start(run_info(tmp_path))
    first.write(given[:2])
    state = dict(first.state())
    first.native.close()  # as the interpreter does
    again = AimTracker()
    assert again.start(run_info(tmp_path, position=2, state=state)) == 1
    again.write(given)
    again.finish(RunStatus.FINISHED)
    assert points(tmp_path) == {("a", 1): [(1, 1.0), (2, 4.0)], ("a", 2): [(1, 2.0)], ("a", 3): [(1, 3.0)]}


def test_a_run_that_goes_on_has_failed_no_more(tmp_path: Path) -> None:
    first = AimTracker()
    first.start(run_info(tmp_path))
    first.write(batch([("a", 1, 1.0)]))
    state = dict(first.state())
    first.failure = Failure("ValueError: no data", "Traceback\nValueError: no data")
    first.finish(RunStatus.FAILED)
    (run,) = Repo(str(tmp_path)).iter_runs()
    assert run.props.tags == ["failed"]
    assert run.get("otel_tracking")["error"] == "ValueError: no data"
    again = AimTracker()
    again.start(run_info(tmp_path, position=1, state=state))
    again.finish(RunStatus.FINISHED)
    (run,) = Repo(str(tmp_path)).iter_runs()
    assert run.props.tags == []
    assert run.get("otel_tracking") == {"run_id": "run-1", "status": "finished", "error": ""}


@pytest.mark.parametrize("status", [RunStatus.FAILED, RunStatus.KILLED])
def test_a_bad_end_is_a_message(tmp_path: Path, status: RunStatus) -> None:
    """Also where it is not known why."""
    tracker = AimTracker()
    tracker.start(run_info(tmp_path))
    tracker.write(batch([("a", 1, 1.0)]))
    tracker.finish(status)
    (run,) = Repo(str(tmp_path)).iter_runs()
    (message,) = run.get_log_records().data.items_list()[1][0]
    assert message.message == {"failed": "the run failed", "killed": "the run was killed"}[status]


KILLED = """
import json, os, signal, sys
from pathlib import Path
from tests.given import batch, run_info
from otel_tracking_exporters.aim import AimTracker

tracker = AimTracker()
tracker.start(run_info(Path.cwd()))
tracker.write(batch([("a", step, step / 4) for step in range(100)]))
print(json.dumps(dict(tracker.state())), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_kill_loses_nothing_and_locks_nobody_out(
    run_script: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    import json

    root = str(Path(__file__).parents[2])
    said = run_script(KILLED, check=False, env={"PYTHONPATH": root}).stdout
    again = AimTracker()
    again.start(run_info(tmp_path, position=100, state=json.loads(said)))
    again.finish(RunStatus.FINISHED)
    assert points(tmp_path) == {("a", 1): [(step, step / 4) for step in range(100)]}


BEGUN = """
import os, signal, sys
from pathlib import Path
import aim.sdk.repo, aim.sdk.run
from tests.given import run_info
from otel_tracking_exporters.aim import AimTracker

def kill(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGKILL)

if sys.argv[1] == "while the repository is made":
    aim.sdk.repo.upgrade_database = aim.sdk.repo.DB.run_upgrades = kill
elif sys.argv[1] == "while the run is made":
    aim.sdk.run.RunTracker = kill
tracker = AimTracker()
tracker.start(run_info(Path.cwd()))
kill()
"""


@pytest.mark.parametrize(
    "moment", ["while the repository is made", "while the run is made", "before its state is saved"]
)
def test_a_start_that_is_killed_leaves_one_run(
    run_script: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path, moment: str
) -> None:
    root = str(Path(__file__).parents[2])
    done = run_script(BEGUN, moment, check=False, env={"PYTHONPATH": root})
    assert done.returncode == -signal.SIGKILL, done.stderr
    again = AimTracker()
    assert again.start(run_info(tmp_path)) == 0
    given = batch([("a", 1, 1.0)])
    again.write(given)
    again.confirm()
    again.finish(RunStatus.FINISHED)
    assert points(tmp_path) == {("a", 1): [(1, 1.0)]}
    assert sorted(path.name for path in tmp_path.iterdir()) == [".aim", "project", "script.py"]
    assert not any((tmp_path / "project" / "run-1").iterdir())


def test_a_run_that_nobody_knows_by_its_state_is_not_written_to_again(tmp_path: Path) -> None:
    """A note that a start left is for an empty run alone."""
    for value in (1.0, 2.0):
        tracker = AimTracker()
        tracker.start(run_info(tmp_path))
        tracker.write(batch([("a", 1, value)]))
        tracker.confirm()
        tracker.finish(RunStatus.FINISHED)
    assert len(list(Repo(str(tmp_path)).iter_runs())) == 2


def test_a_repository_that_is_half_made_is_named(tmp_path: Path) -> None:
    (tmp_path / ".aim").mkdir()
    with pytest.raises(Retry, match=r"the Aim repository \S+\.aim is half made.*move it away"):
        AimTracker().start(run_info(tmp_path))


def test_a_wrong_argument(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"aim\.Run refused its arguments"):
        AimTracker().start(run_info(tmp_path, options={"experimnt": "x"}))


def test_media_that_is_stored_is_not_read_again(tmp_path: Path) -> None:
    """It only takes its step, at which what comes later is a repetition."""
    gone = MediaFile(tmp_path / "gone.png", "0", 1, "gone.png", "image/png")
    tracker = AimTracker()
    tracker.start(run_info(tmp_path))
    tracker._known = 2
    for position, kind in enumerate((MediaKind.IMAGE, MediaKind.TABLE), start=1):
        media = Media(kind, kind.value, (gone,), {"columns": ["a"]}, -1, 1, position)
        assert tracker.write_media(media).accepted == 1
    assert tracker._repetition("image", 0) == tracker._repetition("table", 0) == 1
    tracker.finish(RunStatus.FINISHED)


@pytest.mark.parametrize("first", ["page.html", "sound.wav", "image.png"])
def test_all_files_of_an_artifact_are_artifacts(tmp_path: Path, first: str) -> None:
    files = []
    for name, media_type in ((first, mimetypes.guess_type(first)[0]), ("z.bin", "application/octet-stream")):
        (tmp_path / name).write_bytes(b"x")
        files.append(MediaFile(tmp_path / name, name, 1, name, media_type or ""))
    tracker = AimTracker()
    tracker.start(run_info(tmp_path))
    assert tracker.write_media(Media(MediaKind.ARTIFACT, "a", files, {}, 0, 1, 1)).altered == {}
    assert sorted(tracker.native.artifacts) == [f"a/0-1/{first}", "a/0-1/z.bin"]
    tracker.finish(RunStatus.FINISHED)
