"""What survives the death of the machine."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import BuiltinMethodType

import pytest

import otel_tracking as ot
from otel_tracking.provider import TrackingMeterProvider
from otel_tracking.recorder import Recorder
from otel_tracking.records import RunStatus

DEADLINE = 60


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of files that were made durable, in order."""
    names: list[str] = []
    original = os.fdatasync

    def fdatasync(descriptor: int) -> None:
        original(descriptor)
        names.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)

    monkeypatch.setattr(os, "fdatasync", fdatasync)
    return names


def recording(directory: Path, fsync: str) -> Recorder:
    recorder = Recorder()
    recorder.fsync = fsync
    recorder.open(directory)
    return recorder


def test_always_means_before_a_call_returns(tmp_path: Path, synced: list[str]) -> None:
    recorder = recording(tmp_path, "always")
    gauge = TrackingMeterProvider(recorder).get_meter("m").create_gauge("g")
    calls: list[Callable[[int], object]] = [
        lambda step: recorder.log({"a": 1.0}, step=step),
        lambda step: gauge.set(1.0, {"training.step": step}),
        lambda step: recorder.log({"a": 1, "note": "text"}, step=step),
    ]
    for call in calls:
        call(0)  # definitions
        for step in range(1, 5):
            before = len(synced)
            call(step)
            assert len(synced) > before
    recorder.close(RunStatus.FINISHED)
    assert len(ot.read_run(tmp_path)) == 15


def test_threads_share_what_is_done_for_all(tmp_path: Path, synced: list[str]) -> None:
    recorder = recording(tmp_path, "always")

    def work(number: int) -> None:
        for step in range(50):
            recorder.log({f"s{number}": 1.0}, step=step)

    threads = [threading.Thread(target=work, args=[number]) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    recorder.close(RunStatus.FINISHED)
    assert len(ot.read_run(tmp_path)) == 400
    assert len(synced) < 400


@pytest.mark.parametrize("fsync", ["off", "interval"])
def test_otherwise_no_call_waits(tmp_path: Path, synced: list[str], fsync: str) -> None:
    recorder = recording(tmp_path, fsync)
    recorder.log({"a": 1.0}, step=0)
    assert recorder.journal is not None
    assert isinstance(recorder.journal.write, BuiltinMethodType), "it is the map's own"
    deadline = time.monotonic() + DEADLINE
    while fsync == "interval" and not synced:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    recorder.close(RunStatus.FINISHED)
    assert set(synced) == ({"00000000.segment"} if fsync == "interval" else set())


def test_every_segment_is_synced_through_rotations(tmp_path: Path, synced: list[str]) -> None:
    recorder = recording(tmp_path, "always")
    row = {f"s{n}": float(n) for n in range(2_000)}
    for step in range(120):  # 16 KB each: more than a first segment
        recorder.log(row, step=step)
    recorder.close(RunStatus.FINISHED)
    segments = sorted(path.name.removesuffix(".packed") for path in tmp_path.glob("*.segment*"))
    assert len(segments) > 1
    assert set(synced) == set(segments)
    assert len(ot.read_run(tmp_path)) == 240_000


def test_a_disk_that_refuses_is_said_once_and_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(descriptor: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fdatasync", broken)
    with caplog.at_level(logging.WARNING):
        recorder = recording(tmp_path, "always")
        for step in range(10):
            recorder.log({"a": 1.0}, step=step)
        recorder.close(RunStatus.FINISHED)
    assert caplog.text.count("not durable: [Errno 5] Input/output error") == 1
    assert len(ot.read_run(tmp_path)) == 10


TRAIN = """
import itertools, sys
import otel_tracking as ot

tracking = ot.Tracking(project_dir=sys.argv[1], run_id="run", fsync="always")
tracking.init_trackers("p")
more = dict.fromkeys(map(str, range(200)), 0.5)  # so that segments become full, and are packed
for step in itertools.count():
    tracking.log({"a": float(step), "b": -float(step), **more}, step=step)
    print(step, flush=True)
"""


def test_what_was_acknowledged_is_in_a_copy_of_the_disk(
    tmp_path: Path, mounted: Callable[..., Path], size: Callable[[int, int], int]
) -> None:
    image = tmp_path / "image"
    with image.open("wb") as file:
        file.truncate(256 * 2**20)
    subprocess.run(["mkfs.ext4", "-q", str(image)], check=True)
    disk = mounted("disk", "-o", "loop", str(image))
    acknowledged = [-1]
    with subprocess.Popen(
        [sys.executable, "-c", TRAIN, str(disk)], stdout=subprocess.PIPE, text=True
    ) as trainer:
        assert trainer.stdout is not None
        lines = trainer.stdout

        def listen() -> None:
            for line in lines:
                acknowledged[0] = int(line)

        threading.Thread(target=listen, daemon=True).start()
        try:
            for number in range(size(3, 20)):
                more = acknowledged[0] + 20
                deadline = time.monotonic() + DEADLINE
                while acknowledged[0] < more:
                    assert time.monotonic() < deadline
                    time.sleep(0.01)
                promised = acknowledged[0]
                copy = tmp_path / f"copy-{number}"
                shutil.copy(image, copy)
                found = mounted(f"copied-{number}", "-o", "loop", str(copy))
                points = ot.read_run(found / "p" / "run")
                steps = points.of("a").steps.tolist()
                assert steps == list(range(len(steps)))
                assert len(steps) > promised >= 0
                expected = [-float(step) for step in range(promised + 1)]
                assert points.of("b").values.tolist()[: promised + 1] == expected
        finally:
            trainer.kill()
