"""Media on their way: into the journal once, through kills and outages, into trackers or dead letters."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import otel_tracking as ot
from otel_tracking.records import Media, MediaKind, Written
from otel_tracking.testing import RecordingTracker

Run = Callable[..., "subprocess.CompletedProcess[str]"]
IMAGE = np.zeros((2, 3), np.uint8)


def recorded(
    tmp_path: Path, log: Callable[[ot.Tracking], object], **options: Any
) -> tuple[RecordingTracker, Any]:
    tracker = options.pop("tracker", None) or RecordingTracker()
    with ot.Tracking(log_with=tracker, project_dir=tmp_path / "runs", **options) as tracking:
        tracking.init_trackers("things")
        log(tracking)
        assert tracking.flush(10)
        receipt = tracking.receipt()
    return tracker, receipt


def test_every_call(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file.txt").write_text("x")

    def log(tracking: ot.Tracking) -> None:
        tracking.log_images({"image": IMAGE}, step=1)
        tracking.log_audio({"audio": np.zeros(8)}, step=2, sample_rate=8000)
        tracking.log_video({"video": [IMAGE, IMAGE]}, step=3)
        tracking.log_histogram({"histogram": [1, 2, 3]}, step=4)
        tracking.log_html({"html": "<b>x</b>"}, step=5)
        tracking.log_table("table", columns=["a"], data=[[1]], step=6)
        tracking.log_artifact(tmp_path / "folder" / "file.txt", step=7)
        tracking.log_artifacts(tmp_path / "folder", "all", step=8)

    tracker, receipt = recorded(tmp_path, log)
    assert [(media.kind.value, media.tag, media.step) for media in tracker.media] == [
        ("image", "image", 1),
        ("audio", "audio", 2),
        ("video", "video", 3),
        ("histogram", "histogram", 4),
        ("html", "html", 5),
        ("table", "table", 6),
        ("artifact", "file.txt", 7),
        ("artifact", "all", 8),
    ]
    assert receipt.not_recorded == {}
    assert all(file.path.stat().st_size == file.size for media in tracker.media for file in media.files)


def test_steps_and_options(tmp_path: Path) -> None:
    def log(tracking: ot.Tracking) -> None:
        ot.set_step(17)
        tracking.log_images({"a": IMAGE}, log_kwargs={"recording": {"caption": "x"}, "other": {"y": 1}})
        tracking.log_images({"b": IMAGE}, step="no step")  # type: ignore[arg-type]

    tracker, receipt = recorded(tmp_path, log)
    (media,) = tracker.media
    assert (media.tag, media.step, media.options) == ("a", 17, {"caption": "x"})
    assert receipt.not_recorded == {"a step is an integer of 64 bits": 1}


def test_content_is_stored_once(tmp_path: Path) -> None:
    def log(tracking: ot.Tracking) -> None:
        for step in range(5):
            tracking.log_images({"a": IMAGE, "b": [IMAGE, IMAGE]}, step=step)

    tracker, _ = recorded(tmp_path, log)
    assert len(tracker.media) == 10
    (folder,) = (tmp_path / "runs").rglob("media")
    assert [path.name for path in folder.iterdir()] == [f"{tracker.media[0].files[0].sha256}.png"]


def test_bad_input_is_told_once_and_loses_nothing_else(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Bad:
        def savefig(self, *args: Any, **kwargs: Any) -> None:
            raise RuntimeError("boom")

    def log(tracking: ot.Tracking) -> None:
        for _ in range(3):
            tracking.log_images({"bad": "missing.png", "good": IMAGE})
            tracking.log_figure({"bad": Bad()})
        tracking.log_images(IMAGE)  # type: ignore[arg-type]

    tracker, receipt = recorded(tmp_path, log)
    assert [media.tag for media in tracker.media] == ["good"] * 3
    assert receipt.not_recorded == {
        "images can't be made of what was given": 3,
        "figures could not be encoded (RuntimeError)": 3,
        "images are logged as a mapping by name": 1,
    }
    assert caplog.text.count("missing.png") == 1
    assert caplog.text.count("boom") == 1


def test_a_rank_that_does_not_record_encodes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("OTEL_TRACKING_RUN_ID", "one")
    encoded = []

    class Noticing:
        def __array__(self, *args: Any, **kwargs: Any) -> Any:
            encoded.append(self)
            return IMAGE

    tracking = ot.Tracking(log_with=RecordingTracker(), project_dir=tmp_path)
    tracking.init_trackers("things")
    tracking.log_images({"a": Noticing()})
    tracking.end_training()
    assert not encoded
    assert not list(tmp_path.rglob("media"))


def test_a_file_that_is_gone_is_a_dead_letter(tmp_path: Path) -> None:
    gate = threading.Event()
    tracker = RecordingTracker(faults={"start": lambda: gate.wait(10)})

    def log(tracking: ot.Tracking) -> None:
        tracking.log_images({"a": IMAGE})
        (file,) = (tmp_path / "runs").rglob("media/*.png")
        file.unlink()
        tracking.log({"loss": 1.0}, step=0)
        gate.set()

    _, receipt = recorded(tmp_path, log, tracker=tracker)
    reason = "a file of it is not in the journal's `media` any more"
    assert receipt.trackers["recording"].not_stored == {reason: 1}
    assert [point.value for point in tracker.points()] == [1.0]


def test_a_tracker_that_chokes_on_media_gets_points_all_the_same(tmp_path: Path) -> None:
    class Choking(RecordingTracker):
        name = "choking"

        def write_media(self, media: Media) -> Written:
            raise ValueError("this image is too blue")

    tracker = Choking()

    def log(tracking: ot.Tracking) -> None:
        tracking.log_images({"a": IMAGE}, step=3)
        tracking.log({"loss": 1.0}, step=0)

    _, receipt = recorded(tmp_path, log, tracker=tracker)
    assert receipt.trackers["choking"].not_stored == {"ValueError: this image is too blue": 1}
    assert [point.value for point in tracker.points()] == [1.0]
    (letters,) = (tmp_path / "runs").rglob("dead-letters/*.jsonl")
    assert '"kind":"media"' in letters.read_text()


KILLED = """
import os, signal
import numpy as np
import otel_tracking as ot

