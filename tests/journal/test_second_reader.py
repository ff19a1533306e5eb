"""A reader written from `docs/journal.md` alone finds what ours finds."""

from __future__ import annotations

import dataclasses
import json
import struct
from collections.abc import Iterator
from pathlib import Path

import google_crc32c
import pytest

import otel_tracking as ot
from otel_tracking.journal.compressed import FORMS
from otel_tracking.journal.writer import JournalWriter
from otel_tracking.provider import TrackingMeterProvider
from otel_tracking.recorder import Recorder
from otel_tracking.records import RunStatus

Found = tuple[str, int, int, bytes]
"""tag, step, time, the value's bytes"""


def records(journal: Path) -> Iterator[tuple[int, int, int, int, bytes]]:
    """(kind, id, step, time, value or payload) of every record."""
    paths = {
        path.name[:8]: path for pattern in ("packed", "segment") for path in journal.glob(f"*.{pattern}")
    }
    for _, path in sorted(paths.items()):
        data = unpacked(path.read_bytes()) if path.suffix == ".packed" else path.read_bytes()
        magic, version, _, index = struct.unpack_from("<8sIIQ", data)
        (crc,) = struct.unpack_from("<I", data, 60)
        assert (magic, version) == (b"OTELTRK\0", 1)
        assert index == int(path.name.split(".")[0])
        assert crc == google_crc32c.value(data[:60])
        at = 64
        while at + 32 <= len(data):
            word, step, time, tail = struct.unpack_from("<Qqq8s", data, at)
            kind, id_, upper = word & 15, word >> 4 & 0xFFFFFFF, word >> 32
            if not word or not time or kind == 15:
                break
            if kind == 1:
                yield kind, id_, step, time, tail
                at += 32
                continue
            slots = data[at + 32 : at + 32 + -(-upper // 32) * 32]
            if google_crc32c.value(slots) != struct.unpack("<II", tail)[0]:
                break
            yield kind, id_, step, time, slots[:upper]
            at += 32 + len(slots)


def unpacked(data: bytes) -> bytes:
    """The slots of a packed segment."""
    magic, version, blocks, _, slots = struct.unpack_from("<8sIIQQ", data)
    table_crc, crc = struct.unpack_from("<II", data, 56)
    assert (magic, version, crc) == (b"OTELPAK\0", 1, google_crc32c.value(data[:60]))
    table = data[64 : 64 + 8 * (blocks + 1)]
    assert table_crc == google_crc32c.value(table)
    assert data.endswith(table + data[:64])
    offsets = struct.unpack(f"<{blocks + 1}Q", table)
    found = b""
    for number in range(blocks):
        block = data[offsets[number] : offsets[number + 1]]
        assert struct.unpack_from("<I", block)[0] == google_crc32c.value(block[4:])
        period = block[4]
        groups = min(2048, slots - 2048 * number) // period
        widths = block[8 : 8 + 4 * period]
        at = 8 + 4 * period
        columns = []
        for width in widths:
            if width == 8:
                columns.append(list(struct.unpack_from(f"<{groups}Q", block, at)))
                at += 8 * groups
                continue
            word, least = struct.unpack_from("<qq", block, at)
            at += 16
            columns.append([word % 2**64])
            for _ in range(groups - 1):
                word += least + int.from_bytes(block[at : at + width], "little")
                columns[-1].append(word % 2**64)
                at += width
        found += (
            b"".join(struct.pack(f"<{4 * period}Q", *words) for words in zip(*columns, strict=True))
            + block[at:]
        )
    assert len(found) == 32 * slots
    return found


def read(journal: Path) -> list[Found]:
    series: dict[int, dict[str, object]] = {}
    shapes: dict[int, list[int]] = {}
    sums: dict[str, float] = {}
    found: list[Found] = []

    def add(id_: int, step: int, time: int, value: bytes) -> None:
        tag = str(series[id_]["tag"])
        if series[id_]["kind"] in ("counter", "updowncounter"):
            sums[tag] = sums.get(tag, 0.0) + struct.unpack("<d", value)[0]
            value = struct.pack("<d", sums[tag])
        found.append((tag, step, time, value))

    for kind, id_, step, time, content in records(journal):
        if kind == 1:
            add(id_, step, time, content)
        elif kind == 2:
            for column, at in zip(shapes[id_], range(0, len(content), 8), strict=True):
                add(column, step, time, content[at : at + 8])
        elif id_ in (1, 2):
            definition = json.loads(content)
            if id_ == 1:
                series[definition["id"]] = definition
            else:
                shapes[definition["id"]] = definition["series"]
    return found


def record(journal: Path, *, start: int) -> None:
    recorder = Recorder()
    recorder.opener = lambda r: r.open(journal)
    meter = TrackingMeterProvider(recorder).get_meter("train")
    loss, tokens = meter.create_gauge("loss"), meter.create_counter("tokens")
    change = meter.create_up_down_counter("change")
    for step in range(start, start + 300):
        recorder.log({"a": step / 3, "b": -0.0, "c": {"d": float("nan")}}, step=step)
        loss.set(step / 7, {"training.step": step, "class": "cat"})
        tokens.add(0.1, {"training.step": -step})
        change.add(-step, {"training.step": step, "fold": True})
        recorder.log({"text": "é\ud800", "e": 1.5}, step=step, options={"wandb": {"commit": False}})
        loss.set(1.0)
    recorder.close(RunStatus.FINISHED)


@pytest.mark.parametrize("smallest", [0, 2**20], ids=["packed", "plain"])
def test_it_finds_what_ours_finds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, smallest: int) -> None:
    monkeypatch.setitem(FORMS, "pack", dataclasses.replace(FORMS["pack"], smallest=smallest))
    journal = tmp_path / "journal"
    for start in (0, 300):  # the second process defines its series anew
        record(journal, start=start)
    ours = ot.read_run(journal)
    assert bool(list(journal.glob("*.packed"))) == (smallest == 0)
    values = [struct.pack("<d", value) for value in ours.values.tolist()]
    expected = list(zip(ours["tag"], ours.steps.tolist(), ours.times.tolist(), values, strict=True))
    assert len(expected) == 2 * 300 * 8
    assert read(journal) == expected


def test_it_reads_a_journal_that_is_being_written(tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    record(journal, start=0)
    before = read(journal)
    writer = JournalWriter(journal)
    try:
        assert read(journal) == before
    finally:
        writer.close()
