"""Readers that follow a journal while it is written, closed, killed and taken up again."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from otel_tracking.journal.format import HEADER_SLOTS, SLOT, pack_point, position, segment_name
from otel_tracking.journal.reader import JournalReader, PointCounter
from otel_tracking.journal.stream import Points, RecordStream
from otel_tracking.journal.writer import JournalWriter
from otel_tracking.recorder import Recorder
from otel_tracking.records import RunStatus
from tests.damage import unseal

Spawn = Callable[..., "subprocess.Popen[bytes]"]

WRITER = """
import functools, os, sys
from pathlib import Path
from otel_tracking import recorder as module
from otel_tracking.journal.writer import JournalWriter
from otel_tracking.provider import TrackingMeterProvider
from otel_tracking.records import RunStatus

directory, first, count = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
module.JournalWriter = functools.partial(JournalWriter, segment_slots=4096)
recorder = module.Recorder()
recorder.open(directory)
meter = TrackingMeterProvider(recorder).get_meter("train")
gauge, counter = meter.create_gauge("loss"), meter.create_counter("seen")
os.write(1, b"!")
for step in range(first, first + count):
    gauge.set(step * 0.5, {"training.step": step})
    if step % 4 == 0:
        recorder.log({"a": step + 0.25, "b": -step + 0.5, "c": 1.0, "d": 1.0, "e": 1.0}, step=step)
        counter.add(1, {"training.step": step})
    if step % 5000 == 0:
        recorder.text("note", "x" * (step % 50_000), step=step)
