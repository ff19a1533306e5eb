"""Going back to a step: event files keep what is valid, whoever reads them, and lose nothing."""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from tensorboard.compat.proto.event_pb2 import Event  # type: ignore[import-untyped]

from otel_tracking.errors import Retry
from otel_tracking.records import Config, Rewind, RunStatus, Text
from otel_tracking_exporters import _tensorboard_rewind as rewind_module
from otel_tracking_exporters._tensorboard_events import encode_rows, records, scalar, stamp, step_of
from otel_tracking_exporters._tensorboard_file import EventFile, event_files
from tests.exporters.test_tensorboard import START_NS, accumulated, losses, scalars_in, started


def steps(directory: Path) -> list[int]:
    """Of all scalars in the event files, by no more than the files' own order."""
    return [step for _, step, _ in scalars_in(directory)]


def test_what_is_void_is_in_no_event_file(tmp_path: Path) -> None:
    first = started(tmp_path)
    first.write_config(Config({"lr": 0.1}, START_NS, 1))
    first.write(losses(2, 9))
    first.write_text(Text("note", "late", 9, START_NS, 10))
    first.native.add_scalar("native", 1.0, 4)
    first.native.add_scalar("native", 2.0, 8)
    first.finish(RunStatus.KILLED)
    again = started(tmp_path, state=first.state(), position=10)
    writer = again.native
    again.write(losses(11, 12))
    assert again.write_rewind(Rewind(5, START_NS, 13)).accepted == 1
    assert again.confirm() == 13
    again.write(losses(14, 15))
    writer.add_scalar("native", 3.0, 14)  # the writer goes on in the new file
    again.finish(RunStatus.FINISHED)
    assert steps(tmp_path) == [2, 3, 4, 4, 14, 15, 14]
    shown = accumulated(tmp_path)
    assert [event.step for event in shown.Scalars("native")] == [4, 14]
    assert "note/text_summary" not in shown.Tags()["tensors"]
    assert shown.SummaryMetadata("_hparams_/session_start_info")
    # What was logged natively is in no journal.
    kept = b"".join(path.read_bytes() for path in sorted(tmp_path.glob("*void*")))
    assert kept.count(b"native") == 2
    assert b"late" in kept
    assert started(tmp_path, state=again.state(), position=15).confirm() == 15


def test_twice_and_after_a_restart_without_a_cursor(tmp_path: Path) -> None:
    tracker = started(tmp_path)
    tracker.write(losses(1, 9))
    tracker.write_rewind(Rewind(6, START_NS, 10))
    tracker.write(losses(11, 12))
    tracker.write_rewind(Rewind(3, START_NS, 13))
    assert steps(tmp_path) == [1, 2]
    assert started(tmp_path).confirm() == 13


def test_a_rewind_that_was_cut_short_is_finished_at_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(files: Iterable[Path]) -> None:
        raise SystemExit

    tracker = started(tmp_path)
    tracker.write(losses(1, 9))
    with monkeypatch.context() as patched:
        patched.setattr(rewind_module, "_retire", killed)
        with pytest.raises(SystemExit):
            tracker.write_rewind(Rewind(6, START_NS, 10))
    assert steps(tmp_path) == [*range(1, 10), *range(1, 6)]
    assert started(tmp_path, state={"file": "gone", "size": 10}, position=9).confirm() == 10
    assert steps(tmp_path) == [1, 2, 3, 4, 5]
    assert len(list(tmp_path.glob("*void*"))) == 1


def test_no_space_for_the_copy_leaves_all_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: EventFile, content: Iterable[bytes], suffix: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    tracker = started(tmp_path)
    tracker.write(losses(1, 9))
    before = event_files(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(EventFile, "start_anew", full)
        with pytest.raises(Retry, match="No space left"):
            tracker.write_rewind(Rewind(6, START_NS, 10))
    assert event_files(tmp_path) == before
    assert tracker.confirm() == 9
    tracker.write_rewind(Rewind(6, START_NS, 10))
    assert steps(tmp_path) == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("step", [0, 1, 127, 128, 2**31, 2**63 - 1, -1, -(2**63)])
def test_the_step_of_an_event_is_found_without_parsing(step: int) -> None:
    event = Event(wall_time=1.5, step=step, file_version="x")
    assert step_of(stamp(7) + event.SerializeToString()) == step
    assert step_of(event.SerializeToString()) == step
    one = np.ones(1)
    row = encode_rows(
        [scalar("a")], one.astype(np.int32) - 1, np.array([step]), one, one.astype(np.float32), np.array([7])
    )
    ((_, payload),) = records(row)
    assert step_of(payload) == step
    assert payload.startswith(struct.pack("<2sq", b"\xe1\x76", 7))
