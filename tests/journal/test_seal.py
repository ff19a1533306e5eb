"""Sealed segments: damage is passed by, nothing is invented, and what is lost is counted to the point."""

from __future__ import annotations

import dataclasses
import itertools
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from otel_tracking import rows
from otel_tracking.journal import seal
from otel_tracking.journal.compressed import FORMS
from otel_tracking.journal.format import HEADER_SLOTS, SLOT, RecordType, position, segment_name
from otel_tracking.journal.reader import PointCounter
from otel_tracking.journal.seal import BLOCK_SLOTS, Seal, seal_name
from otel_tracking.journal.stream import Points, RecordStream
from otel_tracking.journal.verifying import SegmentReport, mend, verify
from otel_tracking.reading import read_run
from otel_tracking.recorder import Recorder
from otel_tracking.records import Kind, RunStatus
from tests.damage import flip, unseal

Item = tuple[object, ...]
SEGMENT_SLOTS = 5 * BLOCK_SLOTS


@pytest.fixture(autouse=True)
def small_are_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As large ones are."""
    monkeypatch.setitem(FORMS, "pack", dataclasses.replace(FORMS["pack"], smallest=0))


@pytest.fixture(params=["off", *FORMS])
def journal(request: pytest.FixtureRequest, tmp_path: Path, small_segments: Callable[[int], None]) -> Path:
    """Two processes' segments of several blocks each, with every kind of record all over them."""
    small_segments(SEGMENT_SLOTS)
    return record(tmp_path, compress=request.param)


@pytest.fixture
def plain(tmp_path: Path, small_segments: Callable[[int], None]) -> Path:
    """The same, not compressed."""
    small_segments(SEGMENT_SLOTS)
    return record(tmp_path, compress="off")


