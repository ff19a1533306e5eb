"""The file that grows: its name, and who may write to it."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from tensorboard.compat.proto.event_pb2 import Event  # type: ignore[import-untyped]

from otel_tracking.errors import TrackingError
from otel_tracking_exporters._tensorboard_events import frame, records
from otel_tracking_exporters._tensorboard_file import EventFile, event_files, read_event


def test_a_new_file_is_read_after_every_file_there(tmp_path: Path) -> None:
    future = int(time.time()) + 5000
    older = tmp_path / f"events.out.tfevents.{future:010d}.zzz.9.9"
    older.touch()
    files = [EventFile(tmp_path), EventFile(tmp_path, "/../x"), EventFile(tmp_path)]
    assert event_files(tmp_path) == [older, *(file.path for file in files)]
    assert files[1].path.name.endswith(".0_x2f_.._x2f_x")
    for file in files:
        file.close()


def test_a_file_begins_with_its_version_and_ends_where_it_says(tmp_path: Path) -> None:
    file = EventFile(tmp_path)
    at = file.size
    file.append_event(Event(step=5))
    file.close()
    file.close()
    data = file.path.read_bytes()
    assert [Event.FromString(payload).file_version for _, payload in records(data)] == ["brain.Event:2", ""]
    assert [end for end, _ in records(data)] == [at, file.size]
    event = read_event(file.path, at)
    assert event is not None
    assert (event.step, event.wall_time > 1.7e9) == (5, True)
    assert read_event(file.path, at + 1) is None
    assert read_event(file.path, file.size) is None
    with pytest.raises(TrackingError, match="the run has ended"):
        file.append(frame(b"late"))


def test_a_forked_process_can_not_write(tmp_path: Path) -> None:
    file = EventFile(tmp_path)
    size = file.size
    pid = os.fork()
    if not pid:
        try:
            file.append(frame(b"from the child"))
        except TrackingError:
            os._exit(7)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
    file.close()
    assert file.path.stat().st_size == size
