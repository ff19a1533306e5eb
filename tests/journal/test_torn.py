"""Segments cut and damaged at every place: readers give whole records and nothing else."""

from __future__ import annotations

import itertools
import random
import shutil
import struct
from pathlib import Path

import pytest

from otel_tracking.errors import UnsupportedJournal
from otel_tracking.journal.entries import Entry
from otel_tracking.journal.format import HEADER_SLOTS, SLOT, RecordType, segment_name
from otel_tracking.journal.reader import JournalReader
from otel_tracking.journal.stream import Points, RecordStream
from otel_tracking.journal.verifying import verify
from otel_tracking.recorder import Recorder
from otel_tracking.records import Kind, RunStatus
from tests.damage import unseal

Item = tuple[object, ...]


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    """A journal of one segment that holds every kind of record."""
    directory = tmp_path / "journal"
    recorder = Recorder()
    recorder.open(directory, start={"pid": 1})
    assert recorder.registry is not None
    counter = recorder.registry.series(name="seen", kind=Kind.COUNTER)
    for step in range(3):
        recorder.log({"a": step + 0.5, "b": -1.0, "c": float("nan"), "d": 1e300, "e": 2.0}, step=step)
        recorder.log({"lonely": 3.0}, step=step)
        recorder.point(counter, 1)
    recorder.log({"note": "a text of more than one slot of thirty-two bytes, that is certain"}, step=3)
    recorder.log({"a": 9.0, "f": 9.0}, step=4, options={"wandb": {"commit": False}})
    assert recorder.journal is not None
    recorder.journal.close()
    return directory


def items(directory: Path) -> list[Item]:
    """Every record that is no definition, points one by one."""
    stream = RecordStream(directory)
    found: list[Item] = []
    try:
        while (read := stream.read()) is not None:
            for item in read:
                if isinstance(item, Points):
                    names = [stream.series[index].name for index in item.index]
                    found += zip(
                        names,
                        item.steps.tolist(),
                        map(repr, item.values.tolist()),
                        item.positions.tolist(),
                        strict=True,
                    )
                else:
                    assert isinstance(item, Entry)
                    found.append((item.type, item.step, str(item.content), item.position))
    finally:
        stream.close()
    return found


def record_ends(directory: Path) -> list[int]:
    reader = JournalReader(directory)
    block = reader.read()
    reader.close()
    assert block is not None
    found = []
    for run in block.runs:
        length = run.stop - run.start if run.id and run.payload and run.kind == 3 else run.stride
        found += [HEADER_SLOTS + at for at in range(run.start + length, run.stop + 1, length)]
    return found


def test_cut_at_every_byte(journal: Path, tmp_path: Path) -> None:
    (segment,) = journal.glob("*.segment")
    data = segment.read_bytes()
    whole = items(journal)
    borders = record_ends(journal)
    assert len(whole) == 3 * 7 + 5
    copy = tmp_path / "copy"
    copy.mkdir()
    file = copy / segment.name
    for length in range(len(data), HEADER_SLOTS * SLOT - 1, -1):
        file.write_bytes(data[:length])
        border = max((b for b in borders if b * SLOT <= length), default=HEADER_SLOTS)
        expected = [item for item in whole if _slot(item) < border]
        assert items(copy) == expected, length


def _slot(item: Item) -> int:
    position = item[3]
    assert isinstance(position, int)
    return position & 0xFFFFFFFF


