"""Reads `.wandb` files, those that are still being written too; the SDK has no reader of its own.

A `.wandb` file is LevelDB's log format after a header of 7 bytes: `:W&B`, 0xBEE1 and version 0
(little-endian). Blocks are 32 KiB, the first one counting the header. A block holds chunks: CRC32
of type and data (u32), length of the data (u16), type (u8), data; fewer than 7 bytes at its end are
padding. A record is one chunk of type 1, or chunks of types 2, 3, ..., 4. Its bytes are a protobuf
`Record`. wandb-core buffers what it writes, so a file can end anywhere in a chunk.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wandb.proto import wandb_internal_pb2

from otel_tracking.errors import TrackingError

_HEADER = b":W&B\xe1\xbe\x00"
_BLOCK = 32 * 1024
_BLOCKS_AT_ONCE = 32
_CHUNK = struct.Struct("<IHB")
_FULL, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4

# The generated module fills itself in at run time; type checkers see no names in it.
_Record: Any = wandb_internal_pb2.Record  # type: ignore[attr-defined]


class NotAWandbFile(TrackingError, ValueError):
    """The file's header is not that of a `.wandb` file of a known version."""


class WandbFile:
    """A `.wandb` file, read from its start and then on as it grows.

    Args:
        path: The file. It need not exist yet.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._offset = 0
        self._pieces: list[bytes] = []

    @property
    def torn(self) -> bool:
        """Whether the file, as far as it has been read, ends in the middle of a record.

        True for good if it is damaged there; while wandb-core is writing it may become whole.
        """
        return bool(self._pieces) or self._offset < self.path.stat().st_size

    def payloads(self) -> Iterator[bytes]:
        """The records that have become whole since the last call, as protobuf bytes.

        Raises:
            NotAWandbFile: The file is something else.
        """
        try:
            file = self.path.open("rb")
        except FileNotFoundError:
            return
        with file:
            if self._offset == 0:
                header = file.read(len(_HEADER))
                if header != _HEADER[: len(header)]:
                    raise NotAWandbFile(f"{self.path} is not a .wandb file of version 0: {header!r}")
                if len(header) < len(_HEADER):
                    return
                self._offset = len(_HEADER)
            before = -1
            while before != self._offset:
                before = self._offset
                file.seek(before)
                yield from self._records(file.read(_BLOCKS_AT_ONCE * _BLOCK - before % _BLOCK))

    def _records(self, data: bytes) -> Iterator[bytes]:
        """The records that end in `data`, which starts at the offset and ends a block, or the file."""
        at = 0
        while True:
            left = _BLOCK - self._offset % _BLOCK
            if left < _CHUNK.size:
                self._offset += left
                at += left
                continue
            if len(data) - at < _CHUNK.size:
                return
            checksum, length, kind = _CHUNK.unpack_from(data, at)
            start = at + _CHUNK.size
            piece = data[start : start + length]
            if len(piece) < length or zlib.crc32(piece, zlib.crc32(data[start - 1 : start])) != checksum:
                return
            if kind not in (_FULL, _FIRST, _MIDDLE, _LAST):
                return
            self._offset += _CHUNK.size + length
            at = start + length
            if kind in (_FULL, _FIRST):
                self._pieces.clear()
            self._pieces.append(piece)
            if kind in (_FULL, _LAST):
                record = b"".join(self._pieces)
                self._pieces.clear()
                yield record


def parse(payload: bytes) -> Any:
    """The protobuf `Record` of one payload."""
    return _Record.FromString(payload)


@dataclass(slots=True)
class WandbRun:
    """What one `.wandb` file holds."""

    history: list[dict[str, Any]] = field(default_factory=list)
    """Rows in order; a nested key's parts are joined by dots, as W&B's own exports do."""
    config: dict[str, Any] = field(default_factory=dict)
    """Without what W&B keeps under `_wandb`."""
    summary: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    """`define_metric` calls by name or glob, as protobuf `MetricRecord`."""
    run: Any = None
    """The last protobuf `RunRecord`: id, project, display name, group, tags; None if there is none."""
    exit_code: int | None = None
    """None while the run has not been finished."""
    alerts: list[tuple[str, str]] = field(default_factory=list)
    """Title and text of each alert."""


def read_wandb(path: Path) -> WandbRun:
    """Everything that is whole in a `.wandb` file, or in the only one of a run's directory.

    Args:
        path: The file, or the directory (`offline-run-...`) it lies in.
    """
    if path.is_dir():
        (path,) = path.glob("*.wandb")
    found = WandbRun()
    for payload in WandbFile(path).payloads():
        record = parse(payload)
        match record.WhichOneof("record_type"):
            case "history":
                found.history.append(_values(record.history.item))
            case "run":
                found.run = record.run
                _update_config(found.config, record.run.config)
            case "config":
                _update_config(found.config, record.config)
            case "summary":
                found.summary.update(_values(record.summary.update))
            case "metric":
                found.metrics[record.metric.name or record.metric.glob_name] = record.metric
            case "alert":
                found.alerts.append((record.alert.title, record.alert.text))
            case "exit":
                found.exit_code = record.exit.exit_code
    return found


def read_history(path: Path) -> list[dict[str, Any]]:
    """The history rows of a `.wandb` file, or of the only one in a run's directory, in order.

    Values are as stored: numbers (whole doubles as int), strings, None, lists and dicts.
    """
    return read_wandb(path).history


def _update_config(config: dict[str, Any], change: Any) -> None:
    config.update(_values(change.update))
    for removed in _values(change.remove):
        config.pop(removed, None)
    config.pop("_wandb", None)


def _values(items: Iterable[Any]) -> dict[str, Any]:
    return {
        ".".join(item.nested_key) if item.nested_key else item.key: parse_value(item.value_json)
        for item in items
    }


def parse_value(text: str) -> Any:
    """A value from W&B's JSON, which spells NaN and infinities out and writes -0.0 as `-0`."""
    return json.loads(text, parse_int=_integer) if text else None


def _integer(text: str) -> int | float:
    return -0.0 if text == "-0" else int(text)
