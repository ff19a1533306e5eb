"""One writer, forks, a full disk, and what segments take on disk."""

from __future__ import annotations

import errno
import functools
import logging
import multiprocessing
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from otel_tracking import read_run
from otel_tracking import recorder as recorder_module
from otel_tracking.errors import JournalLocked
from otel_tracking.journal import segment as segment_module
from otel_tracking.journal import writer as writer_module
from otel_tracking.journal.entries import entry_bytes
from otel_tracking.journal.format import HEADER_SLOTS, SLOT, Header, RecordType, pack_point, segment_name
from otel_tracking.journal.ownership import repair
from otel_tracking.journal.reader import JournalReader
from otel_tracking.journal.ring import Ring
from otel_tracking.journal.scan import points_in
from otel_tracking.journal.seal import seal_name
from otel_tracking.journal.verifying import verify
from otel_tracking.journal.writer import JournalWriter, Outcome
from otel_tracking.provider import TrackingMeterProvider
from otel_tracking.recorder import Recorder
from otel_tracking.records import RunStatus

Spawn = Callable[..., "subprocess.Popen[bytes]"]
Small = Callable[[int], None]
DEADLINE = 60


def point(step: int) -> bytes:
    return pack_point(1, step, 1, float(step))


def points(directory: Path) -> int:
    reader = JournalReader(directory)
    count = 0
    while (block := reader.read()) is not None:
        count += points_in(block.runs)
    reader.close()
    return count


# One writer

HOLDER = """
import os, sys, time
from pathlib import Path
from otel_tracking.recorder import Recorder

recorder = Recorder()
recorder.open(Path(sys.argv[1]))
recorder.log({"loss": 1.0}, step=1)
if sys.argv[2] == "fork":
    child = os.fork()
    if child == 0:
        recorder.log({"loss": -1.0}, step=-1)
        time.sleep(60)
        os._exit(0)
    os.write(1, child.to_bytes(4, "little"))
else:
    os.write(1, bytes(4))
time.sleep(60)
"""


def test_a_second_writer_is_refused_until_the_first_is_gone(tmp_path: Path, spawn: Spawn) -> None:
    directory = tmp_path / "journal"
    holder = spawn(HOLDER, directory, "alone")
    assert holder.stdout is not None
    holder.stdout.read(4)
    with pytest.raises(JournalLocked, match="One writer"):
        JournalWriter(directory)
    with pytest.raises(JournalLocked):
        repair(directory)
    assert len(read_run(directory)) == 1
    holder.kill()
    holder.wait()
    JournalWriter(directory).close()


def test_a_second_writer_in_the_same_process_is_refused(tmp_path: Path) -> None:
    writer = JournalWriter(tmp_path / "journal")
    with pytest.raises(JournalLocked):
        JournalWriter(tmp_path / "journal")
    writer.append(point(1))
    writer.close()
    assert points(tmp_path / "journal") == 1


def test_a_child_that_outlives_a_killed_parent_does_not_keep_the_journal(
    tmp_path: Path, spawn: Spawn
) -> None:
    directory = tmp_path / "journal"
    holder = spawn(HOLDER, directory, "fork")
    assert holder.stdout is not None
    child = int.from_bytes(holder.stdout.read(4), "little")
    assert child > 0  # 0 would be this process and all around it
    holder.kill()
    holder.wait()
    try:
        os.kill(child, 0)
        recorder = Recorder()
        recorder.open(directory)
        recorder.log({"loss": 2.0}, step=2)
        recorder.close(RunStatus.FINISHED)
        assert read_run(directory).steps.tolist() == [1, 2]
    finally:
        os.kill(child, signal.SIGKILL)


# fork

