"""Parquet, by pyarrow (the extra `parquet`): texts as dictionaries, numbers as they lie in memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from otel_tracking.export.blocks import COLUMNS, Block, attributes_of, blocks
from otel_tracking.records import Series

_TEXT: Final = pa.dictionary(pa.int32(), pa.string())
_NUMBERS: Final = {"rank": pa.int32(), "step": pa.int64(), "time_ns": pa.int64(), "value": pa.float64()}
_SCHEMA: Final = pa.schema([(name, _NUMBERS.get(name, _TEXT)) for name in COLUMNS])
_TEXTS: Final[dict[str, Callable[[Series], str]]] = {
    "name": lambda series: series.name,
    "tag": lambda series: series.tag,
    "attributes": attributes_of,
    "kind": lambda series: series.kind.value,
    "unit": lambda series: series.unit,
}


def write_parquet(run: Path, run_id: str, file: IO[bytes]) -> None:
    """Write a run's points, a row group a block.

    Args:
        run: As for `read_run`.
        run_id: What the column of that name holds.
        file: To write to.
    """
    # Numbers hardly repeat: trying to find those that do costs more than it saves.
    texts = [name for name in COLUMNS if name not in _NUMBERS]
    with pq.ParquetWriter(
        file, _SCHEMA, compression="zstd", compression_level=1, use_dictionary=texts
    ) as writer:
        for block in blocks(run):
            writer.write_batch(_batch(block, run_id))


def _batch(block: Block, run_id: str) -> pa.RecordBatch:
    points = block.points
    columns = {
        "run_id": _texts(np.zeros(len(points), np.int32), [run_id]),
        "rank": np.full(len(points), block.rank, np.int32),
        "step": points.steps,
        "time_ns": points.times,
        "value": points.values,
    }
    ids = [span.ids for span in points.enclosing]
    for place, name in enumerate(("trace_id", "span_id")):
        columns[name] = _texts(points.inside, [of[place] for of in ids], missing=points.inside < 0)
    for name, text in _TEXTS.items():
        columns[name] = _texts(points.index, [_utf8(text(series)) for series in block.series])
    return pa.RecordBatch.from_arrays(
        [pa.array(columns[name], _SCHEMA.field(name).type) for name in COLUMNS], schema=_SCHEMA
    )


def _texts(
    index: npt.NDArray[np.int32], texts: Sequence[str], *, missing: npt.NDArray[np.bool_] | None = None
) -> pa.DictionaryArray:
    return pa.DictionaryArray.from_arrays(
        pa.array(index, pa.int32(), mask=missing), pa.array(texts, pa.string())
    )


def _utf8(text: str) -> str:
    """Without lone surrogates, which UTF-8 has no bytes for."""
    return text.encode(errors="backslashreplace").decode()