recorder.close(RunStatus.FINISHED)
"""


class Follower:
    """Takes what a stream gives and checks that it could have been recorded."""

    def __init__(self, directory: Path) -> None:
        self.stream = RecordStream(directory)
        self.steps: dict[str, list[int]] = {"loss": [], "a": [], "b": [], "seen": []}
        self.notes: list[int] = []
        self.position = -1
        self.reads = 0

    def read(self) -> bool:
        items = self.stream.read()
        if items is None:
            return False
        self.reads += 1
        for item in items:
            if not isinstance(item, Points):
                assert item.position > self.position
                if "text" in item.content:
                    assert item.content["text"] == "x" * (item.step % 50_000)
                    self.notes.append(item.step)
                continue
            assert (np.diff(item.positions) >= 0).all()
            assert item.positions[0] > self.position
            self.position = int(item.positions[-1])
            assert (item.times > 1.6e18).all()
            names = np.array([series.name for series in self.stream.series])[item.index]
            expected = {"loss": item.steps * 0.5, "a": item.steps + 0.25, "b": -item.steps + 0.5}
            for name, values in expected.items():
                assert np.array_equal(item.values[names == name], values[names == name])
            for name, steps in self.steps.items():
                steps += item.steps[names == name].tolist()
        return True

    def follow(self, until: Callable[[], bool], timeout: float = 60) -> None:
        deadline = time.monotonic() + timeout
        while not until():
            assert time.monotonic() < deadline
            self.read()


def test_following_a_writer_at_full_speed(
    tmp_path: Path, spawn: Spawn, size: Callable[[int, int], int]
) -> None:
    count = size(100_000, 3_000_000)
    directory = tmp_path / "journal"
    program = spawn(WRITER, directory, 0, count)
    assert program.stdout is not None
    program.stdout.read(1)
    follower = Follower(directory)
    follower.follow(lambda: len(follower.steps["loss"]) == count)
    assert program.wait(30) == 0
    while follower.read():
        pass
    assert follower.reads > 10
    assert follower.steps["loss"] == list(range(count))
    assert follower.steps["a"] == follower.steps["b"] == follower.steps["seen"] == list(range(0, count, 4))
    assert follower.notes == list(range(0, count, 5000))
    assert not follower.stream.torn
    follower.stream.close()


def test_a_reader_stays_through_crashes_and_new_writers(tmp_path: Path, spawn: Spawn) -> None:
    directory = tmp_path / "journal"
    recorder = Recorder()
    recorder.open(directory)
    recorder.close(RunStatus.FINISHED)
    follower = Follower(directory)
    first = 0
    for attempt in range(4):
        program = spawn(WRITER, directory, first, 10**9)
        follower.follow(lambda enough=first + 3000 * (attempt + 1): len(follower.steps["loss"]) > enough)  # type: ignore[misc]  # mypy infers no lambda's default
        program.kill()
        program.wait()
        while follower.read():
            pass
        first = len(follower.steps["loss"])
        assert follower.steps["loss"] == list(range(first))
    program = spawn(WRITER, directory, first, 1000)
    assert program.wait(60) == 0
    while follower.read():
        pass
    assert follower.steps["loss"] == list(range(first + 1000))

    late = Follower(directory)
    while late.read():
        pass
    assert late.steps == follower.steps
    assert late.notes == follower.notes
    assert late.stream.position == follower.stream.position
    for each in (late, follower):
        each.stream.close()


def point(step: int) -> bytes:
    return pack_point(1, step, 1, float(step))


def test_a_reader_in_the_segment_kept_ready_is_not_left_behind(tmp_path: Path) -> None:
    """The last segment is full to the brim, so a reader goes on into the next one, which is empty."""
    directory = tmp_path / "journal"
    writer = JournalWriter(directory, segment_slots=64)
    reader = JournalReader(directory)
    for step in range(62):
        writer.append(point(step))
    deadline = time.monotonic() + 10
    while reader.position < position(1, 0):
        reader.read()
        assert time.monotonic() < deadline
    writer.close()
    assert reader.read() is None

    again = JournalWriter(directory, segment_slots=64)
    again.append(point(62))
    block = reader.read()
    assert block is not None
    assert block.words[:, 1].tolist() == [62]
    again.close()
    reader.close()


def test_readers_by_descriptor_survive_a_rename_and_do_not_share_their_place(tmp_path: Path) -> None:
    """Many readers of one descriptor list the directory at once, while it gets more segments."""
    writer = JournalWriter(tmp_path / "pending", segment_slots=32)
    counters = [PointCounter(writer.descriptor) for _ in range(3)]
    done = threading.Event()
    found: list[int] = []

    def count(counter: PointCounter) -> None:
        while not done.is_set():
            counter.count()
        found.append(counter.count())

    threads = [threading.Thread(target=count, args=(counter,)) for counter in counters]
    for thread in threads:
        thread.start()
    for step in range(6000):
        writer.append(point(step))
        if step == 3000:
            writer.rename(tmp_path / "named")
    assert writer.settle(time.monotonic() + 60)
    done.set()
    for thread in threads:
        thread.join(30)
    assert found == [6000] * 3
    writer.close()
    assert [counter.count() for counter in counters] == [6000] * 3
    for counter in counters:
        counter.close()


def test_one_counter_asked_by_several_threads(tmp_path: Path) -> None:
    writer = JournalWriter(tmp_path / "journal", segment_slots=64)
    counter = PointCounter(writer.descriptor)
    done = threading.Event()

    def ask() -> None:
        last = 0
        while not done.is_set():
            count = counter.count()
            assert last <= count
            last = count

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    for step in range(20_000):
        writer.append(point(step))
    assert writer.settle(time.monotonic() + 60)
    done.set()
    for thread in threads:
        thread.join(30)
    assert counter.count() == 20_000
    counter.close()
    writer.close()


@pytest.mark.parametrize("slots", [1, 2, 7, 1000])
def test_the_size_of_a_block_changes_nothing(tmp_path: Path, slots: int) -> None:
    recorder = Recorder()
    recorder.open(tmp_path / "journal")
    for step in range(50):
        recorder.log({f"v{n}": float(n) for n in range(1 + step % 9)}, step=step)
    recorder.text("long", "y" * 5000, step=51)
    recorder.close(RunStatus.FINISHED)
    stream = RecordStream(tmp_path / "journal")
    values: list[float] = []
    texts = 0
    while (items := stream.read(slots)) is not None:
        for item in items:
            if isinstance(item, Points):
                values += item.values.tolist()
            else:
                texts += "text" in item.content
    stream.close()
    assert values == [float(n) for step in range(50) for n in range(1 + step % 9)]
    assert texts == 1


def test_a_reader_waits_at_something_unfinished_and_goes_on_when_it_is_whole(tmp_path: Path) -> None:
    directory = tmp_path / "journal"
    writer = JournalWriter(directory, segment_slots=64)
    writer.append(point(0))
    writer.close()
    unseal(directory)
    segment = directory / segment_name(0)
    data = segment.read_bytes()
    full = bytearray(data.ljust(64 * SLOT, b"\0"))
    at = (HEADER_SLOTS + 1) * SLOT
    reader = JournalReader(directory)
    assert reader.read() is not None

    full[at : at + 16] = point(1)[:16]  # the second half is not there yet
    segment.write_bytes(full)
    assert reader.read() is None
    assert reader.torn
    full[at : at + 32] = point(1)
    segment.write_bytes(full)
    block = reader.read()
    assert block is not None
    assert block.words[:, 1].tolist() == [1]
    assert reader.read() is None
    assert not reader.torn
    reader.close()