FORKS = """
import multiprocessing, os, sys, threading
from pathlib import Path
from otel_tracking.provider import TrackingMeterProvider
from otel_tracking.recorder import Recorder
from otel_tracking.records import RunStatus

recorder = Recorder()
recorder.open(Path("journal"))
gauge = TrackingMeterProvider(recorder).get_meter("train").create_gauge("loss")
stop = threading.Event()
step = 0
def beside():
    beside.steps = 0
    while not stop.is_set():
        gauge.set(1.0, {"training.step": beside.steps, "thread": "beside"})
        beside.steps += 1

def child():
    for n in range(2000):
        gauge.set(-1.0, {"training.step": n})
        gauge.set(-1.0, {"training.step": n, "new": str(n)})
        recorder.log({"child/a": 1.0, "child/b": 2.0}, step=n)
        recorder.text("child", "text", step=n)

thread = threading.Thread(target=beside)
thread.start()
gauge.set(1.0, {"training.step": 0})
for how in ("return", "exit", "close"):
    pid = os.fork()
    if pid == 0:
        child()
        if how == "close":
            recorder.close(RunStatus.FAILED)
        if how == "exit":
            sys.exit(0)  # runs what is registered for the exit
        os._exit(0)
    for n in range(500):
        step += 1
        gauge.set(1.0, {"training.step": step})
    assert os.waitpid(pid, 0)[1] == 0
process = multiprocessing.get_context("fork").Process(target=child)
process.start()
process.join()
assert process.exitcode == 0
step += 1
gauge.set(1.0, {"training.step": step})
stop.set()
thread.join()
assert recorder.not_recorded() == {}
recorder.close(RunStatus.FINISHED)
print(step, beside.steps)
"""


