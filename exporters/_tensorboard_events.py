"""Event records, as TensorBoard's files hold them: encoded a batch at a time, and read back.

A file is a sequence of TFRecords: payload length (uint64), masked CRC32C of the length, payload,
masked CRC32C of the payload. A payload is an `Event` protobuf. Events of ours begin with a field of
our own, the journal position, which every reader of protobufs skips; it tells, after a kill, which
points are stored. One journal row is one event, so that no row is ever stored in half.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator, Sequence
from typing import TypeAlias

import google_crc32c
import numpy as np
import numpy.typing as npt
from tensorboard.compat.proto.event_pb2 import Event  # type: ignore[import-untyped]

from otel_tracking.records import Float64Array, Int64Array

_Bytes: TypeAlias = npt.NDArray[np.uint8]
_Layout: TypeAlias = tuple[npt.NDArray[np.intp], _Bytes, npt.NDArray[np.int64]]

# Field 1900 of Event, fixed64: far from what TensorFlow numbers, and a tag of two bytes. Written
# first: a payload that begins with these bytes can't be anybody else's, because protobuf
# serializers put the fields they don't know last.
_POSITION = struct.Struct("<2sq")
_POSITION_TAG = bytes([0xE1, 0x76])
_HEADER = struct.Struct("<QI")
_HEADER_SIZE = _HEADER.size
_FOOTER_SIZE = 4
_WALL_TAG, _STEP_TAG = 0x09, 0x10
_WALL_AT = _POSITION.size + 1
_STEP_AT = _WALL_AT + 9


def stamp(position: int) -> bytes:
    """The field that an event of ours begins with; an `Event` serialized after it completes the payload."""
    return _POSITION.pack(_POSITION_TAG, position)


def position_of(payload: bytes) -> int:
    """The journal position that an event carries; 0 for an event that is not ours."""
    if not payload.startswith(_POSITION_TAG) or len(payload) < _POSITION.size:
        return 0
    position: int = _POSITION.unpack_from(payload)[1]
    return position


def step_of(payload: bytes) -> int:
    """The step of an event, ours or not."""
    if position_of(payload) and payload[_POSITION.size] == _WALL_TAG:
        # Fields in the order of their numbers: the wall time, then the step, which a 0 leaves out.
        if len(payload) < _STEP_AT or payload[_STEP_AT - 1] != _STEP_TAG:
            return 0
        step = 0
        for place, digit in enumerate(payload[_STEP_AT : _STEP_AT + 10]):
            step |= (digit & 0x7F) << 7 * place
            if digit < 0x80:
                break
        step &= 2**64 - 1
        return step - 2**64 if step >> 63 else step
    return int(Event.FromString(payload).step)


def frame(payload: bytes) -> bytes:
    """One TFRecord."""
    return _header(len(payload)) + payload + struct.pack("<I", _masked(payload))


def records(data: bytes | mmap.mmap, start: int = 0) -> Iterator[tuple[int, bytes]]:
    """Read whole records, in order, up to the first one that is torn or damaged.

    Args:
        data: What a file holds.
        start: Where a record begins.

    Yields:
        Where the record ends, and its payload.
    """
    while len(data) - start >= _HEADER_SIZE:
        length, length_crc = _HEADER.unpack_from(data, start)
        body = start + _HEADER_SIZE
        end = body + length + _FOOTER_SIZE
        if _masked(data[start : start + 8]) != length_crc or end > len(data):
            return
        payload = data[body : body + length]
        if struct.unpack_from("<I", data, body + length)[0] != _masked(payload):
            return
        yield end, payload
        start = end


def scalar(tag: str, metadata: bytes = b"") -> bytes:
    """A `Summary.value` field whose last four bytes are the number, zero here.

    Args:
        tag: The series' name, without lone surrogates.
        metadata: A serialized `SummaryMetadata`; TensorBoard heeds a tag's first one alone.
    """
    name = tag.encode()
    about = b"\x4a" + _varint(len(metadata)) + metadata if metadata else b""
    value = about + b"\x0a" + _varint(len(name)) + name + b"\x15\0\0\0\0"
    return b"\x0a" + _varint(len(value)) + value


def encode_rows(
    scalars: Sequence[bytes],
    index: npt.NDArray[np.int32],
    steps: Int64Array,
    walls: Float64Array,
    values: npt.NDArray[np.float32],
    positions: Int64Array,
) -> bytes:
    """Encode n points, in their order, as one record for each row.

    A row is a run of points that share position, step and time. Rows alike in layout are filled in
    together by NumPy; what is left a row is one call of the C checksum and a join.

    Args:
        scalars: What `scalar` made, one for each series.
        index: (n,) which of `scalars` each point belongs to.
        steps: (n,) any int64.
        walls: (n,) seconds since the epoch.
        values: (n,) the numbers.
        positions: (n,) journal positions.
    """
    cuts = (np.diff(positions) != 0) | (np.diff(steps) != 0) | (np.diff(walls) != 0)
    starts = np.concatenate(([0], np.flatnonzero(cuts) + 1))
    sizes = np.diff(starts, append=len(index))
    heads = _heads(steps[starts], walls[starts], positions[starts])
    parts = np.empty((len(starts), 3), dtype=object)
    sums = np.empty(len(starts), dtype=np.uint32)
    for size in np.unique(sizes).tolist():
        rows = np.flatnonzero(sizes == size)
        points = starts[rows, None] + np.arange(size)
        for of_layout, summaries, numbers_at in _layouts(scalars, index[points]):
            same = rows[of_layout]
            block = np.concatenate((heads[same], summaries), axis=1)
            numbers = np.ascontiguousarray(values[points[of_layout]], dtype="<f4")
            block[:, heads.shape[1] + numbers_at] = numbers.view(np.uint8)
            payloads = block.view(f"V{block.shape[1]}").ravel().tolist()
            parts[same, 0] = _header(block.shape[1])
            parts[same, 1] = np.array(payloads, dtype=object)
            sums[same] = np.fromiter(map(google_crc32c.value, payloads), np.uint32, len(payloads))
    masked = ((sums >> 15) | (sums << 17)) + np.uint32(0xA282EAD8)
    parts[:, 2] = np.array(masked.astype("<u4").view("V4").tolist(), dtype=object)
    return b"".join(parts.ravel().tolist())


def _layouts(scalars: Sequence[bytes], columns: npt.NDArray[np.int32]) -> Iterator[_Layout]:
    """Tell rows (m, k) of one size apart by layout.

    Yields:
        Which rows, their `Event.summary` fields (rows, length), and which columns of these hold the
        numbers, four bytes each.
    """
    if columns.shape[1] == 1:
        yield from _single_layouts(scalars, columns[:, 0])
        return
    if (columns == columns[0]).all():
        kinds, kind_of = columns[:1], np.zeros(len(columns), dtype=np.intp)
    else:
        kinds, kind_of = np.unique(columns, axis=0, return_inverse=True)
    order = np.argsort(kind_of.ravel(), kind="stable")
    bounds = np.cumsum(np.bincount(kind_of.ravel()))[:-1]
    for kind, rows in zip(kinds.tolist(), np.split(order, bounds), strict=True):
        row = [scalars[series] for series in kind]
        summary, prefix = _summaries([b"".join(row)])
        ends = prefix + np.cumsum([len(value) for value in row])
        yield rows, np.broadcast_to(summary, (len(rows), summary.shape[1])), _numbers_at(ends)


def _single_layouts(scalars: Sequence[bytes], series: npt.NDArray[np.int32]) -> Iterator[_Layout]:
    # Rows of one point are many and of many series: series of one length share a block.
    lengths = np.array([len(value) for value in scalars])
    length_of = lengths[series]
    for length in np.unique(length_of).tolist():
        rows = np.flatnonzero(length_of == length)
        alike = np.flatnonzero(lengths == length)
        summaries, prefix = _summaries([scalars[i] for i in alike.tolist()])
        of_row = np.searchsorted(alike, series[rows])
        yield rows, summaries[of_row], _numbers_at(np.array([prefix + length]))


def _summaries(values: Sequence[bytes]) -> tuple[_Bytes, int]:
    """`Event.summary` fields of one length (n, length), and the length of what comes before the values."""
    prefix = b"\x2a" + _varint(len(values[0]))
    joined = b"".join(prefix + value for value in values)
    return np.frombuffer(joined, np.uint8).reshape(len(values), -1), len(prefix)


def _numbers_at(ends: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    return (ends[:, None] + np.arange(-4, 0)).ravel()


def _heads(steps: Int64Array, walls: Float64Array, positions: Int64Array) -> _Bytes:
    """(rows, length) what an event begins with: position, wall time and step, of one width for all."""
    bits = 64 if steps.min() < 0 else int(steps.max()).bit_length()
    width = max(1, -(-bits // 7))
    heads = np.empty((len(steps), _STEP_AT + width), dtype=np.uint8)
    heads[:, :2] = np.frombuffer(_POSITION_TAG, np.uint8)
    heads[:, 2 : _POSITION.size] = positions.astype("<i8")[:, None].view(np.uint8)
    heads[:, _POSITION.size] = _WALL_TAG
    heads[:, _WALL_AT : _STEP_AT - 1] = walls.astype("<f8")[:, None].view(np.uint8)
    heads[:, _STEP_AT - 1] = _STEP_TAG
    # A varint may be longer than it need be, so small steps are padded to the largest one's width.
    digits = steps.astype(np.uint64)[:, None] >> np.arange(0, 7 * width, 7, dtype=np.uint64)
    heads[:, _STEP_AT:] = (digits & np.uint64(0x7F)) | np.uint64(0x80)
    heads[:, -1] &= 0x7F
    return heads


def _header(length: int) -> bytes:
    packed = length.to_bytes(8, "little")
    return packed + struct.pack("<I", _masked(packed))


def _masked(data: bytes) -> int:
    crc: int = google_crc32c.value(data)
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def _varint(number: int) -> bytes:
    digits = bytearray()
    while number > 0x7F:
        digits.append(number & 0x7F | 0x80)
        number >>= 7
    digits.append(number)
    return bytes(digits)