@pytest.mark.parametrize("half", [0, 1])
def test_half_a_slot_missing_anywhere_in_the_last_record(journal: Path, tmp_path: Path, half: int) -> None:
    """What memcpy had not stored when the process died is zero; the file is longer than what it holds."""
    (segment,) = journal.glob("*.segment")
    whole = items(journal)
    borders = record_ends(journal)
    for number, border in enumerate(borders):
        begin = borders[number - 1] if number else HEADER_SLOTS
        for slot in range(begin, border):
            copy = tmp_path / f"copy-{slot}"
            copy.mkdir()
            data = bytearray(segment.read_bytes()[: border * SLOT])
            at = slot * SLOT + half * 16
            if not any(data[at : at + 16]):
                continue  # only padding lies there
            data[at : at + 16] = bytes(16)
            size = struct.unpack_from("<I", data, 12)[0] * SLOT
            (copy / segment.name).write_bytes(bytes(data).ljust(size, b"\0"))
            expected = [item for item in whole if _slot(item) < begin]
            assert items(copy) == expected

            # The next writer cuts it and goes on; everything is there, in order.
            recorder = Recorder()
            recorder.open(copy)
            recorder.log({"after": 1.0}, step=7)
            recorder.close(RunStatus.FINISHED)
            found = items(copy)
            assert found[: len(expected)] == expected
            assert [item[0] for item in found[len(expected) :]] == [RecordType.START, "after", RecordType.END]
            assert (copy / segment.name).stat().st_size == begin * SLOT
            shutil.rmtree(copy)


def test_damage_inside_a_long_record_never_makes_points(journal: Path, tmp_path: Path) -> None:
    """A flipped bit of a payload, or noise behind the last record, ends the journal there."""
    (segment,) = journal.glob("*.segment")
    data = segment.read_bytes()
    whole = items(journal)
    borders = [HEADER_SLOTS, *record_ends(journal)]
    dice = random.Random(23)
    copy = tmp_path / "copy"
    copy.mkdir()
    for begin, border in itertools.pairwise(borders):
        for _ in range(min(12, 12 * (border - begin - 1))):
            damaged = bytearray(data)
            bit = dice.randrange((begin + 1) * SLOT * 8, border * SLOT * 8)
            damaged[bit // 8] ^= 1 << bit % 8
            (copy / segment.name).write_bytes(damaged)
            assert items(copy) == [item for item in whole if _slot(item) < begin]


@pytest.mark.parametrize("kind", [2, 3])
def test_noise_after_the_last_record_is_not_read(journal: Path, kind: int) -> None:
    (segment,) = journal.glob("*.segment")
    whole = items(journal)
    dice = random.Random(24)
    data = segment.read_bytes()
    for _ in range(50):
        noise = bytearray(dice.randbytes(dice.randrange(1, 20) * SLOT))
        noise[0] = noise[0] & 0xF0 | kind  # it begins like a row or a JSON record
        segment.write_bytes(data + noise)
        assert items(journal) == whole


@pytest.mark.parametrize("content", [b"", bytes(64), bytes(65_536)], ids=["empty", "a header", "all"])
def test_a_segment_that_never_reached_the_disk(journal: Path, content: bytes) -> None:
    """Its name did: the machine died in between, and what was made durable before is there."""
    whole = items(journal)
    (journal / segment_name(1)).write_bytes(content)
    assert items(journal) == whole
    assert [report.problems for report in verify(journal) if not report.whole] == [
        ["the machine died before it was on the disk"]
    ]
    recorder = Recorder()
    recorder.open(journal)
    recorder.log({"after": 1.0}, step=7)
    recorder.close(RunStatus.FINISHED)
    found = items(journal)
    assert found[: len(whole)] == whole
    assert [item[0] for item in found[len(whole) :]] == [RecordType.START, "after", RecordType.END]
    assert all(report.whole for report in verify(journal))


def test_a_damaged_header_and_another_version_are_refused(journal: Path) -> None:
    unseal(journal)
    (segment,) = journal.glob("*.segment")
    data = segment.read_bytes()
    for at, text in ((0, "does not begin"), (8, "version"), (20, "damaged"), (62, "damaged")):
        damaged = bytearray(data)
        damaged[at] ^= 0xFF
        segment.write_bytes(damaged)
        with pytest.raises(UnsupportedJournal, match=text):
            items(journal)
        with pytest.raises(UnsupportedJournal, match=text):
            Recorder().open(journal)
        assert segment.read_bytes() == damaged
    segment.write_bytes(data)
    Recorder().open(journal)