def test_forked_children_add_nothing_and_end_nothing(
    run_script: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    main, beside = map(int, run_script(FORKS, timeout=60).stdout.split())
    run = read_run("journal")
    assert run.of("loss", {}).steps.tolist() == list(range(main + 1))
    assert run.of("loss", {"thread": "beside"}).steps.tolist() == list(range(beside))
    assert len(run) == main + 1 + beside
    assert set(run.values.tolist()) == {1.0}


def test_a_child_may_open_a_journal_of_its_own(tmp_path: Path) -> None:
    recorder = Recorder()
    recorder.open(tmp_path / "parent")

    def rank() -> None:
        recorder.open(tmp_path / "child")
        recorder.log({"loss": 2.0}, step=2)
        recorder.close(RunStatus.FINISHED)

    process = multiprocessing.get_context("fork").Process(target=rank)
    process.start()
    process.join(30)
    assert process.exitcode == 0
    recorder.log({"loss": 1.0}, step=1)
    recorder.close(RunStatus.FINISHED)
    assert read_run(tmp_path / "child").steps.tolist() == [2]
    assert read_run(tmp_path / "parent").steps.tolist() == [1]


def test_a_fork_while_a_journal_is_opened_elsewhere_leaves_no_lock(tmp_path: Path) -> None:
    """A thread opens and closes journals; children forked meanwhile outlive them."""
    children: list[int] = []
    stop = threading.Event()
    opened = 0

    def open_and_close() -> None:
        nonlocal opened
        while not stop.is_set():
            JournalWriter(tmp_path / "journal").close()  # JournalLocked if a child holds the lock
            opened += 1

    errors: list[JournalLocked] = []

    def run() -> None:
        try:
            open_and_close()
        except JournalLocked as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        while opened < 15 and not errors:
            child = os.fork()
            if child == 0:
                time.sleep(30)
                os._exit(0)
            children.append(child)
            time.sleep(0.003)
    finally:
        stop.set()
        thread.join()
        for child in children:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
    assert not errors
    assert len(children) > 3


# A full disk


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> dict[str, bool]:
    """`disk["full"] = True`: no file can be reserved, as on a full file system."""
    state = {"full": False}
    reserve = os.posix_fallocate

    def fallocate(descriptor: int, offset: int, length: int) -> None:
        if state["full"]:
            os.ftruncate(descriptor, length // 2)  # ext4 leaves a part of it
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        reserve(descriptor, offset, length)

    monkeypatch.setattr(os, "posix_fallocate", fallocate)
    monkeypatch.setattr(segment_module, "_RETRY_PAUSE", 0.05)
    return state


def test_what_is_recorded_on_a_full_disk_waits_and_keeps_its_order(
    recorder: Recorder,
    tmp_path: Path,
    small_segments: Small,
    disk: dict[str, bool],
    caplog: pytest.LogCaptureFixture,
) -> None:
    small_segments(64)
    directory = tmp_path / "journal"
    meter = TrackingMeterProvider(recorder).get_meter("train")
    gauge = meter.create_gauge("loss")
    for step in range(200):
        gauge.set(1.0, {"training.step": step})
    disk["full"] = True
    waiting = "waiting in memory: no space for the journal"
    with caplog.at_level(logging.WARNING):
        step = 200
        while recorder.not_recorded().get(waiting, 0) < 100:
            gauge.set(1.0, {"training.step": step})
            step += 1
        new = meter.create_gauge("new")
        for n in range(10):
            new.set(1.0, {"training.step": n})
            recorder.log({"x": 1.0, "y": 2.0, "z": 3.0}, step=n)
            recorder.text("note", "text", step=n)
        deadline = time.monotonic() + DEADLINE
        while "can't grow" not in caplog.text:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert recorder.not_recorded() == {waiting: 100 + 10 + 30 + 10}
    (warning,) = [record for record in caplog.records if "can't grow" in record.message]
    assert "No space left" in warning.message

    disk["full"] = False
    assert recorder.journal is not None
    assert recorder.journal.settle(time.monotonic() + DEADLINE)
    for after in range(1000, 1100):
        gauge.set(1.0, {"training.step": after})
        new.set(2.0, {"training.step": after})
    assert recorder.not_recorded() == {}
    recorder.close(RunStatus.FINISHED)

    run = read_run(directory)
    assert run.of("loss").steps.tolist() == [*range(step), *range(1000, 1100)]
    assert run.of("new").values.tolist() == [1.0] * 10 + [2.0] * 100
    assert run.of("z").values.tolist() == [3.0] * 10
    assert run.damaged == 0
    assert all(report.whole for report in verify(directory))


def test_of_more_than_fits_into_memory_the_oldest_points_go(
    recorder: Recorder,
    tmp_path: Path,
    small_segments: Small,
    disk: dict[str, bool],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(writer_module, "Ring", functools.partial(Ring, capacity=160 * 100))
    small_segments(64)
    gauge = TrackingMeterProvider(recorder).get_meter("train").create_gauge("loss")
    gauge.set(1.0, {"training.step": 0})
    disk["full"] = True
    for step in range(1, 1000):
        gauge.set(float(step), {"training.step": step})
        recorder.log({f"series-{step}": 1.0}, step=step)  # each with a definition, which stays
    disk["full"] = False
    recorder.close(RunStatus.FINISHED)
    run = read_run(tmp_path / "journal")
    lost = recorder.not_recorded()["no space for the journal"]
    assert recorder.not_recorded() == {"no space for the journal": lost}
    assert len(run) + lost == 1 + 2 * 999
    assert run.of("loss").steps.tolist()[-5:] == list(range(995, 1000))
    assert run.of("series-999").values.tolist() == [1.0]
    assert run.damaged == 0


def test_the_numbers_add_up_on_a_disk_that_stays_full(
    recorder: Recorder, tmp_path: Path, small_segments: Small, disk: dict[str, bool]
) -> None:
    small_segments(64)
    gauge = TrackingMeterProvider(recorder).get_meter("train").create_gauge("loss")
    for step in range(500):
        disk["full"] = step >= 200
        gauge.set(1.0, {"training.step": step})
        recorder.log({"a": 1.0, "b": 2.0}, step=step)
    recorder.close(RunStatus.FINISHED)
    run = read_run(tmp_path / "journal")
    assert list(recorder.not_recorded()) == ["no space for the journal"]
    assert len(run) + recorder.not_recorded()["no space for the journal"] == 1500
    assert len(run) >= 600


def test_the_numbers_add_up_on_a_disk_that_is_full_now_and_then(
    recorder: Recorder, tmp_path: Path, small_segments: Small, disk: dict[str, bool]
) -> None:
    """Points, rows and new series of several threads: each is recorded, in its thread's order."""
    small_segments(64)
    provider = TrackingMeterProvider(recorder)
    stop = threading.Event()

    def fill() -> None:
        while not stop.wait(0.02):
            disk["full"] = not disk["full"]

    def work(number: int) -> None:
        gauge = provider.get_meter("train").create_gauge(f"loss{number}")
        for step in range(2000):
            gauge.set(1.0, {"training.step": step})
            gauge.set(1.0, {"training.step": step, "part": str(step % 70)})
            recorder.log({f"r{number}.{n}": float(n) for n in range(step % 5)}, step=step)

    recorder.log({"first": 1.0})
    threads = [threading.Thread(target=fill), *(threading.Thread(target=work, args=[n]) for n in range(3))]
    for thread in threads:
        thread.start()
    for thread in threads[1:]:
        thread.join()
    stop.set()
    threads[0].join()
    disk["full"] = False
    recorder.close(RunStatus.FINISHED)
    run = read_run(tmp_path / "journal")
    assert recorder.not_recorded() == {}
    assert run.damaged == 0
    assert len(run) == 1 + 3 * (2 * 2000 + sum(step % 5 for step in range(2000)))
    for number in range(3):
        assert run.of(f"loss{number}", {}).steps.tolist() == list(range(2000))
        for n in range(4):
            assert set(run.of(f"r{number}.{n}").values.tolist()) == {float(n)}


def test_segments_become_smaller_as_the_disk_fills(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = [64 * 2**20]
    real = os.statvfs(tmp_path)

    def statvfs(descriptor: int) -> os.statvfs_result:
        fields = list(real)
        fields[1] = fields[0] = 4096
        fields[4] = free[0] // 4096
        return os.statvfs_result(fields)

    monkeypatch.setattr(os, "fstatvfs", statvfs)
    writer = JournalWriter(tmp_path / "journal")
    for left in (64 * 2**20, 3 * 2**20, 2**20, 2**17, 0):
        free[0] = left
        segment = writer.position >> 32
        while writer.position >> 32 < segment + 3:  # one was ready
            writer.append(point(1) * 100)
            assert writer.settle(time.monotonic() + DEADLINE)
    writer.close()
    sizes = {path.stat().st_size for path in (tmp_path / "journal").glob("*.segment")}
    assert {8 * 2**20, 2**20, 2**19, 2**16} <= sizes
    assert writer.lost == {}


def test_a_journal_that_cannot_be_made_is_an_error_and_leaves_nothing(
    tmp_path: Path, disk: dict[str, bool]
) -> None:
    disk["full"] = True
    descriptors = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(OSError, match="No space"):
        JournalWriter(tmp_path / "journal")
    assert [path.name for path in (tmp_path / "journal").iterdir()] == ["lock"]
    assert len(list(Path("/proc/self/fd").iterdir())) == descriptors
    disk["full"] = False
    JournalWriter(tmp_path / "journal").close()


def test_measurements_of_a_journal_that_cannot_be_made_are_counted(
    recorder: Recorder, disk: dict[str, bool]
) -> None:
    disk["full"] = True
    recorder.log({"a": 1.0, "b": 2.0}, step=1)
    recorder.log({"a": 1.0}, step=2)
    (reason,) = recorder.not_recorded()
    assert "No space" in reason
    assert recorder.not_recorded() == {reason: 3}


def test_a_move_without_space_keeps_the_records_where_they_are(
    tmp_path: Path, small_segments: Small, disk: dict[str, bool]
) -> None:
    small_segments(64)
    earlier = Recorder()
    earlier.open(tmp_path / "run")
    earlier.close(RunStatus.FINISHED)
    recorder = Recorder()
    recorder.open(tmp_path / "pending")
    for step in range(500):
        recorder.log({"loss": 1.0}, step=step)

    class FullSoon(JournalWriter):
        def __init__(self, directory: Path, **how: Any) -> None:
            super().__init__(directory, segment_slots=64, **how)
            disk["full"] = True

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recorder_module, "JournalWriter", FullSoon)
        recorder.move(tmp_path / "run")
    disk["full"] = False
    recorder.close(RunStatus.FINISHED)
    assert read_run(tmp_path / "pending").steps.tolist() == list(range(500))


# Sizes


def test_a_small_run_is_small(tmp_path: Path) -> None:
    writer = JournalWriter(tmp_path / "journal")
    writer.append(point(1))
    deadline = time.monotonic() + 10
    while not (tmp_path / "journal" / segment_name(1)).exists() and time.monotonic() < deadline:
        time.sleep(0.001)
    assert (tmp_path / "journal" / segment_name(0)).stat().st_size == 2**20
    writer.close()
    assert sorted(path.name for path in (tmp_path / "journal").iterdir()) == [
        seal_name(0),
        segment_name(0),
        "lock",
    ]
    assert (tmp_path / "journal" / segment_name(0)).stat().st_size == (HEADER_SLOTS + 1) * SLOT


def test_segments_grow_to_their_size_and_keep_order(tmp_path: Path) -> None:
    directory = tmp_path / "journal"
    writer = JournalWriter(directory, rank=3, segment_slots=2**16)
    for step in range(2**17):
        writer.append(point(step))
    writer.close()
    headers = [Header.unpack(path.read_bytes()[:64]) for path in sorted(directory.glob("*.segment"))]
    assert [header.slots for header in headers] == [2**15, 2**16, 2**16]
    assert [header.index for header in headers] == [0, 1, 2]
    assert {header.rank for header in headers} == {3}
    assert points(directory) == 2**17


def test_records_longer_than_the_rest_and_than_a_segment(tmp_path: Path) -> None:
    writer = JournalWriter(tmp_path / "journal", segment_slots=64)
    fitting = (64 - HEADER_SLOTS) * SLOT
    assert writer.append(point(1)) is Outcome.STORED
    assert writer.append(point(2) * (fitting // SLOT)) is Outcome.STORED
    assert writer.append(point(3) * (fitting // SLOT + 1)) is Outcome.TOO_LARGE
    assert writer.append(entry_bytes(RecordType.TEXT, {"text": "x" * fitting})) is Outcome.TOO_LARGE
    assert writer.append(entry_bytes(RecordType.SERIES, {"name": "x" * fitting})) is Outcome.TOO_LARGE
    assert writer.append(point(4)) is Outcome.STORED
    writer.close()
    assert writer.append(point(5)) is Outcome.CLOSED
    assert writer.overflow(point(5)) is False
    assert writer.lost == {"larger than a journal segment": fitting // SLOT + 1 + 1}
    assert points(tmp_path / "journal") == 2 + fitting // SLOT


def test_the_position_never_falls_and_ends_where_a_reader_ends(tmp_path: Path) -> None:
    writer = JournalWriter(tmp_path / "journal", segment_slots=64)
    seen = [writer.position]
    for step in range(500):
        writer.append(point(step))
        seen.append(writer.position)
    assert seen == sorted(set(seen))
    reader = JournalReader(tmp_path / "journal")
    while reader.read() is not None:
        pass
    assert reader.position == writer.position
    writer.close()
    assert reader.read() is None
    assert reader.position == writer.position
    reader.close()


def test_a_foreign_file_in_the_directory_is_left_alone(tmp_path: Path) -> None:
    directory = tmp_path / "journal"
    directory.mkdir()
    for name in ("1.segment", "notes.txt", "²³.segment", "00000000.segment.bak"):
        (directory / name).write_text("mine")
    (directory / "00000000.segment.draft").write_text("left by a killed writer")
    writer = JournalWriter(directory)
    writer.append(point(1))
    writer.close()
    assert points(directory) == 1
    assert not (directory / "00000000.segment.draft").exists()
    assert (directory / "1.segment").read_text() == "mine"


def test_without_posix_fallocate_zeros_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "posix_fallocate")
    writer = JournalWriter(tmp_path / "journal", segment_slots=5000)
    file = tmp_path / "journal" / segment_name(0)
    assert file.stat().st_blocks * 512 >= 5000 * SLOT
    for step in range(20000):
        writer.append(point(step))
    writer.close()
    assert points(tmp_path / "journal") == 20000


def test_the_reserve_thread_survives_a_rotation_that_is_faster_than_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The segment is taken before it is prefaulted."""
    monkeypatch.setattr(segment_module, "_PREFAULT_PAUSE", 0.01)
    writer = JournalWriter(tmp_path / "journal", segment_slots=2**13)
    for step in range(2**15):
        writer.append(point(step))
    writer.close()
    assert writer.lost == {}
    assert points(tmp_path / "journal") == 2**15