tracking = ot.Tracking(log_with="tensorboard", project_dir="runs", delivery="off", run_id="one")
tracking.init_trackers("things")
tracking.log_images({"a": np.full((2, 3), 7, np.uint8)}, step=5)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_kill_right_after_the_call(run_script: Run, tmp_path: Path) -> None:
    """The image is in the journal, and comes into a tracker by `sync`."""
    from tensorboard.backend.event_processing.event_accumulator import (  # type: ignore[import-untyped]
        EventAccumulator,
    )
    from typer.testing import CliRunner

    from otel_tracking.cli import app

    assert run_script(KILLED, check=False).returncode == -signal.SIGKILL
    place = str(tmp_path / "runs")
    done = CliRunner().invoke(app, ["sync", "one", "--to", "tensorboard", "--project-dir", place])
    assert done.exit_code == 0, done.output
    (image,) = EventAccumulator(str(tmp_path / "runs" / "things" / "one")).Reload().Images("a")
    assert (image.step, image.width, image.height) == (5, 3, 2)


def test_a_second_process_of_a_run(tmp_path: Path) -> None:
    """Its records go on after the first's, and the files of both are there."""
    for value in (1, 2):
        image = np.full((2, 3), value, np.uint8)

        def log(tracking: ot.Tracking, image: Any = image) -> None:
            tracking.log_images({"a": image})

        recorded(tmp_path, log, run_id="one")
    assert len(list((tmp_path / "runs").rglob("media/*.png"))) == 2


KILLED_IN_A_COPY = """
import os, signal, threading, time
from pathlib import Path
import otel_tracking as ot

tracking = ot.Tracking(project_dir="runs", run_id="r")
tracking.init_trackers("things")
os.mkfifo("slow")

def feed():
    with open("slow", "wb") as file:
        file.write(b"x" * 2**20)
        file.flush()
        while not list(Path("runs").rglob(".draft-*")):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)

threading.Thread(target=feed).start()
from otel_tracking.journal.media import store
(journal,) = Path("runs/things/r/journal").iterdir()
store(journal, Path("slow"), ".bin", fsync=False)
"""


def test_a_kill_in_the_middle_of_a_copy(run_script: Run, tmp_path: Path) -> None:
    """What is left has the name that a later process of the same id would give."""
    run_script(KILLED_IN_A_COPY, check=False)
    assert list((tmp_path / "runs").rglob(".draft-*"))
    tracking = ot.Tracking(project_dir=tmp_path / "runs", run_id="r")
    tracking.init_trackers("things")
    tracking.end_training()
    assert not list((tmp_path / "runs").rglob(".draft-*"))


def test_threads_and_a_fork(tmp_path: Path) -> None:
    def log(tracking: ot.Tracking) -> None:
        def several(number: int) -> None:
            for step in range(20):
                tracking.log_images({f"thread{number}": np.full((2, 3), step, np.uint8)}, step=step)

        threads = [threading.Thread(target=several, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        child = os.fork()
        if not child:
            tracking.log_images({"child": IMAGE})
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0

    tracker, receipt = recorded(tmp_path, log)
    assert len(tracker.media) == 80
    assert {media.tag for media in tracker.media} == {f"thread{n}" for n in range(4)}
    assert receipt.not_recorded == {}


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    def log(tracking: ot.Tracking) -> None:
        tracking.log_images({"a": IMAGE})
        (folder,) = (tmp_path / "runs").rglob("media")
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()
        folder.write_text("in the way")
        tracking.log_images({"b": IMAGE})
        tracking.log({"loss": 1.0}, step=0)

    tracker, receipt = recorded(tmp_path, log)
    assert sum(receipt.not_recorded.values()) == 1
    assert "can't be read or stored" in next(iter(receipt.not_recorded))
    assert [point.value for point in tracker.points()] == [1.0]


def test_media_of_a_plugin_is_what_it_says(tmp_path: Path) -> None:
    """The default of the contract: a tracker without a kind says so."""
    media = Media(MediaKind.AUDIO, "a", (), {}, 0, 0, 1)
    from otel_tracking.tracker import Tracker

    assert Tracker.write_media(RecordingTracker(), media).rejected == {"recording has no audio": [0]}
