"""CSV: a header, then a line a point. Numbers are written so that reading them gives the same double."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import IO

from otel_tracking.export.blocks import COLUMNS, attributes_of, blocks


def write_csv(run: Path, run_id: str, file: IO[str]) -> None:
    """Write a run's points.

    Args:
        run: As for `read_run`.
        run_id: What the column of that name holds.
        file: Text, opened with `newline=""`.
    """
    writer = csv.writer(file)
    writer.writerow(COLUMNS)
    for block in blocks(run):
        about = [
            (run_id, block.rank, s.name, s.tag, attributes_of(s), s.kind.value, s.unit) for s in block.series
        ]
        points = block.points
        spans = [*(span.ids for span in points.enclosing), ("", "")]  # the last one, -1, is none
        writer.writerows(
            (*about[index], step, time, value, *spans[inside])
            for index, step, time, value, inside in zip(
                points.index.tolist(),
                points.steps.tolist(),
                points.times.tolist(),
                points.values.tolist(),
                points.inside.tolist(),
                strict=True,
            )
        )
