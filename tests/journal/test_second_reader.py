"""A reader written from `docs/journal.md` alone finds what ours finds."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path

import google_crc32c

import otel_tracking as ot
from otel_tracking.journal.writer import JournalWriter
from otel_tracking.provider import TrackingMeterProvider
from otel_tracking.recorder import Recorder
from otel_tracking.records import RunStatus

Found = tuple[str, int, int, bytes]
"""tag, step, time, the value's bytes"""


def records(journal: Path) -> Iterator[tuple[int, int, int, int, bytes]]:
    """(kind, id, step, time, value or payload) of every record."""
    for path in sorted(journal.glob("*.segment")):
        data = path.read_bytes()
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


def test_it_finds_what_ours_finds(tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    for start in (0, 300):  # the second process defines its series anew
        record(journal, start=start)
    ours = ot.read_run(journal)
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