def record(tmp_path: Path, *, compress: str, steps: int = 2500) -> Path:
    dice = random.Random(1)
    directory = tmp_path / "run" / "journal" / "rank-00000"
    for process in range(2):
        recorder = Recorder()
        recorder.compress = compress
        recorder.open(directory, start={"pid": process})
        assert recorder.registry is not None
        # The other process gives the same ids to other series.
        names = [f"{process}-{n}" for n in range(40)]
        dice.shuffle(names)
        counter = recorder.registry.series(name="counter", kind=Kind.COUNTER)
        for step in range(steps):
            recorder.log({name: dice.random() for name in names[: dice.randrange(1, 41)]}, step=step)
            recorder.log({names[0]: dice.random()})
            recorder.point(counter, 2)
            if not step % (steps // 5):
                recorder.text("note", "x" * dice.randrange(100_000), step=step)
        recorder.close(RunStatus.FINISHED)
    return directory


def items(directory: Path) -> tuple[list[Item], int, int]:
    """Every record that is no definition, points one by one; how many points and texts are lost."""
    stream = RecordStream(directory)
    found: list[Item] = []
    lost = texts = 0
    try:
        while (read := stream.read()) is not None:
            for item in read:
                if isinstance(item, Points):
                    names = [stream.series[index].name for index in item.index]
                    columns = (item.positions, item.steps, item.times, item.increments, item.flags)
                    found += zip(*(column.tolist() for column in columns), names, strict=True)
                elif item.type == RecordType.GONE:
                    lost += item.content["points"]
                    texts += item.content["texts"]
                else:
                    found.append((item.position, item.step, item.time, item.type, str(item.content)))
    finally:
        stream.close()
    return found, lost, texts


def counted(directory: Path) -> int:
    counter = PointCounter(directory)
    try:
        return counter.count()
    finally:
        counter.close()


def is_point(item: Item) -> bool:
    return not isinstance(item[3], RecordType)


def is_text(item: Item) -> bool:
    return item[3] is RecordType.TEXT


def place(item: Item) -> int:
    assert isinstance(item[0], int)
    return item[0]


def reports(directory: Path) -> list[SegmentReport]:
    return [report for report in verify(directory) if not report.whole]


@pytest.fixture
def opened(journal: Path) -> Iterator[int]:
    directory = os.open(journal, os.O_RDONLY)
    yield directory
    os.close(directory)


def test_all_is_sealed_and_whole(journal: Path, opened: int) -> None:
    segments = sorted(journal.glob("*.segment*"))
    assert len(segments) >= 6
    whole, lost, texts = items(journal)
    assert (lost, texts) == (0, 0)
    for index, segment in enumerate(segments):
        sealed = seal.load(opened, index)
        assert sealed is not None
        assert sealed.slots * SLOT == segment.stat().st_size or segment.suffix != ".segment"
    assert counted(journal) == sum(map(is_point, whole)) > 2 * 2500 * 20
    assert reports(journal) == []
    unseal(journal)
    assert items(journal)[0] == whole
    assert counted(journal) == sum(map(is_point, whole))
    assert reports(journal) == []


@pytest.mark.parametrize("compress", ["off", *FORMS])
def test_flipped_bits(
    tmp_path: Path,
    small_segments: Callable[[int], None],
    size: Callable[[int, int], int],
    compress: str,
) -> None:
    """Each is found, and takes nothing but what touches its block."""
    small_segments(SEGMENT_SLOTS)
    journal = record(tmp_path, compress=compress, steps=800)
    dice = random.Random(2)
    segments = sorted(journal.glob("*.segment*"))
    whole, _, _ = items(journal)
    points = sum(map(is_point, whole))
    lossy = 0
    for _ in range(size(40, 2000)):
        index = dice.randrange(len(segments))
        segment = segments[index]
        bit = dice.randrange(segment.stat().st_size * 8)
        block = bit // 8 // SLOT // BLOCK_SLOTS
        flip(segment, bit)
        found, lost, texts = items(journal)
        missing = set(whole) - set(found)
        assert found == [item for item in whole if item not in missing], "invented, or in another order"
        assert lost == sum(map(is_point, missing))
        assert texts == sum(map(is_text, missing))
        assert all(is_point(item) or item[3] in (RecordType.TEXT, RecordType.OPTIONS) for item in missing)
        damaged = reports(journal)
        if not damaged:  # zstd has bits that change nothing
            assert segment.suffix == ".zst"
            assert found == whole
            flip(segment, bit)
            continue
        (report,) = damaged
        assert report.index == index
        assert (report.lost, report.lost_texts) == (lost, texts)
        assert report.damaged_blocks == [block] or segment.suffix != ".segment"
        assert len(report.damaged_blocks) == 1 or report.problems
        for item in missing:
            (block,) = report.damaged_blocks
            # Of a long record the beginning may lie in a block before.
            begin = position(index, block * BLOCK_SLOTS)
            assert place(item) < begin + BLOCK_SLOTS
            assert place(item) >= begin or is_text(item) or begin - place(item) < 12
        assert counted(journal) == points
        assert read_run(journal).damaged == lost
        lossy += bool(lost or texts)
        flip(segment, bit)
    assert lossy > 20
    assert items(journal)[0] == whole


def test_damage_in_many_places_at_once(journal: Path) -> None:
    dice = random.Random(3)
    whole, _, _ = items(journal)
    for segment in journal.glob("*.segment*"):
        for _ in range(3):
            flip(segment, dice.randrange(segment.stat().st_size * 8))
    found, lost, texts = items(journal)
    missing = set(whole) - set(found)
    assert found == [item for item in whole if item not in missing]
    assert lost == sum(map(is_point, missing)) > 0
    assert texts == sum(map(is_text, missing))
    assert counted(journal) == sum(map(is_point, whole))


def test_a_damaged_seal_is_as_good_as_none(journal: Path) -> None:
    dice = random.Random(4)
    whole, _, _ = items(journal)
    path = journal / seal_name(3)
    for _ in range(40):
        bit = dice.randrange(path.stat().st_size * 8)
        flip(path, bit)
        assert items(journal) == (whole, 0, 0)
        (report,) = reports(journal)
        assert report.problems == ["its seal is damaged"]
        flip(path, bit)
    data = path.read_bytes()
    for size in range(0, len(data), 7):
        assert Seal.unpack(data[:size]) is None
    path.write_bytes(data[:100])
    mend(journal)
    assert path.read_bytes() == data
    assert reports(journal) == []


def test_the_next_process_does_not_cut_a_damaged_segment(journal: Path) -> None:
    last = sorted(journal.glob("*.segment*"))[-1]
    before = last.stat().st_size
    flip(last, before // 2 * 8)
    lost = items(journal)[1]
    recorder = Recorder()
    recorder.compress = "off"
    recorder.open(journal)
    recorder.log({"after": 1.0}, step=1)
    recorder.close(RunStatus.FINISHED)
    found, lost_now, _ = items(journal)
    assert lost_now == lost > 0
    assert last.stat().st_size == before
    assert found[-2][5] == "after"


@pytest.mark.parametrize("compress", FORMS)
def test_what_is_damaged_is_so_in_another_form(plain: Path, compress: str) -> None:
    flipped, cut, *_ = sorted(plain.glob("*.segment"))
    flip(flipped, flipped.stat().st_size // 2 * 8)
    cut.write_bytes(cut.read_bytes()[:-100_000])
    before = items(plain)
    recorder = Recorder()
    recorder.compress = compress
    recorder.open(plain)
    recorder.close(RunStatus.FINISHED)
    assert not list(plain.glob("*.segment"))
    after = items(plain)
    assert after[0][: len(before[0])] == before[0]
    assert after[1:] == before[1:]
    assert before[1] > 0


def test_a_sealed_segment_cut_anywhere_keeps_what_is_whole(plain: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in plain.iterdir():
        if path.stem in ("00000000", "00000001"):
            shutil.copy(path, copy)
    whole, _, _ = items(copy)
    segment = copy / segment_name(1)
    data = segment.read_bytes()
    dice = random.Random(5)
    for size in [0, 1, 63, 64, 65, *(dice.randrange(len(data)) for _ in range(60)), len(data) - 1]:
        segment.write_bytes(data[:size])
        found, lost, texts = items(copy)
        missing = set(whole) - set(found)
        assert found == [item for item in whole if item not in missing]
        assert lost == sum(map(is_point, missing))
        assert texts == sum(map(is_text, missing))
        # A row of 40 takes eleven slots: what begins twelve before the cut is whole.
        assert all(place(item) >= position(1, max(0, size // SLOT - 12)) or is_text(item) for item in missing)


@pytest.mark.parametrize("compress", FORMS)
def test_a_compressed_segment_cut_anywhere_or_gone(
    tmp_path: Path, small_segments: Callable[[int], None], compress: str
) -> None:
    small_segments(SEGMENT_SLOTS)
    journal = record(tmp_path, compress=compress)
    whole, _, _ = items(journal)
    segment = journal / (segment_name(1) + FORMS[compress].suffix)
    data = segment.read_bytes()
    dice = random.Random(6)
    for size in [0, 1, 64, *(dice.randrange(len(data)) for _ in range(20)), len(data) - 1]:
        segment.write_bytes(data[:size])
        found, lost, texts = items(journal)
        missing = set(whole) - set(found)
        assert found == [item for item in whole if item not in missing]
        assert lost == sum(map(is_point, missing))
        assert texts == sum(map(is_text, missing))
        assert {place(item) >> 32 for item in missing} <= {1}
        assert [report.index for report in reports(journal)] == [1]
    assert not missing


@pytest.mark.parametrize("compress", FORMS)
def test_a_compressed_journal_is_small(
    tmp_path: Path, compress: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At times that are some microseconds apart: in a block with a pause in it each takes two bytes more."""
    times = itertools.accumulate(random.Random(8).randrange(300, 30_000) for _ in itertools.count())
    monkeypatch.setattr(rows, "_time_ns", lambda: 10**18 + next(times))
    recorder = Recorder()
    recorder.compress = compress
    recorder.open(tmp_path / "journal")
    dice = random.Random(7)
    for step in range(300_000):
        recorder.log({"loss": dice.random()}, step=step)
    recorder.close(RunStatus.FINISHED)
    assert not list(tmp_path.rglob("*.segment"))
    size = sum(path.stat().st_size for path in (tmp_path / "journal").iterdir())
    assert size / 300_000 < 12
    run = read_run(tmp_path / "journal")
    assert run.steps.tolist() == list(range(300_000))
    assert run.values.tolist() == [dice.random() for dice in [random.Random(7)] for _ in range(300_000)]
    # The next process goes on, whether it compresses or not; one that was killed in between leaves both.
    compressed = next((tmp_path / "journal").glob(f"*{FORMS[compress].suffix}"))
    compressed.with_suffix("").write_bytes(b"")
    recorder = Recorder()
    recorder.open(tmp_path / "journal")
    assert not compressed.with_suffix("").exists()
    recorder.log({"loss": 1.0}, step=5)
    recorder.close(RunStatus.FINISHED)
    assert len(read_run(tmp_path / "journal")) == 300_001


def test_points_whose_series_is_not_known_go_to_no_other(plain: Path) -> None:
    whole, _, _ = items(plain)
    start = [item for item in whole if item[3] is RecordType.START][1]
    index = place(start) >> 32  # where the second process defines its series, under ids of the first one's
    (plain / seal_name(index)).unlink()
    segment = plain / segment_name(index)
    data = bytearray(segment.read_bytes())
    slot = HEADER_SLOTS * SLOT
    while int.from_bytes(data[slot : slot + 4], "little") != (RecordType.SERIES << 4 | 3):
        slot += SLOT
    data[slot : slot + 4] = (RecordType.TEXT << 4 | 3).to_bytes(4, "little")
    content = data[slot + SLOT :]
    assert content.startswith(b'{"id":')
    segment.write_bytes(data)
    found, lost, _ = items(plain)
    missing = {item for item in whole if is_point(item)} - set(found)
    assert {item for item in found if is_point(item)} <= set(whole)
    assert lost == len(missing) > 0


def test_a_segment_that_is_missing_is_named_and_passed(journal: Path) -> None:
    whole, _, _ = items(journal)
    for path in journal.glob("00000001.*"):
        path.unlink()
    found, lost, _ = items(journal)
    before = [item for item in whole if place(item) >> 32 == 0]
    assert found[: len(before)] == before
    # What it defined is gone: points of such series would be lost, and go to no other.
    assert set(found) <= set(whole)
    assert lost == sum(map(is_point, (item for item in whole if place(item) >> 32 > 1))) - sum(
        map(is_point, found[len(before) :])
    )
    assert place(found[-1]) == place(whole[-1])
    (report,) = reports(journal)
    assert (report.index, report.problems) == (1, ["is missing"])
