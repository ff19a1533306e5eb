"""The reader of `.wandb` files: framing, growth, damage."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import pytest

from otel_tracking_exporters._wandb_file import NotAWandbFile, WandbFile, parse_value, read_history

HEADER = b":W&B\xe1\xbe\x00"
BLOCK = 32 * 1024


def framed(records: list[bytes]) -> bytes:
    """Records as wandb-core lays them out."""
    out = bytearray(HEADER)
    for record in records:
        rest, first = record, True
        while first or rest:
            left = BLOCK - len(out) % BLOCK
            if left < 7:
                out += bytes(left)
                continue
            piece, rest = rest[: left - 7], rest[left - 7 :]
            kind = (1 if first else 4) if not rest else (2 if first else 3)
            crc = zlib.crc32(piece, zlib.crc32(bytes([kind])))
            out += struct.pack("<IHB", crc, len(piece), kind) + piece
            first = False
    return bytes(out)


# Chunks that end on a block's last byte, leave 1 to 6 bytes of padding, or leave 7 for an empty first piece.
SIZES = [
    [0, 1, 2],
    [BLOCK - 7 - 7, 5],
    *([BLOCK - 7 - 7 - pad, 5] for pad in range(1, 9)),
    [3 * BLOCK, 10, 40 * BLOCK, 1],
]


@pytest.mark.parametrize("sizes", SIZES)
def test_records_of_every_framing_come_back(tmp_path: Path, sizes: list[int]) -> None:
    records = [bytes([65 + n]) * size for n, size in enumerate(sizes)]
    path = tmp_path / "run.wandb"
    path.write_bytes(framed(records))
    file = WandbFile(path)
    assert list(file.payloads()) == records
    assert not file.torn
    assert list(file.payloads()) == []


def test_a_growing_file_is_read_once_and_never_in_part(tmp_path: Path) -> None:
    records = [bytes([n % 251]) * (n * 97 % 20_000) for n in range(1, 60)]
    whole = framed(records)
    path = tmp_path / "run.wandb"
    file = WandbFile(path)
    assert list(file.payloads()) == []  # before wandb-core has made it
    seen: list[bytes] = []
    for end in [*range(0, len(whole), 4_099), len(whole)]:
        path.write_bytes(whole[:end])
        seen += file.payloads()
        assert seen == records[: len(seen)]
    assert seen == records


def test_abandoned_iteration_goes_on_where_it_stopped(tmp_path: Path) -> None:
    path = tmp_path / "run.wandb"
    path.write_bytes(framed([b"a", b"b", b"c"]))
    file = WandbFile(path)
    assert next(file.payloads()) == b"a"
    assert list(file.payloads()) == [b"b", b"c"]


@pytest.mark.parametrize("damage", ["cut", "flipped", "zeros"])
def test_what_follows_damage_is_not_made_up(tmp_path: Path, damage: str) -> None:
    whole = bytearray(framed([b"first", b"second" * 9]))
    if damage == "cut":
        del whole[-1]
    elif damage == "flipped":
        whole[-1] ^= 1
    else:
        whole[-61:] = bytes(61)
    path = tmp_path / "run.wandb"
    path.write_bytes(whole)
    file = WandbFile(path)
    assert list(file.payloads()) == [b"first"]
    assert file.torn


def test_another_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.wandb"
    path.write_bytes(b"PK\x03\x04 and so on")
    with pytest.raises(NotAWandbFile, match=r"not a \.wandb file"):
        read_history(path)


def test_negative_zero_keeps_its_sign() -> None:
    assert str(parse_value("-0")) == "-0.0"
    assert parse_value("-7") == -7
