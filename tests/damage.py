"""Ways to harm a journal."""

from __future__ import annotations

from pathlib import Path


def unseal(directory: Path) -> None:
    """Leave the segments below a directory as a kill does, before they are sealed."""
    for path in directory.rglob("*.seal"):
        path.unlink()


def flip(path: Path, bit: int) -> None:
    """Turn one bit of a file over."""
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)
