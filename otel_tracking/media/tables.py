"""Tables: columns and rows, DataFrames, a tracker's own."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from otel_tracking.config import to_jsonable
from otel_tracking.media.encoded import Encoded, EncodedMedia, Unencodable, type_name
from otel_tracking.media.images import encode_image, is_image
from otel_tracking.records import Media, MediaKind
from otel_tracking.tags import distinct

_FILE: Final = "_file"
_VALUE: Final = "value"
_NO_FILE: Final = 0
"""The number of the rows' own file: a cell that says it is a mapping that has `_file` itself."""
_MOST_CELLS: Final = 10_000_000


def encode_table(columns: Sequence[Any] | None, data: Any, dataframe: Any = None) -> EncodedMedia:
    """Rows, a mapping of columns, or a DataFrame.

    Numbers, texts, booleans and None stay what they are; images in cells become files; all else becomes
    JSON values, or text.

    Args:
        columns: Their names; numbers from 0 if there are none.
        data: Rows, or a mapping from columns to values, or a two-dimensional array.
        dataframe: pandas' or anything with `columns` and `itertuples`, instead; or a `wandb.Table`. An index
            becomes columns in front, unless it is 0 to n - 1 without a name.

    Raises:
        Unencodable: It is none of these, or a row is not as long as there are columns.
    """
    names, rows = _columns_and_rows(columns, data, dataframe)
    if len(names) * len(rows) > _MOST_CELLS:
        raise Unencodable(f"a table of {len(rows):,} rows; {_MOST_CELLS:,} cells are the most")
    files: list[Encoded] = []
    remarks: list[str] = []
    cells = []
    for row in rows:
        if len(row) != len(names):
            raise Unencodable(f"a row of {len(row)} cells in a table of {len(names)} columns")
        cells.append([_cell(value, files, remarks) for value in row])
    table = Encoded(json.dumps(cells).encode(), ".json", "application/json", "rows.json")
    details = {"columns": names, "rows": len(rows)}
    return EncodedMedia(MediaKind.TABLE, (table, *files), details, tuple(dict.fromkeys(remarks)))


def _columns_and_rows(
    columns: Sequence[Any] | None, data: Any, dataframe: Any
) -> tuple[list[str], list[Sequence[Any]]]:
    if dataframe is not None:
        if hasattr(dataframe, "itertuples"):
            frame = _with_index(dataframe)
            names = [str(name) for name in frame.columns]
            return names, [tuple(row) for row in frame.itertuples(index=False, name=None)]
        raise Unencodable(f"{type_name(dataframe)} is no DataFrame")
    if data is not None and columns is None and hasattr(data, "columns") and hasattr(data, "data"):
        columns, data = list(data.columns), data.data  # a tracker's own table
    if hasattr(data, "itertuples"):
        return _columns_and_rows(None, None, data)
    if isinstance(data, Mapping):
        lists = [list(values) for values in data.values()]
        if len({len(values) for values in lists}) > 1:
            raise Unencodable("columns of different lengths")
        return [str(name) for name in data], list(zip(*lists, strict=True))
    if hasattr(data, "tolist"):
        data = data.tolist()
    if not isinstance(data, Iterable) or isinstance(data, str | bytes):
        raise Unencodable(f"{type_name(data)} is no rows of a table")
    rows = [_row(row) for row in data]
    if columns is None:
        columns = range(len(rows[0]) if rows else 0)
    return [str(name) for name in columns], rows


def _with_index(dataframe: Any) -> Any:
    """The index as columns of its own, unless it only counts the rows."""
    index: Any = getattr(dataframe, "index", None)
    if not hasattr(index, "names") or not hasattr(dataframe, "reset_index"):
        return dataframe
    counts = type(index).__name__ == "RangeIndex" and (index.start, index.step) == (0, 1)
    if counts and index.name is None:
        return dataframe
    taken = [str(name) for name in dataframe.columns]
    names: list[str] = []
    for level, name in enumerate(index.names):
        if name is None:
            name = "index" if len(index.names) == 1 else f"level_{level}"
        names.append(distinct(str(name), [*taken, *names]))
    return dataframe.reset_index(names=names)


def _row(row: Any) -> Sequence[Any]:
    if isinstance(row, Sequence) and not isinstance(row, str | bytes):
        return row
    if hasattr(row, "tolist") and isinstance(row := row.tolist(), list):
        return row
    raise Unencodable(f"{type_name(row)} is no row of a table")


def _cell(value: Any, files: list[Encoded], remarks: list[str]) -> Any:
    if value is None or isinstance(value, bool | str):
        return value
    if is_image(value):
        files.append(encode_image(value, remarks))
        return {_FILE: len(files)}  # the first file is the rows
    if hasattr(value, "item") and getattr(value, "ndim", 0) == 0:
        value = value.item()
    converted = to_jsonable({"cell": value})["cell"]
    if isinstance(converted, dict) and _FILE in converted:
        return {_FILE: _NO_FILE, _VALUE: converted}
    if type(converted) is str and not isinstance(value, str):
        remarks.append("cells that are no numbers, texts or images were stored as text")
    return converted


def rows_of(media: Media) -> list[list[Any]]:
    """The rows of a table; a cell that is a file has that `MediaFile`.

    Raises:
        OSError, ValueError: It can't be read.
    """
    rows = json.loads(media.files[0].path.read_text(encoding="utf-8"))
    return [[_read(cell, media) for cell in row] for row in rows]


def _read(cell: Any, media: Media) -> Any:
    if not isinstance(cell, dict) or type(number := cell.get(_FILE)) is not int:
        return cell
    if number == _NO_FILE and cell.keys() == {_FILE, _VALUE}:
        return cell[_VALUE]
    # What else has that key is a mapping of the user's, from before those were marked.
    is_file = cell.keys() == {_FILE} and 0 < number < len(media.files)
    return media.files[number] if is_file else cell


def as_csv(media: Media, names: Mapping[str, str]) -> str:
    """A table as CSV; None is an empty cell, lists and mappings are JSON.

    Args:
        media: The table.
        names: What a cell says that is a file, by the file's hash.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(media.details["columns"])
    for row in rows_of(media):
        writer.writerow([_text(cell, names) for cell in row])
    return text.getvalue()


def _text(cell: Any, names: Mapping[str, str]) -> Any:
    if hasattr(cell, "sha256"):
        return names.get(cell.sha256, cell.sha256)
    return json.dumps(cell) if isinstance(cell, list | dict) else cell
